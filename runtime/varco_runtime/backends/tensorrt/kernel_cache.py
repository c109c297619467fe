"""What TensorRT for RTX compiled for an engine, kept between runs.

Such an engine holds no finished kernels: the library compiles them on the device, when a context is made and when a
shape is new. Its runtime cache holds them, and is kept here in the user's cache folder, one file per engine, named by
the engine's hash. The library itself compares what it is given with its version, the driver and the GPU and takes
nothing that does not match. Files that another user may have written are not read (`cache.py`); losing one costs a
compilation.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from varco_runtime.system.cache_folder import (
    cache_folder,
    drop_oldest,
    entries_of,
    max_cache_bytes,
    read_entry,
    write_entry,
)

MAX_FILES = 40
"""Five engines a bundle: the caches of the eight bundles used last. Those of engines that are gone age out."""
MAX_BYTES = 1 << 30


class KernelCache:
    """The compiled kernels of one engine. A folder that cannot be read or written makes it forgetful, never an error.

    `config`: any `IRuntimeConfig` of the engine. `engine_sha256`: the hash that its manifest states.
    """

    def __init__(self, config: Any, engine_sha256: str) -> None:
        self.handle: Any = config.create_runtime_cache()
        self._name = f"{engine_sha256}.cache"
        self._known = b""
        """The hash of what lies in the file, if the library took it."""
        with contextlib.suppress(OSError, RuntimeError):
            path = _folder() / self._name
            content = read_entry(path, MAX_BYTES)
            if content and self.handle.deserialize(content):
                self._known = hashlib.sha256(content).digest()
                os.utime(path)

    def save(self) -> None:
        """Write what is compiled by now, whole or not at all, where that is not what the file holds."""
        serialised = self.handle.serialize()
        if serialised is None:
            return
        content = memoryview(serialised)
        found = hashlib.sha256(content).digest()
        if found == self._known or not 0 < content.nbytes <= MAX_BYTES:
            return
        with contextlib.suppress(OSError, RuntimeError):
            if write_entry(_folder() / self._name, content):
                self._known = found
                _forget_oldest(_folder())
                drop_oldest(entries_of(cache_folder()), max_cache_bytes())


def _folder() -> Path:
    return cache_folder() / "kernels"


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in files[:-MAX_FILES]:
        path.unlink()
