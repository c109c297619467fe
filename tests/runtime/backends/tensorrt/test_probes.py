"""Acceptance probes of engines, on a double of CUDA and TensorRT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import export_bundle
from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import add_engines
from tests.makers import broken
from tests.runtime.backends.tensorrt.conftest import MAX_CONTEXT
from varco_cli.main import main
from varco_runtime.bundle.opening import Bundle
from varco_runtime.probes.replay import read_probes


@pytest.fixture(scope="module")
def probed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with probes, without engines."""
    target = tmp_path_factory.mktemp("probed") / "bundle"
    options = {"device": "tensorrt", "decoder": "fp32", "max_context": MAX_CONTEXT, "probes": True}
    return export_bundle(tiny_checkpoint, target, **options)


@pytest.mark.parametrize("fault", [None, broken.transposed_vision_projection])
def test_probes_judge_vision_and_projector_of_engines_too(
    probed: Path, device: Device, tmp_path: Path, fault: Callable[[Path], None] | None, capsys: Any
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(probed, bundle) if fault is None else broken.broken(probed, bundle, fault)
    add_engines(bundle)
    assert main(["verify", str(bundle), "--numerics", "--json"]) == (0 if fault is None else 1)
    rows = {row["component"]: row["ok"] for row in json.loads(capsys.readouterr().out)["numerics"]}
    assert {"vision", "projector", "image tokens", "newlines", "decoder, text"} <= rows.keys()
    assert rows["vision"] is (fault is None)
    assert rows["decoder, text"]


def test_probes_that_the_engines_are_too_short_for_are_left_out(
    probed: Path, tiny_checkpoint: Path, device: Device, tmp_path: Path, capsys: Any
) -> None:
    lengths = sorted(len(probe.ids) for probe in read_probes(Bundle.open(probed)).probes)
    some, none = tmp_path / "some", tmp_path / "none"
    for bundle, max_context in ((some, lengths[-1] - 1), (none, lengths[0] - 1)):
        shutil.copytree(probed, bundle)
        # The double takes its caches' length from a graph; TensorRT is told it when an engine is built.
        short = tmp_path / f"{bundle.name}-graphs"
        export_bundle(tiny_checkpoint, short, device="tensorrt", decoder="fp32", max_context=max_context)

        def take_short_graph(document: dict[str, Any], short: Path = short) -> None:
            document["graph"] = str(short / Path(document["graph"]).name)

        add_engines(bundle, take_short_graph, max_context=max_context)
    assert main(["verify", str(some), "--numerics", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["probes_left_out"] == sum(length == lengths[-1] for length in lengths)
    assert {"vision", "decoder, text"} <= {row["component"] for row in document["numerics"]}
    assert "probes need more positions than the engines hold" in err
    assert main(["verify", str(none), "--numerics"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"The probes need {lengths[0]} positions and more, {lengths[0] - 1} can be held here." in message
    assert message.endswith(f"varco engines BUNDLE --max-context {lengths[-1]}")
