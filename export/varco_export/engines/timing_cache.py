"""What kernels took in earlier builds, kept in the user's cache folder for TensorRT, which times them on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from varco_runtime.system.cache_folder import cache_folder, read_entry, write_entry

MAX_BYTES = 1 << 30


def load_timings(library: str, version: str, config: Any, sm: int) -> Path | None:
    """Give the timings of earlier builds to a build.

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        version: The library's.
        config: The build's configuration.
        sm: The compute capability that is built for, times ten.

    Returns:
        The file for the timings of this build; None where nothing is timed or there is nowhere to keep it.
    """
    if library != "tensorrt":
        return None  # TensorRT for RTX builds without a GPU and times nothing
    try:
        path = cache_folder() / f"timings-{version}-sm{sm}.cache"
    except RuntimeError:  # a user without a home
        return None
    known = read_entry(path, MAX_BYTES) or b""
    cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return path


def save_timings(path: Path | None, config: Any) -> None:
    """Keep what the build of `config` timed, old and new, in the file that `load_timings` returned."""
    if path is None:
        return
    # A cache folder that cannot be written costs time, nothing else.
    write_entry(path, memoryview(config.get_timing_cache().serialize()))
