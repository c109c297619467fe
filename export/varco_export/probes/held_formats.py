"""In which number formats the graphs of a bundle hold a checkpoint's linears, read from their operators."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import onnx

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.probes.formats import LinearFormat
from varco_export.quantized.weights import Fp8Weight
from varco_export.reading.tensor import Tensor
from varco_runtime.bundle.manifest import Manifest

_QUANTIZED = re.compile(r"(?P<name>.+)\.weight_(?P<kind>int4|int8|fp8)")
ROWS = "MatMulIntegerToFloat"
"""Weights in rows with a scale each, and their input, too: see `row_product.py`."""
_LINEARS = (*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))


def linear_formats(checkpoint: Checkpoint, path: Path) -> dict[str, LinearFormat]:
    """How a decoder's graph holds the checkpoint's linears, those that are not exact.

    Of the graph only the operators are read, never the weights: these are what the probes judge.
    """
    held, weights_only = held_formats(path), _fp8_weights_only(path)
    names = ["lm_head"]
    for layer in range(checkpoint.config.text.num_hidden_layers):
        names += [f"language_model.layers.{layer}.{linear}" for linear in _LINEARS]
    formats = {}
    for name in names:
        weight = checkpoint.weight(name)
        # A graph may hold query, key and value as one linear, and so gate and up.
        fused = re.sub("[qkv]_proj$", "qkv_proj", re.sub("(gate|up)_proj$", "gate_up_proj", name))
        found = held.get(name, held.get(fused))
        stays_float = bool(weights_only & {name, fused})
        if isinstance(weight, Fp8Weight) and weight.activations != "float" and not stays_float:
            formats[name] = LinearFormat("fp8", activations="fp8", input_scale=weight.input_scale)
        elif found is not None:
            formats[name] = dataclasses.replace(found, rounds_weight=isinstance(weight, Tensor))
    return formats


def vision_formats(folder: Path, manifest: Manifest) -> dict[str, LinearFormat]:
    """How the graphs of the vision tower and the projector hold their linears, those that are not exact.

    Checkpoints hold them as floats, so that all integers are the exporter's.
    """
    return {
        name: dataclasses.replace(found, rounds_weight=True)
        for component in (manifest.vision, manifest.projector)
        for name, found in held_formats(folder / component.file).items()
    }


def held_formats(path: Path) -> dict[str, LinearFormat]:
    """The quantised linears of a graph by name, those of either dialect."""
    held = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        numbers = {entry.name: entry.i for entry in node.attribute}
        for found in filter(None, map(_QUANTIZED.fullmatch, node.input)):
            held[found["name"]] = LinearFormat(
                kind=found["kind"],
                block_size=numbers.get("block_size", 0),
                positive_scales=node.op_type == "DequantizeLinear",
                activations="int8" if numbers.get("accuracy_level") == 4 or node.op_type == ROWS else "float",
            )
    return held


def _fp8_weights_only(path: Path) -> set[str]:
    """FP8 linears whose input the graph leaves as it is, whatever the checkpoint asks for (`dialects/cuda.py`)."""
    return {
        found["name"]
        for node in onnx.load(path, load_external_data=False).graph.node
        if node.op_type == "MatMulBlockQuantizedFp8Weight" and not any(node.input[3:4])
        for found in filter(None, map(_QUANTIZED.fullmatch, node.input))
    }


def coarsest(formats: Iterable[LinearFormat], compute: str) -> str:
    """`int4`, `fp8`, `int8`, or where there is none `compute`, the type that the network computes in."""
    return min((one.kind for one in formats), key=("int4", "fp8", "int8").index, default=compute)
