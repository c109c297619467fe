"""GPTQ checkpoints of auto-gptq, optimum and gptqmodel.

Each quantized linear is four tensors, bits packed into 32-bit words from the lowest up:

    qweight [K * bits / 32, N]   along the input features
    qzeros  [groups, N * bits / 32]   along the output features
    scales  [groups, N]   fp16, bf16 or fp32
    g_idx   [K]   the group of each input feature; may be left out where desc_act is false

Two conventions exist for zero points. v2 (`gptq_v2`) stores them; v1 (`gptq`, or no word for it) stores them minus one,
subtracted from whole words, so that the way back is a wrapping addition to whole words. Sources: auto-gptq
`qlinear_cuda_old.py`, gptqmodel `utils/model.py` (`convert_gptq_v1_to_v2_format_module`) and `quantization/config.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_export.quantized import integers
from varco_export.quantized.act_order import sorted_by_group
from varco_export.quantized.entries import QuantizedEntries
from varco_export.quantized.weights import BLOCK_BYTES, IntegerWeight, QuantizedWeight
from varco_export.reading.names import spellings
from varco_export.reading.quoting import one_line
from varco_export.reading.tensor import FLOAT_DTYPES, Tensor
from varco_runtime.dtypes import Array
from varco_runtime.errors import CheckpointError

_V1_OFFSET = {4: np.uint32(0x11111111), 8: np.uint32(0x01010101)}
Fits = Mapping[str, frozenset[str]]
"""By pattern of `dynamic`, the names that it fits."""
_ADVICE = "Compare quantization_config with the original repository, or copy the shards again."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GptqWeight(IntegerWeight):
    """One linear of a GPTQ checkpoint. `zeros_minus_one`: v1's zero points."""

    qweight: Tensor
    qzeros: Tensor
    scale: Tensor
    zeros_minus_one: bool
    symmetric: bool

    def _stored_blocks(self) -> Iterator[Array]:
        for columns in self.qweight.column_blocks(BLOCK_BYTES):  # [K * bits / 32, n]
            yield np.ascontiguousarray(columns.T).view(np.uint8)

    def _stored_scales(self) -> Array:
        scales: Array = self.scale.read().T
        return scales

    def _stored_zeros(self) -> Array:
        words = self.qzeros.read().view("<u4")
        if self.zeros_minus_one:
            words = words + _V1_OFFSET[self.bits]  # wraps, as the subtraction did
        zeros = integers.unpack(words.view(np.uint8), self.bits, self.shape[0]).T  # [N, groups]
        if self.symmetric and not bool((zeros == self.half).all()):
            odd = int(zeros[zeros != self.half][0])
            raise CheckpointError(
                f"{self.name} has a zero point of {odd} and its quantization_config says sym, expected {self.half}. "
                "Set checkpoint_format to the one it was packed in ('gptq' or 'gptq_v2'), or sym to false."
            )
        return zeros


@dataclass(frozen=True, slots=True)
class GptqSettings:
    """The settings of a linear in `quantization_config`. `group_size` -1: one group for the whole column."""

    bits: int
    group_size: int
    desc_act: bool
    sym: bool


