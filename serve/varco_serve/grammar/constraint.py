"""One answer held to a grammar: the runtime's `Constraint` over a matcher of llguidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from varco_serve.grammar.errors import GrammarError, reason_of

T = TypeVar("T")


class GrammarConstraint:
    """See `varco_runtime.generation.constraint.Constraint`.

    What must come next is written in the tokens that the tokenizer makes of it. Where the grammar has come to its end,
    the end token is forced too.

    Args:
        matcher: At the grammar's beginning.
        eos_token_ids: What ends an answer; the first of them is forced.
        vocab_size: The rows of the model's logits.
        on_error: Called where the grammar dies under this answer.
    """

    def __init__(
        self, matcher: LLMatcher, eos_token_ids: Sequence[int], vocab_size: int, on_error: Callable[[], None]
    ) -> None:
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._on_error = on_error
        self._num_taken = 0
        self._coming: list[int] | None = None
        """What is forced from here on; None before that was worked out."""

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next."""
        if self._coming is None:
            self._coming = self._find_coming()
        return self._coming

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return the tokens of which the next is chosen, `[vocab]` bool.

        Raises:
            GrammarError: The grammar dies here.
        """
        bits = np.frombuffer(self._asked(self._matcher.compute_bitmask), np.uint8)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            GrammarError: It is none of those that are allowed, or the grammar dies here.
        """
        coming, self._coming = self._coming, None
        if token not in self._eos_token_ids:
            self._asked(lambda: self._matcher.consume_token(token))
        self._num_taken += 1
        if coming and coming[0] == token and len(coming) > 1:
            self._coming = coming[1:]

    def _find_coming(self) -> list[int]:
        if self._asked(self._matcher.is_stopped):
            return [self._eos_token_ids[0]]
        return self._asked(self._matcher.compute_ff_tokens)

    def _asked(self, question: Callable[[], T]) -> T:
        """Return the matcher's answer. It raises nothing, but stays in error from then on."""
        answer = question()
        if self._matcher.is_error():
            self._on_error()
            raise GrammarError(
                f"The answer cannot be held to the grammar beyond its token {self._num_taken}: "
                f"{reason_of(self._matcher.get_error())}. Change the grammar."
            )
        return answer
