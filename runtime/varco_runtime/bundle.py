"""The bundle: its one schema, and the checks before anything in it is used.

    bundle/
      bundle.json          the manifest below; its last field is a digest of the rest
      tokenizer.json  chat_template.jinja
      vision.onnx  projector.onnx  decoder.onnx  *.onnx.data
      embedding.bin        rows [vocab_size + 1, hidden] in the checkpoint's type; the last row is image_newline;
                           not where a graph holds them
      packing.onnx  embedding.onnx           for TensorRT, which packs and looks up on the device
      pixels.onnx  packing.onnx  sampling.onnx   for CUDA, which also normalises pixels and draws tokens there
      probes-1a2b3c4d.json                   questions with the exact model's answers, to prove the bundle by
      engines/sm89/*.engine                  made of the graphs by `varco engines`, for one kind of device each

The exporter fills a `Manifest` and calls `write_manifest`; the runtime calls `Bundle.open`. A bundle is not trusted:
the manifest is bounded before it is parsed and its numbers before they are used; every other file must be a plain file
of the recorded size and sha256, reached over no symbolic link, and only then does a library see it. Small files are
hashed at every opening, large ones when path, size, time or inode are new (`verified.py`). Files that the manifest does
not name are never opened.

What this does not do: the hashes lie in the bundle, so they tell of damage and of a part that was exchanged, not of who
made the whole. A graph refers to its data file by name, and that reference is covered by the graph's hash: it is as
good as the exporter that wrote it (onnxruntime 1.31 refuses one that leaves the folder). Load bundles of people whose
programs you would run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from varco_runtime.errors import BundleError, ExportError
from varco_runtime.manifest import FORMAT_VERSION, FileFacts, Manifest
from varco_runtime.schema import MANIFEST, MAX_DEPTH, is_shallow, manifest_of, no_constant, serialise, short
from varco_runtime.verified import Remembered

MAX_MANIFEST_BYTES = 4 << 20
LARGE_SUFFIXES = (".data", ".bin")
"""Files hashed once and then remembered; everything else is hashed at every opening."""

_AGAIN = "Copy or export the bundle again."


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files have been checked."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], verify: str = "quick", progress: Callable[[str, int], None] | None = None
    ) -> Bundle:
        """Read the manifest and check every file.

        `verify`: `quick` remembers the hash of large files that have not changed since, `full` hashes everything.
        `progress(file, num_bytes)` is called as bytes are hashed. Raises `BundleError`.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        remembered = Remembered.load()
        for name, facts in sorted(manifest.files.items()):
            check_file(path, name, facts, remembered, full=verify == "full", progress=progress)
        remembered.save()
        return cls(path, manifest)

    def path(self, name: str) -> Path:
        assert name in self.manifest.files, f"Bug: {name} is not a file of this bundle"
        return self.folder / name

    def text(self, name: str) -> str:
        try:
            return self.path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{name} of {self.folder} cannot be read: {error}. Export the bundle again.") from None


def read_manifest(folder: Path) -> Manifest:
    """Parse `bundle.json`, which must be byte for byte what `write_manifest` writes. Raises `BundleError`."""
    path = folder / MANIFEST
    document = _parse(path, _manifest_bytes(folder, path))
    version = document["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        step = "Upgrade varco-edge, or export the bundle again." if newer else "Export the bundle again."
        raise BundleError(
            f"{path} has format version {short(version)}, this varco-edge reads version {FORMAT_VERSION}. {step}"
        )
    try:
        return manifest_of(document)
    except ValueError as error:
        raise BundleError(f"{path} does not fit the schema: {error}. {_AGAIN}") from None


def _manifest_bytes(folder: Path, path: Path) -> bytes:
    """What the manifest's file holds, of bounded length."""
    make_one = "Make one with: varco export CHECKPOINT BUNDLE"
    if not os.path.isdir(folder):
        got = "it is a file" if os.path.exists(folder) else "there is no such folder"
        raise BundleError(f"{folder} is not a bundle: {got}. {make_one}")
    if not os.path.lexists(path):
        raise BundleError(f"{folder} is not a bundle: it holds no {MANIFEST}. {make_one}")
    with _open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} has {size} bytes, expected at most {MAX_MANIFEST_BYTES}. {_AGAIN}")
        return _read(file, path, MAX_MANIFEST_BYTES + 1)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """The JSON object of a manifest, in the one spelling that a manifest has, digest included."""
    try:
        document = json.loads(raw, parse_constant=no_constant)
        if not isinstance(document, dict) or "format_version" not in document or not is_shallow(document, MAX_DEPTH):
            raise ValueError
    except (ValueError, RecursionError):
        raise BundleError(
            f"{path} is not a bundle manifest: it is no JSON object with a format_version. {_AGAIN}"
        ) from None
    if document["format_version"] == FORMAT_VERSION and raw != serialise(document):
        raise BundleError(f"{path} has been altered: its digest does not match its content. {_AGAIN}")
    return document


def check_file(
    folder: Path,
    name: str,
    facts: FileFacts,
    remembered: Remembered,
    full: bool,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Raise `BundleError` unless the file is a plain file of the recorded size and hash."""
    path = folder / name
    if any(parent.is_symlink() for parent in path.parents if parent != folder and folder in parent.parents):
        raise BundleError(f"{path} lies behind a symbolic link, expected a plain file. {_AGAIN}")
    with _open_plain(path) as file:
        info = os.fstat(file.fileno())
        if info.st_size != facts.size:
            raise BundleError(f"{path} has {info.st_size} bytes, expected {facts.size}. {_AGAIN}")
        large = name.endswith(LARGE_SUFFIXES)
        if large and not full and remembered.knows(path, info, facts.sha256):
            return
        digest, started_ns = hashlib.sha256(), time.time_ns()
        while block := _read(file, path, 4 << 20):
            digest.update(block)
            if progress is not None:
                progress(name, len(block))
    sha256 = digest.hexdigest()
    if sha256 != facts.sha256:
        raise BundleError(
            f"{path} has been altered: its sha256 is {sha256[:12]}…, expected {facts.sha256[:12]}…. {_AGAIN}"
        )
    if large:
        remembered.remember(path, info, facts.sha256, started_ns)


def _open_plain(path: Path) -> BinaryIO:
    """Open a plain file, without following a link and without waiting for whoever feeds a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. {_AGAIN}") from None
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise BundleError(f"{path} {reason}, expected a plain file. {_AGAIN}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is a folder, pipe or device, expected a plain file. {_AGAIN}")
    return open(descriptor, "rb", buffering=0)


def _read(file: BinaryIO, path: Path, max_bytes: int) -> bytes:
    try:
        return file.read(max_bytes)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}). Check the disk, then copy the bundle again."
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`, the last file of a bundle. Raises `ExportError` for what `read_manifest` would refuse."""
    raw = serialise(dataclasses.asdict(manifest))
    try:
        manifest_of(json.loads(raw))
    except ValueError as error:
        raise ExportError(
            f"No bundle can be made of this checkpoint: {error}. Compare its config.json with the original."
        ) from None
    # A bundle that stands already (engines are added to it) has the old manifest or the new one, never a part.
    partial = folder / f".{MANIFEST}.partial"
    with open(partial, "wb", buffering=0) as file:
        file.write(raw)
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)
