"""The bundle: its one schema, and the checks before anything in it is used.

    bundle/
      bundle.json          the manifest below; its last field is a digest of the rest
      tokenizer.json  chat_template.jinja
      vision.onnx  projector.onnx  decoder.onnx  *.onnx.data
      embedding.bin        rows [vocab_size + 1, hidden] in the checkpoint's type; the last row is image_newline;
                           not where a graph holds them
      packing.onnx  embedding.onnx           for TensorRT, which packs and looks up on the device
      pixels.onnx  packing.onnx  sampling.onnx   for CUDA, which also normalizes pixels and draws tokens there
      probes-1a2b3c4d.json                   questions with the exact model's answers, to prove the bundle by
      engines/sm89/*.engine                  made of the graphs by `varco engines`, for one kind of device each

The exporter fills a `Manifest` and calls `write_manifest`; the runtime calls `Bundle.open`. A bundle is not trusted:
the manifest is bounded before it is parsed and its numbers before they are used; every other file must be a plain file
of the recorded size and sha256, and only then does a library see it. Small files are hashed at every opening, large
ones when path, size, time or inode are new (`verified.py`). A graph may read listed files alone (`graph_files.py`), so
that files which the manifest does not name are never opened.

The one symbolic link that is followed is Hugging Face's: in `models--OWNER--NAME/snapshots/REVISION` each file links to
`models--OWNER--NAME/blobs`, where a plain file of the recorded hash must lie.

Libraries open files by their paths, after they were hashed. So each file's inode, size and times are noted when it is
hashed, and compared once everything is loaded (`Bundle.unchanged`): an `export --overwrite` in between is an error and
never a mixture of two bundles. Large files stay mapped as long as they are loaded. Replacing them by renaming is then
harmless, writing into them is not: they are compared again before each question (`Bundle.check_mapped`), and what is
truncated in the middle of an answer ends the process with SIGBUS.

What this does not do: the hashes lie in the bundle, so they tell of damage and of a part that was exchanged, not of who
made the whole. Load bundles of people whose programs you would run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from varco_runtime.bundle.graph_files import external_files
from varco_runtime.bundle.manifest import FORMAT_VERSION, FileFacts, Manifest
from varco_runtime.bundle.schema import (
    LATER_KEYS,
    MANIFEST,
    MAX_DEPTH,
    is_shallow,
    manifest_of,
    no_constant,
    serialize,
    short,
)
from varco_runtime.bundle.verified import Remembered
from varco_runtime.errors import BundleError, ExportError
from varco_runtime.system.files import durable_file

MAX_MANIFEST_BYTES = 4 << 20
MAX_GRAPH_BYTES = 16 << 20
"""Weights lie in data files: the graph of the largest model has less than a megabyte."""
LARGE_SUFFIXES = (".data", ".bin")
"""Files hashed once and then remembered; everything else is hashed at every opening."""

_AGAIN = "Copy or export the bundle again."


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a file from another one at the same path, and from itself after a change."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> Stamp:
        """Return the stamp in what `stat` or `fstat` says."""
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    def is_rewritten_as(self, now: Stamp) -> bool:
        """Return whether `now` is the same file with another content: no new file, nor one that got a second name."""
        same_file = (now.device, now.inode) == (self.device, self.inode)
        return same_file and (now.size, now.mtime_ns) != (self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files have been checked: all of them by `open`, those that were asked for by `read` and `check`.

    Args:
        folder: Where it lies.
        manifest: What its `bundle.json` says.
        stamps: The checked files as they were then.
    """

    folder: Path
    manifest: Manifest
    stamps: dict[str, Stamp] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], verify: str = "quick", progress: Callable[[str, int], None] | None = None
    ) -> Bundle:
        """Read the manifest and check every file.

        Args:
            folder: The bundle.
            verify: `quick` remembers the hash of large files that have not changed since, `full` hashes everything.
            progress: Called with a file's name and a number of bytes as they are hashed.

        Raises:
            BundleError: It is no bundle, a file is missing, altered or none that a library may read, or the bundle was
                exchanged meanwhile.
        """
        bundle = cls.read(folder)
        try:
            bundle.check(bundle.manifest.files, full=verify == "full", progress=progress)
        except BundleError:
            if bundle._has_another_manifest():  # the files are another bundle's by now, and no worse for it
                raise bundle._exchanged(MANIFEST) from None
            raise
        return bundle

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and check no other file yet.

        Raises:
            BundleError: There is none, or it does not fit the schema.
        """
        path = Path(folder)
        return cls(path, read_manifest(path))

    def check(
        self, names: Iterable[str], full: bool = False, progress: Callable[[str, int], None] | None = None
    ) -> None:
        """Check files of these names, and that graphs among them read listed files alone.

        Args:
            names: Files that the manifest lists.
            full: Hash large files too that were hashed before.
            progress: Called with a file's name and a number of bytes as they are hashed.

        Raises:
            BundleError: A file is missing, altered, or none that a library may read.
        """
        graphs = {part.file for part in self.manifest.components.values()}
        remembered = Remembered.load()
        for name in sorted(names):
            info = check_file(self.folder, name, self.manifest.files[name], remembered, full, progress)
            self.stamps[name] = Stamp.of(info)
            if name in graphs:
                check_graph(name, self._bytes(name), self.folder, self.manifest)
        remembered.save()

    def _has_another_manifest(self) -> bool:
        try:
            return read_manifest(self.folder) != self.manifest
        except BundleError:
            return True

    def path(self, name: str) -> Path:
        """Return where a file lies that the manifest lists."""
        assert name in self.manifest.files, f"Bug: {name} is not a file of this bundle"
        return self.folder / name

    def text(self, name: str) -> str:
        """Read a checked file that is text. Raises `BundleError`, also where it has changed since it was checked."""
        try:
            return self._bytes(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{name} of {self.folder} cannot be read: {error}. Export the bundle again.") from None

    def _bytes(self, name: str) -> bytes:
        """Return all of a checked file, from the very file that was hashed."""
        with _open_plain(self.folder, name) as file:
            if Stamp.of(os.fstat(file.fileno())) != self.stamps[name]:
                raise self._exchanged(name)
            return _read(file, self.path(name), self.manifest.files[name].size)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Make sure that what is opened by path within the block is what was checked.

        Raises:
            BundleError: A checked file was exchanged, written or removed since. It comes instead of an error in the
                block too, which the change may have caused.
        """
        try:
            yield
        except Exception:
            self.check_unchanged()
            raise
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise `BundleError` where a checked file is another one by now, or has another content."""
        for name, stamp in self.stamps.items():
            if self._stamp_now(name) != stamp:
                raise self._exchanged(name)

    def check_mapped(self) -> None:
        """Raise `BundleError` where a large file, which stays mapped while it is loaded, was written in place since.

        What was replaced by renaming is as good as before: the old file lives as long as it is mapped.
        """
        for name, stamp in self.stamps.items():
            if name.endswith(LARGE_SUFFIXES):
                now = self._stamp_now(name)
                if now is not None and stamp.is_rewritten_as(now):
                    raise BundleError(
                        f"{self.path(name)} was written while it is loaded, and answers would come from both contents. "
                        "Load the bundle again; to replace one, rename it as varco export --overwrite does."
                    )

    def _stamp_now(self, name: str) -> Stamp | None:
        try:
            return Stamp.of(os.stat(self.folder / name))
        except OSError:
            return None

    def _exchanged(self, name: str) -> BundleError:
        return BundleError(
            f"{self.folder / name} was exchanged or written while the bundle was being loaded. Load it again when "
            "whoever writes it has finished."
        )


def read_manifest(folder: Path) -> Manifest:
    """Parse `bundle.json`, which must be byte for byte what `write_manifest` writes.

    Raises:
        BundleError: There is none, it is of another version, was altered, or does not fit the schema.
    """
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
    """Return what the manifest's file holds, of bounded length."""
    make_one = "Make one with: varco export CHECKPOINT BUNDLE"
    if not os.path.isdir(folder):
        got = "it is a file" if os.path.exists(folder) else "there is no such folder"
        raise BundleError(f"{folder} is not a bundle: {got}. {make_one}")
    if not os.path.lexists(path):
        raise BundleError(f"{folder} is not a bundle: it holds no {MANIFEST}. {make_one}")
    with _open_plain(folder, MANIFEST) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} has {size} bytes, expected at most {MAX_MANIFEST_BYTES}. {_AGAIN}")
        return _read(file, path, MAX_MANIFEST_BYTES + 1)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a manifest, in the one spelling that a manifest has, digest included."""
    try:
        document = json.loads(raw, parse_constant=no_constant)
        if not isinstance(document, dict) or "format_version" not in document or not is_shallow(document, MAX_DEPTH):
            raise ValueError
    except (ValueError, RecursionError):
        raise BundleError(
            f"{path} is not a bundle manifest: it is no JSON object with a format_version. {_AGAIN}"
        ) from None
    if document["format_version"] == FORMAT_VERSION and raw != serialize(document):
        raise BundleError(f"{path} has been altered: its digest does not match its content. {_AGAIN}")
    return document


def check_file(
    folder: Path,
    name: str,
    facts: FileFacts,
    remembered: Remembered,
    full: bool,
    progress: Callable[[str, int], None] | None = None,
) -> os.stat_result:
    """Check that a file is a plain one of the recorded size and hash.

    Args:
        folder: The bundle.
        name: The file's name in it.
        facts: What the manifest says of it.
        remembered: Hashes found earlier; that of a large file is added.
        full: Hash a large file although its hash is remembered.
        progress: Called with the name and a number of bytes as they are hashed.

    Returns:
        What the system said of the file before it was hashed.

    Raises:
        BundleError: It is missing, altered, cannot be read, or is no plain file.
    """
    path = folder / name
    if any(parent.is_symlink() for parent in path.parents if parent != folder and folder in parent.parents):
        raise BundleError(f"{path} lies behind a symbolic link, expected a plain file. {_AGAIN}")
    with _open_plain(folder, name) as file:
        info = os.fstat(file.fileno())
        if info.st_size != facts.size:
            raise BundleError(f"{path} has {info.st_size} bytes, expected {facts.size}. {_AGAIN}")
        large = name.endswith(LARGE_SUFFIXES)
        if large and not full and remembered.knows(path, info, facts.sha256):
            return info
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
    return info


def check_graph(name: str, content: bytes, folder: Path, manifest: Manifest) -> None:
    """Check that a graph is one, and reads files alone that the manifest lists.

    Args:
        name: The graph's name in the bundle.
        content: Its bytes.
        folder: The bundle.
        manifest: What lists the files.

    Raises:
        BundleError: It is no graph, is too large, or reads another file.
    """
    if len(content) > MAX_GRAPH_BYTES:
        raise BundleError(
            f"{folder / name} has {len(content)} bytes, expected at most {MAX_GRAPH_BYTES} of a graph without its "
            "weights. Export the bundle again."
        )
    try:
        others = external_files(content)
    except ValueError as error:
        raise BundleError(f"{folder / name} is no ONNX graph: {error}. Export the bundle again.") from None
    prefix = name[: name.rfind("/") + 1]  # names are relative to the graph's own folder
    for other in sorted(others):
        if prefix + other not in manifest.files:
            raise BundleError(
                f"{folder / name} reads the file {short(other)}, which the manifest does not list. Export the bundle "
                "again."
            )


def _open_plain(folder: Path, name: str) -> BinaryIO:
    """Open a plain file of a bundle, without waiting for whoever feeds a pipe. The link of a hub's cache is followed,
    any other refused."""
    path = folder / name
    target = _blob(folder, path) or path
    try:
        descriptor = os.open(target, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. {_AGAIN}") from None
    except OSError as error:
        if path.is_symlink():
            raise BundleError(
                f"{path} is a symbolic link, expected a plain file or a link within a Hugging Face cache. Copy the "
                "files themselves: cp -rL BUNDLE COPY"
            ) from None
        raise BundleError(f"{path} cannot be read ({error.strerror}), expected a plain file. {_AGAIN}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is a folder, pipe or device, expected a plain file. {_AGAIN}")
    return open(descriptor, "rb", buffering=0)


def _blob(folder: Path, path: Path) -> str | None:
    """Return the file that `path` links to in the way of huggingface_hub's cache; None for anything else.

    `folder` is then `REPOSITORY/snapshots/REVISION`, and the file lies in `REPOSITORY/blobs`.
    """
    if not path.is_symlink():
        return None
    snapshots, _ = os.path.split(os.path.realpath(folder))
    repository, kind = os.path.split(snapshots)
    target = os.path.realpath(path)
    is_blob = kind == "snapshots" and os.path.dirname(target) == os.path.join(repository, "blobs")
    return target if is_blob else None


def _read(file: BinaryIO, path: Path, max_bytes: int) -> bytes:
    try:
        return file.read(max_bytes)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}). Check the disk, then copy the bundle again."
        ) from None


def digest_of(manifest: Manifest) -> str:
    """Return the digest that `bundle.json` states for this manifest."""
    return str(json.loads(serialize(_document(manifest)))["digest"])


def _document(manifest: Manifest) -> dict[str, Any]:
    """Return what `bundle.json` holds; a key that an earlier export did not write stays away."""
    document: dict[str, Any] = _without_later_nulls(dataclasses.asdict(manifest))
    return document


def _without_later_nulls(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_without_later_nulls, value))
    if not isinstance(value, dict):
        return value
    return {key: _without_later_nulls(held) for key, held in value.items() if held is not None or key not in LATER_KEYS}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`, the last file of a bundle.

    A bundle that stands already (engines are added to it) has the old manifest or the new one, never a part.

    Raises:
        ExportError: `read_manifest` would refuse it.
        OSError: The folder or its disk refuses.
    """
    raw = serialize(_document(manifest))
    try:
        manifest_of(json.loads(raw))
    except ValueError as error:
        raise ExportError(
            f"No bundle can be made of this checkpoint: {error}. Compare its config.json with the original."
        ) from None
    with durable_file(folder / MANIFEST, folder / f".{MANIFEST}.partial") as file:
        file.write(raw)
