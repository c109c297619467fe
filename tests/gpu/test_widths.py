"""Numbers at the widths of the 14B, against fp64: products of every format, and a model of two layers.

A kernel's error grows with the number of features it adds up (`tests/export/dialects/test_fused_sums.py`), so
narrow models cannot see it. On the CPU (VARCO_GPU_TESTS_ON=cpu) the same tests run at narrow widths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.makers.exported_weights import ExportedDecoder, exported_linears
from tests.makers.inputs import text_inputs
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.cuda import CudaDialect
from varco_export.dialects.linear import Linear
from varco_export.precision import Precision
from varco_export.probes.reference_functions import attention, rms_norm, rotate
from varco_export.reading.tensor import Tensor
from varco_export.tiny import TinyOptions, make_tiny
from varco_export.writing.graph import DTYPES, Graph
from varco_runtime import Varco
from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.backends.cuda.backend import _host_onnxruntime, _provider_options, _session_entries
from varco_runtime.backends.cuda.library import load_onnxruntime
from varco_runtime.backends.cuda.session import Device
from varco_runtime.errors import ShortageError

Array = np.ndarray[Any, Any]
WIDTHS = {"cuda": (5120, 13824), "cpu": (640, 1344)}
NUM_OUTPUTS = 512
ROWS = (1, MAX_STEP_TOKENS, 64)
"""Of a step, of the longest draft and of a prompt: by the GEMV, and by tensor cores."""
FORMATS = [
    *((weights, "fp16") for weights in ("fp16", "int4", "int8", "fp8")),
    *((weights, "bf16") for weights in ("bf16", "int4", "int8", "fp8")),
]
LIMITS = {("int", "fp16"): 0.006, ("int", "bf16"): 0.05, ("float", "fp16"): 0.001, ("float", "bf16"): 0.006}
"""Root mean square errors relative to the exact products': twice what emulation finds at 13,824 features for integers,
and a few roundings of the result for kernels that add up in fp32."""
MODEL_LIMIT = 0.01
"""The same of the two-layer model's logits in int4 and fp16; twelve random layers are off by 0.4 % in emulation."""


def relative(got: Array, exact: Array) -> float:
    return float(np.sqrt(np.square(got.astype(np.float64) - exact).mean() / np.square(exact).mean()))


def run(place: str, folder: Path, compute: str, x: Array) -> Array:
    """What the graph in `folder` makes of x, by the settings of a bundle's sessions."""
    ort = load_onnxruntime()[0] if place == "cuda" else _host_onnxruntime()
    device = Device(ort, place, 1, ShortageError)
    session = device.session(folder / "decoder.onnx", _provider_options("vision"), _session_entries(compute))
    found: Array = session.run(["y"], {"x": x})[0]
    return found


def write_product(folder: Path, weights: str, compute: str, num_features: int) -> None:
    """A graph of one product of random weights, fp32 outside."""
    rows = np.random.default_rng(num_features).standard_normal((NUM_OUTPUTS, num_features)) / num_features**0.5
    (folder / "weight").write_bytes(rows.astype(np.float16).tobytes())
    weight = Tensor("product.weight", "fp16", rows.shape, folder / "weight", 0)
    with Graph("decoder", folder) as graph:
        dialect = CudaDialect(graph, Precision(compute, weights, compute))
        y = dialect.linear(dialect.host_input("x", [1, "rows", num_features]), Linear("product", (weight,)))
        graph.node("Cast", [y], output="y", to=DTYPES["fp32"][0])
        graph.output("y", "fp32", [1, "rows", NUM_OUTPUTS])
        graph.save()


def held_rows(folder: Path) -> Array:
    """The weights `[n, k]` as the graph holds them, exactly."""
    decoder = ExportedDecoder(folder)
    if "product.weight_fp8" in decoder.tensors:
        values, scales = (decoder.tensors[f"product.{name}"].astype(np.float64) for name in ("weight_fp8", "scales"))
        return np.asarray(values * scales)
    return decoder.rows("product").astype(np.float64)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("weights", "compute"), FORMATS)
