"""An export is whole or absent, whatever ends it; every message of `writing/` is raised here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import export_bundle
from varco_export.writing import hashed_file, lock
from varco_export.writing import whole_folder as output
from varco_export.writing.hashed_file import HashedFile
from varco_export.writing.whole_folder import whole_folder
from varco_runtime.bundle.opening import Bundle
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import BundleError, ExportError


@contextlib.contextmanager
def full_disk(max_bytes: int) -> Iterator[None]:
    """Writing past `max_bytes` of any file fails, as on a full disk; Python ignores SIGXFSZ and raises instead."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Budget:
    """Stands in for `open`: all files together take so many bytes, then the disk is full."""

    def __init__(self, num_bytes: int) -> None:
        self.left = num_bytes

    def __call__(self, path: Path, mode: str, buffering: int = -1) -> Any:
        assert (mode, buffering) == ("xb", 0)
        budget = self

        class File(io.FileIO):
            def write(self, data: memoryview) -> int:
                if budget.left == 0:
                    raise OSError(28, "No space left on device")
                taken = data[: budget.left]
                budget.left -= len(taken)
                return int(super().write(taken))

        return File(path, mode)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    return message


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- one file ---------------------------------------------------------------------------------------------------------


def test_a_files_size_and_hash_are_those_of_what_lies_on_the_disk(tmp_path: Path) -> None:
    with HashedFile(tmp_path / "file") as file:
        assert file.write(b"abc") == 3
        assert file.write(memoryview(bytearray(100_000))) == 100_000
        assert file.write(b"") == 0
    content = (tmp_path / "file").read_bytes()
    assert (file.facts().size, file.facts().sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_disk_that_takes_a_part_of_each_write_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_write = os.write

    class Slow:
        def __init__(self, path: Path, *_: object, **__: object) -> None:
            self.descriptor, self.closed = os.open(path, os.O_WRONLY | os.O_CREAT), False

        def write(self, data: memoryview) -> int:
            return whole_write(self.descriptor, data[:7])

        def fileno(self) -> int:
            return self.descriptor

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            os.close(self.descriptor)
            self.closed = True

    monkeypatch.setattr(hashed_file, "open", Slow, raising=False)
    with HashedFile(tmp_path / "file") as file:
        file.write(bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))
    assert file.facts().sha256 == hashlib.sha256(bytes(range(100))).hexdigest()


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="file could not be written: File exists"):
        HashedFile(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full_while_writing_is_one_line(tmp_path: Path) -> None:
    with full_disk(1000), pytest.raises(ExportError) as caught, HashedFile(tmp_path / "file") as file:
        file.write(bytes(2000))
    assert one_line(caught.value) == (
        f"{tmp_path / 'file'} could not be written: File too large. Expected a writable folder with enough free space; "
        "free some space or choose another output folder, then export again."
    )


def test_a_disk_that_is_full_at_the_very_end_is_one_line_however_often_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = HashedFile(tmp_path / "file")
    monkeypatch.setattr(output.os, "fsync", fsync)
    with pytest.raises(ExportError, match="could not be written: No space left on device"):
        file.close()
    file.close()


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.os, "fsync", lambda _: pytest.fail("a file about to be removed was synced"))
    with pytest.raises(KeyError), HashedFile(tmp_path / "file"):
        raise KeyError


# --- one folder -------------------------------------------------------------------------------------------------------


def fill(folder: Path, text: str = "new") -> None:
    (folder / MANIFEST).write_text(text)


def test_the_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "made" / "too" / "bundle"
    with whole_folder(target) as folder:
        fill(folder)
        assert folder.parent == target.parent
        assert not target.exists()
    assert names(target) == [MANIFEST]
    assert names(target.parent) == ["bundle"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, ExportError, SystemExit])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_folder(tmp_path / "made" / "too" / "bundle") as folder:  # noqa: PT012
        fill(folder)
        raise error
    assert names(tmp_path) == []


def test_an_error_of_the_file_system_anywhere_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bundle could not be written: No such file"):  # noqa: SIM117
        with whole_folder(tmp_path / "bundle") as folder:
            (folder / "x" / "y").write_text("")
    assert names(tmp_path) == []


