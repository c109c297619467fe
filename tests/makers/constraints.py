"""Constraints that need no grammar: what they allow is drawn from the tokens so far."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from varco_runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class Rule:
    """How a constraint is made.

    Args:
        seed: Of what it allows: one token of three, and at every fourth place two tokens are forced.
        fails_at: The token, from 0, that it does not take.
    """

    seed: int = 0
    fails_at: int | None = None

    def constraint(self, vocab_size: int) -> Drawn:
        """Return one for one answer."""
        return Drawn(self, vocab_size)


@dataclass(slots=True)
class Drawn:
    """See `Rule`. `taken` are the tokens that it accepted."""

    rule: Rule
    vocab_size: int
    taken: list[int] = field(default_factory=list)
    _coming: list[int] = field(default_factory=list)

    def forced(self) -> Sequence[int]:
        if not self._coming and len(self.taken) % 4 == 1:
            self._coming = self._draws().integers(1, self.vocab_size - 2, 2).tolist()
        return self._coming

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        assert not self._coming, "what is forced leaves no choice"
        allowed = self._draws().random(self.vocab_size) < 1 / 3
        allowed[3] = True
        return allowed

    def accept(self, token: int) -> None:
        if len(self.taken) == self.rule.fails_at:
            raise InputError("the grammar died")
        if self._coming:
            assert token == self._coming.pop(0)
        else:
            assert self.allowed()[token]
        self.taken.append(token)

    def _draws(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(repr((self.rule.seed, self.taken)).encode()))
