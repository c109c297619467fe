"""Every calibration sample's hidden states, in one file of fp32 rows, read and written one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from varco_export.writing.disk import sync
from varco_runtime.dtypes import Array
from varco_runtime.errors import ExportError
from varco_runtime.system.files import durable_file


def write_activations(path: Path, samples: Iterable[Array]) -> None:
    """Write samples `[S, D]`, one behind the other, as fp32. The file is there when it is complete."""
    with durable_file(path) as file:
        for sample in samples:
            np.ascontiguousarray(sample, dtype=np.float32).tofile(file)
    sync(path.parent)  # before what it replaces is removed


def read_activations(path: Path, lengths: Sequence[int], width: int, some: slice = slice(None)) -> Iterator[Array]:
    """Yield the samples of a file that `write_activations` wrote.

    Args:
        path: The file.
        lengths: Tokens of each sample, S.
        width: Features of a token, D.
        some: Which of the samples, a run of them; all by default.

    Raises:
        ExportError: The file has another size.
    """
    expected_bytes = sum(lengths) * width * 4
    if path.stat().st_size != expected_bytes:
        raise ExportError(
            f"{path} has {path.stat().st_size} bytes, expected {expected_bytes}. Remove the folder {path.parent} and "
            "start again."
        )
    first, last, _ = some.indices(len(lengths))
    with path.open("rb") as file:
        file.seek(sum(lengths[:first]) * width * 4)
        for length in lengths[first:last]:
            yield np.fromfile(file, np.float32, length * width).reshape(length, width)
