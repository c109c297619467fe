"""What every process but the front does first."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def be_a_child() -> None:
    """Leave signals to the front, and die with it.

    A terminal's ctrl-C goes to every process; only the front decides what it means. Where there is no `prctl`, the end
    of the socket says that the front is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it died before that
            os._exit(0)
