"""What the device can do at most: measured copy bandwidth and matrix rate, and what a model asks of both."""

from __future__ import annotations

import importlib
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.process import Tell
from varco_export.tiny import TinyOptions
from varco_runtime.backends.cuda.library import libraries_missing, load_onnxruntime, runs_on_cuda

CHAIN = 8
"""Operators in one timed run, so that the start of a run weighs little."""
COPY_COUNT, MATRIX_SIDE = 1 << 28, 8192
SMALL_COPY_COUNT, SMALL_MATRIX_SIDE = 1 << 20, 256
RANDOM_COUNT = (1 << 24) - 1
"""Numbers of a copy and rows of a square matrix; the small ones try the script itself."""
_FLOAT = {"cuda": np.float16, "cpu": np.float32}


def measure_limits(provider: str, small: bool, tell: Tell) -> None:
    """Bytes per second of a copy, read and written, and operations per second of a square matrix product in fp16."""
    count, side = (SMALL_COPY_COUNT, SMALL_MATRIX_SIDE) if small else (COPY_COUNT, MATRIX_SIDE)
    # Random values: products of equal numbers take less power, and then run faster than any real ones.
    values = np.resize(np.random.default_rng(0).standard_normal(RANDOM_COUNT, np.float32), count)
    item_bytes = np.dtype(_FLOAT[provider]).itemsize
    copy_s = _operator_s("Neg", [values], provider)
    tell(("copy_bytes_per_s",), 2 * count * item_bytes / copy_s)
    matrices = [np.resize(values, (side, side)), np.resize(values[1:], (side, side)) * side**-0.5]
    tell(("matrix_ops_per_s",), 2 * side**3 / _operator_s("MatMul", matrices, provider))


def vision_operations(options: TinyOptions, num_tiles: int) -> int:
    """Multiplications and additions of the tower and the projector; attention is over the patches of one tile."""
    patches, width = (options.image_size // options.patch_size) ** 2, options.vision_hidden_size
    layer = patches * width * (4 * width + 2 * options.vision_intermediate_size) + 2 * patches**2 * width
    embedding = patches * 3 * options.patch_size**2 * width
    projector = patches * options.hidden_size * (width + options.hidden_size)
    return 2 * num_tiles * (options.num_vision_layers * layer + embedding + projector)


def prefill_operations(options: TinyOptions, num_tokens: int) -> int:
    """Multiplications and additions of a prompt from its beginning: causal attention, and logits of the last token."""
    width, kv_share = options.hidden_size, options.num_key_value_heads / options.num_attention_heads
    products = int(width * width * (2 + 2 * kv_share)) + 3 * width * options.intermediate_size
    attention = num_tokens**2 * width  # half of the scores, half of their sums
    head = width * options.vocab_size
    return 2 * (options.num_hidden_layers * (num_tokens * products + attention) + head)


def median_s(call: Callable[[], Any], count: int, warm: int = 2) -> float:
    """Seconds of a call that waits for its result, the median of `count` after those that warm up."""
    times = []
    for _ in range(warm + count):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[warm:])


def operator_session(operator: str, shapes: list[tuple[int, ...]], provider: str) -> tuple[Any, Any]:
    """Return onnxruntime and a session of a chain of one operator. Raises `BackendError` where it is not on CUDA."""
    ort, missing = load_onnxruntime() if provider == "cuda" else (importlib.import_module("onnxruntime"), [])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the chain stays as it is
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"][provider == "cpu" :]
    chain = _chain(operator, shapes, np.dtype(_FLOAT[provider]))
    session = ort.InferenceSession(chain, options, providers=providers, enable_fallback=0)
    if provider == "cuda" and not runs_on_cuda(session):
        raise libraries_missing(missing)
    return ort, session


def _operator_s(operator: str, inputs: list[np.ndarray[Any, Any]], provider: str) -> float:
    """Return seconds of one operator on buffers of the device, in a chain whose first input is the result before."""
    ort, session = operator_session(operator, [array.shape for array in inputs], provider)
    dtype = np.dtype(_FLOAT[provider])
    binding = session.io_binding()
    values = [ort.OrtValue.ortvalue_from_numpy(array.astype(dtype), provider, 0) for array in inputs]
    for index, value in enumerate(values):
        binding.bind_ortvalue_input(f"x{index}", value)
    made = ort.OrtValue.ortvalue_from_shape_and_type(list(inputs[0].shape), dtype.type, provider, 0)
    binding.bind_ortvalue_output("y", made)
    return median_s(lambda: session.run_with_iobinding(binding), 7) / CHAIN


def _chain(operator: str, shapes: list[tuple[int, ...]], dtype: np.dtype[Any]) -> bytes:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(dtype)
    names = [f"x{index}" for index in range(len(shapes))]
    steps = ["x0", *(f"step_{index}" for index in range(1, CHAIN)), "y"]
    nodes = [helper.make_node(operator, [before, *names[1:]], [after]) for before, after in itertools.pairwise(steps)]
    made = helper.make_tensor_value_info("y", kind, shapes[0])
    given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(names, shapes, strict=True)]
    graph = helper.make_graph(nodes, operator, given, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
