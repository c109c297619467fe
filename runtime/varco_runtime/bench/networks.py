"""The projector on its own: a backend runs it behind the vision tower, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from varco_runtime.backend import Backend, ShowsFeatures
from varco_runtime.bench.stopwatch import Clock
from varco_runtime.bundle.graph_contract import SILENT
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import STORAGE, Array
from varco_runtime.picture.packing import PackingPlan


def time_projector(bundle: Bundle, backend: Backend, tile: Array, threads: int, runs: int, clock: Clock) -> list[float]:
    """Time the projector over one tile's patches, in a session of its own on ONNX Runtime's CPU provider.

    Args:
        bundle: A bundle for the CPU, whose projector is loaded once more.
        backend: What makes the patches `[1, P, C]`.
        tile: The tile, `[1, 3, S, S]` fp32.
        threads: Threads of the session.
        runs: How many runs count, after one that does not.
        clock: The time in seconds.

    Returns:
        Seconds of each run that counts.
    """
    assert isinstance(backend, ShowsFeatures), "Bug: the CPU's backend shows its features"
    import onnxruntime

    component = bundle.manifest.projector
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SILENT
    with bundle.unchanged():
        session: Any = onnxruntime.InferenceSession(
            str(bundle.path(component.file)), options, providers=["CPUExecutionProvider"]
        )
    patches = _patches(backend, tile, bundle.manifest.image.patches_per_tile).astype(STORAGE[component.compute])
    feeds = {session.get_inputs()[0].name: patches}
    seconds = []
    for _ in range(runs + 1):
        started = clock()
        session.run(None, feeds)
        seconds.append(clock() - started)
    return seconds[1:]


def _patches(backend: ShowsFeatures, tile: Array, patches_per_tile: int) -> Array:
    """Return what the vision tower gives for a tile: `[1, P, C]` fp32."""
    rows = np.arange(patches_per_tile, dtype=np.int32)
    plan = PackingPlan(
        np.repeat(rows[:, None], 4, axis=1),
        np.tile(np.array([1, 0, 0, 0], np.float32), (patches_per_tile, 1)),
        (0, 0),
        patches_per_tile,
    )
    return backend.features(tile, plan).patch_features
