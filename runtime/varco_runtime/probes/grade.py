"""How good a bundle's number formats are for its model: a grade and advice, and no verdict.

A format that is too coarse is no fault of the bundle: it computes what it must. The grade goes by the KL divergence of
the device's answers from those of full precision, and the advice by what the exporter found other formats to give.
"""

from __future__ import annotations

from varco_runtime.bundle.manifest import Manifest
from varco_runtime.probes.limits import COARSE_KL, FAIR_KL

AS_EXPORTED = "as exported"
BETTER = 0.7
"""What part of the divergence an option must leave to be advised."""


def grade_of(divergence: float) -> str:
    """Return `good`, `fair` or `coarse`, by nats per token."""
    return "good" if divergence < FAIR_KL else "fair" if divergence < COARSE_KL else "coarse"


def advice(manifest: Manifest, divergence: float, tried: dict[str, float]) -> str | None:
    """Return a line that says what would be better; None for a good grade.

    Args:
        manifest: The bundle's.
        divergence: Of the device's answers, in nats per token.
        tried: The exporter's divergences, by the option that was changed: `Probes.divergences`.
    """
    grade = grade_of(divergence)
    if grade == "good":
        return None
    own = tried.get(AS_EXPORTED, divergence)
    others = sorted((value, name) for name, value in tried.items() if name != AS_EXPORTED)
    better = " or ".join(f"{name} gives {value:.2g}" for value, name in others if value < BETTER * own)
    if not better:
        still = "".join(f" ({name} still gives {value:.2g})" for value, name in others[:1])
        better = f"A finer --decoder, a smaller --block-size or a checkpoint of varco quantize loses less{still}"
    verdict = "is too coarse for this model" if grade == "coarse" else "is fair for this model"
    return f"{manifest.decoder.precision} {verdict}: KL {divergence:.2g} nats to full precision. {better}."
