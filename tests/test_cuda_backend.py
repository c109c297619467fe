"""The backend for CUDA, call by call, against a double of onnxruntime that computes on the CPU."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.cuda_graphs import export_in_fp32
from tests.drafts import foretell
from tests.recording_onnxruntime import Gpu, install
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import (
    MAX_STEP_TOKENS,
    Backend,
    GreedyBackend,
    GreedyVerifyingBackend,
    NormalisesPixels,
    PromptInputs,
    SamplingBackend,
    ShowsFeatures,
    VerifyingBackend,
)
from varco_runtime.bundle import Bundle, read_manifest
from varco_runtime.cuda_backend import CudaBackend
from varco_runtime.cuda_memory import NUM_LOGITS, needed_bytes, shortage, sizes_of
from varco_runtime.cuda_session import ARENA
from varco_runtime.errors import BackendError, ContextError, MissingExtraError, ShortageError, VarcoError
from varco_runtime.image import normalise, packing_plan, tile
from varco_runtime.picture import load_picture
from varco_runtime.sampling import Sampler, SamplingSettings

MAX_CONTEXT = 512
VALUE = 4
"""Bytes of a value in fp32, in which these graphs compute."""


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_in_fp32(tiny_checkpoint, tmp_path_factory.mktemp("cuda") / "bundle", max_context=MAX_CONTEXT)


@pytest.fixture
def cpu(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture
def gpu(cpu: Varco, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """After `cpu`, which needs the real onnxruntime."""
    gpu = Gpu()
    install(monkeypatch, gpu)
    return gpu


@pytest.fixture
def varco(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Varco:
    monkeypatch.setattr("varco_runtime.cuda_memory.BATCH_TILES", 3)
    monkeypatch.setattr("varco_runtime.cuda_memory.PREFILL_TOKENS", 32)
    varco = Varco.load(bundle)
    gpu.asked.clear()
    return varco


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def backend_of(varco: Varco) -> CudaBackend:
    assert isinstance(varco.backend, CudaBackend)
    return varco.backend


def text_inputs(varco: Varco, length: int, seed: int = 0) -> PromptInputs:
    ids = np.random.default_rng(seed).integers(0, 250, length)
    return PromptInputs(ids.astype(np.int64), varco.bundle.manifest.prompt.image_token_id, None)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 2e-5 * np.abs(b).max())


# --- the same answers -------------------------------------------------------------------------------------------------


def test_a_picture_is_answered_with_the_tokens_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    expected = cpu.ask(image, "What is this?", max_new_tokens=64)
    answer = varco.ask(image, "What is this?", max_new_tokens=64)
    assert answer.token_ids == expected.token_ids
    assert answer.usage == expected.usage
    assert varco.provider == "cuda (the bundle was exported for CUDA)"
    assert varco.backend.description == "onnxruntime 1.31.1, CUDA, Recording GPU (sm90)"


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.5, "seed": 3}, {"repetition_penalty": 1.3}, {"temperature": 0.8, "top_k": 20, "seed": 1}],
)
def test_sampling_and_penalties_see_the_logits_of_the_cpu(varco: Varco, cpu: Varco, options: dict[str, Any]) -> None:
    expected = cpu.ask(None, "Hello", max_new_tokens=16, **options)
    assert varco.ask(None, "Hello", max_new_tokens=16, **options).token_ids == expected.token_ids


def test_a_second_question_encodes_no_tile_and_rewinds_the_cache(
    varco: Varco, cpu: Varco, gpu: Gpu, image: Image.Image
) -> None:
    varco.ask(image, "What is this?", max_new_tokens=8)
    before = len(gpu.sessions["vision"].runs)
    answer = varco.ask(image, "And what colour is it?", max_new_tokens=16)
    assert len(gpu.sessions["vision"].runs) == before
    assert answer.usage.cached_tokens > answer.usage.image_tokens
    assert answer.token_ids == cpu.ask(image, "And what colour is it?", max_new_tokens=16).token_ids


def test_another_picture_replaces_the_first(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    other = Image.eval(image.resize((60, 200)), lambda value: 255 - value)
    for picture in (image, other, image):
        expected = cpu.ask(picture, "<ocr>", max_new_tokens=8)
        assert varco.ask(picture, "<ocr>", max_new_tokens=8).token_ids == expected.token_ids


def test_features_are_those_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    settings, picture = varco.bundle.manifest.image, load_picture(image)
    pixel_values, plan = normalise(tile(picture, settings), settings), packing_plan(picture.size_hw, settings)
    got = backend_of(varco).features(pixel_values, plan)
    want = cpu.backend.features(pixel_values, plan)  # type: ignore[attr-defined]
    for name in ("patch_features", "image_features", "image_tokens"):
        assert close(getattr(got, name), getattr(want, name)), name


def test_a_cancelled_answer_leaves_the_model_usable(varco: Varco, cpu: Varco) -> None:
    stream = varco.stream(None, "Hello", max_new_tokens=50)
    next(iter(stream))
    stream.cancel()
    assert stream.run().finish_reason == "cancelled"
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == cpu.ask(None, "Hello", max_new_tokens=8).token_ids


def test_the_backend_fulfils_the_protocols(varco: Varco) -> None:
    backend: Backend = backend_of(varco)
    for protocol in (
        GreedyBackend,
        GreedyVerifyingBackend,
        NormalisesPixels,
        SamplingBackend,
        ShowsFeatures,
        VerifyingBackend,
    ):
        assert isinstance(backend, protocol), protocol


# --- prefill ----------------------------------------------------------------------------------------------------------


def test_chunked_prefill_has_the_logits_of_the_cpu(varco: Varco, cpu: Varco, gpu: Gpu) -> None:
    inputs = text_inputs(varco, 100)
    gpu.sessions["decoder"].runs.clear()
    assert close(varco.backend.prefill(inputs, 0), cpu.backend.prefill(inputs, 0))
    assert [run["token_ids"][1] for run in gpu.sessions["decoder"].runs] == [32, 32, 32, 4]
    assert close(varco.backend.prefill(inputs, 40, num_logits=33), cpu.backend.prefill(inputs, 0, num_logits=33))


def test_a_chunk_computes_no_more_logits_than_there_is_room_for(varco: Varco, gpu: Gpu) -> None:
    gpu.sessions["decoder"].runs.clear()
    varco.backend.prefill(text_inputs(varco, 70), 0, num_logits=40)
    runs = [(run["token_ids"][1], run["logit_positions"][0]) for run in gpu.sessions["decoder"].runs]
    assert runs == [(32, 2), (14, 14), (16, NUM_LOGITS), (8, 8)] or sum(count for _, count in runs) == 40
    assert max(count for _, count in runs) <= NUM_LOGITS


def test_a_prompt_is_neither_captured_nor_replayed(varco: Varco, gpu: Gpu) -> None:
    varco.backend.prefill(text_inputs(varco, 70), 0)
    assert set(gpu.names()) == {"upload", "run"}


def test_a_rewound_cache_forgets_what_came_after(varco: Varco) -> None:
    inputs, other = text_inputs(varco, 60), text_inputs(varco, 60, seed=9)
    fresh = varco.backend.prefill(inputs, 0, num_logits=30)
    varco.backend.prefill(PromptInputs(np.concatenate([inputs.ids[:30], other.ids]), inputs.image_token_id, None), 0)
    assert close(varco.backend.prefill(inputs, 30, num_logits=30), fresh)


# --- decode -----------------------------------------------------------------------------------------------------------


def test_decode_steps_equal_one_full_pass(varco: Varco) -> None:
    inputs = text_inputs(varco, 60)
    whole = varco.backend.prefill(inputs, 0, num_logits=60)
    rows = [varco.backend.prefill(PromptInputs(inputs.ids[:20], inputs.image_token_id, None), 0)[0].copy()]
    rows += [varco.backend.decode_step(int(token), 20 + i).copy() for i, token in enumerate(inputs.ids[20:])]
    assert close(np.stack(rows), whole[19:])


def test_step_and_draw_are_captured_at_loading_and_replayed_ever_after(bundle: Path, gpu: Gpu, cpu: Varco) -> None:
    varco = Varco.load(bundle)
    captured = [call[1] for call in gpu.asked if call[0] == "capture"]
    assert captured == ["decoder"] * MAX_STEP_TOKENS + ["sampling"], "each length of step, and the draw"
    gpu.asked.clear()
    questions = [("Hello", {"speculate": False}), ("Hello again", {"temperature": 0.9, "seed": 5})]
    answers = [varco.ask(None, text, max_new_tokens=6, **options).token_ids for text, options in questions]
    assert gpu.asked.count(("replay", "decoder")) == 10
    assert gpu.asked.count(("replay", "sampling")) == 5
    assert "capture" not in gpu.names()
    assert answers == [cpu.ask(None, text, max_new_tokens=6, **options).token_ids for text, options in questions]


def test_a_step_on_another_thread_is_captured_there_and_right(varco: Varco, cpu: Varco, gpu: Gpu) -> None:
    """The provider keeps graphs by thread, and runs a step several times to capture it."""
    found: list[tuple[int, ...]] = []
    options: dict[str, Any] = {"max_new_tokens": 12, "speculate": False}
    thread = threading.Thread(target=lambda: found.append(varco.ask(None, "Hello", **options).token_ids))
    gpu.captures = 0
    thread.start()
    thread.join()
    assert found == [cpu.ask(None, "Hello", **options).token_ids]
    assert gpu.captures == 1


def test_all_other_threads_share_one_and_its_captures(varco: Varco, cpu: Varco, gpu: Gpu) -> None:
    """The provider keeps what a thread captured until the session ends: a thread per request must not cost a graph."""
    options: dict[str, Any] = {"max_new_tokens": 6, "speculate": False}
    expected = cpu.ask(None, "Hello", **options).token_ids
    gpu.captures = 0
    for _ in range(3):
        found: list[tuple[int, ...]] = []
        thread = threading.Thread(
            target=lambda found=found: found.append(varco.ask(None, "Hello", **options).token_ids)
        )
        thread.start()
        thread.join()
        assert found == [expected]
    assert gpu.captures == 1
    assert varco.ask(None, "Hello", **options).token_ids == expected, "and here nothing is captured anew"
    assert gpu.captures == 1


def test_an_error_on_another_thread_reaches_it(varco: Varco) -> None:
    found: list[BaseException] = []

    def ask() -> None:
        try:
            varco.backend.decode_step(1, MAX_CONTEXT)
        except ContextError as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "513 positions do not fit" in str(found[0])


def test_a_greedy_step_moves_one_integer_to_the_host(varco: Varco, gpu: Gpu) -> None:
    varco.backend.prefill(text_inputs(varco, 12), 0)
    gpu.asked.clear()
    token = backend_of(varco).decode_greedy(7, 12)
    assert gpu.asked == [("write", 8), ("write", 4), ("replay", "decoder"), ("read", 8)]
    gpu.asked.clear()
    varco.backend.decode_step(token, 13)
    assert gpu.asked[-1] == ("read", VALUE * varco.bundle.manifest.model.vocab_size)


def test_a_draw_moves_six_numbers_to_the_device_and_one_integer_back(varco: Varco, gpu: Gpu) -> None:
    backend, vocab_size = backend_of(varco), varco.bundle.manifest.model.vocab_size
    backend.prefill(text_inputs(varco, 12), 0)
    sampler = Sampler(SamplingSettings(temperature=0.7, top_p=0.9, seed=1), varco.bundle.manifest.generation)
    gpu.asked.clear()
    backend.decode_sampled(7, 12, sampler.draw(vocab_size))
    step = [("write", 8), ("write", 4), ("replay", "decoder")]
    assert gpu.asked == [*step, ("write", 48), ("replay", "sampling"), ("read", 8)]
    penalised = Sampler(SamplingSettings(repetition_penalty=1.2), varco.bundle.manifest.generation, (3, 4))
    gpu.asked.clear()
    backend.decode_sampled(7, 13, penalised.draw(vocab_size))
    assert gpu.asked == [*step, ("write", 48), ("write", vocab_size), ("replay", "sampling"), ("read", 8)]


@pytest.mark.parametrize("count", [2, 5, MAX_STEP_TOKENS])
def test_a_step_of_several_tokens_equals_as_many_steps(varco: Varco, gpu: Gpu, count: int) -> None:
    backend, inputs = backend_of(varco), text_inputs(varco, 40)
    tokens = [int(token) for token in inputs.ids[:count]]
    for start in (40, 20):
        backend.prefill(PromptInputs(inputs.ids[:start], inputs.image_token_id, None), 0)
        together = backend.decode_steps(tokens, start).copy()
        chosen = backend.decode_greedy_steps(tokens, start)
        one_by_one = [backend.decode_step(token, start + at).copy() for at, token in enumerate(tokens)]
        assert close(together, np.stack(one_by_one))
        assert chosen == [int(row.argmax()) for row in one_by_one]
    assert "capture" not in gpu.names()


def test_drafts_change_the_steps_and_not_the_answer(
    varco: Varco, cpu: Varco, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cpu.ask(None, "Hello", max_new_tokens=64, speculate=False).token_ids
    foretell(monkeypatch, expected, (3, 0, 8, 1, 5))
    gpu.asked.clear()
    answer = varco.ask(None, "Hello", max_new_tokens=64)
    assert answer.token_ids == expected
    assert 20 < answer.timings.accepted < answer.timings.drafted
    steps = sum(call[0] in ("replay", "capture") for call in gpu.asked)
    assert steps == len(answer.token_ids) - 1 - answer.timings.accepted
    moved = sum(call[1] for call in gpu.asked if call[0] == "read")
    assert moved == 8 * (steps + answer.timings.drafted), "one integer for each token that was put"
    monkeypatch.undo()
    install(monkeypatch, gpu)
    again = varco.ask(None, "Hello again", max_new_tokens=16, speculate=False)
    assert again.token_ids == cpu.ask(None, "Hello again", max_new_tokens=16).token_ids, "the cache is what it says"


def test_a_draft_under_a_penalty_is_judged_by_the_host(
    varco: Varco, cpu: Varco, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 32, "repetition_penalty": 1.3}
    expected = cpu.ask(None, "Hello", speculate=False, **options).token_ids
    foretell(monkeypatch, expected, (4, 2))
    answer = varco.ask(None, "Hello", **options)
    assert answer.token_ids == expected
    assert answer.timings.accepted > 5


def test_greedy_tokens_do_not_depend_on_who_chooses(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_by_device = varco.ask(None, "Hello", max_new_tokens=32).token_ids
    monkeypatch.setattr("varco_runtime.sampling.Sampler.is_greedy", False)
    assert varco.ask(None, "Hello", max_new_tokens=32).token_ids == chosen_by_device


def test_a_step_may_go_back(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, 30)
    for one in (varco, cpu):
        one.backend.prefill(inputs, 0)
    for token, position in ((5, 30), (6, 31), (7, 32), (9, 31), (3, 20), (4, 21)):
        assert close(varco.backend.decode_step(token, position), cpu.backend.decode_step(token, position)), position


def test_past_and_present_are_one_memory_in_every_run(varco: Varco, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, tuple[int, tuple[int, ...]]]] = []
    session = gpu.sessions["decoder"]
    run = session.run_with_iobinding
    monkeypatch.setattr(
        session, "run_with_iobinding", lambda binding, o=None: (seen.append(binding.bound), run(binding, o))
    )
    varco.ask(None, "Hello", max_new_tokens=4)
    caches = [name.removeprefix("past.") for name in seen[0] if name.startswith("past.")]
    assert len(caches) == 2 * varco.bundle.manifest.model.num_layers
    for bound in seen:
        for name in caches:
            assert bound[f"past.{name}"] == bound[f"present.{name}"] == seen[0][f"past.{name}"]


def test_an_opening_that_overflows_is_refused_and_not_taken_for_cached(
    bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first positions are computed at loading, where nobody looks at their logits."""
    prefill_chunk = CudaBackend._prefill_chunk

    def overflowing(self: CudaBackend, inputs: PromptInputs, start: int, *args: Any, **kwargs: Any) -> Any:
        logits = prefill_chunk(self, inputs, start, *args, **kwargs)
        if start > 0:
            return logits
        for buffer in self._caches.values():
            buffer.value.inner.numpy()[:, :, 0] = np.nan
        return np.full_like(logits, np.nan)

    monkeypatch.setattr(CudaBackend, "_prefill_chunk", overflowing)
    varco = Varco.load(bundle)
    for _ in range(2):
        with pytest.raises(BackendError, match="gave the logit nan for token 0, expected finite numbers"):
            varco.ask(None, "Hello", max_new_tokens=4)
    assert np.isnan(varco.score(None, "Hello", [5, 6])).all()
    monkeypatch.undo()
    install(monkeypatch, gpu)
    assert varco.ask(None, "Hello", max_new_tokens=4).usage.cached_tokens == 0