def test_the_folder_has_the_users_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "bundle") as folder:
            fill(folder)
    finally:
        os.umask(before)
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o750


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError) as caught, whole_folder(tmp_path / "bundle"):
        pytest.fail("the export began")
    assert one_line(caught.value) == (
        f"{tmp_path / 'bundle'} exists already. Choose another output folder, remove it, or add --overwrite."
    )


def test_overwrite_replaces_a_bundle_or_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    for text in ("first", "second"):
        with whole_folder(tmp_path / "bundle", overwrite=True) as folder:
            fill(folder, text)
        assert (tmp_path / "bundle" / MANIFEST).read_text() == text
    assert names(tmp_path) == ["bundle"]


def test_overwrite_never_removes_what_is_no_bundle(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "cat.jpg").write_text("meow")
    (tmp_path / "link").symlink_to(photographs)
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("photographs", "photographs/cat.jpg", "link", "dangling", "."):
        with pytest.raises(ExportError, match="is no bundle, and --overwrite replaces nothing else"):  # noqa: SIM117
            with whole_folder(tmp_path / name, overwrite=True):
                pytest.fail("the export began")
    assert names(tmp_path) == ["dangling", "link", "photographs"]
    assert names(photographs) == ["cat.jpg"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_root_of_the_file_system_is_no_bundle(overwrite: bool) -> None:
    with pytest.raises(ExportError, match=r"^/ is the root of the file system"), whole_folder(Path("/"), overwrite):
        pytest.fail("a folder was given")


def test_a_failed_overwrite_leaves_the_former_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_folder(tmp_path / "bundle") as folder:
        fill(folder, "former")
    with pytest.raises(KeyError), whole_folder(tmp_path / "bundle", overwrite=True) as folder:  # noqa: PT012
        fill(folder)
        raise KeyError
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "former"

    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if str(source).endswith(".varco-partial"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(output.os, "replace", failing)
    with pytest.raises(ExportError, match="Input/output error"):  # noqa: SIM117
        with whole_folder(tmp_path / "bundle", overwrite=True) as folder:
            fill(folder)
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "former"
    assert names(tmp_path) == ["bundle"]


def test_what_appears_during_an_export_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="exists already"), whole_folder(tmp_path / "bundle") as folder:  # noqa: PT012
        fill(folder)
        (tmp_path / "bundle").write_text("mine")
    assert (tmp_path / "bundle").read_text() == "mine"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("parent", ["/proc/varco-edge", "/dev/null", "/dev/null/deeper"])
def test_a_folder_that_takes_no_files_is_one_line(parent: str) -> None:
    with pytest.raises(ExportError, match="bundle could not be written: "), whole_folder(Path(parent) / "bundle"):
        pytest.fail("the export began")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match="Permission denied"), whole_folder(tmp_path / "bundle"):
        pytest.fail("the export began")


# --- several runs -----------------------------------------------------------------------------------------------------


def test_a_second_export_to_the_same_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "bundle") as folder:
        fill(folder)
        with pytest.raises(ExportError) as caught, whole_folder(tmp_path / "bundle", overwrite=True):
            pytest.fail("the export began")
        assert names(folder) == [MANIFEST]
    assert one_line(caught.value) == (
        f"{tmp_path / 'bundle'} is being written by another export. Wait until it ends, or choose another output "
        "folder."
    )
    assert names(tmp_path) == ["bundle"]


def test_exports_to_neighbouring_folders_do_not_touch_each_other(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "one") as one:
        fill(one, "1")
        with whole_folder(tmp_path / "two") as two:
            fill(two, "2")
        assert names(one) == [MANIFEST]
    assert names(tmp_path) == ["one", "two"]


def test_of_many_exports_at_once_each_is_whole_or_refused(tmp_path: Path) -> None:
    whole: list[int] = []
    odd: list[BaseException] = []

    def run(number: int) -> None:
        for _ in range(20):
            try:
                with whole_folder(tmp_path / "bundle", overwrite=True) as folder:
                    fill(folder, str(number))
                    (folder / f"{number}").write_text("")
                whole.append(number)
            except ExportError as error:
                if "is being written by another export" not in str(error):
                    odd.append(error)
            except BaseException as error:
                odd.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not odd
    assert whole
    last = (tmp_path / "bundle" / MANIFEST).read_text()
    assert names(tmp_path / "bundle") == [last, MANIFEST]
    assert names(tmp_path) == ["bundle"]


