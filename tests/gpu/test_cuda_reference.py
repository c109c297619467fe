"""The CUDA provider against transformers on the same checkpoints, stage by stage."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the reference needs torch")
pytest.importorskip("transformers", reason="the reference needs transformers")

from tests.conftest import export_bundle
from tests.reference.oracle import Oracle
from tests.reference.test_cuda_parity import compare
from tests.reference.test_parity import CHECKPOINTS
from varco_export.tiny import make_tiny
from varco_runtime import Varco


@pytest.mark.parametrize("name", ["plain", "shrinking"])
def test_every_stage_is_near_the_reference_in_fp16(place: str, tmp_path: Path, name: str) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", CHECKPOINTS[name])
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16", max_context=512)
    compare(Oracle(checkpoint), Varco.load(bundle, provider=place), (640, 480), limit=1e-2)
