"""What the picture process may do once it has begun: compute, and speak to the front.

Set after everything is imported. A decoder that a hostile file has taken over can open no file and no connection, start
no process and take no more memory; what it can still do is answer wrongly, about its own picture. Linux does not count
the processes of root: there it can start some, which can open as little.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from varco_runtime.picture.bounds import MAX_DECODING_BYTES
from varco_serve.settings import MAX_BODY_BYTES

MEMORY_BYTES = MAX_DECODING_BYTES + 3 * MAX_BODY_BYTES + (192 << 20)
"""Address space beyond nothing: the costliest picture, its file as received and as copied twice, Python and Pillow."""

PICTURE_S = 20.0
"""Processor time for one picture; the costliest that the runtime takes need some five seconds of a slow core."""

GRACE_S = 5
"""Processor time after that, for a decoder that does not come back to Python, until the system ends the process."""

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

_LIBC = ctypes.CDLL(None, use_errno=True)


class TooSlowError(BaseException):
    """A picture has taken its processor time. No `Exception`, so that no decoder's `except` takes it for damage."""


def never_gain_rights() -> None:
    """Let no program that this process might start have more rights than it. Linux alone has this."""
    if sys.platform != "linux":
        return
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *(ctypes.c_ulong(0),) * 3) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")


def return_freed_memory() -> None:
    """Give the pages of freed memory back to the system; glibc by itself keeps those of large pictures."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def confine() -> None:
    """Take from this process what decoding does not need. There is no way back."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,  # open ones stay open
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_AS: MEMORY_BYTES,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


@contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Raise `TooSlowError` after so much processor time; where Python is not reached, the process ends soon after."""

    def too_slow(signum: int, frame: FrameType | None) -> None:
        raise TooSlowError

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    end_s = int(used.ru_utime + used.ru_stime + seconds) + GRACE_S
    resource.setrlimit(resource.RLIMIT_CPU, (end_s if hard == resource.RLIM_INFINITY else min(end_s, hard), hard))
    signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
