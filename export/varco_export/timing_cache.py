"""What kernels took in earlier builds, kept in the user's cache folder for TensorRT, which times them on the GPU."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from varco_runtime.verified import cache_folder


def load_timings(library: str, version: str, config: Any, sm: int) -> Path | None:
    """Give the timings of earlier builds to a build's `config`; returns the file for those of now.

    `library` and `version`: the builder's. None where nothing is timed or there is nowhere to keep it.
    """
    if library != "tensorrt":
        return None  # TensorRT for RTX builds without a GPU and times nothing
    try:
        path = cache_folder() / f"timings-{version}-sm{sm}.cache"
    except RuntimeError:  # a user without a home
        return None
    known = b""
    with contextlib.suppress(OSError):
        known = path.read_bytes()
    cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return path


def save_timings(path: Path | None, config: Any) -> None:
    """Keep what the build of `config` timed, old and new, in the file that `load_timings` returned."""
    if path is None:
        return
    partial = path.with_suffix(".partial")
    with contextlib.suppress(OSError):  # a cache folder that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
        partial.replace(path)
