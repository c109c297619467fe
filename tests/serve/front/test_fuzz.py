"""Raw sockets: every method on every route, and requests with bytes changed. None hangs, none is our fault."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import random

import pytest

from tests.doubles.front import exchange, front, listening
from tests.doubles.model import PICTURE, ScriptedModel, answer
from varco_serve.front.app import Front
from varco_serve.front.limits import FrontLimits

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
LIMITS = dataclasses.replace(FrontLimits(), header_s=0.1, body_s=0.1, linger_s=0.1, keep_alive_s=0)
"""Short, so that a request that lost its end is given up within the test."""
INSERTED = (b"\r\n", b"\x00", b"%", b"\xff", b'"', b"{", b"[", b"9" * 30, b"-", b":", b" ", b"\\ud800", b"1e999")
HANG_S = 30
ROUNDS = 8
TOGETHER = 80

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
_PARTS = [{"type": "text", "text": "무엇?"}, {"type": "image_url", "image_url": {"url": _URL}}]
_CHAT = {"model": "varco", "messages": [{"role": "user", "content": _PARTS}], "max_tokens": 5, "stop": ["\n"]}
CHAT = json.dumps(_CHAT).encode()
NATIVE = ("/v1/ocr", "/v1/ground", "/v1/refer")


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that asks for its connection to be closed."""

    method: str
    path: str
    kind: str
    body: bytes
    is_chunked: bool = False

    def on_the_wire(self) -> bytes:
        body = self.body
        if self.is_chunked:
            framing = "transfer-encoding: chunked"
            body = b"".join(
                b"%x\r\n%s\r\n" % (len(body[i : i + 40]), body[i : i + 40]) for i in range(0, len(body), 40)
            )
            body += b"0\r\n\r\n"
        else:
            framing = f"content-length: {len(body)}"
        fields = f"host: localhost\r\nconnection: close\r\ncontent-type: {self.kind}\r\n{framing}"
        return f"{self.method} {self.path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


def requests(app: Front) -> list[Request]:
    """Every method on every route and on paths that are none, with a body that fits the route."""
    made = []
    for path in (*sorted(app.paths), "/", "/v1/chat/completions/", "/%00", "/v1/../health", "//health"):
        is_native = path in NATIVE
        kind, body = ("image/png", PNG) if is_native else ("application/json", CHAT)
        made += [Request(method, path, kind, body) for method in METHODS]
    made.append(Request("POST", "/v1/chat/completions", "application/json", CHAT, is_chunked=True))
    made.append(Request("POST", "/v1/ocr?format=hocr&x=%ff", "image/png", PNG, is_chunked=True))
    return made


def changed(request: Request, rng: random.Random) -> bytes:
    """Return a request on the wire with some bytes changed: anywhere, or in a body whose length is right."""
    if rng.random() < 0.5:
        return mutated(request.on_the_wire(), rng)
    return dataclasses.replace(request, body=mutated(request.body, rng)).on_the_wire()


def mutated(data_before: bytes, rng: random.Random) -> bytes:
    """Change, remove, double or insert a few bytes."""
    data = bytearray(data_before)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(data) or 1), rng.choice((1, 1, 4, 32))
        change = rng.randrange(4)
        if change == 0:
            data[at : at + length] = rng.randbytes(len(data[at : at + length]))
        elif change == 1 and len(data) > length + 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = rng.choice(
                (b"\r\n", b"\x00", b"%", b"\xff", b'"', b"{", b"99999999999", b":", b" ", b"\\ud800")
            )
    return bytes(data)


async def _answered(port: int, request: bytes) -> bytes:
    try:
        return await asyncio.wait_for(exchange(port, request), HANG_S)
    except ConnectionError:
        return b""


async def _fuzz(app: Front, model: ScriptedModel, sent: list[bytes]) -> list[bytes]:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with listening(app, LIMITS) as port:
        answers: list[bytes] = []
        for start in range(0, len(sent), TOGETHER):
            group = sent[start : start + TOGETHER]
            answers += await asyncio.gather(*(_answered(port, request) for request in group))
        health = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        assert b" 200 OK" in await exchange(port, health)
    assert app.num_running == 0
    assert model.num_running == 0
    assert not failures
    return answers


def check_answers(sent: list[bytes], answers: list[bytes]) -> None:
    """Check that every answer is one of ours, and none a fault of the server."""
    for request, got in zip(sent, answers, strict=True):
        if not got:
            continue
        status = int(got[9:12])
        assert status < 500, (request, got)
        head, _, body = got.partition(b"\r\n\r\n")
        if status >= 400 and b"content-length" in head and not request.startswith(b"HEAD "):
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, (request, got)


def test_every_method_on_every_route_is_answered() -> None:
    model = ScriptedModel(answer("Hello", picture=PICTURE))
    app = front(model, LIMITS)
    sent = [request.on_the_wire() for request in requests(app)]
    answers = asyncio.run(_fuzz(app, model, sent))
    check_answers(sent, answers)
    assert all(answers)


def check_mutated(seed: int, rounds: int) -> None:
    model = ScriptedModel(answer("Hello", picture=PICTURE))
    app = front(model, LIMITS)
    rng = random.Random(seed)
    sent = [changed(request, rng) for _ in range(rounds) for request in rng.sample(requests(app), 40)]
    check_answers(sent, asyncio.run(_fuzz(app, model, sent)))


def test_requests_with_changed_bytes_are_answered_or_closed() -> None:
    check_mutated(seed=20, rounds=ROUNDS)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_requests_with_changed_bytes_are_answered_or_closed(seed: int) -> None:
    check_mutated(seed, rounds=100)


async def _half_open(num: int, seconds: float) -> None:
    app = front(ScriptedModel())
    async with listening(app) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(num)]
        for index, (_, writer) in enumerate(held):
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"[: index % 50])
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        num_asked = 0
        while num_asked < 20 or loop.time() < end_s:
            answer = await exchange(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert b" 200 OK" in answer
            num_asked += 1
        for _, writer in held:
            writer.close()


def test_hundreds_of_half_open_connections_keep_nobody_out() -> None:
    asyncio.run(_half_open(400, 0))


@pytest.mark.full
def test_half_open_connections_for_longer_than_a_header_may_take_keep_nobody_out() -> None:
    asyncio.run(_half_open(450, 12))
