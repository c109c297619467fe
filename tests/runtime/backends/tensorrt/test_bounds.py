"""What engines may not exceed on the device: tiles, tokens, positions, memory."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import add_engines, runs
from tests.runtime.backends.tensorrt.conftest import backend_of, shorter
from varco_runtime import Varco
from varco_runtime.errors import ContextError, ImageError

# --- pictures ---------------------------------------------------------------------------------------------------------


def test_tiles_are_encoded_in_batches(varco: Varco, device: Device, image: Image.Image) -> None:
    varco.ask(image, "What is this?", max_new_tokens=1)
    batches = [run["tiles"] for run in runs(device.done, "vision")]
    tiles = next(runs(device.done, "packing"))["tiles"]
    assert batches == [2] * (tiles // 2) + [1] * (tiles % 2)
    assert tiles > 4
    assert len(batches) == len(list(runs(device.done, "projector")))


def test_no_feature_leaves_the_device(varco: Varco, device: Device, image: Image.Image) -> None:
    device.done.clear()
    answer = varco.ask(image, "What is this?", max_new_tokens=4)
    moved = [event[1] for event in device.done if event[0] == "DeviceToHost"]
    assert moved == [4 * varco.bundle.manifest.model.vocab_size] + [8] * 3
    assert answer.usage.image_tokens > 0


def test_a_picture_of_too_many_tiles_is_one_clear_line(changed: Path, device: Device, image: Image.Image) -> None:
    add_engines(changed, max_tiles=3)
    varco = Varco.load(changed)
    with pytest.raises(ImageError, match=r"makes \d+ tiles, these engines take 3\..*--max-tiles"):
        varco.ask(image, "What is this?", max_new_tokens=4)
    assert varco.ask(None, "Hello", max_new_tokens=4).token_ids


def test_a_picture_of_too_many_tokens_is_one_clear_line(changed: Path, device: Device, image: Image.Image) -> None:
    add_engines(changed, shorter("packing", 0, "tokens", 50))
    varco = Varco.load(changed)
    with pytest.raises(ContextError, match=r"makes \d+ image tokens, these engines take 50\."):
        varco.ask(image, "What is this?", max_new_tokens=4)
    assert varco.ask(None, "Hello", max_new_tokens=4).token_ids


def test_fp16_engines_answer_like_their_graphs_do(tiny_checkpoint: Path, tmp_path: Path, device: Device) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "fp16", device="tensorrt", decoder="fp16", max_context=256)
    add_engines(folder)
    varco = Varco.load(folder)
    small = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    assert len(varco.ask(small, "What is this?", max_new_tokens=4).token_ids) == 4
    assert backend_of(varco)._buffers["pixel_values"].num_bytes % 2 == 0


# --- bounds and memory ------------------------------------------------------------------------------------------------


def test_memory_is_allocated_at_loading_and_freed_once(bundle: Path, device: Device, image: Image.Image) -> None:
    varco = Varco.load(bundle)
    allocated = len(device.memory)
    varco.ask(image, "What is this?", max_new_tokens=6)
    assert len(device.memory) == allocated
    backend = backend_of(varco)
    backend._cuda.fill(backend._buffers["logits"], 0)  # work that nobody waits for
    backend.close()
    backend.close()
    device.assert_all_is_freed()


def test_losing_the_model_frees_the_device(bundle: Path, device: Device) -> None:
    varco = Varco.load(bundle)
    varco.ask(None, "Hello", max_new_tokens=4)
    assert device.memory
    del varco
    gc.collect()
    device.assert_all_is_freed()
