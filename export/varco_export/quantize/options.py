"""What `varco quantize` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from varco_runtime.errors import UsageError

METHODS = ("gptq", "fp8", "rtn")
BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """What a quantization is asked for; the defaults are those of the command `varco quantize`.

    Args:
        method: `gptq` for int4 or int8 weights, `fp8` for FP8 weights and activations, or `rtn`, which rounds to the
            nearest in the very format of `gptq`: what GPTQ is compared with, not a thing to ship.
        calibration: Folder of pictures that GPTQ is calibrated with; None for the other methods.
        bits: Bits of a weight, 4 or 8; None is 4, and FP8 has its own.
        group_size: Weights that share a scale, 32, 64 or 128; None is 128, and in FP8 a whole row shares one.
        max_samples: Most calibration samples, 1 to 10,000.
        device: Where to compute: `cpu` or `cuda`.
    """

    method: str
    calibration: Path | None = None
    bits: int | None = None
    group_size: int | None = None
    max_samples: int = 256
    device: str = "cpu"

    @property
    def num_bits(self) -> int:
        """Return the bits of a weight."""
        return 8 if self.method == "fp8" else self.bits or 4

    @property
    def columns_per_scale(self) -> int | None:
        """Return the group size, or None where a whole row shares a scale."""
        return None if self.method == "fp8" else self.group_size or 128

    @property
    def format(self) -> str:
        """Return compressed-tensors' name of the layout."""
        return "float-quantized" if self.method == "fp8" else "pack-quantized"

    def check(self) -> None:
        """Check the options.

        Raises:
            UsageError: Values or combinations mean nothing.
        """
        for flag, value, known in (
            ("--method", self.method, METHODS),
            ("--bits", self.bits, (None, *BITS)),
            ("--group-size", self.group_size, (None, *GROUP_SIZES)),
            ("--device", self.device, DEVICES),
        ):
            if value not in known:
                expected = ", ".join(str(one) for one in known if one not in (None, "rtn"))
                raise UsageError(f"{flag} {value} is unknown. Expected one of: {expected}.")
        if self.method == "gptq" and self.calibration is None:
            raise UsageError(
                "--method gptq needs --calibration FOLDER, a folder of pictures like those the model will see "
                "(calibration.jsonl in it may name prompts and answers)."
            )
        if self.method != "gptq" and self.calibration is not None:
            raise UsageError(
                f"--method {self.method} measures nothing, got --calibration {self.calibration}. Leave it out."
            )
        if self.method == "fp8" and (self.bits, self.group_size) != (None, None):
            raise UsageError("--method fp8 has 8 bits and a scale per row. Leave --bits and --group-size out.")
        if not 1 <= self.max_samples <= 10_000:
            raise UsageError(f"--samples {self.max_samples} is out of range. Expected 1 to 10000.")
