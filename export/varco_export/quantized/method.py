"""Which quantization a checkpoint states: GPTQ, compressed-tensors, none, or one that is refused by name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from varco_export.precision import Stored
from varco_export.quantized.compressed_config import CompressedConfig
from varco_export.quantized.compressed_tensors import CompressedTensors
from varco_export.quantized.entries import QuantizedEntries
from varco_export.quantized.gptq import GptqConfig, zero_point_format
from varco_export.quantized.weights import Fp8Weight, IntegerWeight, QuantizedWeight
from varco_export.reading.json_file import is_there, read_json
from varco_export.reading.quoting import one_line
from varco_runtime.errors import CheckpointError

# What GPTQ's two files must agree on, where both say it.
_SHARED_KEYS = ("quant_method", "bits", "group_size", "desc_act", "sym", "lm_head", "dynamic")


class Quantization(Protocol):
    """A `quantization_config` that can be read."""

    @property
    def method(self) -> str:
        """Return its name, for people."""

    def take(self, entries: QuantizedEntries) -> dict[str, QuantizedWeight]:
        """Return every quantized linear by its canonical name; its tensors are taken out of `entries`."""


def read_quantization(folder: Path) -> Quantization | None:
    """Return how a checkpoint's weights are quantized, None for plain ones.

    Both config.json and the quantize_config.json that auto-gptq and gptqmodel write are read.

    Raises:
        CheckpointError: The two contradict each other, or the method is another one.
    """
    values, where = _stated(folder)
    if values is None:
        return None
    method = values.get("quant_method")
    match method:
        case "gptq":
            return GptqConfig.from_dict(values, where)
        case "compressed-tensors":
            return CompressedTensors(CompressedConfig.from_dict(values, where))
    raise CheckpointError(
        f"{where}: quant_method is {one_line(method, 40)!r}, expected 'gptq' or 'compressed-tensors'. Quantise the "
        "original checkpoint with: varco quantize"
    )


def refuse_unstated(entries: QuantizedEntries) -> None:
    """Refuse quantized weights whose settings stand nowhere."""
    for part in ("qweight", "weight_packed", "weight_scale"):
        for name in entries.linears_with(part):
            raise CheckpointError(
                f"{entries.disk_name(name, part)} is quantised and config.json holds no quantization_config, expected "
                "one beside quantised weights. Copy config.json from the checkpoint's repository."
            )


def _stated(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the one statement about quantization, and where it stands."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    values, where = config.get("quantization_config"), "config.json: quantization_config"
    if values is None:
        values, where = nested, "config.json: text_config: quantization_config"
    elif nested is not None and nested != values:
        raise CheckpointError(
            "config.json holds two different quantization_configs, one of them in text_config, expected one. Compare "
            "the file with its original repository."
        )
    if values is not None and not isinstance(values, dict):
        raise CheckpointError(f"{where} is {one_line(values, 40)!r}, expected an object. Copy the file again.")
    other = folder / "quantize_config.json"
    if not is_there(other):
        return values, where
    second = read_json(other)
    second.setdefault("quant_method", second.get("method") or "gptq")
    if values is None:
        return second, other.name
    pairs = {key: (values.get(key), second.get(key)) for key in _SHARED_KEYS}
    pairs["checkpoint_format"] = zero_point_format(values, where), zero_point_format(second, other.name)
    for key, (one, another) in pairs.items():
        if one is not None and another is not None and one != another:
            raise CheckpointError(
                f"{key} is {one_line(one, 40)} in config.json and {one_line(another, 40)} in {other.name}, "
                "expected both to agree. Compare the files with their original repository."
            )
    return {**second, **{key: value for key, value in values.items() if value is not None}}, where


def stored_format(weights: Mapping[str, QuantizedWeight], method: str) -> Stored:
    """Return the formats of a checkpoint's quantized linears, for people and for the check of what is asked for."""
    head = weights.get("lm_head")
    linears = [weight for name, weight in weights.items() if name != "lm_head"] or list(weights.values())
    kinds = Counter[str]()
    for weight in linears:
        kinds[_kind(weight)] += math.prod(weight.shape)
    (main, _), *others = kinds.most_common()
    usual = Counter(_details(weight) for weight in linears if _kind(weight) == main).most_common(1)[0][0]
    details = [method, usual]
    if any(isinstance(weight, IntegerWeight) and weight.order is not None for weight in linears):
        details.append("act-order")
    details += [f"{kind} in part" for kind, _ in others]
    return Stored(main, None if head is None else _kind(head), ", ".join(details))


def _kind(weight: QuantizedWeight) -> str:
    return f"int{weight.bits}" if isinstance(weight, IntegerWeight) else "fp8"


def _details(weight: QuantizedWeight) -> str:
    if isinstance(weight, Fp8Weight):
        scale = "one scale" if math.prod(weight.scale.shape) == 1 else "a scale per output"
        inputs = {"float": "float activations", "token": "fp8 activations by token", "tensor": "fp8 activations"}
        return f"{scale}, {inputs[weight.activations]}"
    whole = weight.group_size >= weight.shape[1]
    return "one group per output" if whole else f"groups of {weight.group_size}"
