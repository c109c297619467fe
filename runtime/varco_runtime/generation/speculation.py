"""Drafts: guesses at the next tokens, which one decoder step of several tokens confirms or rejects.

Every token is chosen from the decoder's own logits, and what follows a wrong guess is thrown away; only the number of
tokens to a step differs, and with it the last bits of the logits: onnxruntime's GroupQueryAttention adds up the rows of
several tokens in another order than that of one (1e-6, release 1.32 on a CPU), and so do most matrix products.

- With float activations that decides only where two tokens are all but equal.
- With int8 activations it moves some inputs across the border between two integers, which each layer amplifies, so that
  an answer may take another way. Both ways are equally near to the exact model, which is measured by
  `benchmarks/draft_quality.py`.

The same holds for whatever else changes how many positions run at once: a restored prefix, what an earlier question
left in the cache, another length of a prompt's chunks. A draft as a batch of rows of one token each would have equal
bits, but each row needs a cache of its own: to copy 2,048 positions takes half as long as a step of the 0.5B shape.
(Prompt-lookup decoding, Saxena 2023; here with VARCO's markup as a second source.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from varco_runtime.backend import MAX_STEP_TOKENS
from varco_runtime.prompt.tokenizer import Tokenizer

_LONGEST, _SHORTEST = 3, 2
_RATE = 0.1  # of forgetting, in the running means
_DRIFT = 0.002  # per token
_FIRST_SLOPE, _SLOPE_DRIFT = 0.4, 0.0002

_FIRST_CHANCES = {"forced": 1.0, "open": 0.9, "comma": 0.9, "zero": 0.9, "close": 0.9, "repeat 3": 0.6}
_FIRST_CHANCE = 0.4


@dataclass(slots=True)
class Chances:
    """How often each source of drafts is right, as running means, shared by all answers of a model.

    What is not tried cannot show that it would be right again: with every token each mean goes a little back to its
    start, by `_DRIFT` of the way. After n tokens (1 - `_DRIFT`)^n of it is left, which is worked out when a mean is
    looked at, so that a token costs the same however many sources there are.
    """

    _means: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By source: its mean, and the number of tokens at which it was that."""
    _num_tokens: int = 0

    def of(self, source: str) -> float:
        """Return the mean of a source, 0 to 1."""
        start = _FIRST_CHANCES.get(source, _FIRST_CHANCE)
        mean, at = self._means.get(source, (start, 0))
        return start + (mean - start) * (1 - _DRIFT) ** (self._num_tokens - at)

    def count(self, source: str, right: bool) -> None:
        """Take note of one guess of a source."""
        chance = self.of(source)
        self._means[source] = chance + _RATE * (float(right) - chance), self._num_tokens

    def drift(self) -> None:
        """Take note that one token has passed."""
        self._num_tokens += 1


@dataclass(slots=True)
class StepCosts:
    """Seconds of one decoder step by its number of tokens: `base` for one, and `slope` of it for each further token.

    Learnt from the steps that are taken. The first slope is what int4 weights cost on a CPU with 512-bit vectors.
    """

    base: float = 0.0
    slope: float = _FIRST_SLOPE
    taken: set[int] = field(default_factory=set)

    def count(self, num_tokens: int, seconds: float) -> None:
        """Take note of what a step of `num_tokens` tokens took."""
        if num_tokens not in self.taken:  # the first of a length allocates its buffers
            self.taken.add(num_tokens)
        elif num_tokens == 1:
            self.base = seconds if self.base == 0 else self.base + _RATE * (seconds - self.base)
        elif self.base > 0:
            slope = max(0.0, seconds / self.base - 1) / (num_tokens - 1)
            self.slope += _RATE * (min(slope, 1.5) - self.slope)

    def drift(self) -> None:
        """Take the slope a little back to its start, with every token: one slow moment must not end all drafts."""
        self.slope += _SLOPE_DRIFT * (_FIRST_SLOPE - self.slope)

    def of(self, num_tokens: int) -> float:
        """Return what a step of `num_tokens` tokens costs, relative to a step of one."""
        return 1 + self.slope * (num_tokens - 1)


@dataclass(frozen=True, slots=True)
class Guess:
    """One drafted token and where it came from."""

    token: int
    source: str


def forced_guesses(tokens: Iterable[int]) -> list[Guess]:
    """Return the draft of tokens that a constraint forces, which are certain."""
    return [Guess(token, "forced") for token in tokens]


