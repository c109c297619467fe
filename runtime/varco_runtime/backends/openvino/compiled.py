"""What OpenVINO made of a decoder, kept between runs in the user's cache folder.

    compiled/KEY/network.blob      OpenVINO's export of the compiled network, its weights in it
    compiled/KEY/network.sha256    the hash of that file

An entry belongs to one graph with its weights, one build of OpenVINO, the settings and threads it was compiled with and
one kind of processor. It is hashed before OpenVINO sees it; what is damaged, does not load, or may have been written by
another user is made again. A folder that cannot be read or written makes it forgetful, never an error.

OpenVINO 2026.4.1 exports some networks that give other numbers once they are imported (see `attention.py`). An entry is
therefore tried before it is kept: its outputs must be those of the compiled network to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from varco_runtime.bundle.manifest import Component
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.system.cache_folder import (
    UNUSABLE,
    cache_folder,
    drop_oldest,
    entries_of,
    max_cache_bytes,
    read_entry,
    remove,
    write_entry,
)
from varco_runtime.system.processor import cpu_kind

MIN_WEIGHT_BYTES = 16 << 20
"""Smaller networks compile fast."""
MAX_WEIGHT_BYTES = 1 << 30
"""An entry holds the weights again: worth it for what is started often, the decoders of small models."""
_SPARE_BYTES = 1 << 30
"""An entry is made where the disk has room for it and as much to spare."""
_LAYOUT = "1"
"""Part of every key: raised when the way in which networks are translated changes."""
_BLOB, _HASH = "network.blob", "network.sha256"
_HASH_CHARACTERS = 64


class CompiledNetwork:
    """The kept form of one network of a bundle.

    Args:
        folder: Where its entry lies, by `folder_of`.
        bundle: The bundle, whose files must be those that `folder` is named by.
        trial: Returns what a compiled network computes of inputs that use every weight.
    """

    def __init__(self, folder: Path, bundle: Bundle, trial: Callable[[Any], list[Array]]) -> None:
        self._folder = folder
        self._bundle = bundle
        self._trial = trial
        self._unusable = folder.with_name(f"{folder.name}{UNUSABLE}")
        """Stands where an entry gave other numbers, so that it is not made again at every load."""

    @staticmethod
    def folder_of(
        bundle: Bundle, component: Component, build: str, device: str, properties: dict[str, object]
    ) -> Path | None:
        """Return where the entry of a network lies; None for one that is not kept, or where there is no home folder.

        Args:
            bundle: A checked bundle.
            component: The network.
            build: OpenVINO's version with its build.
            device: OpenVINO's name of the device. Only a CPU's networks are kept: a driver is no part of the key.
            properties: What the network is compiled with.
        """
        if device != "CPU" or not MIN_WEIGHT_BYTES <= component.weight_bytes <= MAX_WEIGHT_BYTES:
            return None
        files = bundle.manifest.files
        told = repr(sorted(properties.items()))
        digests = files[component.file].sha256, files[component.data].sha256
        identity = "\n".join((*digests, build, device, told, cpu_kind(), _LAYOUT))
        with contextlib.suppress(RuntimeError):
            return cache_folder() / "compiled" / hashlib.sha256(identity.encode()).hexdigest()[:32]
        return None

    def load(self, core: Any, device: str, properties: dict[str, object]) -> Any | None:
        """Return the compiled network of the entry; None where there is none that is whole."""
        expected = read_entry(self._folder / _HASH, _HASH_CHARACTERS)
        blob = read_entry(self._folder / _BLOB, 2 * MAX_WEIGHT_BYTES) if expected else None
        if blob is None or hashlib.sha256(blob).hexdigest().encode() != expected:
            return None
        with contextlib.suppress(Exception):  # openvino raises RuntimeError and its own; the graph itself still loads
            compiled = core.import_model(io.BytesIO(blob), device, properties)
            with contextlib.suppress(OSError):
                os.utime(self._folder)
            return compiled
        return None

    def save(self, core: Any, compiled: Any, device: str, properties: dict[str, object], weight_bytes: int) -> None:
        """Leave an entry behind where the disk and the user's limit take it.

        Args:
            core: OpenVINO's core.
            compiled: What was compiled of the bundle's files.
            device: OpenVINO's name of the device.
            properties: What it was compiled with.
            weight_bytes: The size of its weights, which the entry is about as large as.

        Raises:
            BundleError: The files are others by now: an entry of another network would be loaded from now on.
        """
        with contextlib.suppress(OSError, RuntimeError):
            there = next(path for path in self._folder.parents if path.exists())
            has_room = shutil.disk_usage(there).free >= _SPARE_BYTES + 2 * weight_bytes
            if self._unusable.exists() or weight_bytes > max_cache_bytes() or not has_room:
                return
            stream = io.BytesIO()
            compiled.export_model(stream)
            self._bundle.check_unchanged()
            stream.seek(0)
            again = core.import_model(stream, device, properties)
            if not all(map(np.array_equal, self._trial(compiled), self._trial(again))):
                write_entry(self._unusable, b"")
                return
            blob = stream.getbuffer()
            found = hashlib.sha256(blob).hexdigest().encode()
            if not (write_entry(self._folder / _BLOB, blob) and write_entry(self._folder / _HASH, found)):
                remove(self._folder)
            drop_oldest(entries_of(cache_folder()), max_cache_bytes())
