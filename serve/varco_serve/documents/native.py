"""Requests of the native routes: one picture and one of VARCO's tasks, as `varco run --task` asks it.

The picture is the body itself and everything else stands in the query, or the body is JSON with the picture as a data
URL. Fields have the same names and bounds either way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from varco_runtime.errors import PromptError, one_line
from varco_runtime.markup.questions import OCR_PROMPT, ground_prompt, refer_prompt
from varco_serve.documents.data_url import TYPES, check_picture_url, decode_picture, is_picture_type
from varco_serve.documents.errors import RequestError
from varco_serve.documents.fields import Fields, checked_number, shown
from varco_serve.documents.formats import FORMATS, formatted
from varco_serve.documents.ignored import named
from varco_serve.documents.sampling import answer_options
from varco_serve.documents.turns import MAX_TEXT_CHARS
from varco_serve.documents.unsupported import IN_NATIVE, check_unsupported
from varco_serve.messages import AskTurn, Failed

__all__ = ["FORMATS", "TASKS", "NativeRequest", "formatted", "in_native_words", "parse_native"]

TASKS = ("ocr", "ground", "refer")
_MAX_OBJECT_CHARS = 1000
_MAX_MESSAGE_CHARS = 300
_PARAMS = {"messages": None, "response_format": "strict"}
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
_TEXTS = ("prompt", "text", "system", "stop", "tiling", "format", "box")
_FLAGS = ("strict", "untrained", "ignore_eos", "stop_loops")
_FLAG_VALUES = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True)
class NativeRequest:
    """A request that was checked.

    Args:
        turns: The question.
        pictures: The picture's file.
        options: The runtime's options, by name.
        grammar: What the answer must look like, as `messages.Ask` says it; None for any answer.
        ignored: Names of fields that change nothing, fit for a header.
        format: How the answer is written, one of `FORMATS`.
        picture_params: Where the picture stands in the request; None for the body itself.
    """

    turns: tuple[AskTurn, ...]
    pictures: tuple[bytes, ...]
    options: dict[str, Any]
    grammar: dict[str, Any] | None
    ignored: tuple[str, ...]
    format: str = "json"
    picture_params: tuple[str | None, ...] = (None,)


def parse_native(task: str, query: Mapping[str, str], content_type: str, body: object) -> NativeRequest:
    """Return what a request asks for.

    Args:
        task: One of `TASKS`.
        query: The fields of the address.
        content_type: The body's media type, without parameters.
        body: The picture's file as `bytes`; for `application/json` what the JSON says.

    Raises:
        RequestError: It is no such request, or asks for what is not supported.
    """
    given = {name: _from_query(name, text) for name, text in query.items()}
    if content_type != "application/json":
        if "image" in given:
            raise RequestError("image stands in the address, the body is a picture too. Leave one out.", param="image")
        return _request(task, Fields(given), _raw_picture(content_type, body))
    in_body = Fields(body)
    twice = next((name for name in given if in_body.peek(name) is not None), None)
    if twice is not None:
        raise RequestError(f"{shown(twice)} stands in the address and in the body. Leave one out.")
    assert isinstance(body, Mapping), "Bug: Fields took what is no object."
    return _request(task, Fields({**body, **given}), None)


def in_native_words(failed: Failed) -> Failed:
    """Return why an answer failed, without the names of fields that a chat has and these requests do not."""
    return replace(failed, param=_PARAMS.get(failed.param or "", failed.param))


def _request(task: str, fields: Fields, raw: bytes | None) -> NativeRequest:
    check_unsupported(fields, IN_NATIVE)
    system = fields.text("system", MAX_TEXT_CHARS)
    options = answer_options(fields)
    strict = fields.flag("strict")
    format_ = fields.choice("format", *FORMATS) or "json"
    question = AskTurn("user", (0, _question(task, fields)))
    turns = (question,) if system is None else (AskTurn("system", (system,)), question)
    grammar = {"kind": "markup", "task": task} if strict else None
    picture = _picture_of(fields) if raw is None else raw  # decoded once all else is right
    param = "image" if raw is None else None
    return NativeRequest(turns, (picture,), options, grammar, named(fields.rest()), format_, (param,))


def _question(task: str, fields: Fields) -> str:
    prompt = fields.text("prompt", MAX_TEXT_CHARS)
    if task == "ocr":
        if prompt is not None:
            raise RequestError("ocr takes no prompt: it reads all text in the picture. Leave it out.", param="prompt")
        return OCR_PROMPT
    if prompt is None:
        raise RequestError(f"{task} needs a prompt: the question about the picture.", param="prompt")
    return ground_prompt(prompt) if task == "ground" else _refer(prompt, fields)


def _refer(prompt: str, fields: Fields) -> str:
    text = fields.text("text", _MAX_OBJECT_CHARS)
    if text is None:
        raise RequestError("refer needs a text: what the thing in the box is called.", param="text")
    box = fields.take("box")
    if isinstance(box, str):
        box = [_typed(number.strip()) for number in box.split(",", 4)]
    if not isinstance(box, list) or len(box) != 4:
        raise fields.refused("box", box, "four numbers from 0 to 1: left, top, right, bottom")
    sides = [checked_number(side, f"box[{index}]", 0, 1) for index, side in enumerate(box)]
    try:
        return refer_prompt(prompt, text, sides)
    except PromptError as error:
        param = "text" if "object text" in str(error) else "box"
        raise RequestError(one_line(error, _MAX_MESSAGE_CHARS), param=param) from None


def _raw_picture(content_type: str, body: object) -> bytes:
    if not is_picture_type(content_type) and content_type != "application/octet-stream":
        raise RequestError(
            f"The body is of the type {shown(content_type)}, expected one of {', '.join(TYPES)}, or application/json.",
            code="unsupported_image_type",
        )
    assert isinstance(body, bytes), "Bug: the body is read before it is parsed."
    if not body:
        raise RequestError("The body is empty, expected a picture file. Try: curl --data-binary @picture.png")
    return body


def _picture_of(fields: Fields) -> bytes:
    url = fields.take("image")
    if not isinstance(url, str):
        raise fields.refused("image", url, "a data URL such as data:image/png;base64,...")
    return decode_picture(url, check_picture_url(url, "image"), "image")


def _from_query(name: str, text: str) -> Any:
    """Return a field of the address as JSON would hold it; texts as they are, and what is of no known form."""
    if name in _FLAGS:
        return _FLAG_VALUES.get(text.lower(), text)
    return text if name in _TEXTS else _typed(text)


def _typed(text: str) -> Any:
    """Return the number that a text is, or the text."""
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    return float(text) if number[1] or number[2] else int(text)
