"""The `quantization_config` of a compressed-tensors checkpoint: which linears it quantises, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from varco_export.names import Scheme, disk_name
from varco_export.quantised import Activations
from varco_runtime.errors import CheckpointError

_INSTEAD = "Quantise the original checkpoint with: varco quantize"
_FORMATS = {"int": "pack-quantized", "float": "float-quantized"}


@dataclass(frozen=True, slots=True)
class Names:
    """Names of modules, patterns of names (`re:...`), or the class `Linear`. Source: compressed_tensors `match.py`."""

    exact: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def read(cls, value: object, where: str) -> Names:
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise _refusal(where, value, "a list of names")
        names: list[str] = value if isinstance(value, list) else []
        try:
            patterns = [re.compile(name[3:]) for name in names if name.startswith("re:")]
        except (re.error, RecursionError, OverflowError):
            raise _refusal(where, value, "names and regular expressions") from None
        return cls(frozenset(name for name in names if not name.startswith("re:")), tuple(patterns))

    def hold(self, spellings: Iterable[str]) -> bool:
        """Whether any spelling of a linear's name is among them."""
        return "Linear" in self.exact or any(
            name in self.exact or any(pattern.match(name) for pattern in self.patterns) for name in spellings
        )


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """How a group of linears is quantised. `strategy`: what shares a scale; a `group` has `group_size` inputs."""

    targets: Names
    kind: Literal["int", "float"]
    bits: int
    strategy: str
    group_size: int | None
    symmetric: bool
    activations: Activations

    def describe(self) -> str:
        """What shares a scale, for people."""
        shared = {"tensor": "one scale", "channel": "a scale per output"}
        return shared.get(self.strategy, f"groups of {self.group_size}")


@dataclass(frozen=True, slots=True)
class CompressedConfig:
    """Schemes, of which the first that fits decides, and the modules that are left plain."""

    schemes: tuple[CompressedScheme, ...]
    ignore: Names

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> CompressedConfig:
        _refuse_other_features(values, where)
        groups = values.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise _refusal(f"{where}: config_groups", groups, "groups with targets and weights")
        schemes = [_scheme(group, values.get("format"), f"{where}: {name}") for name, group in groups.items()]
        return cls(tuple(schemes), Names.read(values.get("ignore"), f"{where}: ignore"))

    def scheme_of(self, name: str, on_disk: str, kind: Literal["int", "float"]) -> CompressedScheme:
        """The scheme of a linear that is stored quantised. Raises CheckpointError where the config says otherwise."""
        spellings = _spellings(name, on_disk)
        scheme = next((scheme for scheme in self.schemes if scheme.targets.hold(spellings)), None)
        if scheme is None or self.ignore.hold([on_disk]):
            raise CheckpointError(
                f"{on_disk} is quantised in the weights and not by quantization_config, expected both to agree. "
                "Compare config.json with the original repository."
            )
        if scheme.kind != kind:
            raise CheckpointError(
                f"{on_disk} is stored as {_FORMATS[kind]} and quantization_config says {_FORMATS[scheme.kind]}, "
                "expected both to agree. Compare config.json with the original repository."
            )
        return scheme

    def check_plain(self, name: str, on_disk: str) -> None:
        """Refuse a linear that is stored plain and that the config quantises."""
        spellings = _spellings(name, on_disk)
        if any(scheme.targets.hold(spellings) for scheme in self.schemes) and not self.ignore.hold(spellings):
            raise CheckpointError(
                f"{on_disk} is plain in the weights and quantised by quantization_config, expected both to agree. "
                "Compare config.json with the original repository; a model saved without compression has to be saved "
                "again with save_compressed=True."
            )


def _spellings(name: str, on_disk: str) -> list[str]:
    """A linear as the files call it, and as any program might that wrote the config."""
    return [on_disk, *(disk_name(f"{name}.", scheme).removesuffix(".") for scheme in get_args(Scheme))]


