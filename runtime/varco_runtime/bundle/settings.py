"""What a bundle says about images, prompts and generation: plain facts, no code.

The exporter fills these from the checkpoint; the runtime reads them from `bundle.json`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How a picture becomes tiles and image tokens (LLaVA-OneVision "anyres").

    `grid_pinpoints` are `(height, width)` pairs in pixels, in the order of the checkpoint (the first wins a tie).
    `max_grid_tiles` is the N of `anyres_max_N`: a grid of more than N tiles' worth of patches is shrunk. None: never.
    """

    tile_px: int
    patch_px: int
    grid_pinpoints: tuple[tuple[int, int], ...]
    max_grid_tiles: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile: 27 for 384 px tiles of 14 px patches (the remainder is dropped)."""
        return self.tile_px // self.patch_px

    @property
    def patches_per_tile(self) -> int:
        return self.patches_per_side**2


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How messages become token ids.

    `image_token` is the placeholder text that the chat template writes once per picture; `image_token_id` is the id
    repeated once per image token. `content_format` says what the template takes as a message's content: `"parts"`, a
    list of `{"type": "image"}` and `{"type": "text", "text": ...}`, or `"string"`, text with `<image>\\n` in front.
    `markup_tokens` are the added tokens that a user's text may contain and that are honoured there.
    """

    image_token: str
    image_token_id: int
    content_format: str
    markup_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """The checkpoint's generation_config, as far as it matters with sampling off.

    `penalise_prompt`: whether `repetition_penalty` also counts the prompt's ids. transformers' generate does so when it
    is given `input_ids` (the HF classes); LLaVA-NeXT's generate hands over `inputs_embeds` alone, so only generated
    ids count there. `suggested` keeps the checkpoint's sampling settings, shown by `inspect` and never applied unasked.
    """

    eos_token_ids: tuple[int, ...]
    repetition_penalty: float
    penalise_prompt: bool
    suggested: tuple[tuple[str, float], ...] = ()
