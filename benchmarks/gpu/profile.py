"""Where the time of a step goes: operators by onnxruntime's own profile, kernels by CUDA's (through torch's profiler).

Operators: sessions with profiling on and without a CUDA graph, which would show as nothing; kernels are waited for one
by one (CUDA_LAUNCH_BLOCKING), since onnxruntime takes the host's time. So the times tell which operator is slow, and
their sum is more than a step takes. `bytes` are the weights that the operator reads, and the keys and values.
Kernels: the step as it is in use, replayed as a graph; what its wall time has beyond the kernels is the gap. A graph
tells of its kernels if CUDA's profiler was there when it was captured. So the calls come from another thread, on which
the provider captures anew, and the model that was timed without a profiler need not be loaded again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.gpu.process import Tell, attempt
from benchmarks.gpu.stages import PICTURES, TILE_COUNTS, Setup, Stages
from varco_runtime import Varco
from varco_runtime.backend import NormalizesPixels, PromptInputs
from varco_runtime.bundle.opening import Bundle
from varco_runtime.picture.packing import packing_plan

TOP = 10
DECODE_CALLS, OTHER_CALLS = 8, 2
NODE_SUFFIX = "_kernel_time"
ROW_READERS = ("Gather", "GroupQueryAttention")
"""They read single rows of their tables, of tokens and of rotary angles."""


def profile_operators(setup: Setup, tell: Tell) -> None:
    """By phase: wall time of a call, and the operator types that take most of it."""
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # read when CUDA is first asked for anything
    bundle = setup.make()
    ort = importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        sessions: list[Any] = []
        with mock.patch.object(ort, "InferenceSession", _profiled(ort.InferenceSession, Path(folder), sessions)):
            varco = Varco.load(bundle, provider=setup.provider)
        spans = {}
        phases = _phases(Stages(varco, setup), setup)
        for name, (call, count) in phases.items():
            call()  # warm
            started = time.time_ns()
            for _ in range(count):
                call()
            spans[name] = (started, time.time_ns())
        events = [event for session in sessions for event in _events(session)]
    weights = _weight_bytes(varco.bundle)
    cache_bytes = _context(setup) * varco.bundle.manifest.kv_bytes_per_token
    for name, span in spans.items():
        found = operators(events, span, phases[name][1], weights, cache_bytes if name == "decode" else 0)
        tell((name,), found)


def profile_kernels(stages: Stages, setup: Setup, tell: Tell) -> None:
    """Tell of each phase what `kernels_of` does."""
    kernels_of(_phases(stages, setup), setup.provider, tell)


def kernels_of(phases: dict[str, tuple[Callable[[], Any], int]], provider: str, tell: Tell) -> None:
    """By phase: wall time of a call, and the kernels that take most of it. Where torch sees no GPU, why not."""
    if importlib.util.find_spec("torch") is None:
        tell(("does_not_apply",), "torch, whose profiler reads CUDA's, is not installed")
        return
    torch = importlib.import_module("torch")
    if provider != "cuda" or not torch.cuda.is_available():
        tell(("does_not_apply",), "torch sees no GPU, or none is asked for")
        return
    kernels_alone = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kernels_alone):  # CUDA's profiler is there before a graph is captured
        torch.zeros(1, device="cuda")

    def phase(call: Callable[[], Any], count: int) -> dict[str, Any]:
        call()  # warm
        started = time.perf_counter()
        for _ in range(count):
            call()
        wall_ms = 1e3 * (time.perf_counter() - started) / count
        with torch.profiler.profile(activities=kernels_alone) as profile:
            for _ in range(count):
                call()
            torch.cuda.synchronize()
        rows = [
            {"kernel": event.key, "count": event.count / count, "ms": event.self_device_time_total / 1e3 / count}
            for event in profile.key_averages()
            if event.self_device_time_total > 0
        ]
        return _summary(wall_ms, rows, "kernels")

    with ThreadPoolExecutor(1) as elsewhere:
        for name, (call, count) in phases.items():
            attempt(tell, (name,), elsewhere.submit(phase, call, count).result)


def operators(
    events: list[dict[str, Any]], span: tuple[int, int], count: int, weights: dict[str, int], cache_bytes: int
) -> dict[str, Any]:
    """Events of nodes that began within `span`, summed by operator type, per call of `count`. `cache_bytes` are what
    attention reads of keys and values in one call."""
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith(NODE_SUFFIX) or not span[0] <= event["ns"] <= span[1]:
            continue
        operator = event["args"]["op_name"]
        row = rows.setdefault(operator, {"operator": operator, "count": 0.0, "ms": 0.0, "bytes": 0})
        row["count"] += 1 / count
        row["ms"] += event["dur"] / 1e3 / count
        row["bytes"] += weights.get(event["name"].removesuffix(NODE_SUFFIX), 0) / count
    if cache_bytes and "GroupQueryAttention" in rows:
        rows["GroupQueryAttention"]["bytes"] += cache_bytes
    return _summary((span[1] - span[0]) / 1e6 / count, list(rows.values()), "operators")


def _summary(wall_ms: float, rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The largest first; `gap_ms` is the wall time that no row accounts for."""
    ordered = sorted(rows, key=lambda row: -row["ms"])
    total_ms = sum(row["ms"] for row in rows)
    return {"wall_ms": wall_ms, "total_ms": total_ms, "gap_ms": wall_ms - total_ms, kind: ordered[:TOP]}


