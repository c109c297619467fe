"""An ONNX file's nodes, read and replaced without the package onnx, which a runtime does without.

Acceptance probes ask two things of a graph. What do its norms call epsilon? And what does it compute where the inputs
of its linears are not rounded to int8 or FP8? Such rounding turns differences of 1e-7 into differences of a whole
step, and some layers later all of the rounding differs, so that no comparison of answers could be tight. `unrounded`
takes it out of the graph, and leaves everything else, weights included, as it is.

Source: the field numbers of `onnx.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.bundle.protobuf import BYTES, VARINT, field, fields, varint

MICROSOFT = b"com.microsoft"
GATE_PRODUCT = b"GatedRMSNorm"
LENGTHS = (b"seqlens_k", b"write_indices")
"""The decoder's input with a number for each row: of the graphs for ONNX Runtime, and of those for TensorRT."""
ATTENTION, FIRST_NORM = b"GroupQueryAttention", 14
"""And the place of its first input with a norm's weight."""
EPSILONS = (b"epsilon", b"qk_norm_epsilon")
"""The second is GroupQueryAttention's, of the norms of q's and k's heads (`CudaDialect.cached_attention`)."""
_GRAPH = 7  # of a ModelProto
_NODE, _INITIALIZER, _GRAPH_INPUT = 1, 5, 11  # of a GraphProto
_TYPE_OF_VALUE, _TENSOR_TYPE, _SHAPE, _DIM, _DIM_PARAM = 2, 1, 2, 1, 2  # of a ValueInfoProto, and down from there
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of a NodeProto
_NAME, _FLOAT, _INT, _TYPE = 1, 2, 3, 20  # of an AttributeProto
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9  # of a TensorProto
_FP32, _INT64, _FP8 = 1, 7, 17  # of TensorProto.DataType
_INT_ATTRIBUTE = 2  # of AttributeProto.AttributeType
FP8_MAX = 448
COLUMN, LOWEST, HIGHEST = b"unrounded.column", b"unrounded.lowest", b"unrounded.highest"
"""Names of the constants that `unrounded` adds."""


def epsilons(model: bytes) -> set[float]:
    """Return the epsilon of every norm in a serialized model.

    A `GatedRMSNorm` is no norm but the product of gate and up, whose epsilon is none of the checkpoint's
    (`CudaDialect.multiply_gate`).

    Args:
        model: A graph as `varco_export` writes it.

    Raises:
        ValueError: The bytes are no model.
    """
    return {
        struct.unpack("<f", value)[0]
        for node in _nodes(model)
        if node.operator != GATE_PRODUCT
        for name, attribute in node.attributes.items()
        if name in EPSILONS
        for number, _, value, _ in _fields(attribute)
        if number == _FLOAT
    }


def normalizes_heads(model: bytes) -> bool:
    """Return whether an attention of a serialized model normalizes the heads of q and k itself.

    Args:
        model: A graph as `varco_export` writes it.

    Raises:
        ValueError: The bytes are no model.
    """
    return any(node.operator == ATTENTION and len(node.inputs) > FIRST_NORM for node in _nodes(model))


def takes_rows(model: bytes) -> bool:
    """Return whether a run of a decoder takes several sequences; those of earlier exports take one.

    Args:
        model: A decoder's graph as `varco_export` writes it.

    Raises:
        ValueError: The bytes are no model.
    """
    lengths = (
        dim
        for number, _, graph, _ in _fields(model)
        if number == _GRAPH
        for kind, _, value, _ in _fields(graph)
        if kind == _GRAPH_INPUT and any(n == _NAME and name in LENGTHS for n, _, name, _ in _fields(value))
        for dim in _nested(value, _TYPE_OF_VALUE, _TENSOR_TYPE, _SHAPE, _DIM)
    )
    return any(number == _DIM_PARAM for dim in lengths for number, *_ in _fields(dim))


def unrounded(model: bytes) -> bytes | None:
    """Return a serialized model that does not round what its linears multiply; None for one that does not anyway.

    Args:
        model: A graph as `varco_export` writes it for a CPU.

    Raises:
        ValueError: The bytes are no model.
    """
    parts, changed = [], False
    for number, _, value, raw in _fields(model):
        if number != _GRAPH:
            parts.append(raw)
            continue
        graph = []
        for kind, _, entry, raw_entry in _fields(value):
            replacement = _replacement(_node(entry)) if kind == _NODE else None
            changed |= replacement is not None
            graph += [raw_entry] if replacement is None else [field(_NODE, node) for node in replacement]
        graph += [field(_INITIALIZER, constant) for constant in _constants()]
        parts.append(field(_GRAPH, b"".join(graph)))
    return b"".join(parts) if changed else None


