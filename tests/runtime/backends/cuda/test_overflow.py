"""Activations beyond fp16's range: the error says which option to export with. On the CPU, which has fp16 as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import export_bundle
from varco_cli.main import main
from varco_export.tiny import Scales, TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.errors import BackendError

BEYOND_FP16 = TinyOptions(seed=1, dtype="bf16", scales=Scales(mlp=2e4))
"""What the MLPs add to the residual stream is larger than 65,504."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("overflow") / "checkpoint", BEYOND_FP16)


@pytest.mark.parametrize(("decoder", "advice"), [("int4", "--vision bf16"), ("fp16", "--decoder bf16")])
def test_an_overflow_of_fp16_names_the_option_that_helps(
    checkpoint: Path, tmp_path: Path, decoder: str, advice: str
) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder=decoder, max_context=256)
    varco = Varco.load(bundle, provider="cpu", threads=1)
    assert isinstance(varco.backend, CudaBackend)
    for call in (
        lambda: varco.ask(None, "Hello", max_new_tokens=4),
        lambda: varco.ask(None, "Hello", max_new_tokens=4, temperature=0.8),
        lambda: varco.backend.decode_greedy(5, 0),  # type: ignore[attr-defined]
    ):
        with pytest.raises(
            BackendError, match=rf"fp16, which ends at 65,504.*export it again with {advice}\.$"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_probes_that_overflow_name_the_option_that_helps(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export_bundle(
        checkpoint, tmp_path / "bundle", device="cuda", decoder="int4", max_context=2048, probes=True
    )
    assert main(["verify", str(bundle), "--numerics", "--provider", "cpu", "--threads", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "gives numbers that are not finite, first in decoder, text. The bundle computes in fp16" in line
    assert line.endswith("with --vision bf16.")
