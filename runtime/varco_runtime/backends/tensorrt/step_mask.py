"""Which positions the rows of a decode step attend to: a byte for each, true up to the row's own position."""

from __future__ import annotations

from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda


class StepMask:
    """The rows `[rows, width]` at the beginning of a buffer. What is true of each is a prefix, so little changes.

    Args:
        cuda: The device.
        buffer: Room for the widest rows.
        num_rows: How many rows there are.
    """

    def __init__(self, cuda: Cuda, buffer: Buffer, num_rows: int = 1) -> None:
        self._cuda = cuda
        self._buffer = buffer
        self._width = buffer.num_bytes // num_rows
        self._shown = [0] * num_rows
        cuda.fill(buffer, 0)

    def lay_out(self, width: int) -> None:
        """Let rows be so wide from now on. A single row needs no other place, whatever its width."""
        if width != self._width and len(self._shown) > 1:
            self._cuda.fill(self._buffer, 0)
            self._width, self._shown = width, [0] * len(self._shown)

    def show(self, row: int, count: int) -> None:
        """Let a row attend to its first `count` positions alone."""
        assert count <= self._width, f"Bug: {count} positions of a mask of {self._width}"
        shown, self._shown[row] = self._shown[row], count
        first, last = sorted((shown, count))
        self._cuda.fill(self._buffer.part(row * self._width + first, last - first), int(count > shown))
