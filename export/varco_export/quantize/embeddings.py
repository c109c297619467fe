"""Samples to `inputs_embeds`: token rows, with the picture's tokens where the ids say image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize.calibration import EncodedSample
from varco_export.quantize.pictures import PictureEncoder
from varco_runtime.dtypes import Array


def embed_samples(
    checkpoint: Checkpoint, samples: Iterable[EncodedSample], image_token_id: int, device: torch.device
) -> Iterator[Array]:
    """Yield the hidden states before the first layer, fp32 `[S, D]`, sample by sample.

    A picture that several samples in a row ask about is encoded once.
    """
    encoder: PictureEncoder | None = None
    rows = _Rows(checkpoint)
    digest, tokens = None, None
    for sample in samples:
        ids = np.array(sample.ids)
        is_text = ids != image_token_id
        embeds = np.empty((len(ids), checkpoint.config.text.hidden_size), np.float32)
        embeds[is_text] = rows.of(ids[is_text])
        if sample.digest is not None and sample.digest != digest:
            encoder = encoder or PictureEncoder(checkpoint, device)
            picture = sample.picture()
            assert picture is not None, "Bug: a digest without a picture"
            digest, tokens = sample.digest, encoder.encode(picture)
        if sample.digest is not None:
            embeds[~is_text] = tokens
        yield embeds


class _Rows:
    """Rows of the embedding table, each read once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._table = checkpoint.tensor("language_model.embed_tokens.weight")
        self._rows: dict[int, Array] = {}

    def of(self, ids: NDArray[np.int_]) -> Array:
        """Return the rows of some token ids, `[n, D]` in fp32."""
        for id_ in set(ids.tolist()) - self._rows.keys():
            self._rows[id_] = self._table.rows(id_, id_ + 1)[0].astype(np.float32)
        return np.stack([self._rows[id_] for id_ in ids.tolist()])
