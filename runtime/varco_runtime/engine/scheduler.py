"""What runs next: admit -> encode a batch of tiles -> prefill a chunk -> decode -> deliver, first come first served.

One step does a little of the first and a token of everything under way. Nothing here knows of threads: `driver.py` lets
one thread at a time call `step`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from varco_runtime.backend import GREEDY, BatchingBackend, ChoosesRows
from varco_runtime.dtypes import Array
from varco_runtime.engine.costs import RowCosts, WorkCosts
from varco_runtime.engine.job import Job, Model
from varco_runtime.engine.preparation import Clock, Preparation
from varco_runtime.errors import BackendError, VarcoError

DEFAULT_MAX_STALL_MS = 50
"""How long answers under way wait at most for a new question's picture and prompt, unless a tile takes longer."""


class Scheduler:
    """The waiting jobs, the slots, and a step of the work on them.

    Args:
        model: What answers.
        max_stall_s: Seconds of other work between two tokens of an answer, at most, down to one tile or the smallest
            chunk of a prompt.
        clock: The time in seconds.

    Attributes:
        waiting: Jobs without a slot, in the order in which they came.
        slots: The job of each slot, or None.
        row_costs: What steps cost, together and alone.
    """

    def __init__(
        self, model: Model, max_stall_s: float = DEFAULT_MAX_STALL_MS / 1000, clock: Clock = time.perf_counter
    ) -> None:
        self._model = model
        self._max_stall_s = max_stall_s
        self._clock = clock
        self.waiting: deque[Job] = deque()
        self.slots: list[Job | None] = [None] * model.memory.num_slots
        self.row_costs = RowCosts()
        self._deadline = float("inf")
        self.preparation = Preparation(model, WorkCosts(), self._left, clock)

    def submit(self, job: Job) -> None:
        """Let a job wait for its slot."""
        self.waiting.append(job)

    def step(self) -> None:
        """Do the next work. An error of one job is that job's; an interrupt is raised, and leaves the others whole."""
        self._release()
        if not self._prepare():
            self._decode()

    # -- slots ------------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        """Take back the slots of jobs that have left."""
        for slot, job in enumerate(self.slots):
            if job is not None and job.has_left:
                job.work = None
                self.slots[slot] = None

    def _idle_position(self, slot: int) -> int:
        """Return where an idle row of a step writes: behind what its slot holds. A full slot gives up its end."""
        held, most = self._model.memory.sequence_in(slot), self._model.backend.max_context - 1
        if len(held.ids) > most:
            held.ids = held.ids[:most]
        return len(held.ids)

    def _admit(self) -> Job | None:
        """Give a slot to the job that has waited longest, and return it; None where none waits or no slot is free."""
        while self.waiting and (self.waiting[0].has_left or self.waiting[0] in self.slots):
            self.waiting.popleft()  # in a slot already: an interrupt came in between
        free = [slot for slot, job in enumerate(self.slots) if job is None]
        if not self.waiting or not free:
            return None
        job = self.waiting[0]
        job.slot = self._model.memory.slot_for(job.ids, job.spans, free)
        self.slots[job.slot] = job
        self.waiting.popleft()
        return job

    # -- preparing --------------------------------------------------------------------------------------------------

    @property
    def _preparing(self) -> Job | None:
        """Return the job that has a slot and no answer yet: at most one."""
        return next((job for job in self.slots if job and job.decoding is None and not job.has_left), None)

    def _left(self) -> float:
        """Return the seconds that are left before answers under way want their next token."""
        return self._deadline - self._clock()

    def _prepare(self) -> bool:
        """Prepare jobs as long as answers under way can wait; return whether there is something to read already."""
        is_awaited = any(job is not None and job.is_decoding for job in self.slots)
        self._deadline = self._clock() + self._max_stall_s if is_awaited else float("inf")
        while (job := self._preparing or self._admit()) is not None:
            least_s = self._piece_of(job)
            if not is_awaited and (job.decoding is not None or job.has_left):
                return True  # whoever asked has something to read, and nobody else waits for a token
            if self._left() < least_s:
                break
        return False

    def _piece_of(self, job: Job) -> float:
        """Do a piece of a job's preparation, and return what the least next one will take."""
        if job.work is None:
            job.work = self.preparation.pieces(job)
        try:
            if not job.has_left:
                return next(job.work)
        except StopIteration:
            self._begin(job)
        except Exception as error:
            job.fail(error)
        except BaseException:
            job.work = None  # begins anew, should its reader still want it
            raise
        return 0.0

    def _begin(self, job: Job) -> None:
        """Begin the answer of a job whose prompt is in the cache."""
        if job.decode is None:
            job.finished = True
            return
        try:
            job.decoding = job.decode(job)
            job.deliver(job.decoding.start())
        except BaseException as error:
            self._fail(job, error)

    # -- decoding ---------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Take the next step of every answer under way."""
        jobs = [job for job in self.slots if job is not None and job.is_decoding]
        backend = self._model.backend
        if len(jobs) > 1 and isinstance(backend, BatchingBackend):
            num_rows = 1 + max(job.slot for job in jobs if job.slot is not None)
            if isinstance(backend, ChoosesRows):
                num_rows = backend.num_rows(num_rows)
            if self.row_costs.go_together(len(jobs), num_rows) and self._together(backend, jobs, num_rows):
                return
        for job in jobs:
            self._alone(job)

    def _alone(self, job: Job) -> None:
        assert job.slot is not None, "Bug: an answer without a slot"
        assert job.decoding is not None, "Bug: an answer that has not begun"
        self._model.memory.select(job.slot)
        started = self._clock()
        try:
            tokens = job.decoding.step()
        except BaseException as error:
            self._fail(job, error)
            return
        self.row_costs.count_alone(len(tokens), self._clock() - started)
        job.deliver(tokens)

    def _together(self, backend: BatchingBackend, jobs: list[Job], num_rows: int) -> bool:
        """Take one step of several answers; False where the device refuses it, which each answer then tries alone.

        A row without an answer writes behind what its slot holds.
        """
        rows = {job.slot: job.decoding for job in jobs if job.decoding is not None}
        token_ids = [rows[slot].pending if slot in rows else 0 for slot in range(num_rows)]
        positions = [rows[slot].position if slot in rows else self._idle_position(slot) for slot in range(num_rows)]
        started = self._clock()
        outcomes: Sequence[Array | int | BackendError] | Array
        try:
            if isinstance(backend, ChoosesRows):
                draws = [rows[slot].draw() if slot in rows else GREEDY for slot in range(num_rows)]
                outcomes = backend.decode_chosen_rows(token_ids, positions, draws)
            else:
                outcomes = backend.decode_rows(token_ids, positions)
        except VarcoError:
            return False
        for slot in set(range(num_rows)) - rows.keys():
            if isinstance(outcomes[slot], BackendError):  # nobody's, and the slot holds nothing any more
                self._model.memory.forget(slot)
        for job in jobs:
            try:
                assert job.slot is not None, "Bug: an answer without a slot"
                job.deliver(rows[job.slot].advance(outcomes[job.slot]))
            except BaseException as error:
                self._fail(job, error)
        self.row_costs.count_together(num_rows, self._clock() - started)  # the choice of tokens is a part of it
        return True

    def _fail(self, job: Job, error: BaseException) -> None:
        """End a job whose answer cannot go on, and forget what is in its slot. An interrupt is raised on."""
        assert job.slot is not None, "Bug: a job failed without a slot"
        self._model.memory.select(job.slot)
        self._model.memory.forget_sequence()
        if isinstance(error, Exception):
            job.fail(error)
            return
        job.fail(BackendError("The answer was interrupted while a token was chosen. Ask again."))
        raise error
