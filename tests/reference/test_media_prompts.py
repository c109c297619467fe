"""Prompts of several pictures and videos with the real vocabulary, by published counts and ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.makers.media import drawn_clip
from tests.runtime.picture.test_packing import CARD, noise
from varco_export.config.prompts import PromptAssets, load_prompts
from varco_runtime.bundle.settings import MediaSettings
from varco_runtime.conversation import Part, Turn
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.media import tilings
from varco_runtime.picture.packing import num_medium_tokens
from varco_runtime.prompt.prompter import Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

MEDIUM = "{% for content in message['content'] | selectattr('type', 'equalto', 'KIND') %}{{ '<KIND>\n' }}{% endfor %}"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    + MEDIUM.replace("KIND", "image")
    + MEDIUM.replace("KIND", "video")
    + "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""llava-hf's, with the line breaks of its first version."""


@dataclass(frozen=True)
class Checkpoint:
    """The prompt files of a checkpoint, as its export would read them."""

    assets: PromptAssets

    @cached_property
    def prompter(self) -> Prompter:
        assets = self.assets
        return Prompter(assets.chat_template, assets.prompt, Tokenizer.from_json(assets.tokenizer_json), assets.media)

    def ids(self, turns: Sequence[Turn], tiling: str = "auto") -> list[int]:
        media = tilings([medium for turn in turns for medium in turn.media], tiling)
        counts = [num_medium_tokens(medium, CARD) for medium in media]
        return self.prompter.encode_media([turn.message for turn in turns], counts).ids


def varco_folder(shared: Path) -> Path:
    folder = shared / "models" / "varco-vision-14b-hf"
    if not folder.is_dir():
        pytest.skip("the real tokenizer is not here")
    return folder


@pytest.fixture(scope="module")
def varco(shared: Path) -> Checkpoint:
    folder = varco_folder(shared)
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    return Checkpoint(load_prompts(folder, family="hf", image_token_id=151675, eos_token_id=151645, raw=raw))


@pytest.fixture(scope="module")
def llava_hf(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Qwen2's words with llava-hf's tokens and template."""
    folder, target = varco_folder(shared), tmp_path_factory.mktemp("llava-hf")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, target)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
    tokens = {str(151643 + index): {"content": name, "special": True} for index, name in enumerate(names)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": tokens, "eos_token": "<|im_end|>"}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    (target / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    raw = {"video_token_index": 151647, "text_config": {"model_type": "qwen2"}}
    return Checkpoint(load_prompts(target, family="hf", image_token_id=151646, eos_token_id=151645, raw=raw))


CATS, OCR = load_picture(noise(480, 640)), load_picture(noise(732, 1304))
TALL = load_picture(noise(1008, 336))


def user(*parts: Part) -> Turn:
    return Turn("user", parts)


def video(num_frames: int, seed: int = 0) -> Part:
    return drawn_clip(num_frames, CARD.tile_px, seed)


def test_what_each_takes_is_found(varco: Checkpoint, llava_hf: Checkpoint) -> None:
    no_video = "its tokenizer has no id for <video>, and its config.json says 151647"
    assert varco.assets.media == MediaSettings(1, None, None, no_video)
    assert llava_hf.assets.media == MediaSettings(None, "<video>", 151647, None)


@pytest.mark.parametrize(
    ("turns", "tiling", "num_visual", "num_ids"),
    [
        ([user(CATS, "Describe this image.")], "auto", 2929, 2953),
        ([user(CATS, OCR, "Compare the two images.")], "auto", 1460, 1486),
        ([user(CATS, OCR, "Compare the two images.")], "grid", 8896, 8922),
        ([user(CATS, OCR, TALL, "Compare the images.")], "auto", 2190, 2216),
        ([user(CATS, "What is this?"), Turn("assistant", ("cats",)), user(OCR, "And this?")], "auto", 1460, 1499),
    ],
)
def test_varcos_prompts_have_their_known_lengths(
    varco: Checkpoint, turns: list[Turn], tiling: str, num_visual: int, num_ids: int
) -> None:
    ids = varco.ids(turns, tiling)
    assert (ids.count(151675), len(ids)) == (num_visual, num_ids)


def test_two_pictures_have_their_known_ids(varco: Checkpoint) -> None:
    before = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
    behind = [198, 27374, 279, 1378, 5335, 13, 151645, 198, 151644, 77091, 198]
    expected = [*before, *[151675] * 730, 198, *[151675] * 730, *behind]
    assert varco.ids([user(CATS, OCR, "Compare the two images.")]) == expected
    mixed = user("Compare ", OCR, "the two ", CATS, "images.")
    assert varco.ids([mixed]) == expected  # the template puts pictures first and joins the texts


@pytest.mark.parametrize(
    ("parts", "num_visual", "num_ids"),
    [
        ((video(1), "Describe the video."), 197, 210),
        ((video(8), "Describe the video."), 1569, 1582),
        ((video(32), "Describe the video."), 6273, 6286),
        ((CATS, video(8), "Compare."), 4498, 4510),
        ((CATS, OCR, video(8), "Compare."), 3029, 3042),
        ((video(8), video(8, 1), "Compare."), 3138, 3150),
    ],
    ids=["1", "8", "32", "picture and 8", "two pictures and 8", "two of 8"],
)
def test_llava_hfs_prompts_have_their_known_lengths(
    llava_hf: Checkpoint, parts: tuple[Part, ...], num_visual: int, num_ids: int
) -> None:
    ids = llava_hf.ids([user(*parts)])
    assert (ids.count(151646) + ids.count(151647), len(ids)) == (num_visual, num_ids)


def test_a_video_has_its_known_ids(llava_hf: Checkpoint) -> None:
    behind = [198, 74785, 279, 2766, 13, 151645, 198, 151644, 77091, 198]
    assert llava_hf.ids([user(video(8), "Describe the video.")]) == [151644, 872, 198, *[151647] * 1569, *behind]


def test_features_follow_the_placeholders(llava_hf: Checkpoint) -> None:
    """A video before a picture is written behind it."""
    turn = user(video(2), "Compare.", CATS)
    encoded = llava_hf.prompter.encode_media([turn.message], [393, 2929])
    assert encoded.starts == (3 + 2929 + 1, 3)
