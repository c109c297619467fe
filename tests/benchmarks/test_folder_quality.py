"""Bundles compared on a folder of pictures: what is counted, and against what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.folder_quality import GIVEN, REFERENCE, compare
from benchmarks.quality import main
from tests.conftest import export_bundle

OCR_ANSWER = "<char>EXIT</char><bbox>0.1, 0.1, 0.5, 0.3</bbox>\n<char>24</char><bbox>0.6, 0.1, 0.8, 0.3</bbox>"


@pytest.fixture(scope="module")
def int4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("quality") / "int4", decoder="int4")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two drawn pictures, without questions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def measure(checkpoint: Path, bundles: list[Path], pictures: Path, *more: str) -> dict[str, dict[str, Any]]:
    out = pictures.parent / "quality.json"
    main([*map(str, [checkpoint, *bundles, "--images", pictures, "--out", out, "--max-new-tokens", 6]), *more])
    results: dict[str, dict[str, Any]] = json.loads(out.read_text())
    return results


def test_pictures_without_questions_are_judged_by_full_precision(
    tiny_checkpoint: Path, tiny_bundle: Path, int4: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = measure(tiny_checkpoint, [tiny_bundle, int4], pictures)
    exact, same, small = results["fp32"], results[tiny_bundle.name], results["int4"]
    assert "judged_by" not in exact
    assert same["judged_by"] == small["judged_by"] == REFERENCE
    assert same["num_judged"] == 6, "two pictures, each read, described and grounded"
    assert (same["exact_answers"], same["top1_agreement"]) == (1, 1)
    assert abs(same["kl"]) < 1e-9 < small["kl"]
    assert small["kl_gain"] == pytest.approx(-small["kl"], rel=0.5)
    assert small["bytes_per_token"] < same["bytes_per_token"] == exact["bytes_per_token"]
    assert small["bundle_bytes"] < exact["bundle_bytes"]
    printed = capsys.readouterr().out
    assert "| model |" in printed
    assert "compared with the full-precision answers" in printed
    assert "grounding" not in printed.splitlines()[0], "columns of drawn pictures"


def test_given_answers_judge_every_model_the_exact_one_too(
    tiny_checkpoint: Path, int4: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"image": "0.png", "prompt": "<ocr>", "answer": OCR_ANSWER},
        {"image": "1.png", "prompt": "What is this?"},
        {"image": None, "prompt": "Hello"},
    ]
    (pictures / "calibration.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results = measure(tiny_checkpoint, [int4], pictures)
    for figures in results.values():
        assert figures["judged_by"] == GIVEN
        assert (figures["num_judged"], figures["num_words"]) == (1, 2)
        assert figures["word_accuracy"] == 0, "a random model does not read"
        assert figures["character_error_rate"] > 0
    assert results["int4"]["num_tokens"] > 6, "all three are compared with the exact model"
    assert "compared with the folder's answers" in capsys.readouterr().out


def test_a_reference_that_is_there_is_not_exported_again(
    tiny_checkpoint: Path, tiny_bundle: Path, int4: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.export", lambda *_: pytest.fail("exported"))
    results = measure(tiny_checkpoint, [int4], pictures, "--reference", str(tiny_bundle))
    assert results["fp32"]["precision"] == "fp32"


def test_bundles_of_one_name_are_told_apart_by_their_paths(
    tiny_checkpoint: Path, tiny_bundle: Path, int4: Path, pictures: Path
) -> None:
    results = measure(tiny_checkpoint, [int4, int4], pictures, "--reference", str(tiny_bundle), "--max-samples", "1")
    assert list(results) == ["fp32", "int4", str(int4)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "0.png", "prompt": "<image>" * 4000}, r"calibration.jsonl line 1: "),
        ({"image": "gone.png", "prompt": "<ocr>"}, r"calibration.jsonl line 1: "),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(
    tiny_checkpoint: Path, tiny_bundle: Path, int4: Path, pictures: Path, line: dict[str, str], message: str
) -> None:
    (pictures / "calibration.jsonl").write_text(json.dumps(line))
    with pytest.raises(SystemExit, match=message):
        measure(tiny_checkpoint, [int4], pictures, "--reference", str(tiny_bundle))
    assert not (pictures.parent / "quality.json").exists()


def test_a_reference_must_be_in_full_precision(
    tiny_checkpoint: Path, tiny_bundle: Path, int4: Path, pictures: Path
) -> None:
    with pytest.raises(SystemExit, match=r"int4 holds int4 .*, expected a reference in full precision"):
        measure(tiny_checkpoint, [tiny_bundle], pictures, "--reference", str(int4))


# --- what is counted --------------------------------------------------------------------------------------------------


def test_the_truth_itself_is_right_in_everything() -> None:
    figures = compare([("<ocr>", OCR_ANSWER, OCR_ANSWER)])
    assert figures["word_accuracy"] == figures["mean_iou"] == 1
    assert figures["character_error_rate"] == 0
    assert (figures["num_words"], figures["num_boxes"]) == (2, 2)


def test_a_word_is_right_once_and_characters_count_edits() -> None:
    said = "<char>EXIT</char><bbox>0.1, 0.1, 0.5, 0.3</bbox>\n<char>EXIT</char><bbox>0.6, 0.1, 0.8, 0.3</bbox>"
    figures = compare([("<ocr>", said, OCR_ANSWER)])
    assert figures["word_accuracy"] == 0.5
    assert figures["character_error_rate"] == pytest.approx(4 / 7), "24 became EXIT, of EXIT, a line end and 24"
    assert figures["num_boxes"] == 1


def test_a_box_is_compared_with_the_best_of_those_with_its_name() -> None:
    true = "a <obj>dog</obj><bbox>0, 0, 0.4, 0.4</bbox>"
    said = "<obj>dog</obj><bbox>0.8, 0.8, 1, 1</bbox> <obj>dog</obj><bbox>0, 0, 0.4, 0.2</bbox>"
    assert compare([("Where?", said, true)])["mean_iou"] == pytest.approx(0.5)
    assert "mean_iou" not in compare([("Where?", "<obj>cat</obj><bbox>0, 0, 0.4, 0.4</bbox>", true)])


def test_words_without_markup_count_where_reading_was_asked_for() -> None:
    assert compare([("<ocr>", "EXIT 42", "EXIT 24")])["word_accuracy"] == 0.5
    assert compare([("What is this?", "a dog", "a cat")])["num_words"] == 0
