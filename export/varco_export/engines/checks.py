"""The network that TensorRT's parser made of a graph: its layers, and whether a target computes in its types."""

from __future__ import annotations

from collections import Counter
from typing import Any

from varco_runtime.errors import UsageError

LEAST_SM = {"fp8": 89, "int4": 80, "bf16": 80}
"""The first compute capability (times ten) that computes in a type, or takes weights in it."""


def layers_of(network: Any) -> list[Any]:
    """Return all layers of a network, in its order."""
    return [network.get_layer(index) for index in range(network.num_layers)]


def count_layers(network: Any) -> Counter[str]:
    """Return how many layers there are of each kind, by TensorRT's name for it in capitals."""
    return Counter(str(layer.type).rpartition(".")[2].upper() for layer in layers_of(network))


def check_types(module: Any, network: Any, name: str, sm: int) -> None:
    """Raise `UsageError` where the target does not compute in one of the network's types."""
    kinds = {"FP8": "fp8", "INT4": "int4", "BF16": "bf16", "FLOAT": "fp32"}
    found = set()
    for layer in layers_of(network):
        for index in range(layer.num_outputs):
            found.add(kinds.get(str(layer.get_output(index).dtype).rpartition(".")[2]))
    for kind, least in LEAST_SM.items():
        if kind in found and sm < least:
            raise UsageError(
                f"{name} holds {kind}, which SM {sm} does not compute in; that begins with SM {least}. Export with "
                "another --decoder, or build for another --sm."
            )
    caches = (network.get_input(index) for index in range(network.num_inputs))
    if any(cache.name.startswith("past.") and cache.dtype == module.DataType.FLOAT for cache in caches):
        raise UsageError(
            f"{name} computes in fp32, for which TensorRT has no attention kernel. Export with --decoder fp16 or bf16."
        )
