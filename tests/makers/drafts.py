"""Drafts that are known to be right or wrong, for models whose answers no draft would guess."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from varco_runtime.generation.speculation import Drafter, Guess


def foretell(monkeypatch: pytest.MonkeyPatch, answer: Sequence[int], lengths: Sequence[int]) -> None:
    """Let drafts of these lengths, in turn, say how the answer goes on, two of three of them with a mistake."""
    fed: list[int] = []
    turn = itertools.count()

    def propose(self: Drafter, limit: int, forced: Sequence[Guess] = ()) -> list[Guess]:
        index = next(turn)
        tokens = list(answer[len(fed) :][: min(limit, lengths[index % len(lengths)])])
        if tokens and index % 3:
            tokens[index % len(tokens)] ^= 1
        return [Guess(token, "test") for token in tokens]

    monkeypatch.setattr(Drafter, "feed", lambda self, token: fed.append(token))
    monkeypatch.setattr(Drafter, "propose", propose)
