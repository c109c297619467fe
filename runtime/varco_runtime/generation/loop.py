"""One answer's way through the decode loop: token ids from a backend, one at a step or, with drafts, several.

A `Decoding` takes its steps alone (`step`), or takes part in a step of several answers, whose logits it is given
(`advance`). Either way the same sampler chooses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from varco_runtime.backend import (
    MAX_STEP_TOKENS,
    Backend,
    Draw,
    GreedyBackend,
    GreedyVerifyingBackend,
    SamplingBackend,
    VerifyingBackend,
)
from varco_runtime.dtypes import Array
from varco_runtime.errors import BackendError
from varco_runtime.generation.sampling import Sampler
from varco_runtime.generation.speculation import Drafter, Guess, forced_guesses


@dataclass(slots=True)
class Decoding:
    """An answer to decode behind a prompt that is in the backend's cache.

    Args:
        backend: Takes the steps.
        logits: The prompt's last logits, `[vocab]` fp32, valid until the backend's next call.
        position: Where the next token goes in the cache.
        sampler: Chooses the tokens. A device that can do so chooses in its place.
        eos_token_ids: The tokens that end an answer.
        max_new_tokens: The most tokens of the answer, at least 1.
        on_token: Called with each token id once it is in the cache.
        drafter: Guesses at the next tokens, so that a step may hold several; for a `VerifyingBackend` alone. The
            tokens of the answer are those of the same logits, as far as a longer step gives the same logits.
        drafts_forced: Whether the tokens that the sampler's constraint forces are drafts, with or without a drafter.

    Attributes:
        pending: The token that was chosen last and is not in the cache yet.
        finished: No token follows.
    """

    backend: Backend
    logits: Array
    position: int
    sampler: Sampler
    eos_token_ids: Collection[int]
    max_new_tokens: int
    on_token: Callable[[int], None]
    drafter: Drafter | None = None
    drafts_forced: bool = True
    pending: int = field(default=-1, init=False)
    finished: bool = field(default=False, init=False)
    _vocab_size: int = field(default=0, init=False)

    def start(self) -> list[int]:
        """Return the answer's first token, chosen from the prompt's logits."""
        self._vocab_size = len(self.logits)
        return self._take([self.sampler.next(self.logits)])

    def step(self) -> list[int]:
        """Take a step of this answer alone, and return the tokens that it gave: one or, with drafts, several."""
        may_draft = self.drafter is not None or (self.sampler.is_constrained and self.drafts_forced)
        if may_draft and isinstance(self.backend, VerifyingBackend):
            guesses = self._guesses()
            if guesses or self.drafter is not None:
                return self._verified_step(self.backend, guesses)
        backend, sampler, token = self.backend, self.sampler, self.pending
        if sampler.is_greedy and isinstance(backend, GreedyBackend):
            chosen = backend.decode_greedy(token, self.position)
        elif isinstance(backend, SamplingBackend) and not sampler.needs_logits:
            chosen = backend.decode_sampled(token, self.position, sampler.draw(self._vocab_size))
            sampler.accept(chosen)
        else:
            chosen = sampler.next(backend.decode_step(token, self.position))
        return self._put([token], [chosen])

    def draw(self) -> Draw | None:
        """Return the choice behind `pending`, for a device to make; None where the host alone knows how.

        It stays the same until a token is chosen.
        """
        return None if self.sampler.needs_logits else self.sampler.draw(self._vocab_size)

    def advance(self, outcome: Array | int | BackendError) -> list[int]:
        """Take what a step of several answers gave behind `pending`, and return the next token.

        Args:
            outcome: The logits `[vocab]` fp32, the token that `draw` took of them, or an error, which is raised.
        """
        if isinstance(outcome, BackendError):
            raise outcome
        if isinstance(outcome, int):
            self.sampler.accept(outcome)
            return self._put([self.pending], [outcome])
        return self._put([self.pending], [self.sampler.next(outcome)])

    def _guesses(self) -> list[Guess]:
        """Return the next step's draft: what is forced, and what the drafter guesses behind it."""
        limit = min(self.max_new_tokens, MAX_STEP_TOKENS) - 1
        forced = forced_guesses(self.sampler.forced()[:limit]) if self.drafts_forced else []
        return forced if self.drafter is None else self.drafter.propose(limit, forced)

    def _verified_step(self, backend: VerifyingBackend, guesses: list[Guess]) -> list[int]:
        """Take a step with a draft.

        A rejected guess stays in the cache behind the last position, where the next step overwrites it.
        """
        sampler = self.sampler
        put = [self.pending, *(guess.token for guess in guesses)]
        started = time.perf_counter()
        choices: Iterator[int]
        if sampler.is_greedy and isinstance(backend, GreedyVerifyingBackend):
            choices = iter(backend.decode_greedy_steps(put, self.position))
        else:  # one by one, since the sampler counts what it chose
            choices = map(sampler.next, backend.decode_steps(put, self.position))
        seconds = time.perf_counter() - started
        chosen = [next(choices)]
        for guess in guesses:
            if guess.token != chosen[-1] or guess.token in self.eos_token_ids:
                break
            chosen.append(next(choices))
        if self.drafter is not None:
            self.drafter.count(guesses, len(chosen) - 1, seconds)
        return self._put(put[: len(chosen)], chosen)

    def _put(self, known: Sequence[int], chosen: list[int]) -> list[int]:
        """Count tokens that are in the cache now, and return those that were chosen behind them."""
        for token in known:
            self.on_token(token)
        self.position += len(known)
        return self._take(chosen)

    def _take(self, chosen: list[int]) -> list[int]:
        """Return the chosen tokens up to the answer's end."""
        for index, token in enumerate(chosen):
            if self.drafter is not None:
                self.drafter.feed(token)
            self.pending = token
            self.max_new_tokens -= 1
            if token in self.eos_token_ids or self.max_new_tokens == 0:
                self.finished = True
                return chosen[: index + 1]
        return chosen


def generate_tokens(decoding: Decoding) -> Iterator[int]:
    """Yield the token ids of an answer, an end token included."""
    yield from decoding.start()
    while not decoding.finished:
        yield from decoding.step()
