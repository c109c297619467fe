"""Which number formats a bundle for a GPU uses, and the check of what a user may ask for there."""

from __future__ import annotations

from varco_export.precision import BLOCK_SIZES, QUANTISED_BITS, Precision, Stored, choose, refuse_second_rounding
from varco_runtime.errors import UsageError

GPU_DEVICES = ("cuda", "tensorrt")
COMPUTE = {"tensorrt": ("fp16", "bf16", "fp32"), "cuda": ("fp16", "bf16")}
ROUNDED = ("int8", "int4", "fp8")
INTEGERS_IN_BF16 = (
    "Integer weights in bf16 lose accuracy on CUDA: onnxruntime's kernel for a decode step adds up in the compute "
    "type, so a product of 5,120 or 13,824 features is off by 1.5 or 2.3 % in bf16 and by 0.18 or 0.29 % in fp16. "
    "Leave bf16 out, unless fp16 overflows in this model."
)
"""What an export says of integers in bf16; tests/test_fused_sums.py derives the figures."""


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
    """Return the decoder's formats, and those of all other networks, which compute in the same type.

    That type is the decoder's if it is a float, else what `--vision` says, for CUDA also what `--lm-head` says, else
    the type of the checkpoint's floats, `weights`: bf16, whose range a model trained in it may need, where they are
    bf16, and fp16 otherwise. CUDA computes integers in fp16 unless bf16 is asked for (`INTEGERS_IN_BF16`). `auto` keeps
    a quantised checkpoint's format; the head stays a float.
    """
    if stored is not None:
        refuse_second_rounding(stored, decoder, lm_head)
    allowed = COMPUTE[device]
    own = "bf16" if weights == "bf16" else "fp16"
    naming = [decoder, vision]
    if device == "cuda":
        naming.append(lm_head)
        own = "fp16" if _holds_integers(decoder, lm_head, stored) else own
    compute = next((asked for asked in naming if asked in allowed), own)
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


def loses_sums(device: str, decoder: Precision) -> bool:
    """Return whether a decoder's integer products would be summed in bf16, which `INTEGERS_IN_BF16` speaks of."""
    integers = _holds_integers(decoder.weights, decoder.head, decoder.stored)
    return device == "cuda" and decoder.compute == "bf16" and integers


def _holds_integers(weights: str, head: str, stored: Stored | None) -> bool:
    """Return whether any linear of the decoder is in int4 or int8."""
    held = (weights, head) if stored is None else (stored.weights, stored.head or head)
    return any(kind in QUANTISED_BITS for kind in held)
