"""Which thread runs the model: one of those that wait for a token, one step at a time.

There is no thread of the engine's own. A single caller runs its steps itself, as if there were no engine; of several,
whoever finds no token of its own waiting runs the next step for all of them.
"""

from __future__ import annotations

import atexit
import threading
import weakref

from varco_runtime.engine.job import Job
from varco_runtime.engine.scheduler import Scheduler

_LONGEST_STEP_S = 60.0
"""How long the end of a process waits for a step under way."""
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Answers from any number of threads and streams: as many at once as there are slots, the others wait their turn.

    Args:
        scheduler: Decides what runs next.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._changed = threading.Condition()  # over a lock that a signal's handler may take again
        self._driver: Job | None = None
        """The job whose thread is running a step."""
        self._is_closed = False
        _ENGINES.add(self)

    def close(self) -> None:
        """Let daemon threads begin no more steps, and wait for the one under way.

        A daemon thread that is in a network's run when the interpreter ends would take the process down with it.
        """
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: self._driver is None, timeout=_LONGEST_STEP_S)

    def next_token(self, job: Job) -> int | None:
        """Return the next token of a job's answer, None behind the last one; the first call lets it wait for a slot.

        Raises:
            VarcoError: The job failed.
        """
        try:
            self._submit(job)
            while True:
                has_ended = job.has_left  # before the tokens: the end is told after them
                if job.tokens:
                    return job.tokens.popleft()
                if job.error is not None:
                    raise job.take_error()
                if has_ended:
                    return None
                if self._may_drive(job):
                    self._drive()
        except BaseException:
            self._abandon(job)
            raise

    def cancel(self, job: Job) -> None:
        """Take no more of a job's tokens: its slot is free at the next step. Any thread may call it."""
        job.cancelled = True
        with self._changed:
            self._changed.notify_all()

    def _submit(self, job: Job) -> None:
        if not job.is_submitted:
            job.is_submitted = True
            self.scheduler.submit(job)

    def _may_drive(self, job: Job) -> bool:
        """Return True once this thread is to run a step, False once the job's state has changed instead."""
        with self._changed:
            while self._driver is not None or (self._is_closed and threading.current_thread().daemon):
                if job.tokens or job.has_left:
                    return False
                self._changed.wait()
            if job.tokens or job.has_left:
                return False
            self._driver = job
        return True

    def _drive(self) -> None:
        try:
            self.scheduler.step()
        finally:
            self._stop_driving()

    def _stop_driving(self) -> None:
        with self._changed:
            self._driver = None
            self._changed.notify_all()

    def _abandon(self, job: Job) -> None:
        """Let nobody wait for a job whose reader was interrupted, nor for the step that it was about to run."""
        job.cancelled = True
        if self._driver is job:
            self._stop_driving()


@atexit.register
def _close_all() -> None:
    for engine in list(_ENGINES):
        engine.close()
