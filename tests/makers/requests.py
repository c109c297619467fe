"""Requests as clients write them, for tests of the server."""

from __future__ import annotations

import base64
from typing import Any

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC")
"""A PNG file of one red pixel."""


def data_url(data: bytes = PIXEL, media_type: str = "image/png") -> str:
    """A file as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def picture_part(url: str | None = None, **extra: Any) -> dict[str, Any]:
    """A picture among a message's parts."""
    return {"type": "image_url", "image_url": {"url": data_url() if url is None else url, **extra}}


def text_part(text: str) -> dict[str, Any]:
    """A text among a message's parts."""
    return {"type": "text", "text": text}


def user(*content: Any) -> dict[str, Any]:
    """A user's message: one text, or parts."""
    is_text = len(content) == 1 and isinstance(content[0], str)
    return {"role": "user", "content": content[0] if is_text else list(content)}


def chat_request(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request with some messages, or with one short question."""
    return {"model": "varco", "messages": list(messages or (user("Hello"),)), **fields}
