"""Speed and memory of a full-size model on this device, beside the device's own limits and beside transformers.

    python -m benchmarks.device                                # the 14B on CUDA in bf16, int4 and FP8
    python -m benchmarks.device --shape 0.5b --decoder fp16
    python -m benchmarks.device --steps limits                 # one step, added to the report of others
    python -m benchmarks.device --shape tiny --provider cpu    # tries the script itself

Steps: `limits` (copy bandwidth and matrix rate through onnxruntime), `models` (one precision at a time, its bundle made
on the spot and deleted before the next), `transformers` (left out with a reason where it cannot be imported). Each adds
to the same JSON file, which begins anew for another shape, provider or machine. Free disk is checked before anything is
written. The weights are random, so only times count.

`limit` is what a token cannot cost less than: the bytes that a step must read over the measured copy bandwidth.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device_model import bundle_bytes, make_bundle, make_checkpoint, remove
from benchmarks.device_peer import measure_transformers
from varco_runtime import Varco
from varco_runtime.backend import GreedyBackend, PromptInputs
from varco_runtime.cuda_driver import find_gpu
from varco_runtime.cuda_library import libraries_missing, load_onnxruntime, runs_on_cuda
from varco_runtime.errors import VarcoError
from varco_runtime.image import packing_plan

STEPS = ("limits", "models", "transformers")
PICTURES = {"2.9k": (480, 640), "7.3k": (1080, 1920)}
"""(height, width) of pictures of 2,929 and 7,269 image tokens in the real geometry."""
CONTEXTS = (1024, 4096, 8192)
DECODE_STEPS = 32
SPARE_BYTES = 2 << 30
_HALF = {"cuda": np.float16, "cpu": np.float32}


def main() -> int:
    options = _parser().parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        _check_disk(options)
        report = _run(options)
    except VarcoError as error:
        print(error, file=sys.stderr)
        return 1
    _print(report)
    return 0


def _run(options: argparse.Namespace) -> dict[str, Any]:
    report = _begun(options)
    if "limits" in options.steps:
        report["limits"] = _limits(options)
        _save(report, options.out)
    if "models" in options.steps:
        for decoder in options.decoder:
            report.setdefault("models", {})[decoder] = _model(decoder, options, report.get("limits"))
            _save(report, options.out)
    if "transformers" in options.steps:
        checkpoint = make_checkpoint(options.folder, options.shape)
        contexts = tuple(context for context in CONTEXTS if context < options.max_context)[:1] or (64,)
        dtype = "fp32" if options.provider == "cpu" else options.peer_dtype
        report["transformers"] = measure_transformers(checkpoint, dtype, options.provider, contexts)
        _save(report, options.out)
    return report


def _begun(options: argparse.Namespace) -> dict[str, Any]:
    """The report that is there, or an empty one where that is of another shape, provider or machine."""
    about = {
        "benchmark": "device",
        "shape": options.shape,
        "provider": options.provider,
        "machine": _machine(options),
    }
    former: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    differing = [key for key, value in about.items() if former and former.get(key) != value]
    if differing:
        print(f"{options.out} has another {' and '.join(differing)}: starting anew", file=sys.stderr, flush=True)
    return about if differing else former | about


def _check_disk(options: argparse.Namespace) -> None:
    """One precision lies on the disk at a time."""
    needed = max(bundle_bytes(options.shape, decoder) for decoder in options.decoder) + SPARE_BYTES
    free = shutil.disk_usage(options.folder).free
    if "models" in options.steps and free < needed and options.shape != "tiny":
        raise VarcoError(
            f"{options.folder} has {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for the largest bundle. "
            "Free some space, give another --folder, or leave out a precision with --decoder."
        )


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    import onnxruntime

    facts: dict[str, Any] = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
    facts |= {"cores": os.cpu_count(), "system": platform.platform()}
    if options.provider == "cuda":
        gpu = find_gpu()
        facts |= {"gpu": gpu.name, "target": gpu.target, "memory_bytes": gpu.total_bytes}
        facts["driver_cuda"] = ".".join(map(str, gpu.cuda_version))
    return facts


# --- what the device can do -------------------------------------------------------------------------------------------


def _limits(options: argparse.Namespace) -> dict[str, float]:
    """Bytes per second of a copy (read and written), and operations per second of a square matrix product."""
    small = options.shape == "tiny"
    count, side = (1 << 20, 256) if small else (1 << 29, 8192)
    copy_s = _time_graph("Neg", [(count,)], (count,), options)
    product_s = _time_graph("MatMul", [(side, side), (side, side)], (side, side), options)
    item = np.dtype(_HALF[options.provider]).itemsize
    return {"copy_bytes_per_s": 2 * count * item / copy_s, "matrix_ops_per_s": 2 * side**3 / product_s}


def _time_graph(
    operator: str, inputs: list[tuple[int, ...]], output: tuple[int, ...], options: argparse.Namespace
) -> float:
    """Seconds of one node on buffers of the device, the median of several."""
    from onnx import helper

    if options.provider == "cuda":
        ort, missing = load_onnxruntime()
    else:
        import onnxruntime as ort

        missing = []
    dtype = np.dtype(_HALF[options.provider])
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    names = [f"x{index}" for index in range(len(inputs))]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"])],
        operator,
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(names, inputs, strict=True)],
        [helper.make_tensor_value_info("y", kind, output)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"][options.provider == "cpu" :]
    session = ort.InferenceSession(model.SerializeToString(), providers=providers, enable_fallback=0)
    if options.provider == "cuda" and not runs_on_cuda(session):
        raise libraries_missing(missing)
    binding = session.io_binding()
    values = [ort.OrtValue.ortvalue_from_numpy(np.ones(shape, dtype), options.provider, 0) for shape in inputs]
    for name, value in zip(names, values, strict=True):
        binding.bind_ortvalue_input(name, value)
    made = ort.OrtValue.ortvalue_from_numpy(np.zeros(output, dtype), options.provider, 0)
    binding.bind_ortvalue_output("y", made)
    return _median_s(lambda: session.run_with_iobinding(binding), 10)


# --- a model ----------------------------------------------------------------------------------------------------------


def _model(decoder: str, options: argparse.Namespace, limits: dict[str, float] | None) -> dict[str, Any]:
    """Make, load and measure one precision, and remove it."""
    print(f"{options.shape} {decoder}: making the bundle", file=sys.stderr, flush=True)
    started = time.perf_counter()
    bundle = make_bundle(options.folder, options.shape, decoder, options.max_context)
    made_s = time.perf_counter() - started
    free = _free_bytes(options)
    try:
        varco = Varco.load(bundle, provider=options.provider)
        print(f"{options.shape} {decoder}: measuring", file=sys.stderr, flush=True)
        found = {"make_s": made_s, "load_s": varco.load_s, "on": varco.backend.description}
        found |= _pictures(varco, options) | {"decode": _decode(varco, options, limits)}
        found["loop_overhead_ms"] = _loop_overhead_ms(varco)
        if free is not None:
            found["memory_bytes"] = free - (_free_bytes(options) or 0)
        manifest = varco.bundle.manifest
        found["weight_bytes_per_token"] = manifest.decoder.weight_bytes
        found["kv_bytes_per_token"] = manifest.kv_bytes_per_token
        del varco
        gc.collect()  # the device's memory is the next one's
    finally:
        if not options.keep:
            remove(bundle)
    return found


def _pictures(varco: Varco, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of vision, packing and prefill, and their sum up to the first token."""
    settings, backend = varco.bundle.manifest.image, varco.backend
    rng = np.random.default_rng(0)

    def tiles(count: int) -> Any:
        return rng.uniform(-1, 1, (count, 3, settings.tile_px, settings.tile_px)).astype(np.float32)

    found: dict[str, Any] = {}
    for count in (1, 10):
        pixels = tiles(count)
        found[f"vision_{count}_tiles_ms"] = 1e3 * _median_s(lambda pixels=pixels: backend.encode(pixels), 5)
    image_token_id = varco.bundle.manifest.prompt.image_token_id
    for label, size_hw in PICTURES.items():
        plan = packing_plan(size_hw, settings)
        if plan.num_tokens + 64 > options.max_context:
            found[f"picture_{label}"] = {"left_out": f"{plan.num_tokens} image tokens do not fit --max-context"}
            continue
        pixels = tiles(plan.newline_row // settings.patches_per_tile)
        ids = np.concatenate([np.arange(14), np.full(plan.num_tokens, image_token_id), np.arange(10)])

        def first_token(pixels: Any = pixels, plan: Any = plan, ids: Any = ids) -> tuple[float, float, float]:
            started = time.perf_counter()
            features = backend.encode(pixels)
            seen = time.perf_counter()
            tokens = backend.pack(features, plan)
            packed = time.perf_counter()
            backend.prefill(PromptInputs(ids, image_token_id, tokens), 0)
            return seen - started, packed - seen, time.perf_counter() - packed

        first_token()  # warm
        vision, packing, prefill = (
            1e3 * statistics.median(part) for part in zip(*(first_token() for _ in range(3)), strict=True)
        )
        found[f"picture_{label}"] = {
            "image_tokens": plan.num_tokens,
            "tiles": len(pixels),
            "vision_ms": vision,
            "packing_ms": packing,
            "prefill_ms": prefill,
            "first_token_ms": vision + packing + prefill,
        }
    return found


def _decode(varco: Varco, options: argparse.Namespace, limits: dict[str, float] | None) -> dict[str, Any]:
    """Milliseconds per greedy token by context. What the cache holds does not change the time."""
    backend, manifest = varco.backend, varco.bundle.manifest
    assert isinstance(backend, GreedyBackend)
    found: dict[str, Any] = {}
    for context in [one for one in CONTEXTS if one + DECODE_STEPS < options.max_context] or [64]:
        position = iter(range(context, context + DECODE_STEPS))
        ms = 1e3 * _median_s(lambda position=position: backend.decode_greedy(1, next(position)), DECODE_STEPS - 2)
        found[str(context)] = entry = {"ms_per_token": ms}
        if limits:
            num_bytes = manifest.decoder.weight_bytes + context * manifest.kv_bytes_per_token
            entry["limit_ms"] = 1e3 * num_bytes / limits["copy_bytes_per_s"]
            entry["fraction_of_limit"] = entry["limit_ms"] / ms
    return found


def _loop_overhead_ms(varco: Varco) -> float:
    """What a token of an answer costs beyond the step: text, regions, bookkeeping."""
    answer = varco.ask(None, "Hello", max_new_tokens=DECODE_STEPS)
    backend, start = varco.backend, answer.usage.prompt_tokens
    assert isinstance(backend, GreedyBackend)
    positions = iter(range(start, start + DECODE_STEPS))
    step_s = _median_s(lambda: backend.decode_greedy(1, next(positions)), DECODE_STEPS - 2)
    return 1e3 * (answer.timings.tpot_s - step_s)


def _median_s(call: Callable[[], Any], count: int) -> float:
    """Seconds of a call that waits for its result, after two to warm up."""
    times = []
    for _ in range(count + 2):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def _free_bytes(options: argparse.Namespace) -> int | None:
    return find_gpu().free_bytes if options.provider == "cuda" else None


# --- the report -------------------------------------------------------------------------------------------------------


def _save(report: dict[str, Any], path: Path) -> None:
    """Whole or as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, path)


def _print(report: dict[str, Any]) -> None:
    machine = report["machine"]
    print(f"{report['shape']} on {machine.get('gpu', 'the CPU')}, onnxruntime {machine['onnxruntime']}")
    for name, value in report.get("limits", {}).items():
        print(f"  {name:<28}{value / 1e9:>12,.1f} G")
    for decoder, found in report.get("models", {}).items():
        print(f"  {decoder}: loaded in {found['load_s']:.1f} s, loop overhead {found['loop_overhead_ms']:.2f} ms/token")
        for count in (1, 10):
            print(f"    vision, {count} tiles{found[f'vision_{count}_tiles_ms']:>16.2f} ms")
        for label in PICTURES:
            one = found[f"picture_{label}"]
            text = (
                one.get("left_out")
                or f"{one['first_token_ms']:.1f} ms to the first token: {one['vision_ms']:.1f} vision, "
                f"{one['packing_ms']:.2f} packing, {one['prefill_ms']:.1f} prefill"
            )
            print(f"    picture of {label} tokens: {text}")
        if "memory_bytes" in found:
            print(f"    memory {found['memory_bytes'] / 1e9:>23.2f} GB of the GPU's")
        for context, entry in found["decode"].items():
            part = f", {entry['fraction_of_limit']:.0%} of the limit" if "fraction_of_limit" in entry else ""
            print(f"    decode at {context:>5}: {entry['ms_per_token']:.3f} ms/token{part}")
    if peer := report.get("transformers"):
        print(f"  transformers: {peer.get('left_out') or peer['ms_per_token']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a full-size model on this device.")
    parser.add_argument("--shape", default="14b", choices=("tiny", "0.5b", "7b", "14b"))
    parser.add_argument("--provider", default="cuda", choices=("cuda", "cpu"), help="cpu tries the script itself")
    parser.add_argument("--decoder", nargs="+", choices=("fp16", "bf16", "int8", "int4", "fp8"))
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--max-context", type=int, default=10_240)
    parser.add_argument("--peer-dtype", default="bf16", choices=("bf16", "fp16"))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "varco-device", help="where there is room"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("device.json"), help="the report, added to if it is of this kind"
    )
    parser.add_argument("--keep", action="store_true", help="leave the bundles for the next run")
    parser.set_defaults(decoder=["bf16", "int4", "fp8"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
