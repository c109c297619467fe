"""What may be asked of OpenVINO when a bundle is loaded, and what it is told then."""

from __future__ import annotations

from dataclasses import dataclass

from varco_runtime.errors import UsageError

DEVICES = ("auto", "CPU", "GPU", "NPU")
PRECISIONS = ("auto", "fp32")
CACHE_PRECISIONS = {"auto": "", "u8": "u8", "fp16": "f16", "fp32": "f32"}
"""By our names: what OpenVINO calls the format of a cache."""


@dataclass(frozen=True, slots=True)
class OpenVinoSettings:
    """How OpenVINO computes.

    Args:
        device: `CPU`, `GPU` or `NPU`; `auto` is the CPU.
        precision: `auto` lets OpenVINO choose a type that is fast on the device, bf16 where it has instructions for it,
            and round the inputs of integer linears; `fp32` is exact.
        kv_cache: Format of keys and values: `u8`, `fp16` or, beside the precision `fp32`, `fp32`; `auto` is the widest
            that goes with the precision.

    Raises:
        UsageError: A value is none of these, or the cache is to be wider than what is computed in.
    """

    device: str = "auto"
    precision: str = "auto"
    kv_cache: str = "auto"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("openvino_device", self.device, DEVICES),
            ("precision", self.precision, PRECISIONS),
            ("kv_cache_precision", self.kv_cache, tuple(CACHE_PRECISIONS)),
        ):
            if value not in allowed:
                raise UsageError(f"{name}={value!r} is unknown. Expected one of: {', '.join(allowed)}.")
        if self.kv_cache == "fp32" and self.precision != "fp32":
            raise UsageError(
                f"kv_cache_precision='fp32' goes with precision='fp32', got {self.precision!r}, in which OpenVINO may "
                "compute in 16 bits. Leave it out, or take 'u8' or 'fp16'."
            )

    @property
    def chosen_device(self) -> str:
        """Return OpenVINO's name of the device."""
        return "CPU" if self.device == "auto" else self.device

    @property
    def chosen_kv_cache(self) -> str:
        """Return the format of the cache by our name."""
        return self.kv_cache if self.kv_cache != "auto" else "fp32" if self.precision == "fp32" else "fp16"

    def properties(self, threads: int, rounded_inputs: int | None = None) -> dict[str, object]:
        """Return OpenVINO's properties for compiling a network.

        Args:
            threads: Processor threads, which a CPU alone is told.
            rounded_inputs: How many inputs of a product with integers share a scale where they are rounded; by
                default what OpenVINO takes. Nothing is rounded with the precision `fp32`.
        """
        told: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.chosen_device == "CPU":
            told["INFERENCE_NUM_THREADS"] = threads
        if self.precision == "fp32":
            told |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        elif rounded_inputs is not None:
            told["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(rounded_inputs)
        return told

    def decoder_properties(self, threads: int, rounded_inputs: int | None = None) -> dict[str, object]:
        """Return the properties for the network that has a cache."""
        told = self.properties(threads, rounded_inputs)
        told["KV_CACHE_PRECISION"] = CACHE_PRECISIONS[self.chosen_kv_cache]
        if self.chosen_kv_cache == "u8" and self.chosen_device == "CPU":
            # By channel, the default, a page is rounded anew with each row that it gets, those of wrong guesses
            # included: after 1,000 steps back its error was 13 times as large.
            told["KEY_CACHE_QUANT_MODE"] = "BY_TOKEN"
        return told
