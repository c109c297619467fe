"""What a run was asked for and what it kept: `quantization.json`, beside the weights."""

from __future__ import annotations

from typing import Any

from varco_export.quantize.layer import LINEARS
from varco_export.quantize.options import QuantizeOptions
from varco_export.quantize.run import Run
from varco_export.quantize.work import Work
from varco_runtime import __version__


def make_report(run: Run, work: Work) -> dict[str, Any]:
    """Return the report of a run whose layers and head are finished.

    `output_error` is a linear's squared output error over its outputs' own square, on the calibration's inputs, by kind
    of linear as the mean over layers. `kl_nats_per_token` is the KL divergence from the model that the run started
    from, over the last tokens of the samples that were held out; missing where none were.
    """
    options = run.options
    layers = [work.read_facts(f"layer-{index:05}") for index in range(run.num_layers)]
    head = work.read_facts("head")
    errors = {
        linear: sum(facts[linear] for facts in layers) / len(layers)
        for linear in LINEARS
        if all(linear in facts for facts in layers)
    }
    if "output_error" in head:
        errors["lm_head"] = head["output_error"]
    report: dict[str, Any] = {
        "made_by": f"varco-edge {__version__}",
        "method": options.method,
        "bits": None if options.method == "none" else options.num_bits,
        "group_size": options.columns_per_scale,
        "scales": _scales(options),
        "symmetric": options.symmetric,
        "lm_head": options.lm_head,
        "compensated": options.compensates,
        "rotation_seed": options.seed if options.is_rotated else None,
        "calibration_samples": len(run.samples),
        "calibration_tokens": sum(len(sample.ids) for sample in run.samples),
    }
    if errors:
        report["output_error"] = errors
        report["output_error_by_layer"] = layers
    if "kl" in head:
        report |= {"kl_nats_per_token": head["kl"], "kl_tokens": int(head["tokens"]), "kl_samples": len(run.held)}
    return report


def _scales(options: QuantizeOptions) -> str | None:
    """Return how scales were chosen; None where there are none."""
    if options.method == "none":
        return None
    return "search" if options.is_calibrated and options.searches else "minmax"
