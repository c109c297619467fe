"""Reading a picture's text: how large the model is shown it, how long an answer gets, and what ends one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.makers.inputs import noise_picture
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.bundle.opening import Bundle
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import UsageError
from varco_runtime.generation.transcript import Transcript
from varco_runtime.picture.packing import num_image_tokens

LONG_SIDE = 150


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = TinyOptions(text="qwen3", image_size=48, patch_size=16, max_grid=(3, 3), max_grid_tiles=4, seed=3)
    return make_tiny(tmp_path_factory.mktemp("reading") / "checkpoint", options)


@pytest.fixture(scope="module")
def varco(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Varco:
    target = tmp_path_factory.mktemp("reading") / "bundle"
    return Varco.load(export_bundle(checkpoint, target, ocr_long_side=LONG_SIDE, max_context=320), threads=1)


@pytest.fixture
def image() -> Image.Image:
    return noise_picture().resize((70, 40))


def test_ocr_sees_what_pillow_scales_up(varco: Varco, image: Image.Image) -> None:
    scaled = image.resize((LONG_SIDE, int(40 * LONG_SIDE / 70)), Image.Resampling.BICUBIC)
    read = varco.ocr(image, max_new_tokens=20)
    expected = varco.ask(scaled, "<ocr>", max_new_tokens=20, long_side=0)
    assert read.token_ids == expected.token_ids
    assert read.usage.image_tokens == expected.usage.image_tokens
    as_it_is = varco.ocr(image, max_new_tokens=20, long_side=0)
    assert as_it_is.usage.image_tokens < read.usage.image_tokens


def test_the_answer_keeps_the_users_picture_to_which_its_boxes_refer(varco: Varco, image: Image.Image) -> None:
    answer = varco.ocr(image, max_new_tokens=4)
    assert answer.size == (70, 40)
    assert answer.to_dict()["picture"] == {"width": 70, "height": 40}
    assert answer.draw().size == (70, 40)


def test_other_questions_see_the_picture_as_it_is_unless_asked(varco: Varco, image: Image.Image) -> None:
    settings = varco.bundle.manifest.image
    assert varco.ask(image, "What?", max_new_tokens=1).usage.image_tokens == num_image_tokens((40, 70), settings)
    scaled = varco.ask(image, "What?", max_new_tokens=1, long_side=100)
    assert scaled.usage.image_tokens == num_image_tokens((57, 100), settings)


def test_a_conversation_keeps_its_scaled_picture(varco: Varco, image: Image.Image) -> None:
    chat = varco.chat(image)
    first = chat.ask("<ocr>", max_new_tokens=4)
    second = chat.ask("And?", max_new_tokens=4)
    assert second.usage.image_tokens == first.usage.image_tokens == num_image_tokens((85, 150), _settings(varco))
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    with pytest.raises(UsageError, match=r"scaled once\. Give it to chat"):
        chat.ask("And?", long_side=100)
    asked = varco.chat(image, long_side=100).ask("<ocr>", max_new_tokens=1)
    assert asked.usage.image_tokens == num_image_tokens((57, 100), _settings(varco))


def test_score_sees_the_picture_that_ocr_sees(varco: Varco, image: Image.Image) -> None:
    answer = varco.ocr(image, max_new_tokens=6, repetition_penalty=1.0)
    logits = varco.score(image, "<ocr>", answer.token_ids)
    assert tuple(logits.argmax(axis=1)) == answer.token_ids
    other = varco.score(image, "<ocr>", answer.token_ids, long_side=0)
    assert not np.allclose(logits, other)


def test_ocr_has_all_the_room_there_is_and_other_questions_1024_tokens(varco: Varco, image: Image.Image) -> None:
    stream = varco.stream(image, "<ocr>", stop_loops=False)
    assert stream._request.max_new_tokens == 320 - stream.num_prompt_tokens
    assert not stream._request.stop_loops
    assert varco.stream(image, "<ocr>", max_new_tokens=7)._request.max_new_tokens == 7
    asked = varco.stream(image, "What?")._request
    assert not asked.stop_loops
    assert varco.stream(image, "<ocr>")._request.stop_loops


def test_a_loop_ends_an_answer_with_a_warning(varco: Varco) -> None:
    item = "<char>EXIT</char><bbox>0.1, 0.1, 0.2, 0.2</bbox>"
    said = Transcript(varco.session.tokenizer, (), (), stop_loops=True)
    for token in _tokens(varco, item * 5):
        said.feed(token)
        if said.finish_reason is not None:
            break
    said.finish("length")
    assert said.finish_reason == "loop"
    assert said.text == item * 3
    assert len(said.parsed.regions) == 3
    assert said.parsed.warnings == ("The answer was ended: it said 'EXIT' 3 times at one place.",)


def test_a_thought_is_text_and_no_plain_text_and_no_loop(varco: Varco) -> None:
    said = Transcript(varco.session.tokenizer, (), (), stop_loops=True)
    for token in _tokens(varco, "<think>" + "so " * 400 + "</think>\n\nTwo cats."):
        said.feed(token)
    said.finish("length")
    assert said.finish_reason == "length"
    assert said.text.startswith("<think>so so")
    assert said.parsed.plain_text == "Two cats."


@pytest.mark.parametrize("long_side", [-1, 8193, 2.5, True, "all"])
def test_a_long_side_out_of_range_is_refused(varco: Varco, image: Image.Image, long_side: object) -> None:
    with pytest.raises(UsageError, match=r"long_side=.* is out of range\. Expected pixels, at most 8192, or 0"):
        varco.ocr(image, long_side=long_side)  # type: ignore[arg-type]


def test_a_bundle_without_the_fact_scales_nothing_up(tiny_bundle: Path, varco: Varco, image: Image.Image) -> None:
    document = json.loads((tiny_bundle / "bundle.json").read_text())
    assert "ocr_long_side_px" not in document["image"]
    old = Varco.load(tiny_bundle, threads=1)
    assert old.bundle.manifest.image.ocr_long_side_px is None
    assert old.ocr(image, max_new_tokens=1).usage.image_tokens == num_image_tokens((40, 70), _settings(old))


def test_the_fact_is_read_back(varco: Varco) -> None:
    assert Bundle.open(varco.bundle.folder).manifest.image.ocr_long_side_px == LONG_SIDE


def _settings(varco: Varco) -> ImageSettings:
    return varco.bundle.manifest.image


def _tokens(varco: Varco, text: str) -> list[int]:
    """Token ids of a text, markup included, as a model would write it."""
    ids, rest, added = [], text, varco.session.tokenizer.added_tokens
    while rest:
        token = next((name for name in added if rest.startswith(name)), None)
        end = len(token) if token else min((at for name in added if (at := rest.find(name)) > 0), default=len(rest))
        ids += [added[token].id] if token else varco.session.tokenizer.encode_plain(rest[:end])
        rest = rest[end:]
    return ids
