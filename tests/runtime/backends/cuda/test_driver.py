"""The driver's view of the GPU, against a double of libcuda called through the same ctypes objects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doubles.libcuda import Libcuda
from varco_runtime.backends.cuda.driver import GpuFacts, find_gpu, move_bytes, time_copies
from varco_runtime.errors import BackendError


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Libcuda()
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: driver)
    gpu = find_gpu()
    assert gpu == GpuFacts("NVIDIA H200", (9, 0), 100 << 30, 141 << 30, (13, 1))
    assert gpu.target == "sm90"
    assert driver.contexts == 0, "the context is kept"


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (Libcuda(count=0), "sees no GPU, expected one.*CUDA_VISIBLE_DEVICES"),
        (Libcuda(failing={"cuInit": 999}), r"failed in cuInit with error 999 \(unknown error\)"),
        (Libcuda(failing={"cuMemGetInfo_v2": 2}), r"failed in cuMemGetInfo with error 2"),
    ],
)
def test_what_fails_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, driver: Libcuda, message: str) -> None:
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: driver)
    with pytest.raises(BackendError, match=message) as caught:
        find_gpu()
    assert "\n" not in str(caught.value)
    assert driver.contexts == 0


def test_a_missing_driver_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", missing)
    with pytest.raises(BackendError, match=r"No NVIDIA driver was found .*--device cpu"):
        find_gpu()


def test_copies_are_timed_by_rounds_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Libcuda()
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: driver)
    ticks = iter(range(100))
    assert time_copies(1000, 4, 3, lambda: next(ticks)) == [1, 1, 1]
    assert driver.copied == 1000 * (1 + 3 * 4)
    assert set(driver.copies) == {(4096, 8192)}
    assert (driver.allocated, driver.contexts) == (0, 0)


def test_pieces_are_moved_one_after_the_other_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Libcuda()
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: driver)
    move_bytes([(1000, 5000, 10), (2000, 6000, 20)])
    assert (driver.copies, driver.copied, driver.contexts) == ([(1000, 5000), (2000, 6000)], 30, 0)
    for call in ("cuMemcpyDtoDAsync_v2", "cuStreamSynchronize"):
        driver.failing = {call: 700}
        with pytest.raises(BackendError, match=f"driver failed in {call.removesuffix('_v2')} with error 700"):
            move_bytes([(1000, 5000, 10)])
    assert driver.contexts == 0


@pytest.mark.parametrize("call", ["cuMemAlloc_v2", "cuMemcpyDtoDAsync_v2", "cuCtxSynchronize"])
def test_a_copy_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    driver = Libcuda(failing={call: 2})
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: driver)
    with pytest.raises(BackendError, match=f"driver failed in {call.removesuffix('_v2')} with error 2"):
        time_copies(1000, 4, 3)
    assert (driver.allocated, driver.contexts) == (0, 0)
