"""HTTP requests on the wire, right ones and such with bytes changed, and what may be answered to them."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
_NO_ROUTES = ("/", "/v1/chat/completions/", "/%00", "/v1/../health", "//health")
_QUERIES = {
    "/v1/ground": "?prompt=a&max_tokens=5",
    "/v1/refer": "?prompt=a&text=b&box=0,0,1,1&max_tokens=5",
    "/v1/ocr": "?max_tokens=5",
}
_PARTS = [{"type": "text", "text": "무엇?"}, {"type": "image_url", "image_url": {"url": URL}}]
_MESSAGES = [{"role": "system", "content": "Short."}, {"role": "user", "content": _PARTS}]
_CHAT = {"model": "varco", "messages": _MESSAGES, "max_tokens": 5, "stop": ["\n"], "top_p": 0.5, "seed": 1}
CHAT = json.dumps(_CHAT).encode()
_INSERTED = (b"\r\n", b"\x00", b"%", b"\xff", b'"', b"{", b"[", b"9" * 30, b"-", b":", b" ", b"\\ud800", b"1e999")
_OURS = re.compile(
    r"varco_(?:serve|runtime|cli)|Traceback|\b[A-Z]\w+(?:Error|Exception)\b|0x[0-9a-f]{6}|/site-packages|\.py\b"
)
"""What no answer holds: paths, classes and addresses of ours."""


@dataclass(frozen=True)
class HttpRequest:
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
            chunks = [body[start : start + 40] for start in range(0, len(body), 40)] + [b""]
            body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        else:
            framing = f"content-length: {len(body)}"
        fields = f"host: localhost\r\nconnection: close\r\ncontent-type: {self.kind}\r\n{framing}"
        return f"{self.method} {self.path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


def http_requests(routes: Iterable[str]) -> list[HttpRequest]:
    """Return every method on every route and on paths that are none, with a body that fits the route."""
    made = []
    for path in (*sorted(routes), *_NO_ROUTES):
        kind, body = ("image/png", PNG) if path in _QUERIES else ("application/json", CHAT)
        made += [HttpRequest(method, path + _QUERIES.get(path, ""), kind, body) for method in METHODS]
    made.append(HttpRequest("POST", "/v1/chat/completions", "application/json", CHAT, is_chunked=True))
    made.append(HttpRequest("POST", "/v1/ocr?format=hocr&max_tokens=5", "image/png", PNG, is_chunked=True))
    return made


def changed(request: HttpRequest, rng: random.Random) -> bytes:
    """Return a request on the wire with some bytes changed: anywhere, or in a body whose length is right."""
    if rng.random() < 0.5:
        return _mutated(request.on_the_wire(), rng)
    return replace(request, body=_mutated(request.body, rng)).on_the_wire()


def many_changed(routes: Iterable[str], seed: int, num_requests: int) -> list[bytes]:
    """Return requests with bytes changed, the same for the same seed."""
    rng = random.Random(seed)
    requests = http_requests(routes)
    # Those that ask the model have most to read.
    weights = [8 if request.method == "POST" and request.path.startswith("/v1/") else 1 for request in requests]
    return [changed(request, rng) for request in rng.choices(requests, weights, k=num_requests)]


def _mutated(before: bytes, rng: random.Random) -> bytes:
    """Change, remove, double or insert a few bytes."""
    data = bytearray(before)
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
            data[at:at] = rng.choice(_INSERTED)
    return bytes(data)


def check_answers(sent: Sequence[bytes], answers: Sequence[bytes]) -> None:
    """Check that every answer is one of ours, none a fault of the server, and that none tells of its insides."""
    for request, answer in zip(sent, answers, strict=True):
        if not answer:
            continue
        status = int(answer[9:12])
        assert status < 500, (request, answer)
        head, _, body = answer.partition(b"\r\n\r\n")
        if status >= 400 and b"content-length" in head and not request.startswith(b"HEAD "):
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}, (request, answer)
            assert "\n" not in error["message"], (request, answer)
            assert not _OURS.search(error["message"]), (request, answer)
