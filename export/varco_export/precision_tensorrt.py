"""Which number formats a bundle for TensorRT uses, and the check of what a user may ask for there."""

from __future__ import annotations

from varco_export.precision import BLOCK_SIZES, Precision, Stored, choose, refuse_second_rounding
from varco_runtime.errors import UsageError

COMPUTE = ("fp16", "bf16", "fp32")
ROUNDED = ("int8", "int4", "fp8")


def check_tensorrt_options(decoder: str, lm_head: str, block_size: int, activations: str, vision: str) -> None:
    """Refuse by name what no checkpoint could be exported with, before one is opened."""
    choose(decoder, "--decoder", ("auto", *COMPUTE, *ROUNDED))
    choose(lm_head, "--lm-head", ("auto", *COMPUTE, *ROUNDED))
    choose(vision, "--vision", ("auto", *COMPUTE), later=("int8", "fp8"))
    choose(activations, "--activations", ("float", "int8"))
    if activations == "int8":
        raise UsageError("--activations int8 is for --device cpu, TensorRT multiplies in floats here. Leave it out.")
    if block_size not in BLOCK_SIZES:
        raise UsageError(f"--block-size {block_size} has no kernel. Expected one of: 32, 64, 128.")


def tensorrt_precisions(
    decoder: str, lm_head: str, block_size: int, vision: str, weights: str, stored: Stored | None
) -> tuple[Precision, Precision]:
    """The decoder's formats, and those of all other networks, which compute in the same type.

    That type is the decoder's if it is a float, or what `--vision` says, or follows `weights`, the type of the
    checkpoint's floats: bf16, whose range a model trained in it may need, where they are bf16, and fp16 otherwise.
    `auto` keeps a quantised checkpoint's format; the head stays a float.
    """
    if stored is not None:
        refuse_second_rounding(stored, decoder, lm_head)
    compute = "bf16" if weights == "bf16" else "fp16"
    compute = next((asked for asked in (decoder, vision) if asked in COMPUTE), compute)
    for option, asked in (("--lm-head", lm_head), ("--vision", vision)):
        if asked in COMPUTE and asked != compute:
            raise UsageError(
                f"{option} {asked} does not fit a decoder that computes in {compute}: with --device tensorrt all "
                f"networks compute in one type. Leave {option} out."
            )
    rounded = decoder if stored is None and decoder in ROUNDED else compute
    plain_head = lm_head == "auto" or (stored is not None and stored.head is not None)
    head = compute if plain_head else lm_head
    return Precision(compute, rounded, head, block_size, stored=stored), Precision(compute, compute, compute)
