"""Bundles of quantised checkpoints against transformers: the same checkpoint, or its dequantised weights put in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.makers.exported_weights import export_exactly
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint, put_in, write_config
from tests.reference.oracle import Oracle, photo, relative_error, user_message
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile
from varco_runtime.prompt.prompter import IMAGE, Message

torch = pytest.importorskip("torch", reason="the reference needs torch")
pytest.importorskip("compressed_tensors", reason="the reference needs compressed-tensors")

from tests.makers.compressed_packer import CompressedPacking, compress_checkpoint  # noqa: E402

Array = np.ndarray[Any, Any]
TINY = TinyOptions(seed=21, hidden_size=128, num_attention_heads=8, intermediate_size=256, vocab_size=520)
SMALL = TinyOptions(seed=22, hidden_size=64, num_attention_heads=4, intermediate_size=96, vocab_size=520)
LIMIT = 1e-3
CLEAR_MARGIN = 2e-6
FP8 = {"num_bits": 8, "type": "float"}
TOKEN = {**FP8, "strategy": "token", "dynamic": True}
GROUP = {"num_bits": 4, "strategy": "group", "group_size": 64}

ODD = TinyOptions(seed=23, hidden_size=96, num_attention_heads=6, intermediate_size=200, vocab_size=520)
"""Input features that no block of 128 divides, and a short last group."""

GPTQ = {
    "symmetric": GptqPacking(group_size=64),
    "asymmetric-act-order": GptqPacking(sym=False, act_order=True),
    "8-bits-v2": GptqPacking(bits=8, version=2, sym=False, group_size=-1),
    "apart-head": GptqPacking(act_order=True, apart=True, lm_head=True),
    "exclusions": GptqPacking(plain=("k_proj", "down_proj"), overrides={"up_proj": {"bits": 8}}),
}
COMPRESSED = {
    "w4a16": CompressedPacking(GROUP),
    "w4a16-asymmetric": CompressedPacking({**GROUP, "symmetric": False}),
    "w8a16-channel": CompressedPacking({"num_bits": 8, "strategy": "channel"}),
}
FLOAT8 = {
    "weights-alone": CompressedPacking({**FP8, "strategy": "channel"}),
    "dynamic": CompressedPacking({**FP8, "strategy": "channel"}, TOKEN),
    "dynamic-tensor": CompressedPacking({**FP8, "strategy": "tensor"}, TOKEN),
    "static": CompressedPacking({**FP8, "strategy": "tensor"}, {**FP8, "strategy": "tensor"}),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("quantised") / "original", TINY)


def logits_of_both(reference: Path, packed: Path, bundle: Path) -> tuple[Array, Array]:
    """Logits at every step of the reference's answer, ours under teacher forcing."""
    image = photo(100, 37)
    question = "What is this?"
    oracle = Oracle(reference)
    greedy = oracle.greedy(user_message(question, image=True), image, 12)
    varco = Varco.load(export_exactly(packed, bundle, activations="float"), threads=1)
    settings = varco.bundle.manifest.image
    picture = load_picture(image)
    pixel_values = normalize(tile(picture, settings), settings)
    tokens = varco.backend.pack(varco.backend.encode(pixel_values), packing_plan(picture.size_hw, settings))
    ids = varco.session.prompter.encode([Message("user", (IMAGE, question))], len(tokens))
    assert ids == greedy.prompt_ids
    all_ids = np.array(ids + greedy.token_ids[:-1], dtype=np.int64)
    inputs = PromptInputs(all_ids, varco.bundle.manifest.prompt.image_token_id, tokens)
    return varco.backend.prefill(inputs, 0, len(greedy.token_ids)), greedy.logits