def _phases(stages: Stages, setup: Setup) -> dict[str, tuple[Callable[[], Any], int]]:
    """What is profiled, and how often each is called: the work that the aims speak of."""
    context, backend, manifest = _context(setup), stages.varco.backend, stages.varco.bundle.manifest
    num_tokens = packing_plan(next(iter(PICTURES.values())), manifest.image).num_tokens
    ids = np.zeros(min(num_tokens, setup.max_context), np.int64)
    assert isinstance(backend, NormalizesPixels)
    tiles = stages.tiles(TILE_COUNTS[-1])
    prompt = PromptInputs(ids, manifest.prompt.image_token_id, None)
    return {
        "decode": (lambda: stages.step(context), DECODE_CALLS),
        "prefill": (lambda: backend.prefill(prompt, 0), OTHER_CALLS),
        "vision": (lambda: backend.encode_pixels(tiles), OTHER_CALLS),
    }


def _context(setup: Setup) -> int:
    return setup.contexts[0]


def _profiled(make: Callable[..., Any], folder: Path, made: list[Any]) -> Callable[..., Any]:
    """onnxruntime's session with its profile written to `folder`, and nothing captured."""

    def session(path: str, options: Any, providers: list[Any], **others: Any) -> Any:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / Path(path).stem)
        uncaptured = [
            (one[0], one[1] | {"enable_cuda_graph": "0"}) if isinstance(one, tuple) else one for one in providers
        ]
        made.append(make(path, options, providers=uncaptured, **others))
        return made[-1]

    return session


def _events(session: Any) -> list[dict[str, Any]]:
    """A session's events, each with its beginning in `ns` of the clock."""
    started_ns = session.get_profiling_start_time_ns()
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return [event | {"ns": started_ns + 1000 * event.get("ts", 0)} for event in events]


def _weight_bytes(bundle: Bundle) -> dict[str, int]:
    """Bytes of weights by the name of the node that reads them; a row of a table is nothing here."""
    import onnx

    found = {}
    for component in bundle.manifest.components.values():
        graph = onnx.load(bundle.path(component.file), load_external_data=False).graph
        sizes = {
            tensor.name: int(entry.value)
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "length"
        }
        for node in graph.node:
            if node.op_type not in ROW_READERS:
                found[node.name] = sum(sizes.get(name, 0) for name in node.input)
    return found
