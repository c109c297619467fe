"""Decoders that print nothing: what Pillow and libtiff have to say about a picture comes as one `ImageError`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from PIL import Image

logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow's log is no message to the user unless asked for

_lock = threading.Lock()
_num_quiet = 0
_OF_PILLOW = r"(?#varco-edge)PIL\."  # the comment tells these filters from a user's


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, and turn the one about decompression bombs into an error.

    Warning filters belong to the process: the first thread in here sets them, for warnings of Pillow's modules alone,
    and the last one out removes them. The lock is held for these two moments and never while a picture is decoded, so
    that a slow picture does not hold up others. Pillow's decoders release Python's lock as well; for OpenJPEG, where
    they do not, see `jpeg2000.py`.
    """
    _set_filters(+1)
    try:
        yield
    finally:
        _set_filters(-1)


def _set_filters(change: int) -> None:
    global _num_quiet
    with _lock:
        _num_quiet += change
        if change > 0 and _num_quiet == 1:
            warnings.filterwarnings("ignore", module=_OF_PILLOW)
            warnings.filterwarnings("error", category=Image.DecompressionBombWarning, module=_OF_PILLOW)
        elif _num_quiet == 0:
            filters = cast("list[tuple[Any, ...]]", warnings.filters)
            for entry in [entry for entry in filters if getattr(entry[3], "pattern", "") == _OF_PILLOW]:
                filters.remove(entry)  # in place, as `filterwarnings` adds them


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
