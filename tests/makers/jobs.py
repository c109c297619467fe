"""Questions for the engine without a model: jobs on `SlotsBackend`, and their answers when they are asked alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from tests.doubles.slots_backend import EOS, IMAGE, MAX_CONTEXT, SETTINGS, VOCAB_SIZE, Prices, SlotsBackend
from tests.makers.constraints import Rule
from varco_runtime.backend import num_slots_of
from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.engine.job import Job, Model
from varco_runtime.engine.scheduler import Scheduler
from varco_runtime.generation.loop import Decoding
from varco_runtime.generation.prefix_cache import Memory, Span
from varco_runtime.generation.sampling import Sampler, SamplingSettings
from varco_runtime.generation.speculation import Guess
from varco_runtime.media_encoder import MediaEncoder, Place
from varco_runtime.picture.loading import Picture, load_picture
from varco_runtime.picture.media import Medium
from varco_runtime.picture.packing import num_medium_tokens

GENERATION = GenerationSettings((EOS,), 1.0, False)
OPENING = (1, 2, 3)
GREEDY = SamplingSettings()


@functools.cache
def picture(seed: int) -> Picture:
    """A picture of one to three tiles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8 + 8 * (seed % 2), 3), dtype=np.uint8)
    return load_picture(Image.fromarray(pixels))


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `picture` is a seed; `guesses` lets drafts guess, right two times of three; `rule` constrains."""

    words: tuple[int, ...]
    picture: int | None = None
    max_new_tokens: int = 8
    sampling: SamplingSettings = GREEDY
    guesses: bool = False
    rule: Rule | None = None
    drafts_forced: bool = True

    @property
    def ids(self) -> list[int]:
        """Return the prompt's token ids."""
        num_tokens = sum(place.span.end - place.span.start for place in self.places)
        return [*OPENING, *[IMAGE] * num_tokens, *self.words]

    @property
    def places(self) -> tuple[Place, ...]:
        """Return the picture and where it stands, if there is one."""
        if self.picture is None:
            return ()
        medium = Medium(picture(self.picture), "grid")
        end = len(OPENING) + num_medium_tokens(medium, SETTINGS)
        return (Place(medium, Span(len(OPENING), end, medium.key)),)


@dataclass
class Guesses:
    """In the place of a `Drafter`: it knows the answer, and is mistaken in every third guess."""

    answer: Sequence[int]
    fed: int = 0
    drafted: int = 0
    accepted: int = 0

    def feed(self, token: int) -> None:
        self.fed += 1

    def propose(self, limit: int, forced: Sequence[Guess] = ()) -> list[Guess]:
        if forced:
            return list(forced)
        tokens = self.answer[self.fed : self.fed + min(limit, 3)]
        return [Guess(token ^ (self.fed % 3 == 0), "test") for token in tokens]

    def count(self, guesses: Sequence[Guess], num_accepted: int, seconds: float) -> None:
        self.accepted += num_accepted


@dataclass
class Bench:
    """A scheduler on a backend without a model. `admitted` are the jobs in the order in which they got a slot."""

    num_slots: int
    prices: Prices = field(default_factory=Prices)
    max_stall_s: float = 0.05
    memory_bytes: int = 1 << 20
    kind: type[SlotsBackend] = SlotsBackend

    def __post_init__(self) -> None:
        self.backend = self.kind(self.num_slots, self.prices)
        assert num_slots_of(self.backend) == self.num_slots
        self.memory = Memory(self.backend, self.memory_bytes)
        model = Model(self.backend, self.memory, MediaEncoder(self.backend, SETTINGS, self.memory), IMAGE)
        self.scheduler = Scheduler(model, self.max_stall_s, self.backend.clock)

    def job(self, question: Question, answer: Sequence[int] = ()) -> Job:
        """Return the job of a question; `answer` is what its drafts know."""
        ids = question.ids

        def decode(job: Job) -> Decoding:
            assert job.logits is not None
            assert job.slot is not None
            constraint = None if question.rule is None else question.rule.constraint(VOCAB_SIZE)
            return Decoding(
                self.backend,
                logits=job.logits[-1],
                position=len(ids),
                sampler=Sampler(question.sampling, GENERATION, ids, constraint=constraint),
                eos_token_ids=(EOS,),
                max_new_tokens=min(question.max_new_tokens, MAX_CONTEXT - len(ids)),
                on_token=self.memory.sequence_in(job.slot).ids.append,
                drafter=Guesses(answer) if question.guesses else None,  # type: ignore[arg-type]
                drafts_forced=question.drafts_forced,
            )

        return Job(ids, question.places, tuple(place.span for place in question.places), decode)

    def finish(self, job: Job, max_steps: int = 1000) -> list[int]:
        """Step until a job has left, and return its tokens."""
        for _ in range(max_steps):
            if job.has_left:
                return list(job.tokens)
            self.scheduler.step()
        raise AssertionError(f"a job is not done after {max_steps} steps")

    def assert_caches_hold_what_they_claim(self) -> None:
        """Every position that a slot claims to hold holds its token; pictures' positions hold some picture's."""
        for slot in range(self.num_slots):
            ids = self.memory.sequence_in(slot).ids
            for position, id_ in enumerate(ids):
                value = self.backend.cache[slot, position]
                assert value == id_ or (id_ == IMAGE and value >= 1000), f"slot {slot}, position {position}"


@functools.cache
def alone(question: Question) -> tuple[int, ...]:
    """Return the answer of a model of its own that takes no drafts."""
    bench = Bench(1)
    job = bench.job(replace(question, guesses=False, drafts_forced=False))
    bench.scheduler.submit(job)
    return tuple(bench.finish(job))
