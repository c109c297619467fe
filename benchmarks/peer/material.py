"""The weights that all peers run, made once: random, of a real shape, the same numbers for everybody.

    material/facts.json    shape, vocabulary and tile size
    material/checkpoint/   the LLaVA-OneVision checkpoint for text: the real decoder, the smallest vision tower
    material/text/         its decoder alone, as a Qwen2 checkpoint
    material/vision/       the checkpoint for vision: the real tower and projector, a decoder of one small layer
    material/question/     the checkpoint for whole questions: the real decoder, tower and projector (`--question`)
    material/question.json sizes of those questions
    material/PEER/         what a peer made of them

Text and vision are apart, so that the peak memory of one does not hold the weights of the other.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.document import write_json
from varco_export.tiny import TinyOptions, make_tiny
from varco_export.tiny.options import SHAPES

SEED = 1
SMALL_VISION = {
    "num_vision_layers": 1,
    "vision_hidden_size": 48,
    "num_vision_heads": 4,
    "vision_intermediate_size": 80,
    "image_size": 56,
}
SMALL_TEXT = {"num_hidden_layers": 1, "intermediate_size": 160, "vocab_size": 515, "tie_word_embeddings": True}
KV_BYTES = 2  # fp16, the smallest that a peer keeps by default


@dataclass(frozen=True, slots=True)
class Facts:
    """What follows from the shape. `linear_weights`: weights of all linears and the head, which each token reads."""

    shape: str
    vocab_size: int
    tile_px: int
    linear_weights: int
    kv_values_per_token: int
    num_layers: int
    hidden_size: int

    def int4_bytes(self, context: int) -> int:
        """The least that a decode step at `context` reads: 4 bits per weight, no scales, keys and values in fp16."""
        return self.linear_weights // 2 + context * self.kv_values_per_token * KV_BYTES


def make_material(folder: Path, shape: str, has_question: bool = False) -> Facts:
    """Make what is missing in `folder` for `shape` (`tiny` or `0.5b`), with the checkpoint for questions if asked."""
    sizes: dict[str, Any] = {"tie_word_embeddings": True} if shape == "tiny" else dict(SHAPES[shape])
    text = TinyOptions(seed=SEED, dtype="bf16", **(sizes | SMALL_VISION))
    vision = TinyOptions(seed=SEED, dtype="bf16", **(sizes | SMALL_TEXT))
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"checkpoint": text, "vision": vision}
    if has_question:
        wanted["question"] = TinyOptions(seed=SEED, dtype="bf16", **sizes)
    for name, options in wanted.items():
        if not (folder / name).exists():
            make_tiny(folder / name, options)
    if not (folder / "text").exists():
        write_text_checkpoint(folder / "checkpoint", folder / "text")
    head_dim = text.hidden_size // text.num_attention_heads
    kv_size = text.num_key_value_heads * head_dim
    per_layer = 2 * text.hidden_size * (text.hidden_size + kv_size) + 3 * text.hidden_size * text.intermediate_size
    facts = Facts(
        shape=shape,
        vocab_size=text.vocab_size,
        tile_px=vision.image_size,
        linear_weights=text.num_hidden_layers * per_layer + text.vocab_size * text.hidden_size,
        kv_values_per_token=2 * text.num_hidden_layers * kv_size,
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
    )
    names = "shape", "vocab_size", "tile_px"
    write_json(folder / "facts.json", {name: getattr(facts, name) for name in names})
    return facts


def write_text_checkpoint(source: Path, target: Path) -> None:
    """Write the decoder of the checkpoint `source` as a Qwen2ForCausalLM checkpoint: other names, the same bytes.

    safetensors: 8 bytes little-endian header size, JSON header, tensors (github.com/huggingface/safetensors).
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    config = json.loads((source / "config.json").read_text())
    text = {**config["text_config"], "architectures": ["Qwen2ForCausalLM"], "torch_dtype": config["torch_dtype"]}
    (partial / "config.json").write_text(json.dumps(text, indent=2) + "\n")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, partial / name)
    with open(source / "model.safetensors", "rb") as file, open(partial / "model.safetensors", "wb") as out:
        size = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(size))
        wanted = {name: entry for name, entry in tensors.items() if name.startswith("language_model.")}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, entry in wanted.items():
            start, end = end, end + math.prod(entry["shape"]) * 2
            header[name.removeprefix("language_model.")] = {**entry, "data_offsets": [start, end]}
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        out.write(len(raw).to_bytes(8, "little") + raw)
        for entry in wanted.values():
            start, end = entry["data_offsets"]
            file.seek(8 + size + start)
            out.write(file.read(end - start))
    partial.rename(target)
