"""Which TensorRT builds: the one that is installed, fits the target and is new enough; and the timings it keeps."""

from __future__ import annotations

import importlib
import types
from pathlib import Path
from typing import Any

import pytest

from tests.export.engines.conftest import build
from varco_export.engines import timing_cache
from varco_export.engines.builder import Builder, check_python
from varco_export.engines.timing_cache import load_timings, save_timings
from varco_runtime.errors import BackendError, UsageError

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra dev or tensorrt)")


def only(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Let these modules be all that is installed of TensorRT; an exception is raised by the import."""

    def find(name: str) -> Any:
        found = modules.get(name)
        if found is None:
            raise ModuleNotFoundError(name=name)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", find)


def test_no_tensorrt_at_all_is_one_line(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    with pytest.raises(
        BackendError, match=r"neither is installed. Install it with: \S.*pip install .*tensorrt-rtx-cu13"
    ):
        build(int4, 89)


def test_a_tensorrt_that_cannot_be_loaded_is_one_line(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tensorrt_rtx=OSError("libcudart.so.13: cannot open\nmore"))
    with pytest.raises(
        BackendError, match=r"TensorRT for RTX cannot be loaded \(libcudart.so.13: cannot open\). Install"
    ):
        build(int4, 89)


def test_a_tensorrt_whose_dependency_is_missing_is_not_called_missing(
    int4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ModuleNotFoundError("No module named 'cuda_pathfinder'", name="cuda_pathfinder")
    only(monkeypatch, tensorrt_rtx_bindings=error)
    with pytest.raises(
        BackendError, match=r"TensorRT for RTX cannot be loaded \(No module named 'cuda_pathfinder'\). Install"
    ):
        build(int4, 89)


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("tensorrt_rtx", "1.6.2.3", "TensorRT for RTX 1.6.2.3 is too old, engines need native .*: 1.7 or later"),
        ("tensorrt", "10.3.0", "TensorRT 10.3.0 is too old, engines need native .*: 10.15 or later. Update it as"),
    ],
)
def test_a_tensorrt_without_native_cache_updates_is_refused(
    int4: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, message: str
) -> None:
    only(monkeypatch, **{name: types.SimpleNamespace(__version__=version)})
    with pytest.raises(BackendError, match=message):
        build(int4, 89)


def test_an_old_python_is_refused() -> None:
    check_python((3, 11))
    with pytest.raises(BackendError, match=r"Python 3.10 is too old, expected 3.11 or later"):
        check_python((3, 10))


def as_tensorrt() -> types.SimpleNamespace:
    """The bindings at hand under the other product's name, without the choice of a target."""
    names = {name: getattr(trt, name) for name in dir(trt) if not name.startswith("_") and name != "ComputeCapability"}
    return types.SimpleNamespace(**names, __version__="11.4.0.106")


def test_tensorrt_builds_for_the_gpu_that_is_there_alone(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tensorrt=as_tensorrt())
    with pytest.raises(UsageError, match=r"--sm 89 needs TensorRT for RTX, which is not installed"):
        build(int4, 89)


def test_with_both_installed_a_named_target_goes_to_tensorrt_for_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tensorrt=as_tensorrt(), tensorrt_rtx_bindings=trt)
    assert Builder.load(is_target_named=True).name == "tensorrt_rtx"
    assert Builder.load(is_target_named=False).name == "tensorrt"
    assert Builder.load(is_target_named=False).targets() == []


def test_timings_of_kernels_are_kept_for_the_next_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a double: TensorRT times kernels on a GPU."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    given: list[bytes] = []

    class Config:
        def create_timing_cache(self, known: bytes) -> Any:
            given.append(known)
            return types.SimpleNamespace(serialize=lambda: b"timed") if known != b"broken" else None

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
            self.cache = cache

        def get_timing_cache(self) -> Any:
            return self.cache

    builder, config = Builder("tensorrt", as_tensorrt()), Config()
    path = load_timings(builder.name, builder.version, config, 87)
    save_timings(path, config)
    assert path == tmp_path / "cache" / "timings-11.4.0.106-sm87.cache"
    load_timings(builder.name, builder.version, config, 87)
    path.write_bytes(b"broken")
    load_timings(builder.name, builder.version, config, 87)
    assert given == [b"", b"timed", b"broken", b""]
    assert load_timings("tensorrt_rtx", trt.__version__, config, 89) is None


def test_without_a_home_no_timings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(timing_cache, "cache_folder", no_home)
    builder = Builder("tensorrt", as_tensorrt())
    assert load_timings(builder.name, builder.version, None, 87) is None
    save_timings(None, None)
