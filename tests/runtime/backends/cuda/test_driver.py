"""The driver's view of the GPU, against a double of libcuda called through the same ctypes objects."""

from __future__ import annotations

from typing import Any

import pytest

from varco_runtime.backends.cuda.driver import GpuFacts, find_gpu, move_bytes, time_copies
from varco_runtime.errors import BackendError


class Libcuda:
    """The functions of the driver's library; `failing` maps a call to the error it gives."""

    def __init__(self, count: int = 1, failing: dict[str, int] | None = None) -> None:
        self.count = count
        self.failing = failing or {}
        self.contexts = 0
        self.allocated = 0
        self.copied = 0
        self.copies: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> int:
            if name in self.failing:
                return self.failing[name]
            if action := vars(type(self)).get(f"_{name}"):
                action(self, *args)
            return 0

        return call

    def _cuDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version._obj.value = 13010

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = self.count

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:  # noqa: N802
        name.value = b"NVIDIA H200"

    def _cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> None:  # noqa: N802
        number._obj.value = {75: 9, 76: 0}[attribute]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:  # noqa: N802
        self.contexts += 1

    def _cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:  # noqa: N802
        self.contexts -= 1

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:  # noqa: N802
        free._obj.value, total._obj.value = 100 << 30, 141 << 30

    def _cuMemAlloc_v2(self, address: Any, size: Any) -> None:  # noqa: N802
        self.allocated += 1
        address._obj.value = 4096 * self.allocated

    def _cuMemFree_v2(self, address: Any) -> None:  # noqa: N802
        self.allocated -= 1

    def _cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        self.copies.append((target.value, source.value))
        self.copied += size.value

    def _cuGetErrorString(self, status: int, text: Any) -> None:  # noqa: N802
        text._obj.value = b"unknown error"


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
