"""Files that change between the check and the use: what answers is what was checked, or nothing is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import export_bundle
from varco_cli.main import main
from varco_export.tiny import TinyOptions, make_tiny
from varco_export.writing.whole_folder import whole_folder
from varco_runtime import Varco
from varco_runtime.backends.cpu import prepacked
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle import verified
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BundleError


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same shape as `tiny_bundle` with other weights."""
    checkpoint = make_tiny(tmp_path_factory.mktemp("other") / "tiny", TinyOptions(seed=2))
    return export_bundle(checkpoint, tmp_path_factory.mktemp("other_bundle") / "tiny")


def overwrite(bundle: Path, other: Path) -> None:
    """What `varco export --overwrite` does at its end."""
    with whole_folder(bundle, overwrite=True) as partial:
        shutil.copytree(other, partial, dirs_exist_ok=True)


def swap_one_file(bundle: Path, other: Path) -> None:
    shutil.copy(other / "decoder.onnx.data", bundle / "aside")
    os.replace(bundle / "aside", bundle / "decoder.onnx.data")


def write_in_place(bundle: Path, other: Path) -> None:
    path = bundle / "decoder.onnx.data"
    before = path.stat()
    with path.open("r+b") as file:
        file.write((other / "decoder.onnx.data").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(bundle: Path, other: Path) -> None:
    shutil.rmtree(bundle)


CHANGES = [overwrite, swap_one_file, write_in_place, remove]


def change_before_network(monkeypatch: pytest.MonkeyPatch, number: int, change: Callable[[], None]) -> None:
    """Let `change` happen right before the network of this number is loaded."""
    load, loaded = OnnxRuntimeBackend._load, []

    def changing(self: OnnxRuntimeBackend, *given: Any) -> Any:
        if len(loaded) == number:
            change()
        loaded.append(given)
        return load(self, *given)

    monkeypatch.setattr(OnnxRuntimeBackend, "_load", changing)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.full), 2])
def test_a_bundle_that_is_exchanged_while_it_is_loaded_is_refused(
    bundle: Path,
    other_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    change: Callable[[Path, Path], None],
) -> None:
    change_before_network(monkeypatch, number, lambda: change(bundle, other_bundle))
    with pytest.raises(
        BundleError, match=r"was exchanged or written while the bundle was being loaded\. Load it again"
    ):
        Varco.load(bundle)


@pytest.mark.parametrize("change", [overwrite, remove])
def test_an_exchange_between_the_manifest_and_its_files_is_no_damage(
    bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], None]
) -> None:
    check = Bundle.check

    def changing(self: Bundle, *given: Any, **options: Any) -> None:
        change(bundle, other_bundle)
        check(self, *given, **options)

    monkeypatch.setattr(Bundle, "check", changing)
    with pytest.raises(BundleError, match=r"bundle\.json was exchanged or written while"):
        Bundle.open(bundle)


def test_an_exchanged_bundle_leaves_no_packed_weights_under_the_former_name(
    bundle: Path, other_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepacked, "MIN_WEIGHT_BYTES", 0)
    with monkeypatch.context() as patch:
        change_before_network(patch, 2, lambda: overwrite(bundle, other_bundle))
        with pytest.raises(BundleError, match="was exchanged"):
            Varco.load(bundle)
    assert len(list((tmp_path / "cache" / "prepacked").iterdir())) == 2  # vision and projector, as they were checked
    expected = Varco.load(other_bundle).ask(None, "Hello", max_new_tokens=8).token_ids
    assert Varco.load(bundle).ask(None, "Hello", max_new_tokens=8).token_ids == expected


def test_a_small_file_is_read_from_the_file_that_was_hashed(bundle: Path, other_bundle: Path) -> None:
    opened = Bundle.open(bundle)
    expected = opened.text("tokenizer.json")
    shutil.copy(other_bundle / "tokenizer.json", bundle / "aside")
    os.replace(bundle / "aside", bundle / "tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json was exchanged"):
        opened.text("tokenizer.json")
    assert expected


@pytest.mark.parametrize("change", [overwrite, swap_one_file, remove])
def test_a_loaded_bundle_answers_on_after_it_is_replaced_by_renaming(
    bundle: Path, other_bundle: Path, change: Callable[[Path, Path], None]
) -> None:
    varco = Varco.load(bundle)
    expected = varco.ask(None, "Hello", max_new_tokens=8).token_ids
    change(bundle, other_bundle)
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == expected


@pytest.mark.parametrize("num_bytes", [0, 5000])
@pytest.mark.parametrize("name", ["embedding.bin", "decoder.onnx.data"])
def test_a_loaded_bundle_whose_file_is_truncated_is_one_line(bundle: Path, name: str, num_bytes: int) -> None:
    """The pages beyond the end are gone: reading them would end the process with SIGBUS."""
    varco = Varco.load(bundle)
    os.truncate(bundle / name, num_bytes)
    with pytest.raises(BundleError, match=f"{name} was written while it is loaded"):
        varco.ask(None, "Hello", max_new_tokens=1)
    with pytest.raises(BundleError, match=f"{name} was written while it is loaded"):
        varco.score(None, "Hello", [1])


def test_a_second_name_of_a_loaded_file_is_no_change(bundle: Path, tmp_path: Path) -> None:
    varco = Varco.load(bundle)
    os.link(bundle / "embedding.bin", tmp_path / "backup")
    assert varco.ask(None, "Hello", max_new_tokens=1).token_ids


def test_verify_does_not_ask_one_bundle_the_probes_of_another(
    tiny_checkpoint: Path,
    other_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", probes=True)
    load = Varco.load

    def exchanging(*given: Any, **options: Any) -> Varco:
        overwrite(bundle, other_bundle)
        return load(*given, **options)

    monkeypatch.setattr(Varco, "load", exchanging)
    assert main(["verify", str(bundle), "--numerics"]) == 1
    assert "was exchanged while it was being verified" in capsys.readouterr().err


def test_what_is_remembered_of_a_file_is_of_the_file_that_was_hashed(
    bundle: Path, other_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SETTLED_S", 0.0)
    Bundle.open(bundle)
    swap_one_file(bundle, other_bundle)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data has been altered"):
        Bundle.open(bundle)
