"""Who is let in: as many answers as may run and wait. Others are told so at once, before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from varco_serve.documents.errors import RequestError
from varco_serve.messages import Model

RETRY_AFTER_S = 1.0


def num_slots(model: Model) -> int:
    """Return how many answers a model gives at once; 0 before that is known."""
    return 0 if model.facts is None else model.facts.slots


class Admission:
    """Counts the answers that are asked for, from the end of a request's body on.

    Args:
        model: What gives as many at once as it has slots.
        max_queue: How many may wait besides.
    """

    def __init__(self, model: Model, max_queue: int) -> None:
        self._model = model
        self._max_queue = max_queue
        self.num_answers = 0

    @property
    def _most(self) -> int:
        return num_slots(self._model) + self._max_queue

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Let one answer in; its place is given back at the end of the context.

        Raises:
            RequestError: 429, there are too many.
        """
        place = Place(self)
        place.widen(1)
        try:
            yield place
        finally:
            self.num_answers -= place.num_answers

    def check(self, num_answers: int) -> None:
        """Check that one request may ever have as many answers.

        Raises:
            RequestError: 400. Asking again, as clients do after a 429, would never help.
        """
        most = self._most
        if num_answers > most:
            raise RequestError(f"n is {num_answers}, and at most {most} answers run and wait here.", param="n")

    def let_in(self, num_answers: int) -> None:
        """Count further answers.

        Raises:
            RequestError: 429, there are too many.
        """
        most = self._most
        if self.num_answers + num_answers > most:
            raise RequestError(
                f"There is no room for {num_answers} more: {self.num_answers} answers run or wait, at most {most} may. "
                "Try again in a while.",
                status=429,
                code="queue_full",
                kind="rate_limit_error",
                retry_after_s=RETRY_AFTER_S,
            )
        self.num_answers += num_answers


class Place:
    """What one request takes up.

    Args:
        admission: Where it is counted.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.num_answers = 0

    def widen(self, num_answers: int) -> None:
        """Take up as many answers as the request asks for, if it takes up fewer.

        Raises:
            RequestError: 429, there are too many; 400, there are never as many.
        """
        self._admission.check(num_answers)
        more = max(0, num_answers - self.num_answers)
        self._admission.let_in(more)
        self.num_answers += more
