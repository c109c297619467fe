"""Regions as JSON, COCO results and hOCR."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from varco_runtime.answer.formats import COCO_CATEGORIES, to_coco, to_hocr, to_json_regions
from varco_runtime.markup.parser import parse
from varco_runtime.markup.regions import Box, Region

SIZE = (200, 100)
ANSWER = parse(
    "<char>백범로</char><bbox>0.1, 0.2, 0.3, 0.4</bbox> <char>A&B</char><bbox>0.5, 0.1, 0.6, 0.3</bbox>\n"
    '<char>"둘"</char><bbox>0, 0.5, 0.25, 0.6<delim>0.5, 0.9, 1, 1</bbox><char>없음</char>\n'
    "<obj>a <cat></obj><bbox>0.001, 0.002, 0.999, 1</bbox><obj>sky</obj>"
)
NAMESPACE = {"x": "http://www.w3.org/1999/xhtml"}


def parsed_hocr(document: str) -> ElementTree.Element:
    return ElementTree.fromstring(document.encode())


def by_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return root.findall(f".//*[@class='{name}']", NAMESPACE)


def test_json_regions_hold_offsets_fractions_and_pixels() -> None:
    first, *_ = documents = to_json_regions(ANSWER.regions, SIZE)
    assert first == {
        "kind": "text",
        "text": "백범로",
        "start": 0,
        "end": 3,
        "boxes": [[0.1, 0.2, 0.3, 0.4]],
        "boxes_px": [[20, 20, 60, 40]],
    }
    assert json.loads(json.dumps(documents)) == documents
    assert [(d["kind"], len(d["boxes"])) for d in documents[2:]] == [
        ("text", 2),
        ("text", 0),
        ("object", 1),
        ("object", 0),
    ]


def test_json_regions_without_a_picture_have_no_pixels() -> None:
    assert [document["boxes_px"] for document in to_json_regions(ANSWER.regions, None)] == [[]] * len(ANSWER.regions)


def test_coco_results_have_one_entry_per_box() -> None:
    results = to_coco(ANSWER.regions, SIZE, 7, "sign.png")
    assert results[0] == {
        "image_id": 7,
        "category_id": 1,
        "bbox": [20.0, 20.0, 40.0, 20.0],
        "score": 1.0,
        "text": "백범로",
        "file_name": "sign.png",
        "image_size": [200, 100],
    }
    assert [result["category_id"] for result in results] == [1, 1, 1, 1, 2]
    assert [category["id"] for category in COCO_CATEGORIES] == [1, 2]
    assert "caption" not in results[0], "pycocotools would take the results for captions"


def test_coco_boxes_lie_in_the_picture() -> None:
    for x, y, width, height in (result["bbox"] for result in to_coco(ANSWER.regions, SIZE, 0)):
        assert 0 <= x <= x + width <= SIZE[0]
        assert 0 <= y <= y + height <= SIZE[1]


def test_hocr_words_on_one_line_of_the_answer_share_a_line() -> None:
    root = parsed_hocr(to_hocr(ANSWER.regions, SIZE, "sign.png", ANSWER.plain_text))
    lines = [["".join(word.itertext()) for word in by_class(line, "ocrx_word")] for line in by_class(root, "ocr_line")]
    assert lines == [["백범로", "A&B"], ['"둘"', "없음"], ['"둘"']]


def test_hocr_lines_without_the_answer_hold_one_text_each() -> None:
    root = parsed_hocr(to_hocr(ANSWER.regions, SIZE, "sign.png"))
    assert [len(by_class(line, "ocrx_word")) for line in by_class(root, "ocr_line")] == [1, 1, 1, 1, 1]


def test_hocr_boxes_are_pixels_and_enclose_their_words() -> None:
    root = parsed_hocr(to_hocr(ANSWER.regions, SIZE, "sign.png", ANSWER.plain_text))
    titles = [[element.get("title") for element in by_class(root, name)] for name in ("ocr_line", "ocrx_word")]
    assert titles[0] == ["bbox 20 10 120 40", "bbox 0 50 50 60", "bbox 100 90 200 100"]
    assert titles[1] == ["bbox 20 20 60 40", "bbox 100 10 120 30", "bbox 0 50 50 60", None, "bbox 100 90 200 100"]
    assert [area.get("title") for area in by_class(root, "ocr_carea")] == ["bbox 0 10 200 100"]


def test_hocr_objects_are_photographs() -> None:
    root = parsed_hocr(to_hocr(ANSWER.regions, SIZE, "sign.png", ANSWER.plain_text))
    assert [(photo.text, photo.get("title")) for photo in by_class(root, "ocr_photo")] == [
        ("a <cat>", "bbox 0 0 200 100")
    ]


def test_hocr_page_names_the_picture_its_size_and_the_system() -> None:
    root = parsed_hocr(to_hocr([], (640, 480), 'a "b" & <c>.png'))
    (page,) = by_class(root, "ocr_page")
    assert page.get("title") == "image \"a 'b' & <c>.png\"; bbox 0 0 640 480; ppageno 0"
    metas = {meta.get("name"): meta.get("content") for meta in root.findall(".//x:meta", NAMESPACE)}
    assert metas["ocr-system"] == "varco-edge"
    assert set(str(metas["ocr-capabilities"]).split()) >= {
        "ocr_page",
        "ocr_carea",
        "ocr_line",
        "ocrx_word",
        "ocr_photo",
    }


@pytest.mark.parametrize("text", ["\x00\x0b", "\ud800", "￾", "</span><script>", "&amp;", "{body}", "]]>", "\r\n"])
def test_hocr_stays_well_formed_whatever_the_text(text: str) -> None:
    region = Region("text", text, (Box(0, 0, 1, 1),), 0, len(text))
    root = parsed_hocr(to_hocr([region], SIZE, text, text))
    (word,) = by_class(root, "ocrx_word")
    assert len(word) == 0
    expected = re.sub("[\x00\x0b\ud800\ufffe]", "\ufffd", text).replace("\r\n", "\n")  # XML reads one line end
    assert word.text == expected


def test_hocr_holds_nothing_that_a_terminal_obeys() -> None:
    text = "a\x7f\x9b31m\u202eb\u2066"
    document = to_hocr([Region("text", text, (Box(0, 0, 1, 1),), 0, len(text))], (10, 10), f"{text}.png")
    assert not set("\x7f\x9b\u202e\u2066") & set(document)
    assert [node.text for node in by_class(parsed_hocr(document), "ocrx_word")] == [text]


def test_hocr_ids_are_unique() -> None:
    ids = re.findall(r' id="(\w+)"', to_hocr(ANSWER.regions, SIZE, "sign.png", ANSWER.plain_text))
    assert len(ids) == len(set(ids))
