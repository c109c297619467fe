"""Rotated and rounded checkpoints: read bit for bit by the exporter, by transformers alike, proven by their probes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("quantising needs the extra 'quantize'", allow_module_level=True)

import torch

from tests.export.quantize.test_quantize import Quiet
from tests.makers.broken import _Weights, broken
from tests.makers.exported_weights import export_exactly
from tests.makers.probes import OPTIONS, checks_of, failed
from tests.reference.oracle import Oracle, relative_error, user_message
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.export import ExportOptions, export
from varco_export.quantize import QuantizeOptions, quantize
from varco_export.quantize.hadamard import Rotation
from varco_export.quantize.quantizer import _prepare
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.bundle.opening import read_manifest

PROMPT = "What is in the picture?"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    lines = [{"prompt": f"Question {n}?", "answer": "It is so, and not so. " * (n % 5 + 1)} for n in range(20)]
    (folder / "calibration.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


FORMATS: dict[str, dict[str, Any]] = {
    "int4": {},
    "int4, int4 head": {"lm_head": "int4"},
    "int4, int8 head, zero points": {"lm_head": "int8", "symmetric": False},
    "int8": {"bits": 8},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_rotated_and_rounded_checkpoint_gives_transformers_logits_here(
    texts: Path, tmp_path: Path, name: str
) -> None:
    source = make_tiny(tmp_path / "source", TinyOptions(seed=9, tie_word_embeddings=True))
    options = QuantizeOptions("gptq", texts, group_size=32, **FORMATS[name])
    quantize(source, tmp_path / "out", options, Quiet())
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert ("lm_head" in checkpoint.quantized) == ("head" in name)
    oracle, varco = Oracle(tmp_path / "out"), Varco.load(export_exactly(tmp_path / "out", tmp_path / "b"), threads=1)
    ids = np.random.default_rng(0).integers(0, 256, 24)
    with torch.no_grad():
        expected = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    got = varco.backend.prefill(PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None), 0, len(ids))
    assert relative_error(got, expected[-len(got) :]) < 1e-3


def test_the_kl_that_a_run_tells_is_transformers(texts: Path, tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "source", TinyOptions(seed=9))
    options = QuantizeOptions("gptq", texts, group_size=32, lm_head="int4")
    made = quantize(source, tmp_path / "out", options, Quiet())
    (held,) = _prepare(source, options, Quiet())[1].held
    found = []
    for folder in (source, tmp_path / "out"):
        with torch.no_grad():
            logits = Oracle(folder).model(input_ids=torch.tensor([held.ids])).logits[0]
        found.append(torch.log_softmax(logits.double(), -1))
    ours, theirs = found
    expected = float((ours.exp() * (ours - theirs)).sum(-1).mean())
    assert made.report["kl_tokens"] == len(held.ids)
    assert made.report["kl_nats_per_token"] == pytest.approx(expected, rel=2e-3)


def test_massive_channels_that_overflow_in_fp16_fit_once_they_are_rotated(tmp_path: Path) -> None:
    """A few channels of the stream take values beyond fp16's 65,504, as Qwen2.5's do for some tokens."""
    source = make_tiny(tmp_path / "source", TinyOptions(seed=4, hidden_size=256, num_attention_heads=4))
    from tests.export.quantize.test_rotation import change

    def massive(weight: np.ndarray[Any, Any]) -> None:
        weight[[3, 100]] *= 30_000

    change(source, "language_model.model.layers.0.mlp.down_proj.weight", massive)
    quantize(source, tmp_path / "out", QuantizeOptions("none"), Quiet())
    largest, is_finite = list[float](), list[bool]()
    for folder in (source, tmp_path / "out"):
        oracle = Oracle(folder)
        ids = torch.tensor([oracle.prompt_ids(user_message(PROMPT, False), None)])
        with torch.no_grad():
            states = oracle.model(input_ids=ids, output_hidden_states=True).hidden_states[1]
            is_finite.append(bool(oracle.model.half()(input_ids=ids).logits.isfinite().all()))
        largest.append(float(states.abs().max()))
    assert largest[0] > 65_504
    assert largest[1] < largest[0] / 5
    assert is_finite == [False, True]


# --- probes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("probes") / "source", OPTIONS)


@pytest.fixture(scope="module")
def turned(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the rotated checkpoint, with probes."""
    folder = tmp_path_factory.mktemp("turned")
    quantize(original, folder / "out", QuantizeOptions("none"), Quiet())
    export(folder / "out", folder / "bundle", ExportOptions(decoder="int8", probes=True))
    return folder / "bundle"


def plain_newline(original: Path) -> Callable[[Path], None]:
    """image_newline as it was before the rotation."""

    def fault(folder: Path) -> None:
        manifest = read_manifest(folder)
        assert manifest.embedding is not None
        path = folder / manifest.embedding.file
        content = path.read_bytes()
        row = Checkpoint.open(original).tensor("image_newline").read().tobytes()
        path.write_bytes(content[: -len(row)] + row)

    return fault


def plain_bias(original: Path) -> Callable[[Path], None]:
    """The bias of the projector's last linear as it was."""

    def fault(folder: Path) -> None:
        with _Weights(folder, "projector") as weights:
            (name,) = (name for name in weights.places if "linear_2" in name and name.endswith("bias"))
            weights.write(name, Checkpoint.open(original).tensor("multi_modal_projector.linear_2.bias").read())

    return fault


def plain_output(original: Path) -> Callable[[Path], None]:
    """One o_proj whose outputs are as they were: R^T is taken off again."""
    from varco_export.dialects.linear import quantize_rows
    from varco_export.quantized.integers import unpack

    def fault(folder: Path) -> None:
        name = "language_model.layers.1.self_attn.o_proj"
        with _Weights(folder, "decoder") as weights:
            packed, scales = weights.read(f"{name}.weight_int8"), weights.read(f"{name}.scales")
            values = unpack(packed, 8, packed.shape[2]).astype(np.float32) - 128
            width = packed.shape[0]
            matrix = (values * scales.reshape(*values.shape[:2], 1)).reshape(width, -1)
            inverse = np.linalg.inv(Rotation(width, 0).turn(np.eye(width))).T  # orthogonal: R again
            rounded, new = quantize_rows((inverse @ matrix).astype(np.float32), 8, values.shape[2])
            weights.write(f"{name}.weight_int8", rounded.reshape(packed.shape))
            weights.write(f"{name}.scales", new.reshape(scales.shape))

    return fault


def test_verify_passes_a_bundle_of_a_rotated_checkpoint(turned: Path) -> None:
    assert failed(checks_of(turned)) == []


@pytest.mark.parametrize("fault", [plain_newline, plain_bias, plain_output])
def test_verify_finds_a_rotation_that_is_left_out(
    original: Path, turned: Path, tmp_path: Path, fault: Callable[[Path], Callable[[Path], None]]
) -> None:
    assert failed(checks_of(broken(turned, tmp_path / "broken", fault(original))))


def test_verify_passes_a_bundle_that_is_rotated_and_rounded(original: Path, texts: Path, tmp_path: Path) -> None:
    options = QuantizeOptions("gptq", texts, group_size=32, lm_head="int4")
    quantize(original, tmp_path / "out", options, Quiet())
    export(tmp_path / "out", tmp_path / "bundle", ExportOptions(activations="int8", probes=True))
    assert failed(checks_of(tmp_path / "bundle")) == []
