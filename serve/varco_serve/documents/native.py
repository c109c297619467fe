"""STAND-IN, never committed."""

import json
from dataclasses import dataclass
from varco_serve.messages import AskTurn

FORMATS = ("json", "text", "coco", "hocr")


@dataclass
class NativeRequest:
    turns: tuple[AskTurn, ...]
    pictures: tuple[bytes, ...]
    options: dict
    grammar: dict | None
    ignored: tuple[str, ...]


def parse_native(task, query, content_type, body):
    return NativeRequest((AskTurn("user", (0, task)),), (body,), {}, None, tuple(query))


def formatted(document, format):
    return "application/json", json.dumps(document)
