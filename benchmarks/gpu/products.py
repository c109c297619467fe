"""The fourth step: single products at the 14B's widths and in every format, against fp64.

Each is the exporter's own node with the settings of a bundle's sessions, over random weights with scales that differ.
All outputs must be finite; `SAMPLED` of them are computed in fp64 from the very bytes that the graph reads.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from benchmarks.gpu.model import RandomGraph, lacking_kernels
from benchmarks.gpu.process import Tell
from benchmarks.gpu.tokens import NumbersError
from varco_export.dialects.cuda import CudaDialect
from varco_export.dialects.linear import Linear
from varco_export.precision import Precision
from varco_export.reading.tensor import Tensor
from varco_export.writing.graph import DTYPES
from varco_runtime.backend import MAX_STEP_TOKENS
from varco_runtime.backends.cuda import backend
from varco_runtime.backends.cuda.library import load_onnxruntime
from varco_runtime.backends.cuda.session import Device
from varco_runtime.errors import ShortageError
from varco_runtime.system.processor import usable_cores

Array = np.ndarray[Any, Any]
WIDTHS = {"14b": (5120, 13824, 1024), "tiny": (640, 1344, 256)}
"""Of the residual stream, between gate and down, and of keys."""
ROWS = {"14b": (1, 5, MAX_STEP_TOKENS, 64, 2953), "tiny": (1, MAX_STEP_TOKENS, 64)}
"""Of a step, of drafts, of a prompt and of one with a picture."""
SAMPLED = 256
FORMATS = [
    *((weights, "fp16") for weights in ("fp16", "int4", "fp8")),
    *((weights, "bf16") for weights in ("bf16", "int4")),
]
LIMITS = {("int", "fp16"): 0.006, ("int", "bf16"): 0.05, ("float", "fp16"): 0.001, ("float", "bf16"): 0.006}
"""Root mean square errors relative to the exact products': twice what emulation of the fused kernel finds at 13,824
features (tests/export/dialects/test_fused_sums.py), and a few roundings for kernels that add up in fp32."""


def check_products(folder: Path, shape: str, provider: str, weights: str, compute: str, tell: Tell) -> None:
    """Tell the error of each product by its shape and number of rows.

    Raises:
        NumbersError: An error is larger than the format's kernels may have, or an output is not finite.
    """
    if reason := lacking_kernels(provider, weights, compute):
        tell(("does_not_apply",), reason)
        return
    hidden, inner, keys = WIDTHS[shape]
    limit = LIMITS["int" if weights.startswith("int") else "float", compute]
    tell(("limit",), limit)
    folder = folder / f"products-{weights}-{compute}"
    wrong = []
    for n, k in ((hidden, hidden), (keys, hidden), (inner, hidden), (hidden, inner)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            write_product(folder, weights, compute, n, k)
            for rows, error in product_errors(folder, provider, compute, k, ROWS[shape]):
                tell(("errors", f"{k}x{n}", str(rows)), error)
                if not error < limit:
                    wrong.append(f"{rows} x {k} x {n}: {error:.3g}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if wrong:
        raise NumbersError(
            f"Products of {weights} in {compute} are off by more than {limit:g}: {'; '.join(wrong)}. Look at the "
            "kernels: varco inspect --kernels"
        )


def write_product(folder: Path, weights: str, compute: str, n: int, k: int) -> None:
    """Write the graph of one product of random weights `[n, k]`, in fp32 outside."""
    hole = folder / "hole"
    with hole.open("wb") as file:
        file.truncate(2 * n * k)
    weight = Tensor("product.weight", "fp16", (n, k), hole, 0)
    with _ProductGraph("decoder", folder) as graph:
        dialect = CudaDialect(graph, Precision(compute, weights, compute))
        y = dialect.linear(dialect.host_input("x", [1, "rows", k]), Linear("product", (weight,)))
        graph.node("Cast", [y], output="y", to=DTYPES["fp32"][0])
        graph.output("y", "fp32", [1, "rows", n])
        graph.save()


class _ProductGraph(RandomGraph):
    """Random weights with a scale of its own for each block: a kernel that confuses two of them shows."""

    def _scales(self, shape: Any) -> Array:
        return np.asarray(np.random.default_rng(1).uniform(0.5, 1.5, shape) * self._scale)


def product_errors(
    folder: Path, provider: str, compute: str, num_features: int, counts: tuple[int, ...]
) -> Iterator[tuple[int, float]]:
    """Yield for each number of rows the root mean square error of sampled outputs, relative to that of the exact ones;
    NaN where an output is not finite."""
    session = _session(folder, provider, compute)
    rng = np.random.default_rng(num_features)
    inputs = rng.standard_normal((max(counts), num_features), np.float32).astype(DTYPES[compute][1])
    num_outputs = session.get_outputs()[0].shape[-1]
    chosen = np.sort(rng.choice(num_outputs, min(SAMPLED, num_outputs), replace=False))
    exact_rows = _rows(folder, chosen)
    for count in counts:
        x = inputs[:count]
        got = np.asarray(session.run(["y"], {"x": x.astype(np.float32)[None]})[0][0])
        if not np.isfinite(got).all():
            yield count, float("nan")
            continue
        exact = x.astype(np.float64) @ exact_rows.T
        yield count, float(np.sqrt(np.square(got[:, chosen] - exact).mean() / np.square(exact).mean()))


def _session(folder: Path, provider: str, compute: str) -> Any:
    """Open the graph by the settings of a bundle's sessions."""
    ort = load_onnxruntime()[0] if provider == "cuda" else importlib.import_module("onnxruntime")
    device = Device(ort, provider, usable_cores(), ShortageError)
    settings = backend._provider_options("vision"), backend._session_entries(compute)
    return device.session(folder / "decoder.onnx", *settings)


def _rows(folder: Path, chosen: Array) -> Array:
    """Return the weights `[chosen, k]` in fp64, as the graph holds them."""
    graph = onnx.load(folder / "decoder.onnx", load_external_data=False).graph
    tensors = {tensor.name.removeprefix("product."): tensor for tensor in graph.initializer}
    if "weight_int4" in tensors:
        packed = _mapped(folder, tensors["weight_int4"], np.uint8)[chosen]  # [n, blocks, bytes], low nibble first
        values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float64) - 8
        scales = _mapped(folder, tensors["scales"], None)[chosen].astype(np.float64)
        return np.asarray((values * scales[..., None]).reshape(len(chosen), -1))
    if "weight_fp8" in tensors:
        values = _mapped(folder, tensors["weight_fp8"], ml_dtypes.float8_e4m3fn)[chosen].astype(np.float64)
        return np.asarray(values * _mapped(folder, tensors["scales"], None)[chosen].astype(np.float64))
    return np.asarray(_mapped(folder, tensors["weight"], None)[chosen].astype(np.float64))


def _mapped(folder: Path, tensor: Any, dtype: Any) -> Array:
    if not tensor.external_data:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    places = {entry.key: entry.value for entry in tensor.external_data}
    kind = np.dtype(dtype or onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return np.memmap(folder / places["location"], kind, "r", int(places["offset"]), tuple(tensor.dims))
