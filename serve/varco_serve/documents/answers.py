"""Events of answers -> OpenAI's chat completion, whole or as chunks of a stream.

What OpenAI has no place for stands in the extra field `varco` of each choice: the answer without markup, its regions,
the pictures' sizes, warnings, and why it ended in the runtime's own words. It stands beside the message, not in it:
clients send messages back as they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from varco_runtime.answer.token_score import TokenScore
from varco_serve.documents.logprobs import to_logprobs
from varco_serve.messages import Begun, Done, Facts, Said

_FINISH_REASONS = {"stop": "stop", "stop_string": "stop", "loop": "stop", "length": "length", "cancelled": "length"}
_DECIDING = ("bundle", "version", "provider", "precision")
"""What decides an answer, of what the worker says; the rest differs from start to start."""
_EXTRA = ("plain_text", "regions", "picture", "media", "warnings", "finish_reason")


def fingerprint(facts: Facts) -> str:
    """Return OpenAI's `system_fingerprint`: another where the same seed may give another answer.

    Args:
        facts: What the worker says about the model.
    """
    text = json.dumps([facts.details.get(name) for name in _DECIDING], sort_keys=True)
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def chat_answer(
    model: str, id_: str, created: int, events: Sequence[Sequence[Said | Done]], *, fingerprint: str | None = None
) -> dict[str, Any]:
    """Return a whole answer, `chat.completion`.

    Args:
        model: The model's name.
        id_: The answer's.
        created: Seconds since 1970.
        events: For each choice its events, of which the last is `Done`.
        fingerprint: What `fingerprint` returned.
    """
    documents = [_document(choice) for choice in events]
    return {
        "id": id_,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [
            _choice(index, document, choice)
            for index, (document, choice) in enumerate(zip(documents, events, strict=True))
        ],
        "usage": usage_of(documents),
    }


def usage_of(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many tokens some answers to one prompt took.

    Args:
        documents: Those of the answers' ends. The prompt counts once, and what of it was cached before the first.
    """
    usages = [document["usage"] for document in documents]
    prompt_tokens = max(usage["prompt_tokens"] for usage in usages)
    completion_tokens = sum(usage["completion_tokens"] for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": min(usage["cached_tokens"] for usage in usages),
            "image_tokens": max(usage["image_tokens"] for usage in usages),
        },
    }


class ChatStream:
    """Makes chunks, `chat.completion.chunk`, of the events of one request's answers.

    Every choice begins with a chunk that gives the role, in the order of their numbers: OpenAI's own client takes the
    first that it sees for the first choice.

    Args:
        model: The model's name.
        id_: The answer's.
        created: Seconds since 1970.
        include_usage: Whether the last chunk counts tokens.
        fingerprint: What `fingerprint` returned.
    """

    def __init__(
        self, model: str, id_: str, created: int, *, include_usage: bool = False, fingerprint: str | None = None
    ) -> None:
        self._head = {
            "id": id_,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._include_usage = include_usage
        self._num_begun = 0
        self._held: dict[int, list[TokenScore]] = {}
        self._documents: list[dict[str, Any]] = []

    def take(self, index: int, event: Begun | Said | Done) -> list[dict[str, Any]]:
        """Return the chunks that an event makes, perhaps none.

        Args:
            index: The number of the choice, from 0.
            event: What happened to it.
        """
        chunks = []
        while self._num_begun <= index:
            chunks.append(self._chunk(self._num_begun, {"role": "assistant", "content": ""}))
            self._num_begun += 1
        if isinstance(event, Said):
            chunks += self._said(index, event)
        elif isinstance(event, Done):
            chunks.append(self._done(index, event.document))
        return chunks

    def end(self) -> list[dict[str, Any]]:
        """Return what comes behind the last choice's end."""
        if not self._include_usage:
            return []
        return [{**self._head, "choices": [], "usage": usage_of(self._documents)}]

    def _said(self, index: int, said: Said) -> Iterable[dict[str, Any]]:
        tokens = [*self._held.pop(index, ()), *said.tokens]
        extra: dict[str, Any] = {}
        if said.plain_text != said.text:
            extra["plain_text"] = said.plain_text
        if said.regions:
            extra["regions"] = list(said.regions)
        if said.text or extra:
            yield self._chunk(index, {"content": said.text}, tokens, varco=extra)
        elif tokens:  # a part of a character, or the token that ends the answer: what comes next tells
            self._held[index] = tokens

    def _done(self, index: int, document: dict[str, Any]) -> dict[str, Any]:
        self._documents.append(document)
        tokens = _without_end(self._held.pop(index, []), document)
        extra = {name: document[name] for name in _EXTRA if name not in ("plain_text", "regions")}
        return self._chunk(index, {}, tokens, _FINISH_REASONS[document["finish_reason"]], extra)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[TokenScore] = (),
        finish_reason: str | None = None,
        varco: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": to_logprobs(tokens) if tokens else None,
            "finish_reason": finish_reason,
        }
        if varco:
            choice["varco"] = varco
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk


def _document(events: Sequence[Said | Done]) -> dict[str, Any]:
    last = events[-1]
    assert isinstance(last, Done), "Bug: an answer without its end."
    return last.document


def _without_end(tokens: list[TokenScore], document: dict[str, Any]) -> list[TokenScore]:
    """Return tokens of which the last let out no text, without the one that ended the answer: OpenAI leaves it out."""
    return tokens[:-1] if document["finish_reason"] == "stop" else tokens


def _choice(index: int, document: dict[str, Any], events: Iterable[Said | Done]) -> dict[str, Any]:
    said = [event for event in events if isinstance(event, Said)]
    scored = [token for event in said for token in event.tokens]
    tokens = scored if not said or said[-1].text else _without_end(scored, document)
    return {
        "index": index,
        "message": {"role": "assistant", "content": document["text"], "refusal": None},
        "logprobs": to_logprobs(tokens) if scored else None,  # of an empty answer an empty list, as clients read it
        "finish_reason": _FINISH_REASONS[document["finish_reason"]],
        "varco": {name: document[name] for name in _EXTRA},
    }
