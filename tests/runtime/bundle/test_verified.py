"""Large files are hashed once and then remembered, as long as nothing suggests that they have changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.makers.manifests import FILES, hashed, refusal
from varco_runtime.bundle import verified
from varco_runtime.bundle.opening import LARGE_SUFFIXES
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.system import cache_folder as cache

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old, whenever they were written."""
    monkeypatch.setattr(verified, "SETTLED_S", 0.0)


LARGE = {name for name in FILES if name.endswith(LARGE_SUFFIXES)}
SMALL = set(FILES) - LARGE - {MANIFEST}


@pytest.mark.usefixtures("settled")
def test_large_files_are_hashed_once_and_small_ones_always(bundle: Path) -> None:
    assert hashed(bundle) == SMALL | LARGE
    assert hashed(bundle) == SMALL
    assert hashed(bundle, "full") == SMALL | LARGE


def test_a_file_written_a_moment_ago_is_hashed_again(bundle: Path) -> None:
    (bundle / "embedding.bin").touch()
    hashed(bundle)
    assert "embedding.bin" in hashed(bundle)


@pytest.mark.usefixtures("settled")
def test_a_change_under_a_restored_time_is_found(bundle: Path) -> None:
    path = bundle / "embedding.bin"
    hashed(bundle)
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"\x07")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "embedding.bin has been altered" in refusal(bundle)


@pytest.mark.usefixtures("settled")
def test_an_exchanged_file_of_the_same_size_and_time_is_hashed_again(bundle: Path) -> None:
    path = bundle / "embedding.bin"
    hashed(bundle)
    shutil.copy2(path, bundle / "copy")
    os.replace(bundle / "copy", path)
    assert "embedding.bin" in hashed(bundle)


@pytest.mark.usefixtures("settled")
def test_a_copy_of_the_bundle_is_hashed_again(bundle: Path, tmp_path: Path) -> None:
    hashed(bundle)
    shutil.copytree(bundle, tmp_path / "copy")
    assert hashed(tmp_path / "copy") == SMALL | LARGE


@pytest.mark.usefixtures("settled")
def test_the_memory_is_private_and_leaves_no_temporaries(bundle: Path, tmp_path: Path) -> None:
    hashed(bundle)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["verified.json"]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"a": 1}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_a_damaged_memory_costs_one_more_hashing(bundle: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "verified.json").write_bytes(content)
    assert hashed(bundle) == SMALL | LARGE
    assert hashed(bundle) == SMALL


@pytest.mark.usefixtures("settled")
def test_a_memory_that_is_a_pipe_does_not_block(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.mkfifo(tmp_path / "cache" / "verified.json")
    assert hashed(bundle) == SMALL | LARGE


@pytest.mark.usefixtures("settled")
def test_a_memory_that_cannot_be_written_is_no_error_and_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "verified.json").mkdir()  # nothing can be renamed over a folder
    assert hashed(bundle) == hashed(bundle) == SMALL | LARGE
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["verified.json"]
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(bundle / "vision.onnx"))
    assert hashed(bundle) == SMALL | LARGE


def test_the_memory_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VARCO_EDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "varco-edge"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache.cache_folder() == tmp_path / ".cache" / "varco-edge"


def test_a_user_without_a_home_has_no_memory_and_no_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VARCO_EDGE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(verified.Path, "home", homeless)
    assert hashed(bundle) == hashed(bundle) == SMALL | LARGE
