"""`varco cache`: what is kept, its limit, and how to be rid of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Captured, fail, run
from varco_runtime.system.cache_folder import MAX_CACHE_BYTES, max_cache_bytes, write_entry


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(folder: Path) -> None:
    """Three networks and a file of kernels, a megabyte each, the first the longest unused."""
    for age, name in enumerate(("prepacked/old/graph.onnx.data", "prepacked/new/graph.onnx.data", "kernels/a.cache")):
        assert write_entry(folder / name, bytes(1_000_000))
        used = folder / name if name.startswith("kernels") else (folder / name).parent
        os.utime(used, (1000 + age, 1000 + age))
    assert write_entry(folder / "verified.json", b"{}")


def test_it_shows_how_much_is_kept_where(folder: Path, capsys: Captured) -> None:
    fill(folder)
    out, err = run(capsys, "cache")
    assert err == ""
    for line in (
        str(folder),
        "in all              3 MB, at most 8.59 GB",
        "packed weights      2 MB, of 2 networks",
        "compiled kernels    1 MB",
        "kernel timings      none",
        "remembered hashes   2 bytes",
        "Remove it with: varco cache --clear",
    ):
        assert line in out
    document = json.loads(run(capsys, "cache", "--json")[0])
    assert (document["folder"], document["bytes"], document["num_packed"]) == (str(folder), 3_000_002, 2)


def test_it_bounds_what_is_kept_now_and_from_now_on(folder: Path, capsys: Captured) -> None:
    fill(folder)
    out, err = run(capsys, "cache", "--limit", "2.5 MB")
    assert err == f"1 MB removed from {folder}\n"
    assert "2 MB, at most 2.5 MB" in out
    assert [path.name for path in (folder / "prepacked").iterdir()] == ["new"]
    assert max_cache_bytes() == 2_500_000
    run(capsys, "cache", "--limit", "0")
    assert not list((folder / "prepacked").iterdir())
    assert not list((folder / "kernels").iterdir())


def test_it_clears_everything(folder: Path, capsys: Captured) -> None:
    fill(folder)
    run(capsys, "cache", "--limit", "1GB")
    out, err = run(capsys, "cache", "--clear")
    assert err == f"3 MB removed from {folder}\n"
    assert "0 bytes, at most 8.59 GB" in out
    assert not folder.exists()
    assert max_cache_bytes() == MAX_CACHE_BYTES


@pytest.mark.parametrize("limit", ["5", "-1GB", "1e9GB", "GB", "", "1 GiB", "٣GB", "nan"])
def test_a_limit_that_is_no_size_is_refused(capsys: Captured, limit: str) -> None:
    assert "is no size. Expected a number and its unit" in fail(capsys, 2, "cache", f"--limit={limit}")


def test_a_limit_to_clear_is_refused(capsys: Captured) -> None:
    assert "--clear removes the limit as well" in fail(capsys, 2, "cache", "--limit", "1GB", "--clear")


def test_a_folder_that_others_may_write_is_named(folder: Path, capsys: Captured) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert "may be written by other users (mode 777). Run chmod go-w" in run(capsys, "cache")[1]
    assert "The limit could not be kept. The cache folder" in fail(capsys, 1, "cache", "--limit", "1GB")
    warnings = json.loads(run(capsys, "doctor", "--json")[0])["warnings"]
    assert any("Nothing in it is used, so that loading takes longer." in warning for warning in warnings)


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("varco_runtime.system.cache_folder.cache_folder", no_home)
    assert "There is no cache folder" in fail(capsys, 1, "cache")
