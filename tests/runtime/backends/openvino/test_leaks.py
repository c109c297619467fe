"""A model on OpenVINO that serves on: what ends an answer early costs no memory and changes no answer after it.

A process of its own measures: what earlier tests gave back to the allocator would take a leak in without growing.
"""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.makers.inputs import close, text_inputs
from tests.whole.test_leaks import KINDS, MAX_CONTEXT, Kind, Place, reference
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, ShowsFeatures
from varco_runtime.errors import ContextError
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile
from varco_runtime.prompt.prompter import IMAGE, Message

WARM_UP_QUESTIONS, WARM_UP_LOADS = 40, 4
"""Memory is first read after the warm-up: allocators and libraries keep what they have once needed."""
MAX_QUESTIONS_BYTES = 4 << 20
"""However many questions. A cache of keys and values is 128 kB here."""
MAX_LOAD_BYTES = 1 << 20
"""For each load, not all of them: what is kept grows with their number, by 0.3 MB a load at first and 0.1 MB behind 400
of them. A model that is not let go is 8 MB."""


class OpenVinoPlace(Place):
    """A model in fp32 on OpenVINO."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(bundle, "openvino", precision="fp32")


def in_its_own_process(what: Any, *arguments: Any) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        growth: int = apart.submit(what, *arguments).result()
        return growth


def growth_of_questions(bundle: Path, questions: int, keeps_cache: bool) -> int:
    """By how many bytes answers that end early raise resident memory; `keeps_cache`: each leaves a cache behind."""
    place, kept = OpenVinoPlace(bundle), []
    expected = reference(place)
    cache_bytes = place.varco.bundle.manifest.kv_bytes_per_token * MAX_CONTEXT

    def serve(number: int, keeps: bool) -> int:
        for index in range(number):
            KINDS[index % len(KINDS)](place)
            if keeps:
                kept.append(np.ones(cache_bytes, np.uint8))
        return resident_bytes()

    before = serve(WARM_UP_QUESTIONS, False)
    growth = serve(questions, keeps_cache) - before
    assert reference(place) == expected
    return growth


def growth_of_loads(bundle: Path, loads: int, keeps_models: bool) -> int:
    """By how many bytes models that are loaded, asked and let go raise resident memory; `keeps_models`: or kept."""
    kept, answers = [], set()

    def load(number: int, keeps: bool) -> int:
        for _ in range(number):
            varco = OpenVinoPlace(bundle).varco
            answers.add(varco.ask(None, "Hello", max_new_tokens=4).token_ids)
            if keeps:
                kept.append(varco)
        del varco
        return resident_bytes()

    before = load(WARM_UP_LOADS, False)
    growth = load(loads, keeps_models) - before
    assert len(answers) == 1
    return growth


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("questions", [60, pytest.param(1000, marks=pytest.mark.full)])
def test_questions_leak_no_memory(questions: int, tiny_bundle: Path) -> None:
    assert in_its_own_process(growth_of_questions, tiny_bundle, questions, False) <= MAX_QUESTIONS_BYTES


def test_the_bound_on_questions_finds_a_cache_kept_by_each(tiny_bundle: Path) -> None:
    """The control: the same questions with a leak."""
    assert in_its_own_process(growth_of_questions, tiny_bundle, 60, True) > MAX_QUESTIONS_BYTES


@pytest.mark.parametrize("loads", [8, pytest.param(100, marks=pytest.mark.full)])
def test_loads_lose_no_model(loads: int, tiny_bundle: Path) -> None:
    assert in_its_own_process(growth_of_loads, tiny_bundle, loads, False) <= loads * MAX_LOAD_BYTES


def test_the_bound_on_loads_finds_models_that_are_kept(tiny_bundle: Path) -> None:
    """The control: the same loads, none let go."""
    assert in_its_own_process(growth_of_loads, tiny_bundle, 8, True) > 8 * MAX_LOAD_BYTES


# --- what comes after -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tiny_bundle: Path) -> OpenVinoPlace:
    pytest.importorskip("openvino", reason="openvino is not installed")
    return OpenVinoPlace(tiny_bundle)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_next_answer_is_what_it_was(kind: Kind, place: OpenVinoPlace) -> None:
    expected = reference(place)
    for _ in range(2):
        kind(place)
        assert reference(place) == expected


def test_positions_beyond_the_context_are_refused_and_change_nothing(place: OpenVinoPlace) -> None:
    backend = place.varco.backend
    inputs = text_inputs(place.varco, 60)
    want = backend.prefill(inputs, 0)
    with pytest.raises(ContextError, match="257 positions do not fit the context of 256"):
        backend.prefill(PromptInputs(np.full(MAX_CONTEXT + 1, 5), inputs.image_token_id, None), 0)
    with pytest.raises(ContextError, match="257 positions do not fit the context of 256"):
        backend.decode_step(5, MAX_CONTEXT)
    assert close(backend.prefill(inputs, 50), want)


def test_a_kept_prefix_of_a_picture_restored_equals_one_pass(place: OpenVinoPlace) -> None:
    varco, backend = place.varco, place.varco.backend
    settings, prompt = varco.bundle.manifest.image, varco.bundle.manifest.prompt
    assert isinstance(backend, ShowsFeatures)
    pixels = normalize(tile(place.known, settings), settings)
    packed = backend.features(pixels, packing_plan(place.known.size_hw, settings)).packed
    message = Message("user", (IMAGE, "What is this?"))
    ids = np.array(varco.session.prompter.encode([message], len(packed)), np.int64)
    inputs = PromptInputs(ids, prompt.image_token_id, packed)
    want = backend.prefill(inputs, 0)
    end = int(np.flatnonzero(ids == prompt.image_token_id)[-1]) + 1
    kept = backend.copy_prefix(end)  # type: ignore[attr-defined]
    backend.prefill(text_inputs(varco, 100), 0)  # over what was there
    backend.restore_prefix(kept)  # type: ignore[attr-defined]
    assert np.array_equal(backend.copy_prefix(end), kept)  # type: ignore[attr-defined]
    rows = PromptInputs(ids, prompt.image_token_id, None, np.full(len(ids), -1))  # the picture itself is gone
    assert close(backend.prefill(rows, end), want)


def test_a_model_is_loaded_beside_another_that_is_let_go(place: OpenVinoPlace, tiny_bundle: Path) -> None:
    """Models of one process share nothing that ends with one of them."""
    expected = reference(place)
    other = Varco.load(tiny_bundle, "openvino", max_context=MAX_CONTEXT, threads=1, precision="fp32")
    assert other.ask(None, "Hello", max_new_tokens=12).token_ids == expected[1]
    del other
    gc.collect()
    assert reference(place) == expected
