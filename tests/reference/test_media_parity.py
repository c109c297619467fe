"""Several pictures and videos give transformers' image tokens, ids and greedy tokens (eager, fp32).

transformers' video processor needs torchvision, so its model is given `pixel_values` made of our tiles, whose hashes
`tests/runtime/picture/test_media.py` holds against the published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.makers.media import drawn_clip
from tests.reference.oracle import Oracle, photo, relative_error, torch
from varco_export.tiny import TinyOptions, make_tiny, token_ids
from varco_runtime import Varco
from varco_runtime.conversation import Turn, user_turn
from varco_runtime.media_encoder import VisionTimes
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.media import Clip, Medium
from varco_runtime.picture.tiles import media_tiles, normalize
from varco_runtime.session import Prompt

NUM_TOKENS = 64
MARGIN = 1e-3
SIZES = {"small": (130, 90), "dot": (1, 1), "tall": (336, 1008), "large": (4000, 3000), "wide": (200, 50)}
ROWS: dict[str, tuple[list[str], list[int]]] = {
    "one picture": (["small"], []),
    "two pictures": (["small", "tall"], []),
    "five pictures": (["small", "dot", "tall", "large", "wide"], []),
    "a frame": ([], [1]),
    "a video": ([], [8]),
    "a long video": ([], [32]),
    "a picture and a video": (["small"], [8]),
    "two pictures and a video": (["small", "wide"], [8]),
    "two videos": ([], [8, 8]),
}
QUICK = {"two pictures", "a video", "a picture and a video"}


class MediaOracle(Oracle):
    """transformers on several pictures and videos."""

    def inputs(self, ids: list[int], media: Sequence[Medium], varco: Varco) -> dict[str, Any]:
        """What its `generate` takes, of our tiles."""
        settings = varco.bundle.manifest.image
        pixels = [torch.from_numpy(normalize(media_tiles([medium], settings), settings)) for medium in media]
        shown = list(zip(media, pixels, strict=True))
        pictures = [(medium, tiles) for medium, tiles in shown if isinstance(medium.source, Picture)]
        videos = [tiles for medium, tiles in shown if isinstance(medium.source, Clip)]
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if pictures:
            inputs["pixel_values"] = torch.stack([tiles for _, tiles in pictures])
            inputs["image_sizes"] = torch.tensor([medium.source.size_hw for medium, _ in pictures])  # type: ignore[union-attr]
            inputs["batch_num_images"] = torch.tensor([len(pictures)])
            inputs["vision_aspect_ratio"] = self.model.config.vision_aspect_ratio
        if videos:
            inputs["pixel_values_videos"] = torch.stack(videos)
        return inputs

    def packed(self, inputs: dict[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Image tokens `[N, D]` of the pictures, and of the videos."""
        pictures = videos = None
        with torch.no_grad():
            if "pixel_values" in inputs:
                names = ("pixel_values", "image_sizes", "batch_num_images", "vision_aspect_ratio")
                found = self.model.get_image_features(**{name: inputs[name] for name in names})
                pictures = torch.cat(list(getattr(found, "pooler_output", found))).numpy()
            if "pixel_values_videos" in inputs:
                found = self.model.get_video_features(inputs["pixel_values_videos"])
                found = getattr(found, "pooler_output", found)
                newline = self.model.model.image_newline[None, None].repeat(len(found), 1, 1)
                videos = torch.cat([found, newline], 1).flatten(0, 1).numpy()
        return pictures, videos

    def written(self, turns: Sequence[Turn], prompt: Prompt) -> list[int]:
        """The ids of transformers' template and tokenizer, each placeholder as often as its medium has tokens."""
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "video" if isinstance(part, Clip) else "image"}
                    for part in turn.parts
                ],
            }
            for turn in turns
        ]
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, add_generation_prompt=True, tokenize=False
        )
        for token, kind in (("<image>", Picture), ("<video>", Clip)):
            counts = [_num_tokens(medium, prompt) for medium in prompt.media if isinstance(medium.source, kind)]
            pieces = text.split(token)
            assert len(pieces) == len(counts) + 1
            text = pieces[0] + "".join(token * count + piece for count, piece in zip(counts, pieces[1:], strict=True))
        return list(self.tokenizer(text)["input_ids"])