def test_a_product_is_near_the_exact_one(place: str, tmp_path: Path, weights: str, compute: str, which: int) -> None:
    if place == "cpu" and (compute == "bf16" or weights == "fp8"):
        pytest.skip(f"the CPU has no kernels for {weights} in {compute}")
    num_features = WIDTHS[place][which]
    write_product(tmp_path, weights, compute, num_features)
    exact_rows = held_rows(tmp_path)
    kind = "int" if weights.startswith("int") else "float"
    errors = {}
    for rows in ROWS:
        x = np.random.default_rng(rows).standard_normal((1, rows, num_features)).astype(DTYPES[compute][1])
        exact = x.astype(np.float64)[0] @ exact_rows.T
        errors[rows] = relative(run(place, tmp_path, compute, x.astype(np.float32))[0], exact)
    assert max(errors.values()) < LIMITS[kind, compute], errors


# --- a model of two layers --------------------------------------------------------------------------------------------


def wide_options(place: str) -> TinyOptions:
    hidden, intermediate = WIDTHS[place]
    return TinyOptions(
        seed=6,
        hidden_size=hidden,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 640),
        intermediate_size=intermediate,
        vocab_size=1024,
        num_hidden_layers=2,
        num_vision_layers=1,
        vision_hidden_size=144,
        num_vision_heads=2,
        vision_intermediate_size=160,
        dtype="fp16",
    )


def exact_logits(checkpoint: Path, bundle: Path, options: TinyOptions, ids: Array) -> Array:
    """Logits `[n, vocab]` in fp64, by the weights that the bundle holds."""
    opened, linears = Checkpoint.open(checkpoint), exported_linears(bundle, options)
    text = opened.config.text

    def vector(name: str) -> Array:
        return opened.tensor(name).read().astype(np.float64)

    def linear(x: Array, name: str) -> Array:
        return np.asarray(x @ linears[name].astype(np.float64).T)

    positions = np.arange(len(ids))
    x = vector("language_model.embed_tokens.weight")[ids]
    for index in range(text.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        h = rms_norm(x, vector(f"{layer}.input_layernorm.weight"), text.rms_norm_eps)
        q, k, v = (
            linear(h, f"{layer}.self_attn.{part}_proj") + vector(f"{layer}.self_attn.{part}_proj.bias")
            for part in "qkv"
        )
        q, k = (rotate(one, positions, text.head_dim, text.rope_theta) for one in (q, k))
        x = x + linear(attention(q, k, v, text.num_attention_heads, causal=True), f"{layer}.self_attn.o_proj")
        h = rms_norm(x, vector(f"{layer}.post_attention_layernorm.weight"), text.rms_norm_eps)
        gate, up = linear(h, f"{layer}.mlp.gate_proj"), linear(h, f"{layer}.mlp.up_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj")
    return linear(rms_norm(x, vector("language_model.norm.weight"), text.rms_norm_eps), "lm_head")


def test_two_layers_in_int4_are_near_the_exact_ones_in_steps_drafts_and_prompts(place: str, tmp_path: Path) -> None:
    options = wide_options(place)
    checkpoint = make_tiny(tmp_path / "checkpoint", options)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="int4", max_context=2048)
    varco = Varco.load(bundle, provider=place)
    inputs, backend = text_inputs(varco, 40), varco.backend
    exact = exact_logits(checkpoint, bundle, options, inputs.ids)
    tokens = [int(token) for token in inputs.ids]
    found = {"prompt": backend.prefill(PromptInputs(inputs.ids[:24], inputs.image_token_id, None), 0, 16).copy()}
    found["steps"] = np.stack([backend.decode_step(tokens[at], at).copy() for at in range(24, 31)])
    found["draft"] = backend.decode_steps(tokens[31:40], 31).copy()  # type: ignore[attr-defined]
    places = {"prompt": slice(8, 24), "steps": slice(24, 31), "draft": slice(31, 40)}
    errors = {name: relative(found[name], exact[where]) for name, where in places.items()}
    assert max(errors.values()) < MODEL_LIMIT, errors