@pytest.mark.parametrize("greedy", [True, False])
def test_a_nan_in_the_caches_is_seen_at_once_and_does_not_reach_the_next_answer(
    varco: Varco, cpu: Varco, gpu: Gpu, greedy: bool
) -> None:
    backend = backend_of(varco)
    backend.prefill(text_inputs(varco, 61), 0)
    for buffer in backend._caches.values():
        buffer.value.inner.numpy()[:, :, 20:50] = np.nan  # the double's memory, which no run has written to
    if greedy:
        gpu.asked.clear()
        with pytest.raises(BackendError, match="not finite at position 61"):
            backend.decode_greedy(3, 61)
        assert [call for call in gpu.asked if call[0] == "read"] == [("read", 8)]
    else:
        assert np.isnan(backend.decode_step(3, 61)).any(), "left to the sampler, which refuses it"
    assert not any(np.isnan(buffer.read()).any() for buffer in backend._caches.values())
    varco._memory.forget_sequence()  # as an answer that fails does
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == cpu.ask(None, "Hello", max_new_tokens=8).token_ids


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_tiles_are_encoded_in_batches_and_no_feature_leaves_the_device(
    varco: Varco, gpu: Gpu, image: Image.Image
) -> None:
    for name in ("vision", "packing"):
        gpu.sessions[name].runs.clear()
    answer = varco.ask(image, "What is this?", max_new_tokens=4)
    batches = [run["pixel_values"][0] for run in gpu.sessions["vision"].runs]
    assert batches[:-1] == [3] * (len(batches) - 1)
    assert len(batches) > 1
    assert gpu.sessions["packing"].runs[0]["image_features"][0] == sum(batches)
    assert [call[1] for call in gpu.asked if call[0] == "read"] == [8] * 3
    assert answer.usage.image_tokens > 0


