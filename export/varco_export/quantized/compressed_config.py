"""The `quantization_config` of a compressed-tensors checkpoint: which linears it quantizes, and how."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from varco_export.quantized.weights import Activations
from varco_export.reading.names import spellings
from varco_export.reading.quoting import one_line
from varco_runtime.errors import CheckpointError

_INSTEAD = "Quantise the original checkpoint with: varco quantize"
_PATTERN = "re:"
_CLASSES = ("Linear", "Module")  # the classes of a linear in torch, as compressed-tensors looks for them
_FORMATS = {"int": "pack-quantized", "float": "float-quantized"}


@dataclass(frozen=True, slots=True)
class Names:
    """Exact names and classes of modules, and patterns of names (`re:...`) in the order in which they are tried."""

    exact: frozenset[str]
    patterns: tuple[str, ...]

    @classmethod
    def of(cls, names: Collection[str]) -> Names:
        """Sort names into exact ones and patterns."""
        patterns = sorted(name for name in names if name.startswith(_PATTERN))
        return cls(frozenset(names) - frozenset(patterns), tuple(patterns))

    @property
    def expressions(self) -> list[str]:
        """Return the patterns without `re:`."""
        return [pattern.removeprefix(_PATTERN) for pattern in self.patterns]

    def find(self, spelled: list[str], fits: Mapping[str, frozenset[str]]) -> str | None:
        """Return the name, pattern or class that decides for a linear, None where none does.

        An exact name comes before a pattern, and a pattern before a class; of several patterns the first in
        alphabetical order decides, whatever the order of the groups. Source: compressed_tensors `utils/match.py`,
        `match_targets`.

        Args:
            spelled: What the linear may be called, the likeliest first.
            fits: By regular expression, the names that it fits.
        """
        for name in spelled:
            if name in self.exact:
                return name
        for name in spelled:
            for pattern in self.patterns:
                if name in fits[pattern.removeprefix(_PATTERN)]:
                    return pattern
        return next((one for one in _CLASSES if one in self.exact), None)


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """How a group of linears is quantized. `strategy`: what shares a scale; a `group` has `group_size` inputs."""

    kind: Literal["int", "float"]
    bits: int
    strategy: str
    group_size: int | None
    symmetric: bool
    activations: Activations

    def describe(self) -> str:
        """Return what shares a scale, for people."""
        shared = {"tensor": "one scale", "channel": "a scale per output"}
        return shared.get(self.strategy, f"groups of {self.group_size}")


@dataclass(frozen=True, slots=True)
class CompressedConfig:
    """Schemes by target, and what is left plain. `where` says where the config stands, for messages."""

    schemes: Mapping[str, CompressedScheme]
    targets: Names
    ignore: Names
    where: str

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> CompressedConfig:
        """Read a quantization_config that stands at `where`. Raises CheckpointError for what is not implemented."""
        _refuse_other_features(values, where)
        groups = values.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise _refusal(f"{where}: config_groups", groups, "groups with targets and weights")
        schemes: dict[str, CompressedScheme] = {}
        for name, group in groups.items():
            scheme = _scheme(group, values.get("format"), f"{where}: {name}")
            # Of two groups with one target the later decides, as in compressed-tensors.
            schemes |= dict.fromkeys(_names(group.get("targets"), f"{where}: {name}: targets"), scheme)
        ignore = Names.of(_names(values.get("ignore"), f"{where}: ignore"))
        return cls(schemes, Names.of(schemes), ignore, where)

    @property
    def expressions(self) -> list[str]:
        """Return all regular expressions."""
        return self.targets.expressions + self.ignore.expressions


@dataclass(frozen=True, slots=True)
class SchemeOfLinear:
    """The scheme of each linear. `fits`: by regular expression of the config, the names that it fits."""

    config: CompressedConfig
    fits: Mapping[str, frozenset[str]]

    def quantized(self, name: str, on_disk: str, kind: Literal["int", "float"]) -> CompressedScheme:
        """Return the scheme of a linear that is stored quantized. Raises CheckpointError if the config differs."""
        target = self.config.targets.find([on_disk, *spellings(name)], self.fits)
        if target is None or self.config.ignore.find([on_disk], self.fits) is not None:
            raise CheckpointError(
                f"{on_disk} is quantised in the weights and not by quantization_config, expected both to agree. "
                "Compare config.json with the original repository."
            )
        scheme = self.config.schemes[target]
        if scheme.kind != kind:
            raise CheckpointError(
                f"{on_disk} is stored as {_FORMATS[kind]} and quantization_config says {_FORMATS[scheme.kind]}, "
                "expected both to agree. Compare config.json with the original repository."
            )
        return scheme

    def check_plain(self, name: str, on_disk: str) -> None:
        """Refuse a linear that is stored plain and that the config quantizes."""
        spelled, config = [on_disk, *spellings(name)], self.config
        if config.targets.find(spelled, self.fits) is not None and config.ignore.find(spelled, self.fits) is None:
            raise CheckpointError(
                f"{on_disk} is plain in the weights and quantised by quantization_config, expected both to agree. "
                "Compare config.json with the original repository; a model saved without compression has to be saved "
                "again with save_compressed=True."
            )


def _refuse_other_features(values: dict[str, Any], where: str) -> None:
    """Refuse what changes results beyond the linears' weights and inputs."""
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
            f"{where} holds {one_line(kind, 20)} weights of {one_line(bits, 20)} bits as {one_line(form, 40)!r}, "
            f"expected int of 4 or 8 as 'pack-quantized' or float of 8 as 'float-quantized'. {_INSTEAD}"
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
        kind,
        bits,
        strategy,
        group_size,
        symmetric,
        _activations(inputs, f"{where}: input_activations"),
    )


def _names(value: object, where: str) -> list[str]:
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise _refusal(where, value, "a list of names")
    return list(value or [])


def _strategy(weights: dict[str, Any], kind: str, where: str) -> tuple[str, int | None]:
    """Return what shares a scale, and the inputs of a group."""
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
    text = "missing" if got is None else one_line(got, 60)
    return CheckpointError(f"{where} is {text}, expected {expected}. {_INSTEAD}")
