"""What work costs, in seconds, as running means of what was measured: the scheduler plans by them."""

from __future__ import annotations

from dataclasses import dataclass, field

_RATE = 0.2
"""Of forgetting, in the running means."""
_SECOND_LOOK = 64
"""Every so many choices the other way is taken once: one slow moment must not decide for good."""
_STEP_RATE = 0.03
"""Of forgetting, of steps that give one token or several: some thirty are remembered."""
_FIRST_STEPS = 9
"""So many steps of one answer are seen before it is decided by them."""
LEAST_CHUNK_TOKENS = 16
"""The smallest chunk of a prompt: fewer rows cost a matrix product as much."""


@dataclass(slots=True)
class Mean:
    """A running mean of seconds; 0 until something was counted. The first of a kind, which allocates, is left out."""

    seconds: float = 0.0
    num_seen: int = 0

    def count(self, seconds: float) -> None:
        """Take note of one measurement."""
        self.num_seen += 1
        if self.num_seen == 2:
            self.seconds = seconds
        elif self.num_seen > 2:
            self.seconds += _RATE * (seconds - self.seconds)


@dataclass(slots=True)
class TokenCost:
    """What a token of steps costs that give one or several: running means of both, of which the ratio counts.

    The mean of each step's own ratio would be another number, and a larger one: where one step of a second gives nine
    tokens and the next gives one, a token costs 0.2 seconds and not 0.56. Steps with drafts are just so, which is why
    many of them are remembered. The first, which allocates, is left out.
    """

    seconds: float = 0.0
    tokens: float = 0.0
    num_seen: int = 0

    def count(self, num_tokens: int, seconds: float) -> None:
        """Take note of one step."""
        self.num_seen += 1
        if self.num_seen > 1:
            weight = max(_STEP_RATE, 1 / (self.num_seen - 1))
            self.seconds += weight * (seconds - self.seconds)
            self.tokens += weight * (num_tokens - self.tokens)

    @property
    def is_known(self) -> bool:
        """Return whether enough steps were seen: how many tokens they give differs from one to the next."""
        return self.num_seen >= _FIRST_STEPS

    @property
    def per_token_s(self) -> float:
        """Return the seconds of one token."""
        return self.seconds / self.tokens if self.tokens else 0.0


@dataclass(slots=True)
class WorkCosts:
    """Seconds for one tile of a picture and for one token of a prompt."""

    tile_s: float = 0.0
    token_s: float = 0.0

    def count_tiles(self, num_tiles: int, seconds: float) -> None:
        """Take note of what encoding tiles took."""
        self.tile_s = _mixed(self.tile_s, seconds / num_tiles)

    def count_tokens(self, num_tokens: int, seconds: float) -> None:
        """Take note of what a chunk of a prompt took."""
        self.token_s = _mixed(self.token_s, seconds / num_tokens)

    def tiles_within(self, seconds: float, num_left: int) -> int:
        """Return how many of the tiles that are left to encode in a time: at least one, one while costs are unknown."""
        return _within(seconds, self.tile_s, 1, num_left)

    def tokens_within(self, seconds: float, num_left: int) -> int:
        """Return how many of the tokens that are left to prefill in a time: whole smallest chunks, at least one."""
        return _within(seconds, self.token_s, LEAST_CHUNK_TOKENS, num_left)

    @property
    def chunk_s(self) -> float:
        """Return the seconds of a smallest chunk."""
        return self.token_s * LEAST_CHUNK_TOKENS


@dataclass(slots=True)
class RowCosts:
    """Whether answers take their next step together or one after the other, by what either cost so far.

    Costs jump where a kernel for one row gives way to another for several: with float activations two rows may cost
    three times one, with int8 activations 1.4 times. So each number of rows has a mean of its own.
    """

    alone: TokenCost = field(default_factory=TokenCost)
    """A token of an answer that steps alone, those of drafts that were right included."""
    together: dict[int, Mean] = field(default_factory=dict)
    """A step of so many rows."""
    _num_choices: int = 0

    def count_alone(self, num_tokens: int, seconds: float) -> None:
        """Take note of a step of one answer alone, and how many tokens it gave."""
        self.alone.count(num_tokens, seconds)

    def count_together(self, num_rows: int, seconds: float) -> None:
        """Take note of a step of so many rows."""
        self.together.setdefault(num_rows, Mean()).count(seconds)

    def go_together(self, num_answers: int, num_rows: int) -> bool:
        """Return whether answers should step together: `num_rows` rows, idle ones included, for `num_answers` tokens.

        What was not measured yet is tried first, then the way that gives more tokens a second is taken.
        """
        together = self.together.get(num_rows, Mean())
        if together.num_seen < 2:
            return True
        if not self.alone.is_known:
            return False
        self._num_choices += 1
        is_cheaper = together.seconds < num_answers * self.alone.per_token_s
        return is_cheaper if self._num_choices % _SECOND_LOOK else not is_cheaper


def _mixed(mean: float, seconds: float) -> float:
    return seconds if mean == 0 else mean + _RATE * (seconds - mean)


def _within(seconds: float, unit_s: float, least: int, num_left: int) -> int:
    if seconds == float("inf"):
        return num_left
    if unit_s <= 0:
        return min(least, num_left)
    fitting = int(max(seconds, 0.0) / unit_s) // least * least
    return min(max(fitting, least), num_left)
