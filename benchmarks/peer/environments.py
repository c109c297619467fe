"""A virtual environment per peer, so that none sees another's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer.process import PeerError

TIMEOUT_S = 3600
"""llama-cpp-python compiles llama.cpp: some ten minutes of two cores."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer's environment holds. The versions are those that were measured."""

    name: str
    gigabytes: float
    """Installed, about."""
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


ENVIRONMENTS = {
    "transformers": Environment("transformers", 1.1, ("torch==2.13.0", "transformers==5.17.0", "numpy")),
    "llama_cpp": Environment("llama-cpp", 0.2, ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy")),
    "onnxruntime_genai": Environment(
        "onnxruntime-genai",
        1.3,
        (
            "onnxruntime-genai==0.18.0",
            "onnxruntime==1.31.1",
            "onnx",
            "onnx-ir",
            "torch==2.13.0",
            "transformers",
            "numpy",
        ),
    ),
    "openvino": Environment(
        "openvino",
        1.5,
        (
            "openvino==2026.4.1",
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers",
            "optimum-intel==2.2.0",
            "nncf==3.4.0",
            "torch==2.13.0",
            "transformers",
        ),
        # optimum-intel asks for it and does not need it; beside torch's CPU build its plain wheel does not import.
        unwanted=("torchvision",),
    ),
}


def interpreter(environment: Environment, folder: Path) -> Path:
    """The environment's Python, made in `folder` if it is not there yet. Raises `PeerError` in one line."""
    home = folder / environment.name
    python = home / "bin" / "python"
    marker = home / "varco-peer.json"
    wanted = json.dumps([environment.requirements, environment.unwanted])
    if marker.exists() and marker.read_text() == wanted:
        return python
    print(f"Making the environment {environment.name} ...", file=sys.stderr, flush=True)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(home)], environment)
    _run([str(python), "-m", "pip", "install", "--quiet", *environment.requirements], environment)
    if environment.unwanted:
        _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *environment.unwanted], environment)
    marker.write_text(wanted)
    return python


def _run(command: list[str], environment: Environment) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PeerError(f"its environment {environment.name} took more than {TIMEOUT_S} s to install") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerError(f"its environment {environment.name} does not install: {reason[:200]}") from None
