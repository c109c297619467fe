"""The report of `gpu_check`: one JSON file that steps fill, kept as long as settings and machine stay the same.

    machine, provider, shape, max_context   what the figures depend on
    steps/int4                              status (done, failed, left out), s: how each step ended
    environment                             doctor, onnxruntime_from
    tokens/fp8                              tokens, clear, error, equal/steps, equal/drafts
    tests                                   passed, skipped, failures
    products/int4-fp16                      limit, errors/5120x13824/9
    limits                                  copy_bytes_per_s, matrix_ops_per_s
    shapes/14b/models/int4                  decode/1024, steps, vision/10, pictures/2.9k, loop_overhead_ms,
                                            needed_memory_bytes, peak_memory_bytes, kernels/decode
    shapes/14b/rows/int4                    steps/8 (times_one, limit_times), drawn/8, arrivals, kernels/8 rows
    shapes/14b/transformers                 decode/dynamic/1024, decode/static/1024, vision/10, pictures/2.9k
    shapes/14b/times_transformers/int4      decode/1024/static, vision/10, pictures/2.9k, memory
    shapes/14b/operators/int4               decode, prefill, vision
    pairs/one-band                          ms by what was timed, of the default too
    aims                                    on an H200 or H100

Anything may be `{"left_out": reason}` or `{"failed": reason}`, which is measured by the next run, or
`{"does_not_apply": reason}`. `step_s` are the seconds that a part took, with all that it made and loaded.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.document import write_json
from benchmarks.gpu.aims import derive
from varco_runtime.backends.cuda.driver import find_gpu
from varco_runtime.errors import UsageError
from varco_runtime.system.libraries import import_onnxruntime


def begun(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The report at `path`, or an empty one where that has other settings or another machine.

    `settings` are the `provider` and what else figures depend on. Raises `UsageError` for a file that is no report.
    """
    about = {"benchmark": "gpu_check"} | settings | {"machine": machine(settings["provider"])}
    former: Any = {}
    try:
        if path.exists():
            former = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        former = error
    if not isinstance(former, dict) or former.get("benchmark", "gpu_check") != "gpu_check":
        raise UsageError(f"{path} is no report of this program, expected one or nothing there. Choose another --out.")
    differing = [key for key, value in about.items() if former and former.get(key) != value]
    if differing:
        print(f"{path} has another {' and '.join(differing)}: starting anew", file=sys.stderr, flush=True)
    return about if differing else former | about


def save(path: Path, report: dict[str, Any]) -> None:
    """Write the report with all that follows from its figures, whole or not at all."""
    derive(report)
    write_json(path, report)


def at(figures: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """What is at a place, made if it is not there."""
    for name in place:
        figures = figures.setdefault(name, {})
    return figures


def is_missing(figures: dict[str, Any]) -> bool:
    """Whether a step was broken off before its end, or anything in it was left out."""
    return "step_s" not in figures or holds(figures, "left_out") or holds(figures, "failed")


def machine(provider: str) -> dict[str, Any]:
    """What figures depend on beside the settings."""
    onnxruntime = import_onnxruntime("Measuring", provider)
    facts: dict[str, Any] = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
    facts |= {"cores": os.cpu_count(), "system": platform.platform()}
    if provider == "cuda":
        gpu = find_gpu()
        facts |= {"gpu": gpu.name, "target": gpu.target, "memory_bytes": gpu.total_bytes}
        facts["driver_cuda"] = ".".join(map(str, gpu.cuda_version))
    return facts


def holds(figures: Any, key: str) -> bool:
    """Return whether a key stands anywhere in the figures."""
    return isinstance(figures, dict) and (key in figures or any(holds(one, key) for one in figures.values()))