def test_a_tile_goes_to_the_device_as_bytes_and_becomes_pixel_values_there(
    varco: Varco, gpu: Gpu, image: Image.Image
) -> None:
    settings = varco.bundle.manifest.image
    tiles = tile(load_picture(image), settings)
    backend = backend_of(varco)
    gpu.asked.clear()
    backend.encode_pixels(tiles)
    assert sum(call[1] for call in gpu.asked if call[0] == "upload") == tiles.nbytes
    from_bytes = backend._buffers["image_features"].read()[: len(tiles)]
    backend.encode(normalise(tiles, settings))
    np.testing.assert_array_equal(from_bytes, backend._buffers["image_features"].read()[: len(tiles)])


def test_the_next_tiles_are_copied_while_the_tower_looks_at_these(varco: Varco, gpu: Gpu) -> None:
    """The copy of the second batch begins before the first batch's run ends, whose end waits for it here."""
    side = varco.bundle.manifest.image.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (5, 3, side, side), dtype=np.uint8)
    copies = threading.Semaphore(0)
    upload_bytes = [3 * tiles[0].nbytes, 2 * tiles[0].nbytes]
    in_time: list[bool] = []

    def watch(call: str) -> None:
        last = gpu.asked[-1]
        if last == ("upload", upload_bytes[1]):
            copies.release()
        elif last == ("run", "vision") and not in_time:
            in_time.append(copies.acquire(timeout=30))

    gpu.fault = watch
    backend_of(varco).encode_pixels(tiles)
    assert in_time == [True]
    assert [call[1] for call in gpu.asked if call[0] == "upload"] == upload_bytes


