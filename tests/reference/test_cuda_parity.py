"""The graphs for CUDA on ONNX Runtime's CPU provider against transformers (eager, fp32), stage by stage.

The backend is the one that runs on a GPU, placed on the CPU. The same pictures, questions and limits as for
`--device cpu`, with networks that compute in fp32; fp16 as it is exported, at fp16's limit. What a graph rounds is put
into the reference as well, so that everything else must agree as closely as in fp32.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import export_bundle
from tests.cuda_graphs import export_in_fp32
from tests.exported_weights import exported_linears
from tests.gptq_packer import GptqPacking, pack_checkpoint, put_in
from tests.reference.oracle import Oracle, photo, relative_error, user_message
from tests.reference.test_parity import CHECKPOINTS, LIMIT, clear_fixture
from tests.reference.test_tensorrt_parity import FLOAT8, GPTQ, ROUNDED, SMALL, one_quick
from varco_export.names import canonical_name
from varco_export.tiny import make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.cuda_backend import CudaBackend
from varco_runtime.image import normalise, packing_plan, tile
from varco_runtime.picture import load_picture
from varco_runtime.prompt import Message

ASYMMETRIC = {"asymmetric": GptqPacking(group_size=64, sym=False)}


def load(checkpoint: Path, bundle: Path, **options: object) -> Varco:
    return Varco.load(export_in_fp32(checkpoint, bundle, **options), provider="cpu", threads=1)


def compare(oracle: Oracle, varco: Varco, size: tuple[int, int], limit: float = LIMIT) -> None:
    """Features, image tokens, logits at every step of a 64-token answer, and the answer itself."""
    backend = varco.backend
    assert isinstance(backend, CudaBackend)
    image = photo(*size, seed=sum(size))
    settings = varco.bundle.manifest.image
    picture = load_picture(image)
    pixel_values = normalise(tile(picture, settings), settings)

    found = backend.features(pixel_values, packing_plan(picture.size_hw, settings))
    error = relative_error(found.patch_features, oracle.patch_features(image))
    assert error < limit, f"vision features differ by {error:.1e}: suspect the patches' order or the dropped pixels"
    error = relative_error(found.image_tokens, oracle.image_tokens(image))
    assert error < limit, f"image tokens differ by {error:.1e}: suspect the packing graph's newline or weights"

    question, reference = clear_fixture(oracle, image)
    ids = varco._prompter.encode([Message("user", question, image=True)], len(found.image_tokens))
    prompt = varco.bundle.manifest.prompt
    all_ids = np.array(ids + reference.token_ids[:-1], dtype=np.int64)
    logits = backend.prefill(PromptInputs(all_ids, prompt.image_token_id, found.packed), 0, len(reference.token_ids))
    varco._memory.forget_sequence()
    error = float(np.abs(logits - reference.logits).max() / np.abs(reference.logits).max())
    assert error < limit, f"logits differ by {error:.1e}: suspect the picture's rows, rotary positions or the caches"
    answer = varco.ask(image, question, max_new_tokens=64)
    assert list(answer.token_ids) == reference.token_ids


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("plain", (640, 480)),
        pytest.param("odd", (336, 1008)),
        pytest.param("tied", (1, 1), marks=pytest.mark.full),
        pytest.param("shrinking", (960, 1168), marks=pytest.mark.full),
        pytest.param("real-geometry", (640, 480), marks=pytest.mark.full),
        pytest.param("plain", (1304, 732), marks=pytest.mark.full),
    ],
)
def test_every_stage_equals_the_reference_in_fp32(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS[name])
    max_context = 8192 if name == "real-geometry" else 512
    compare(Oracle(checkpoint), load(checkpoint, tmp_path / "bundle", max_context=max_context), size)


def test_every_stage_is_near_the_reference_in_fp16(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS["plain"])
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16", max_context=512)
    compare(Oracle(checkpoint), Varco.load(bundle, provider="cpu", threads=1), (640, 480), limit=1e-2)


@pytest.mark.parametrize("decoder", ["int4", pytest.param("int8", marks=pytest.mark.full), "fp8"])
def test_rounded_weights_equal_the_reference_with_the_same_weights(tmp_path: Path, decoder: str) -> None:
    original = make_tiny(tmp_path / "original", ROUNDED)
    varco = load(original, tmp_path / "bundle", decoder=decoder, lm_head=decoder)
    names = {
        str(canonical_name(name)).removesuffix(".weight"): name for name in load_file(original / "model.safetensors")
    }
    rounded = {names[name]: rows for name, rows in exported_linears(varco.bundle.folder, ROUNDED).items()}
    compare(Oracle(put_in(original, tmp_path / "reference", rounded)), varco, (640, 480))


@pytest.mark.parametrize("name", one_quick(GPTQ | ASYMMETRIC, "act-order"))
def test_a_gptq_checkpoint_equals_the_reference_with_its_dequantised_weights(tmp_path: Path, name: str) -> None:
    original = make_tiny(tmp_path / "original", ROUNDED)
    dequantised = pack_checkpoint(original, tmp_path / "packed", (GPTQ | ASYMMETRIC)[name])
    reference = put_in(original, tmp_path / "reference", dequantised)
    compare(Oracle(reference), load(tmp_path / "packed", tmp_path / "bundle"), (640, 480))


@pytest.mark.parametrize("name", one_quick(("weights-alone", "static"), "static"))
def test_an_fp8_checkpoint_equals_the_reference_on_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    """On positions that are no close call to round. Inputs with a scale for each token are left exact on purpose."""
    pytest.importorskip("compressed_tensors", reason="the reference needs compressed-tensors")
    from tests.compressed_packer import CompressedPacking, compress_checkpoint
    from tests.reference.test_quantised_parity import rounding_margin, token_sequences, torch

    compress_checkpoint(make_tiny(tmp_path / "original", SMALL), tmp_path / "packed", CompressedPacking(*FLOAT8[name]))
    oracle = Oracle(tmp_path / "packed")
    varco = load(tmp_path / "packed", tmp_path / "bundle")
    ids = max(itertools.islice(token_sequences(), 40), key=lambda ids: rounding_margin(oracle, ids))
    with torch.no_grad():
        expected = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    inputs = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None)
    assert relative_error(varco.backend.prefill(inputs, 0, len(ids)), expected) < 1e-3


def test_a_conversation_that_rewinds_equals_the_reference(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS["plain"])
    oracle, varco = Oracle(checkpoint), load(checkpoint, tmp_path / "bundle")
    image = photo(300, 200)
    varco.ask(image, "What is this?", max_new_tokens=8)
    answer = varco.ask(image, "And what colour?", max_new_tokens=32)  # the picture's positions are kept
    assert answer.usage.cached_tokens > answer.usage.image_tokens
    reference = oracle.greedy(user_message("And what colour?", image=True), image, 32)
    assert list(answer.token_ids) == reference.token_ids
