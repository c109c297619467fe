"""The token embedding table, mapped from the bundle's file and converted row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from varco_runtime.bundle.manifest import Embedding
from varco_runtime.dtypes import STORAGE, Array, from_stored
from varco_runtime.errors import BundleError

_FORMATS = ("fp32", "fp16", "bf16")


class EmbeddingTable:
    """Rows `[vocab_size + 1, width]`; the last one is image_newline. bf16 is kept as its 16 bits."""

    def __init__(self, path: Path, facts: Embedding) -> None:
        if facts.dtype not in _FORMATS:
            raise BundleError(f"{path} holds {facts.dtype}, expected fp32, fp16 or bf16. Export the bundle again.")
        storage = np.dtype(STORAGE[facts.dtype]).newbyteorder("<")
        expected = facts.rows * facts.width * storage.itemsize
        if path.stat().st_size != expected:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes, its shape needs {expected}. Export the bundle again."
            )
        self._dtype = facts.dtype
        self._rows = np.memmap(path, dtype=storage, mode="r", shape=(facts.rows, facts.width))

    @property
    def num_tokens(self) -> int:
        """Rows that belong to tokens."""
        return len(self._rows) - 1

    @property
    def newline(self) -> Array:
        """image_newline `[width]` in fp32."""
        row: Array = self.rows(np.array([self.num_tokens]))[0]
        return row

    def rows(self, ids: Array) -> Array:
        """The rows `[n, width]` of `ids` `[n]`, in fp32."""
        return from_stored(self._rows[ids], self._dtype)
