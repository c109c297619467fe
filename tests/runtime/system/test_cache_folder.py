"""The cache folder: only what this user alone can have written is used, and nothing in it is waited for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.makers.manifests import FILES, hashed
from tests.runtime.backends.cpu.test_prepacked import graphs_loaded, numbers
from varco_export.engines import timing_cache
from varco_runtime.backends.cpu import prepacked
from varco_runtime.bundle import verified
from varco_runtime.bundle.opening import LARGE_SUFFIXES
from varco_runtime.system import cache_folder as cache
from varco_runtime.system.cache_folder import (
    cache_fault,
    clear,
    max_cache_bytes,
    read_entry,
    set_max_cache_bytes,
    write_entry,
)

LARGE = {name for name in FILES if name.endswith(LARGE_SUFFIXES)}
Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, where every file counts as old and every network is kept."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SETTLED_S", 0.0)
    monkeypatch.setattr(prepacked, "MIN_WEIGHT_BYTES", 0)
    return tmp_path / "cache"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 12345, -1)


def writable_by_others(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def writable_by_the_group(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


FOREIGN = [another_user, writable_by_others, writable_by_the_group]


# --- a planted memory of hashes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_foreign", FOREIGN)
@pytest.mark.parametrize("name", ["", "verified.json"])
def test_hashes_that_others_may_have_written_are_not_believed(
    bundle: Path, folder: Path, make_foreign: Change, name: str
) -> None:
    hashed(bundle)
    assert not hashed(bundle) & LARGE
    make_foreign(folder / name)
    assert hashed(bundle) >= LARGE


@pytest.mark.parametrize("make_foreign", FOREIGN)
def test_nothing_is_written_into_a_folder_that_others_may_write(
    tiny_bundle: Path, folder: Path, make_foreign: Change
) -> None:
    folder.mkdir()
    make_foreign(folder)
    assert numbers(tiny_bundle).size
    assert not list(folder.iterdir())


# --- planted networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_foreign", FOREIGN)
@pytest.mark.parametrize(
    "name",
    [
        ".",
        "prepacked",
        "prepacked/*",
        "prepacked/*/entry.json",
        "prepacked/*/graph.onnx",
        pytest.param("prepacked/*/graph.onnx.data", marks=pytest.mark.full),
    ],
)
def test_packed_weights_that_others_may_have_written_are_not_loaded(
    tiny_bundle: Path, folder: Path, make_foreign: Change, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted network would answer, whatever the bundle's own hashes are."""
    expected = numbers(tiny_bundle)
    for path in [folder] if name == "." else sorted(folder.glob(name)):
        make_foreign(path)
    loaded = graphs_loaded(monkeypatch)
    assert np.array_equal(numbers(tiny_bundle), expected)
    assert [path for path in loaded if path.parent == tiny_bundle] == [
        tiny_bundle / f"{part}.onnx" for part in ("vision", "projector", "decoder")
    ]


def test_packed_weights_are_private_whatever_the_umask(tiny_bundle: Path, folder: Path) -> None:
    former = os.umask(0)
    try:
        numbers(tiny_bundle)
    finally:
        os.umask(former)
    modes = {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert not {path: oct(mode) for path, mode in modes.items() if mode & 0o022}


def test_a_cache_folder_that_links_to_a_larger_disk_is_used(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "disk")
    hashed(bundle)
    assert not hashed(bundle) & LARGE


# --- what is no entry -------------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 60_000)


def deep_object(path: Path) -> None:
    path.write_bytes(b'{"a":' * 10_000)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


NO_ENTRIES = [fifo, deep, deep_object, huge, endless, a_folder]


@pytest.mark.parametrize("make", NO_ENTRIES)
def test_what_is_no_entry_is_none(folder: Path, bundle: Path, make: Change) -> None:
    folder.mkdir(mode=0o700)
    make(folder / "verified.json")
    assert hashed(bundle) >= LARGE
    make(folder / "timings-1-sm80.cache")
    assert timing_cache.load_timings("tensorrt", "1", NoTimings(), 80) == folder / "timings-1-sm80.cache"
    make(folder / "limit")
    assert max_cache_bytes() == cache.MAX_CACHE_BYTES


class NoTimings:
    """A build's config that takes no more than a megabyte of timings."""

    def create_timing_cache(self, known: bytes) -> object:
        assert len(known) < 1 << 20
        return object()

    def set_timing_cache(self, timings: object, ignore_mismatch: bool) -> None: ...


@pytest.mark.parametrize("make", NO_ENTRIES)
def test_packed_weights_of_which_a_file_is_no_entry_are_made_again(
    tiny_bundle: Path, folder: Path, make: Change
) -> None:
    expected = numbers(tiny_bundle)
    for entry in (folder / "prepacked").iterdir():
        (entry / "entry.json").unlink()
        make(entry / "entry.json")
    assert np.array_equal(numbers(tiny_bundle), expected)
    found = [json.loads((entry / "entry.json").read_bytes()) for entry in (folder / "prepacked").iterdir()]
    assert all(facts.keys() == {"graph.onnx", "graph.onnx.data"} for facts in found)
    assert len(found) == 3


def test_an_entry_is_written_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "kernels" / "x.cache"
    assert write_entry(path, b"first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not write_entry(path, b"second")
    assert read_entry(path, 5) == b"first"
    assert read_entry(path, 4) is None
    assert list(path.parent.iterdir()) == [path]


# --- its limit --------------------------------------------------------------------------------------------------------


def test_the_limit_bounds_what_is_kept(tiny_bundle: Path, folder: Path) -> None:
    numbers(tiny_bundle)
    sizes = {path: cache.num_bytes(path) for path in (folder / "prepacked").iterdir()}
    assert set_max_cache_bytes(sum(sizes.values()) - 1)
    shutil.rmtree(max(sizes, key=lambda path: path.stat().st_mtime))  # made again, and then one too many
    numbers(tiny_bundle)
    assert 0 < sum(map(cache.num_bytes, cache.entries_of(folder))) <= max_cache_bytes()
    assert set_max_cache_bytes(0)
    cache.drop_oldest(cache.entries_of(folder), 0)
    numbers(tiny_bundle)
    assert not cache.entries_of(folder)


def test_clearing_leaves_what_is_not_its_own(tiny_bundle: Path, bundle: Path, folder: Path) -> None:
    numbers(tiny_bundle)
    hashed(bundle)
    (folder / "mine.txt").write_text("mine")
    removed = clear(folder)
    assert removed > 10_000
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    assert clear(folder) == 0
    assert not folder.exists()


def test_clearing_follows_no_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mine")
    folder.mkdir()
    (folder / "prepacked").symlink_to(tmp_path / "elsewhere")
    clear(folder)
    assert (tmp_path / "elsewhere" / "file").exists()
    assert not folder.exists()


def test_a_folder_that_is_not_used_is_named_with_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_fault() is None
    folder.mkdir(mode=0o700)
    assert cache_fault() is None
    folder.chmod(0o770)
    assert f"{folder} may be written by other users (mode 770). Run chmod go-w {folder}, or set" in str(cache_fault())
    folder.chmod(0o1777)
    assert "(mode 1777). Set VARCO_EDGE_CACHE to a folder of your own." in str(cache_fault())
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert "belongs to another user" in str(cache_fault())
    folder.rmdir()
    folder.write_text("")
    assert "is a file. Remove it" in str(cache_fault())
