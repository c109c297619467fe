"""What each graph for ONNX Runtime takes and gives: names, types and shapes, as the exporter declares them.

A bundle whose hashes fit may still contradict itself: a manifest of one model beside the graphs of another. The runtime
sizes buffers by the manifest, so the two are compared when a graph is loaded, and not found to differ by a run.
`tensorrt/engine_io.py` is the same for TensorRT's engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from varco_runtime.bundle.manifest import Manifest, cache_names
from varco_runtime.bundle.tensor import Tensor, described, first_difference
from varco_runtime.dtypes import FORMATS
from varco_runtime.errors import BundleError

SILENT = 4
"""onnxruntime's log level above errors: those are raised as well, and would be printed in color over the one line."""
_TYPES = {
    f"tensor({FORMATS[name].onnx_name})": name
    for name in ("fp64", "fp32", "fp16", "bf16", "uint8", "int32", "int64", "bool")
}
"""The formats of a graph's inputs and outputs as ONNX Runtime spells them; int8, int4 and fp8 are those of weights."""
BATCH = "batch"
"""The rows of a decoder's run, each a sequence of its own. Graphs of earlier exports have one, a fixed length."""
NUM_SETTINGS = 6
"""What a draw of a token on a device is told: `sampling.onnx`."""


def graph_contract(manifest: Manifest, rows: int | str = BATCH) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each network of a bundle for the CPU or for CUDA, by name.

    `rows` are the decoder's or the draw's, as `decoder_rows` finds them in the graph.
    """
    model, side, patches = manifest.model, manifest.image.tile_px, manifest.image.patches_per_tile
    is_cuda = manifest.device == "cuda"
    compute = {name: component.compute for name, component in manifest.components.items()}
    pixels = ("tiles", 3, side, side)
    looked = ("tiles", patches, model.vision_hidden_size)
    projected = ("tiles", patches, model.hidden_size)
    tensors = {
        "vision": {
            "pixel_values": Tensor("fp32" if is_cuda else compute["vision"], pixels, True),
            "patch_features": Tensor(compute["vision"], looked, False),
        },
        "projector": {
            "patch_features": Tensor(compute["projector"], looked, True),
            "image_features": Tensor(compute["projector"], projected, False),
        },
        "decoder": dict(_decoder(manifest, rows)),
    }
    if not is_cuda:
        return tensors
    return tensors | {
        "pixels": {"tiles": Tensor("uint8", pixels, True), "pixel_values": Tensor("fp32", pixels, False)},
        "packing": {
            "image_features": Tensor(compute["packing"], projected, True),
            "indices": Tensor("int64", ("tokens", 4), True),
            "weights": Tensor("fp32", ("tokens", 4), True),
            "image_tokens": Tensor(compute["packing"], ("tokens", model.hidden_size), False),
        },
        "sampling": _sampling(model.vocab_size, rows),
    }


def _sampling(vocab_size: int, rows: int | str) -> dict[str, Tensor]:
    """The draw of earlier exports is for one row, whose flags and settings have no dimension for it."""
    each: tuple[int | str, ...] = () if rows == 1 else (rows,)
    return {
        "logits": Tensor("fp32", (rows, 1, vocab_size), True),
        "seen": Tensor("bool", (*each, vocab_size), True),
        "settings": Tensor("fp64", (*each, NUM_SETTINGS), True),
        "next_token": Tensor("int64", (rows, 1), False),
    }


def _decoder(manifest: Manifest, rows: int | str) -> Iterator[tuple[str, Tensor]]:
    model, compute = manifest.model, manifest.decoder.compute
    yield "seqlens_k", Tensor("int32", (rows,), True)
    yield "total_sequence_length", Tensor("int32", (), True)
    yield "logits", Tensor("fp32", (rows, "num_logits", model.vocab_size), False)
    if manifest.embedding is None:
        yield "token_ids", Tensor("int64", (rows, "sequence"), True)
    else:
        yield "inputs_embeds", Tensor(compute, (rows, "sequence", model.hidden_size), True)
    if manifest.device == "cuda":
        yield "image_tokens", Tensor(compute, ("num_image_tokens", model.hidden_size), True)
        yield "image_rows", Tensor("int64", (rows, "sequence"), True)
        yield "is_image", Tensor("bool", (rows, "sequence", 1), True)
        yield "logit_positions", Tensor("int64", ("num_logits",), True)
        yield "next_token", Tensor("int64", (rows, "num_logits"), False)
    else:
        yield "num_logits", Tensor("int64", (1,), True)
    cache = (rows, model.num_key_value_heads, "max_context", model.head_dim)
    for name in cache_names(model.num_layers):
        yield f"past.{name}", Tensor(manifest.kv_format, cache, True)
        yield f"present.{name}", Tensor(manifest.kv_format, cache, False)


def decoder_rows(session: Any) -> int | str:
    """Return how many sequences a run of a decoder or of a draw takes: 1, or `BATCH` where each run chooses."""
    for value in session.get_inputs():
        if value.name == "seqlens_k":
            return 1 if value.shape == [1] else BATCH
        if value.name == "seen":
            return 1 if len(value.shape) == 1 else BATCH
    return BATCH


def check_graph_contract(session: Any, path: Path, expected: dict[str, Tensor]) -> None:
    """Compare a graph with what the manifest says of it.

    Args:
        session: An onnxruntime session of the graph.
        path: The graph's file, for the message.
        expected: The network's tensors, by name (`graph_contract`).

    Raises:
        BundleError: They differ; it names the first tensor that does.
    """
    difference = first_difference(dict(_tensors(session)), expected)
    if difference is not None:
        name, got, want = difference
        raise BundleError(
            f"{path} has {described(name, got, 'the ')}, expected {described(name, want, 'the ')} by the manifest. "
            "Export the bundle again."
        )


def _tensors(session: Any) -> Iterator[tuple[str, Tensor]]:
    for values, is_input in ((session.get_inputs(), True), (session.get_outputs(), False)):
        for value in values:
            yield value.name, Tensor(_TYPES.get(value.type, value.type), tuple(value.shape), is_input)
