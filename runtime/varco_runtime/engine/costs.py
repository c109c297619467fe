"""What work costs, in seconds, as running means of what was measured: the scheduler plans by them."""

from __future__ import annotations

from dataclasses import dataclass, field

_RATE = 0.2
"""Of forgetting, in the running means."""
_SECOND_LOOK, _RAREST_LOOK = 64, 1024
"""After so many choices the other way is taken once, for one slow moment must not decide for good: the later, the more
it costs."""
_LOOK_SHARE = 0.02
"""Of all time, what those looks may cost."""
_STEP_RATE = 0.01
"""Of forgetting, of steps that give one token or several: some hundred are remembered."""
_LOOK_ROUNDS = 4
"""So many steps of each answer show what they give one after the other: drafts are right in one place and wrong in the
next, often in all answers at once."""
_ENOUGH_STEPS = 32
"""Steps of one answer that were seen before, which need no look to begin with."""
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
    """Since the last look at the other way."""
    _rounds_left: int = _LOOK_ROUNDS
    """Of the look at answers one after the other, the first one included."""

    def count_alone(self, num_tokens: int, seconds: float) -> None:
        """Take note of a step of one answer alone, and how many tokens it gave."""
        self.alone.count(num_tokens, seconds)

    def count_together(self, num_rows: int, seconds: float) -> None:
        """Take note of a step of so many rows."""
        self.together.setdefault(num_rows, Mean()).count(seconds)

    def go_together(self, num_answers: int, num_rows: int) -> bool:
        """Return whether answers should step together: `num_rows` rows, idle ones included, for `num_answers` tokens.

        What was not measured yet is tried first, unless it must be the dearer way by what is known of other numbers of
        rows. Then the way that gives more tokens a second is taken.
        """
        together, apart_s = self.together.get(num_rows, Mean()), num_answers * self.alone.per_token_s
        together_s = together.seconds if together.num_seen > 1 else self._least_s(num_rows)
        is_known = self.alone.num_seen >= _ENOUGH_STEPS or not self._rounds_left
        if together.num_seen < 2 and not (is_known and together_s >= apart_s):
            return True
        if self._rounds_left:
            self._rounds_left -= 1
            return False
        self._num_choices += 1
        is_cheaper = together_s < apart_s
        cheap_s, dear_s = sorted((together_s, apart_s))
        num_rounds = _LOOK_ROUNDS if is_cheaper else 1
        interval = num_rounds * (dear_s - cheap_s) / (_LOOK_SHARE * cheap_s) if cheap_s else 0.0
        if self._num_choices < min(max(interval, _SECOND_LOOK), _RAREST_LOOK):
            return is_cheaper
        self._num_choices, self._rounds_left = 0, num_rounds - 1 if is_cheaper else 0
        return not is_cheaper

    def _least_s(self, num_rows: int) -> float:
        """Return what a step of so many rows costs at least: as much as one of fewer, and its share of one of more."""
        known = {rows: mean.seconds for rows, mean in self.together.items() if mean.num_seen > 1}
        return max((seconds * min(1, num_rows / rows) for rows, seconds in known.items()), default=0.0)


def _mixed(mean: float, seconds: float) -> float:
    return seconds if mean == 0 else mean + _RATE * (seconds - mean)


def _within(seconds: float, unit_s: float, least: int, num_left: int) -> int:
    if seconds == float("inf"):
        return num_left
    if unit_s <= 0:
        return min(least, num_left)
    fitting = int(max(seconds, 0.0) / unit_s) // least * least
    return min(max(fitting, least), num_left)
