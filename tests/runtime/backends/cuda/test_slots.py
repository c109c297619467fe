"""Several answers at once on CUDA: rows of a step, what moves to the host for them, graphs, slots and memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.doubles.recording_onnxruntime import Gpu
from tests.makers.inputs import close, text_inputs
from tests.makers.slots import (
    assert_answers_at_once_are_those_of_the_cpu,
    assert_every_row_is_the_step_of_its_slot_alone,
    filled,
)
from tests.makers.threads import in_threads
from tests.runtime.backends.cuda.conftest import MAX_CONTEXT, VALUE, backend_of, refused
from varco_runtime import Varco
from varco_runtime.backend import GREEDY, MAX_STEP_TOKENS, Draw, PromptInputs
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.backends.cuda.memory import needed_bytes, sizes_of
from varco_runtime.bundle.opening import Bundle, read_manifest
from varco_runtime.errors import BackendError, UsageError
from varco_runtime.generation.sampling import Sampler, SamplingSettings

SLOTS = 4
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "top_k": 20, "seed": 3},
    {"repetition_penalty": 1.3},
    {"logit_bias": {7: 4.0, 9: -3.0}},
    {"temperature": 1.2, "top_p": 0.8, "min_p": 0.01, "seed": 5},
    {"presence_penalty": 1.0, "temperature": 0.7, "seed": 6},
)


@pytest.fixture
def four(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Varco:
    """Four slots, whose answers always go together."""
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.BATCH_TILES", 3)
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.PREFILL_TOKENS", 32)
    monkeypatch.setattr("varco_runtime.backends.cuda.cache.BANDS", (64, 128))
    monkeypatch.setattr("varco_runtime.engine.costs.RowCosts.go_together", lambda *_: True)
    varco = Varco.load(bundle, slots=SLOTS)
    gpu.asked.clear()
    return varco


def test_answers_at_once_are_those_of_the_cpu(four: Varco, cpu: Varco, image: Image.Image, gpu: Gpu) -> None:
    """Each has its own options; those that a device does not know are chosen by the host from the row's logits."""
    assert_answers_at_once_are_those_of_the_cpu(four, cpu, image, OPTIONS)
    rows = {run["seqlens_k"] for run in gpu.sessions["decoder"].runs}
    assert rows >= {(1,), (4,)}


def test_every_row_is_the_step_of_its_slot_alone(four: Varco, cpu: Varco) -> None:
    assert_every_row_is_the_step_of_its_slot_alone(four, cpu, num_turns=6)


def test_greedy_rows_are_one_run_and_one_copy_to_the_host(four: Varco, gpu: Gpu) -> None:
    filled(four, (5, 9, 30, 61))
    backend = backend_of(four)
    backend.decode_chosen_rows([1, 2, 3, 4], [5, 9, 30, 61], [GREEDY] * 4)
    gpu.asked.clear()
    backend.decode_chosen_rows([1, 2, 3, 4], [6, 10, 31, 62], [GREEDY] * 4)
    assert gpu.asked == [("write", 32), ("write", 16), ("replay", "decoder"), ("read", 32)]


def test_drawn_rows_are_one_draw_more_and_one_copy_to_the_host(four: Varco, gpu: Gpu) -> None:
    filled(four, (5, 9, 30, 61))
    backend, model = backend_of(four), four.bundle.manifest.model
    generation = four.bundle.manifest.generation
    drawn = Sampler(SamplingSettings(temperature=0.8, seed=1), generation).draw(model.vocab_size)
    for position in (0, 1):
        gpu.asked.clear()
        backend.decode_chosen_rows([1, 2, 3, 4], [5 + position, 9, 30, 61], [GREEDY, drawn, GREEDY, GREEDY])
    step = [("write", 32), ("write", 16), ("replay", "decoder")]
    assert gpu.asked == [*step, ("write", 6 * 8 * 4), ("replay", "sampling"), ("read", 32)]
    gpu.asked.clear()
    rows = backend.decode_chosen_rows([1, 2, 3, 4], [7, 9, 30, 61], [GREEDY, None, GREEDY, GREEDY])
    assert gpu.asked == [*step, ("read", 32), ("read", 4 * VALUE * model.vocab_size)]
    assert [type(row) for row in rows] == [int, np.ndarray, int, int]
    assert int(np.argmax(rows[1])) == backend.decode_chosen_rows([1, 2, 3, 4], [7, 9, 30, 61], [GREEDY] * 4)[1]  # type: ignore[arg-type]


