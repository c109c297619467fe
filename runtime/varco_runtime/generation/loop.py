"""The decode loop: token ids from a backend, one at a step or, with drafts, several."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from varco_runtime.backend import Backend, GreedyBackend, GreedyVerifyingBackend, SamplingBackend, VerifyingBackend
from varco_runtime.dtypes import Array
from varco_runtime.generation.sampling import Sampler
from varco_runtime.generation.speculation import Drafter


@dataclass(frozen=True, slots=True)
class Decoding:
    """An answer to decode behind a prompt that is in the backend's cache.

    Args:
        backend: Takes the steps.
        logits: The prompt's last logits, `[vocab]` fp32.
        position: Where the first new token goes in the cache.
        sampler: Chooses the tokens. A device that can do so chooses in its place.
        eos_token_ids: The tokens that end an answer.
        max_new_tokens: The most tokens of the answer, at least 1.
        on_token: Called with each token id once it is in the cache.
        drafter: Guesses at the next tokens, so that a step may hold several; for a `VerifyingBackend` alone. The
            tokens of the answer are those of the same logits, as far as a longer step gives the same logits.
    """

    backend: Backend
    logits: Array
    position: int
    sampler: Sampler
    eos_token_ids: Collection[int]
    max_new_tokens: int
    on_token: Callable[[int], None]
    drafter: Drafter | None = None


def generate_tokens(decoding: Decoding) -> Iterator[int]:
    """Yield the token ids of an answer, an end token included."""
    backend, sampler, position = decoding.backend, decoding.sampler, decoding.position
    if decoding.drafter is not None and isinstance(backend, VerifyingBackend):
        yield from _generate_verified(decoding, backend, decoding.drafter)
        return
    token = sampler.next(decoding.logits)
    for index in range(decoding.max_new_tokens):
        yield token
        if token in decoding.eos_token_ids or index + 1 == decoding.max_new_tokens:
            return
        if sampler.is_greedy and isinstance(backend, GreedyBackend):
            chosen = backend.decode_greedy(token, position)
        elif isinstance(backend, SamplingBackend):
            chosen = backend.decode_sampled(token, position, sampler.draw(len(decoding.logits)))
            sampler.accept(chosen)
        else:
            chosen = sampler.next(backend.decode_step(token, position))
        decoding.on_token(token)
        token = chosen
        position += 1


def _generate_verified(decoding: Decoding, backend: VerifyingBackend, drafter: Drafter) -> Iterator[int]:
    """Yield the token ids of an answer with drafts.

    A rejected guess stays in the cache behind the last position, where the next step overwrites it.
    """
    sampler, position, left = decoding.sampler, decoding.position, decoding.max_new_tokens
    chosen = [sampler.next(decoding.logits)]
    while True:
        for token in chosen:
            drafter.feed(token)
            yield token
            left -= 1
            if token in decoding.eos_token_ids or left == 0:
                return
        guesses = drafter.propose(left - 1)
        put = [token, *(guess.token for guess in guesses)]
        started = time.perf_counter()
        choices: Iterator[int]
        if sampler.is_greedy and isinstance(backend, GreedyVerifyingBackend):
            choices = iter(backend.decode_greedy_steps(put, position))
        else:  # one by one, since the sampler counts what it chose
            choices = map(sampler.next, backend.decode_steps(put, position))
        seconds = time.perf_counter() - started
        chosen = [next(choices)]
        for guess in guesses:
            if guess.token != chosen[-1] or guess.token in decoding.eos_token_ids:
                break
            chosen.append(next(choices))
        drafter.count(guesses, len(chosen) - 1, seconds)
        for known in put[: len(chosen)]:
            decoding.on_token(known)
        position += len(chosen)
