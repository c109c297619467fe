"""The token embedding table, mapped from the bundle's file and converted row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from varco_runtime.bundle.manifest import Embedding, HeadRows
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import STORAGE, Array, from_stored
from varco_runtime.errors import BundleError

_FORMATS = ("fp32", "fp16", "bf16")
_ZERO = 128


class EmbeddingTable:
    """Rows `[vocab_size + 1, width]`; the last one is image_newline. bf16 is kept as its 16 bits.

    Args:
        path: The file of rows.
        facts: What the manifest says of them.
        head: The token rows where they are the output head's.
    """

    def __init__(self, path: Path, facts: Embedding, head: HeadTable | None = None) -> None:
        if facts.dtype not in _FORMATS:
            raise BundleError(f"{path} holds {facts.dtype}, expected fp32, fp16 or bf16. Export the bundle again.")
        storage = np.dtype(STORAGE[facts.dtype]).newbyteorder("<")
        expected = facts.num_stored_rows * facts.width * storage.itemsize
        if path.stat().st_size != expected:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes, its shape needs {expected}. Export the bundle again."
            )
        self._dtype = facts.dtype
        self._num_tokens = facts.rows - 1
        self._rows = np.memmap(path, dtype=storage, mode="r", shape=(facts.num_stored_rows, facts.width))
        self._head = head

    @property
    def num_tokens(self) -> int:
        """Rows that belong to tokens."""
        return self._num_tokens

    @property
    def newline(self) -> Array:
        """image_newline `[width]` in fp32."""
        row: Array = from_stored(self._rows[-1:], self._dtype)[0]
        return row

    def rows(self, ids: Array) -> Array:
        """The rows `[n, width]` of the tokens `ids` `[n]`, in fp32."""
        return from_stored(self._rows[ids], self._dtype) if self._head is None else self._head.rows(ids)


class HeadTable:
    """The token rows of a bundle whose output head has them too, in int8: see `HeadRows`.

    Args:
        path: The decoder's weights.
        facts: Where the rows are.
        num_tokens: Rows.
        width: Numbers in a row.
        dtype: The scales' number format.
    """

    def __init__(self, path: Path, facts: HeadRows, num_tokens: int, width: int, dtype: str) -> None:
        storage = np.dtype(STORAGE[dtype]).newbyteorder("<")
        values, scales = facts.row_bytes(width, storage.itemsize)
        self._values = np.memmap(path, np.uint8, "r", facts.values_offset, (num_tokens, values))
        shape = num_tokens, scales // storage.itemsize
        self._scales = np.memmap(path, storage, "r", facts.scales_offset, shape)
        self._facts, self._width, self._dtype = facts, width, dtype

    def rows(self, ids: Array) -> Array:
        """The rows `[n, width]` of `ids` `[n]`, in fp32."""
        values: Array = self._values[ids]
        scales = from_stored(self._scales[ids], self._dtype)
        if self._facts.has_nibbles:
            half = values.shape[1] // 2
            values = _nibbles(values[:, :half]) << 4 | _nibbles(values[:, half:])
            scales = scales[:, scales.shape[1] // 2 :]
        blocks = values.reshape(*scales.shape, self._facts.block_size).astype(np.float32) - _ZERO
        blocks *= scales[:, :, None]
        rows: Array = blocks.reshape(len(blocks), -1)[:, : self._width]
        return rows


def _nibbles(packed: Array) -> Array:
    """Return two numbers of 4 bits for each byte, the lower one first: `[n, 2 k]` of `[n, k]`."""
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)


def embedding_table(bundle: Bundle, facts: Embedding) -> EmbeddingTable:
    """Return a bundle's token rows, which may be the output head's.

    Args:
        bundle: A checked bundle whose host looks tokens up.
        facts: What its manifest says of the rows.
    """
    model, head = bundle.manifest.model, facts.head_rows
    table = None
    if head is not None:
        dtype = bundle.manifest.decoder.compute
        table = HeadTable(bundle.path(head.file), head, model.vocab_size, model.hidden_size, dtype)
    return EmbeddingTable(bundle.path(facts.file), facts, table)
