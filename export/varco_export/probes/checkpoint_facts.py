"""What a checkpoint says about pictures, prompts, answers and norms, for comparison with what its bundle says.

`varco_runtime/probes/facts.py` finds the same facts in a bundle, under the same names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import prompts_of
from varco_export.config.tiling import MAX_GRID_TILES, preset_tiling
from varco_export.writing.graph import DTYPES
from varco_runtime.bundle.graph_nodes import epsilons
from varco_runtime.bundle.manifest import Embedding, Manifest
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.probes.facts import settings_facts, text_facts


def checkpoint_facts(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Read the facts anew from the checkpoint.

    Args:
        checkpoint: What the bundle was made of.
        folder: The bundle's graphs, of which only is asked whether they have an epsilon at all.
        manifest: The bundle's; where and in which type its token rows lie.

    Raises:
        CheckpointError: A file of the checkpoint is missing or malformed.
    """
    config = checkpoint.config
    assets = prompts_of(checkpoint.folder, config)
    facts = settings_facts(_tiling(config.image, manifest.image), assets.prompt, assets.generation, assets.media)
    facts |= text_facts(assets.tokenizer_json, assets.chat_template)
    if manifest.embedding is not None:
        facts["embedding"] = _rows_sha256(checkpoint, manifest.embedding)
    norms = (manifest.vision, config.vision.layer_norm_eps), (manifest.decoder, config.text.rms_norm_eps)
    for component, epsilon in norms:
        if epsilons((folder / component.file).read_bytes()):
            facts[f"{component.file}: epsilon"] = [float(np.float32(epsilon))]
    return facts


def _tiling(own: ImageSettings, exported: ImageSettings) -> ImageSettings:
    """Return the checkpoint's own tiling, or the preset that the bundle was exported with in its place."""
    preset = exported.max_grid_tiles
    chosen = preset in MAX_GRID_TILES and preset != own.max_grid_tiles
    return preset_tiling(own, preset) if chosen and preset is not None else own


def _rows_sha256(checkpoint: Checkpoint, embedding: Embedding) -> str:
    """Of the token rows, unless they are the head's, and the newline behind them, as a bundle holds them."""
    digest = hashlib.sha256()
    rows = ["language_model.embed_tokens.weight"] if embedding.head_rows is None else []
    for name in (*rows, "image_newline"):
        for block in checkpoint.tensor(name).blocks():
            digest.update(np.ascontiguousarray(block, dtype=DTYPES[embedding.dtype][1]).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
