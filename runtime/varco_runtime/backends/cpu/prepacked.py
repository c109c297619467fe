"""Weights as onnxruntime's kernels want them, kept in the user's cache folder.

onnxruntime optimises a graph and packs its weights anew at every load, into memory of the process's own. Kept on disk,
the packed weights are mapped instead: loading takes a fraction of the time, and processes share the pages.

An entry belongs to one graph with its weights, one version of onnxruntime and one kind of processor, whose vector width
the layout follows; `entry.json` holds size and sha256 of its files, which are checked like those of a bundle. What is
damaged, does not load, or may have been written by another user is made again.

onnxruntime 1.31 reads some packed weights wrongly where their place in the file is not aligned as their place in memory
was (MatMulNBits with int8 activations: its sums of blocks; seen with small layers). An entry is therefore tried before
it is kept: its outputs must be those of the graph to the bit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from varco_runtime.bundle.manifest import Component, FileFacts
from varco_runtime.bundle.opening import Bundle, check_file
from varco_runtime.bundle.verified import Remembered
from varco_runtime.dtypes import Array
from varco_runtime.errors import BundleError
from varco_runtime.system.cache_folder import (
    MAKING,
    UNUSABLE,
    cache_folder,
    drop_oldest,
    entries_of,
    fault_of,
    make_private,
    max_cache_bytes,
    read_entry,
    remove,
    write_entry,
)

MIN_WEIGHT_BYTES = 16 << 20
"""Smaller networks load fast as they are."""
MAX_WEIGHT_BYTES = 1 << 30
"""An entry takes twice the weights, and the first load some seconds per gigabyte to write and hash it: worth it for
what is started often, the int4 and int8 networks of small models."""
_LAYOUT = "2"
"""Part of every key: raised when the way in which entries are made or loaded changes."""
_SIZES, _SPARE_BYTES = 3, 1 << 30
"""An entry is made where the disk has room for so many times the network and as much to spare."""
_STALE_S = 3600
"""A temporary folder this old belongs to a process that was killed."""

_GRAPH, _DATA, _ENTRY = "graph.onnx", "graph.onnx.data", "entry.json"
_MAX_ENTRY_BYTES = 1 << 16


class Prepacked:
    """The kept form of one network of a bundle.

    `new_session(path, options)` makes an onnxruntime session from a graph's path, `new_options()` the session options.
    `trials` are inputs that use every weight. `check_unchanged()` raises where the graph's files are others by now than
    those that `folder` is named by.
    """

    def __init__(
        self,
        ort: Any,
        new_options: Callable[[], Any],
        new_session: Callable[[Path, Any], Any],
        trials: Callable[[Any], list[dict[str, Array]]],
        folder: Path,
        check_unchanged: Callable[[], None],
    ) -> None:
        self._ort = ort
        self._new_options = new_options
        self._new_session = new_session
        self._trials = trials
        self._folder = folder
        self._check_unchanged = check_unchanged
        self._unusable = folder.with_name(f"{folder.name}{UNUSABLE}")
        """Stands where an entry gave other numbers, so that it is not made again at every load."""

    @staticmethod
    def folder_of(bundle: Bundle, component: Component, ort_version: str) -> Path | None:
        """Where the entry of a network lies; None for one that is not worth it, or where there is no home folder."""
        if not MIN_WEIGHT_BYTES <= component.weight_bytes <= MAX_WEIGHT_BYTES:
            return None
        files = bundle.manifest.files
        identity = (files[component.file].sha256, files[component.data].sha256, ort_version, processor(), _LAYOUT)
        with contextlib.suppress(RuntimeError):
            return cache_folder() / "prepacked" / hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]
        return None

    def session(self, graph: Path) -> Any:
        """A session of the network: from the entry, or from `graph` while an entry is made."""
        if self._unusable.exists():
            return self._new_session(graph, self._new_options())
        if self._is_whole():
            with contextlib.suppress(Exception):  # onnxruntime's own types share no base; the graph itself still loads
                session = self._load(self._folder)
                with contextlib.suppress(OSError):
                    os.utime(self._folder)
                return session
        return self._make(graph)

    def _load(self, folder: Path) -> Any:
        """The session of an entry; its graph is optimised already."""
        options = self._new_options()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self._new_session(folder / _GRAPH, options)

    def _is_whole(self) -> bool:
        try:
            entry = json.loads(read_entry(self._folder / _ENTRY, _MAX_ENTRY_BYTES) or b"{}")
            facts = {name: FileFacts(*map(_checked, values)) for name, values in entry.items()}
            is_ours = all(fault_of(os.lstat(self._folder / name)) is None for name in facts)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return False
        if facts.keys() != {_GRAPH, _DATA} or not is_ours:
            return False
        remembered = Remembered.load()
        try:
            for name, expected in facts.items():
                check_file(self._folder, name, expected, remembered, full=False)
        except BundleError:
            return False
        remembered.save()
        return True

    def _make(self, graph: Path) -> Any:
        """Load the graph, and leave an entry behind where the disk takes it."""
        graph_bytes = sum(path.stat().st_size for path in (graph, graph.with_name(f"{graph.name}.data")))
        try:
            if graph_bytes > max_cache_bytes() or not make_private(self._folder.parent):
                return self._new_session(graph, self._new_options())
            _remove_stale(self._folder.parent)
            if shutil.disk_usage(self._folder.parent).free < _SPARE_BYTES + _SIZES * graph_bytes:
                return self._new_session(graph, self._new_options())
            temporary = Path(tempfile.mkdtemp(dir=self._folder.parent, prefix=MAKING))
        except OSError:
            return self._new_session(graph, self._new_options())
        try:
            options = self._new_options()
            options.optimized_model_filepath = str(temporary / _GRAPH)
            for key, value in (
                ("session.optimized_model_external_initializers_file_name", _DATA),
                ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
                ("session.save_external_prepacked_constant_initializers", "1"),
            ):
                options.add_session_config_entry(key, value)
            try:
                session = self._new_session(graph, options)
            except Exception:  # a full disk, or a graph that cannot be loaded at all, which then raises again
                return self._new_session(graph, self._new_options())
            self._check_unchanged()  # an entry of another network would be loaded from now on
            with contextlib.suppress(OSError):
                if self._agrees(session, temporary):
                    self._complete(temporary)
                else:
                    self._unusable.touch()
            return session
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _agrees(self, session: Any, temporary: Path) -> bool:
        """Whether the new entry gives the same numbers as the session that wrote it."""
        try:
            entry = self._load(temporary)
            pairs = [(session.run(None, feeds), entry.run(None, feeds)) for feeds in self._trials(session)]
        except Exception:  # such an entry is of no use either
            return False
        return all(np.array_equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))

    def _complete(self, temporary: Path) -> None:
        """Record what was written and put it in its place."""
        facts = {}
        for name in (_GRAPH, _DATA):
            (temporary / name).chmod(0o600)  # onnxruntime makes them as the user's umask lets it
            with (temporary / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            facts[name] = [(temporary / name).stat().st_size, digest]
        write_entry(temporary / _ENTRY, json.dumps(facts).encode())
        remove(self._folder)
        temporary.rename(self._folder)
        drop_oldest(entries_of(cache_folder()), max_cache_bytes())


def num_entries() -> int:
    """How many entries the cache folder holds."""
    with contextlib.suppress(OSError, RuntimeError):
        return sum(1 for path in (cache_folder() / "prepacked").iterdir() if (path / _ENTRY).exists())
    return 0


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left behind."""
    for path in folder.glob(f"{MAKING}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path, ignore_errors=True)


@functools.cache
def processor() -> str:
    """What tells one kind of processor from another: its name and its instruction sets."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        wanted = ("model name", "flags", "CPU part", "Features")
        return "\n".join(dict.fromkeys(line for line in lines if line.split("\t")[0].strip() in wanted))
    return f"{platform.machine()} {platform.processor()}"


def _checked(value: object) -> Any:
    if not isinstance(value, int | str):
        raise TypeError(value)
    return value
