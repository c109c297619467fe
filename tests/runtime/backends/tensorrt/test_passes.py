"""Prefill and decode steps of engines, call by call, against a double of CUDA and TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import RTX_VERSION, add_engines, runs
from tests.makers.inputs import text_inputs
from tests.runtime.backends.tensorrt.conftest import MAX_CONTEXT, backend_of
from varco_runtime import Varco
from varco_runtime.errors import BackendError

# --- prefill ----------------------------------------------------------------------------------------------------------


def test_a_chunk_computes_no_more_logits_than_the_engine_allows(varco: Varco, device: Device) -> None:
    device.done.clear()
    varco.backend.prefill(text_inputs(varco, 70), 0, num_logits=6)
    lengths = [(run["sequence"], run["total"], run["num_logits"]) for run in runs(device.done, "decoder")]
    assert lengths == [(32, 32, 1), (32, 64, 1), (4, 68, 4), (2, 70, 2)]


def test_what_a_rewind_leaves_behind_is_zeroed(varco: Varco, device: Device) -> None:
    varco.backend.prefill(text_inputs(varco, 90), 0)
    varco.backend.prefill(text_inputs(varco, 60), 30)
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
