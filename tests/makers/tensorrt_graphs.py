"""The graphs of a bundle for TensorRT, run on ONNX Runtime's CPU provider behind the runtime's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from varco_runtime.backend import Features, PromptInputs
from varco_runtime.bundle.opening import Bundle
from varco_runtime.picture.packing import PackingPlan

Array = np.ndarray[Any, Any]
NUMPY_TYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.float32}


class GraphBackend:
    """Prompts in chunks, caches whose past and present are copied. A bf16 graph is widened to fp32 (`widened`), since
    the CPU provider has no bf16 products; its weights keep their values."""

    def __init__(self, bundle: Bundle, chunk_tokens: int = 50) -> None:
        self.manifest = bundle.manifest
        self.bundle_folder = bundle.folder
        self.chunk_tokens = chunk_tokens
        self.dtype = NUMPY_TYPES[self.manifest.decoder.compute]
        self._sessions = {
            name: session(bundle.folder / component.file, component.compute == "bf16")
            for name, component in self.manifest.components.items()
        }
        model = self.manifest.model
        shape = (1, model.num_key_value_heads, self.manifest.max_context, model.head_dim)
        names = [f"{layer}.{kind}" for layer in range(model.num_layers) for kind in ("key", "value")]
        self.caches = {name: np.zeros(shape, self.dtype) for name in names}
        self.next_token: Array = np.empty(0, np.int64)

    @property
    def max_context(self) -> int:
        return self.manifest.max_context

    @property
    def description(self) -> str:
        return "the TensorRT graphs on the CPU"

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def patch_features(self, pixel_values: Array) -> Array:
        return self.run("vision", pixel_values=pixel_values.astype(self.dtype))["patch_features"]

    def encode(self, pixel_values: Array) -> Array:
        return self.run("projector", patch_features=self.patch_features(pixel_values))["image_features"]

    def pack(self, features: Array, plan: PackingPlan) -> Array:
        indices, weights = plan.indices.astype(np.int64), plan.weights.astype(self.dtype)
        return self.run("packing", image_features=features, indices=indices, weights=weights)["image_tokens"]

    def features(self, pixel_values: Array, plan: PackingPlan) -> Features:
        patch_features = self.patch_features(pixel_values)
        image_features = self.run("projector", patch_features=patch_features)["image_features"]
        tokens = self.pack(image_features, plan)
        return Features(patch_features, image_features, tokens, tokens)

    def prefill(self, inputs: PromptInputs, start: int, num_logits: int = 1) -> Array:
        total, rows = len(inputs.ids), []
        for first in range(start, total, self.chunk_tokens):
            end = min(first + self.chunk_tokens, total)
            rows.append(self.step(self.embed(inputs, first, end), first, max(0, end - max(first, total - num_logits))))
        return np.concatenate(rows)

    def embed(self, inputs: PromptInputs, start: int, end: int) -> Array:
        ids = inputs.ids[start:end]
        is_image = ids == inputs.image_token_id
        rows = self.run("embedding", token_ids=np.where(is_image, 0, ids)[None])["inputs_embeds"]
        if inputs.image_tokens is not None:
            before = int(np.count_nonzero(inputs.ids[:start] == inputs.image_token_id))
            rows[0, is_image] = inputs.image_tokens[before : before + int(np.count_nonzero(is_image))]
        return rows

    def step(self, embeds: Array, position: int, num_logits: int) -> Array:
        """Logits `[num_logits, vocab]` of the last positions of one run."""
        length = embeds.shape[1]
        total = position + length
        result = self.run(
            "decoder",
            inputs_embeds=embeds,
            position_ids=np.arange(position, total)[None],
            write_indices=np.array([position]),
            attention_mask=np.tri(length, total, position, dtype=bool)[None, None],
            logit_positions=np.arange(length - num_logits, length),
            **{f"past.{name}": cache for name, cache in self.caches.items()},
        )
        self.caches = {name: result[f"present.{name}"] for name in self.caches}
        self.next_token = result["next_token"][0]
        logits: Array = result["logits"][0]
        return logits

    def decode_step(self, token_id: int, position: int) -> Array:
        row: Array = self.step(self.run("embedding", token_ids=np.array([[token_id]]))["inputs_embeds"], position, 1)[0]
        assert self.next_token[0] == row.argmax(), "the graph's choice is not the largest of its logits"
        return row


def session(graph: Path, is_bf16: bool) -> Any:
    """Optimisations off: with them onnxruntime fuses quantised products into nodes that are invalid in fp32."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = widened(graph).SerializeToString() if is_bf16 else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def widened(graph: Path) -> onnx.ModelProto:
    """A graph in bf16 with every bf16 made fp32; weights keep their values."""
    model = onnx.load(graph, load_external_data=False)
    external_data_helper.load_external_data_for_model(model, str(graph.parent))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = np.frombuffer(tensor.raw_data, ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.CopyFrom(helper.make_attribute("to", TensorProto.FLOAT))
    return model
