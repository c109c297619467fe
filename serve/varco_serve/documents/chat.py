"""STAND-IN, never committed."""

from dataclasses import dataclass
from typing import Any

from varco_serve.documents.errors import RequestError
from varco_serve.messages import AskTurn


@dataclass
class Limits:
    model_name: str
    max_images: int | None


@dataclass
class ChatRequest:
    turns: tuple[AskTurn, ...]
    pictures: tuple[bytes, ...]
    options: dict
    grammar: dict | None
    n: int
    stream: bool
    include_usage: bool
    logprobs: bool
    ignored: tuple[str, ...]
    model: str


def parse_chat(document: object, limits: Any) -> ChatRequest:
    if not isinstance(document, dict) or "messages" not in document:
        raise RequestError("no messages", param="messages")
    turns = tuple(AskTurn(m["role"], (m["content"],)) for m in document["messages"])
    return ChatRequest(
        turns,
        (),
        {},
        None,
        document.get("n", 1),
        document.get("stream", False),
        False,
        False,
        (),
        document.get("model"),
    )
