"""Which thread asks the GPU, and when: the one that loaded the model or one more for all others, one at a time.

The provider keeps captured graphs and its libraries' handles for each thread until the session ends. A server that
answers each request on a new thread would capture anew every time and never get that memory back.

While one thread captures, no other of the process may ask CUDA for memory, a copy or to wait, or both fail: the
provider captures in CUDA's global mode. So all models of a process share one lock. It cannot reach others who use
CUDA in the same process, torch for one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, Protocol, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


DEVICE_LOCK = threading.RLock()
"""Held while a model asks the GPU for anything."""


class DeviceThreads:
    """Runs calls here if this is the thread that made it, and else on a thread of its own, one after the other."""

    def __init__(self) -> None:
        self._home = threading.current_thread()
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._own: threading.Thread | None = None

    def run(self, call: Callable[[], T]) -> T:
        if threading.current_thread() in (self._home, self._own):
            with DEVICE_LOCK:
                return call()
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="varco-cuda")
                self._own = self._executor.submit(threading.current_thread).result()
        return self._executor.submit(self.run, call).result()


class _AsksDevice(Protocol):
    @property
    def device_threads(self) -> DeviceThreads: ...


Owner = TypeVar("Owner", bound=_AsksDevice)


def on_device_thread(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[Owner, P], T]:
    """Return the method, run by its object's `device_threads`."""

    @functools.wraps(method)
    def run(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def call() -> T:
            return method(self, *args, **kwargs)

        return self.device_threads.run(call)

    return run
