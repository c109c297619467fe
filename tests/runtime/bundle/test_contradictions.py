"""Bundles whose hashes fit and whose parts do not: one line, wherever that shows, and nothing on standard error."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.makers.manifests import forge
from varco_cli.main import main
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import BundleError, VarcoError

Document = dict[str, Any]


@pytest.fixture(scope="module")
def cuda_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for CUDA whose operators the CPU has too."""
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("cuda") / "tiny", device="cuda", decoder="fp16")


@pytest.fixture(scope="module")
def probed_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("probed") / "tiny", probes=True)


def changed(path: str, value: Callable[[Any], Any]) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *parents, last = path.split("/")
        for key in parents:
            document = document[key]
        document[last] = value(document[last])

    return change


def exchanged(one: str, other: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document[one], document[other] = document[other], document[one]

    return change


def smaller_tiles(document: Document) -> None:
    image = document["image"]
    image["tile_px"] //= 2
    image["grid_pinpoints"] = [[side // 2 for side in pin] for pin in image["grid_pinpoints"]]


CONTRADICTIONS: dict[str, tuple[Callable[[Document], None], str]] = {
    "more layers than the graph": (
        changed("model/num_layers", lambda n: n + 1),
        "decoder.onnx has no past.2.key, expected the input past.2.key",
    ),
    "fewer layers": (
        changed("model/num_layers", lambda n: n - 1),
        "has the input past.1.key .*, expected no past.1.key",
    ),
    "wider heads": (changed("model/head_dim", lambda n: 2 * n), "decoder.onnx has the input past.0.key"),
    "more heads": (changed("model/num_key_value_heads", lambda n: 2 * n), "decoder.onnx has the input past.0.key"),
    "a wider tower": (
        changed("model/vision_hidden_size", lambda n: n + 1),
        r"vision.onnx has the output patch_features fp\d+ \[tiles, 16, 48\], expected the output patch_features",
    ),
    "larger patches": (changed("image/patch_px", lambda n: 2 * n), "vision.onnx has the output patch_features"),
    "smaller tiles": (smaller_tiles, "(vision|pixels).onnx has the (input|output) (patch_features|pixel_values)"),
    "the tower as the projector": (
        exchanged("vision", "projector"),
        "projector.onnx has the output image_features",
    ),
    "the tower as the decoder": (exchanged("vision", "decoder"), "decoder.onnx has .*image_rows|inputs_embeds"),
}
OF_THE_CPU: dict[str, tuple[Callable[[Document], None], str]] = {
    "bf16 in the decoder": (
        changed("decoder/compute", lambda _: "bf16"),
        "decoder.compute is bf16, expected fp32 or fp16, the CPU's kernels",
    ),
    "bf16 in the tower": (changed("vision/compute", lambda _: "bf16"), "vision.compute is bf16, expected fp32 or fp16"),
    "fp16 of a graph in fp32": (
        changed("projector/compute", lambda _: "fp16"),
        "projector.onnx has the output image_features fp32 .* expected the output image_features fp16",
    ),
}


def check_refusal(bundle: Path, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match=message):
        Varco.load(bundle, provider="cpu", threads=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [*CONTRADICTIONS, *OF_THE_CPU])
def test_a_manifest_that_contradicts_its_graphs_is_refused_when_they_are_loaded(
    tiny_bundle: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = {**CONTRADICTIONS, **OF_THE_CPU}[name]
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    forge(bundle, change)
    check_refusal(bundle, message, capfd)


@pytest.mark.parametrize(
    "name",
    [*list(CONTRADICTIONS)[:1], *(pytest.param(name, marks=pytest.mark.full) for name in list(CONTRADICTIONS)[1:])],
)
def test_so_is_one_of_a_bundle_for_cuda(
    cuda_bundle: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = CONTRADICTIONS[name]
    bundle = shutil.copytree(cuda_bundle, tmp_path / "bundle")
    forge(bundle, change)
    check_refusal(bundle, message, capfd)


def test_a_vocabulary_that_the_graph_for_cuda_has_not_is_refused(
    cuda_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(cuda_bundle, tmp_path / "bundle")
    forge(bundle, changed("model/vocab_size", lambda n: n // 2))
    check_refusal(bundle, "decoder.onnx has the output logits fp32", capfd)


def test_what_onnxruntime_finds_wrong_is_not_printed_as_well(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own lines are colored and name source files; the error says the same in one."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    content = (bundle / "vision.onnx").read_bytes().replace(b"MatMul", b"MatMux")
    (bundle / "vision.onnx").write_bytes(content)
    forge(bundle, changed("files/vision.onnx/sha256", lambda _: hashlib.sha256(content).hexdigest()))
    with pytest.raises(VarcoError, match=r"onnxruntime could not load .*vision\.onnx"):
        Varco.load(bundle)
    assert capfd.readouterr() == ("", "")


@pytest.mark.full
@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0, 1.01])
def test_no_number_of_a_manifest_is_a_traceback(tmp_path: Path, factor: float) -> None:
    """Each number of the settings altered by itself: it is refused, or the answer comes."""
    good = export_bundle(make_tiny(tmp_path / "tiny", TinyOptions(seed=1)), tmp_path / "good")
    document = json.loads((good / MANIFEST).read_bytes())
    picture = Image.new("RGB", (100, 60), "red")
    for group in ("model", "image", "prompt", "generation", "decoder", "embedding"):
        for key, value in document[group].items():
            if type(value) not in (int, float):
                continue
            other = type(value)(value * factor) + (1 if factor == 1.01 and type(value) is int else 0)
            bundle = shutil.copytree(good, tmp_path / f"{group}-{key}")
            forge(bundle, changed(f"{group}/{key}", lambda _, other=other: other))  # type: ignore[misc]
            with contextlib.suppress(VarcoError):
                Varco.load(bundle, threads=1).ask(picture, "Hi", max_new_tokens=2)


# --- probes -----------------------------------------------------------------------------------------------------------


def packed(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


PROBES: dict[str, tuple[Callable[[Document], object], str]] = {
    "a picture that is junk": (
        lambda probes: probes["pictures"][0].update(png=base64.b64encode(b"junk").decode()),
        "The picture 'shapes and words' of the bundle's probes cannot be used: the picture is not a picture",
    ),
    "an empty picture": (lambda probes: probes["pictures"][0].update(png=""), "cannot be used: the picture is empty"),
    "logits above the sum of all": (
        lambda probes: probes["probes"][0].update(
            log_sum_exp=packed(np.full(probes["probes"][0]["num_answer"], -3e38, "<f4"))
        ),
        r"is not a file of probes \(a logit above the logarithm of the sum of all\)",
    ),
    "no probes": (lambda probes: probes.update(probes=[]), "is not a file of probes"),
    "no pictures": (lambda probes: probes.update(pictures=[]), "is not a file of probes"),
    "a number for a picture": (lambda probes: probes.update(pictures=[3]), "is not a file of probes"),
}


@pytest.mark.parametrize("name", PROBES)
def test_probes_that_are_junk_are_one_line(
    probed_bundle: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = PROBES[name]
    bundle = shutil.copytree(probed_bundle, tmp_path / "bundle")
    file = json.loads((bundle / MANIFEST).read_bytes())["probes"]
    probes = json.loads((bundle / file).read_bytes())
    change(probes)
    content = json.dumps(probes).encode()
    (bundle / file).unlink()
    (bundle / file).write_bytes(content)
    facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge(bundle, lambda document: document["files"].update({file: facts}))
    assert main(["verify", str(bundle), "--numerics", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
