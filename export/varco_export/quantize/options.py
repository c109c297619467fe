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
    """The command line's options, with its defaults.

    `rtn` rounds to the nearest in the very format of `gptq`: what GPTQ is compared with, not a thing to ship.
    `bits`, `group_size`, `calibration` and `max_samples` are for what has a use for them; None is the default.
    """

    method: str
    calibration: Path | None = None
    bits: int | None = None
    group_size: int | None = None
    max_samples: int = 256
    device: str = "cpu"

    @property
    def num_bits(self) -> int:
        return 8 if self.method == "fp8" else self.bits or 4

    @property
    def columns_per_scale(self) -> int | None:
        """The group size, or None where a whole row shares a scale."""
        return None if self.method == "fp8" else self.group_size or 128

    @property
    def format(self) -> str:
        """compressed-tensors' name of the layout."""
        return "float-quantized" if self.method == "fp8" else "pack-quantized"

    def check(self) -> None:
        """Raise `UsageError` for values and combinations that mean nothing."""
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
