"""Ctrl-C, as a command takes it: imports are finished first, and an interrupt that somebody swallows still counts.

A library that is interrupted while it is imported says that it could not be loaded, or goes on as if nothing had
happened. Neither may become a message about the installation or the status of a success.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_IMPORTER = "<frozen importlib._bootstrap>"
_LOOK_AGAIN_S = 0.02


class Interrupts:
    """A context in which ctrl-C raises `KeyboardInterrupt`, after the end of an import that is under way.

    A second one does not wait. `seen` tells whether there was one. Does nothing in another thread than the main one,
    and where ctrl-C is ignored or somebody else's, as in a program that calls `main`.
    """

    def __init__(self) -> None:
        self.seen = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if is_default and hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
            self._former[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look_again)
            self._former[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._former:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        is_second, self.seen = self.seen, True
        if is_second:
            raise KeyboardInterrupt
        self._look_again(number, frame)

    def _look_again(self, number: int, frame: FrameType | None) -> None:
        """Raise once no import is under way, which only the frames tell."""
        if not _is_importing(frame):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTER:
            return True
        frame = frame.f_back
    return False
