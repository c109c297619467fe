"""What is asked for in the words of compressed-tensors, and that library without its chatter.

Everything of compressed-tensors is reached through this file and linear.py, and imported when it is first called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varco_export.quantize.options import HEAD_BITS, QuantizeOptions

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

# Every spelling of the names has these words, so that any loader leaves these parts alone.
IGNORE = ("re:.*vision_tower.*", "re:.*multi_modal_projector.*")
HEAD = "re:.*lm_head$"


def silence() -> None:
    """Keep compressed-tensors from logging to standard error, then and later."""
    from loguru import logger

    logger.disable("compressed_tensors")


def make_scheme(options: QuantizeOptions) -> QuantizationScheme:
    """Return the scheme of the layers: the preset W4A16, W8A16 or FP8_DYNAMIC, with the group size asked for."""
    if options.method == "fp8":
        return _scheme(options, "FP8_DYNAMIC", ["Linear"])
    return _scheme(options, f"W{options.num_bits}A16", ["Linear"])


def make_head_scheme(options: QuantizeOptions) -> QuantizationScheme | None:
    """Return the scheme of the output head, None for a plain one."""
    bits = HEAD_BITS[options.lm_head]
    return None if bits is None else _scheme(options, f"W{bits}A16", [HEAD])


def quantization_config(options: QuantizeOptions) -> dict[str, Any] | None:
    """Return the `quantization_config` of config.json, as llm-compressor writes it; None where nothing is quantized."""
    if options.method == "none":
        return None
    silence()
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    head = make_head_scheme(options)
    groups = {"group_0": make_scheme(options)} | ({} if head is None else {"group_1": head})
    config = QuantizationConfig(
        config_groups=groups,
        format=options.format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[*IGNORE, *([HEAD] if head is None else [])],
    )
    return {"version": compressed_tensors.__version__, **config.model_dump(mode="json")}


def _scheme(options: QuantizeOptions, preset: str, targets: list[str]) -> QuantizationScheme:
    silence()
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(preset, targets)
    assert scheme.weights is not None, f"Bug: the preset {preset} has no weights"
    scheme.format = CompressionFormat(options.format if preset.startswith("FP8") else "pack-quantized")
    if options.columns_per_scale is not None:
        scheme.weights.group_size = options.columns_per_scale
        scheme.weights.symmetric = options.symmetric
    return scheme
