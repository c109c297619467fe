"""Options of a quantization and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from varco_runtime.errors import UsageError

METHODS = ("gptq", "fp8", "none", "rtn")
BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
SCALES = ("search", "minmax")
HEAD_BITS = {"plain": None, "int4": 4, "int8": 8}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Options of a quantization, with the defaults of the command `varco quantize`.

    Args:
        method: `gptq` for int4 or int8 weights, `fp8` for FP8 weights and activations, `none` for the rotated
            checkpoint unrounded, or `rtn`, which rounds to the nearest in the very format of `gptq`: what GPTQ is
            compared with, not a thing to ship.
        calibration: Folder of pictures and texts that the model is measured with; None for the project's own.
        bits: Bits of a weight, 4 or 8; None is 4, and FP8 has its own.
        group_size: Weights that share a scale, 32, 64 or 128; None is 128, and in FP8 a whole row shares one.
        max_samples: Most calibration samples, 1 to 10,000; None is 256. 0, for FP8 alone, rounds to the nearest.
        device: Where to compute: `cpu` or `cuda`.
        rotate: Whether the residual stream is turned first; None is what measures best: yes, but for FP8 and `rtn`.
        scales: GPTQ's scales: `search`ed, or `minmax`. None is `search`.
        symmetric: Whether there are no zero points.
        lm_head: `plain`, or `int4` or `int8` by GPTQ.
        seed: What the rotation is made of, 0 to 2^32 - 1.
        compensate: Whether each linear makes up for the errors before it, as calibration shows them; None is what
            measures best: with GPTQ.
    """

    method: str
    calibration: Path | None = None
    bits: int | None = None
    group_size: int | None = None
    max_samples: int | None = None
    device: str = "cpu"
    rotate: bool | None = None
    scales: str | None = None
    symmetric: bool = True
    lm_head: str = "plain"
    seed: int = 0
    compensate: bool | None = None

    @property
    def num_bits(self) -> int:
        """Return the bits of a weight."""
        return 8 if self.method == "fp8" else self.bits or 4

    @property
    def columns_per_scale(self) -> int | None:
        """Return the group size, or None where a whole row shares a scale."""
        return None if self.method in ("fp8", "none") else self.group_size or 128

    @property
    def format(self) -> str:
        """Return compressed-tensors' name of the layout."""
        return "float-quantized" if self.method == "fp8" else "pack-quantized"

    @property
    def is_rotated(self) -> bool:
        """Return whether the residual stream is turned."""
        return self.method in ("gptq", "none") if self.rotate is None else self.rotate

    @property
    def is_calibrated(self) -> bool:
        """Return whether samples are measured."""
        return self.method == "gptq" or (self.method == "fp8" and self.max_samples != 0)

    @property
    def compensates(self) -> bool:
        """Return whether linears make up for the errors before them."""
        return self.is_calibrated and (self.method == "gptq" if self.compensate is None else self.compensate)

    @property
    def searches(self) -> bool:
        """Return whether scales are searched."""
        return self.scales != "minmax"

    @property
    def sample_limit(self) -> int:
        """Return the most samples."""
        return self.max_samples or 256

    def check(self) -> None:
        """Check the options.

        Raises:
            UsageError: Values or combinations mean nothing.
        """
        for flag, value, known in (
            ("--method", self.method, METHODS),
            ("--bits", self.bits, (None, *BITS)),
            ("--group-size", self.group_size, (None, *GROUP_SIZES)),
            ("--scales", self.scales, (None, *SCALES)),
            ("--lm-head", self.lm_head, tuple(HEAD_BITS)),
            ("--device", self.device, DEVICES),
        ):
            if value not in known:
                expected = ", ".join(str(one) for one in known if one not in (None, "rtn"))
                raise UsageError(f"{flag} {value} is unknown. Expected one of: {expected}.")
        if self.method not in ("gptq", "fp8") and self.calibration is not None:
            raise UsageError(
                f"--method {self.method} measures nothing, got --calibration {self.calibration}. Leave it out."
            )
        if self.method in ("none", "rtn") and self.max_samples is not None:
            raise UsageError(
                f"--method {self.method} takes no samples, got --samples {self.max_samples}. Leave it out."
            )
        if self.calibration is not None and not self.is_calibrated:
            raise UsageError(f"--samples 0 measures nothing, got --calibration {self.calibration}. Leave one out.")
        if self.method == "none" and not self.is_rotated:
            raise UsageError("--method none --no-rotate would copy the checkpoint. Leave --no-rotate out.")
        if self.compensate is not None and not self.is_calibrated:
            what = "--samples 0" if self.max_samples == 0 else f"--method {self.method}"
            flag = "--compensate" if self.compensate else "--no-compensate"
            raise UsageError(f"{what} measures nothing. Leave {flag} out.")
        self._check_format()
        least = 0 if self.method == "fp8" else 1
        if self.max_samples is not None and not least <= self.max_samples <= 10_000:
            raise UsageError(f"--samples {self.max_samples} is out of range. Expected {least} to 10000.")
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"--seed {self.seed} is out of range. Expected 0 to 4294967295.")
        if self.seed and not self.is_rotated:
            raise UsageError(
                f"--seed {self.seed} is the rotation's, and nothing is rotated. Leave it out, or --rotate."
            )

    def _check_format(self) -> None:
        """Refuse options of GPTQ's format beside a method that has its own or none."""
        own = {"fp8": "has 8 bits and a scale per row", "none": "rounds nothing"}.get(self.method)
        if own is None:
            if self.method == "rtn" and (self.scales is not None or self.lm_head != "plain"):
                raise UsageError("--method rtn searches nothing. Leave --scales and --lm-head out.")
            return
        if (self.bits, self.group_size) != (None, None):
            raise UsageError(f"--method {self.method} {own}. Leave --bits and --group-size out.")
        if self.scales is not None or not self.symmetric:
            raise UsageError(f"--method {self.method} {own}. Leave --scales and --asymmetric out.")
        if self.lm_head != "plain":
            raise UsageError(f"--method {self.method} keeps a plain head. Leave --lm-head out.")
