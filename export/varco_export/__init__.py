"""varco-edge export: a LLaVA-OneVision checkpoint becomes a bundle, without torch and without loading it into memory.

Importing it raises `ExportError` where the system has no `fcntl`, whose file locks keep two exports apart: on Windows.
"""

from __future__ import annotations

import importlib.util
import sys

from varco_runtime.errors import ExportError

if importlib.util.find_spec("fcntl") is None:
    raise ExportError(
        f"Making bundles needs the file locks of Linux and macOS (fcntl), which {sys.platform} does not have. Make the "
        "bundle on Linux, for example in WSL, and copy it: running bundles needs no such locks."
    )
