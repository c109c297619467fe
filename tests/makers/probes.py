"""Checkpoints and precisions of bundles with probes, and what a replay of them finds.

Random weights with the default `Scales` amplify a rounding error several times per layer, which no trained model does:
int4 is too coarse for them. The checkpoints here have gentler ones, each layer adding half of what flows into it.
Errors separate good from broken with either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from varco_export.tiny import Scales, TinyOptions
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.probes.replay import Check, read_probes, replay

GENTLE = Scales(query_key=1.0, attention=0.5, mlp=0.5, logits=2.0)
OPTIONS = TinyOptions(seed=11, image_size=114, scales=GENTLE)
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"decoder": "fp32"},
    "fp16": {"decoder": "fp16", "vision": "fp16"},
    "int8": {"decoder": "int8"},
    "int8-int8": {"decoder": "int8", "activations": "int8"},
    "int4": {"decoder": "int4"},
    "int4-int8": {"decoder": "int4", "activations": "int8"},
    "int4-head": {"decoder": "int4", "lm_head": "int4"},
    "vision-int8": {"decoder": "int8", "vision": "int8"},
    "fast": {"decoder": "int4", "activations": "int8", "block_size": 128, "lm_head": "int4", "vision": "int8"},
}


def checks_of(folder: Path) -> list[Check]:
    """Replay the probes of a bundle on the CPU."""
    bundle = Bundle.open(folder)
    probes = read_probes(bundle)
    return replay(bundle, probes, OnnxRuntimeBackend(bundle, probes.max_tokens, threads=1))


def divergence_of(checks: list[Check]) -> float:
    """Return the KL to full precision, in nats."""
    return next(check.error for check in checks if check.measure.startswith("KL"))


def failed(checks: list[Check]) -> list[str]:
    """Return the components whose checks failed."""
    return [check.component for check in checks if not check.passed]
