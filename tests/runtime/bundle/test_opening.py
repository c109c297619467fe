"""A bundle is opened only when it is exactly what was exported: every file, and nothing in the place of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.makers.manifests import FILES, forge, refusal
from varco_runtime import Varco
from varco_runtime.bundle import opening as bundle_module
from varco_runtime.bundle.manifest import FORMAT_VERSION
from varco_runtime.bundle.opening import MAX_MANIFEST_BYTES, Bundle, read_manifest
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import BundleError

pytestmark = pytest.mark.usefixtures("empty_cache")

VERSION = f'"format_version": {FORMAT_VERSION}'.encode()


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_bundle_as_exported_opens_and_holds_the_files_of_its_manifest(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert sorted([MANIFEST, *opened.manifest.files]) == sorted(FILES) == sorted(os.listdir(bundle))


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.full)])
def test_a_flip_of_any_byte_of_the_manifest_is_refused(bundle: Path, step: int) -> None:
    path = bundle / MANIFEST
    raw = path.read_bytes()
    for position in range(0, len(raw), step):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            read_manifest(bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", ["quick", "full"])
def test_a_flipped_byte_of_any_file_is_refused(bundle: Path, name: str, verify: str) -> None:
    Bundle.open(bundle)  # what it remembers must not help
    path = bundle / name
    raw = path.read_bytes()
    for position in (0, len(raw) // 3, len(raw) - 1):
        damaged = bytearray(raw)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        message = refusal(bundle, verify)
        assert f"{path} " in message
        if name != MANIFEST:
            assert "has been altered: its sha256 is" in message


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_is_refused_before_it_is_hashed(bundle: Path, name: str, change: int) -> None:
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, size + change)
    seen: list[str] = []
    with pytest.raises(BundleError, match=f"{name} has {size + change} bytes, expected {size}"):
        Bundle.open(bundle, progress=lambda hashed, _: seen.append(hashed))
    assert name not in seen


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST])
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert refusal(bundle) == f"{bundle / name} is missing. Copy or export the bundle again."


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_to_the_right_content_is_refused(bundle: Path, name: str, tmp_path: Path) -> None:
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    assert f"{name} is a symbolic link, expected a plain file" in refusal(bundle)


def test_two_files_that_changed_places_are_refused(bundle: Path) -> None:
    for one, other in (("vision.onnx", "projector.onnx"), ("decoder.onnx.data", "vision.onnx.data")):
        for left, right in ((one, "aside"), (other, one), ("aside", other)):
            os.rename(bundle / left, bundle / right)
        assert "bytes, expected" in refusal(bundle)


def test_a_file_of_another_bundle_with_the_same_length_is_refused(bundle: Path) -> None:
    path = bundle / "projector.onnx.data"
    other = bundle / "other"
    other.write_bytes(bytes(path.stat().st_size))
    os.replace(other, path)
    assert "projector.onnx.data has been altered" in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_does_not_block_and_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert f"{name} is a folder, pipe or device, expected a plain file" in refusal(bundle)


@pytest.mark.parametrize("name", ["bundle.json", "vision.onnx", "embedding.bin"])
def test_a_folder_in_place_of_a_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    assert "is a folder, pipe or device" in refusal(bundle)


def test_a_socket_in_place_of_a_file_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "vision.onnx").unlink()
    monkeypatch.chdir(bundle)  # a socket's path may have 107 characters
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind("vision.onnx")
        assert "vision.onnx cannot be read (No such device or address), expected a plain file" in refusal(bundle)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_a_device_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "vision.onnx").unlink()
    try:
        os.mknod(bundle / "vision.onnx", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except OSError:
        pytest.skip("no device files can be made here")
    assert "vision.onnx is a folder, pipe or device" in refusal(bundle)


def test_a_linked_folder_inside_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        document["files"]["text/tokenizer.json"] = document["files"].pop("tokenizer.json")
        document["tokenizer"] = "text/tokenizer.json"

    forge(bundle, move)
    (bundle / "text").mkdir()
    (bundle / "tokenizer.json").rename(bundle / "text" / "tokenizer.json")
    Bundle.open(bundle)
    (bundle / "text").rename(tmp_path / "text")
    (bundle / "text").symlink_to(tmp_path / "text")
    assert "tokenizer.json lies behind a symbolic link, expected a plain file" in refusal(bundle)


def test_a_link_to_the_whole_bundle_opens(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    Bundle.open(tmp_path / "current")


# --- a hub's cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The bundle as huggingface_hub lays a download out: `snapshots/REVISION` links to `blobs`."""
    repository = tmp_path / "models--someone--bundle"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in tiny_bundle.iterdir():
        blob = hashlib.sha256(path.name.encode()).hexdigest()
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_bundle_in_a_hubs_cache_answers_as_the_bundle_itself(
    snapshot: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Varco.load(tiny_bundle).ask(None, "Hello", max_new_tokens=8).token_ids
    assert Varco.load(snapshot, verify="full").ask(None, "Hello", max_new_tokens=8).token_ids == expected
    monkeypatch.chdir(snapshot)
    assert Varco.load(".").bundle.manifest == read_manifest(tiny_bundle)


def test_a_blob_of_a_hubs_cache_must_hold_what_the_manifest_says(snapshot: Path) -> None:
    blob = (snapshot / "decoder.onnx").resolve()
    raw = bytearray(blob.read_bytes())
    raw[7] ^= 1
    blob.write_bytes(raw)
    assert "decoder.onnx has been altered" in refusal(snapshot)
    blob.unlink()
    assert "decoder.onnx is missing" in refusal(snapshot)
    os.mkfifo(blob)
    assert "decoder.onnx is a folder, pipe or device" in refusal(snapshot)


def test_a_link_of_a_hubs_cache_to_anything_but_its_blobs_is_refused(snapshot: Path, tmp_path: Path) -> None:
    link = snapshot / "decoder.onnx"
    blob = link.resolve()
    for target in (tmp_path / "outside", tmp_path / "blobs" / "outside", blob.parent / "below" / "it"):
        target.parent.mkdir(exist_ok=True)
        shutil.copy(blob, target)
        link.unlink()
        link.symlink_to(target)
        message = refusal(snapshot)
        assert "decoder.onnx is a symbolic link, expected a plain file or a link within a Hugging Face cache" in message
        assert message.endswith("Copy the files themselves: cp -rL BUNDLE COPY")


def test_a_hubs_cache_whose_blobs_lie_elsewhere_is_refused(snapshot: Path, tmp_path: Path) -> None:
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(tmp_path / "blobs")
    blobs.symlink_to(tmp_path / "blobs")
    assert "is a symbolic link" in refusal(snapshot)


def test_files_that_the_manifest_does_not_name_are_never_opened(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")  # opening it to read would block
    (bundle / "dangling").symlink_to("nowhere")
    (bundle / "README.md").write_text("mine")
    Bundle.open(bundle, verify="full")


def test_a_disk_that_fails_while_a_file_is_hashed_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, descriptor: int, *_: object, **__: object) -> None:
            self.descriptor = descriptor

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self.descriptor)

        def fileno(self) -> int:
            return self.descriptor

        def read(self, _: int) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(bundle_module, "open", Broken, raising=False)
    assert "bundle.json cannot be read (Input/output error). Check the disk" in refusal(bundle)


