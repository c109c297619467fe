"""Graphs for devices on ONNX Runtime's CPU provider against transformers (eager, fp32), stage by stage.

What holds for the graphs of every device: the same pictures, questions and limits as for `--device cpu`
(`test_parity.py`). What a graph rounds (weights to int4, int8 or FP8) is put into the reference as well, so that
everything else must agree as closely as in fp32. A check gets `load(checkpoint, bundle, **options)`, which exports with
networks that compute in fp32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.makers.exported_weights import exported_linears
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint, put_in
from tests.reference.oracle import Oracle, photo, relative_error
from tests.reference.test_parity import CHECKPOINTS, LIMIT, clear_fixture
from varco_export.reading.names import canonical_name
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, ShowsFeatures
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile
from varco_runtime.prompt.prompter import IMAGE, Message

Load = Callable[..., Varco]

ROUNDED = TinyOptions(seed=31, hidden_size=128, num_attention_heads=8, intermediate_size=192, vocab_size=520)
SMALL = TinyOptions(seed=32, hidden_size=64, num_attention_heads=4, intermediate_size=96, vocab_size=520)
QWEN3 = replace(ROUNDED, text="qwen3", patch_size=16, head_dim=32)
"""Heads that are together twice as wide as the model."""

GPTQ = {
    "groups": GptqPacking(group_size=64),
    "act-order": GptqPacking(act_order=True, apart=True),
    "one-group-8-bits": GptqPacking(bits=8, group_size=-1),
    "exclusions": GptqPacking(plain=("k_proj", "down_proj"), overrides={"up_proj": {"bits": 8}}, lm_head=True),
}
_FP8 = {"num_bits": 8, "type": "float"}
_TOKEN = {**_FP8, "strategy": "token", "dynamic": True}
FLOAT8 = {
    "weights-alone": ({**_FP8, "strategy": "channel"}, None),
    "by-token": ({**_FP8, "strategy": "channel"}, _TOKEN),
    "static": ({**_FP8, "strategy": "tensor"}, {**_FP8, "strategy": "tensor"}),
}


def one_quick(names: Iterable[str], quick: str) -> list[Any]:
    """All names, but only one of them in the quick run."""
    return [pytest.param(name, marks=[] if name == quick else [pytest.mark.full]) for name in names]


over_checkpoints = pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("plain", (640, 480)),
        pytest.param("odd", (336, 1008)),
        pytest.param("tied", (1, 1), marks=pytest.mark.full),
        pytest.param("shrinking", (960, 1168), marks=pytest.mark.full),
        pytest.param("real-geometry", (640, 480), marks=pytest.mark.full),
        pytest.param("plain", (1304, 732), marks=pytest.mark.full),
        pytest.param("qwen3-wide-heads", (336, 1008)),
        pytest.param("qwen3-tied", (1, 1), marks=pytest.mark.full),
        pytest.param("qwen3", (640, 480), marks=pytest.mark.full),
        pytest.param("qwen3-geometry", (640, 480), marks=pytest.mark.full),
    ],
)
over_decoders = pytest.mark.parametrize("decoder", ["int4", pytest.param("int8", marks=pytest.mark.full), "fp8"])


def compare(oracle: Oracle, varco: Varco, size: tuple[int, int], limit: float = LIMIT) -> None:
    """Features, image tokens, logits at every step of a 64-token answer, and the answer itself."""
    backend = varco.backend
    assert isinstance(backend, ShowsFeatures)
    image = photo(*size, seed=sum(size))
    settings = varco.bundle.manifest.image
    picture = load_picture(image)
    pixel_values = normalize(tile(picture, settings), settings)

    found = backend.features(pixel_values, packing_plan(picture.size_hw, settings))
    error = relative_error(found.patch_features, oracle.patch_features(image))
    assert error < limit, f"vision features differ by {error:.1e}: suspect attention's heads, GELU or the patches"
    error = relative_error(found.image_tokens, oracle.image_tokens(image))
    assert error < limit, f"image tokens differ by {error:.1e}: suspect the packing graph's newline or weights"

    question, reference = clear_fixture(oracle, image)
    ids = varco.session.prompter.encode([Message("user", (IMAGE, question))], len(found.image_tokens))
    prompt = varco.bundle.manifest.prompt
    all_ids = np.array(ids + reference.token_ids[:-1], dtype=np.int64)
    logits = backend.prefill(PromptInputs(all_ids, prompt.image_token_id, found.packed), 0, len(reference.token_ids))
    varco.session.memory.forget_sequence()
    error = relative_error(logits, reference.logits)
    assert error < limit, f"logits differ by {error:.1e}: suspect the picture's rows, rotary positions or the caches"
    answer = varco.ask(image, question, max_new_tokens=64, long_side=0)
    # In 16 bits some choices are closer than the rounding: the answers are the same up to the first of them.
    close = reference.margins <= 2 * np.abs(logits - reference.logits).max()
    num_clear = int(close.argmax()) if close.any() else len(close)
    assert num_clear == 64 or limit > LIMIT, f"a close call at token {num_clear}"
    assert list(answer.token_ids[:num_clear]) == reference.token_ids[:num_clear]


def check_every_stage(load: Load, folder: Path, name: str, size: tuple[int, int]) -> None:
    checkpoint = make_tiny(folder / "checkpoint", CHECKPOINTS[name])
    max_context = 8192 if name.endswith("-geometry") else 512
    compare(Oracle(checkpoint), load(checkpoint, folder / "bundle", max_context=max_context), size)


def check_rounded_weights(load: Load, folder: Path, decoder: str, options: TinyOptions = ROUNDED) -> None:
    original = make_tiny(folder / "original", options)
    varco = load(original, folder / "bundle", decoder=decoder, lm_head=decoder)
    names = {
        str(canonical_name(name)).removesuffix(".weight"): name for name in load_file(original / "model.safetensors")
    }
    rounded = {names[name]: rows for name, rows in exported_linears(varco.bundle.folder, options).items()}
    compare(Oracle(put_in(original, folder / "reference", rounded)), varco, (640, 480))


def check_gptq(load: Load, folder: Path, packing: GptqPacking, options: TinyOptions = ROUNDED) -> None:
    original = make_tiny(folder / "original", options)
    dequantised = pack_checkpoint(original, folder / "packed", packing)
    reference = put_in(original, folder / "reference", dequantised)
    compare(Oracle(reference), load(folder / "packed", folder / "bundle"), (640, 480))


def check_fp8(load: Load, folder: Path, name: str, options: TinyOptions = SMALL) -> None:
    """On positions that are no close call to round."""
    pytest.importorskip("compressed_tensors", reason="the reference needs compressed-tensors")
    from tests.makers.compressed_packer import CompressedPacking, compress_checkpoint
    from tests.reference.test_quantised_parity import rounding_margin, token_sequences, torch

    compress_checkpoint(make_tiny(folder / "original", options), folder / "packed", CompressedPacking(*FLOAT8[name]))
    oracle = Oracle(folder / "packed")
    varco = load(folder / "packed", folder / "bundle")
    ids = max(itertools.islice(token_sequences(), 40), key=lambda ids: rounding_margin(oracle, ids))
    with torch.no_grad():
        expected = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    inputs = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None)
    assert relative_error(varco.backend.prefill(inputs, 0, len(ids)), expected) < 1e-3


def check_rewinding(load: Load, folder: Path, name: str = "plain") -> None:
    checkpoint = make_tiny(folder / "checkpoint", CHECKPOINTS[name])
    oracle, varco = Oracle(checkpoint), load(checkpoint, folder / "bundle")
    image = photo(300, 200)
    varco.ask(image, "What is this?", max_new_tokens=8)
    question, reference = clear_fixture(oracle, image)
    answer = varco.ask(image, question, max_new_tokens=64, long_side=0)
    assert answer.usage.cached_tokens > answer.usage.image_tokens, "the picture's positions are not kept"
    assert list(answer.token_ids) == reference.token_ids
