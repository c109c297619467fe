"""The native routes' answers in the formats of `varco run`, made of the document that the worker sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from varco_runtime.answer.formats import to_coco, to_hocr
from varco_runtime.markup.regions import Box, Region

FORMATS = ("json", "text", "coco", "hocr")
_JSON = "application/json"


def formatted(document: Mapping[str, Any], format_: str) -> tuple[str, str]:
    """Return an answer's media type and text.

    Args:
        document: `Answer.to_dict()` of an answer about one picture.
        format_: One of `FORMATS`.
    """
    if format_ == "text":
        return "text/plain; charset=utf-8", f"{document['text']}\n"
    if format_ == "json":
        return _JSON, _json(document)
    regions = [_region(one) for one in document["regions"]]
    size = document["picture"]["width"], document["picture"]["height"]
    if format_ == "coco":
        return _JSON, _json(to_coco(regions, size, 0))
    assert format_ == "hocr", f"Bug: the format {format_} was let through."
    return "application/xhtml+xml; charset=utf-8", to_hocr(regions, size, "", document["plain_text"])


def _region(document: Mapping[str, Any]) -> Region:
    boxes = tuple(Box(*numbers) for numbers in document["boxes"])
    return Region(document["kind"], document["text"], boxes, document["start"], document["end"])


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False)