@pytest.mark.parametrize("name", GPTQ)
def test_a_gptq_bundle_equals_transformers_with_the_dequantised_weights(
    original: Path, tmp_path: Path, name: str
) -> None:
    dequantised = pack_checkpoint(original, tmp_path / "packed", GPTQ[name])
    reference = put_in(original, tmp_path / "reference", dequantised)
    got, expected = logits_of_both(reference, tmp_path / "packed", tmp_path / "bundle")
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize("group_size", [32, 48, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_that_do_not_divide_the_input_are_filled_up(tmp_path: Path, group_size: int, bits: int) -> None:
    original = make_tiny(tmp_path / "original", ODD)
    packing = GptqPacking(bits=bits, group_size=group_size, sym=False, act_order=True)
    dequantised = pack_checkpoint(original, tmp_path / "packed", packing)
    reference = put_in(original, tmp_path / "reference", dequantised)
    got, expected = logits_of_both(reference, tmp_path / "packed", tmp_path / "bundle")
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_bundle_equals_transformers_on_the_same_checkpoint(
    original: Path, tmp_path: Path, name: str
) -> None:
    compress_checkpoint(original, tmp_path / "packed", COMPRESSED[name])
    packed = tmp_path / "packed"
    got, expected = logits_of_both(packed, packed, tmp_path / "bundle")
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize("name", FLOAT8)
def test_an_fp8_bundle_equals_transformers_on_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    """Transformers rounds weights and inputs as the checkpoint says."""
    compress_checkpoint(make_tiny(tmp_path / "original", SMALL), tmp_path / "packed", FLOAT8[name])
    oracle = Oracle(tmp_path / "packed")
    varco = Varco.load(export_exactly(tmp_path / "packed", tmp_path / "bundle"), threads=1)
    ids = next(ids for ids in token_sequences() if rounding_margin(oracle, ids) > CLEAR_MARGIN)
    with torch.no_grad():
        expected = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    inputs = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None)
    assert relative_error(varco.backend.prefill(inputs, 0, len(ids)), expected) < LIMIT


def token_sequences() -> Iterator[Array]:
    for seed in range(100):
        yield np.random.default_rng(seed).integers(0, 256, 12)


def rounding_margin(oracle: Oracle, ids: Array) -> float:
    """How close the reference's inputs come to the middle between two FP8 values, relative to the input.

    Beside the middle, the last bit of an fp32 sum decides which way an input is rounded, a step of up to an eighth.
    """
    margins = [np.inf]

    def measure(module: Any, args: tuple[Any, ...]) -> None:
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.input_activations is None:
            return
        x = args[0].double()
        scale = x.abs().amax(-1, keepdim=True) / 448 if scheme.input_activations.dynamic else module.input_scale
        x = (x / scale).abs().clamp(max=448)
        step = torch.exp2(torch.floor(torch.log2(x.clamp(min=2**-6))) - 3)
        middle = (x / step - torch.floor(x / step) - 0.5).abs() * step
        inside = (x > 2**-10) & (x < 448)
        margins.append(float((middle / x)[inside].min()))

    hooks = [module.register_forward_pre_hook(measure) for module in oracle.model.modules()]
    with torch.no_grad():
        oracle.model(input_ids=torch.from_numpy(ids)[None])
    for hook in hooks:
        hook.remove()
    return min(margins)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A16", "FP8_DYNAMIC"])
def test_what_llm_compressor_saves_equals_transformers(tmp_path: Path, scheme: str) -> None:
    llmcompressor = pytest.importorskip("llmcompressor", reason="the packer needs llmcompressor")
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import LlavaOnevisionForConditionalGeneration

    original, packed = make_tiny(tmp_path / "original", TINY), tmp_path / "packed"
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(original, dtype=torch.float32)
    ignore = ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head"]
    llmcompressor.oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=ignore))
    model.save_pretrained(packed, save_compressed=True)
    for file in original.iterdir():
        if not (packed / file.name).exists():
            (packed / file.name).write_bytes(file.read_bytes())
    varco = Varco.load(export_exactly(packed, tmp_path / "bundle"), threads=1)
    # The library saves `ignore` with names that transformers 5.17 does not find again; patterns it does.
    config = json.loads((packed / "config.json").read_text())
    write_config(packed, config["quantization_config"] | {"ignore": ignore})
    oracle = Oracle(packed)
    ids = next(ids for ids in token_sequences() if rounding_margin(oracle, ids) > CLEAR_MARGIN)
    with torch.no_grad():
        expected = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    inputs = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None)
    assert relative_error(varco.backend.prefill(inputs, 0, len(ids)), expected) < LIMIT
