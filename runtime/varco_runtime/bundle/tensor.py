"""An input or output of a network, as a manifest, a graph and an engine agree on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a network.

    Args:
        dtype: Its number format, as `dtypes.FORMATS` names it.
        shape: Its lengths; a name stands for one that each run chooses.
        is_input: Whether it is an input.
    """

    dtype: str
    shape: tuple[int | str, ...]
    is_input: bool

    @property
    def is_fixed(self) -> bool:
        """Return whether every run has the same shape."""
        return not any(isinstance(length, str) for length in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(str(length) for length in self.shape)}]"
