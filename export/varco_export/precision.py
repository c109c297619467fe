"""Which number formats an exported network uses, and the one check of what a user may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from varco_runtime.errors import UsageError

FLOATS = ("fp32", "fp16")
QUANTISED_BITS = {"int8": 8, "int4": 4}
BLOCK_SIZES = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Precision:
    """The number formats of one network.

    `compute`: type of activations, biases and norms. `weights`: type of the linears' weights; `int4` and `int8` mean
    round-to-nearest in symmetric blocks of `block_size` input features, with scales in `compute`. `head`: the same for
    `lm_head`. `int8_activations`: quantised linears may quantise their input to int8, which is faster on a CPU and
    not exact.
    """

    compute: str
    weights: str
    head: str
    block_size: int = 32
    int8_activations: bool = False

    def describe(self) -> str:
        """One line for people and for the manifest: `int4 (blocks of 32, fp32 activations), head int8`."""
        if self.weights in QUANTISED_BITS:
            activations = "int8" if self.int8_activations else self.compute
            text = f"{self.weights} (blocks of {self.block_size}, {activations} activations)"
        else:
            text = self.weights
        return text if self.head == self.weights else f"{text}, head {self.head}"


def choose(value: str, option: str, allowed: tuple[str, ...], later: tuple[str, ...] = ()) -> str:
    """`value` if it is one of `allowed`, else one clear line naming the option."""
    if value in allowed:
        return value
    note = " (not available in this version)" if value in later else ""
    raise UsageError(f"{option} {value} cannot be exported{note}. Expected one of: {', '.join(allowed)}.")


def decoder_precision(decoder: str, lm_head: str, block_size: int, activations: str, device: str) -> Precision:
    """The decoder's formats from the command line's options. `auto` is fp32 on the CPU.

    The head of a quantised decoder defaults to int8: it is a tenth of a 14B's bytes per token and decides every token.
    """
    choose(device, "--device", ("cpu",), later=("cuda", "tensorrt"))
    if decoder == "bf16":
        raise UsageError(
            "--decoder bf16 has no kernels on the CPU. Use --decoder fp32 (exact) or int4 (small and fast)."
        )
    decoder = "fp32" if decoder == "auto" else decoder
    choose(decoder, "--decoder", (*FLOATS, "int8", "int4"), later=("fp8",))
    choose(activations, "--activations", ("float", "int8"))
    if block_size not in BLOCK_SIZES:
        raise UsageError(f"--block-size {block_size} has no kernel. Expected one of: 32, 64, 128.")
    if activations == "int8" and decoder not in QUANTISED_BITS:
        raise UsageError(
            f"--activations int8 needs quantised weights, got --decoder {decoder}. Add --decoder int4 or int8."
        )
    compute = decoder if decoder in FLOATS else "fp32"
    if lm_head == "auto":
        lm_head = "int8" if decoder in QUANTISED_BITS else decoder
    choose(lm_head, "--lm-head", (*FLOATS, "int8", "int4"))
    if lm_head in FLOATS and lm_head != compute:
        raise UsageError(
            f"--lm-head {lm_head} does not fit a decoder that computes in {compute}. Use --lm-head {compute}."
        )
    return Precision(compute, decoder, lm_head, block_size, activations == "int8")


def vision_precision(vision: str) -> Precision:
    """The vision tower's and the projector's formats: fp32 unless asked for fp16."""
    vision = "fp32" if vision == "auto" else vision
    choose(vision, "--vision", FLOATS, later=("int8",))
    return Precision(vision, vision, vision)
