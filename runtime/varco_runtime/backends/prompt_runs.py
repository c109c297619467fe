"""How a prompt is cut into runs of the decoder: the same for every provider, each within its own bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from varco_runtime.errors import ContextError


@dataclass(frozen=True, slots=True)
class PromptRun:
    """Positions `start` .. `end - 1`; the last `num_wanted` of them are asked for their logits, often none."""

    start: int
    end: int
    num_wanted: int

    @property
    def num_logits(self) -> int:
        """Rows of logits that the run computes: a decoder gives at least one."""
        return max(1, self.num_wanted)


def prompt_runs(total: int, start: int, num_logits: int, max_tokens: int, max_logits: int) -> Iterator[PromptRun]:
    """Cut positions `start` .. `total - 1`, of which the last `num_logits` give logits, into runs in order.

    A run has at most `max_tokens` positions and asks for at most `max_logits` rows.
    """
    assert 0 <= start < total, f"Bug: prefill from {start} of {total} positions"
    assert 1 <= num_logits <= total - start, f"Bug: {num_logits} logits of {total - start} positions"
    first_logit = total - num_logits
    while start < total:
        end = min(total, start + max_tokens)
        if end > first_logit:
            end = min(end, max(start, first_logit) + max_logits)
        yield PromptRun(start, end, max(0, end - max(start, first_logit)))
        start = end


def check_length(total: int, max_context: int) -> None:
    """Raise `ContextError` where `total` positions do not fit."""
    if total > max_context:
        raise ContextError(
            f"{total} positions do not fit the context of {max_context}. Load with a larger max_context."
        )
