"""Regions for other tools: JSON, COCO results and hOCR. `size` is the (width, height) of the original picture.

Pixels are those of the upright picture: where EXIF turns it, width and height are those after the turn.

VARCO gives no confidence: COCO results carry the score 1.0 because the format asks for one, and hOCR carries none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Any

from varco_runtime.markup.regions import Kind, Region

Size = tuple[int, int]
PixelBox = tuple[int, int, int, int]

COCO_CATEGORIES: tuple[dict[str, Any], ...] = ({"id": 1, "name": "text"}, {"id": 2, "name": "object"})
_CATEGORY_IDS: dict[Kind, int] = {"text": 1, "object": 2}
# DEL, C1 controls and bidirectional overrides: text to XML, orders to a terminal.
_OBEYED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_json_regions(regions: Iterable[Region], size: Size | None) -> list[dict[str, Any]]:
    """Return one document per region: `boxes` are fractions of the picture, `boxes_px` whole pixels (none without a
    size)."""
    return [
        {
            "kind": region.kind,
            "text": region.text,
            "start": region.start,
            "end": region.end,
            "boxes": [[box.x1, box.y1, box.x2, box.y2] for box in region.boxes],
            "boxes_px": [list(box) for box in region.pixels(*size)] if size else [],
        }
        for region in regions
    ]


def to_coco(regions: Iterable[Region], size: Size, image_id: int | str, file_name: str = "") -> list[dict[str, Any]]:
    """Return COCO detection results, one per box: `bbox` is [x, y, width, height] in pixels, to a hundredth.

    `category_id` is of `COCO_CATEGORIES`; `text`, `file_name` and `image_size`, [width, height], are additions that
    COCO's tools ignore. Layout: https://cocodataset.org/#format-results. A region without a box has no result.

    Args:
        regions: Texts and objects.
        size: Width and height of the picture in pixels.
        image_id: The picture's id in the data set.
        file_name: Its name.
    """
    width, height = size
    return [
        {
            "image_id": image_id,
            "category_id": _CATEGORY_IDS[region.kind],
            "bbox": [
                round(pixels, 2)
                for pixels in (box.x1 * width, box.y1 * height, (box.x2 - box.x1) * width, (box.y2 - box.y1) * height)
            ],
            "score": 1.0,
            "text": region.text,
            "file_name": file_name,
            "image_size": [width, height],
        }
        for region in regions
        for box in region.boxes
    ]


def to_hocr(regions: Sequence[Region], size: Size, title: str, plain_text: str = "") -> str:
    """Return an hOCR 1.2 document (XHTML) with the texts as lines of words and the objects as photographs.

    Texts on one line of `plain_text` share a line; without it each is a line of its own. A text in several places is a
    word of its line in the first and a line of its own in each other. Texts without a box have no place and no `bbox`.
    Layout: https://kba.github.io/hocr-spec/1.2/.

    Args:
        regions: Texts and objects, in the order of the text.
        size: Width and height of the picture in pixels.
        title: What the document calls the picture.
        plain_text: The answer that the regions' offsets are of.
    """
    lines = _lines(regions, size, plain_text)
    photos = [(region.text, box) for region in regions if region.kind == "object" for box in region.pixels(*size)]
    body = [_page(size, title)]
    if lines:
        everything = [box for line in lines for _, box in line]
        body += [f'   <div class="ocr_carea" id="block_1"{_bbox(everything)}>']
        num_words = 0
        for index, line in enumerate(lines, start=1):
            words = []
            for text, box in line:
                num_words += 1
                words.append(f'<span class="ocrx_word" id="word_{num_words}"{_bbox([box])}>{_xml(text)}</span>')
            boxes = [box for _, box in line]
            body.append(f'    <span class="ocr_line" id="line_{index}"{_bbox(boxes)}>{" ".join(words)}</span>')
        body.append("   </div>")
    for index, (text, box) in enumerate(photos, start=1):
        body.append(f'   <div class="ocr_photo" id="photo_{index}"{_bbox([box])}>{_xml(text)}</div>')
    return _DOCUMENT.format(title=_xml(title), body="\n".join([*body, "  </div>"]))


Word = tuple[str, PixelBox | None]


def _lines(regions: Sequence[Region], size: Size, plain_text: str) -> list[list[Word]]:
    texts = [region for region in regions if region.kind == "text"]
    numbered: list[tuple[int, Region]] = []
    done = num_newlines = 0
    for index, region in enumerate(texts):
        num_newlines += plain_text.count("\n", done, region.start)
        done = region.start
        numbered.append((num_newlines if plain_text else index, region))
    lines: list[list[Word]] = []
    for _, group in groupby(numbered, key=lambda pair: pair[0]):
        members = [(region.text, region.pixels(*size)) for _, region in group]
        lines.append([(text, boxes[0] if boxes else None) for text, boxes in members])
        lines += [[(text, box)] for text, boxes in members for box in boxes[1:]]
    return lines


def _bbox(boxes: Iterable[PixelBox | None]) -> str:
    """Return the `title` attribute of the rectangle around all boxes, or nothing without any."""
    known = [box for box in boxes if box is not None]
    if not known:
        return ""
    x1, y1, x2, y2 = zip(*known, strict=True)
    return f' title="bbox {min(x1)} {min(y1)} {max(x2)} {max(y2)}"'


def _page(size: Size, title: str) -> str:
    name = _xml(title.replace('"', "'"))  # the property itself is quoted, and hOCR has no escape within quotes
    properties = f"image &quot;{name}&quot;; bbox 0 0 {size[0]} {size[1]}; ppageno 0"
    return f'  <div class="ocr_page" id="page_1" title="{properties}">'


def _xml(text: str) -> str:
    """Escape for XHTML, also what a terminal obeys; characters that XML 1.0 forbids become U+FFFD."""
    return _OBEYED.sub(lambda obeyed: f"&#x{ord(obeyed[0]):x};", escape(_NOT_XML.sub("\ufffd", text)))


_DOCUMENT = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
 <head>
  <title>{title}</title>
  <meta http-equiv="Content-Type" content="text/html; charset=utf-8" />
  <meta name="ocr-system" content="varco-edge" />
  <meta name="ocr-capabilities" content="ocr_page ocr_carea ocr_line ocrx_word ocr_photo" />
 </head>
 <body>
{body}
 </body>
</html>
"""
