"""HTTP/1.1 over a raw socket, with the time of every piece: what an SDK does beside it is not measured."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 600.0


@dataclass(slots=True)
class Outcome:
    """What became of a request.

    Args:
        status: The HTTP status; 0 where the connection broke or was refused.
        started_s: When it was sent, on the clock of `time.perf_counter`.
        pieces_s: When each piece of the answer came: chunks with text of a stream, else its whole body.
        ended_s: When all had come.
        num_tokens: Tokens of the answer, as the server counts them; 0 without an answer.
        retry_after: The header of that name, None without it.
        fault: What was wrong about the way it was answered, None if nothing was.
        text: The text of the answer.
        finish_reason: Why it ended; None where that was not said.
    """

    status: int = 0
    started_s: float = 0.0
    pieces_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    num_tokens: int = 0
    retry_after: str | None = None
    fault: str | None = None
    text: str = ""
    finish_reason: str | None = None

    @property
    def is_answer(self) -> bool:
        """Return whether it was answered as asked."""
        return self.status == 200 and self.fault is None

    @property
    def ttft_s(self) -> float:
        """Return the seconds to the first piece."""
        return self.pieces_s[0] - self.started_s

    @property
    def total_s(self) -> float:
        """Return the seconds to the end."""
        return self.ended_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """Return the seconds per token behind the first; None where there is one piece."""
        if len(self.pieces_s) < 2 or self.num_tokens < 2:
            return None
        return (self.pieces_s[-1] - self.pieces_s[0]) / (self.num_tokens - 1)


class Client:
    """One caller: a connection that is kept between requests and opened anew when the server closes it.

    Args:
        host: The server's address.
        port: Its port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes, content_type: str = "application/json") -> Outcome:
        """Send a request with a body and read its answer, streamed or not."""
        return await self._request("POST", path, body, f"Content-Type: {content_type}\r\n")

    async def get(self, path: str) -> Outcome:
        """Send a request without a body and read its answer."""
        return await self._request("GET", path, b"", "")

    def close(self) -> None:
        """Close the connection, also in the middle of an answer."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _request(self, method: str, path: str, body: bytes, headers: str) -> Outcome:
        host, port = self._address
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        outcome = Outcome(started_s=time.perf_counter())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._writer is None:
                    self._reader, self._writer = await asyncio.open_connection(host, port, limit=1 << 22)
                    outcome.started_s = time.perf_counter()
                self._writer.write(head.encode() + body)
                await self._writer.drain()
                await self._read(outcome)
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError) as error:
            outcome.fault = f"{type(error).__name__}: {error}"
            self.close()
        except asyncio.CancelledError:
            self.close()
            raise
        outcome.ended_s = time.perf_counter()
        return outcome

    async def _read(self, outcome: Outcome) -> None:
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        outcome.status = int(head[0].split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        outcome.retry_after = headers.get("retry-after")
        if headers.get("content-type", "").startswith("text/event-stream"):
            events = Events(outcome)
            async for data in self._chunks():
                events.take(data)
            events.end()
        else:
            body = await self._body(headers)
            outcome.pieces_s.append(time.perf_counter())
            if outcome.status == 200 and headers.get("content-type", "").startswith("application/json"):
                _note_answer(json.loads(body), outcome)
        if headers.get("connection", "").lower() == "close":
            self.close()

    async def _body(self, headers: dict[str, str]) -> bytes:
        assert self._reader is not None
        if headers.get("transfer-encoding") == "chunked":
            return b"".join([data async for data in self._chunks()])
        return await self._reader.readexactly(int(headers.get("content-length", "0")))

    async def _chunks(self) -> Any:
        assert self._reader is not None
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readuntil(b"\r\n")


class Events:
    """The events of one stream, as their bytes come.

    Args:
        outcome: Takes what they say.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._pending = b""
        self._is_done = False

    def take(self, data: bytes) -> None:
        """Take bytes of the body, cut anywhere."""
        *events, self._pending = (self._pending + data).split(b"\n\n")
        now = time.perf_counter()
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data: "):
                    self._note(line[6:], now)

    def end(self) -> None:
        """Note what is missing once the body has ended."""
        if self._pending:
            self._outcome.fault = "the stream ends in the middle of an event"
        elif not self._is_done and self._outcome.fault is None:
            self._outcome.fault = "the stream ends without [DONE]"

    def _note(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._is_done = True
            return
        document = json.loads(data)
        if "error" in document:
            self._outcome.fault = str(document["error"].get("message"))
            return
        text = ""
        for choice in document.get("choices", []):
            text += choice.get("delta", {}).get("content") or ""
            self._outcome.finish_reason = choice.get("finish_reason") or self._outcome.finish_reason
        if text:
            self._outcome.pieces_s.append(now)
            self._outcome.text += text
        if document.get("usage"):
            self._outcome.num_tokens = int(document["usage"]["completion_tokens"])


def _note_answer(document: Any, outcome: Outcome) -> None:
    """Take the text and the tokens of a chat answer that came whole; nothing from another document."""
    if isinstance(document, dict) and isinstance(document.get("choices"), list):
        outcome.text = "".join(choice["message"]["content"] or "" for choice in document["choices"])
        outcome.num_tokens = int(document.get("usage", {}).get("completion_tokens", 0))
        outcome.finish_reason = document["choices"][0]["finish_reason"]
