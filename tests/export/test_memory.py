"""Peak memory of the export of checkpoints of real widths, whose zeros take no disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from varco_export.tiny import SHAPES, TinyOptions, make_tiny

GB = 10**9
PROGRAM = """
import re, sys
from pathlib import Path
from varco_export.export import ExportOptions, export
from varco_export.progress import Silent
options = ExportOptions(decoder="int4", vision="int8", probes=False)
export(sys.argv[1], sys.argv[2], options, Silent())
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""
LAYERS = {"num_hidden_layers": 1, "num_vision_layers": 1}
"""One layer is held at a time, so that more of them take more time and no more memory; table and head are the largest
tensors."""


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc, which Linux has")
@pytest.mark.parametrize(("shape", "limit"), [("2.0-1.7b", 1.5 * GB), ("2.0-14b", 3 * GB)])
def test_an_export_takes_little_memory(tmp_path: Path, shape: str, limit: float) -> None:
    options: dict[str, Any] = {**SHAPES[shape], **LAYERS, "dtype": "fp16", "sparse": True}
    checkpoint = make_tiny(tmp_path / "checkpoint", TinyOptions(**options))
    command = [sys.executable, "-c", PROGRAM, str(checkpoint), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < limit
