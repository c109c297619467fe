"""The graphs for CUDA on ONNX Runtime's CPU provider against transformers (eager, fp32), stage by stage.

The backend is the one that runs on a GPU, placed on the CPU, with networks that compute in fp32; and in fp16, as they
are exported, at fp16's limit. See `dialect_parity.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import export_bundle
from tests.makers.cuda_graphs import export_in_fp32
from tests.makers.gptq_packer import GptqPacking
from tests.reference import dialect_parity
from tests.reference.dialect_parity import GPTQ, one_quick, over_checkpoints, over_decoders
from tests.reference.oracle import Oracle
from tests.reference.test_parity import CHECKPOINTS, LIMIT
from varco_export.tiny import make_tiny
from varco_runtime import Varco
from varco_runtime.backends.cuda.backend import CudaBackend

PACKINGS = {**GPTQ, "asymmetric": GptqPacking(group_size=64, sym=False)}


def load(checkpoint: Path, bundle: Path, **options: object) -> Varco:
    varco = Varco.load(export_in_fp32(checkpoint, bundle, **options), provider="cpu", threads=1)
    assert isinstance(varco.backend, CudaBackend)
    return varco


def compare(oracle: Oracle, varco: Varco, size: tuple[int, int], limit: float = LIMIT) -> None:
    assert isinstance(varco.backend, CudaBackend)
    dialect_parity.compare(oracle, varco, size, limit)


@over_checkpoints
def test_every_stage_equals_the_reference_in_fp32(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    dialect_parity.check_every_stage(load, tmp_path, name, size)


def test_every_stage_is_near_the_reference_in_fp16(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS["plain"])
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16", max_context=512)
    compare(Oracle(checkpoint), Varco.load(bundle, provider="cpu", threads=1), (640, 480), limit=1e-2)


@over_decoders
def test_rounded_weights_equal_the_reference_with_the_same_weights(tmp_path: Path, decoder: str) -> None:
    dialect_parity.check_rounded_weights(load, tmp_path, decoder)


@pytest.mark.parametrize("name", one_quick(PACKINGS, "act-order"))
def test_a_gptq_checkpoint_equals_the_reference_with_its_dequantised_weights(tmp_path: Path, name: str) -> None:
    dialect_parity.check_gptq(load, tmp_path, PACKINGS[name])


@pytest.mark.parametrize("name", one_quick(("weights-alone", "static"), "static"))
def test_an_fp8_checkpoint_equals_the_reference_on_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    """Inputs with a scale for each token are left exact on purpose."""
    dialect_parity.check_fp8(load, tmp_path, name)


def test_a_conversation_that_rewinds_equals_the_reference(tmp_path: Path) -> None:
    dialect_parity.check_rewinding(load, tmp_path)
