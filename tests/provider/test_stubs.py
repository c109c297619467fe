"""The stub libraries themselves: what fails in a capture, and whose memory is counted. Each test is a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.provider.conftest import ROOT
from tests.provider.launch_log import Allocation, Copy, Section, read_log

SUCCESS, OUT_OF_MEMORY, UNSUPPORTED, INVALIDATED = 0, 2, 900, 901
IN_ANY_THREAD, IN_THIS_THREAD = 0, 1
"""Which threads' calls a capture forbids; the provider asks for the first."""
PRELUDE = """
import ctypes, json, sys, threading
from pathlib import Path
from tests.provider.stub_libraries import load
from varco_runtime.backends.cuda.driver import find_gpu
cuda = load(Path(sys.argv[1]))
cuda.stub_mark(b"test")
address, graph, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
target, source = ctypes.create_string_buffer(b"none"), ctypes.create_string_buffer(b"some")
cuda.cudaStreamCreate(ctypes.byref(stream))
malloc = lambda num_bytes: cuda.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(num_bytes))
begin = lambda mode: cuda.cudaStreamBeginCapture(stream, mode)
end = lambda: cuda.cudaStreamEndCapture(stream, ctypes.byref(graph))
def elsewhere(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]
"""
Run = Callable[[str], tuple[list[Any], Section]]


@pytest.fixture
def run(stubs: Path, tmp_path: Path) -> Run:
    """What the expressions, run one after the other, are in a process with the stubs, and its log."""

    def run(expressions: str) -> tuple[list[Any], Section]:
        log = tmp_path / "log"
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "runtime")))
        program = f'{PRELUDE}\nprint(json.dumps([{expressions}]))\ncuda.stub_mark(b"")'
        done = subprocess.run(
            [sys.executable, "-c", program, str(stubs)],
            env={**os.environ, "PYTHONPATH": paths, "VARCO_STUB_LOG": str(log), "VARCO_STUB_CAPABILITY": "90"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), read_log(log)["test"]

    return run


def test_an_allocation_fails_in_a_capture_and_spoils_it(run: Run) -> None:
    results, log = run(f"begin({IN_ANY_THREAD}), malloc(64), end(), graph.value")
    assert results == [SUCCESS, UNSUPPORTED, INVALIDATED, None]
    assert log.refused == ["cudaMalloc"]
    assert log.allocations == [Allocation("device", 64, is_free=False, in_capture=True)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("cuda.cudaMemcpy(None, None, ctypes.c_size_t(0), 1)", "cudaMemcpy"),
        ("cuda.cudaStreamSynchronize(stream)", "cudaStreamSynchronize"),
        ("cuda.cudaDeviceSynchronize()", "cudaDeviceSynchronize"),
        ("cuda.cudaFree(address)", "cudaFree"),
    ],
)
def test_what_waits_or_frees_fails_in_a_capture(run: Run, call: str, name: str) -> None:
    results, log = run(f"malloc(64), begin({IN_ANY_THREAD}), {call}, end()")
    assert results == [SUCCESS, SUCCESS, UNSUPPORTED, INVALIDATED]
    assert log.refused == [name]


def test_other_threads_are_stopped_by_a_capture_that_says_so(run: Run) -> None:
    results, _ = run(f"begin({IN_ANY_THREAD}), elsewhere(lambda: malloc(64)), end()")
    assert results == [SUCCESS, UNSUPPORTED, INVALIDATED]
    results, _ = run(f"begin({IN_THIS_THREAD}), elsewhere(lambda: malloc(64)), end()")
    assert results == [SUCCESS, SUCCESS, SUCCESS]


def test_a_capture_of_permitted_calls_makes_a_graph_and_moves_nothing(run: Run) -> None:
    copy = "cuda.cudaMemcpyAsync(target, source, ctypes.c_size_t(4), 1, stream)"
    buffers = (
        "(target := ctypes.create_string_buffer(b'none')) and (source := ctypes.create_string_buffer(b'some')) and 0"
    )
    results, log = run(f"{buffers}, begin({IN_ANY_THREAD}), {copy}, end(), target.value.decode(), graph.value is None")
    assert results == [0, SUCCESS, SUCCESS, SUCCESS, "none", False]
    assert log.copies == [Copy("host to device", 4, is_synchronous=False, in_capture=True)]
    assert log.captures == [[]]


def test_the_driver_counts_what_the_runtime_allocates(run: Run) -> None:
    free = "find_gpu().free_bytes"
    results, _ = run(f"{free}, malloc(1000), {free}, cuda.cudaFree(address), {free}, malloc({free} + 1)")
    before, made, after, freed, again, too_much = results
    assert (made, freed, too_much) == (SUCCESS, SUCCESS, OUT_OF_MEMORY)
    assert (before - after, before - again) == (1000, 0)
