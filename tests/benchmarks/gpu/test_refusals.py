"""What cannot be measured is refused in one line, with status 1, before anything is made."""

from __future__ import annotations

import dataclasses
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu import refusals
from benchmarks.gpu.archive import unpack
from tests.benchmarks.gpu.conftest import Run
from tests.doubles.recording_onnxruntime import Gpu
from varco_runtime.errors import UsageError

GB = 10**9


def refused(capfd: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one line that a run ends with."""
    paths = ["--out", str(folder / "out"), "--folder", str(folder / "work")]
    assert gpu_check.main([*paths, *arguments]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n"), err.endswith("\n")) == ("", 1, True), err
    assert not (folder / "out").exists()
    assert not (folder / "work").exists()
    return err


@pytest.fixture
def there(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU, packages and room for everything."""
    monkeypatch.setattr("varco_runtime.backends.cuda.driver.find_gpu", lambda: gpu.facts)
    monkeypatch.setattr(refusals, "PACKAGES_OF_STEPS", {})
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 60 * GB})())
    monkeypatch.setattr("varco_runtime.system.memory.machine_memory", lambda: (128 * GB, 100 * GB))
    return gpu


def test_no_gpu(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PACKAGES_OF_STEPS", {})

    def none() -> Any:
        raise OSError

    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", none)
    assert "No NVIDIA driver was found" in refused(capfd, tmp_path)
    assert "No NVIDIA driver was found" in refused(capfd, tmp_path, "--provider-archive", str(tmp_path / "x.tar.xz"))


def test_a_driver_that_is_too_old(capfd: pytest.CaptureFixture[str], tmp_path: Path, there: Gpu) -> None:
    there.facts = dataclasses.replace(there.facts, cuda_version=(12, 8))
    assert "supports CUDA 12.8, expected 13.0 or later" in refused(capfd, tmp_path)


def test_an_onnxruntime_without_cuda(capfd: pytest.CaptureFixture[str], tmp_path: Path, there: Gpu) -> None:
    there.providers = ["CPUExecutionProvider"]
    assert "is the build without CUDA, expected onnxruntime-gpu" in refused(capfd, tmp_path)


def test_a_missing_package(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PACKAGES", ("numpy", "no_such_package"))
    monkeypatch.setattr(refusals, "PACKAGES_OF_STEPS", {"transformers": ("no_such_peer",)})
    assert refused(capfd, tmp_path).startswith("Packages are missing here: no_such_package, no_such_peer. Install them")
    assert "give onnxruntime-gpu by --provider-archive" in refused(capfd, tmp_path)
    assert "missing here: no_such_package. " in refused(capfd, tmp_path, "--steps", "environment")


@pytest.mark.parametrize(
    ("free", "arguments", "expected"),
    [(10, [], "10.7"), (4, ["--steps", "int4"], "4.3"), (10, ["--keep", "--steps", "int4"], "10.0")],
)
def test_too_little_disk(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    there: Gpu,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free * GB})())
    said = refused(capfd, tmp_path, *arguments)
    assert f"has {free}.0 GB of free disk, expected {expected} GB. Free some space, or give another --folder." in said


def test_too_little_memory(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, there: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.facts = dataclasses.replace(there.facts, free_bytes=20 * GB)
    assert "has 20.0 GB of free memory, expected 38.9 GB" in refused(capfd, tmp_path)
    there.facts = dataclasses.replace(there.facts, free_bytes=140 * GB)
    monkeypatch.setattr("varco_runtime.system.memory.machine_memory", lambda: (16 * GB, 5 * GB))
    assert "The machine has 5.0 GB of available memory, expected 12.9 GB" in refused(capfd, tmp_path)


def test_options_that_no_step_could_run_with(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--budget-s", "0")[0] == 1
    assert "--budget-s is 0, expected more than 0." in capfd.readouterr().err
    (tmp_path / "out").write_text("")
    assert gpu_check.main(["--shape", "tiny", "--provider", "cpu", "--out", str(tmp_path / "out")]) == 1
    assert "is a file, expected a folder or nothing. Choose another --out." in capfd.readouterr().err


def test_packages_of_an_archive_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text("")
    archive = tmp_path / "provider.tar.xz"
    with tarfile.open(archive, "w:xz") as file:
        file.add(package, "onnxruntime")
    path: list[str] = ["elsewhere"]
    monkeypatch.setattr("sys.path", path)
    monkeypatch.setenv("PYTHONPATH", "more")
    target = tmp_path / "work" / "provider"
    unpack(archive, target)
    assert path[0] == str(target)
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(target), "more"])
    (target / "onnxruntime" / "kept").write_text("")
    unpack(archive, target)
    assert (target / "onnxruntime" / "kept").exists(), "once is enough"
    for content in (b"no archive", archive.read_bytes()[:40]):
        (tmp_path / "bad.tar.xz").write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.tar\.xz cannot be unpacked"):
            unpack(tmp_path / "bad.tar.xz", target)
    with pytest.raises(UsageError, match="cannot be unpacked"):
        unpack(tmp_path / "none.tar.xz", target)
