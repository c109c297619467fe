"""The first step: what is here, and whether onnxruntime can open a session on the device."""

from __future__ import annotations

import importlib
from dataclasses import asdict

from benchmarks.gpu.limits import operator_session
from benchmarks.gpu.process import Tell
from varco_cli.commands.doctor import examine


def check_environment(provider: str, tell: Tell) -> None:
    """Tell what `varco doctor` says, where packages come from, and that a session is on the device.

    Raises:
        BackendError: The provider cannot be loaded.
    """
    tell(("doctor",), asdict(examine()))
    tell(("onnxruntime_from",), str(importlib.import_module("onnxruntime").__file__))
    operator_session("Neg", [(8,)], provider)
    tell(("session",), f"opened on {provider}")