@dataclass(frozen=True, slots=True)
class GptqConfig:
    """`quantization_config` of a GPTQ checkpoint. `dynamic` holds patterns of module names with what differs there, or
    None for modules that are not quantized. The packer may have called the modules otherwise than the files do."""

    settings: GptqSettings
    zeros_minus_one: bool
    lm_head: bool
    dynamic: tuple[tuple[str, dict[str, Any] | None], ...]
    where: str

    method = "GPTQ"

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> GptqConfig:
        """Read a quantization_config that stands at `where`. Raises CheckpointError for what is not implemented."""
        _refuse_other_formats(values, where)
        return cls(
            _settings(values, where),
            zeros_minus_one=zero_point_format(values, where) in (None, "gptq"),
            lm_head=_flag(values, "lm_head", where),
            dynamic=_dynamic(values, where),
            where=where,
        )

    def take(self, entries: QuantizedEntries) -> dict[str, QuantizedWeight]:
        """Return every quantized linear by its canonical name; its tensors are taken out of `entries`."""
        weights: dict[str, QuantizedWeight] = {}
        fits = entries.match([pattern for pattern, _ in self.dynamic], f"{self.where}: dynamic")
        for name in entries.linears_with("qweight"):
            settings = self._settings_of(name, entries.disk_name(name, "qweight"), fits)
            weights[name] = self._read(entries, name, settings)
        if not weights:
            raise CheckpointError(
                "quantization_config says GPTQ and the weights hold no qweight, expected both to agree. Copy the "
                "shards again; if the weights are meant to be plain, remove quantization_config from config.json."
            )
        if self.lm_head and "lm_head" not in weights and not self._excludes_head(entries, fits):
            raise CheckpointError(
                "quantization_config says lm_head is quantised and the weights hold a plain one, expected both to "
                "agree. Set lm_head to false in it if the checkpoint's other tools read it so."
            )
        return weights

    def _excludes_head(self, entries: QuantizedEntries, fits: Fits) -> bool:
        return not entries.has("lm_head", "weight") or self._override(spellings("lm_head"), fits) is None

    def _settings_of(self, name: str, disk_name: str, fits: Fits) -> GptqSettings:
        override = self._override([disk_name], fits)
        if override == {}:  # another spelling may be meant, but not to exclude what is there
            override = self._override(spellings(name), fits, excluding=False)
        if override is None or (name == "lm_head" and not self.lm_head and not override):
            reason = "does not quantise lm_head" if override is not None else "excludes it in 'dynamic'"
            raise CheckpointError(
                f"{disk_name}.qweight stands in the weights and quantization_config {reason}, expected both to agree. "
                "Compare config.json with the original repository."
            )
        return _settings(override, f"dynamic, {disk_name}", self.settings)

    def _override(self, names: list[str], fits: Fits, excluding: bool = True) -> dict[str, Any] | None:
        """Return what `dynamic` changes for a module of these names, None where it excludes it.

        The first rule that fits decides; without `excluding`, rules that exclude are passed over.
        """
        for pattern, override in self.dynamic:
            if not fits[pattern].isdisjoint(names) and (excluding or override is not None):
                return override
        return {}

    def _read(self, entries: QuantizedEntries, name: str, settings: GptqSettings) -> IntegerWeight:
        bits = settings.bits
        num_rows, width = entries.shape(name)
        for size, what in ((width, "input"), (num_rows, "output")):
            if size * bits % 32:
                raise CheckpointError(
                    f"{name} has {size} {what} features of {bits} bits, expected them to fill 32-bit words. This "
                    "layout cannot be read; quantise the original checkpoint with: varco quantize"
                )
        group_size = width if settings.group_size == -1 else settings.group_size
        num_groups = -(-width // group_size)
        advice = f"quantization_config says {bits} bits in groups of {settings.group_size}. {_ADVICE}"
        if settings.desc_act and settings.group_size != -1 and not entries.has(name, "g_idx"):
            raise CheckpointError(
                f"{name}.g_idx is missing and quantization_config says desc_act, expected one. Copy the shards again."
            )
        g_idx = entries.find(name, "g_idx", (width,), ("int32", "int64"), advice)
        return GptqWeight(
            name=name,
            shape=(num_rows, width),
            bits=bits,
            group_size=group_size,
            qweight=entries.take(name, "qweight", (width * bits // 32, num_rows), ("int32",), advice),
            qzeros=entries.take(name, "qzeros", (num_groups, num_rows * bits // 32), ("int32",), advice),
            scale=entries.take(name, "scales", (num_groups, num_rows), FLOAT_DTYPES, advice),
            zeros_minus_one=self.zeros_minus_one,
            symmetric=settings.sym,
            order=None if g_idx is None else sorted_by_group(g_idx, group_size),
        )


# --- quantization_config ----------------------------------------------------------------------------------------------


def zero_point_format(values: Mapping[str, Any], where: str) -> Any:
    """Return how zero points are stored; None, which means v1, where the config does not say.

    The key is `checkpoint_format`, or `format` as gptqmodel calls it too.

    Raises:
        CheckpointError: The two differ.
    """
    stated = {key: values[key] for key in ("checkpoint_format", "format") if values.get(key) is not None}
    if len(stated) == 2 and stated["checkpoint_format"] != stated["format"]:
        one, other = (one_line(value, 40) for value in stated.values())
        raise CheckpointError(
            f"{where}: checkpoint_format is {one!r} and format is {other!r}, expected both to agree. Keep the one that "
            "the weights were packed in."
        )
    return next(iter(stated.values()), None)


def _refuse_other_formats(values: dict[str, Any], where: str) -> None:
    layout = zero_point_format(values, where) or "gptq"
    if values.get("is_marlin_format"):
        layout = "marlin"
    if layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(
            f"{where}: checkpoint_format is {one_line(layout, 40)!r}, expected 'gptq' or 'gptq_v2'. Weights packed for "
            "one kernel cannot be read; use the checkpoint's GPTQ version, or quantise the original with: varco "
            "quantize"
        )
    packed = values.get("pack_dtype") or "int32"
    if one_line(packed, 40).removeprefix("torch.") != "int32":
        raise CheckpointError(
            f"{where}: pack_dtype is {one_line(packed, 40)!r}, expected 'int32'. Save the checkpoint with 32-bit words."
        )


def _settings(values: dict[str, Any], where: str, default: GptqSettings | None = None) -> GptqSettings:
    def get(key: str, fallback: Any) -> Any:
        value = values.get(key)
        return (getattr(default, key) if default else fallback) if value is None else value

    bits, group_size = get("bits", None), get("group_size", None)
    if type(bits) is not int or bits not in _V1_OFFSET:
        raise CheckpointError(
            f"{where}: bits is {one_line(bits, 40)}, expected 4 or 8. Other widths have no kernel here; quantise the "
            "original checkpoint with: varco quantize"
        )
    if type(group_size) is not int or not (group_size == -1 or 16 <= group_size <= 1 << 20):
        raise CheckpointError(
            f"{where}: group_size is {one_line(group_size, 40)}, expected -1 or 16 and more. Compare it with the "
            "original repository."
        )
    if group_size != -1 and group_size % 16:
        raise CheckpointError(
            f"{where}: group_size is {group_size}, expected a multiple of 16: kernels read blocks of 16, 32, 64 or "
            "128. Quantise the original checkpoint with: varco quantize"
        )
    return GptqSettings(
        bits,
        group_size,
        desc_act=_flag({"desc_act": get("desc_act", False)}, "desc_act", where),
        sym=_flag({"sym": get("sym", False)}, "sym", where),
    )


def _flag(values: dict[str, Any], key: str, where: str) -> bool:
    value = values.get(key)
    if value is not None and type(value) is not bool:
        raise CheckpointError(
            f"{where}: {key} is {one_line(value, 40)!r}, expected true or false. Copy the file again."
        )
    return bool(value)


def _dynamic(values: dict[str, Any], where: str) -> tuple[tuple[str, dict[str, Any] | None], ...]:
    """Return the rules of gptqmodel's `dynamic`.

    `-:PATTERN` excludes modules, `PATTERN` or `+:PATTERN` changes their settings.
    """
    dynamic = values.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise CheckpointError(f"{where}: dynamic is {one_line(dynamic, 40)!r}, expected patterns. Copy the file again.")
    rules: list[tuple[str, dict[str, Any] | None]] = []
    for text, override in dynamic.items():
        if not text.startswith("-:") and not isinstance(override, dict):
            raise CheckpointError(
                f"{where}: dynamic maps {text[:60]!r} to {one_line(override, 40)!r}, expected settings. "
                "Copy the file again."
            )
        rules.append((text.removeprefix("-:").removeprefix("+:"), None if text.startswith("-:") else override))
    return tuple(rules)
