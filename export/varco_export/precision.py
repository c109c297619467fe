"""Which number formats an exported network uses, and the one check of what a user may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from varco_runtime.errors import UsageError

FLOATS = ("fp32", "fp16")
QUANTIZED_BITS = {"int8": 8, "int4": 4}
BLOCK_SIZES = (32, 64, 128)
GPU_DEVICES = ("cuda", "tensorrt")
COMPUTE = {"tensorrt": ("fp16", "bf16", "fp32"), "cuda": ("fp16", "bf16")}
ROUNDED = ("int8", "int4", "fp8")
INTEGERS_IN_BF16 = (
    "Integer weights in bf16 lose accuracy on CUDA: onnxruntime's kernel for a decode step adds up in the compute "
    "type, so a product of 5,120 or 13,824 features is off by 1.5 or 2.3 % in bf16 and by 0.18 or 0.29 % in fp16. "
    "Leave bf16 out, unless fp16 overflows in this model."
)
"""What an export says of integers in bf16; tests/export/dialects/test_fused_sums.py derives the figures."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The formats of a checkpoint whose linears are quantized already.

    Args:
        weights: `int4`, `int8` or `fp8`.
        head: The same for the output head; None for a plain one.
        details: More of the weights, for people: `GPTQ, groups of 128, act-order`.
    """

    weights: str
    head: str | None
    details: str


@dataclass(frozen=True, slots=True)
class Precision:
    """The number formats of one network. Weights that are stored quantized keep their format.

    Args:
        compute: Type of activations, biases and norms.
        weights: Type of the linears' weights that are stored as floats; `int4` and `int8` mean round-to-nearest in
            symmetric blocks, with scales in `compute`.
        head: The same for `lm_head`.
        block_size: Input features that share a scale.
        int8_activations: Whether integer linears may round their input to int8, which is faster on a CPU and not exact.
        stored: The formats of the weights that are stored quantized; None where there are none.
        row_scales: Whether int8 weights have one scale per output feature instead of blocks, and their input one per
            row.
        cache: Type of the keys and values that are kept; None: what the network computes in.
    """

    compute: str
    weights: str
    head: str
    block_size: int = 32
    int8_activations: bool = False
    stored: Stored | None = None
    row_scales: bool = False
    cache: str | None = None

    def describe(self) -> str:
        """Return one line for people and for the manifest: `int4 (blocks of 32, fp32 activations), head int8`."""
        activations = "int8" if self.int8_activations else self.compute
        weights, head = self.weights, self.head
        if self.stored is not None:
            weights, head = self.stored.weights, self.stored.head or self.head
            text = f"{weights} ({self.stored.details}, {activations} activations)"
            text = text.replace(f", {activations} activations", "") if weights == "fp8" else text
        elif self.row_scales:
            text = f"{weights} (a scale per row, {activations} activations)"
        elif weights in QUANTIZED_BITS:
            text = f"{weights} (blocks of {self.block_size}, {activations} activations)"
        else:
            text = weights
        text = text if head == weights else f"{text}, head {head}"
        return text if self.cache is None else f"{text}, cache {self.cache}"


def choose(value: str, option: str, allowed: tuple[str, ...], later: tuple[str, ...] = ()) -> str:
    """Return `value` if it is one of `allowed`, else raise one clear line naming the option."""
    if value in allowed:
        return value
    note = " (not available in this version)" if value in later else ""
    raise UsageError(f"{option} {value} cannot be exported{note}. Expected one of: {', '.join(allowed)}.")


def _refuse_bf16(option: str, value: str, fast: str) -> None:
    """Refuse a type of the options' lists that is for GPUs alone."""
    if value == "bf16":
        raise UsageError(f"{option} bf16 has no kernels on the CPU. Use {option} fp32 (exact) or {fast} (fast).")


def check_decoder_options(decoder: str, lm_head: str, block_size: int, activations: str, device: str) -> None:
    """Check a CPU's options for the decoder before a checkpoint is opened.

    Raises `UsageError` for what no checkpoint could be exported with.
    """
    choose(device, "--device", ("cpu", "cuda", "tensorrt"))
    _refuse_bf16("--decoder", decoder, "int4")
    _refuse_bf16("--lm-head", lm_head, "int4")
    choose(decoder, "--decoder", ("auto", *FLOATS, "int8", "int4", "fp8"))
    choose(lm_head, "--lm-head", ("auto", *FLOATS, "int8", "int4"))
    choose(activations, "--activations", ("float", "int8"))
    if block_size not in BLOCK_SIZES:
        raise UsageError(f"--block-size {block_size} has no kernel. Expected one of: 32, 64, 128.")


