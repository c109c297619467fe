"""The folder of a tiny checkpoint: whole or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from varco_export.tiny.config import config_json, generation_json, preprocessor_json, processor_json
from varco_export.tiny.options import TinyOptions, check_options
from varco_export.tiny.tokenizer import CHAT_TEMPLATE, VIDEO_CHAT_TEMPLATE, write_tokenizer
from varco_export.tiny.weights import write_weights
from varco_export.writing.json_file import write_json
from varco_runtime.errors import UsageError

_README = """\
---
license: apache-2.0
---

Random weights in the architecture of LLaVA-OneVision, made by `python -m varco_export.tiny`. It answers nonsense.
"""


def make_tiny(out: Path, options: TinyOptions = TinyOptions()) -> Path:  # noqa: B008 - frozen
    """Make a checkpoint of random weights. It is whole or absent: renamed when complete.

    Args:
        out: The checkpoint's folder, made here.
        options: What it is to look like.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists, or no checkpoint has such sizes.
        OSError: The disk refuses.
    """
    check_options(options)
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists, expected a new folder. Choose another name or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write_json(partial / "config.json", config_json(options))
        write_json(partial / "generation_config.json", generation_json(options))
        if options.format == "hf":
            write_json(partial / "preprocessor_config.json", preprocessor_json(options))
            write_json(partial / "processor_config.json", processor_json(options))
            write_json(
                partial / "chat_template.json",
                {"chat_template": VIDEO_CHAT_TEMPLATE if options.video else CHAT_TEMPLATE},
            )
        is_hf = options.format == "hf"
        write_tokenizer(partial, options.max_position_embeddings, is_hf, options.tokenizer_files, options.video)
        (partial / "README.md").write_text(_README, encoding="utf-8")
        write_weights(partial, options)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out
