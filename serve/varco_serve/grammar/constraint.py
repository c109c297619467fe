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
        renew: Returns a matcher at the beginning that shares nothing with those before. All answers of a grammar share
            the states of its lexer, of which there is a most: where it is reached, the answer goes on in a new one.
    """

    def __init__(
        self, matcher: LLMatcher, eos_token_ids: Sequence[int], vocab_size: int, renew: Callable[[], LLMatcher]
    ) -> None:
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._renew = renew
        self._taken: list[int] = []
        self._num_renewed_at = -1
        self._coming: list[int] | None = None
        """What is forced from here on; None before that was worked out."""

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next.

        Raises:
            GrammarError: The grammar dies here.
        """
        if self._coming is None:
            is_stopped = self._asked(LLMatcher.is_stopped)
            self._coming = [self._eos_token_ids[0]] if is_stopped else self._asked(LLMatcher.compute_ff_tokens)
        return self._coming

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return the tokens of which the next is chosen, `[vocab]` bool.

        Raises:
            GrammarError: The grammar dies here.
        """
        bits = np.frombuffer(self._asked(LLMatcher.compute_bitmask), np.uint8)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            GrammarError: It is none of those that are allowed, or the grammar dies here.
        """
        coming, self._coming = self._coming, None
        if token in self._eos_token_ids:
            if not self._asked(LLMatcher.is_accepting):
                raise GrammarError(f"The answer ends at its token {len(self._taken)}, before its grammar does.")
            return
        self._asked(lambda matcher: matcher.consume_token(token))
        self._taken.append(token)
        if coming and coming[0] == token and len(coming) > 1:
            self._coming = coming[1:]

    def _asked(self, question: Callable[[LLMatcher], T]) -> T:
        """Return the matcher's answer. It raises nothing, but stays in error from then on."""
        answer = question(self._matcher)
        # A full lexer shows itself in several errors, so each of them is tried again, once at a place.
        if self._matcher.is_error() and len(self._taken) > self._num_renewed_at:
            self._num_renewed_at = len(self._taken)
            self._matcher = self._renew()
            self._matcher.consume_tokens(self._taken)
            answer = question(self._matcher)
        if self._matcher.is_error():
            raise GrammarError(
                f"The answer cannot be held to the grammar beyond its token {len(self._taken)}: "
                f"{reason_of(self._matcher.get_error())}. Change the grammar."
            )
        return answer
