"""Decoders that print nothing: what Pillow and libtiff have to say about a picture comes as one `ImageError`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow's log is no message to the user unless asked for

_quiet_lock = threading.Lock()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, and turn the one about decompression bombs into an error.

    `catch_warnings` swaps state of the whole process, so two threads inside it at once could restore each other's
    filters for good: one picture is decoded at a time.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def quiet_libtiff() -> Iterator[None]:
    """Point the process's standard error to nowhere: libtiff prints there, past Python, what is wrong with a file.

    Only while there is one thread, so that nobody else's message is lost; in a server libtiff's lines join the log.
    """
    if threading.active_count() > 1:
        yield
        return
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError, AttributeError):  # standard error is closed: nothing to silence
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
