"""Loading and asking on OpenVINO, over and over: memory does not grow."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pytest

from varco_runtime import Varco
from varco_runtime.errors import ContextError

MAX_CONTEXT = 128
WARM_UP_SHARE = 4
"""A quarter of the loads or questions passes before memory is first read: libraries keep what they have once needed."""
LOST_BYTES = 256 << 10
"""What the control loses per load or question: two caches of keys and values of this model."""
MAX_LOST_BYTES = LOST_BYTES // 2
"""The most that memory may grow per load or question."""


def growth_bytes(work: str, bundle: Path, count: int, leaks: bool) -> float:
    """Return by how much memory grows per load or question, measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(_growth_bytes, work, bundle, count, leaks).result()


def _growth_bytes(work: str, bundle: Path, count: int, leaks: bool) -> float:
    kept: list[np.ndarray] = []
    process, model = psutil.Process(), _load(bundle)
    before = 0
    for index in range(count + count // WARM_UP_SHARE):
        if index == count // WARM_UP_SHARE:
            gc.collect()
            before = process.memory_info().rss
        if work == "loads":
            model = _load(bundle)
        else:
            _ask(model, index)
        if leaks:
            kept.append(np.ones(LOST_BYTES, np.uint8))
    gc.collect()
    return (process.memory_info().rss - before) / count


def _load(bundle: Path) -> Varco:
    return Varco.load(bundle, "openvino", threads=1, max_context=MAX_CONTEXT, precision="fp32")


def _ask(model: Varco, index: int) -> None:
    """A question that is answered, cancelled or too long, in turn."""
    question = f"What is number {index}?"
    if index % 3 == 0:
        assert model.ask(None, question, max_new_tokens=8).usage.completion_tokens > 0
    elif index % 3 == 1:
        stream = model.stream(None, question, max_new_tokens=8)
        next(stream)
        stream.cancel()
        list(stream)
        assert stream.answer.finish_reason == "cancelled"
    else:
        with pytest.raises(ContextError):
            model.ask(None, "word " * MAX_CONTEXT, max_new_tokens=8)


CASES = [
    pytest.param("questions", 60, id="60-questions"),
    pytest.param("questions", 300, id="300-questions", marks=pytest.mark.full),
    pytest.param("loads", 1000, id="1000-loads", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("work", "count"), CASES)
def test_memory_does_not_grow(work: str, count: int, tiny_bundle: Path) -> None:
    assert growth_bytes(work, tiny_bundle, count, leaks=False) <= MAX_LOST_BYTES


def test_the_bound_finds_what_is_lost(tiny_bundle: Path) -> None:
    """The control: the same with a leak."""
    assert growth_bytes("questions", tiny_bundle, 60, leaks=True) > MAX_LOST_BYTES