def _refuse_other_features(values: dict[str, Any], where: str) -> None:
    """What changes results beyond the linears' weights and inputs."""
    if values.get("kv_cache_scheme") is not None:
        raise CheckpointError(
            f"{where}: kv_cache_scheme quantises the cache, expected none: it is kept in floats here. {_INSTEAD}"
        )
    sparsity = values.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"):
        raise CheckpointError(f"{where}: sparsity_config is set, expected dense weights. {_INSTEAD}")
    transforms = values.get("transform_config")
    if transforms and not (isinstance(transforms, dict) and not any(transforms.values())):
        raise CheckpointError(
            f"{where}: transform_config rotates the weights, expected none: rotations are not implemented. {_INSTEAD}"
        )


def _scheme(group: object, form: object, where: str) -> CompressedScheme:
    if not isinstance(group, dict):
        raise _refusal(where, group, "an object with targets and weights")
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise _refusal(f"{where}: weights", weights, "what quantises them")
    if group.get("output_activations") is not None:
        raise _refusal(f"{where}: output_activations", group["output_activations"], "none")
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    form = group.get("format") or form
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)) or form != _FORMATS[kind]:
        raise CheckpointError(
            f"{where} holds {str(kind)[:20]} weights of {str(bits)[:20]} bits as {str(form)[:40]!r}, expected int of 4 "
            f"or 8 as 'pack-quantized' or float of 8 as 'float-quantized'. {_INSTEAD}"
        )
    inputs = group.get("input_activations")
    if kind == "int" and inputs is not None:
        raise _refusal(f"{where}: input_activations", inputs, "none beside integer weights (W4A16 or W8A16)")
    strategy, group_size = _strategy(weights, kind, f"{where}: weights")
    symmetric = weights.get("symmetric", True)
    if type(symmetric) is not bool or not (symmetric or (kind == "int" and strategy != "tensor")):
        raise _refusal(f"{where}: weights: symmetric", symmetric, "true, or false for integers in groups or channels")
    if weights.get("dynamic", False) is not False:
        raise _refusal(f"{where}: weights: dynamic", weights["dynamic"], "false")
    return CompressedScheme(
        Names.read(group.get("targets"), f"{where}: targets"),
        kind,
        bits,
        strategy,
        group_size,
        symmetric,
        _activations(inputs, f"{where}: input_activations"),
    )


def _strategy(weights: dict[str, Any], kind: str, where: str) -> tuple[str, int | None]:
    """What shares a scale, and the inputs of a group."""
    group_size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    if strategy not in (("tensor", "channel", "group") if kind == "int" else ("tensor", "channel")):
        expected = "'group', 'channel' or 'tensor'" if kind == "int" else "'channel' or 'tensor'"
        raise _refusal(f"{where}: strategy", strategy, expected)
    if strategy != "group":
        return strategy, None
    if type(group_size) is not int or not 16 <= group_size <= 1 << 20 or group_size % 16:
        raise _refusal(f"{where}: group_size", group_size, "a multiple of 16")
    return strategy, group_size


def _activations(inputs: object, where: str) -> Activations:
    if inputs is None:
        return "float"
    if isinstance(inputs, dict):
        asked = {key: default if inputs.get(key) is None else inputs[key] for key, default in _DEFAULTS.items()}
        fp8 = {"type": "float", "num_bits": 8, "symmetric": True}
        if asked == {**fp8, "strategy": "token", "dynamic": True}:
            return "token"
        if asked == {**fp8, "strategy": "tensor", "dynamic": False}:
            return "tensor"
    raise _refusal(where, inputs, "symmetric FP8, by token and dynamic or by tensor and static")


# Of compressed_tensors' QuantizationArgs.
_DEFAULTS = {"type": "int", "num_bits": 8, "symmetric": True, "strategy": "tensor", "dynamic": False}


def _refusal(where: str, got: object, expected: str) -> CheckpointError:
    text = "missing" if got is None else " ".join(str(got).split())
    text = text if len(text) <= 60 else text[:57] + "..."
    return CheckpointError(f"{where} is {text}, expected {expected}. {_INSTEAD}")
