"""What a bundle says about images, prompts and generation: plain facts, no code.

The exporter fills these from the checkpoint; the runtime reads them from `bundle.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from varco_runtime.bundle.bounds import OneOf, Range

MAX_LONG_SIDE_PX = 8192
"""The longest side that a picture is scaled up to: its square is within the pixels that any picture may have."""
Pixels = Annotated[int, Range(1, 1 << 16)]
Mean = Annotated[float, Range(-1e6, 1e6)]
Std = Annotated[float, Range(1e-6, 1e6)]


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How a picture becomes tiles and image tokens (LLaVA-OneVision "anyres").

    Args:
        tile_px: The side of a tile in pixels.
        patch_px: The side of a patch in pixels.
        grid_pinpoints: `(height, width)` pairs in pixels, in the order of the checkpoint (the first wins a tie).
        max_grid_tiles: The N of `anyres_max_N`: a grid of more than N tiles' worth of patches is shrunk. None: never.
        mean: What is subtracted from each channel, after `rescale_factor`.
        std: What each channel is then divided by.
        rescale_factor: What a pixel's level is multiplied by first: 1 / 255 brings it to 0..1.
        ocr_long_side_px: The length to which the long side of a smaller picture is brought before its text is read;
            None: a picture stays as it is. Bundles of before this was known do not have it.
    """

    tile_px: Annotated[int, Range(1, 1 << 12)]
    patch_px: Annotated[int, Range(1, 1 << 12)]
    grid_pinpoints: tuple[tuple[Pixels, Pixels], ...]
    max_grid_tiles: Annotated[int, Range(1, 1 << 16)] | None
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    rescale_factor: Annotated[float, Range(1e-9, 1e6)]
    ocr_long_side_px: Annotated[int, Range(1, MAX_LONG_SIDE_PX)] | None = None

    @property
    def patches_per_side(self) -> int:
        """Return the patches along one side of a tile: 27 for 384 px tiles of 14 px patches (the rest is dropped)."""
        return self.tile_px // self.patch_px

    @property
    def patches_per_tile(self) -> int:
        """Return the patches of a tile, P."""
        return self.patches_per_side**2


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How messages become token ids.

    Args:
        image_token: The placeholder text that the chat template writes once per picture.
        image_token_id: The id repeated once per image token.
        content_format: What the template takes as a message's content: `"parts"`, a list of `{"type": "image"}` and
            `{"type": "text", "text": ...}`, or `"string"`, text with `<image>\\n` in front.
        markup_tokens: The added tokens that count as tokens in a user's text too.
    """

    image_token: str
    image_token_id: Annotated[int, Range(-(1 << 22), 1 << 22)]  # LLaVA-NeXT's is -200
    content_format: Annotated[str, OneOf("parts", "string")]
    markup_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """What a checkpoint takes beside one picture. A bundle of before this was known has none of it.

    Args:
        max_images: The most pictures of a conversation that it was trained for; None: as many as fit.
        video_token: The placeholder text that stands for a video, which may be that of a picture; None: no video.
        video_token_id: The id repeated once per token of a video; None: no video.
        no_video: Why it takes no video, as the end of a sentence; None where it does.
    """

    max_images: Annotated[int, Range(1, 1 << 10)] | None
    video_token: str | None
    video_token_id: Annotated[int, Range(-(1 << 22), 1 << 22)] | None
    no_video: str | None


NO_MEDIA_FACTS = MediaSettings(1, None, None, "its export did not look for videos; export the checkpoint again")
"""One picture and no video: what holds for a bundle without such facts."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """The checkpoint's generation_config, as far as it matters with sampling off.

    Args:
        eos_token_ids: The ids that end an answer.
        repetition_penalty: What the scores of ids seen before are divided by; negative ones are multiplied by it.
        penalise_prompt: Whether it also counts the prompt's ids. transformers' generate does so when it is given
            `input_ids` (the HF classes); LLaVA-NeXT's generate hands over `inputs_embeds` alone, so only generated ids
            count there.
        suggested: The checkpoint's sampling settings, shown by `inspect` and never applied unasked.
    """

    eos_token_ids: tuple[Annotated[int, Range(0, 1 << 22)], ...]
    repetition_penalty: Annotated[float, Range(1e-6, 1e6)]
    penalise_prompt: bool
    suggested: tuple[tuple[str, Annotated[float, Range(-1e9, 1e9)]], ...] = ()
