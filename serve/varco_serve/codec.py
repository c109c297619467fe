"""Asks and events as frames' headers and bytes, and back."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import asdict
from typing import Any

from varco_runtime.answer.token_score import TokenScore
from varco_serve.messages import Ask, AskTurn, Begun, Done, Event, Facts, Failed, Pixels, Said


def ask_header(ask: Ask) -> tuple[dict[str, Any], list[bytes]]:
    """Return an ask's header, and its pictures' pixels behind it."""
    header = {
        "turns": [[turn.role, list(turn.parts)] for turn in ask.turns],
        "pictures": [[one.width, one.height, one.is_animated] for one in ask.pictures],
        "options": ask.options,
        "grammar": ask.grammar,
    }
    return header, [one.rgb for one in ask.pictures]


def ask_of(header: dict[str, Any], body: memoryview) -> Ask:
    """Return the ask that `ask_header` made a header of.

    Args:
        header: The header.
        body: All pixels, one picture behind the other.
    """
    pictures, start = [], 0
    for width, height, is_animated in header["pictures"]:
        end = start + width * height * 3
        pictures.append(Pixels(width, height, bytes(body[start:end]), is_animated))
        start = end
    turns = tuple(AskTurn(role, tuple(parts)) for role, parts in header["turns"])
    return Ask(turns, tuple(pictures), header["options"], header["grammar"])


def event_header(event: Event) -> dict[str, Any]:
    """Return an event's header, whose `kind` says which it is."""
    match event:
        case Begun():
            return {"kind": "begun", "prompt_tokens": event.prompt_tokens}
        case Said():
            header: dict[str, Any] = {"kind": "said", "text": event.text, "plain_text": event.plain_text}
            if event.regions:
                header["regions"] = list(event.regions)
            if event.tokens:
                header["tokens"] = [_token_header(token) for token in event.tokens]
            return header
        case Done():
            return {"kind": "done", "document": event.document}
        case Failed():
            return {"kind": "failed", **asdict(event)}


def event_of(header: dict[str, Any]) -> Event:
    """Return the event that `event_header` made a header of."""
    kind = header.pop("kind")
    match kind:
        case "begun":
            return Begun(header["prompt_tokens"])
        case "said":
            tokens = tuple(_token_of(token) for token in header.get("tokens", ()))
            return Said(header["text"], header["plain_text"], tuple(header.get("regions", ())), tokens)
        case "done":
            return Done(header["document"])
        case "failed":
            return Failed(**header)
    raise ValueError(f"Bug: {kind!r} is no event.")


def facts_header(facts: Facts) -> dict[str, Any]:
    """Return the header that tells a model's facts."""
    return {"kind": "facts", **asdict(facts)}


def facts_of(header: dict[str, Any]) -> Facts:
    """Return the facts that `facts_header` made a header of."""
    return Facts(**{name: value for name, value in header.items() if name != "kind"})


def _token_header(token: TokenScore) -> list[Any]:
    top = [[id_, _text(data), logprob] for id_, data, logprob in token.top]
    return [token.token_id, _text(token.data), token.logprob, top]


def _token_of(header: list[Any]) -> TokenScore:
    token_id, text, logprob, top = header
    return TokenScore(token_id, b64decode(text), logprob, tuple((id_, b64decode(d), value) for id_, d, value in top))


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
