"""What OpenVINO says that it runs: `varco inspect --kernels --provider openvino`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import varco_runtime
from varco_cli.main import main
from varco_runtime.backends.openvino.runtime_model import runtime_layers
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.bundle.opening import Bundle

DEMO_BUNDLE = Path(varco_runtime.__file__).parent / "demo_bundle"
SHOWN = ["--kernels", "--provider", "openvino"]


def test_every_layer_is_counted_in_the_type_that_was_asked_for(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    layers = runtime_layers(bundle, OpenVinoSettings(precision="fp32"), 1)
    assert {layer.network for layer in layers} == {"vision", "projector", "decoder"}
    attention = [layer for layer in layers if layer.operator in ("ScaledDotProductAttention", "PagedAttention")]
    in_decoder = [layer for layer in attention if layer.network == "decoder"]
    assert [(layer.operator, layer.nodes) for layer in in_decoder] == [
        ("PagedAttention", bundle.manifest.model.num_layers)
    ]
    products = [layer for layer in layers if layer.operator == "FullyConnected"]
    assert {layer.network for layer in products} == {"vision", "projector", "decoder"}
    assert {layer.precision for layer in [*products, *attention]} == {"f32"}


def test_the_command_shows_them(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle), *SHOWN, "--precision", "fp32", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"] == "OpenVINO's CPU"
    assert set(document["kernels"][0]) == {"network", "operator", "kernel", "precision", "nodes"}
    assert main(["inspect", str(tiny_bundle), *SHOWN]) == 0
    text = capsys.readouterr().out
    assert "PagedAttention" in text
    assert text.splitlines()[0] == "Kernels on OpenVINO's CPU, by what its plugin has compiled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "--provider", "cuda"], "--provider 'cuda' is unknown here. Expected auto or openvino."),
        (["--provider", "openvino"], "OpenVINO's kernels are shown by --kernels --provider openvino."),
        (["--kernels", "--precision", "fp32"], "OpenVINO's kernels are shown by --kernels --provider openvino."),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(DEMO_BUNDLE), *arguments]) in (1, 2)
    assert capsys.readouterr().err.startswith(f"varco: {message}")