def test_every_choice_of_a_row_is_the_one_it_makes_alone(four: Varco) -> None:
    filled(four, (5, 9, 30, 61))
    backend, vocab_size = backend_of(four), four.bundle.manifest.model.vocab_size
    settings = [SamplingSettings(temperature=0.9, top_k=9, seed=4), SamplingSettings(repetition_penalty=1.5)]
    draws: list[Draw] = [Sampler(one, four.bundle.manifest.generation, (3, 4)).draw(vocab_size) for one in settings] + [
        GREEDY,
        GREEDY,
    ]
    together = backend.decode_chosen_rows([1, 2, 3, 4], [5, 9, 30, 61], draws)
    for slot, position in enumerate((5, 9, 30, 61)):
        backend.select_slot(slot)
        assert together[slot] == backend.decode_sampled((1, 2, 3, 4)[slot], position, draws[slot])


def test_three_answers_take_a_step_of_four_rows(four: Varco, gpu: Gpu) -> None:
    """There is a captured graph for 1, 2, 4, 8 and 16 rows; the idle ones write behind what their slots hold."""
    assert [backend_of(four).num_rows(least) for least in (1, 2, 3, 4)] == [1, 2, 4, 4]
    expected = four.ask(None, "Tell me more.", max_new_tokens=10).token_ids
    gpu.sessions["decoder"].runs.clear()
    in_threads(lambda index: four.ask(None, f"Question {index}?", max_new_tokens=20), 3)
    assert {run["token_ids"][0] for run in gpu.sessions["decoder"].runs} <= {1, 2, 4}
    assert four.ask(None, "Tell me more.", max_new_tokens=10).token_ids == expected


