"""Parity, rewind, continuation, drafts, sampling, probes and cancellation through the CUDA provider."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.gpu.tokens import MAX_CONTEXT, MODEL
from tests.conftest import export_bundle
from tests.makers.drafts import foretell
from tests.makers.inputs import noise_picture, text_inputs
from varco_export.tiny import Scales, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.backends.cuda.cache import BANDS
from varco_runtime.backends.cuda.on_cpu import cpu_lacks
from varco_runtime.errors import BackendError
from varco_runtime.generation.sampling import Sampler, SamplingSettings
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile
from varco_runtime.probes.replay import FEATURE_LIMITS, LOGIT_LIMITS, read_probes, replay

Array = np.ndarray[Any, Any]


@pytest.fixture
def image() -> Image.Image:
    return noise_picture()


@pytest.fixture
def own(place: str, fp16: Varco) -> Varco:
    """The same bundle loaded once more: a Varco remembers what its cache holds, and other tests fill that directly."""
    return Varco.load(fp16.bundle.folder, provider=place)


def error(got: Array, expected: Array) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def backend_of(varco: Varco) -> CudaBackend:
    assert isinstance(varco.backend, CudaBackend)
    return varco.backend


def test_features_are_those_of_the_exact_model(fp16: Varco, exact: Varco, image: Image.Image) -> None:
    settings, picture = fp16.bundle.manifest.image, load_picture(image)
    pixel_values, plan = normalize(tile(picture, settings), settings), packing_plan(picture.size_hw, settings)
    got = backend_of(fp16).features(pixel_values, plan)
    want = exact.backend.features(pixel_values, plan)  # type: ignore[attr-defined]
    for name in ("patch_features", "image_features", "image_tokens"):
        assert error(getattr(got, name), getattr(want, name)) < FEATURE_LIMITS["fp16"], name


@pytest.mark.parametrize("decoder", ["fp16", "bf16", "int8", "int4", "fp8"])
def test_every_precision_has_the_logits_of_its_graph_on_the_cpu_or_of_the_exact_model(
    place: str, checkpoint: Path, exact: Varco, tmp_path: Path, decoder: str
) -> None:
    """Rounded weights are compared with the same weights on the CPU; bf16 and FP8, which it lacks, with the exact model
    at the limit of the acceptance probes."""
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder=decoder, max_context=MAX_CONTEXT)
    if place == "cpu" and decoder in ("bf16", "fp8"):
        pytest.skip(f"the CPU has no kernels for {decoder}")
    varco = Varco.load(bundle, provider=place)
    reference = Varco.load(bundle, provider="cpu", threads=1) if cpu_lacks(varco.bundle) is None else exact
    limit = {"fp8": 0.2, "bf16": LOGIT_LIMITS["bf16"]}.get(decoder, LOGIT_LIMITS["fp16"])
    inputs = text_inputs(varco, 200)
    expected = reference.backend.prefill(inputs, 0, num_logits=40)
    assert error(varco.backend.prefill(inputs, 0, num_logits=40), expected) < limit
    assert error(varco.backend.decode_step(7, 200), reference.backend.decode_step(7, 200)) < limit


def test_an_answer_about_a_picture_has_the_logits_of_the_exact_model(
    own: Varco, exact: Varco, image: Image.Image
) -> None:
    answer = exact.ask(image, "What is this?", max_new_tokens=64)
    rows = [one.score(image, "What is this?", answer.token_ids) for one in (own, exact)]
    assert error(*rows) < LOGIT_LIMITS["fp16"]
    top = np.sort(rows[1], axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > 4 * LOGIT_LIMITS["fp16"] * np.abs(rows[1]).max()
    assert clear.any()
    assert (rows[0].argmax(axis=1) == rows[1].argmax(axis=1))[clear].all()


def test_replayed_steps_equal_one_full_pass(fp16: Varco) -> None:
    inputs = text_inputs(fp16, 300)
    whole = fp16.backend.prefill(inputs, 0, num_logits=100)
    fp16.backend.prefill(PromptInputs(inputs.ids[:201], inputs.image_token_id, None), 0)
    rows = [fp16.backend.decode_step(int(inputs.ids[at]), at).copy() for at in range(201, 300)]
    assert error(np.stack(rows), whole[1:]) < LOGIT_LIMITS["fp16"]


def test_steps_that_outgrow_a_band_of_the_caches_equal_one_full_pass(fp16: Varco) -> None:
    """The sequence is moved to the next band by the driver; a shorter prompt takes what it keeps back."""
    first, end = BANDS[0], BANDS[0] + 24
    inputs, backend = text_inputs(fp16, end), backend_of(fp16)
    whole = backend.prefill(inputs, 0, num_logits=48).copy()
    backend.prefill(PromptInputs(inputs.ids[: first - 23], inputs.image_token_id, None), 0)
    rows, position = [], first - 23
    while position < end:
        count = min(1 + position % 4, end - position)
        tokens = [int(token) for token in inputs.ids[position : position + count]]
        rows += [row.copy() for row in backend.decode_steps(tokens, position)]
        position += count
    assert error(np.stack(rows), whole[1:]) < LOGIT_LIMITS["fp16"]
    short = PromptInputs(inputs.ids[:60], inputs.image_token_id, None)
    again = backend.prefill(short, 40, num_logits=20).copy()
    assert error(again, backend.prefill(short, 0, num_logits=20)) < LOGIT_LIMITS["fp16"]


def test_an_overflow_of_fp16_is_refused_and_the_next_answer_is_not_spoilt(place: str, tmp_path: Path) -> None:
    options = dataclasses.replace(MODEL, dtype="bf16", scales=Scales(mlp=2e4))
    checkpoint = make_tiny(tmp_path / "checkpoint", options)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="int4", max_context=MAX_CONTEXT)
    varco = Varco.load(bundle, provider=place)
    for settings in ({}, {"temperature": 0.8}):
        with pytest.raises(BackendError, match=r"ends at 65,504.*export it again with --vision bf16"):
            varco.ask(None, "Hello", max_new_tokens=4, **settings)
    with pytest.raises(BackendError, match="not finite at position 3"):
        backend_of(varco).decode_greedy(5, 3)
    assert not any(
        np.isnan(cache.read().view(np.float16)).any() for cache in backend_of(varco)._caches.buffers.values()
    )


def test_the_device_chooses_what_the_host_would(fp16: Varco) -> None:
    backend = backend_of(fp16)
    backend.prefill(text_inputs(fp16, 20), 0)
    for position in range(20, 60):
        chosen = backend.decode_greedy(position % 200, position)
        assert chosen == int(backend.decode_step(position % 200, position).argmax())


def test_a_rewound_cache_forgets_what_came_after(fp16: Varco) -> None:
    inputs, other = text_inputs(fp16, 120), text_inputs(fp16, 200, seed=9)
    fresh = fp16.backend.prefill(inputs, 0, num_logits=30)
    fp16.backend.prefill(PromptInputs(np.concatenate([inputs.ids[:50], other.ids]), inputs.image_token_id, None), 0)
    assert error(fp16.backend.prefill(inputs, 50, num_logits=30), fresh) < LOGIT_LIMITS["fp16"]


@pytest.mark.parametrize("count", [2, 5, 16])
def test_several_tokens_at_once_equal_one_at_a_time(fp16: Varco, count: int) -> None:
    """What speculation rests on: a run of drafted tokens, and a rewind to the first that was wrong."""
    inputs = text_inputs(fp16, 100 + count)
    at_once = fp16.backend.prefill(PromptInputs(inputs.ids[:100], inputs.image_token_id, None), 0)
    at_once = fp16.backend.prefill(inputs, 100, num_logits=count).copy()
    one_by_one = [fp16.backend.decode_step(int(inputs.ids[at]), at).copy() for at in range(100, 100 + count)]
    assert error(at_once, np.stack(one_by_one)) < LOGIT_LIMITS["fp16"]


@pytest.mark.parametrize("count", [2, 5, MAX_STEP_TOKENS])
def test_a_captured_step_of_several_tokens_equals_as_many_steps(fp16: Varco, count: int) -> None:
    """Twice over: the second time replays what the first captured."""
    backend, inputs = backend_of(fp16), text_inputs(fp16, 120)
    tokens = [int(token) for token in inputs.ids[:count]]
    for start in (100, 40):
        backend.prefill(PromptInputs(inputs.ids[:start], inputs.image_token_id, None), 0)
        together = backend.decode_steps(tokens, start).copy()
        chosen = backend.decode_greedy_steps(tokens, start)
        assert chosen == [int(row.argmax()) for row in together]
        one_by_one = [backend.decode_step(token, start + at).copy() for at, token in enumerate(tokens)]
        assert error(together, np.stack(one_by_one)) < LOGIT_LIMITS["fp16"]


def test_drafts_leave_the_logits_of_the_answer_as_they_are(own: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the logits of what was answered, for tokens of a random model may hang on the last bit."""
    plain = own.ask(None, "Hello", max_new_tokens=48, speculate=False)
    foretell(monkeypatch, plain.token_ids, (3, 0, 8, 1, 5))
    answer = own.ask(None, "Hello", max_new_tokens=48)
    assert answer.timings.accepted > 10
    rows = own.score(None, "Hello", answer.token_ids)
    best = rows.max(axis=1)
    chosen = rows[np.arange(len(rows)), list(answer.token_ids)]
    assert (best - chosen < LOGIT_LIMITS["fp16"] * np.abs(rows).max()).all()


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.3}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}, {"repetition_penalty": 1.3}]
)
def test_the_device_draws_what_the_host_would(fp16: Varco, settings: dict[str, Any]) -> None:
    backend, manifest = backend_of(fp16), fp16.bundle.manifest
    device, host = (Sampler(SamplingSettings(seed=3, **settings), manifest.generation, (5, 6)) for _ in range(2))
    backend.prefill(text_inputs(fp16, 20), 0)
    token = 7
    for position in range(20, 60):
        logits = backend.decode_step(token, position).copy()
        chosen = backend.decode_sampled(token, position, device.draw(manifest.model.vocab_size))
        device.accept(chosen)
        assert chosen == host.next(logits)
        token = chosen


