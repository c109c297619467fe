"""What is asked for in the words of compressed-tensors, and llm-compressor without its chatter.

Everything of the two libraries is reached through this file and linear.py, and imported when it is first called.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from varco_export.quantize.options import QuantizeOptions

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

# Every spelling of the names has these words, so that any loader leaves these parts alone.
IGNORE = ("re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head$")


def silence() -> None:
    """Import llm-compressor without what it would log to standard output, then and later."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "CRITICAL")
    import llmcompressor  # noqa: F401 - sets up its log
    from loguru import logger

    for name in ("llmcompressor", "compressed_tensors"):
        logger.disable(name)


def make_scheme(options: QuantizeOptions) -> QuantizationScheme:
    """Return llm-compressor's preset W4A16, W8A16 or FP8_DYNAMIC, with the group size that is asked for.

    GPTQ takes the columns in the order of their activations and puts them back ("static"): better, and the result needs
    no permutation.
    """
    silence()
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import preset_name_to_scheme

    preset = "FP8_DYNAMIC" if options.method == "fp8" else f"W{options.num_bits}A16"
    scheme = preset_name_to_scheme(preset, ["Linear"])
    assert scheme.weights is not None, f"Bug: the preset {preset} has no weights"
    scheme.format = CompressionFormat(options.format)
    if options.columns_per_scale is not None:
        scheme.weights.group_size = options.columns_per_scale
    if options.method == "gptq":
        scheme.weights.actorder = "static"
    return scheme


def quantization_config(options: QuantizeOptions) -> dict[str, Any]:
    """Return the `quantization_config` of config.json, as llm-compressor writes it."""
    silence()
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    config = QuantizationConfig(
        config_groups={"group_0": make_scheme(options)},
        format=options.format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(IGNORE),
    )
    return {"version": compressed_tensors.__version__, **config.model_dump(mode="json")}
