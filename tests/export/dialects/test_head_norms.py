"""Where the norms of Qwen3's heads stand in the graphs of each device, and that Qwen2's graphs have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.conftest import export_bundle
from tests.makers.refusals import assert_refused
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.errors import BackendError

QWEN3 = TinyOptions(seed=1, text="qwen3", patch_size=16, hidden_size=160, num_attention_heads=10, head_dim=32)
ATTENTION = "language_model.layers.{}.self_attn"
LAYERS = range(QWEN3.num_hidden_layers)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("qwen3") / "checkpoint", QWEN3)


class Graph:
    """A decoder's nodes, found by what makes a value and who reads it."""

    def __init__(self, bundle: Path) -> None:
        self.nodes = list(onnx.load(bundle / "decoder.onnx", load_external_data=False).graph.node)
        self._makers = {output: node for node in self.nodes for output in node.output}

    def all(self, operator: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == operator]

    def before(self, value: str, count: int) -> list[onnx.NodeProto]:
        """The nodes that make a value, from the last one back, each by its first input."""
        found: list[onnx.NodeProto] = []
        while len(found) < count:
            found.append(self._makers[found[-1].input[0] if found else value])
        return found


@pytest.fixture(scope="module")
def graph(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Graph]:
    def export(device: str, **options: Any) -> Graph:
        return Graph(export_bundle(checkpoint, tmp_path_factory.mktemp(device) / "bundle", device=device, **options))

    return export


def settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def test_on_a_cpu_they_stand_before_an_attention_of_separate_queries_keys_and_values(
    graph: Callable[..., Graph],
) -> None:
    decoder = graph("cpu")
    attentions = decoder.all("GroupQueryAttention")
    assert len(attentions) == len(LAYERS)
    assert len(decoder.all("SimplifiedLayerNormalization")) == 2 * len(LAYERS)
    for layer, attention in zip(LAYERS, attentions, strict=True):
        assert settings(attention)["do_rotary"] == 1
        assert len(attention.input) == 9
        for part, value in zip("qk", attention.input, strict=False):
            *nodes, split = decoder.before(value, 4)
            assert [node.op_type for node in nodes] == ["Reshape", "SimplifiedLayerNormalization", "Reshape"]
            assert nodes[1].input[1] == f"{ATTENTION.format(layer)}.{part}_norm.weight"
            assert settings(nodes[1]) == {"axis": -1, "epsilon": np.float32(1e-6)}
            assert split.op_type == "Split"
        assert decoder.before(attention.input[2], 1)[0].op_type == "Split"


@pytest.mark.parametrize("decoder", ["fp16", "bf16", "int4", "fp8"])
def test_on_cuda_the_attention_normalizes_itself(graph: Callable[..., Graph], decoder: str) -> None:
    found = graph("cuda", decoder=decoder)
    attentions = found.all("GroupQueryAttention")
    assert len(attentions) == len(LAYERS)
    for layer, attention in zip(LAYERS, attentions, strict=True):
        name = ATTENTION.format(layer)
        assert list(attention.input[1:3]) == ["", ""], "queries, keys and values come as one"
        assert list(attention.input[9:]) == [""] * 5 + [f"{name}.q_norm.weight", f"{name}.k_norm.weight"]
        assert settings(attention)["qk_norm_epsilon"] == np.float32(1e-6)
    assert not found.all("SimplifiedLayerNormalization")
    assert not found.all("Split")


def test_for_tensorrt_they_stand_before_the_rotary_embedding(graph: Callable[..., Graph]) -> None:
    decoder = graph("tensorrt", decoder="fp16")
    rotations = decoder.all("RotaryEmbedding")
    assert len(rotations) == 2 * len(LAYERS)
    for number, rotation in enumerate(rotations):
        (norm, transpose) = decoder.before(rotation.input[0], 2)
        assert (norm.op_type, transpose.op_type) == ("RMSNormalization", "Transpose")
        assert norm.input[1] == f"{ATTENTION.format(number // 2)}.{'qk'[number % 2]}_norm.weight"
        assert settings(norm) == {"axis": -1, "epsilon": np.float32(1e-6)}


@pytest.mark.parametrize("device", ["cpu", "cuda", "tensorrt"])
def test_qwen3_has_no_bias_and_qwen2_no_norm(
    graph: Callable[..., Graph], tiny_checkpoint: Path, tmp_path: Path, device: str
) -> None:
    decoder = "fp32" if device == "cpu" else "fp16"
    names = {name for node in graph(device, decoder=decoder).nodes for name in node.input}
    assert not any(name.endswith("qkv_proj.bias") for name in names)
    qwen2 = Graph(export_bundle(tiny_checkpoint, tmp_path / "bundle", device=device, decoder=decoder))
    names = {name for node in qwen2.nodes for name in node.input}
    assert not any(name.endswith(("q_norm.weight", "k_norm.weight")) for name in names)
    assert any(name.endswith("qkv_proj.bias") for name in names)


def test_a_bundle_for_cuda_is_refused_on_a_cpu_before_it_runs(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16")
    message = r"The CPU cannot run this bundle, it has no kernels for Qwen3's attention.*--device cpu"
    assert_refused(bundle, BackendError, message, provider="cpu")