@dataclass(frozen=True, slots=True)
class _Node:
    """A node: its bytes, and what of them is looked at."""

    raw: bytes
    operator: bytes
    inputs: list[bytes]
    outputs: list[bytes]
    attributes: dict[bytes, bytes]

    def integer(self, name: bytes) -> int | None:
        """Return the value of an integer attribute; None where there is none of this name."""
        values = [value for number, _, value, _ in _fields(self.attributes.get(name, b"")) if number == _INT]
        return values[0] if values and isinstance(values[0], int) else None


def _replacement(node: _Node) -> list[bytes] | None:
    """Return the nodes that take the place of one that rounds or takes rounded values; None for any other."""
    match node.operator:
        case b"MatMulNBits" if node.integer(b"accuracy_level") == 4:  # int8 inputs; at level 1 they stay fp32
            level = node.attributes[b"accuracy_level"]
            return [node.raw.replace(level, level.replace(field(_INT, 4), field(_INT, 1)))]
        case b"QuantizeLinear" if len(node.inputs) == 3:  # rows by their scales
            (rows, scales, _), (output,) = node.inputs, node.outputs
            column = output + b".column"
            return [
                _encoded(b"Reshape", [scales, COLUMN], column),
                _encoded(b"Div", [rows, column], output),
            ]
        case b"MatMulIntegerToFloat":
            x, weight, _, scales, _ = node.inputs
            (output,) = node.outputs
            wide = output + b".weight"
            # FusedMatMul, for MatMul and DequantizeLinear are fused into a node that onnxruntime then refuses.
            return [
                _encoded(b"DequantizeLinear", [weight, scales], wide, axis=1),
                _encoded(b"FusedMatMul", [x, wide], output, MICROSOFT),
            ]
        case b"Cast" if node.integer(b"to") == _FP8:  # and back by another Cast, which then does nothing
            return [_encoded(b"Clip", [*node.inputs, LOWEST, HIGHEST], node.outputs[0])]
    return None


def _constants() -> list[bytes]:
    """Return the tensors that `_replacement` names."""
    limit, column = np.array(FP8_MAX, "<f4"), np.array([-1, 1], "<i8")
    return [
        field(_DIMS, 2) + _tensor(COLUMN, _INT64, column),
        _tensor(LOWEST, _FP32, -limit),
        _tensor(HIGHEST, _FP32, limit),
    ]


def _tensor(name: bytes, data_type: int, values: Any) -> bytes:
    return field(_DATA_TYPE, data_type) + field(_TENSOR_NAME, name) + field(_RAW_DATA, values.tobytes())


def _nodes(model: bytes) -> Iterator[_Node]:
    for number, _, graph, _ in _fields(model):
        if number == _GRAPH:
            for kind, _, entry, _ in _fields(graph):
                if kind == _NODE:
                    yield _node(entry)


def _node(raw: bytes) -> _Node:
    parts: dict[int, list[bytes]] = {number: [] for number in (_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE)}
    for number, kind, value, _ in _fields(raw):
        if number in parts and kind == BYTES:
            parts[number].append(value)
    attributes = {}
    for attribute in parts[_ATTRIBUTE]:
        names = [value for number, _, value, _ in _fields(attribute) if number == _NAME]
        attributes[names[0] if names else b""] = attribute
    return _Node(raw, b"".join(parts[_OP_TYPE][-1:]), parts[_INPUT], parts[_OUTPUT], attributes)


def _encoded(
    operator: bytes, inputs: list[bytes], output: bytes, domain: bytes = b"", axis: int | None = None
) -> bytes:
    """Return a node's bytes."""
    parts = [field(_INPUT, name) for name in inputs]
    parts += [field(_OUTPUT, output), field(_OP_TYPE, operator)]
    if axis is not None:
        attribute = field(_NAME, b"axis") + field(_INT, axis) + field(_TYPE, _INT_ATTRIBUTE)
        parts.append(field(_ATTRIBUTE, attribute))
    return b"".join([*parts, field(_DOMAIN, domain)])


def _nested(message: bytes, *path: int) -> Iterator[bytes]:
    """Yield the messages at the end of a path of fields."""
    if not path:
        yield message
        return
    for number, _, value, _ in _fields(message):
        if number == path[0]:
            yield from _nested(value, *path[1:])


def _fields(data: bytes) -> Iterator[tuple[int, int, Any, bytes]]:
    """Yield each field's number, wire type, value (bytes, or an integer for varints) and whole bytes."""
    for number, kind, start, first, end in fields(data):
        value: Any = varint(data, first, end)[0] if kind == VARINT else data[first:end]
        yield number, kind, value, data[start:end]
