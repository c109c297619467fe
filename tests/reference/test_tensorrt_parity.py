"""The TensorRT graphs on ONNX Runtime's CPU provider against transformers (eager, fp32), stage by stage.

The same pictures, questions and limits as for the other dialect (`test_parity.py`). What a graph rounds (weights to
int4, int8 or FP8) is put into the reference as well, so that everything else must agree as closely as in fp32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import export_bundle
from tests.exported_weights import exported_linears
from tests.gptq_packer import GptqPacking, pack_checkpoint, put_in
from tests.reference.oracle import Oracle, photo, relative_error, user_message
from tests.reference.test_parity import CHECKPOINTS, LIMIT, clear_fixture
from tests.tensorrt_graphs import GraphBackend
from varco_export.names import canonical_name
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.bundle import Bundle
from varco_runtime.image import normalise, packing_plan, tile
from varco_runtime.picture import load_picture
from varco_runtime.prompt import Message

ROUNDED = TinyOptions(seed=31, hidden_size=128, num_attention_heads=8, intermediate_size=192, vocab_size=520)
SMALL = TinyOptions(seed=32, hidden_size=64, num_attention_heads=4, intermediate_size=96, vocab_size=520)


def one_quick(names: Iterable[str], quick: str) -> list[Any]:
    """All names, but only one of them in the quick run."""
    return [pytest.param(name, marks=[] if name == quick else [pytest.mark.full]) for name in names]


def load(checkpoint: Path, bundle: Path, **options: object) -> Varco:
    opened = Bundle.open(export_bundle(checkpoint, bundle, **{"device": "tensorrt", "max_context": 512, **options}))
    return Varco(opened, GraphBackend(opened))


def compare(oracle: Oracle, varco: Varco, size: tuple[int, int], limit: float = LIMIT) -> None:
    """Features, image tokens, logits at every step of a 64-token answer, and the answer itself."""
    backend = varco.backend
    assert isinstance(backend, GraphBackend)
    image = photo(*size, seed=sum(size))
    settings = varco.bundle.manifest.image
    picture = load_picture(image)
    pixel_values = normalise(tile(picture, settings), settings)

    error = relative_error(backend.patch_features(pixel_values), oracle.patch_features(image))
    assert error < limit, f"vision features differ by {error:.1e}: suspect attention's heads, GELU or the patch order"
    tokens = backend.pack(backend.encode(pixel_values), packing_plan(picture.size_hw, settings))
    error = relative_error(tokens, oracle.image_tokens(image))
    assert error < limit, f"image tokens differ by {error:.1e}: suspect the packing graph's newline or weights"

    question, reference = clear_fixture(oracle, image)
    ids = varco._prompter.encode([Message("user", question, image=True)], len(tokens))
    prompt = varco.bundle.manifest.prompt
    all_ids = np.array(ids + reference.token_ids[:-1], dtype=np.int64)
    logits = backend.prefill(PromptInputs(all_ids, prompt.image_token_id, tokens), 0, len(reference.token_ids))
    varco._memory.forget_sequence()
    error = float(np.abs(logits - reference.logits).max() / np.abs(reference.logits).max())
    assert error < limit, f"logits differ by {error:.1e}: suspect rotary positions, the mask or the caches"
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
    compare(Oracle(checkpoint), load(checkpoint, tmp_path / "bundle", decoder="fp32", max_context=max_context), size)


def test_every_stage_is_near_the_reference_in_fp16(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS["plain"])
    compare(Oracle(checkpoint), load(checkpoint, tmp_path / "bundle", decoder="fp16"), (640, 480), limit=1e-2)


def test_a_bf16_checkpoint_computes_in_bf16_with_its_very_weights(tmp_path: Path) -> None:
    """Widened to fp32, as the CPU provider has no bf16 products (Conv, MatMul): what is left out is their rounding.

    What is left is the rounding of the rotary tables, which the reference does too when it computes in bf16.
    """
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS["odd"])
    varco = load(checkpoint, tmp_path / "bundle")
    assert {component.compute for component in varco.bundle.manifest.components.values()} == {"bf16"}
    compare(Oracle(checkpoint), varco, (480, 640), limit=1e-2)


@pytest.mark.parametrize("decoder", ["int4", pytest.param("int8", marks=pytest.mark.full), "fp8"])
def test_rounded_weights_equal_the_reference_with_the_same_weights(tmp_path: Path, decoder: str) -> None:
    original = make_tiny(tmp_path / "original", ROUNDED)
    varco = load(original, tmp_path / "bundle", decoder=decoder, lm_head=decoder, vision="fp32")
    names = {
        str(canonical_name(name)).removesuffix(".weight"): name for name in load_file(original / "model.safetensors")
    }
    rounded = {names[name]: rows for name, rows in exported_linears(varco.bundle.folder, ROUNDED).items()}
    compare(Oracle(put_in(original, tmp_path / "reference", rounded)), varco, (640, 480))


GPTQ = {
    "groups": GptqPacking(group_size=64),
    "act-order": GptqPacking(act_order=True, apart=True),
    "one-group-8-bits": GptqPacking(bits=8, group_size=-1),
    "exclusions": GptqPacking(plain=("k_proj", "down_proj"), overrides={"up_proj": {"bits": 8}}, lm_head=True),
}


@pytest.mark.parametrize("name", one_quick(GPTQ, "act-order"))
def test_a_gptq_checkpoint_equals_the_reference_with_its_dequantised_weights(tmp_path: Path, name: str) -> None:
    original = make_tiny(tmp_path / "original", ROUNDED)
    dequantised = pack_checkpoint(original, tmp_path / "packed", GPTQ[name])
    reference = put_in(original, tmp_path / "reference", dequantised)
    compare(Oracle(reference), load(tmp_path / "packed", tmp_path / "bundle", vision="fp32"), (640, 480))


FP8 = {"num_bits": 8, "type": "float"}
TOKEN = {**FP8, "strategy": "token", "dynamic": True}
FLOAT8 = {
    "weights-alone": ({**FP8, "strategy": "channel"}, None),
    "by-token": ({**FP8, "strategy": "channel"}, TOKEN),
    "static": ({**FP8, "strategy": "tensor"}, {**FP8, "strategy": "tensor"}),
}


@pytest.mark.parametrize("name", one_quick(FLOAT8, "by-token"))
def test_an_fp8_checkpoint_equals_the_reference_on_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    """With inputs rounded to FP8 too, where the checkpoint says so: on positions that are no close call to round."""
    pytest.importorskip("compressed_tensors", reason="the reference needs compressed-tensors")
    from tests.compressed_packer import CompressedPacking, compress_checkpoint
    from tests.reference.test_quantised_parity import rounding_margin, token_sequences, torch

    compress_checkpoint(make_tiny(tmp_path / "original", SMALL), tmp_path / "packed", CompressedPacking(*FLOAT8[name]))
    oracle = Oracle(tmp_path / "packed")
    varco = load(tmp_path / "packed", tmp_path / "bundle", vision="fp32")
    ids = max(itertools.islice(token_sequences(), 40), key=lambda ids: rounding_margin(oracle, ids))
    with torch.no_grad():
        expected = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    inputs = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None)
    assert relative_error(varco.backend.prefill(inputs, 0, len(ids)), expected) < 1e-3


def test_a_conversation_that_rewinds_equals_the_reference(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS["plain"])
    oracle, varco = Oracle(checkpoint), load(checkpoint, tmp_path / "bundle", decoder="fp32")
    image = photo(300, 200)
    varco.ask(image, "What is this?", max_new_tokens=8)
    answer = varco.ask(image, "And what colour?", max_new_tokens=32)  # the picture's positions are kept
    assert answer.usage.cached_tokens > answer.usage.image_tokens
    reference = oracle.greedy(user_message("And what colour?", image=True), image, 32)
    assert list(answer.token_ids) == reference.token_ids
