"""The tensors that quantized linears are made of, taken one by one out of a checkpoint's entries."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from varco_export.quantized.patterns import match_names
from varco_export.reading.names import spellings
from varco_export.reading.quoting import short
from varco_export.reading.shards import Entry
from varco_export.reading.tensor import Dtype, Tensor
from varco_runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class QuantizedEntries:
    """Entries by canonical name, and the shapes that the network's tensors would have if they were plain.

    A linear is named without its last part: `lm_head`, of which `qweight` may be one.
    """

    entries: dict[str, Entry]
    shapes: Mapping[str, tuple[int, ...]]

    def linears_with(self, part: str) -> list[str]:
        """Return the linears that have such a tensor. Refuses all but the language model's linears and its head."""
        names = [name.removesuffix(f".{part}") for name in self.entries if name.endswith(f".{part}")]
        for name in names:
            if not name.startswith(("language_model.layers.", "lm_head")):
                raise CheckpointError(
                    f"{short(self.entries[f'{name}.{part}'].disk_name)} is quantised, expected only the language "
                    "model's linears and lm_head to be. Quantise the original checkpoint with: varco quantize"
                )
            if len(self.shapes.get(f"{name}.weight", ())) != 2:
                raise CheckpointError(
                    f"{short(self.entries[f'{name}.{part}'].disk_name)} is unknown, expected only the linears that "
                    "config.json describes. Compare config.json with the original repository."
                )
        return names

    def shape(self, name: str) -> tuple[int, int]:
        """Return [out_features, in_features] of a linear."""
        rows, columns = self.shapes[f"{name}.weight"]
        return rows, columns

    def has(self, name: str, part: str) -> bool:
        """Return whether a linear has a tensor of that last name."""
        return f"{name}.{part}" in self.entries

    def entry(self, name: str, part: str) -> Entry:
        """Return a tensor of a linear, which must be there."""
        return self.entries[f"{name}.{part}"]

    def disk_name(self, name: str, part: str) -> str:
        """Return the linear's name in the files."""
        return self.entry(name, part).disk_name.removesuffix(f".{part}")

    def take(self, name: str, part: str, shape: tuple[int, ...], dtypes: tuple[Dtype, ...], advice: str) -> Tensor:
        """Take one tensor of a linear out of the entries.

        Args:
            name: The linear.
            part: The last part of the tensor's name.
            shape: The shape that it must have.
            dtypes: The number formats that it may have.
            advice: The end of an error, what to do.

        Raises:
            CheckpointError: It is missing, or has another shape or number format.
        """
        tensor = self.find(name, part, shape, dtypes, advice)
        if tensor is None:
            raise CheckpointError(f"{name}.{part} is missing from the weights, expected {list(shape)}. {advice}")
        return tensor

    def find(
        self, name: str, part: str, shape: tuple[int, ...], dtypes: tuple[Dtype, ...], advice: str
    ) -> Tensor | None:
        """Take one tensor of a linear out of the entries, as `take` does; None where it is missing."""
        entry = self.entries.pop(f"{name}.{part}", None)
        return None if entry is None else entry.to_tensor(f"{name}.{part}", shape, dtypes, advice)

    def drop_zeros(self, name: str, part: str) -> None:
        """Take out a zero point that some releases store and that must be zero throughout."""
        entry = self.entries.pop(f"{name}.{part}", None)
        if entry is not None and any(entry.raw_bytes()):
            raise CheckpointError(
                f"{short(entry.disk_name)} is not zero and quantization_config says symmetric, expected both to agree. "
                "Compare config.json with the original repository."
            )

    def linears(self) -> list[str]:
        """Return the language model's linears, its head last."""
        return [
            name.removesuffix(".weight")
            for name in self.shapes
            if name.startswith("language_model.") and name.endswith("_proj.weight")
        ] + (["lm_head"] if "lm_head.weight" in self.shapes else [])

    def plain_linears(self) -> list[str]:
        """Return the language model's linears that are stored as floats."""
        return [name for name in self.linears() if self.has(name, "weight")]

    def match(self, patterns: Collection[str], where: str) -> Mapping[str, frozenset[str]]:
        """Match patterns with all names that any program might give the language model's linears.

        Args:
            patterns: Regular expressions.
            where: Where they stand, for messages.

        Returns:
            By pattern, the names that it fits.

        Raises:
            CheckpointError: A pattern cannot be matched.
        """
        return match_names(patterns, [spelled for name in self.linears() for spelled in spellings(name)], where)
