"""The native routes: a picture as the body, JSON, formats, events."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest

from tests.doubles.front import client, front
from tests.doubles.model import ScriptedModel, done
from varco_serve.messages import Begun, Failed, Pixels, Said

PNG = b"\x89PNG and so on"
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
REGION = {
    "kind": "text",
    "text": "EXIT",
    "start": 0,
    "end": 4,
    "boxes": [[0.0, 0.25, 0.5, 1.0]],
    "boxes_px": [[0, 5, 10, 20]],
}
PICTURE = {"width": 20, "height": 20}
SIGN = [
    Begun(7),
    Said("<char>EXIT</char>", "EXIT"),
    Said("<bbox>0.0, 0.25, 0.5, 1.0</bbox>", "", (REGION,)),
    done("<char>EXIT</char><bbox>0.0, 0.25, 0.5, 1.0</bbox>", plain_text="EXIT", regions=[REGION], picture=PICTURE),
]


def ask(
    model: ScriptedModel, path: str, *, kind: str = "image/png", content: bytes = PNG, **headers: str
) -> httpx.Response:
    """Return what is answered to a picture, or to JSON."""

    async def asking() -> httpx.Response:
        async with client(front(model)) as caller:
            return await caller.post(path, content=content, headers={"content-type": kind, **headers})

    return asyncio.run(asking())


def test_a_picture_as_the_body_is_answered_as_varco_run_does() -> None:
    model = ScriptedModel(SIGN)
    response = ask(model, "/v1/ocr")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == SIGN[-1].document  # type: ignore[union-attr]
    assert model.decoded == [PNG]
    assert model.asks[0].turns[0].parts[0] == 0
    assert model.asks[0].pictures == (Pixels(2, 1, bytes(6)),)


def test_json_with_a_data_url_asks_the_same() -> None:
    raw, wrapped = ScriptedModel(SIGN), ScriptedModel(SIGN)
    ask(raw, "/v1/ground?prompt=Describe&max_tokens=5&strict=1")
    document = {"image": URL, "prompt": "Describe", "max_tokens": 5, "strict": True}
    response = ask(wrapped, "/v1/ground", kind="application/json", content=json.dumps(document).encode())
    assert response.status_code == 200
    assert wrapped.asks == raw.asks
    assert wrapped.asks[0].grammar == {"kind": "markup", "task": "ground"}


@pytest.mark.parametrize(
    ("name", "kind", "holds"),
    [
        ("text", "text/plain", "<char>EXIT</char>"),
        ("coco", "application/json", '"bbox": [0.0, 5.0, 10.0, 15.0]'),
        ("hocr", "application/xhtml+xml", "ocrx_word"),
    ],
)
def test_an_answer_has_the_format_that_is_asked_for(name: str, kind: str, holds: str) -> None:
    response = ask(ScriptedModel(SIGN), f"/v1/ocr?format={name}")
    assert response.headers["content-type"].startswith(kind)
    assert holds in response.text


def events_of(response: httpx.Response) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_events_are_texts_regions_as_they_close_and_the_document() -> None:
    response = ask(ScriptedModel(SIGN), "/v1/ocr", accept="text/event-stream")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events_of(response) == [
        ("text", {"text": "<char>EXIT</char>", "plain_text": "EXIT"}),
        ("text", {"text": "<bbox>0.0, 0.25, 0.5, 1.0</bbox>", "plain_text": ""}),
        ("region", REGION),
        ("done", SIGN[-1].document),  # type: ignore[union-attr]
    ]


def test_plain_text_that_was_held_back_comes_though_no_text_does() -> None:
    model = ScriptedModel([Begun(7), Said("<bbox>0.1", ""), Said("", "0.1"), done("<bbox>0.1", plain_text="0.1")])
    found = events_of(ask(model, "/v1/ocr", accept="text/event-stream"))
    assert "".join(data["plain_text"] for name, data in found if name == "text") == "0.1"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_failure_names_no_field_of_a_chat(accept: str) -> None:
    model = ScriptedModel([Failed(400, "Too long.", "context_length_exceeded", "messages")])
    response = ask(model, "/v1/ocr", accept=accept)
    assert response.status_code == 400
    assert response.json()["error"]["param"] is None


def test_a_failure_after_the_first_event_is_an_event() -> None:
    model = ScriptedModel([*SIGN[:2], Failed(503, "It ended.", retry_after_s=1.0)])
    name, document = events_of(ask(model, "/v1/ocr", accept="text/event-stream"))[-1]
    assert (name, document["error"]["message"]) == ("error", "It ended.")


@pytest.mark.parametrize(
    ("path", "kind", "status", "says"),
    [
        ("/v1/ocr", "text/plain", 415, "Content-Type"),
        ("/v1/ocr", "application/x-www-form-urlencoded", 415, "Content-Type"),
        ("/v1/ocr", "image/tiff", 400, "image/tiff"),
        ("/v1/ocr", "application/json", 400, "UTF-8"),
        ("/v1/ocr?format=pdf", "image/png", 400, "format"),
        ("/v1/ocr?x=1&x=2", "image/png", 400, "twice"),
        ("/v1/ocr?x=%ff", "image/png", 400, "UTF-8"),
        ("/v1/ocr?" + "&".join(f"a{index}=1" for index in range(40)), "image/png", 400, "32 fields"),
        ("/v1/ground", "image/png", 400, "prompt"),
        ("/v1/refer?prompt=a&text=b&box=0,0,2,1", "image/png", 400, "box"),
    ],
)
def test_what_cannot_be_asked_is_refused(path: str, kind: str, status: int, says: str) -> None:
    model = ScriptedModel(SIGN)
    response = ask(model, path, kind=kind)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]
    assert not model.asks


def test_events_have_one_format() -> None:
    assert ask(ScriptedModel(SIGN), "/v1/ocr?format=coco", accept="text/event-stream").status_code == 400


def test_a_picture_that_cannot_be_decoded_is_refused() -> None:
    model = ScriptedModel(SIGN)
    model.pixels = Failed(400, "The picture is damaged.", code="invalid_image")
    response = ask(model, "/v1/ocr")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_image"
    assert not model.asks


def test_what_changes_nothing_is_named() -> None:
    response = ask(ScriptedModel(SIGN), "/v1/ocr?user=somebody&detail=high")
    assert response.headers["varco-ignored"] == "user, detail"
