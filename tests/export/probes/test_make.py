"""How probes get into a bundle: small, whole or not at all, and none of a model whose answers are no numbers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import export_bundle
from tests.makers.probes import GENTLE, OPTIONS, PRECISIONS, checks_of, failed
from varco_cli.main import main
from varco_export import export as export_module
from varco_export.probes import make as probes_module
from varco_export.probes.make import add_probes
from varco_export.probes.questions import draw_pictures
from varco_export.progress import Silent
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.bundle.opening import Bundle, read_manifest, write_manifest
from varco_runtime.errors import BundleError, CheckpointError, ExportError
from varco_runtime.picture import packing
from varco_runtime.picture.packing import packing_plan
from varco_runtime.probes.file import Noise
from varco_runtime.probes.replay import read_probes


def test_probes_are_small_and_the_same_from_both_commands(
    probed: Callable[[str], Path], probe_checkpoint: Path, tmp_path: Path
) -> None:
    exported = probed("int4")
    bare = export_bundle(probe_checkpoint, tmp_path / "bare", decoder="int4")
    assert read_manifest(bare).probes is None
    manifest = add_probes(probe_checkpoint, bare, Silent())
    assert read_manifest(bare) == read_manifest(exported) == manifest
    assert manifest.files[str(manifest.probes)].size < 1_000_000


def test_probes_are_replaced_whole(probed: Callable[[str], Path], probe_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(probed("fp32"), target)
    before = read_manifest(target)
    other = make_tiny(tmp_path / "other", TinyOptions(seed=12, image_size=114, scales=GENTLE))
    after = add_probes(other, target, Silent())
    assert after.probes != before.probes
    assert {path.name for path in target.iterdir()} == {*after.files, "bundle.json"}
    # Those of another model fit the shapes, and fail.
    assert "vision" in failed(checks_of(target))
    assert add_probes(probe_checkpoint, target, Silent()) == before


def test_a_bundle_stays_as_it_was_when_probes_cannot_be_added(
    probed: Callable[[str], Path], probe_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = export_bundle(probe_checkpoint, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(probes_module, "write_manifest", full)
    with pytest.raises(OSError, match="no space"):
        add_probes(probe_checkpoint, target, Silent())
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_the_same_probes_can_be_added_again(
    probe_checkpoint: Path, probed: Callable[[str], Path], tmp_path: Path
) -> None:
    target = Path(shutil.copytree(probed("fp32"), tmp_path / "bundle"))
    assert add_probes(probe_checkpoint, target, Silent()) == read_manifest(probed("fp32"))


@pytest.mark.parametrize("exchanges", ["manifest", "graph"])
def test_a_bundle_that_changes_while_its_probes_are_made_stays_as_it_is(
    probe_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: str
) -> None:
    target = export_bundle(probe_checkpoint, tmp_path / "bundle")
    make = probes_module.write_probes

    def exchanging(*given: Any) -> Any:
        made = make(*given)
        if exchanges == "manifest":
            write_manifest(target, dataclasses.replace(read_manifest(target), license="another"))
        else:
            shutil.copy(target / "vision.onnx", tmp_path / "copy")
            (tmp_path / "copy").replace(target / "vision.onnx")
        return made

    monkeypatch.setattr(probes_module, "write_probes", exchanging)
    with pytest.raises((ExportError, BundleError), match=r"was changed while|was exchanged"):
        add_probes(probe_checkpoint, target, Silent())
    assert read_manifest(target).probes is None
    assert not list(target.glob("probes-*"))


def test_a_checkpoint_of_another_shape_is_refused(probed: Callable[[str], Path], tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", TinyOptions(num_hidden_layers=3))
    with pytest.raises(ExportError, match=r"has num_layers 3, the bundle .* has 2"):
        add_probes(other, probed("fp32"), Silent())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "language_model.model.norm.weight",
            "The model answers .* with NaN or infinity, computed in fp32 from its own",
        ),
        (
            "multi_modal_projector.linear_1.weight",
            "The model makes of the picture .* NaN or infinity, computed in fp32",
        ),
    ],
)
def test_probes_of_a_model_whose_answers_are_no_numbers_are_not_written(
    tmp_path: Path, name: str, message: str
) -> None:
    """Finite weights whose sums are not."""
    folder = make_tiny(tmp_path / "checkpoint", OPTIONS)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][...] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        export_bundle(folder, tmp_path / "bundle", probes=True)
    assert not (tmp_path / "bundle").exists()


def test_small_models_get_probes_unasked_and_large_ones_do_not(
    probe_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_manifest(export_bundle(probe_checkpoint, tmp_path / "small", probes=None)).probes is not None
    monkeypatch.setattr(export_module, "PROBES_BELOW_PARAMETERS", 1000)
    assert read_manifest(export_bundle(probe_checkpoint, tmp_path / "large", probes=None)).probes is None


def test_an_export_says_that_it_computes_probes_before_it_does(
    probe_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(probe_checkpoint), str(tmp_path / "bundle")]) == 0
    err = capsys.readouterr().err
    assert err.index("probes: the exact model answers questions, in fp32") < err.index("probes exported in")


def test_the_probes_of_a_full_size_model_are_few_tokens() -> None:
    """Image tokens are what probes cost most of their time on: 729 of the whole picture and 605 of its grid."""
    settings = TinyOptions(image_size=384, max_grid=(6, 6)).to_config().image
    tokens = [packing_plan(one.image.size[::-1], settings).num_tokens for one in draw_pictures(settings.tile_px)]
    assert tokens == [729 + 11 * 55]


def test_logits_that_are_all_alike_have_probes_too(tmp_path: Path) -> None:
    flat = make_tiny(tmp_path / "flat", TinyOptions(sparse=True))
    target = export_bundle(flat, tmp_path / "bundle", probes=True, **PRECISIONS["fast"])
    assert read_probes(Bundle.open(target)).noise == Noise(0, 0, 0, 0)


def test_probes_that_do_not_fit_the_context_are_left_out(probe_checkpoint: Path, tmp_path: Path) -> None:
    short = export_bundle(probe_checkpoint, tmp_path / "short", probes=True, max_context=200)
    probes = read_probes(Bundle.open(short)).probes
    assert len(probes) == 1
    assert not failed(checks_of(short))
    none = export_bundle(probe_checkpoint, tmp_path / "none", probes=True, max_context=16)
    assert read_manifest(none).probes is None
    with pytest.raises(ExportError, match="holds 16 tokens, fewer than any probe needs"):
        add_probes(probe_checkpoint, none, Silent())


# --- several pictures and video ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def media_probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for several pictures and videos, with probes, of an odd number of patches, which pooling blends."""
    options = dataclasses.replace(OPTIONS, video=True, image_size=100)
    checkpoint = make_tiny(tmp_path_factory.mktemp("media") / "tiny", options)
    return export_bundle(checkpoint, tmp_path_factory.mktemp("media") / "bundle", probes=True, decoder="int8")