def test_steps_are_captured_when_first_taken_and_run_plainly_once_there_are_enough(
    bundle: Path, gpu: Gpu, cpu: Varco, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.backends.cuda.steps.MAX_FURTHER_GRAPHS", 3)
    monkeypatch.setattr("varco_runtime.engine.costs.RowCosts.go_together", lambda *_: True)
    varco = Varco.load(bundle, slots=SLOTS)
    captured = [call[1] for call in gpu.asked if call[0] == "capture"]
    assert captured == ["decoder"] * MAX_STEP_TOKENS + ["sampling"], "nothing of several rows at loading"
    filled(varco, (5, 9, 30, 61))
    backend = backend_of(varco)
    gpu.asked.clear()
    for _ in range(2):
        backend.decode_rows([1, 2], [5, 9])
        backend.decode_rows([1, 2, 3, 4], [5, 9, 30, 61])
    decoder = [call[0] for call in gpu.asked if call[-1] == "decoder"]
    assert decoder == ["capture", "capture", "replay", "replay"]
    gpu.asked.clear()
    for slot in (1, 2, 3):
        backend.select_slot(slot)
        for _ in range(2):
            backend.decode_steps([4], 9)
    decoder = [call[0] for call in gpu.asked if call[-1] == "decoder"]
    assert decoder == ["capture", "replay", "run", "run", "run", "run"]
    assert backend._steps.graphs.count == MAX_STEP_TOKENS + 3
    most = MAX_STEP_TOKENS + 3
    assert backend.graphs_line == f"{most} of at most {most} decode steps are captured as graphs"


def test_rows_that_outgrow_a_band_take_all_slots_along(four: Varco, cpu: Varco, gpu: Gpu) -> None:
    backend = backend_of(four)
    prompts = filled(four, (20, 30, 10, 60))
    assert backend._caches.capacity == 64
    gpu.asked.clear()
    for turn in range(8):
        positions = [20 + turn, 30 + turn, 10 + turn, 60 + turn]
        rows = backend.decode_rows([4, 5, 6, 7], positions).copy()
    assert backend._caches.capacity == 128
    assert any(call[0] == "move" for call in gpu.asked)
    for slot, prompt in enumerate(prompts):
        ids = np.concatenate([prompt.ids, [4 + slot] * 8])
        assert close(rows[slot], cpu.backend.prefill(PromptInputs(ids, prompt.image_token_id, None), 0)[0])
    backend.select_slot(3)
    backend.prefill(text_inputs(four, 12), 0)
    assert backend._caches.capacity == 64, "and back again, when all of them fit"
    ids = np.concatenate([prompts[1].ids, [5] * 8, [9]])
    want = cpu.backend.prefill(PromptInputs(ids, prompts[1].image_token_id, None), 0)[0]
    assert close(backend.decode_rows([4, 9], [28, 38])[1], want)


def test_a_row_that_is_not_finite_fails_alone_and_leaves_its_slot_clean(four: Varco, gpu: Gpu) -> None:
    filled(four, (5, 9, 30, 61))
    backend, model = backend_of(four), four.bundle.manifest.model
    want = backend.decode_chosen_rows([1, 2, 3, 4], [5, 9, 30, 61], [GREEDY] * 4)
    for draws in ([GREEDY] * 4, [None] * 4):
        num_bytes = model.num_key_value_heads * backend._caches.capacity * model.head_dim
        for buffer in backend._caches.buffers.values():
            memory = buffer.value.inner.numpy().reshape(-1)
            memory[2 * num_bytes : 2 * num_bytes + 40] = np.nan  # the double's memory: slot 2
        gpu.asked.clear()
        rows = backend.decode_chosen_rows([1, 2, 3, 4], [5, 9, 30, 61], draws)
        assert isinstance(rows[2], BackendError)
        assert "not finite at position 30" in str(rows[2])
        others = [int(np.argmax(row)) if draws[0] is None else row for row in rows[:2] + rows[3:]]
        assert others == want[:2] + want[3:]
        assert [call for call in gpu.asked if call[0] == "clear"] == [("clear", num_bytes * VALUE)] * 2 * (
            model.num_layers
        )
        assert not any(np.isnan(buffer.read()).any() for buffer in backend._caches.buffers.values())


def test_a_fault_of_a_step_of_rows_is_each_answer_s_own_line_and_the_model_stays_usable(
    four: Varco, cpu: Varco, gpu: Gpu
) -> None:
    streams = [four.stream(None, f"Question {index}?", max_new_tokens=6) for index in range(3)]
    for stream in streams:
        next(stream)
    gpu.fault = lambda call: RuntimeError("CUDA failure 700: an illegal memory access") if call == "replay" else None
    for stream in streams:
        with pytest.raises(BackendError, match="illegal memory access"):
            stream.run()
    gpu.fault = lambda call: None
    expected = cpu.ask(None, "Hello", max_new_tokens=6).token_ids
    assert four.ask(None, "Hello", max_new_tokens=6).token_ids == expected


def test_a_second_question_about_a_picture_encodes_and_prefills_none_of_it(
    four: Varco, cpu: Varco, image: Image.Image, gpu: Gpu
) -> None:
    first = four.stream(image, "What is this?", max_new_tokens=30)
    next(first)
    for name in ("vision", "decoder"):
        gpu.sessions[name].runs.clear()
    gpu.asked.clear()
    second = four.stream(image, "And what colour is it?", max_new_tokens=8).run()
    assert not gpu.sessions["vision"].runs
    assert second.usage.cached_tokens > second.usage.image_tokens > 0
    assert "move" in gpu.names(), "copied from the other slot on the device"
    assert second.token_ids == cpu.ask(image, "And what colour is it?", max_new_tokens=8).token_ids
    assert first.run().token_ids == cpu.ask(image, "What is this?", max_new_tokens=30).token_ids


def test_a_picture_comes_tile_by_tile_while_an_answer_waits(
    bundle: Path, gpu: Gpu, cpu: Varco, image: Image.Image
) -> None:
    varco = Varco.load(bundle, slots=2, max_stall_ms=0)
    running = varco.stream(None, "Hello", max_new_tokens=60)
    next(running)
    gpu.sessions["vision"].runs.clear()
    answer = varco.ask(image, "What is this?", max_new_tokens=4)
    assert {run["pixel_values"][0] for run in gpu.sessions["vision"].runs} == {1}
    assert len(gpu.sessions["vision"].runs) > 3
    assert answer.token_ids == cpu.ask(image, "What is this?", max_new_tokens=4).token_ids
    assert running.run().token_ids == cpu.ask(None, "Hello", max_new_tokens=60).token_ids


# --- how many ---------------------------------------------------------------------------------------------------------


def with_free_bytes(gpu: Gpu, num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr("varco_runtime.backends.cuda.backend.ARENA.spare_bytes", lambda sizes: 0)
    gpu.facts = gpu.facts.__class__(
        gpu.facts.name, gpu.facts.capability, num_bytes, gpu.facts.total_bytes, gpu.facts.cuda_version
    )


def needed(bundle: Path, slots: int) -> tuple[int, int]:
    manifest = read_manifest(bundle)
    return needed_bytes(manifest, sizes_of(manifest, MAX_CONTEXT, slots))


@pytest.mark.parametrize(("num_fitting", "expected"), [(1, 1), (3, 3), (8, 8), (100, 8)])
def test_auto_takes_what_fits_and_says_so(
    bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, num_fitting: int, expected: int
) -> None:
    eight, caches = needed(bundle, 8)
    with_free_bytes(gpu, eight - caches + num_fitting * caches // 8, monkeypatch)
    varco = Varco.load(bundle, slots="auto")
    assert varco.slots == expected
    per_slot = caches / 8 / 1e6
    assert varco.slots_line.startswith(f"{expected} slot{'s' * (expected > 1)} of {per_slot:.1f} MB each, ")
    assert "for everything else" in varco.slots_line
    assert varco.slots_line.endswith("are free on Recording GPU")


def test_more_than_memory_holds_is_refused_with_the_sum(
    bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    six, caches = needed(bundle, 6)
    with_free_bytes(gpu, six - caches // 6, monkeypatch)
    message = r"slots=6 needs 6 x .* MB = .* MB for keys and values beside .* MB .* are free on Recording GPU: 5 fit"
    refused(bundle, UsageError, message, slots=6)
    assert CudaBackend(Bundle.open(bundle), slots=5).num_slots == 5


def test_slots_cost_what_their_caches_do(bundle: Path) -> None:
    (one, _), (_, two_caches), (four_, four_caches), (eight, eight_caches) = (needed(bundle, n) for n in (1, 2, 4, 8))
    assert (four_caches, eight_caches) == (2 * two_caches, 4 * two_caches)
    assert eight - four_ == eight_caches - four_caches
    assert four_ - one > four_caches * 3 // 4, "and the room for graphs"


def test_a_bundle_for_cuda_has_slots_on_the_cpu_too(bundle: Path, cpu: Varco) -> None:
    varco = Varco.load(bundle, provider="cpu", threads=1, slots=3)
    found: dict[int, tuple[int, ...]] = {}
    in_threads(lambda n: found.update({n: varco.ask(None, f"{n}?", max_new_tokens=8).token_ids}), 3)
    assert found == {n: cpu.ask(None, f"{n}?", max_new_tokens=8).token_ids for n in range(3)}