def test_a_token_of_the_whole_vocabulary_is_chosen_and_drawn_as_the_host_would(place: str, tmp_path: Path) -> None:
    """The 14B's 152,064 tokens, for which the device sorts and sums with other kernels than for a few hundred."""
    if place == "cpu":
        pytest.skip("tests/runtime/backends/cuda/test_device_sampling.py does this on the CPU")
    options = dataclasses.replace(MODEL, vocab_size=152_064, num_hidden_layers=1, dtype="fp16")
    checkpoint = make_tiny(tmp_path / "checkpoint", options)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16", max_context=MAX_CONTEXT)
    varco = Varco.load(bundle, provider=place)
    backend, generation = backend_of(varco), varco.bundle.manifest.generation
    device, host = (Sampler(SamplingSettings(temperature=1.0, top_p=0.9, seed=3), generation) for _ in range(2))
    backend.prefill(text_inputs(varco, 20), 0)
    for position in range(20, 40):
        logits = backend.decode_step(position, position).copy()
        assert backend.decode_greedy(position, position) == int(logits.argmax())
        chosen = backend.decode_sampled(position, position, device.draw(options.vocab_size))
        assert chosen == host.next(logits)


def test_pixels_are_normalised_on_the_device_as_on_the_host(fp16: Varco, image: Image.Image) -> None:
    settings, picture = fp16.bundle.manifest.image, load_picture(image)
    tiles, plan = tile(picture, settings), packing_plan(picture.size_hw, settings)
    backend, image_token_id = backend_of(fp16), fp16.bundle.manifest.prompt.image_token_id
    ids = np.concatenate([np.arange(5), np.full(plan.num_tokens, image_token_id), np.arange(5)])
    rows = []
    for encode, given in ((backend.encode_pixels, tiles), (backend.encode, normalize(tiles, settings))):
        rows.append(backend.prefill(PromptInputs(ids, image_token_id, backend.pack(encode(given), plan)), 0))
    assert error(*rows) < LOGIT_LIMITS["fp16"]