def test_a_bundle_for_several_pictures_and_videos_has_a_probe_of_each(media_probed: Path) -> None:
    probes = read_probes(Bundle.open(media_probed))
    assert [probe.task for probe in probes.probes] == ["chat", "ground", "compare", "video"]
    assert [picture.shows for picture in probes.pictures] == ["picture", "pictures", "video"]
    assert failed(checks_of(media_probed)) == []


def test_a_bundle_for_one_picture_has_none_of_them(probed: Callable[[str], Path]) -> None:
    probes = read_probes(Bundle.open(probed("int4")))
    assert [probe.task for probe in probes.probes] == ["chat", "ground"]


@pytest.mark.parametrize("name", ["_frames_plan", "_one_tile_plan"])
def test_a_wrong_packing_of_several_fails(name: str, media_probed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest patch instead of the blend, or patches that are too weak."""
    make = getattr(packing, name)

    def wrong(*arguments: Any) -> packing.PackingPlan:
        plan: packing.PackingPlan = make(*arguments)
        weights = plan.weights.copy()
        if name == "_frames_plan":
            weights[:, 0], weights[:, 1:] = 1, 0
        else:
            weights[:-1] *= 0.9
        return dataclasses.replace(plan, weights=weights)

    monkeypatch.setattr(packing, name, wrong)
    assert "image tokens" in failed(checks_of(media_probed))
