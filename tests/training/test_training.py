"""The pictures, their ground truth and the tokenizer of `training/`, and the checkpoint it made."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from benchmarks import calibration
from training import tasks, tiles, tokenizer
from training.evaluate import Tally, evaluate, iou, is_well_formed, score_ocr
from training.lexicon import DIGITS, LATIN, SYLLABLES
from training.pictures import GRIDS, HELD_OUT, MAX_SHAPES, MAX_WORDS, Picture, draw, held_out_seeds, training_seeds
from training.stages import STAGES

CHECKPOINT = Path(__file__).parents[2] / "models" / "varco-tiny"


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [draw(seed) for seed in held_out_seeds(120)]


def test_a_seed_always_draws_the_same_picture() -> None:
    for seed in (0, 7, HELD_OUT + 3):
        first, second = draw(seed), draw(seed)
        assert first.image.tobytes() == second.image.tobytes()
        assert (first.words, first.shapes) == (second.words, second.shapes)


def test_different_seeds_draw_different_pictures(pictures: list[Picture]) -> None:
    assert len({picture.image.tobytes() for picture in pictures}) == len(pictures)


def test_held_out_pictures_never_enter_the_training_stream() -> None:
    held_out = held_out_seeds(1 << 20)
    for seed in range(50):
        for number in range(len(STAGES)):
            for rank in range(8):
                stream = 1 + (seed * 16 + number) * 8 + rank
                first = next(training_seeds(stream))
                last = first + (1 << 28) - 1  # a stream ends here
                assert first >= 0
                assert last < held_out.start
    with pytest.raises(AssertionError, match="held-out"):
        next(training_seeds(HELD_OUT >> 28))


def test_training_streams_do_not_overlap() -> None:
    firsts = [next(training_seeds(stream)) for stream in range(1, 40)]
    assert all(b - a == 1 << 28 for a, b in itertools.pairwise(firsts))


def test_a_drawn_picture_is_cut_into_the_grid_it_was_composed_for(pictures: list[Picture]) -> None:
    assert {picture.grid for picture in pictures} == set(GRIDS)
    for picture in pictures:
        assert tiles.best_grid(*picture.image.size) == picture.grid


def test_boxes_lie_within_the_picture_and_hold_their_object(pictures: list[Picture]) -> None:
    for picture in pictures:
        assert picture.words or picture.shapes
        assert len(picture.words) <= MAX_WORDS
        assert len(picture.shapes) <= MAX_SHAPES
        for item in (*picture.words, *picture.shapes):
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= 1, (picture.seed, item)
            assert 0 <= y1 < y2 <= 1, (picture.seed, item)


def test_a_word_is_drawn_inside_its_box() -> None:
    for seed in held_out_seeds(60):
        picture = draw(seed, content="words")
        pixels = np.asarray(picture.image.convert("L"), np.float32)
        height, width = pixels.shape
        for word in picture.words:
            x1, y1, x2, y2 = (round(v * size) for v, size in zip(word.box, (width, height, width, height), strict=True))
            assert np.ptp(pixels[y1:y2, x1:x2]) > 60, (seed, word)


def test_words_stand_in_reading_order_and_do_not_overlap(pictures: list[Picture]) -> None:
    for picture in pictures:
        for first, second in zip(picture.words, picture.words[1:], strict=False):
            assert iou(first.box, second.box) == 0, (picture.seed, first, second)
            assert second.box[0] > first.box[0] or second.box[1] > first.box[1]


def test_words_never_mix_letters_and_digits(pictures: list[Picture]) -> None:
    for word in (word for picture in pictures for word in picture.words):
        assert any(set(word.text) <= set(script) for script in (LATIN, DIGITS, SYLLABLES)), word


def test_every_answer_is_well_formed_markup(pictures: list[Picture]) -> None:
    for picture in pictures:
        for task in tasks.tasks(picture, random.Random(picture.seed)):
            assert is_well_formed(task.text), task.text


def test_the_ground_truth_scores_perfectly(pictures: list[Picture]) -> None:
    tally = Tally()
    for picture in pictures:
        if picture.words:
            score_ocr(picture, tasks.ocr(picture).text, tally)
    report = tally.report()
    assert report["word_accuracy"] == 1
    assert report["character_error_rate"] == 0
    assert report["mean_iou"] > 0.85


def test_wrong_and_broken_answers_score_nothing() -> None:
    report = evaluate(lambda image, prompt: "<char>X</char><bbox>0.1, 0.2", held_out_seeds(12)).report()
    assert report["word_accuracy"] == 0
    assert report["referring_accuracy"] == 0
    assert report["well_formed"] == 0


def test_every_character_and_coordinate_is_one_token() -> None:
    built = tokenizer.build()
    for text in (*LATIN, *DIGITS, *SYLLABLES, *tokenizer.SPECIAL, *(tasks.number(i / 100) for i in range(101)), ", "):
        assert len(built.encode(text).ids) == 1, text


def test_answers_survive_the_tokenizer(pictures: list[Picture]) -> None:
    built = tokenizer.build()
    for picture in pictures[:40]:
        for task in tasks.tasks(picture, random.Random(0)):
            for text in (task.question, task.text):
                assert built.decode(built.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("width", "height"), [(114, 114), (99, 84), (228, 228), (200, 120), (120, 300), (456, 400), (61, 333)]
)
def test_tiles_and_packing_equal_transformers(width: int, height: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    module = pytest.importorskip("transformers.models.llava_onevision.image_processing_pil_llava_onevision")
    from transformers import LlavaOnevisionConfig
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    from training.checkpoint import ASPECT_RATIO, PINPOINTS, PREPROCESSOR

    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    known = {key: PREPROCESSOR[key] for key in ("size", "image_grid_pinpoints", "resample", "image_mean", "image_std")}
    expected = module.LlavaOnevisionImageProcessorPil(**known)(image, return_tensors="np")["pixel_values"][0]
    own = tiles.cut(image).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(own, expected, atol=1e-5)

    features = torch.randn(len(own), tiles.PATCHES, 8, dtype=torch.float64)
    newline = torch.randn(8, dtype=torch.float64)
    vision = {"model_type": "siglip_vision_model", "image_size": tiles.TILE_PX, "patch_size": tiles.PATCH_PX}

    class Stub:
        config = LlavaOnevisionConfig(vision_config=vision, image_grid_pinpoints=PINPOINTS)

    size = torch.tensor([[height, width]])
    packed, _ = LlavaOnevisionModel.pack_image_features(Stub, [features], size, newline, ASPECT_RATIO)
    plan = tiles.plan(width, height)
    rows = torch.cat([features.reshape(-1, 8), newline[None]])
    mixed = (rows[torch.from_numpy(plan.indices)] * torch.from_numpy(plan.weights)[..., None]).sum(1)
    torch.testing.assert_close(mixed, packed[0], atol=1e-5, rtol=1e-5)


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_small_and_complete() -> None:
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 12_000_000
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    saved = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert saved.get_vocab() == tokenizer.build().get_vocab()
    assert saved.token_to_id("<image>") == config["image_token_index"]
    assert saved.token_to_id("<|im_end|>") == config["eos_token_id"]
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^license: apache-2.0$", card, re.MULTILINE)
    for figure in ("0.921 ± 0.008", "0.827 ± 0.019", "0.754", "0.577"):  # its own pictures, and what strangers measured
        assert figure in card


def test_the_checkpoint_loads_in_transformers_and_reads_a_word() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from training.evaluate import transformers_answer

    torch.manual_seed(0)
    answer = transformers_answer(CHECKPOINT)
    tally = Tally()
    for seed in held_out_seeds(3, start=500):
        picture = draw(seed, (1, 1), "words")
        score_ocr(picture, answer(picture.image, tasks.OCR), tally)
    report = tally.report()
    assert report["well_formed"] == 1
    assert report["word_accuracy"] > 0.5
    assert report["mean_iou"] > 0.6


def test_a_calibration_folder_holds_pictures_and_answers_and_replaces_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "folder"), "--pictures", "2"]
    calibration.main(arguments)
    lines = [json.loads(line) for line in (tmp_path / "folder" / "calibration.jsonl").read_text().splitlines()]
    assert {line["image"] for line in lines} == {path.name for path in (tmp_path / "folder").glob("*.png")}
    assert all(line["prompt"] and line["answer"] for line in lines)
    with pytest.raises(SystemExit):
        calibration.main(arguments)
    assert "exists already. Choose another folder or remove it." in capsys.readouterr().err
