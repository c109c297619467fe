"""VARCO-VISION 2.0's ways against transformers: pictures scaled up, tiling presets, its template, one int8 table."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.makers.exported_weights import exported_linears
from tests.reference.oracle import Greedy, Oracle, photo, torch, user_message
from tests.reference.test_image_reference import (
    anyres,
    assert_tiles_are_identical,
    reference_tokens,
)
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.picture.packing import num_image_tokens
from varco_runtime.picture.scaling import upscaled_hw
from varco_runtime.prompt.prompter import IMAGE, Message

PATCHES = 24
NINE, SIXTEEN = (anyres(384, 16, side=side, max_grid_tiles=tiles) for side, tiles in ((6, 9), (8, 16)))
SIZES_WH = [
    *[(640, 480), (1304, 732), (384, 384), (1, 1), (336, 1008), (1920, 1080), (960, 1168), (1240, 1754)],
    *[(2480, 3508), (768, 2080), (729, 1)],
]
CLEAR_MARGIN = 0.005
LONG_SIDE = 200
TINY = TinyOptions(seed=44, text="qwen3", patch_size=16, image_size=64, tie_word_embeddings=True)
QUESTIONS = ["What is this?", "How many?", "Where?", "And now?", "Read the sign.", "이 물건은 무엇인가요?"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("ocr") / "checkpoint", TINY)


@pytest.mark.parametrize("size_wh", SIZES_WH, ids=str)
def test_tokens_of_24_by_24_patches_are_transformers_own(size_wh: tuple[int, int]) -> None:
    size_hw = size_wh[1], size_wh[0]
    for settings in (NINE, SIXTEEN):
        for shown in (size_hw, upscaled_hw(size_hw, 2304)):
            assert num_image_tokens(shown, settings) == reference_tokens(shown, settings)


@pytest.mark.parametrize("settings", [NINE, SIXTEEN], ids=["9", "16"])
def test_tiles_of_the_presets_are_transformers_own(settings: Any) -> None:
    assert_tiles_are_identical((732, 1304), settings)


def clear_answer(oracle: Oracle, image: Image.Image, questions: list[str], tokens: int) -> tuple[str, Greedy]:
    """The first question with an answer without a close call."""
    for question in questions:
        reference = oracle.greedy(user_message(question, image=True), image, tokens)
        if reference.smallest_margin >= CLEAR_MARGIN:
            return question, reference
    raise AssertionError("no question has an answer without a close call: add questions or change the seed")


@pytest.mark.parametrize("seed", [1, 2])
def test_ocr_equals_transformers_on_the_picture_that_pillow_scales_up(
    checkpoint: Path, tmp_path: Path, seed: int
) -> None:
    varco = Varco.load(export_bundle(checkpoint, tmp_path / "bundle", ocr_long_side=LONG_SIDE), threads=1)
    image = photo(90, 61, seed)
    scaled = image.resize((LONG_SIDE, int(61 * LONG_SIDE / 90)), Image.Resampling.BICUBIC)
    oracle = Oracle(checkpoint)
    _, reference = clear_answer(oracle, scaled, ["<ocr>"], 24)
    answer = varco.ocr(image, max_new_tokens=24)
    assert answer.usage.prompt_tokens == len(reference.prompt_ids)
    assert list(answer.token_ids) == reference.token_ids
    assert answer.size == (90, 61)


@pytest.mark.parametrize(("tiles", "side"), [(9, 6), (16, 8)])
def test_a_preset_equals_transformers_with_that_processor(
    checkpoint: Path, tmp_path: Path, tiles: int, side: int
) -> None:
    own = make_tiny(tmp_path / "own", replace(TINY, max_grid=(side, side), max_grid_tiles=tiles))
    varco = Varco.load(export_bundle(checkpoint, tmp_path / "bundle", max_grid_tiles=tiles), threads=1)
    image = photo(500, 380)
    question, reference = clear_answer(Oracle(own), image, QUESTIONS, 16)
    answer = varco.ask(image, question, max_new_tokens=16)
    assert answer.usage.prompt_tokens == len(reference.prompt_ids)
    assert list(answer.token_ids) == reference.token_ids


@pytest.mark.parametrize("system", [None, "You read receipts."])
def test_the_system_sentence_of_2_0_stands_in_every_prompt(
    checkpoint: Path, tmp_path: Path, system: str | None
) -> None:
    """In front of the template's own system message, or of the user's."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    path = folder / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    own = "You look at pictures"
    assert own in template
    sentence = "You are VARCO-VISION, created by NC AI. "
    template = template.replace(own, sentence + own).replace(
        "{%- for message in messages -%}",
        "{%- if messages[0]['role'] == 'system' -%}{{- '<|im_start|>system\\n" + sentence + "' -}}"
        "{%- if messages[0]['content'] is string -%}{{- messages[0]['content'] -}}"
        "{%- else -%}{{- messages[0]['content'][0]['text'] -}}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- for message in messages if message['role'] != 'system' -%}",
    )
    path.write_text(json.dumps({"chat_template": template}))
    varco = Varco.load(export_bundle(folder, tmp_path / "bundle"), threads=1)
    asked = [] if system is None else [Message("system", (system,))]
    ids = varco.session.prompter.encode([*asked, Message("user", (IMAGE, "What?"))], 5)
    turns = [] if system is None else [{"role": "system", "content": system}]
    oracle = Oracle(folder)
    text = oracle.tokenizer.apply_chat_template(
        [*turns, *user_message("What?", image=True)],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert text.startswith(f"<|im_start|>system\n{sentence}{system or own}")
    assert ids == list(oracle.tokenizer(text.replace("<image>", "<image>" * 5))["input_ids"])


@pytest.mark.parametrize("decoder", ["int8", "int4"])
def test_one_table_equals_transformers_with_the_dequantised_table_in_both_places(
    checkpoint: Path, tmp_path: Path, decoder: str
) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "bundle", decoder=decoder, embedding="shared")
    weights = exported_linears(bundle, TINY)
    oracle = Oracle(checkpoint)
    table = oracle.model.get_input_embeddings().weight
    assert table is oracle.model.lm_head.weight, "the reference is tied"
    own = dict(oracle.model.named_parameters())
    with torch.no_grad():
        rows = np.array(weights.pop("lm_head"), np.float32)
        assert not np.array_equal(table.numpy(), rows)
        table.copy_(torch.from_numpy(rows))
        for name, weight in weights.items():
            own[f"model.{name}.weight"].copy_(torch.from_numpy(np.array(weight, np.float32)))
    image = photo(100, 37)
    question, reference = clear_answer(oracle, image, QUESTIONS, 24)
    varco = Varco.load(bundle, threads=1)
    answer = varco.ask(image, question, max_new_tokens=24, repetition_penalty=1.0)
    assert list(answer.token_ids) == reference.token_ids
    logits = varco.score(image, question, answer.token_ids)
    assert np.abs(logits - reference.logits).max() < 1e-4 * np.abs(reference.logits).max()
