"""A backend's caches take all of their memory when it is asked to, and keep what they hold.

A process of its own measures: what earlier tests gave back to the allocator may be resident already.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pytest

import varco_runtime
from varco_runtime import Varco
from varco_runtime.backend import ReservesMemory

DEMO_BUNDLE = Path(varco_runtime.__file__).parent / "demo_bundle"
SLOTS = 24


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux maps pages when they are written")
def test_memory_is_taken_before_it_is_needed_and_answers_stay() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        taken, cache_bytes = apart.submit(reserved_bytes).result()
    # The answer before has touched one slot, and with it those that share its huge pages of 2 MB: half of them here.
    assert taken > cache_bytes / 4


def reserved_bytes() -> tuple[int, int]:
    """Return by how much reserving raises resident memory, and the bytes of all slots' caches."""
    varco = Varco.load(DEMO_BUNDLE, provider="cpu", threads=1, slots=SLOTS)
    answer = varco.ask(None, "What is this?", max_new_tokens=20)
    backend, manifest = varco.backend, varco.bundle.manifest
    assert isinstance(backend, ReservesMemory)
    before = psutil.Process().memory_info().rss
    backend.reserve_memory()
    taken = psutil.Process().memory_info().rss - before
    again = varco.ask(None, "What is this?", max_new_tokens=20)
    assert again.token_ids == answer.token_ids
    assert again.usage.cached_tokens > 0
    assert np.isfinite(varco.score(None, "What is this?", answer.token_ids)).all()
    return taken, manifest.kv_bytes_per_token * backend.max_context * SLOTS
