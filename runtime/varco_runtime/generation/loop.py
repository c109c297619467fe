"""The decode loop, in layers: token ids from the backend, then text and regions from token ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

from varco_runtime.answer.answer import Piece
from varco_runtime.backend import Backend, GreedyBackend, GreedyVerifyingBackend, SamplingBackend, VerifyingBackend
from varco_runtime.dtypes import Array
from varco_runtime.generation.sampling import Sampler
from varco_runtime.generation.speculation import Drafter
from varco_runtime.generation.stopping import StopStrings
from varco_runtime.markup.parser import Parsed, Region, StreamParser
from varco_runtime.prompt.tokenizer import StreamDecoder, Tokenizer


def generate_tokens(
    backend: Backend,
    logits: Array,
    position: int,
    sampler: Sampler,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
    on_token: Callable[[int], None],
    drafter: Drafter | None = None,
) -> Iterator[int]:
    """Yield token ids from the prompt's last logits `[vocab]` on, an end token included.

    `position` is where the first new token goes. `on_token` is called with each id once it is in the cache. Where the
    choice needs nothing but the largest logit, a device that can makes it. With a `drafter`, steps may hold several
    tokens; the tokens that come out are those of the same logits, as far as a longer step gives the same logits.
    """
    if drafter is not None and isinstance(backend, VerifyingBackend):
        yield from _generate_verified(
            backend, drafter, logits, position, sampler, eos_token_ids, max_new_tokens, on_token
        )
        return
    token = sampler.next(logits)
    for index in range(max_new_tokens):
        yield token
        if token in eos_token_ids or index + 1 == max_new_tokens:
            return
        if sampler.is_greedy and isinstance(backend, GreedyBackend):
            chosen = backend.decode_greedy(token, position)
        elif isinstance(backend, SamplingBackend):
            chosen = backend.decode_sampled(token, position, sampler.draw(len(logits)))
            sampler.accept(chosen)
        else:
            chosen = sampler.next(backend.decode_step(token, position))
        on_token(token)
        token = chosen
        position += 1


def _generate_verified(
    backend: VerifyingBackend,
    drafter: Drafter,
    logits: Array,
    position: int,
    sampler: Sampler,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
    on_token: Callable[[int], None],
) -> Iterator[int]:
    """`generate_tokens` with drafts. A rejected guess stays in the cache behind the last position, where the next step
    overwrites it."""
    left = max_new_tokens
    chosen = [sampler.next(logits)]
    while True:
        for token in chosen:
            drafter.feed(token)
            yield token
            left -= 1
            if token in eos_token_ids or left == 0:
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
            if guess.token != chosen[-1] or guess.token in eos_token_ids:
                break
            chosen.append(next(choices))
        drafter.count(guesses, len(chosen) - 1, seconds)
        for known in put[: len(chosen)]:
            on_token(known)
        position += len(chosen)


class Transcript:
    """Token ids on their way to text, plain text and regions.

    Holds back what may still change: bytes of an unfinished character, a possible beginning of a stop string or tag.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Collection[int], stop: tuple[str, ...]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._eos = eos_token_ids
        self._stop = StopStrings(stop)
        self._parser = StreamParser()
        self.token_ids: list[int] = []
        self.token_times: list[float] = []
        self._texts: list[str] = []
        self.finish_reason: str | None = None

    def feed(self, token: int) -> Piece:
        """Take one token; sets `finish_reason` when it ended the answer."""
        self.token_ids.append(token)
        self.token_times.append(time.perf_counter())
        if token in self._eos:
            self.finish_reason = "stop"
            return Piece("", "", ())
        return self._advance(self._stop.feed(self._decoder.feed(token)))

    def finish(self, reason: str) -> Piece:
        """Let out what was held back; `reason` counts unless the answer ended by itself."""
        rest = "" if self._stop.stopped else self._stop.feed(self._decoder.finish()) + self._stop.finish()
        self.finish_reason = self.finish_reason or reason
        return self._advance(rest, final=True)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def parsed(self) -> Parsed:
        """Plain text, regions and warnings; final after `finish`."""
        return self._parser.parsed

    def _advance(self, text: str, final: bool = False) -> Piece:
        if self._stop.stopped:
            self.finish_reason = "stop_string"
        self._texts.append(text)
        events = self._parser.feed(text)
        if final:
            events += self._parser.finish()
        plain_text = "".join(event for event in events if isinstance(event, str))
        return Piece(text, plain_text, tuple(event for event in events if isinstance(event, Region)))
