"""A double of `messages.Model`: answers that a test writes, and counts of what was asked and what was cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from varco_serve.messages import Ask, Begun, Done, Event, Facts, Failed, Pixels, Said, Stats

FACTS = Facts(
    max_context=4096,
    slots=2,
    max_images=4,
    largest_picture_tokens=2000,
    details={"model": "double", "bundle": "double", "precision": "fp32", "device": "cpu", "license": "CC BY-NC 4.0"},
)


def done(text: str, finish_reason: str = "stop", **changed: Any) -> Done:
    """The end of an answer, as `Answer.to_dict()` says it."""
    document: dict[str, Any] = {
        "text": text,
        "plain_text": text,
        "token_ids": [ord(one) for one in text],
        "picture": None,
        "media": [],
        "regions": [],
        "warnings": [],
        "finish_reason": finish_reason,
        "usage": {"prompt_tokens": 7, "image_tokens": 0, "completion_tokens": len(text), "cached_tokens": 3},
        "timings": {
            "load_s": 0.0,
            "preprocess_s": 0.0,
            "vision_s": 0.0,
            "prefill_s": 0.25,
            "ttft_s": 0.5,
            "tpot_s": 0.125,
            "total_s": 1.0,
            "drafted": 0,
            "accepted": 0,
        },
    }
    return Done(document | changed)


def answer(*pieces: str, **changed: Any) -> list[Event]:
    """The events of an answer that is said in pieces, and what is different in its document."""
    return [Begun(7), *(Said(piece, piece) for piece in pieces), done("".join(pieces), **changed)]


PICTURE = {"width": 2, "height": 1}
"""The size of the picture that the double decodes, for answers of the native routes."""

Script = Sequence[Event | asyncio.Event | Exception]
"""Events to give; an `asyncio.Event` to wait for before the next; an error to raise."""


class ScriptedModel:
    """Gives the events of a script, or of a script that a function makes of the question."""

    def __init__(self, script: Script | Callable[[Ask, int], Script] = ()) -> None:
        self.script = script or answer("Hello", " there")
        self.asks: list[Ask] = []
        self.num_running = self.num_begun = 0
        self.num_cancelled = 0
        self.decoded: list[bytes] = []
        self.facts: Facts | None = FACTS
        self.not_ready: str | None = None
        self.pixels: Pixels | Failed = Pixels(2, 1, bytes(6))

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        number = len(self.asks)
        self.asks.append(ask)
        script = self.script(ask, number) if callable(self.script) else self.script
        has_begun = False
        self.num_running += 1
        try:
            for step in script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    if isinstance(step, Begun):
                        has_begun = True
                        self.num_begun += 1
                    yield step
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
            self.num_begun -= has_begun

    @property
    def stats(self) -> Stats:
        waiting = self.num_running - self.num_begun
        return Stats(
            self.num_begun, waiting, kv_tokens=30, kv_max_tokens=100, picture_hits=5, picture_misses=2, restarts=1
        )

    async def decode(self, data: bytes) -> Pixels | Failed:
        self.decoded.append(data)
        return self.pixels
