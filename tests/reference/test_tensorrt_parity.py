"""The TensorRT graphs on ONNX Runtime's CPU provider against transformers (eager, fp32), stage by stage.

See `dialect_parity.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import export_bundle
from tests.makers.tensorrt_graphs import GraphBackend
from tests.reference import dialect_parity
from tests.reference.dialect_parity import FLOAT8, GPTQ, compare, one_quick, over_checkpoints, over_decoders
from tests.reference.oracle import Oracle
from tests.reference.test_parity import CHECKPOINTS
from varco_export.tiny import make_tiny
from varco_runtime import Varco
from varco_runtime.bundle.opening import Bundle


def load(checkpoint: Path, bundle: Path, **options: object) -> Varco:
    opened = Bundle.open(export_bundle(checkpoint, bundle, **{"device": "tensorrt", "max_context": 512, **options}))
    return Varco(opened, GraphBackend(opened))


def load_in_fp32(checkpoint: Path, bundle: Path, **options: object) -> Varco:
    varco = load(checkpoint, bundle, vision="fp32", **options)
    assert {component.compute for component in varco.bundle.manifest.components.values()} == {"fp32"}
    return varco


@over_checkpoints
def test_every_stage_equals_the_reference_in_fp32(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    dialect_parity.check_every_stage(load_in_fp32, tmp_path, name, size)


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


@over_decoders
def test_rounded_weights_equal_the_reference_with_the_same_weights(tmp_path: Path, decoder: str) -> None:
    dialect_parity.check_rounded_weights(load_in_fp32, tmp_path, decoder)


@pytest.mark.parametrize("name", one_quick(GPTQ, "act-order"))
def test_a_gptq_checkpoint_equals_the_reference_with_its_dequantised_weights(tmp_path: Path, name: str) -> None:
    dialect_parity.check_gptq(load_in_fp32, tmp_path, GPTQ[name])


@pytest.mark.parametrize("name", one_quick(FLOAT8, "by-token"))
def test_an_fp8_checkpoint_equals_the_reference_on_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    """With inputs rounded to FP8 too, where the checkpoint says so."""
    dialect_parity.check_fp8(load_in_fp32, tmp_path, name)


def test_a_conversation_that_rewinds_equals_the_reference(tmp_path: Path) -> None:
    dialect_parity.check_rewinding(load_in_fp32, tmp_path)
