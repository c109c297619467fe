"""What TensorRT for RTX compiled is kept between runs, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import add_engines
from tests.runtime.backends.tensorrt.conftest import backend_of
from varco_runtime import Varco
from varco_runtime.bundle.opening import read_manifest


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels are kept, empty."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def ask_and_close(bundle: Path) -> None:
    varco = Varco.load(bundle)
    varco.ask(None, "Hello", max_new_tokens=4)
    backend_of(varco).close()


def test_what_rtx_compiled_is_kept_for_the_next_run(bundle: Path, device: Device, kernels: Path) -> None:
    ask_and_close(bundle)
    assert device.compiled
    device.compiled.clear()
    ask_and_close(bundle)
    assert not device.compiled
    manifest = read_manifest(bundle)
    hashes = {manifest.files[engine.file].sha256 for engine in manifest.engines}
    assert {path.name for path in kernels.iterdir()} == {f"{sha256}.cache" for sha256 in hashes}


def test_a_run_that_compiled_nothing_new_writes_nothing(bundle: Path, device: Device, kernels: Path) -> None:
    ask_and_close(bundle)
    before = {path: path.stat().st_ino for path in kernels.iterdir()}
    ask_and_close(bundle)
    assert {path: path.stat().st_ino for path in kernels.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"not kernels", b'["(8, 6)", ["of another GPU"]]'])
def test_kernels_that_do_not_fit_are_compiled_again_and_replaced(
    bundle: Path, device: Device, kernels: Path, content: bytes
) -> None:
    ask_and_close(bundle)
    good = {path: path.read_bytes() for path in kernels.iterdir()}
    for path in good:
        path.write_bytes(content)
    device.compiled.clear()
    ask_and_close(bundle)
    assert device.compiled
    assert {path: path.read_bytes() for path in kernels.iterdir()} == good


def test_a_cache_folder_that_cannot_be_written_costs_only_time(bundle: Path, device: Device, kernels: Path) -> None:
    kernels.parent.write_text("a file where the folder should be")
    ask_and_close(bundle)
    assert device.compiled


def test_the_kernels_of_engines_long_gone_are_forgotten(
    bundle: Path, device: Device, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.backends.tensorrt.kernel_cache.MAX_FILES", 6)
    kernels.mkdir(parents=True)
    for number in range(9):
        (kernels / f"{number}.cache").write_bytes(b"old")
        os.utime(kernels / f"{number}.cache", (number, number))
    ask_and_close(bundle)
    assert len(list(kernels.iterdir())) == 6
    assert (kernels / "8.cache").exists()


def test_tensorrt_itself_has_no_kernels_to_keep(changed: Path, device: Device, kernels: Path) -> None:
    add_engines(changed, builder="tensorrt", builder_version="11.4.0.12")
    ask_and_close(changed)
    assert not kernels.exists()
