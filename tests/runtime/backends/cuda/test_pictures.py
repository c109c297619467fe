"""Pictures and token rows on their way to the GPU."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.doubles.recording_onnxruntime import Gpu
from tests.makers.inputs import text_inputs
from tests.runtime.backends.cuda.conftest import VALUE, backend_of
from varco_runtime import Varco
from varco_runtime.backends.cuda.memory import needed_bytes, sizes_of
from varco_runtime.bundle.opening import Bundle, read_manifest
from varco_runtime.errors import ContextError, ShortageError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile


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
    backend.encode(normalize(tiles, settings))
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
            in_time.append(copies.acquire(timeout=600))

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
    monkeypatch.setattr("varco_runtime.backends.cuda.vision.PACK_TOKENS", 10)
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


def test_token_rows_on_the_host_give_the_same_answers(
    host_rows: Path, gpu: Gpu, cpu: Varco, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.PREFILL_TOKENS", 32)
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
