"""What `gpu_check` cannot run without, refused in one line before anything is made."""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.names import MEASURED, SHAPES
from varco_runtime.errors import ShortageError, UsageError

PACKAGES = ("numpy", "PIL", "tokenizers", "jinja2", "typer", "rich", "onnx", "ml_dtypes")
PACKAGES_OF_STEPS = {"transformers": ("torch", "transformers"), "tests": ("pytest",)}
DISK_STEPS = {"int4", "pairs", "precisions", "transformers", "small", "operators"}
PAIR_BUNDLES = 4
"""Models that lie on the disk together while pairs are measured."""
SPARE_DISK_BYTES = 2 << 30
HOST_BYTES = {"14b": 12 << 30, "tiny": 1 << 30}
"""Memory of the machine beside the files, which may leave it: a process of torch, and one of onnxruntime while it
repacks weights."""
WORK_BYTES = 8 << 30
"""Memory of the GPU beside the weights: caches of the longest context, a prompt's activations, libraries."""


def refuse_missing_packages(options: argparse.Namespace) -> None:
    """Refuse a machine without a package that a step needs. Raises `UsageError`."""
    provider = [] if options.provider_archive is not None else ["onnxruntime"]
    needed = [*PACKAGES, *provider, *(name for step in options.steps for name in PACKAGES_OF_STEPS.get(step, ()))]
    missing = [name for name in dict.fromkeys(needed) if name not in sys.modules and find_spec(name) is None]
    if missing:
        raise UsageError(
            f"Packages are missing here: {', '.join(missing)}. Install them, or give onnxruntime-gpu by "
            "--provider-archive; steps that need torch, transformers or pytest can be left out with --steps."
        )


def refuse_provider(provider: str) -> None:
    """Refuse an onnxruntime that is not there or cannot use CUDA. Raises `MissingExtraError` or `BackendError`."""
    if provider == "cuda":
        from varco_runtime.backends.cuda.library import load_onnxruntime

        load_onnxruntime()


def refuse(options: argparse.Namespace) -> None:
    """Refuse a folder that is a file, no GPU, a driver that is too old, and too little disk or memory.

    Raises:
        UsageError: The options ask for what is not there.
        BackendError: The GPU or its driver cannot be used.
        ShortageError: Memory is too small.
    """
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"{options.out} is a file, expected a folder or nothing. Choose another --out.")
    if options.budget_s <= 0:
        raise UsageError(f"--budget-s is {options.budget_s:g}, expected more than 0.")
    if options.provider == "cuda":
        _refuse_gpu(options)
    _refuse_memory(options.shape)
    if DISK_STEPS & set(options.steps):
        _refuse_disk(options)


def _refuse_gpu(options: argparse.Namespace) -> None:
    from varco_runtime.backends.cuda.driver import find_gpu
    from varco_runtime.backends.cuda.library import check_gpu

    gpu = find_gpu()
    check_gpu(gpu)
    from benchmarks.gpu.model import loaded_bytes

    large = {"precisions", "transformers"} & set(options.steps)
    needed = loaded_bytes(options.shape, "bf16" if large else "int4") + WORK_BYTES
    if options.shape == "14b" and DISK_STEPS & set(options.steps) and gpu.free_bytes < needed:
        raise ShortageError(
            f"{gpu.name} has {gpu.free_bytes / 1e9:.1f} GB of free memory, expected {needed / 1e9:.1f} GB. End other "
            "programs, or measure less with --steps."
        )


def _refuse_memory(shape: str) -> None:
    from varco_runtime.system.memory import machine_memory

    _, available = machine_memory()
    if available is not None and available < HOST_BYTES[shape]:
        raise ShortageError(
            f"The machine has {available / 1e9:.1f} GB of available memory, expected {HOST_BYTES[shape] / 1e9:.1f} GB. "
            "End other programs."
        )


def _refuse_disk(options: argparse.Namespace) -> None:
    from benchmarks.gpu.model import bundle_bytes

    sizes = [bundle_bytes(SHAPES[options.shape][0], decoder) for decoder in MEASURED]
    pairs = PAIR_BUNDLES if "pairs" in options.steps else 1
    needed = (sum(sizes) if options.keep else 0) + pairs * max(sizes) + SPARE_DISK_BYTES
    folder: Path = options.folder.absolute()
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError(
            f"{options.folder} has {free / 1e9:.1f} GB of free disk, expected {needed / 1e9:.1f} GB. Free some space, "
            "or give another --folder."
        )
