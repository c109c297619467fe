"""Which number formats a bundle for a GPU uses, and the check of what a user may ask for there."""

from __future__ import annotations

from varco_export.precision import BLOCK_SIZES, Precision, Stored, choose, refuse_second_rounding
from varco_runtime.errors import UsageError

GPU_DEVICES = ("cuda", "tensorrt")
COMPUTE = {"tensorrt": ("fp16", "bf16", "fp32"), "cuda": ("fp16", "bf16")}
ROUNDED = ("int8", "int4", "fp8")


def check_gpu_options(device: str, decoder: str, lm_head: str, block_size: int, activations: str, vision: str) -> None:
    """Refuse by name what no checkpoint could be exported with, before one is opened."""
    compute = COMPUTE[device]
    for option, asked in (("--decoder", decoder), ("--lm-head", lm_head), ("--vision", vision)):
        if asked == "fp32" and "fp32" not in compute:
            raise UsageError(
                f"{option} fp32 does not run with --device {device}, whose attention computes in fp16 or bf16. "
                "Use --device cpu for fp32, or leave the option out."
            )
    choose(decoder, "--decoder", ("auto", *compute, *ROUNDED))
    choose(lm_head, "--lm-head", ("auto", *compute, *ROUNDED))
    choose(vision, "--vision", ("auto", *compute), later=("int8", "fp8"))
    choose(activations, "--activations", ("float", "int8"))
    if activations == "int8":
        raise UsageError("--activations int8 is for --device cpu, a GPU multiplies in floats here. Leave it out.")
    if block_size not in BLOCK_SIZES:
        raise UsageError(f"--block-size {block_size} has no kernel. Expected one of: 32, 64, 128.")


def gpu_precisions(
    device: str, decoder: str, lm_head: str, block_size: int, vision: str, weights: str, stored: Stored | None
) -> tuple[Precision, Precision]:
    """The decoder's formats, and those of all other networks, which compute in the same type.

    That type is the decoder's if it is a float, or what `--vision` says, or follows `weights`, the type of the
    checkpoint's floats: bf16, whose range a model trained in it may need, where they are bf16, and fp16 otherwise.
    `auto` keeps a quantised checkpoint's format; the head stays a float.
    """
    if stored is not None:
        refuse_second_rounding(stored, decoder, lm_head)
    allowed = COMPUTE[device]
    compute = "bf16" if weights == "bf16" else "fp16"
    compute = next((asked for asked in (decoder, vision) if asked in allowed), compute)
    for option, asked in (("--lm-head", lm_head), ("--vision", vision)):
        if asked in allowed and asked != compute:
            raise UsageError(
                f"{option} {asked} does not fit a decoder that computes in {compute}: with --device {device} all "
                f"networks compute in one type. Leave {option} out."
            )
    rounded = decoder if stored is None and decoder in ROUNDED else compute
    plain_head = lm_head == "auto" or (stored is not None and stored.head is not None)
    head = compute if plain_head else lm_head
    return Precision(compute, rounded, head, block_size, stored=stored), Precision(compute, compute, compute)