# --- what is no bundle ------------------------------------------------------------------------------------------------


def test_what_is_no_bundle_says_how_to_make_one(bundle: Path, tmp_path: Path) -> None:
    next_step = "Make one with: varco export CHECKPOINT BUNDLE"
    assert refusal(tmp_path / "x") == f"{tmp_path / 'x'} is not a bundle: there is no such folder. {next_step}"
    assert "vision.onnx is not a bundle: it is a file" in refusal(bundle / "vision.onnx")
    (bundle / MANIFEST).unlink()
    assert refusal(bundle) == f"{bundle} is not a bundle: it holds no bundle.json. {next_step}"


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 10**30])
def test_a_newer_format_version_says_to_upgrade(bundle: Path, version: int) -> None:
    forge(bundle, lambda document: document.update(format_version=version, something="new"))
    message = refusal(bundle)
    assert f"has format version {version}, this varco-edge reads version {FORMAT_VERSION}" in message
    assert "Upgrade varco-edge" in message


def test_a_newer_version_need_not_be_spelled_like_this_one(bundle: Path) -> None:
    (bundle / MANIFEST).write_text(f'{{"format_version": {FORMAT_VERSION + 1}}}')
    assert "Upgrade varco-edge" in refusal(bundle)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION - 1, True, 2.0, "2", None, [1], {}, ["x" * 10_000]])
def test_any_other_format_version_is_refused(bundle: Path, version: object) -> None:
    forge(bundle, lambda document: document.update(format_version=version))
    message = refusal(bundle)
    assert "has format version" in message
    assert message.endswith(" Export the bundle again.")  # a copy of it would be as old


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"format_version"',
        b"\xff\xfe{",
        b'{"format_version": 1',
        b'{"format_version": 1} {}',
        b'{"format_version": NaN}',
        b'{"format_version": 1, "x": Infinity}',
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b'{"format_version": 1, "x": ' + b"[" * 100_000,
        b'{"format_version": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"format_version": 1, "x": ' + b'{"x": ' * 20 + b"1" + b"}" * 21,
    ],
)
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, raw: bytes) -> None:
    (bundle / MANIFEST).write_bytes(raw)
    assert "is not a bundle manifest: it is no JSON object with a format_version" in refusal(bundle)


@pytest.mark.parametrize(
    "respell",
    [
        lambda raw: raw.replace(b" ", b"", 1),
        lambda raw: raw + b"\n",
        lambda raw: raw.decode().encode("utf-16"),
        lambda raw: raw.replace(VERSION, VERSION + b",\n " + VERSION),
        lambda raw: raw.replace(b"0.5", b"0.50", 1),
        lambda raw: raw.replace(b'"digest"', b'"digest2"'),
    ],
)
def test_a_manifest_in_another_spelling_is_refused(bundle: Path, respell: Callable[[bytes], bytes]) -> None:
    raw = (bundle / MANIFEST).read_bytes()
    assert respell(raw) != raw
    (bundle / MANIFEST).write_bytes(respell(raw))
    assert "has been altered: its digest does not match its content" in refusal(bundle)


def test_a_manifest_of_gigabytes_is_refused_unread(bundle: Path) -> None:
    os.truncate(bundle / MANIFEST, 1 << 40)
    assert f"has {1 << 40} bytes, expected at most {MAX_MANIFEST_BYTES}" in refusal(bundle)
