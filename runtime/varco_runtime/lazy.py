"""Names that a package hands on from its modules, each imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def hand_on(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
        package: The package's `__name__`.
        homes: By module, the names that are taken from it.
    """

    def find(name: str) -> Any:
        for module, names in homes.items():
            if name in names:
                return getattr(importlib.import_module(f"{package}.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
