"""A request for a chat completion, as OpenAI's clients and vLLM's send it -> what is asked of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from varco_serve.documents.errors import RequestError
from varco_serve.documents.fields import Fields, shown
from varco_serve.documents.ignored import named
from varco_serve.documents.response_format import grammar_of
from varco_serve.documents.sampling import answer_options
from varco_serve.documents.turns import read_turns
from varco_serve.documents.unsupported import IN_CHAT, check_unsupported
from varco_serve.messages import AskTurn

MAX_ANSWERS = 4
MAX_TOP_LOGPROBS = 20
_MAX_MODEL_CHARS = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model sets bounds to.

    Args:
        model_name: What requests call it.
        max_images: Pictures of a conversation, or None where the model says no number.
    """

    model_name: str
    max_images: int | None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that was checked.

    Args:
        turns: The conversation, the oldest turn first.
        pictures: The files of its pictures.
        options: The runtime's options, by name.
        grammar: What the answer must look like, as `messages.Ask` says it; None for any answer.
        n: How many answers are asked for.
        stream: Whether they are sent as they come.
        include_usage: Whether a stream ends with the count of tokens.
        logprobs: Whether the tokens' probabilities are asked for.
        ignored: Names of fields that change nothing, fit for a header.
        model: The model's name.
        picture_params: Where each picture stands in the request.
    """

    turns: tuple[AskTurn, ...]
    pictures: tuple[bytes, ...]
    options: dict[str, Any]
    grammar: dict[str, Any] | None
    n: int
    stream: bool
    include_usage: bool
    logprobs: bool
    ignored: tuple[str, ...]
    model: str
    picture_params: tuple[str, ...] = ()


def parse_chat(document: object, limits: Limits) -> ChatRequest:
    """Return what a request's JSON asks for. Nothing is decoded before all of it is counted.

    Args:
        document: The JSON, parsed.
        limits: What the model sets bounds to.

    Raises:
        RequestError: It is no request for a chat completion, or asks for what is not supported.
    """
    fields = Fields(document)
    ignored: list[str] = []
    model = _model(fields, limits)
    check_unsupported(fields, IN_CHAT)
    options = answer_options(fields)
    top_logprobs = _top_logprobs(fields)
    if top_logprobs is not None:
        options["top_logprobs"] = top_logprobs
    grammar = grammar_of(fields, ignored)
    stream = fields.flag("stream") or False
    include_usage = _include_usage(fields, stream, ignored)
    n = fields.whole("n", 1, MAX_ANSWERS) or 1
    max_pictures = None if options.get("untrained") else limits.max_images
    turns, pictures, picture_params = read_turns(fields.take("messages"), max_pictures, ignored)
    return ChatRequest(
        turns,
        pictures,
        options,
        grammar,
        n,
        stream,
        include_usage,
        top_logprobs is not None,
        named([*fields.rest(), *ignored]),
        model,
        picture_params,
    )


def _model(fields: Fields, limits: Limits) -> str:
    """Return the model's name, which may be left out: there is only one."""
    model = fields.text("model", _MAX_MODEL_CHARS)
    if model not in (None, limits.model_name):
        raise RequestError(
            f"The model {shown(model)} is not here. Expected {limits.model_name!r}, as GET /v1/models says.",
            status=404,
            code="model_not_found",
            param="model",
        )
    return limits.model_name


def _top_logprobs(fields: Fields) -> int | None:
    """Return how many likeliest tokens are asked for beside each token of the answer; None for no probabilities."""
    is_asked = fields.flag("logprobs") or False
    number = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if number and not is_asked:
        raise RequestError(
            f"top_logprobs is {number} without logprobs. Add logprobs: true.", param="top_logprobs", code=None
        )
    return (number or 0) if is_asked else None


def _include_usage(fields: Fields, stream: bool, ignored: list[str]) -> bool:
    if not stream:
        return False  # nobody asks for the options of a stream that is none: they are ignored, by name
    options = fields.inner("stream_options")
    if options is None:
        return False
    include_usage = options.flag("include_usage") or False
    ignored += [options.path(name) for name in options.rest()]
    return include_usage
