"""A double of the NVIDIA driver's library, called through the same ctypes objects."""

from __future__ import annotations

from typing import Any


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