def _num_tokens(medium: Medium, prompt: Prompt) -> int:
    return sum(place.span.end - place.span.start for place in prompt.places if place.medium.key == medium.key)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("media") / "hf", TinyOptions(seed=5, video=True))


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> MediaOracle:
    return MediaOracle(checkpoint)


@pytest.fixture(scope="module", params=["hf", "llava-next"])
def varco(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Varco:
    """The model of `checkpoint` from either format, which hold the same weights."""
    folder = checkpoint
    if request.param != "hf":
        options = TinyOptions(seed=5, video=True, format=request.param)
        folder = make_tiny(tmp_path_factory.mktemp("media") / request.param, options)
    return Varco.load(export_bundle(folder, tmp_path_factory.mktemp("media") / "bundle"), threads=1)


def asked(row: str, varco: Varco) -> list[Any]:
    pictures, videos = ROWS[row]
    tile_px = varco.bundle.manifest.image.tile_px
    return [
        *(photo(*SIZES[name], seed=seed) for seed, name in enumerate(pictures)),
        *(drawn_clip(num_frames, tile_px, seed) for seed, num_frames in enumerate(videos)),
    ]


rows = pytest.mark.parametrize(
    "row", [pytest.param(row, marks=() if row in QUICK else pytest.mark.full) for row in ROWS]
)


@rows
def test_image_tokens_are_transformers(row: str, varco: Varco, oracle: MediaOracle) -> None:
    turn = user_turn(asked(row, varco), "What is this?", varco.bundle.manifest)
    prompt = varco.session.prompt([turn])
    inputs = oracle.inputs([0], prompt.media, varco)
    wanted = np.concatenate([found for found in oracle.packed(inputs) if found is not None])
    got, firsts = varco.session.encoder.tokens(prompt.places, VisionTimes())
    order = [np.arange(firsts[span.key], firsts[span.key] + span.end - span.start) for span in prompt.spans]
    assert relative_error(got[np.concatenate(order)], wanted) < 1e-4


@rows
def test_answers_are_transformers(row: str, varco: Varco, oracle: MediaOracle) -> None:
    turn = user_turn(asked(row, varco), "What is this?", varco.bundle.manifest)
    prompt = varco.session.prompt([turn])
    ids = list(prompt.ids)
    if varco.bundle.manifest.prompt.image_token_id >= 0:
        assert ids == oracle.written([turn], prompt)
    for place in prompt.places:  # LLaVA-NeXT has one placeholder for both, and no id for it
        name = "<video>" if isinstance(place.medium.source, Clip) else "<image>"
        span = place.span
        ids[span.start : span.end] = [token_ids(video=True)[name]] * (span.end - span.start)
    reference = oracle.continued(oracle.inputs(ids, prompt.media, varco), NUM_TOKENS)
    answer = varco.ask(asked(row, varco), "What is this?", max_new_tokens=NUM_TOKENS)
    assert reference.smallest_margin > MARGIN
    assert answer.token_ids == tuple(reference.token_ids)


@pytest.mark.full
def test_a_grid_for_each_is_transformers_flat_list(varco: Varco, oracle: MediaOracle) -> None:
    """Which counts every picture as a conversation of one."""
    pictures = [photo(*SIZES[name], seed=seed) for seed, name in enumerate(("small", "tall"))]
    prompt = varco.session.prompt([user_turn(pictures, "What is this?", varco.bundle.manifest)], "grid")
    wanted = np.concatenate([oracle.image_tokens(picture) for picture in pictures])
    got, _ = varco.session.encoder.tokens(prompt.places, VisionTimes())
    assert relative_error(got, wanted) < 1e-4


def test_a_second_picture_in_a_later_turn_gives_transformers_answer(checkpoint: Path, oracle: MediaOracle) -> None:
    varco = Varco.load(export_bundle(checkpoint, checkpoint.with_name("chat-bundle")), threads=1)
    first, second = photo(*SIZES["small"]), photo(*SIZES["wide"], seed=1)
    chat = varco.chat(first)
    chat.ask("What is this?", max_new_tokens=8)
    answer = chat.ask("And this?", image=second, max_new_tokens=NUM_TOKENS)
    turns = chat._turns[:3]
    prompt = varco.session.prompt(turns)
    assert prompt.ids == oracle.written(turns, prompt)
    reference = oracle.continued(oracle.inputs(prompt.ids, prompt.media, varco), NUM_TOKENS)
    assert reference.smallest_margin > MARGIN
    assert answer.token_ids == tuple(reference.token_ids)
