"""Answers, features and probes of engines on a double of CUDA and TensorRT: those of the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import add_engines, runs
from tests.makers import broken
from tests.makers.inputs import close
from tests.runtime.backends.tensorrt.conftest import MAX_CONTEXT, backend_of
from varco_cli.main import main
from varco_runtime import Varco
from varco_runtime.bundle.opening import Bundle
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalise, tile
from varco_runtime.probes.replay import read_probes


def test_a_picture_is_answered_with_the_tokens_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    expected = cpu.ask(image, "What is this?", max_new_tokens=64)
    answer = varco.ask(image, "What is this?", max_new_tokens=64)
    assert answer.token_ids == expected.token_ids
    assert answer.usage == expected.usage


def test_text_alone_is_answered_with_the_tokens_of_the_cpu(varco: Varco, cpu: Varco) -> None:
    assert varco.ask(None, "Hello", max_new_tokens=24).token_ids == cpu.ask(None, "Hello", max_new_tokens=24).token_ids


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "seed": 3},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 1},
    ],
)
def test_sampling_and_penalties_see_the_logits_of_the_cpu(varco: Varco, cpu: Varco, options: dict[str, Any]) -> None:
    expected = cpu.ask(None, "Hello", max_new_tokens=16, **options)
    assert varco.ask(None, "Hello", max_new_tokens=16, **options).token_ids == expected.token_ids


def test_a_second_question_encodes_no_tile_and_rewinds_the_cache(
    varco: Varco, cpu: Varco, device: Device, image: Image.Image
) -> None:
    varco.ask(image, "What is this?", max_new_tokens=8)
    before = len(list(runs(device.done, "vision")))
    answer = varco.ask(image, "And what colour is it?", max_new_tokens=16)
    assert len(list(runs(device.done, "vision"))) == before
    assert answer.usage.cached_tokens > answer.usage.image_tokens
    assert answer.token_ids == cpu.ask(image, "And what colour is it?", max_new_tokens=16).token_ids


def test_another_picture_replaces_the_first(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    other = Image.eval(image.resize((60, 200)), lambda value: 255 - value)
    for picture in (image, other, image):
        expected = cpu.ask(picture, "<ocr>", max_new_tokens=8)
        assert varco.ask(picture, "<ocr>", max_new_tokens=8).token_ids == expected.token_ids


def test_greedy_tokens_do_not_depend_on_who_chooses(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_by_device = varco.ask(None, "Hello", max_new_tokens=32).token_ids
    monkeypatch.setattr("varco_runtime.generation.sampling.Sampler.is_greedy", False)
    assert varco.ask(None, "Hello", max_new_tokens=32).token_ids == chosen_by_device


def test_features_are_those_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    settings, picture = varco.bundle.manifest.image, load_picture(image)
    pixel_values, plan = normalise(tile(picture, settings), settings), packing_plan(picture.size_hw, settings)
    got = backend_of(varco).features(pixel_values, plan)
    want = cpu.backend.features(pixel_values, plan)  # type: ignore[attr-defined]
    for name in ("patch_features", "image_features", "image_tokens"):
        assert close(getattr(got, name), getattr(want, name)), name


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