def decoder_precision(
    decoder: str, lm_head: str, block_size: int, activations: str, device: str, stored: Stored | None = None
) -> Precision:
    """Return the decoder's formats on a CPU, from the options and the checkpoint's own.

    `auto` keeps a quantized checkpoint's formats and is fp32 otherwise. A plain head beside int8 or int4 weights
    becomes int8, whether those were rounded here or in the checkpoint: in fp32 it would be 3.1 of the 10 GB that a GPTQ
    14B reads per token, and int8 has a hundredth of the divergence of int4 (`benchmarks/RESULTS.md`).

    Args:
        decoder: The option `--decoder`.
        lm_head: The option `--lm-head`.
        block_size: Input features that share a scale where weights are rounded.
        activations: The option `--activations`.
        device: The option `--device`.
        stored: The formats of a quantized checkpoint, None for a plain one.

    Raises:
        UsageError: The options contradict each other or the checkpoint.
    """
    check_decoder_options(decoder, lm_head, block_size, activations, device)
    if stored is not None:
        return _stored_precision(stored, decoder, lm_head, block_size, activations)
    if decoder == "fp8":
        raise UsageError(
            "--decoder fp8 needs a checkpoint in FP8, this one is not quantised. Make one with: varco quantize "
            "CHECKPOINT OUT --method fp8"
        )
    decoder = "fp32" if decoder == "auto" else decoder
    if activations == "int8" and decoder not in QUANTIZED_BITS:
        raise UsageError(
            f"--activations int8 needs quantised weights, got --decoder {decoder}. Add --decoder int4 or int8."
        )
    compute = decoder if decoder in FLOATS else "fp32"
    if lm_head == "auto":
        lm_head = "int8" if decoder in QUANTIZED_BITS else decoder
    return Precision(compute, decoder, _head(lm_head, compute), block_size, activations == "int8")


def _stored_precision(stored: Stored, decoder: str, lm_head: str, block_size: int, activations: str) -> Precision:
    """Return what a quantized checkpoint becomes: itself, or a refusal."""
    refuse_second_rounding(stored, decoder, lm_head)
    if activations == "int8" and stored.weights not in QUANTIZED_BITS:
        raise UsageError(
            f"--activations int8 needs integer weights, the checkpoint holds {stored.weights}. Leave it out."
        )
    if lm_head == "auto":
        lm_head = "int8" if stored.weights in QUANTIZED_BITS else "fp32"
    head = "fp32" if stored.head is not None else _head(lm_head, "fp32")
    return Precision("fp32", "fp32", head, block_size, activations == "int8", stored)


def refuse_second_rounding(stored: Stored, decoder: str, lm_head: str) -> None:
    """Refuse another format than the checkpoint's own, into which quantized weights would be rounded once more."""
    for option, asked, own in (("--decoder", decoder, stored.weights), ("--lm-head", lm_head, stored.head)):
        if own is not None and asked not in ("auto", own):
            raise UsageError(
                f"{option} {asked} would round weights a second time, the checkpoint holds {own} ({stored.details}). "
                f"Leave {option} out to keep them, or export the checkpoint that it was made from."
            )


def _head(lm_head: str, compute: str) -> str:
    """Return the head's format, if it fits what the decoder computes in."""
    if lm_head in FLOATS and lm_head != compute:
        raise UsageError(
            f"--lm-head {lm_head} does not fit a decoder that computes in {compute}. Use --lm-head {compute}."
        )
    return lm_head


def vision_precision(vision: str) -> Precision:
    """Return the vision tower's and the projector's formats: fp32 unless asked for fp16 or int8.

    int8 means weights and activations, each row with one scale: the tower is bound by arithmetic, and a CPU multiplies
    whole int8 matrices faster than floats or blocks.
    """
    _refuse_bf16("--vision", vision, "int8")
    choose(vision, "--vision", ("auto", *FLOATS, "int8"))
    vision = "fp32" if vision == "auto" else vision
    if vision == "int8":
        return Precision("fp32", "int8", "int8", int8_activations=True, row_scales=True)
    return Precision(vision, vision, vision)


# --- GPUs -------------------------------------------------------------------------------------------------------------


def check_gpu_options(device: str, decoder: str, lm_head: str, block_size: int, activations: str, vision: str) -> None:
    """Check a GPU's options before a checkpoint is opened.

    Raises `UsageError` for what no checkpoint could be exported with.
    """
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
    """Return the decoder's formats on a GPU, and those of all other networks, which compute in the same type.

    That type is the decoder's if it is a float, else what `--vision` says, for CUDA also what `--lm-head` says, else
    the type of the checkpoint's floats: bf16, whose range a model trained in it may need, where they are bf16, and fp16
    otherwise. CUDA computes integers in fp16 unless bf16 is asked for (`INTEGERS_IN_BF16`). `auto` keeps a quantized
    checkpoint's format; the head stays a float.

    Args:
        device: The option `--device`.
        decoder: The option `--decoder`.
        lm_head: The option `--lm-head`.
        block_size: Input features that share a scale where weights are rounded.
        vision: The option `--vision`.
        weights: The type of the checkpoint's floats.
        stored: The formats of a quantized checkpoint, None for a plain one.

    Raises:
        UsageError: The options contradict each other or the checkpoint.
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
    return any(kind in QUANTIZED_BITS for kind in held)
