"""OpenAI's messages -> turns, and the pictures that stand in them, counted before any is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from varco_serve.documents.data_url import check_picture_url, decode_picture
from varco_serve.documents.errors import RequestError
from varco_serve.documents.fields import Fields, checked_text, shown
from varco_serve.messages import AskTurn

MAX_MESSAGES = 4096
MAX_PARTS = 8192
MAX_TEXT_CHARS = 1_000_000  # as `varco_runtime.prompt.prompter` has it
MAX_PICTURES = 256
"""Where the bundle says no number; the context holds fewer."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(slots=True)
class _Reading:
    """What was found so far."""

    ignored: list[str]
    num_chars: int = 0
    urls: list[tuple[str, int, str]] = field(default_factory=list)


def read_turns(
    messages: object, max_pictures: int | None, ignored: list[str]
) -> tuple[tuple[AskTurn, ...], tuple[bytes, ...], tuple[str, ...]]:
    """Return the turns of a conversation, the files of its pictures, and where each of these stands.

    Args:
        messages: The request's `messages`.
        max_pictures: How many pictures are taken; None where no number is known.
        ignored: Takes the names of fields that change nothing.

    Raises:
        RequestError: They are none, too many, or hold what is not taken.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"messages is {_got(messages)}, expected a list of at least one message.", param="messages")
    _check_numbers(messages)
    reading = _Reading(ignored)
    turns = tuple(_turn(message, f"messages[{index}]", reading) for index, message in enumerate(messages))
    most = MAX_PICTURES if max_pictures is None else max_pictures
    if len(reading.urls) > most:
        raise RequestError(
            f"The conversation shows {len(reading.urls)} pictures, this model takes {most} at a time. Ask about fewer.",
            param="messages",
            code="too_many_images",
        )
    return turns, tuple(decode_picture(*url) for url in reading.urls), tuple(path for _, _, path in reading.urls)


def _got(value: object) -> str:
    return "missing" if value is None else "an empty list" if value == [] else shown(value)


def _check_numbers(messages: list[Any]) -> None:
    contents = [message.get("content") for message in messages[:MAX_MESSAGES] if isinstance(message, dict)]
    num_parts = sum(len(content) for content in contents if isinstance(content, list))
    for what, number, most in (("messages", len(messages), MAX_MESSAGES), ("parts", num_parts, MAX_PARTS)):
        if number > most:
            raise RequestError(
                f"The conversation has {number:,} {what}, expected at most {most:,}. Send its latest part.",
                param="messages",
            )


def _turn(message: object, path: str, reading: _Reading) -> AskTurn:
    fields = Fields(message, path)
    role = fields.take("role")
    if role in ("tool", "function"):
        raise RequestError(
            f"{path}.role is {shown(role)}, and this model calls no tools. Send what the tool said as a user's text.",
            param=f"{path}.role",
            code="unsupported_value",
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise fields.refused("role", role, f"one of {', '.join(_ROLES)}")
    for name in ("tool_calls", "function_call", "audio"):
        if fields.take(name):
            raise RequestError(
                f"{path}.{name} is not supported: this model calls no tools and says no sounds. Leave the message out.",
                param=f"{path}.{name}",
                code="unsupported_parameter",
            )
    parts = _parts(fields, role, reading)
    _ignore(fields, "messages", reading)
    return AskTurn(_ROLES[role], parts)


def _parts(fields: Fields, role: str, reading: _Reading) -> tuple[str | int, ...]:
    content, path = fields.take("content"), fields.path("content")
    if content is None and role == "assistant":  # an answer that was cut off before its first word
        return ("",)
    if isinstance(content, str):
        return (_text(content, path, reading),)
    if not isinstance(content, list) or not content:
        raise RequestError(f"{path} is {_got(content)}, expected a text or a list of parts.", param=path)
    return tuple(_part(part, f"{path}[{index}]", role, reading) for index, part in enumerate(content))


def _part(part: object, path: str, role: str, reading: _Reading) -> str | int:
    fields = Fields(part, path)
    kind = fields.take("type")
    if kind == "text":
        value: str | int = _text(fields.take("text"), f"{path}.text", reading)
    elif kind == "image_url":
        if role != "user":
            raise RequestError(f"{path} is a picture, expected those in messages of the role user.", param=path)
        value = _picture(fields, reading)
    else:
        raise fields.refused("type", kind, "text or image_url")
    _ignore(fields, "content", reading)
    return value


def _text(text: object, path: str, reading: _Reading) -> str:
    checked = checked_text(text, path, MAX_TEXT_CHARS)
    reading.num_chars += len(checked)
    if reading.num_chars > MAX_TEXT_CHARS:
        raise RequestError(
            f"The conversation has more than {MAX_TEXT_CHARS:,} characters, which is longer than any context. Shorten "
            "it.",
            param="messages",
            code="context_length_exceeded",
        )
    return checked


def _picture(fields: Fields, reading: _Reading) -> int:
    value, path = fields.take("image_url"), fields.path("image_url")
    if not isinstance(value, str):  # some clients leave out the object around the URL
        around = Fields(value, path)
        value, path = around.take("url"), around.path("url")
        if not isinstance(value, str):
            raise around.refused("url", value, "a data URL")
        _ignore(around, "image_url", reading)
    reading.urls.append((value, check_picture_url(value, path), path))
    return len(reading.urls) - 1


def _ignore(fields: Fields, where: str, reading: _Reading) -> None:
    reading.ignored += [f"{where}.{name}" for name in fields.rest()]
