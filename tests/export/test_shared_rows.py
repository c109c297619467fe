"""One int8 table for token rows and output head: what is read is what the head holds, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.makers.exported_weights import ExportedDecoder
from tests.makers.manifests import forge, set_at
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BundleError, UsageError

FORMATS = {
    "int4": {"decoder": "int4"},
    "blocks of 64": {"decoder": "int4", "block_size": 64},
    "int8": {"decoder": "int8"},
    "int8 inputs": {"decoder": "int4", "activations": "int8"},
    "fp32 beside int8": {"decoder": "fp32", "lm_head": "int8"},
    "fp16 beside int8": {"decoder": "fp16", "lm_head": "int8"},
}
QWEN3 = {"text": "qwen3", "image_size": 48, "patch_size": 16, "hidden_size": 80, "head_dim": 16, "seed": 5}
"""80 wide, so that the last block of a row is filled up."""


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = TinyOptions(**QWEN3, tie_word_embeddings=True)  # type: ignore[arg-type]
    return make_tiny(tmp_path_factory.mktemp("tied") / "checkpoint", options)


def embedding_of(folder: Path) -> dict[str, object]:
    embedding: dict[str, object] = json.loads((folder / "bundle.json").read_text())["embedding"]
    return embedding


@pytest.mark.parametrize("name", FORMATS)
def test_token_rows_are_the_heads_bit_for_bit(tied: Path, tmp_path: Path, name: str) -> None:
    folder = export_bundle(tied, tmp_path / "bundle", embedding="shared", **FORMATS[name])
    bundle = Bundle.open(folder)
    table = OnnxRuntimeBackend(bundle, 64, threads=1)._embedding
    head = ExportedDecoder(folder).rows("lm_head")
    ids = np.array([0, 7, 513, 514, 7])
    assert np.array_equal(table.rows(ids), head[ids].astype(np.float32))
    host = OnnxRuntimeBackend(Bundle.open(export_bundle(tied, tmp_path / "host", embedding="host")), 64, threads=1)
    assert np.array_equal(table.newline, host._embedding.newline)
    exact = host._embedding.rows(ids)
    assert 0 < np.abs(table.rows(ids) - exact).max() <= np.abs(exact).max() / 127
    assert (folder / "embedding.bin").stat().st_size == 4 * 80
    assert Varco(bundle, OnnxRuntimeBackend(bundle, 64, threads=1)).ask(None, "What?", max_new_tokens=4).text


def test_auto_shares_a_tied_qwen3_head_in_int8_and_nothing_else(tied: Path, tmp_path: Path) -> None:
    assert "head_rows" in embedding_of(export_bundle(tied, tmp_path / "int4", decoder="int4"))
    assert "head_rows" not in embedding_of(export_bundle(tied, tmp_path / "fp32"))
    untied = make_tiny(tmp_path / "untied", TinyOptions(**QWEN3))  # type: ignore[arg-type]
    assert "head_rows" not in embedding_of(export_bundle(untied, tmp_path / "own", decoder="int4"))
    qwen2 = make_tiny(tmp_path / "qwen2", TinyOptions(tie_word_embeddings=True))
    assert "head_rows" not in embedding_of(export_bundle(qwen2, tmp_path / "asked", decoder="int4"))
    assert "head_rows" in embedding_of(export_bundle(qwen2, tmp_path / "shared", decoder="int4", embedding="shared"))


def test_the_graph_and_its_weights_are_those_of_a_bundle_with_rows_of_its_own(tied: Path, tmp_path: Path) -> None:
    own, shared = (
        export_bundle(tied, tmp_path / place, decoder="int4", embedding=place) for place in ("host", "shared")
    )
    for name in ("decoder.onnx", "decoder.onnx.data", "vision.onnx.data"):
        assert (own / name).read_bytes() == (shared / name).read_bytes()


def test_probes_judge_the_rounded_rows(tied: Path, tmp_path: Path) -> None:
    from varco_cli.main import main

    folder = export_bundle(tied, tmp_path / "bundle", decoder="int8", embedding="shared", probes=True)
    assert main(["verify", str(folder), "--numerics"]) == 0
    # The scales of other rows: every embedding is wrong, the head is not.
    document = json.loads((folder / "bundle.json").read_text())
    offset = document["embedding"]["head_rows"]["scales_offset"]
    forge(folder, set_at("embedding/head_rows/scales_offset", offset - 64))
    assert main(["verify", str(folder), "--numerics"]) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "the output head is in fp32, expected int8. Add --decoder int4"),
        ({"decoder": "int4", "lm_head": "int4"}, "the output head is in int4, expected int8."),
    ],
)
def test_another_head_is_refused(tied: Path, tmp_path: Path, options: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match="--embedding shared reads token rows from an int8 output head: ") as refusal:
        export_bundle(tied, tmp_path / "bundle", embedding="shared", **options)
    assert reason in str(refusal.value)


def test_an_untied_head_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"output head is not tied to its token rows\. Leave it out\."):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", embedding="shared", decoder="int4")


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_gpus_hold_rows_of_their_own(tied: Path, tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match=f"--embedding shared does not go with --device {device}"):
        export_bundle(tied, tmp_path / "bundle", embedding="shared", device=device, decoder="int8")


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("values_offset", 1 << 40, "values_offset is 1099511627776, expected rows that end within the file"),
        ("scales_offset", 1 << 40, "scales_offset is 1099511627776, expected rows that end within the file"),
        ("values_offset", -1, "values_offset is -1, expected 0 to"),
        ("file", "vision.onnx.data", "file is 'vision.onnx.data', expected the decoder's weights 'decoder.onnx.data'"),
        ("file", "other.data", "names the file 'other.data', expected a hash of it"),
        ("block_size", 0, "block_size is 0, expected 16 to 256"),
        ("block_size", 17, "block_size is 17, expected one of (32, 64, 128)"),
    ],
)
def test_forged_places_are_refused(tied: Path, tmp_path: Path, key: str, value: object, fault: str) -> None:
    folder = export_bundle(tied, tmp_path / "bundle", decoder="int4")
    forge(folder, set_at(f"embedding/head_rows/{key}", value))
    with pytest.raises(BundleError) as refusal:
        Bundle.open(folder)
    assert fault in str(refusal.value)
