"""Packages that travel as one archive, onnxruntime-gpu above all, for a machine without a network."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

from varco_runtime.errors import UsageError


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive unless that is done, and put it first on the path of this process and of those it starts.

    Args:
        archive: A tar file of packages, as they lie in a folder of packages.
        target: Where they go.

    Raises:
        UsageError: It is no such archive.
    """
    done = target / ".unpacked"
    try:
        stamp = f"{archive.resolve()} {archive.stat().st_size} {archive.stat().st_mtime_ns}"
        if not done.is_file() or done.read_text() != stamp:
            shutil.rmtree(target, ignore_errors=True)
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
            done.write_text(stamp)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{archive} cannot be unpacked ({error}), expected a tar file of packages.") from None
    sys.path.insert(0, str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
