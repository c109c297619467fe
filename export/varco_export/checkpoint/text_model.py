"""A language model quantized apart, joined with the vision side of the checkpoint that it came from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from varco_export.config.config_reader import read_text_config
from varco_export.config.model_config import ModelConfig
from varco_export.reading.quoting import short
from varco_export.reading.shards import Entry
from varco_runtime.errors import CheckpointError

_TEXT = ("language_model.", "lm_head.")


def join_text_model(text: dict[str, Entry], whole: dict[str, Entry]) -> dict[str, Entry]:
    """Return the entries of `text`, which may only be a language model's, and the vision side of `whole`."""
    for name, entry in text.items():
        if not name.startswith(_TEXT):
            raise CheckpointError(
                f"{short(entry.disk_name)} is no part of a language model, expected only one where the vision side "
                "comes from another checkpoint. Leave --vision-from out if this checkpoint has its own."
            )
    return text | {name: entry for name, entry in whole.items() if not name.startswith(_TEXT)}


def check_same_model(folder: Path, config: ModelConfig) -> None:
    """Refuse a language model that is not the one that `config` describes, apart from its weights."""
    text = read_text_config(folder)
    for field in fields(text):
        own, expected = getattr(text, field.name), getattr(config.text, field.name)
        if own != expected and field.name != "max_position_embeddings":
            raise CheckpointError(
                f"{folder.name}: {field.name} is {own} and {expected} in the checkpoint of the vision side, expected "
                "the same model. Pass the checkpoint that the language model was taken from as --vision-from."
            )
