"""Files written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from varco_runtime.system.files import durable_file, whole_file

WRITERS = pytest.mark.parametrize("write", [whole_file, durable_file])
Writer = Callable[[Path], AbstractContextManager[BinaryIO]]


@WRITERS
def test_a_file_is_replaced_when_all_of_it_is_written(write: Writer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with write(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


@WRITERS
def test_a_file_that_fails_leaves_the_former_one_and_nothing_else(write: Writer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="No space left"), write(path) as file:  # noqa: PT012
        file.write(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@WRITERS
def test_a_rename_that_fails_leaves_nothing_behind(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), write(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


@WRITERS
def test_a_file_has_the_permissions_that_the_umask_allows(write: Writer, tmp_path: Path) -> None:
    with write(tmp_path / "file"):
        pass
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_private_file_is_for_its_user_alone(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file", is_private=True):
        pass
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may keep the rename and lose what was not synced."""
    path, done, sync = tmp_path / "file", [], os.fsync

    def fsync(descriptor: int) -> None:
        done.append((os.fstat(descriptor).st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with durable_file(path) as file:
        file.write(b"whole")
    assert done == [(5, False)]


def test_a_durable_file_overwrites_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(b"a longer text than the new one")
    with durable_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
