"""An input or output of a network, as a manifest, a graph and an engine agree on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


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


def first_difference(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[str, Tensor | None, Tensor | None] | None:
    """Return the first name whose tensor is another one than expected, and both tensors; None where there is none.

    A length that each run chooses may have any name.
    """
    for name in sorted(expected.keys() | found.keys()):
        got, want = found.get(name), expected.get(name)
        if got is None or want is None or _without_names(got) != _without_names(want):
            return name, got, want
    return None


def _without_names(tensor: Tensor) -> Tensor:
    return replace(tensor, shape=tuple("any" if isinstance(length, str) else length for length in tensor.shape))


def described(name: str, tensor: Tensor | None, article: str = "") -> str:
    """Return what a message calls a tensor, or its absence."""
    if tensor is None:
        return f"no {name}"
    return f"{article}{'input' if tensor.is_input else 'output'} {name} {tensor}"