def test_token_rows_on_the_host_give_the_same_logits(place: str, checkpoint: Path, fp16: Varco, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export_bundle(checkpoint, folder, device="cuda", decoder="fp16", max_context=MAX_CONTEXT, embedding="host")
    host = Varco.load(folder, provider=place)
    inputs = text_inputs(host, 200)
    logits = [one.backend.prefill(inputs, 0, num_logits=16).copy() for one in (host, fp16)]
    assert error(*logits) < LOGIT_LIMITS["fp16"]
    assert error(host.backend.decode_step(7, 200), fp16.backend.decode_step(7, 200)) < LOGIT_LIMITS["fp16"]


def test_the_acceptance_probes_pass(own: Varco) -> None:
    checks = replay(own.bundle, read_probes(own.bundle), own.backend)
    assert [check for check in checks if not check.passed] == []


def test_a_cancelled_answer_leaves_the_model_usable(own: Varco, image: Image.Image) -> None:
    """By the logits, for tokens of a random model may hang on the last bit of own."""
    answer = own.ask(image, "What is this?", max_new_tokens=16).token_ids
    before = own.score(image, "What is this?", answer)
    stream = own.stream(image, "And this?", max_new_tokens=50)
    next(iter(stream))
    stream.cancel()
    assert stream.run().finish_reason == "cancelled"
    assert error(own.score(image, "What is this?", answer), before) < LOGIT_LIMITS["fp16"]


def test_another_thread_gets_the_same_steps(fp16: Varco) -> None:
    """The provider keeps captured graphs by thread, and runs a step several times to capture it."""
    inputs = text_inputs(fp16, 60)

    def steps() -> Array:
        fp16.backend.prefill(PromptInputs(inputs.ids[:40], inputs.image_token_id, None), 0)
        return np.stack([fp16.backend.decode_step(int(inputs.ids[at]), at).copy() for at in range(40, 60)])

    expected = steps()
    found: list[Array] = []
    thread = threading.Thread(target=lambda: found.append(steps()))
    thread.start()
    thread.join()
    assert error(found[0], expected) < LOGIT_LIMITS["fp16"]


# --- several answers at once ------------------------------------------------------------------------------------------


@pytest.fixture
def eight(place: str, fp16: Varco) -> CudaBackend:
    """The same bundle with eight slots, a prompt of another length in each."""
    backend = backend_of(Varco.load(fp16.bundle.folder, provider=place, slots=8))
    for slot in range(8):
        backend.select_slot(slot)
        backend.prefill(text_inputs(fp16, 20 + 9 * slot, seed=slot), 0)
    return backend


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_row_of_several_answers_has_the_logits_of_its_slot_alone(eight: CudaBackend, count: int) -> None:
    """Twice over: the second time replays what the first captured."""
    for turn in range(2):
        positions = [20 + 9 * slot + turn for slot in range(count)]
        together = eight.decode_rows([5 + slot for slot in range(count)], positions).copy()
        for slot, position in enumerate(positions):
            eight.select_slot(slot)
            assert error(eight.decode_step(5 + slot, position), together[slot]) < LOGIT_LIMITS["fp16"], (turn, slot)


def test_rows_are_chosen_and_drawn_as_the_host_would(eight: CudaBackend, fp16: Varco) -> None:
    manifest = fp16.bundle.manifest
    asked = [
        SamplingSettings(temperature=1.1, top_p=0.9, seed=slot) if slot % 2 else SamplingSettings() for slot in range(8)
    ]
    device, host = ([Sampler(one, manifest.generation) for one in asked] for _ in range(2))
    tokens = [7] * 8
    for turn in range(10):
        positions = [20 + 9 * slot + turn for slot in range(8)]
        rows = eight.decode_rows(tokens, positions).copy()
        draws = [sampler.draw(manifest.model.vocab_size) for sampler in device]
        chosen = eight.decode_chosen_rows(tokens, positions, draws)
        assert chosen == [sampler.next(row) for sampler, row in zip(host, rows, strict=True)]
        tokens = [int(token) for token in chosen]  # type: ignore[arg-type]
        for sampler, token in zip(device, tokens, strict=True):
            sampler.accept(token)


def test_a_slot_that_was_copied_goes_on_as_the_other_would(eight: CudaBackend) -> None:
    eight.select_slot(7)
    expected = eight.decode_step(5, 60).copy()
    eight.select_slot(2)
    eight.copy_from_slot(7, 60)
    assert error(eight.decode_step(5, 60), expected) < LOGIT_LIMITS["fp16"]


def test_answers_at_once_have_the_logits_of_answers_alone(place: str, fp16: Varco, exact: Varco) -> None:
    """By the logits of what was answered, for tokens of a random model may hang on the last bit."""
    varco = Varco.load(fp16.bundle.folder, provider=place, slots=4)
    answers: dict[int, tuple[int, ...]] = {}

    def ask(index: int) -> None:
        answers[index] = varco.ask(None, f"Question {index}?", max_new_tokens=32, speculate=False).token_ids

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, token_ids in answers.items():
        rows = exact.score(None, f"Question {index}?", token_ids)
        behind = rows.max(axis=1) - rows[np.arange(len(rows)), list(token_ids)]
        assert (behind < 4 * LOGIT_LIMITS["fp16"] * np.abs(rows).max()).all(), index
    assert len(answers) == 6
