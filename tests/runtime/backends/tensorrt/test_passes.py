"""Prefill and decode steps of engines, call by call, against a double of CUDA and TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import RTX_VERSION, add_engines, runs
from tests.makers.inputs import close, text_inputs
from tests.runtime.backends.tensorrt.conftest import MAX_CONTEXT, backend_of
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.errors import BackendError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalise, tile

# --- prefill ----------------------------------------------------------------------------------------------------------


def test_chunked_prefill_has_the_logits_of_the_cpu(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, 100)
    assert close(varco.backend.prefill(inputs, 0), cpu.backend.prefill(inputs, 0))
    assert close(varco.backend.prefill(inputs, 40, num_logits=33), cpu.backend.prefill(inputs, 0, num_logits=33))


def test_image_tokens_may_stand_anywhere_in_a_chunk(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    settings, picture = varco.bundle.manifest.image, load_picture(image)
    pixel_values, plan = normalise(tile(picture, settings), settings), packing_plan(picture.size_hw, settings)
    ids = text_inputs(varco, plan.num_tokens + 40).ids
    places = np.sort(np.random.default_rng(1).permutation(len(ids) - 1)[: plan.num_tokens])
    image_token_id = varco.bundle.manifest.prompt.image_token_id
    ids[places] = image_token_id
    logits = []
    for backend in (varco.backend, cpu.backend):
        tokens = backend.pack(backend.encode(pixel_values), plan)
        logits.append(backend.prefill(PromptInputs(ids, image_token_id, tokens), 0, num_logits=20))
    assert close(*logits)


def test_a_chunk_computes_no_more_logits_than_the_engine_allows(varco: Varco, device: Device) -> None:
    device.done.clear()
    varco.backend.prefill(text_inputs(varco, 70), 0, num_logits=6)
    lengths = [(run["sequence"], run["total"], run["num_logits"]) for run in runs(device.done, "decoder")]
    assert lengths == [(32, 32, 1), (32, 64, 1), (4, 68, 4), (2, 70, 2)]


def test_a_rewound_cache_forgets_what_came_after(varco: Varco, device: Device) -> None:
    inputs, other = text_inputs(varco, 60), text_inputs(varco, 60, seed=9)
    fresh = varco.backend.prefill(inputs, 0, num_logits=30)
    mixed = PromptInputs(np.concatenate([inputs.ids[:30], other.ids]), inputs.image_token_id, None)
    varco.backend.prefill(mixed, 0)
    assert close(varco.backend.prefill(inputs, 30, num_logits=30), fresh)
    cache = backend_of(varco)._buffers["cache.0.key"]
    model = varco.bundle.manifest.model
    rows = device.bytes_at(cache.address, cache.num_bytes).view(np.float32)
    rows = rows.reshape(model.num_key_value_heads, MAX_CONTEXT, model.head_dim)
    assert np.abs(rows[:, :60]).min(axis=(0, 2)).all()
    assert not rows[:, 60:].any()


def test_a_rewound_nan_does_not_reach_the_next_answer(varco: Varco, cpu: Varco, device: Device) -> None:
    """Positions beyond the sequence weigh nothing, but nothing times NaN is NaN."""
    varco.ask(None, "Something else entirely, and at length.", max_new_tokens=64)
    backend = backend_of(varco)
    for name, cache in backend._buffers.items():
        if name.startswith("cache."):
            model = varco.bundle.manifest.model
            rows = device.bytes_at(cache.address, cache.num_bytes).view(np.float32)
            last = slice(backend._length - 20, backend._length)
            rows.reshape(model.num_key_value_heads, -1, model.head_dim)[:, last] = np.nan
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == cpu.ask(None, "Hello", max_new_tokens=8).token_ids


# --- decode -----------------------------------------------------------------------------------------------------------


def test_decode_steps_equal_one_full_pass(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_runtime.backends.tensorrt.step.BUCKET_POSITIONS", 16)
    inputs = text_inputs(varco, 60)
    whole = varco.backend.prefill(inputs, 0, num_logits=60)
    first = PromptInputs(inputs.ids[:20], inputs.image_token_id, None)
    rows = [varco.backend.prefill(first, 0)[0].copy()]
    rows += [varco.backend.decode_step(int(token), 20 + i).copy() for i, token in enumerate(inputs.ids[20:])]
    assert close(np.stack(rows), whole[19:])


def test_a_step_runs_plainly_then_is_captured_then_replayed(
    varco: Varco, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.backends.tensorrt.step.BUCKET_POSITIONS", 16)
    device.done.clear()
    varco.backend.prefill(text_inputs(varco, 12), 0)
    kinds = []
    token = 7
    for position in range(12, 36):
        device.asked.clear()
        token = backend_of(varco).decode_greedy(token, position)
        names = [event[0] for event in device.asked]
        kinds.append("c" if "Capture" in names else "r" if "Replay" in names else "p")
        assert ("Replay" in names) == (kinds[-1] != "p")
    assert "".join(kinds) == "pcrr" + "pc" + "r" * 14 + "pcrr"
    totals = [run["total"] for run in runs(device.done, "decoder")][1:]
    assert totals == [16] * 4 + [32] * 16 + [48] * 4


def test_a_greedy_step_moves_one_integer(varco: Varco, device: Device) -> None:
    varco.backend.prefill(text_inputs(varco, 12), 0)
    backend = backend_of(varco)
    token = 7
    for position in range(12, 16):
        token = backend.decode_greedy(token, position)
    device.asked.clear()
    backend.decode_greedy(token, 16)
    assert device.asked == [("DeviceToDevice", 8), ("Set", 1), ("Replay",), ("DeviceToHost", 8), ("Wait",)]


def test_a_token_that_the_device_did_not_choose_is_handed_to_it(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, 12)
    for one in (varco, cpu):
        one.backend.prefill(inputs, 0)
    backend = backend_of(varco)
    first = backend.decode_greedy(5, 12)
    other = (first + 1) % 200
    tokens = (5, other, other, first, first)
    expected = [int(np.argmax(cpu.backend.decode_step(token, 12 + i))) for i, token in enumerate(tokens)]
    chosen = [first, backend.decode_greedy(other, 13), int(np.argmax(backend.decode_step(other, 14)))]
    chosen += [int(np.argmax(backend.decode_step(first, 15))), backend.decode_greedy(first, 16)]
    assert chosen == expected


def test_a_step_may_go_back(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, 30)
    for one in (varco, cpu):
        one.backend.prefill(inputs, 0)
    for token, position in ((5, 30), (6, 31), (7, 32), (9, 31), (3, 20), (4, 21)):
        got, want = varco.backend.decode_step(token, position), cpu.backend.decode_step(token, position)
        assert close(got, want), position


def test_prefill_between_steps_leaves_the_graph_valid(varco: Varco, device: Device) -> None:
    varco.ask(None, "Hello", max_new_tokens=6)
    device.asked.clear()
    varco.ask(None, "Hello again", max_new_tokens=6)
    names = [event[0] for event in device.asked]
    assert "Capture" not in names
    assert names.count("Replay") == 5


def test_engines_of_either_builder_answer_alike(changed: Path, device: Device, cpu: Varco, image: Image.Image) -> None:
    add_engines(changed, builder="tensorrt", builder_version="11.4.0.12")
    varco = Varco.load(changed)
    answer = varco.ask(image, "What is this?", max_new_tokens=8)
    assert answer.token_ids == cpu.ask(image, "What is this?", max_new_tokens=8).token_ids
    assert varco.backend.description == "TensorRT 11.4.0.12, Recording GPU (sm89)"


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_what_cannot_be_captured_runs_plainly(
    changed: Path, device: Device, cpu: Varco, builder: str, image: Image.Image
) -> None:
    device.can_capture = False
    version = "11.4.0.12" if builder == "tensorrt" else RTX_VERSION
    add_engines(changed, builder=builder, builder_version=version)
    varco = Varco.load(changed)
    answer = varco.ask(image, "What is this?", max_new_tokens=8)
    assert answer.token_ids == cpu.ask(image, "What is this?", max_new_tokens=8).token_ids
    assert "without a CUDA graph" in varco.backend.description
    assert "Replay" not in [event[0] for event in device.asked]


def test_logits_that_are_not_finite_end_a_greedy_answer(varco: Varco, device: Device) -> None:
    backend = backend_of(varco)
    backend.prefill(text_inputs(varco, 64), 0)
    backend.decode_greedy(5, 64)
    backend.decode_greedy(5, 65)
    logits = backend._buffers["logits"]
    copy = backend._cuda.download

    def poisoned(array: np.ndarray, source: Any) -> None:
        if array.dtype == np.float32:
            backend._cuda.fill(logits, 0xFF)
        copy(array, source)

    backend._cuda.download = poisoned  # type: ignore[method-assign]
    backend.decode_greedy(5, 66)
    with pytest.raises(BackendError, match="not finite at position 64"):
        backend.decode_greedy(5, 64)
