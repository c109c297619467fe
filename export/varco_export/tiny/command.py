"""The command line of `python -m varco_export.tiny`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from varco_export.config.config_parts import LANGUAGE_MODELS
from varco_export.reading.tensor import FLOAT_DTYPES
from varco_export.tiny.maker import make_tiny
from varco_export.tiny.options import SHAPES, TinyOptions
from varco_runtime.errors import UsageError, VarcoError


def _grid(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLUMNS, such as 2x2")
    return int(found[1]), int(found[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m varco_export.tiny", description="Make a checkpoint of random weights."
    )
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--shape", choices=SHAPES, help="the sizes of a real model; use it with --sparse")
    numbers = {
        "--seed": "seed",
        "--layers": "num_hidden_layers",
        "--hidden": "hidden_size",
        "--heads": "num_attention_heads",
        "--kv-heads": "num_key_value_heads",
        "--head-dim": "head_dim",
        "--intermediate": "intermediate_size",
        "--vocab": "vocab_size",
        "--vision-layers": "num_vision_layers",
        "--vision-hidden": "vision_hidden_size",
        "--vision-heads": "num_vision_heads",
        "--vision-intermediate": "vision_intermediate_size",
        "--image-size": "image_size",
        "--patch-size": "patch_size",
        "--max-grid-tiles": "max_grid_tiles",
        "--shards": "num_shards",
        "--max-position": "max_position_embeddings",
    }
    for flag, name in numbers.items():
        parser.add_argument(flag, dest=name, type=int, metavar="N")
    parser.add_argument("--repetition-penalty", dest="repetition_penalty", type=float, metavar="X")
    parser.add_argument("--grid", dest="max_grid", type=_grid, metavar="ROWSxCOLUMNS", help="the largest tile grid")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES)
    parser.add_argument("--format", choices=("hf", "llava-next"))
    parser.add_argument("--text", choices=tuple(LANGUAGE_MODELS), help="the language model (qwen3: hf only)")
    parser.add_argument("--names", choices=("old", "new"), help="weight names of transformers 4.45 or 5 (hf only)")
    tied = parser.add_mutually_exclusive_group()
    tied.add_argument("--tied", dest="tie_word_embeddings", action="store_true")
    tied.add_argument("--untied", dest="tie_word_embeddings", action="store_false")
    parser.add_argument("--extra-vision-layer", action="store_true", help="add a last vision layer that never runs")
    parser.add_argument("--tokenizer-files", action="store_true", help="vocab.json and merges.txt, no tokenizer.json")
    parser.add_argument("--video", action="store_true", help="for several pictures and videos: tokens and template")
    parser.add_argument("--sparse", action="store_true", help="zeros as a hole in the file, which takes no disk")
    unset = ("tie_word_embeddings", "extra_vision_layer", "tokenizer_files", "sparse", "video")
    parser.set_defaults(**dict.fromkeys(unset))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    values = {key: value for key, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    out, shape = values.pop("out"), values.pop("shape", None)
    options: dict[str, Any] = (SHAPES[shape] if shape else {}) | values
    try:
        print(make_tiny(out, TinyOptions(**options)))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except (VarcoError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
