"""What OpenVINO runs in the place of a bundle's nodes: its own layers, their kernels and the types they compute in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from varco_runtime.backends.openvino.network import Networks
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BackendError, first_line

_HIDDEN = ("Input", "Output", "Parameter", "Result", "Const", "Constant")
"""What runs nothing."""


@dataclass(frozen=True, slots=True)
class RuntimeLayer:
    """Layers of one kind in one network, as the device's plugin names them.

    Args:
        network: The network.
        operator: OpenVINO's kind of layer: `FullyConnected`, `ScaledDotProductAttention`.
        kernel: The plugin's kernel: `brgemm_avx512_amx`.
        precision: The type that it computes in: `bf16`.
        nodes: How many.
    """

    network: str
    operator: str
    kernel: str
    precision: str
    nodes: int


def runtime_layers(bundle: Bundle, settings: OpenVinoSettings, threads: int) -> list[RuntimeLayer]:
    """Return the layers of a bundle's networks, compiled as they are when it is loaded; the most frequent first.

    Args:
        bundle: A checked bundle for the CPU.
        settings: Device and number formats.
        threads: Processor threads.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: The device is not there, cannot run the networks, or does not tell what it runs.
    """
    networks = Networks(bundle, settings, threads)
    layers: list[RuntimeLayer] = []
    for name in ("vision", "projector", "decoder"):
        compiled = networks.decoder() if name == "decoder" else networks.plain(name)
        counts = Counter(_layers(compiled))
        layers += [RuntimeLayer(name, *what, count) for what, count in counts.most_common()]
    return layers


def _layers(compiled: Any) -> Iterator[tuple[str, str, str]]:
    """Yield kind, kernel and type of each layer that runs something."""
    try:
        operations = compiled.get_runtime_model().get_ops()
    except RuntimeError as error:  # not every plugin has a runtime model
        raise BackendError(f"OpenVINO's device does not tell what it runs: {first_line(error)}.") from None
    for operation in operations:
        info = operation.get_rt_info()
        kind = _text(info, "layerType")
        if kind not in _HIDDEN:
            yield kind, _text(info, "primitiveType"), _text(info, "runtimePrecision")


def _text(info: Any, name: str) -> str:
    return str(info[name].astype(str)) if name in info else ""
