"""A model that serves on: whatever ends an answer early costs no memory and leaves the next answer as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from varco_runtime import Varco
from varco_runtime.errors import BackendError, ContextError
from varco_runtime.picture.loading import Picture, load_picture

MAX_CONTEXT = 256
WARM_UP, ITERATIONS = 200, 1000
"""Memory is first read after the warm-up: allocators and libraries keep what they have once needed."""
MAX_GROWTH_BYTES = 8 << 20
"""Over 1,000 iterations, so that 8 kB lost per iteration are too many. A cache of keys and values is 128 kB here."""

Kind = Callable[["Place"], None]


class Place:
    """A model and two pictures: one it knows, and one that it has never seen to the end."""

    def __init__(self, bundle: Path, provider: str = "auto", **options: Any) -> None:
        self.varco = Varco.load(bundle, provider, max_context=MAX_CONTEXT, threads=1, **options)
        self.known, self.unknown = picture(0), picture(1)
        self.asked = 0

    def question(self) -> str:
        """Another one each time, so that the cached prefix changes too."""
        self.asked += 1
        return f"What is number {self.asked % 10}?"

    @contextmanager
    def broken(self, method: str, after: int, how: Callable[[], Any]) -> Iterator[None]:
        """The backend's `method` works `after` times, and from then on does as `how` does."""
        backend, calls = self.varco.backend, 0
        original = getattr(backend, method)

        def failing(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*args, **kwargs) if calls <= after else how()

        setattr(backend, method, failing)
        try:
            yield
        finally:
            delattr(backend, method)


def picture(seed: int) -> Picture:
    return load_picture(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)))


def raise_backend_error() -> Any:
    raise BackendError("injected")


# --- what ends an answer early ----------------------------------------------------------------------------------------


def cancelled(place: Place) -> None:
    stream = place.varco.stream(place.known, place.question(), max_new_tokens=20)
    next(stream)
    stream.cancel()
    list(stream)
    assert stream.answer.finish_reason == "cancelled"


def abandoned(place: Place) -> None:
    next(place.varco.stream(place.known, place.question(), max_new_tokens=20))


def overtaken(place: Place) -> None:
    stream = place.varco.stream(None, place.question(), max_new_tokens=20)
    next(stream)
    place.varco.ask(None, place.question(), max_new_tokens=1)
    assert len(stream.run().token_ids) == 20


def failed_in_the_middle(place: Place) -> None:
    stream = place.varco.stream(place.known, place.question(), max_new_tokens=20)
    with place.broken("decode_steps", 3, raise_backend_error), pytest.raises(BackendError, match="injected"):
        list(stream)


def failed_in_the_prompt(place: Place) -> None:
    with place.broken("prefill", 0, raise_backend_error), pytest.raises(BackendError, match="injected"):
        place.varco.ask(place.known, place.question(), max_new_tokens=20)


def failed_in_the_picture(place: Place) -> None:
    with place.broken("encode", 0, raise_backend_error), pytest.raises(BackendError, match="injected"):
        place.varco.ask(place.unknown, place.question(), max_new_tokens=20)


def overflown_by_the_prompt(place: Place) -> None:
    with pytest.raises(ContextError, match="the context holds 256"):
        place.varco.ask(place.known, "word " * 200, max_new_tokens=20)


def overflown_in_the_middle(place: Place) -> None:
    """The backend's own refusal of a position, as a stream meets it that counts wrongly."""
    steps = place.varco.backend.decode_steps  # type: ignore[attr-defined]
    stream = place.varco.stream(place.known, place.question(), max_new_tokens=20)
    with (
        place.broken("decode_steps", 3, lambda: steps((5,), MAX_CONTEXT)),
        pytest.raises(ContextError, match="257 positions do not fit the context of 256"),
    ):
        list(stream)


def filled_to_the_end(place: Place) -> None:
    """The answer takes all the room there is."""
    filler = "a" * (MAX_CONTEXT - 60)
    answer = place.varco.ask(None, filler + place.question(), max_new_tokens=1000)
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == MAX_CONTEXT


def unsampled(place: Place) -> None:
    """Logits that nothing can be drawn of."""
    nothing = np.full(place.varco.bundle.manifest.model.vocab_size, np.nan, np.float32)
    stream = place.varco.stream(place.known, place.question(), max_new_tokens=20, temperature=0.7, seed=1)
    with place.broken("decode_steps", 3, lambda: nothing[None]), pytest.raises(BackendError, match="finite numbers"):
        list(stream)


KINDS: tuple[Kind, ...] = (
    *(cancelled, abandoned, overtaken),
    *(failed_in_the_middle, failed_in_the_prompt, failed_in_the_picture),
    *(overflown_by_the_prompt, overflown_in_the_middle, filled_to_the_end, unsampled),
)


def reference(place: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the model says to a picture and to text alone."""
    return (
        place.varco.ask(place.known, "What is this?", max_new_tokens=12).token_ids,
        place.varco.ask(None, "Hello", max_new_tokens=12).token_ids,
    )


def growth_bytes(bundle: Path, keeps_keys: bool) -> int:
    """By how much `ITERATIONS` answers that end early raise resident memory, after a warm-up of the same.

    `keeps_keys`: each leaves one layer's keys behind. In a process of its own: what earlier tests gave back to the
    allocator would take a leak in without growing.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(_growth_bytes, bundle, keeps_keys).result()


def _growth_bytes(bundle: Path, keeps_keys: bool) -> int:
    process, place = psutil.Process(), Place(bundle)
    expected = reference(place)
    manifest = place.varco.bundle.manifest
    num_bytes = manifest.kv_bytes_per_token * MAX_CONTEXT // (2 * manifest.model.num_layers)
    kept: list[np.ndarray] = []

    def serve(iterations: int) -> int:
        for index in range(iterations):
            KINDS[index % len(KINDS)](place)
            if keeps_keys:
                kept.append(np.ones(num_bytes, np.uint8))
        gc.collect()
        return process.memory_info().rss

    before = serve(WARM_UP)
    growth = serve(ITERATIONS) - before
    assert reference(place) == expected
    return growth


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_next_answer_is_what_it_was(kind: Kind, tiny_bundle: Path) -> None:
    place = Place(tiny_bundle)
    expected = reference(place)
    assert len(set(map(len, expected))) == 1, "the references are as long as they may be"
    for _ in range(3):
        kind(place)
        assert reference(place) == expected
    fresh = Place(tiny_bundle)
    kind(fresh)  # before the model has ever finished an answer
    assert reference(fresh) == expected


def test_a_thousand_answers_that_end_early_leak_no_memory(tiny_bundle: Path) -> None:
    assert growth_bytes(tiny_bundle, keeps_keys=False) <= MAX_GROWTH_BYTES


def test_the_bound_on_memory_finds_a_cache_kept_per_answer(tiny_bundle: Path) -> None:
    """The control: the same thousand answers with a leak."""
    assert growth_bytes(tiny_bundle, keeps_keys=True) > MAX_GROWTH_BYTES
