"""JSON objects of a checkpoint, read key by key with checks that name file and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from varco_export.reading.quoting import show
from varco_runtime.errors import CheckpointError

REQUIRED = object()
"""Stands for a default where there is none."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it stands, read key by key with checks that name the key."""

    values: dict[str, Any]
    where: str

    def sub(self, key: str) -> Fields:
        """Return the object under `key`; an empty one where the file has none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.refusal(key, value, "an object")
        return Fields(value or {}, f"{self.where}: {key}")

    def whole(self, key: str, default: object, maximum: int) -> int:
        """Return a whole number from 1 to `maximum`."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= maximum:
            raise self.refusal(key, value, f"a whole number from 1 to {maximum}")
        return value

    def number(self, key: str, default: object) -> float:
        """Return a positive number."""
        value = self._get(key, default)
        if not _is_number(value) or value <= 0:
            raise self.refusal(key, value, "a positive number, 1e-30 to 1e30")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.refusal(key, value, "true or false")
        return value

    def triple(self, key: str, default: list[float], positive: bool = False) -> tuple[float, float, float]:
        """Return three numbers, one per color."""
        value = self._get(key, default)
        numbers = as_list(value)
        if len(numbers) != 3 or not all(_is_number(x) for x in numbers):
            raise self.refusal(key, value, "three numbers, each 0 or 1e-30 to 1e30 in size")
        if positive and min(numbers) <= 0:
            raise self.refusal(key, value, "three positive numbers")
        return float(numbers[0]), float(numbers[1]), float(numbers[2])

    def expect(self, key: str, only: Any, reason: str, also: tuple[Any, ...] = (), absent: Any = REQUIRED) -> Any:
        """Return the value under `key`, any but `only` refused with the reason. `absent` stands for a missing key."""
        value = self.values.get(key, only if absent is REQUIRED else absent)
        if not any(type(value) is type(good) and value == good for good in (only, *also)):
            raise self.refusal(key, value, f"{show(only)} ({reason})")
        return value

    def refusal(self, key: str, got: object, expected: str) -> CheckpointError:
        """Return the error that names the key, what it is and what was expected."""
        shown = "null" if got is None and key in self.values else show(got)
        return CheckpointError(
            f"{self.where}: {key} is {shown}, expected {expected}. Compare the file with its original repository; "
            "a model that differs here cannot be exported."
        )

    def _get(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        if value is None and default is REQUIRED:
            raise self.refusal(key, None, "a value")
        return default if value is None else value


def _is_number(value: Any) -> bool:
    """Return whether it is a finite number that single precision holds."""
    return type(value) in (int, float) and (value == 0 or 1e-30 <= abs(value) <= 1e30)


def as_list(value: object) -> list[Any]:
    """Return a list as it is, anything else as the only item of one."""
    return list(value) if isinstance(value, list | tuple) else [value]
