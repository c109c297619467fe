"""How to install what an optional part needs: one command that works whatever varco-edge was installed from.

`pip install 'varco-edge[cpu]'` looks for varco-edge on a package index, and `'.[cpu]'` for a checkout in the working
directory. A wheel, a checkout and an editable installation all have the metadata that names the packages of each
extra, so the advice names those packages.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_DISTRIBUTION = "varco-edge"
_OWN_EXTRAS = re.compile(rf"{_DISTRIBUTION}\[([\w,-]+)\]")
_EXTRA_MARKER = re.compile(r"(?:(?P<other>.*) and )?extra == \"(?P<extra>[\w-]+)\"")


def install_command(extra: str, *, upgrade: bool = False) -> str:
    """Return the shell command that installs an extra's packages into this environment.

    Args:
        extra: A name from `[project.optional-dependencies]` of pyproject.toml.
        upgrade: Whether packages that are there already are to be replaced by newer releases.

    Returns:
        For example `pip install 'onnxruntime>=1.31'`.
    """
    packages = list(dict.fromkeys(required_packages(extra)))
    option = "--upgrade " if upgrade else ""
    # Without metadata Python runs in a checkout that was never installed.
    return f"{_pip()} install {option}" + " ".join(f"'{package}'" for package in packages or [f".[{extra}]"])


def reinstall_command(extra: str) -> str:
    """Return the shell command that replaces every onnxruntime by the one of an extra, `cpu` or `cuda`.

    onnxruntime and onnxruntime-gpu own the same folder, so that neither may be installed over the other.

    Args:
        extra: `cpu` or `cuda`.
    """
    return f"{_pip()} uninstall --yes onnxruntime onnxruntime-gpu && {install_command(extra)}"


def required_packages(extra: str) -> Iterator[str]:
    """Yield the requirements of an extra as pip takes them; nothing if the metadata does not know it.

    Args:
        extra: A name from `[project.optional-dependencies]` of pyproject.toml.
    """
    import importlib.metadata  # 13 ms, which every command would wait for

    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in lines:
        package, _, marker = line.partition("; ")
        found = _EXTRA_MARKER.fullmatch(marker)
        if found is None or found["extra"] != extra:
            continue
        if own := _OWN_EXTRAS.fullmatch(package):
            for name in own[1].split(","):
                yield from required_packages(name)
        else:
            yield f"{package}; {found['other']}" if found["other"] else package


def _pip() -> str:
    """Return `pip` where a shell finds this environment's by that name, and otherwise `PYTHON -m pip`."""
    own = Path(sys.executable).parent
    first = next((folder for folder in os.get_exec_path() if os.access(Path(folder) / "pip", os.X_OK)), None)
    return "pip" if first is not None and Path(first) == own else f"{sys.executable} -m pip"
