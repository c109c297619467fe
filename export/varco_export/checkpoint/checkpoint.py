"""The weights of a checkpoint under canonical names, so that nothing after this file knows where a weight was.

`Checkpoint.open` reads the headers only and compares them with the configuration: a tensor that is missing, unknown, of
the wrong shape or dtype ends the export here, before a byte is written. Quantized linears are found here too, and stand
beside the plain tensors from then on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from varco_export.checkpoint.expected_shapes import check_head_dim, expected_shapes
from varco_export.checkpoint.provenance import read_provenance
from varco_export.checkpoint.text_model import check_same_model, join_text_model
from varco_export.config.config_reader import read_config
from varco_export.config.model_config import ModelConfig
from varco_export.precision import Stored
from varco_export.quantized.entries import QuantizedEntries
from varco_export.quantized.method import Quantization, read_quantization, refuse_unstated, stored_format
from varco_export.quantized.weights import QuantizedWeight
from varco_export.reading.names import canonical_name
from varco_export.reading.quoting import short, some
from varco_export.reading.shards import Entry, locate, read_shards
from varco_export.reading.tensor import FLOAT_DTYPES, SAFETENSORS_DTYPES, Tensor
from varco_runtime.errors import CheckpointError

# Tensors that checkpoints hold and the features or logits never depend on.
_UNUSED = (
    ("vision_tower.post_layernorm.", "the features are taken before it"),
    ("vision_tower.head.", "no pooled vector is used"),
    ("vision_tower.embeddings.position_ids", "a buffer that counts up"),
)
_INV_FREQ = ".rotary_emb.inv_freq"
_VISION_LAYERS = "vision_tower.encoder.layers."
_ADAPTER = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".base_layer.", ".modules_to_save.")
_MERGE = "Merge the adapter (merge_and_unload()), save_pretrained the result and export that."
# What stands in front of every name when a wrapper of the model was saved: who wraps so, and the next step.
_WRAPPERS = {
    "base_model.model.": ("peft", _MERGE),
    "module.": ("DataParallel", "Save the model inside of it (model.module)."),
    "_orig_mod.": ("torch.compile", "Save the model that was compiled (model._orig_mod)."),
}


@dataclass(slots=True)
class Checkpoint:
    """A checkpoint whose every tensor is known, has the shape that the configuration asks for, and is used once read.

    `tensors` holds the plain ones by name, `quantized` the quantized linears, without a `.weight` behind the name.
    `skipped` maps what is deliberately left out to the reason; `finish` complains about everything else not read.
    """

    folder: Path
    config: ModelConfig
    provenance: dict[str, Any]
    tensors: dict[str, Tensor]
    skipped: dict[str, str]
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    quantization: Quantization | None = None
    _used: set[str] = field(default_factory=set)

    @classmethod
    def open(
        cls, source: str | Path, revision: str | None = None, vision_source: str | Path | None = None
    ) -> Checkpoint:
        """Open a checkpoint: read its headers and configuration, and check that they agree.

        Args:
            source: A local folder of safetensors, or a Hugging Face repository id. With `vision_source` it holds the
                language model alone.
            revision: The repository's commit, branch or tag; None for the newest, and for a folder.
            vision_source: Where everything else comes from, configuration and tokenizer included; None for a whole
                checkpoint.

        Raises:
            CheckpointError: A file is missing or malformed, or a tensor is missing, unknown, or of the wrong shape or
                dtype.
        """
        folder, repo_id = locate(source, revision)
        shards = read_shards(folder)
        entries = _canonical_entries([entry for held in shards.values() for entry in held])
        home, home_id = folder, repo_id
        if vision_source is not None:
            home, home_id = locate(vision_source, None)
            more = read_shards(home)
            entries = join_text_model(entries, _canonical_entries([entry for held in more.values() for entry in held]))
            shards |= more
        config = read_config(home, {name: entry.shape for name, entry in entries.items()})
        check_head_dim(config, {name: entry.shape for name, entry in entries.items()})
        shapes = expected_shapes(config)
        if vision_source is not None:
            check_same_model(folder, config)
        quantization = read_quantization(folder)
        parts = QuantizedEntries(entries, shapes)
        if quantization is None:
            refuse_unstated(parts)
        weights = {} if quantization is None else quantization.take(parts)
        plain = {name: shape for name, shape in shapes.items() if name.removesuffix(".weight") not in weights}
        skipped = _find_skipped(entries, config, plain) | _zero_biases(entries, plain, weights)
        tensors = _checked(entries, plain, skipped, config)
        _check_tied_head(entries, tensors, config)
        provenance = read_provenance(folder, repo_id, list(shards), config)
        if vision_source is not None:
            provenance["vision_source"] = home_id or home.resolve().name
        return cls(home, config, provenance, tensors, skipped, weights, quantization)

    @property
    def num_parameters(self) -> int:
        """Return the parameters of the exported network: a tied head counts once, skipped tensors not at all."""
        return sum(math.prod(weight.shape) for weight in (*self.tensors.values(), *self.quantized.values()))

    @property
    def stored(self) -> Stored | None:
        """Return the formats of the quantized linears, None where there are none."""
        if self.quantization is None or not self.quantized:
            return None
        return stored_format(self.quantized, self.quantization.method)

    def has(self, name: str) -> bool:
        """Return whether there is a plain tensor of a canonical name."""
        return self._resolve(name) in self.tensors

    def tensor(self, name: str) -> Tensor:
        """Return a plain tensor and count it as used.

        Args:
            name: Its canonical name. A tied `lm_head.weight` is the embedding table.

        Raises:
            CheckpointError: There is none of that name.
        """
        found = self.tensors.get(self._resolve(name))
        if found is None:
            raise CheckpointError(
                f"{name} is missing from {self.folder.name}. Copy the shards from the original repository."
            )
        self._used.add(found.name)
        return found

    def weight(self, linear: str) -> Tensor | QuantizedWeight:
        """Return the weight of a linear, as plain or quantized as it is stored, and count it as used.

        Args:
            linear: Its canonical name, without `.weight`.

        Raises:
            CheckpointError: There is none of that name.
        """
        found = self.quantized.get(linear)
        if found is None:
            return self.tensor(f"{linear}.weight")
        self._used.add(linear)
        return found

    def skip(self, prefix: str, reason: str) -> None:
        """Leave out the tensor of this name, or all whose names begin so, and remember why."""
        for name in [name for name in self.tensors if name.startswith(prefix)]:
            self.skipped[name] = reason

    def finish(self) -> None:
        """Raise CheckpointError naming every tensor that was neither used nor skipped."""
        unused = (self.tensors.keys() | self.quantized.keys()) - self._used - self.skipped.keys()
        if unused:
            raise CheckpointError(
                f"{some(sorted(unused))} never used by the export of {self.folder.name}, expected every tensor to be. "
                "This is a fault of the exporter: please report it with the checkpoint's config.json."
            )

    def _resolve(self, name: str) -> str:
        tied = self.config.text.tie_word_embeddings and name == "lm_head.weight"
        return "language_model.embed_tokens.weight" if tied else name


# --- names, shapes and what is left out -------------------------------------------------------------------------------


def _canonical_entries(found: list[Entry]) -> dict[str, Entry]:
    """Return entries by canonical name. Unknown names are kept, and refused later together with the shapes."""
    entries: dict[str, Entry] = {}
    for entry in found:
        _refuse_wrapped(entry.disk_name)
        name = canonical_name(entry.disk_name) or entry.disk_name
        if name in entries:
            other = entries[name]
            raise CheckpointError(
                f"{short(entry.disk_name)} in {entry.path.name} and {short(other.disk_name)} in {other.path.name} "
                "are the same tensor, expected it once. Remove one of them."
            )
        entries[name] = entry
    return entries


def _refuse_wrapped(name: str) -> None:
    """Refuse a tensor that belongs to an adapter or to a wrapper of the model, by what its name tells."""
    for prefix, (wrapper, advice) in _WRAPPERS.items():
        if name.startswith(prefix):
            raise CheckpointError(
                f"{short(name)} begins with {prefix!r}, as {wrapper} names it, expected the model's own names. {advice}"
            )
    if any(part in name for part in _ADAPTER):
        raise CheckpointError(f"{short(name)} is part of an adapter, expected a model's own weights alone. {_MERGE}")


def _find_skipped(entries: dict[str, Entry], config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    skipped: dict[str, str] = {}
    run, dropped = config.vision.num_hidden_layers, config.num_dropped_vision_layers
    dropped_layers = {str(run + index) for index in range(dropped)}  # which a checkpoint may hold and which never run
    for name in entries.keys() - shapes.keys():
        for prefix, reason in _UNUSED:
            if name.startswith(prefix):
                skipped[name] = reason
        if name.startswith(_VISION_LAYERS) and name.removeprefix(_VISION_LAYERS).partition(".")[0] in dropped_layers:
            skipped[name] = "a dropped layer"
        if name.endswith(_INV_FREQ):
            skipped[name] = "computed from rope_theta"
        if name == "lm_head.weight" and config.text.tie_word_embeddings:
            skipped[name] = "tied to the embedding table"
    return skipped


def _zero_biases(
    entries: dict[str, Entry], shapes: dict[str, tuple[int, ...]], weights: dict[str, QuantizedWeight]
) -> dict[str, str]:
    """Return the biases, all zeros, that some packers give to every linear they quantize, with the reason to skip them.

    Raises `CheckpointError` for one that is not zero.
    """
    skipped: dict[str, str] = {}
    for name, weight in weights.items():
        entry = entries.get(f"{name}.bias")
        if entry is None or f"{name}.bias" in shapes:
            continue
        bias = entry.to_tensor(f"{name}.bias", weight.shape[:1], FLOAT_DTYPES, "Copy the shards again.").read()
        if bias.any():
            raise CheckpointError(
                f"{short(entry.disk_name)} is not zero, expected no bias: the model has none there. Export the "
                "checkpoint that it was made from."
            )
        skipped[f"{name}.bias"] = "a bias of zeros"
    return skipped


def _checked(
    entries: dict[str, Entry], shapes: dict[str, tuple[int, ...]], skipped: dict[str, str], config: ModelConfig
) -> dict[str, Tensor]:
    """Return the tensors that the network needs. Raises CheckpointError naming all that are missing, unknown or odd."""
    missing = [name for name in shapes if name not in entries]
    if missing == ["lm_head.weight"]:
        raise CheckpointError(
            "lm_head.weight is missing and tie_word_embeddings is false, expected an output head. Copy the shards "
            "again, or set tie_word_embeddings to true in config.json if the model was trained so."
        )
    if missing:
        raise CheckpointError(
            f"{some(missing)} missing from the weights, expected by config.json. Copy the shards from the original "
            "repository."
        )
    unknown = sorted(entries[name].disk_name for name in entries.keys() - shapes.keys() - skipped.keys())
    if unknown:
        raise CheckpointError(
            f"{some(unknown)} unknown, expected only the tensors that config.json describes. Compare config.json with "
            "the original repository; another architecture cannot be exported."
        )
    tensors: dict[str, Tensor] = {}
    wrong = [f"{entries[name].disk_name} {list(entries[name].shape)}, expected {list(shape)}"
             for name, shape in shapes.items() if entries[name].shape != shape]  # fmt: skip
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"wrong shape: {wrong[0]} by config.json{more}. Compare config.json with the original repository."
        )
    for name, shape in shapes.items():
        entry = entries[name]
        advice = "Export the checkpoint that it was made from."
        tensors[name] = entry.to_tensor(name, shape, FLOAT_DTYPES, advice)
    return tensors


def _check_tied_head(entries: dict[str, Entry], tensors: dict[str, Tensor], config: ModelConfig) -> None:
    """Check that a head on disk beside `tie_word_embeddings` equals the embedding table.

    transformers 4 drops such a head and transformers 5 would use it, so one that differs is refused.
    """
    head = entries.get("lm_head.weight")
    if head is None or not config.text.tie_word_embeddings:
        return
    table = tensors["language_model.embed_tokens.weight"]
    same = SAFETENSORS_DTYPES.get(head.dtype) == table.dtype and head.shape == table.shape
    if same:
        copy = Tensor("lm_head.weight", table.dtype, table.shape, head.path, head.offset)
        blocks = zip(copy.blocks(4 << 20), table.blocks(4 << 20), strict=True)
        same = all(bool(np.array_equal(left.view(np.uint8), right.view(np.uint8))) for left, right in blocks)
    if not same:
        raise CheckpointError(
            f"{head.disk_name} differs from the embedding table and config.json says tie_word_embeddings, expected one "
            "or the other. Set tie_word_embeddings to false if the head is a trained one, else remove it."
        )