def test_a_lock_that_its_last_holder_removes_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, flock, removed = tmp_path / ".bundle.varco-lock", lock.fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(held.unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with whole_folder(tmp_path / "bundle"):
        assert held.exists()
    assert removed


def leave_behind(folder: Path, name: str) -> None:
    """What a killed run leaves: a lock that nobody holds, and what it had written."""
    (folder / f".{name}.varco-lock").touch()
    (folder / f".{name}.varco-partial").mkdir()
    fill(folder / f".{name}.varco-partial")


@pytest.mark.parametrize("next_target", ["bundle", "another"])
def test_the_next_run_removes_what_killed_runs_left(tmp_path: Path, next_target: str) -> None:
    leave_behind(tmp_path, "bundle")
    with whole_folder(tmp_path / next_target) as folder:
        fill(folder)
    assert names(tmp_path) == [next_target]


def test_a_run_killed_between_the_two_renames_of_an_overwrite_loses_nothing(tmp_path: Path) -> None:
    leave_behind(tmp_path, "bundle")
    (tmp_path / ".bundle.varco-old").mkdir()
    fill(tmp_path / ".bundle.varco-old", "former")
    with whole_folder(tmp_path / "another") as folder:
        fill(folder)
    assert names(tmp_path) == ["another", "bundle"]
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "former"


def test_reclaiming_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    fill(tmp_path / "mine")
    (tmp_path / ".bundle.varco-lock").touch()
    (tmp_path / ".bundle.varco-partial").symlink_to(tmp_path / "mine")
    with pytest.raises(ExportError, match="could not be written: File exists"), whole_folder(tmp_path / "bundle"):
        pytest.fail("the export began")
    assert names(tmp_path / "mine") == [MANIFEST]


# --- a real export ----------------------------------------------------------------------------------------------------

KILLED = """
import contextlib, os, signal, sys
from pathlib import Path
from varco_export.export import ExportOptions, export

class Killer:
    left = int(sys.argv[3])

    def step(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def component(self, name, steps):
        self.step()
        yield self.step
        self.step()

export(Path(sys.argv[1]), Path(sys.argv[2]), ExportOptions(), Killer())
"""
NUM_STEPS = 15


@pytest.mark.parametrize("step", [1, 9, NUM_STEPS])
def test_a_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(
    tiny_checkpoint: Path, tmp_path: Path, step: int
) -> None:
    target = tmp_path / "bundle"
    command = [sys.executable, "-c", KILLED, tiny_checkpoint, target, str(step)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) == [".bundle.varco-lock", ".bundle.varco-partial"]
    for folder in (target, tmp_path / ".bundle.varco-partial"):
        with pytest.raises(BundleError):
            Bundle.open(folder)
    export_bundle(tiny_checkpoint, target)
    assert names(tmp_path) == ["bundle"]
    Bundle.open(target, verify="full")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.2, 0.5, 0.9, 0.9999])
def test_a_disk_that_fills_during_an_export_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: float
) -> None:
    hashed_bytes = sum(path.stat().st_size for path in tiny_bundle.iterdir() if path.name != MANIFEST)
    monkeypatch.setattr(hashed_file, "open", Budget(int(part * hashed_bytes)), raising=False)
    with pytest.raises(ExportError, match="could not be written: No space left on device") as caught:
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert str(tmp_path) in one_line(caught.value)
    assert names(tmp_path) == []


def test_a_disk_with_room_for_all_but_the_manifest_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_manifest(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varco_export.export.write_manifest", write_manifest)
    with pytest.raises(ExportError, match="bundle could not be written: No space left on device"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert names(tmp_path) == []


@pytest.mark.parametrize("max_bytes", [0, 1000, 100_000, 1_000_000])
def test_a_limit_on_file_sizes_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, max_bytes: int
) -> None:
    with full_disk(max_bytes), pytest.raises(ExportError, match="could not be written: File too large"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root, outside most containers, mounts a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")
def test_a_file_system_that_is_really_full_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, small_disk: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        export_bundle(tiny_checkpoint, small_disk / "bundle")
    assert re.fullmatch(
        r".*/decoder\.onnx\.data could not be written: No space left on device\. .*", one_line(caught.value)
    )
    assert names(small_disk) == []
