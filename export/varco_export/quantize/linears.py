"""The linears of a decoder layer that share an input: rounded together, by one Hessian, in one order."""

from __future__ import annotations

import torch

from varco_export.quantize.layer import LINEARS, SHARED_INPUT, layer_name, linear_of
from varco_export.quantize.linear import Hessian, Measured, make_grid, output_energies, quantize_linear
from varco_export.quantize.run import Run
from varco_export.quantize.shard import Stored
from varco_export.quantize.weights import TORCH_DTYPES, read_weight
from varco_export.reading.names import disk_name


def round_shared(
    run: Run, index: int, shared: str, measured: Measured, layer: torch.nn.Module, errors: dict[str, float]
) -> dict[str, Stored]:
    """Round the linears of a layer that share an input, and give them their new weights.

    Args:
        run: The run.
        index: Which layer it is.
        shared: The linear that gives the input its name.
        measured: What flows into them.
        layer: The layer, whose linears get the rounded weights.
        errors: Gets the output error of each linear: the rounded weight's, beside the one that was wanted.

    Returns:
        The tensors by canonical name.
    """
    assert run.scheme is not None, "Bug: a calibrated layer without a scheme"
    stored: dict[str, Stored] = {}
    for linear in (name for name in LINEARS if SHARED_INPUT[name] == shared):
        name = f"{layer_name(index)}.{linear}.weight"
        if not measured.factors:
            tell_rounded(run, name)
        weight = measured.wanted(read_weight(run.checkpoint, name).to(run.device))
        dtype = TORCH_DTYPES[run.checkpoint.tensor(name).dtype]
        measured = measured.decided(weight, make_grid(run.scheme, dtype))
        found = quantize_linear(weight, dtype, run.scheme, measured)
        error, whole = output_energies(weight, found.weight, measured.hessian)
        errors[linear] = error / max(whole, 1e-30)
        linear_of(layer, linear).weight.copy_(found.weight)
        stem = name.removesuffix("weight")
        stored |= {stem + last: Stored.of_torch(tensor) for last, tensor in found.tensors.items()}
    return stored


def on_disk(stored: dict[str, Stored]) -> dict[str, Stored]:
    """Return tensors by the names that they have in a file, in order."""
    return {disk_name(name, "hf_old"): one for name, one in sorted(stored.items())}


def measured_of(run: Run, hessian: Hessian, is_beside: bool = False) -> Measured:
    """Return what a Hessian tells to whoever rounds; it is used up."""
    lack, columns = hessian.lack(), run.options.columns_per_scale
    return Measured.of(hessian.mean(), columns, run.options.searches, lack, is_beside)


def tell_rounded(run: Run, name: str) -> None:
    """Say at once that a weight was only rounded: a run that continues this one knows nothing of it."""
    run.progress.note(
        f"note: {name} was rounded to the nearest, since its Hessian cannot be inverted; more calibration samples may "
        "avoid that."
    )


def other_tensors(run: Run, index: int) -> dict[str, Stored]:
    """Return the tensors of a layer that are no weights of linears."""
    prefix = f"{layer_name(index)}."
    linears = {f"{prefix}{linear}.weight" for linear in LINEARS}
    return {
        name: Stored.of_checkpoint(run.checkpoint.tensor(name))
        for name in run.checkpoint.tensors
        if name.startswith(prefix) and name not in linears
    }
