"""What every process but the front does first."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def be_a_child() -> None:
    """Leave signals to the front, and die with it.

    A terminal's ctrl-C goes to every process; only the front decides what it means. Where there is no `prctl`, and
    where the front died before it was called, the end of the socket says that the front is gone. The parent's number
    says nothing: in a container the front may be process 1.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