def test_a_copy_that_fails_beside_the_tower_is_one_clear_line(varco: Varco, gpu: Gpu) -> None:
    side = varco.bundle.manifest.image.tile_px
    tiles = np.zeros((5, 3, side, side), np.uint8)
    gpu.fault = lambda call: RuntimeError("CUDA failure 2: out of memory") if call == "upload" else None
    with pytest.raises(ShortageError, match="ran out of memory during a copy to the device"):
        backend_of(varco).encode_pixels(tiles)
    gpu.fault = lambda call: None
    assert varco.ask(None, "Hello", max_new_tokens=2).token_ids


def test_a_picture_is_packed_in_parts(
    varco: Varco, cpu: Varco, gpu: Gpu, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.cuda_vision.PACK_TOKENS", 10)
    gpu.sessions["packing"].runs.clear()
    answer = varco.ask(image, "What is this?", max_new_tokens=8)
    parts = [run["image_tokens"][0] for run in gpu.sessions["packing"].runs]
    assert sum(parts) == answer.usage.image_tokens
    assert set(parts[:-1]) == {10}
    assert answer.token_ids == cpu.ask(image, "What is this?", max_new_tokens=8).token_ids


def test_a_picture_beyond_the_context_is_one_clear_line(bundle: Path, gpu: Gpu, image: Image.Image) -> None:
    varco = Varco.load(bundle, max_context=60)
    plan = packing_plan((90, 130), varco.bundle.manifest.image)
    tiles = np.zeros((plan.newline_row // varco.bundle.manifest.image.patches_per_tile, 3, 58, 58), np.float32)
    with pytest.raises(ContextError, match=r"makes \d+ image tokens, the context holds 60\."):
        varco.backend.pack(varco.backend.encode(tiles), plan)
    assert varco.ask(None, "Hello", max_new_tokens=2).token_ids


# --- token rows on the host -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host_rows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "bundle"
    return export_in_fp32(tiny_checkpoint, folder, max_context=MAX_CONTEXT, embedding="host")


def test_token_rows_on_the_host_give_the_same_answers(
    host_rows: Path, gpu: Gpu, cpu: Varco, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.cuda_memory.PREFILL_TOKENS", 32)
    varco = Varco.load(host_rows)
    for options in ({}, {"speculate": False}, {"temperature": 1.2, "seed": 4}):
        expected = cpu.ask(image, "What is this?", max_new_tokens=32, **options)
        assert varco.ask(image, "What is this?", max_new_tokens=32, **options).token_ids == expected.token_ids


def test_a_step_moves_one_token_row_to_the_device(host_rows: Path, gpu: Gpu) -> None:
    varco = Varco.load(host_rows)
    width = varco.bundle.manifest.model.hidden_size
    varco.backend.prefill(text_inputs(varco, 12), 0)
    gpu.asked.clear()
    backend_of(varco).decode_greedy(7, 12)
    assert gpu.asked == [("write", VALUE * width), ("write", 4), ("replay", "decoder"), ("read", 8)]


def test_token_rows_on_the_host_need_that_much_less_of_the_device(host_rows: Path, bundle: Path, gpu: Gpu) -> None:
    rows = Bundle.open(host_rows).manifest.embedding
    assert rows is not None
    needed = [needed_bytes(one, sizes_of(one, 128))[0] for one in (read_manifest(bundle), read_manifest(host_rows))]
    assert abs(needed[0] - needed[1] - VALUE * (rows.rows - 1) * rows.width) < 8192, "but for padding to pages"


# --- bounds and memory ------------------------------------------------------------------------------------------------


def test_no_position_beyond_the_context_reaches_the_device(bundle: Path, gpu: Gpu) -> None:
    varco = Varco.load(bundle, max_context=64)
    answer = varco.ask(None, "Hello", max_new_tokens=1000)
    assert answer.usage.prompt_tokens + len(answer.token_ids) == 64
    for step in (varco.backend.decode_step, backend_of(varco).decode_greedy):
        with pytest.raises(ContextError, match="65 positions do not fit the context of 64"):
            step(1, 64)
    with pytest.raises(ContextError, match="100 positions do not fit"):
        varco.backend.prefill(text_inputs(varco, 100), 0)
    with pytest.raises(AssertionError, match="token ids 999999"):
        varco.backend.decode_step(999_999, 3)


def test_the_last_position_of_the_caches_can_be_used(bundle: Path, gpu: Gpu, cpu: Varco) -> None:
    varco = Varco.load(bundle)
    inputs = text_inputs(varco, MAX_CONTEXT - 1)
    for one in (varco, cpu):
        one.backend.prefill(inputs, 0)
    position = MAX_CONTEXT - 1
    assert close(varco.backend.decode_step(3, position), cpu.backend.decode_step(3, position))


def test_buffers_are_allocated_at_loading_alone_and_hold_finite_numbers(
    bundle: Path, gpu: Gpu, image: Image.Image
) -> None:
    varco = Varco.load(bundle)
    backend = backend_of(varco)
    opening = len(varco._memory.sequence.ids)  # what every question begins with, prefilled at loading
    beyond = [buffer.value.inner.numpy()[:, :, opening:] for buffer in backend._caches.values()]
    assert all(np.isfinite(values).all() for values in beyond), "nothing times NaN is NaN"
    gpu.asked.clear()
    varco.ask(image, "What is this?", max_new_tokens=6)
    assert "allocate" not in gpu.names()


def test_losing_the_backend_gives_its_memory_back_at_once(bundle: Path, gpu: Gpu) -> None:
    backend = CudaBackend(Bundle.open(bundle))
    cache = weakref.ref(backend._caches["0.key"].value.keep)
    gpu.sessions.clear()
    gc.disable()
    try:
        del backend
        assert cache() is None, "a cycle keeps the device's memory until it is found"
    finally:
        gc.enable()


def test_the_provider_is_asked_for_what_the_design_needs(varco: Varco, gpu: Gpu) -> None:
    decoder, vision = gpu.sessions["decoder"], gpu.sessions["vision"]
    assert decoder.provider_options["enable_cuda_graph"] == "1"
    assert {one.provider_options["enable_cudnn"] for one in gpu.sessions.values()} == {"0"}
    assert decoder.disabled_optimizers == {"MatMulNBitsFusion"}, "which would take the fused kernel from QKV"
    assert vision.provider_options["enable_cuda_graph"] == "0"
    assert decoder.options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert os.environ["ORT_ENABLE_XQA"] == "1"


@pytest.mark.parametrize(("decoder", "fused"), [("fp16", "1"), ("int4", "1"), ("fp32", "0")])
def test_the_fused_integer_kernel_is_asked_for_in_fp16(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, bundle: Path, decoder: str, fused: str
) -> None:
    folder = bundle
    if decoder != "fp32":
        folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder=decoder, max_context=64)
    Varco.load(folder)
    assert gpu.sessions["decoder"].options.get_session_config_entry("ep.cuda.fpa_intb_gemm") == fused


def test_a_setting_of_the_user_is_kept(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_ENABLE_XQA", "0")
    Varco.load(bundle)
    assert os.environ["ORT_ENABLE_XQA"] == "0"


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(bundle: Path, error: type[VarcoError], match: str, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        Varco.load(bundle, **{"provider": "cuda", **options})
    assert "\n" not in str(caught.value)


def test_a_wheel_without_cuda_is_one_clear_line(bundle: Path, gpu: Gpu) -> None:
    gpu.providers = ["CPUExecutionProvider"]
    refused(bundle, BackendError, r"onnxruntime 1\.31\.1 is the build without CUDA, .*pip install 'varco-edge\[cuda\]'")


def test_a_missing_onnxruntime_names_the_extra(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(bundle, MissingExtraError, r"varco-edge\[cuda\]")


def test_missing_libraries_are_named(bundle: Path, gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.missing = ["libcublasLt.so.13", "libcurand.so.10"]
    refused(
        bundle, BackendError, r"libraries of CUDA 13 are missing \(libcublasLt\.so\.13, libcurand\.so\.10\)\. .*pip"
    )
    assert capsys.readouterr().out == "", "what onnxruntime prints would be taken for an answer"


def test_missing_libraries_are_named_where_the_cpu_lacks_a_kernel(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder="bf16", max_context=64)
    gpu.missing = ["libcublas.so.13"]
    refused(folder, BackendError, r"libraries of CUDA 13 are missing \(libcublas\.so\.13\)")


def test_an_old_driver_is_one_clear_line(bundle: Path, gpu: Gpu) -> None:
    gpu.facts = dataclasses.replace(gpu.facts, cuda_version=(12, 8))
    refused(bundle, BackendError, r"driver supports CUDA 12\.8, expected 13\.0 or later\. Update the driver, or .*cpu$")


def test_an_old_gpu_keeps_the_integers_of_a_bundle(tmp_path: Path, gpu: Gpu) -> None:
    """`--decoder fp16` would be refused for packed weights, and give plain ones up for rounded ones."""
    checkpoint = make_tiny(tmp_path / "checkpoint", TinyOptions(dtype="bf16"))
    folder = export_bundle(checkpoint, tmp_path / "b", device="cuda", decoder="int4", max_context=64)
    gpu.facts = dataclasses.replace(gpu.facts, capability=(7, 5))
    refused(folder, BackendError, r"a bundle in bf16 needs 8\.0 or later\. Export again with --vision fp16")


@pytest.mark.parametrize(
    ("capability", "compute", "message"),
    [
        ((7, 5), "bf16", r"compute capability 7\.5, a bundle in bf16 needs 8\.0 or later\. Export with --decoder fp16"),
        ((7, 5), "fp8", r"compute capability 7\.5, a bundle in fp8 needs 8\.0 or later\. Export with --decoder fp16"),
        ((7, 0), "fp16", r"compute capability 7\.0, a bundle in fp16 needs 7\.5 or later\. Use a newer GPU"),
        (
            (10, 0),
            "fp16",
            r"compute capability 10\.0, for which onnxruntime-gpu has no code, expected 7\.5, 8\.x, 9\.0 or",
        ),
    ],
)
def test_a_gpu_that_is_too_old_is_one_clear_line(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, capability: tuple[int, int], compute: str, message: str
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder=compute, max_context=64)
    gpu.facts = dataclasses.replace(gpu.facts, capability=capability)
    refused(folder, BackendError, message)


def test_too_little_memory_is_refused_before_anything_is_loaded(bundle: Path, gpu: Gpu, cpu: Varco) -> None:
    gpu.facts = dataclasses.replace(gpu.facts, free_bytes=400_000_000)
    message = (
        r"The model needs about 0\.\d\d GB of GPU memory, 0\.40 GB of 151\.40 GB were free on Recording GPU\..*"
        r"lower max_context \(the caches of 512 positions take 0\.00 GB\).*--decoder int4"
    )
    refused(bundle, BackendError, message)
    assert "load" not in gpu.names()


@pytest.mark.parametrize(
    ("precision", "place", "advice"),
    [
        ("fp16", "device", "with --decoder int4 --embedding host --lm-head int4"),
        ("int4 (blocks of 32, fp16 activations), head fp16", "device", "with --embedding host --lm-head int4"),
        ("int4 (blocks of 32, fp16 activations)", "host", "a smaller model"),
        ("int8 (GPTQ, groups of 128, fp16 activations), head fp16", "host", "with --lm-head int4"),
    ],
)
def test_a_shortage_names_the_options_that_are_left(
    bundle: Path, host_rows: Path, gpu: Gpu, precision: str, place: str, advice: str
) -> None:
    manifest = read_manifest(bundle if place == "device" else host_rows)
    manifest = dataclasses.replace(manifest, decoder=dataclasses.replace(manifest.decoder, precision=precision))
    assert str(shortage(manifest, sizes_of(manifest, 128), gpu.facts)).endswith(f"or export {advice}.")


def test_memory_of_a_model_that_has_gone_counts_for_the_next(bundle: Path, gpu: Gpu) -> None:
    """onnxruntime's arena keeps what buffers took, so the driver calls less free than there is."""
    backend = CudaBackend(Bundle.open(bundle))
    before = ARENA.spare_bytes
    gpu.sessions.clear()
    cache_bytes = MAX_CONTEXT * backend._manifest.kv_bytes_per_token
    del backend
    gc.collect()
    assert ARENA.spare_bytes - before > cache_bytes
    needed, _ = needed_bytes(read_manifest(bundle), sizes_of(read_manifest(bundle), MAX_CONTEXT))
    gpu.facts = dataclasses.replace(gpu.facts, free_bytes=needed - cache_bytes)
    assert CudaBackend(Bundle.open(bundle)).max_context == MAX_CONTEXT


def test_the_memory_that_is_needed_follows_the_context(bundle: Path, gpu: Gpu) -> None:
    manifest = Varco.load(bundle).bundle.manifest
    small, large = (needed_bytes(manifest, sizes_of(manifest, context)) for context in (128, 512))
    assert large[1] == 4 * small[1] == 512 * manifest.kv_bytes_per_token
    assert large[0] - small[0] >= large[1] - small[1]


def test_a_shortage_says_what_was_free_and_what_is(bundle: Path, gpu: Gpu) -> None:
    def fail(call: str) -> Exception | None:
        if call != "allocate":
            return None
        gpu.facts = dataclasses.replace(gpu.facts, free_bytes=250_000_000)
        return RuntimeError("CUDA failure 2: out of memory")

    gpu.facts = dataclasses.replace(gpu.facts, free_bytes=5_000_000_000)
    gpu.fault = fail
    message = r"5\.00 GB of 151\.40 GB were free on Recording GPU before loading, 0\.25 GB are free now\. End other"
    refused(bundle, ShortageError, message)


def test_a_shortage_does_not_read_as_missing_libraries(bundle: Path, gpu: Gpu) -> None:
    gpu.missing = ["libcurand.so.10"]  # found elsewhere
    gpu.fault = lambda name: RuntimeError("Failed to allocate memory") if name == "load" else None
    refused(bundle, ShortageError, r"The GPU ran out of memory during the loading of pixels\.onnx")


@pytest.mark.parametrize(
    ("call", "during"),
    [
        ("load", "the loading of pixels.onnx"),
        ("allocate", "the allocation of a buffer"),
        ("capture", "a run of the decoder"),
    ],
)
def test_memory_that_runs_out_is_one_clear_line(bundle: Path, gpu: Gpu, call: str, during: str) -> None:
    text = "Non-zero status code\nFailed to allocate memory for requested buffer of size 304087040"
    gpu.fault = lambda name: RuntimeError(text) if name == call else None
    refused(bundle, BackendError, rf"ran out of memory during {during}: the model needs about .* max_context")


def test_a_fault_of_the_device_is_one_clear_line_and_the_model_stays_usable(varco: Varco, gpu: Gpu) -> None:
    gpu.fault = lambda name: RuntimeError("CUDA failure 700: an illegal memory access\nmore") if name == "run" else None
    with pytest.raises(
        BackendError, match="onnxruntime failed during a run of the decoder: CUDA failure 700"
    ) as caught:
        varco.ask(None, "Hello", max_new_tokens=4)
    assert "\n" not in str(caught.value)
    gpu.fault = lambda name: None
    assert varco.ask(None, "Hello", max_new_tokens=4).token_ids


# --- which provider ---------------------------------------------------------------------------------------------------


def test_auto_falls_back_to_the_cpu_and_says_why(tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, cpu: Varco) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder="fp16", max_context=256)
    gpu.providers = ["CPUExecutionProvider"]
    varco = Varco.load(folder, threads=1)
    assert varco.provider.startswith(
        "cpu, slowly (the bundle was exported for CUDA, which cannot be used: The installed"
    )
    assert varco.backend.description == "onnxruntime 1.31.1, CPU, 1 thread, a bundle made for CUDA"
    assert varco.ask(None, "Hello", max_new_tokens=4).token_ids == cpu.ask(None, "Hello", max_new_tokens=4).token_ids


def test_auto_with_a_gpu_and_no_onnxruntime_names_the_extra_for_the_gpu(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder="fp16", max_context=64)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(folder, MissingExtraError, r"varco-edge\[cuda\]", provider="auto")


@pytest.mark.parametrize("decoder", ["bf16", "fp8"])
def test_auto_without_a_gpu_refuses_what_no_cpu_runs(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, decoder: str
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder=decoder, max_context=64)
    gpu.providers = ["CPUExecutionProvider"]
    message = rf"The CPU cannot run this bundle, it has no kernels for {decoder}.*, nor can the GPU: .*without CUDA, "
    refused(folder, BackendError, message, provider="auto")


def test_other_providers_are_refused_by_name(bundle: Path, tiny_bundle: Path, gpu: Gpu) -> None:
    refused(
        bundle, BackendError, r"exported for CUDA, got --provider tensorrt\..*--device tensorrt", provider="tensorrt"
    )
    refused(tiny_bundle, BackendError, r"exported for the CPU, got --provider cuda\..*--device cuda")
