"""JSON schemas of what goes in and out, for `/openapi.json`.

They say what a program has to know to ask; `documents/` checks what a request holds, and says why it is refused.
"""

from __future__ import annotations

from typing import Any

from varco_runtime.bundle.settings import MAX_LONG_SIDE_PX
from varco_serve.documents.chat import MAX_ANSWERS, MAX_TOP_LOGPROBS
from varco_serve.documents.formats import FORMATS
from varco_serve.documents.sampling import MAX_SEED, MAX_TOKENS

Schema = dict[str, Any]


def _object(required: tuple[str, ...] = (), **properties: Any) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return schema | {"required": list(required)} if required else schema


def _array(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _number(minimum: float, maximum: float) -> Schema:
    return {"type": ["number", "null"], "minimum": minimum, "maximum": maximum}


def _integer(minimum: int, maximum: int | None = None) -> Schema:
    schema: Schema = {"type": ["integer", "null"], "minimum": minimum}
    return schema if maximum is None else schema | {"maximum": maximum}


_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_BOX: Schema = _array({"type": "number", "minimum": 0, "maximum": 1}, minItems=4, maxItems=4)
_RESPONSE_FORMATS = ("text", "json_object", "json_schema")
_PICTURE_URL: Schema = {"type": "string", "pattern": "^data:image/"}

ERROR = _object(
    ("error",),
    error=_object(
        ("message", "type", "param", "code"),
        message=_TEXT,
        type=_TEXT,
        param={"type": ["string", "null"]},
        code={"type": ["string", "null"]},
    ),
)

_PART = {
    "anyOf": [
        _object(("type", "text"), type={"const": "text"}, text=_TEXT),
        _object(("type", "image_url"), type={"const": "image_url"}, image_url=_object(("url",), url=_PICTURE_URL)),
    ]
}
_MESSAGE = _object(
    ("role", "content"),
    role={"enum": ["system", "developer", "user", "assistant"]},
    content={"anyOf": [_TEXT, _array(_PART, minItems=1)]},
)
_SAMPLING = {
    "max_tokens": _integer(1, MAX_TOKENS),
    "max_completion_tokens": _integer(1, MAX_TOKENS),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _integer(0, MAX_TOKENS),
    "min_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _number(1e-3, 1e3),
    "seed": _integer(0, MAX_SEED),
    "stop": {"anyOf": [_TEXT, _array(_TEXT), {"type": "null"}]},
    "logit_bias": {"type": ["object", "null"], "additionalProperties": _number(-100, 100)},
    "ignore_eos": _FLAG,
    "stop_loops": _FLAG,
    "tiling": {"enum": ["auto", "grid", "one", None]},
    "untrained": _FLAG,
    "long_side": _integer(0, MAX_LONG_SIDE_PX),
}

CHAT_REQUEST = _object(
    ("messages",),
    model=_TEXT,
    messages=_array(_MESSAGE, minItems=1),
    n=_integer(1, MAX_ANSWERS),
    logprobs=_FLAG,
    top_logprobs=_integer(0, MAX_TOP_LOGPROBS),
    stream=_FLAG,
    stream_options={"type": ["object", "null"], "properties": {"include_usage": _FLAG}},
    response_format={"type": ["object", "null"], "properties": {"type": {"enum": list(_RESPONSE_FORMATS)}}},
    **_SAMPLING,
)

REGION = _object(
    ("kind", "text", "start", "end", "boxes", "boxes_px"),
    kind={"enum": ["text", "object"]},
    text=_TEXT,
    start=_COUNT,
    end=_COUNT,
    boxes=_array(_BOX),
    boxes_px=_array(_array({"type": "integer"}, minItems=4, maxItems=4)),
)

_USAGE = _object(
    ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"),
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
    prompt_tokens_details=_object(("cached_tokens", "image_tokens"), cached_tokens=_COUNT, image_tokens=_COUNT),
)
_TOKEN = {"token": _TEXT, "logprob": {"type": "number"}, "bytes": _array(_COUNT)}
_SCORED = ("token", "logprob", "bytes")
_LOGPROBS = _object(
    ("content",),
    content=_array(_object((*_SCORED, "top_logprobs"), **_TOKEN, top_logprobs=_array(_object(_SCORED, **_TOKEN)))),
)
_EXTRA = _object(
    ("plain_text", "regions", "picture", "media", "warnings", "finish_reason"),
    plain_text=_TEXT,
    regions=_array(REGION),
    picture={"anyOf": [_object(("width", "height"), width=_COUNT, height=_COUNT), {"type": "null"}]},
    media=_array(_object(("kind", "size", "tiles", "tokens"))),
    warnings=_array(_TEXT),
    finish_reason=_TEXT,
)
_CHOICE = _object(
    ("index", "message", "logprobs", "finish_reason", "varco"),
    index=_COUNT,
    message=_object(("role", "content"), role={"const": "assistant"}, content=_TEXT),
    logprobs={"anyOf": [_LOGPROBS, {"type": "null"}]},
    finish_reason={"enum": ["stop", "length"]},
    varco=_EXTRA,
)
CHAT_ANSWER = _object(
    ("id", "object", "created", "model", "system_fingerprint", "choices", "usage"),
    id=_TEXT,
    object={"const": "chat.completion"},
    created={"type": "integer"},
    model=_TEXT,
    system_fingerprint=_TEXT,
    choices=_array(_CHOICE, minItems=1),
    usage=_USAGE,
)

NATIVE_FIELDS: dict[str, Schema] = {
    "prompt": _TEXT,
    "text": _TEXT,
    "system": _TEXT,
    "strict": _FLAG,
    "format": {"enum": list(FORMATS)},
    **_SAMPLING,
}
NATIVE_REQUEST = _object(("image",), image=_PICTURE_URL, box=_BOX, **NATIVE_FIELDS)

COCO = _array(_object(("image_id", "category_id", "bbox", "score")))
NATIVE_ANSWER = _object(
    ("text", "plain_text", "regions", "warnings", "finish_reason", "usage"),
    text=_TEXT,
    plain_text=_TEXT,
    regions=_array(REGION),
    warnings=_array(_TEXT),
    finish_reason=_TEXT,
    usage=_object(),
    timings=_object(),
)

MODELS = _object(
    ("object", "data"),
    object={"const": "list"},
    data=_array(
        _object(
            ("id", "object", "created", "owned_by", "max_model_len"),
            id=_TEXT,
            object={"const": "model"},
            created={"type": "integer"},
            owned_by=_TEXT,
            max_model_len=_COUNT,
        )
    ),
)
METADATA = _object(("model", "served_as", "limits"), model=_TEXT, served_as=_TEXT, limits=_object())
HEALTH = _object(("status",), status=_TEXT, reason=_TEXT)
