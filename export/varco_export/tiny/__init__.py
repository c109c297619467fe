"""A checkpoint of random weights in the real architecture, in either format, made without torch.

    python -m varco_export.tiny OUT --seed 1 --layers 3 --heads 6 --kv-heads 2 --format llava-next

Every tensor is drawn from a generator keyed by the seed and its canonical name, so that the two formats of one seed
hold the same weights. With the usual std of 0.02 a random model repeats one token; here each layer's output is about as
large as what flows into it (`Scales`), so that greedy text wanders and depends on the picture. `--shape 14b --sparse`
makes a file of the real shapes whose zeros take no disk.
"""

from __future__ import annotations

from varco_export.tiny.maker import make_tiny
from varco_export.tiny.options import SHAPES, Scales, TinyOptions
from varco_export.tiny.tokenizer import CHAT_TEMPLATE, token_ids

__all__ = ["CHAT_TEMPLATE", "SHAPES", "Scales", "TinyOptions", "make_tiny", "token_ids"]