class Drafter:
    """Drafts for one answer. Feed it every token of the answer, once it is chosen.

    Args:
        tokenizer: The model's.
        prompt_ids: The prompt's tokens, without image tokens.
        chances: How often each source of guesses is right, shared by all answers of a model.
        costs: What steps take, shared likewise.

    Attributes:
        drafted: How many tokens were guessed.
        accepted: How many of them were right.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Iterable[int], chances: Chances, costs: StepCosts) -> None:
        self._chances = chances
        self._costs = costs
        self._boxes = BoxGrammar(tokenizer)
        self._repeats = Repeats(frozenset(tokenizer.added_token_ids.values()))
        for token in prompt_ids:
            self._repeats.feed(token)
        self.drafted = 0
        self.accepted = 0

    def feed(self, token: int) -> None:
        """Take the next token of the answer."""
        self._repeats.feed(token)
        self._boxes.feed(token)
        self._chances.drift()
        self._costs.drift()

    def propose(self, limit: int, forced: Sequence[Guess] = ()) -> list[Guess]:
        """Return the draft, at most `limit` tokens, that promises the most tokens per time; often an empty one.

        Args:
            limit: The most tokens.
            forced: What the draft begins with, at most `limit` tokens.
        """
        boxes = copy.copy(self._boxes)
        tail = self._repeats.tail()
        guesses: list[Guess] = []
        best, best_rate = 0, 1.0
        chance, expected = 1.0, 1.0
        while len(guesses) < min(limit, MAX_STEP_TOKENS - 1):
            following = forced if forced and not guesses else boxes.next() or self._repeats.next(tail)
            if not following:
                break
            for guess in following:
                guesses.append(guess)
                chance *= self._chances.of(guess.source)
                expected += chance
                rate = expected / self._costs.of(len(guesses) + 1)
                if rate > best_rate:
                    best, best_rate = len(guesses), rate
                boxes.feed(guess.token)
                tail = (*tail, guess.token)[-_LONGEST:]
        return guesses[: min(best, limit, MAX_STEP_TOKENS - 1)]

    def count(self, guesses: Sequence[Guess], num_accepted: int, seconds: float) -> None:
        """Take note of what became of a draft, an empty one included.

        Args:
            guesses: The draft.
            num_accepted: How many of its guesses, from the first on, were right.
            seconds: What the step took that verified it.
        """
        self._costs.count(len(guesses) + 1, seconds)
        for index, guess in enumerate(guesses[: num_accepted + 1]):
            self._chances.count(guess.source, index < num_accepted)
        self.drafted += len(guesses)
        self.accepted += num_accepted


class Repeats:
    """Guesses what followed the last time the same two or three tokens stood there; after a tag, that tag is enough."""

    def __init__(self, tags: frozenset[int]) -> None:
        self._tags = tags
        self._history: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}

    def feed(self, token: int) -> None:
        history = self._history
        for length in range(_SHORTEST, _LONGEST + 1):
            if len(history) >= length:
                self._next[tuple(history[-length:])] = token
        if history and history[-1] in self._tags:
            self._next[(history[-1],)] = token
        history.append(token)

    def tail(self) -> tuple[int, ...]:
        return tuple(self._history[-_LONGEST:])

    def next(self, tail: tuple[int, ...]) -> list[Guess]:
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            token = self._next.get(tail[-length:]) if len(tail) >= length else None
            if token is not None:
                return [Guess(token, f"repeat {length}")]
        token = self._next.get(tail[-1:]) if tail and tail[-1] in self._tags else None
        return [] if token is None else [Guess(token, f"after tag {tail[-1]}")]


class BoxGrammar:
    """Where the text stands in a box of VARCO's markup, and what must or may come next.

    A box is `<bbox>0.123, 0.456, 0.789, 0.012</bbox>`: after a label's end comes `<bbox>`, then commas and zeros
    follow by rule. Digits are guessed from a number that is likely to be near, since words of one line share their
    height: y1 and y2 from the previous box's own, x1 from its x2, and x2 from this box's x1. It reads text and not
    tokens, so that it serves tokenizers that write a number digit by digit, as Qwen's does, and others.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.added_token_ids
        self._tokenizer = tokenizer
        self._open, self._close = ids.get("<bbox>"), ids.get("</bbox>")
        self._labels = frozenset(ids[tag] for tag in ("</char>", "</obj>") if tag in ids)
        self._encoded = {text: tokenizer.encode_plain(text) for text in ("0.", ", ", *"0123456789")}
        self._after_label = False
        self._inside = False
        self._last = ""  # the text of the latest token
        self._numbers: tuple[str, ...] = ("",)  # of the box so far, the last one growing
        self._previous: tuple[str, ...] = ()
        self._decimals = 3

    def feed(self, token: int) -> None:
        self._after_label = token in self._labels
        if token == self._open:
            self._inside, self._numbers, self._last = True, ("",), ""
        elif self._inside and token == self._close:
            self._inside, self._previous = False, self._numbers
        elif self._inside:
            self._last = self._tokenizer.token_bytes(token).decode("ascii", "replace")
            *before, number = (self._numbers[-1] + self._last).split(",")
            if before:
                self._decimals = max(1, len(before[-1].strip()) - len("0."))
            self._numbers = (*self._numbers[:-1], *before, number)

    def next(self) -> list[Guess]:
        """Return the next tokens by the grammar, or the next digit by another box; none outside of boxes."""
        if self._after_label and self._open is not None:
            return [Guess(self._open, "open")]
        slot = len(self._numbers) - 1
        if not self._inside or self._close is None or slot > 3:
            return []
        number = self._numbers[-1].strip()
        if not number:
            # Behind a comma there is a space first, unless one token holds both.
            return self._guess("0.", "zero") if slot == 0 or self._numbers[-1] else []
        if not number.startswith("0."):
            return []
        if len(number) - len("0.") < self._decimals and len(self._last) == 1:
            return self._digit(slot, number)
        return self._guess(", ", "comma") if slot < 3 else [Guess(self._close, "close")]

    def _digit(self, slot: int, number: str) -> list[Guess]:
        """Return the digit of the number that this one is likely to resemble, if all digits so far agree."""
        numbers, model = (self._numbers, 0) if slot == 2 else (self._previous, {0: 2, 1: 1, 3: 3}[slot])
        like = numbers[model].strip() if model < len(numbers) else ""
        if len(like) <= len(number) or not like.startswith(number):
            return []
        return self._guess(like[len(number)], f"digit {len(number) - len('0.')} of number {slot}")

    def _guess(self, text: str, source: str) -> list[Guess]:
        return [Guess(token, source) for token in self._encoded.get(text, ())]
