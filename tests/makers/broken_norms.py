"""Bundles of Qwen3 for a CPU, broken on purpose where their attention differs from Qwen2's.

For `broken.broken`, which records the new hashes. The graph is `OnnxRuntimeDialect.cached_attention`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEAD_NORM = "SimplifiedLayerNormalization"
ATTENTION = "GroupQueryAttention"


def swapped_head_norms(folder: Path) -> None:
    """One layer normalizes its queries with the weights of the keys' norm, and the other way round."""
    with _decoder(folder) as model:
        query, key = _head_norms(model)[:2]
        query.input[1], key.input[1] = key.input[1], query.input[1]


def forgotten_head_norm(folder: Path) -> None:
    """One layer does not normalize its keys."""
    with _decoder(folder) as model:
        key = _head_norms(model)[1]
        key.CopyFrom(helper.make_node("Identity", key.input[:1], key.output))


def other_head_epsilon(folder: Path) -> None:
    """The norms of heads with 1e-5 for 1e-6."""
    with _decoder(folder) as model:
        for norm in _head_norms(model):
            (epsilon,) = (entry for entry in norm.attribute if entry.name == "epsilon")
            epsilon.f = 1e-5


def norm_behind_the_rotary(folder: Path, in_order: bool = False) -> None:
    """Every layer turns its queries and keys first and normalizes them then; `in_order`, it turns them behind."""
    with _decoder(folder) as model:
        nodes = list(model.graph.node)
        norms = _head_norms(model)
        normed = {norm.output[0] for norm in norms}
        cut = {norm.input[0] for norm in norms}
        joined: dict[str, str] = {}
        made = [
            helper.make_node("Cast", ["seqlens_k"], ["last_position"], to=TensorProto.INT64),
            helper.make_node("Add", ["last_position", "rotary.one"], ["total"]),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "rotary.one"))
        for node in nodes:
            if node.op_type == "Reshape" and node.output[0] in cut and not in_order:
                node.input[0], turning = _turned(node.input[0])
                made += turning
            made.append(node)
            if node.op_type == "Reshape" and node.input[0] in normed and in_order:
                joined[node.output[0]], turning = _turned(node.output[0])
                made += turning
            elif node.op_type == ATTENTION:
                _stop_turning(node, joined)
        del model.graph.node[:]
        model.graph.node.extend(made)


def _turned(x: str) -> tuple[str, list[onnx.NodeProto]]:
    """The name of x when it has turned, and the nodes that turn it."""
    start, turned = f"{x}.start", f"{x}.turned"
    made = [
        helper.make_node("Shape", [x], [f"{x}.length"], start=1, end=2),
        helper.make_node("Sub", ["total", f"{x}.length"], [start]),
        helper.make_node("RotaryEmbedding", [x, start, "cos_cache", "sin_cache"], [turned], domain="com.microsoft"),
    ]
    return turned, made


def _stop_turning(attention: onnx.NodeProto, others: dict[str, str]) -> None:
    """Let attention take queries and keys as they come, those of `others` under another name."""
    for at in (0, 1):
        attention.input[at] = others.get(attention.input[at], attention.input[at])
    (entry,) = (entry for entry in attention.attribute if entry.name == "do_rotary")
    entry.i = 0
    del attention.input[7:]


def assumed_bias(folder: Path) -> None:
    """One layer's queries, keys and values have a bias, as Qwen2's do."""
    with _decoder(folder) as model:
        split = next(node for node in model.graph.node if node.op_type == "Split" and len(node.output) == 3)
        (sizes,) = (tensor for tensor in model.graph.initializer if tensor.name == split.input[1])
        width = int(numpy_helper.to_array(sizes).sum())
        values = np.random.default_rng(0).normal(0, 0.3, width).astype(_type(model))
        model.graph.initializer.append(numpy_helper.from_array(values, "assumed_bias"))
        at = list(model.graph.node).index(split)
        model.graph.node.insert(at, helper.make_node("Add", [split.input[0], "assumed_bias"], ["with_bias"]))
        split.input[0] = "with_bias"


def _type(model: onnx.ModelProto) -> type[np.generic]:
    (norm,) = (tensor for tensor in model.graph.initializer if tensor.name == "language_model.norm.weight")
    return helper.tensor_dtype_to_np_dtype(norm.data_type).type


def _head_norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The norms of q and of k, layer by layer."""
    norms = [node for node in model.graph.node if node.op_type == HEAD_NORM]
    assert norms, "a bundle of Qwen2"
    return norms


@contextmanager
def _decoder(folder: Path) -> Iterator[onnx.ModelProto]:
    path = folder / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    yield model
    path.write_bytes(model.SerializeToString(deterministic=True))


FAULTS: dict[Callable[[Path], None], str] = {
    swapped_head_norms: "decoder, text",
    forgotten_head_norm: "decoder, text",
    norm_behind_the_rotary: "decoder, text",
    assumed_bias: "decoder, text",
    other_head_epsilon: "settings",
}
"""Each way to break a bundle, and the component whose check must show it."""
