"""The native routes as curl asks them: a picture as the body, or JSON, and `varco run`'s document back."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.makers.requests import data_url
from tests.makers.server import RunningServer
from varco_runtime import Varco
from varco_runtime.answer.answer import Answer

PNG = {"content-type": "image/png"}
REFER = {"prompt": "What is {object}?", "text": "this", "box": "0.1,0.1,0.6,0.6"}


def curl(server: RunningServer, path: str, sign: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return server.client.post(path, content=sign, headers=PNG | (headers or {}))


def timeless(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what differs from run to run."""
    usage = {name: count for name, count in document["usage"].items() if name != "cached_tokens"}
    return {**document, "usage": usage, "timings": sorted(document["timings"])}


def expected(varco: Varco, task: str, sign: bytes) -> Answer:
    if task == "ocr":
        return varco.ocr(sign)
    if task == "ground":
        return varco.ground(sign, "Describe the image in detail.")
    return varco.refer(sign, REFER["prompt"], REFER["text"], (0.1, 0.1, 0.6, 0.6))


FIELDS = {"ocr": {}, "ground": {"prompt": "Describe the image in detail."}, "refer": REFER}


@pytest.mark.parametrize("task", FIELDS)
def test_a_task_gives_the_document_of_varco_run(server: RunningServer, varco: Varco, sign: bytes, task: str) -> None:
    document = expected(varco, task, sign).to_dict()
    said = server.client.post(f"/v1/{task}", params=FIELDS[task], content=sign, headers=PNG)
    assert said.headers["content-type"].startswith("application/json")
    assert timeless(said.json()) == timeless(document)
    in_json = server.post(f"/v1/{task}", image=data_url(sign), **FIELDS[task])
    assert timeless(in_json.json()) == timeless(document)


def test_other_formats_are_those_of_varco_run(server: RunningServer, varco: Varco, sign: bytes) -> None:
    answer = varco.ocr(sign)
    assert curl(server, "/v1/ocr?format=text", sign).text == answer.text + "\n"
    assert curl(server, "/v1/ocr?format=coco", sign).json() == answer.to_coco()
    assert curl(server, "/v1/ocr?format=hocr", sign).text == answer.to_hocr()
    assert server.post("/v1/ocr", image=data_url(sign), format="hocr").text == answer.to_hocr()


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in event.split("\n") if not line.startswith(":")]
        if lines:
            name, data = lines
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize("in_json", [False, True])
def test_events_come_as_each_box_closes(server: RunningServer, varco: Varco, sign: bytes, in_json: bool) -> None:
    accept = {"accept": "text/event-stream"}
    if in_json:
        said = server.client.post("/v1/ocr", json={"image": data_url(sign)}, headers=accept)
    else:
        said = curl(server, "/v1/ocr", sign, accept)
    document = varco.ocr(sign).to_dict()
    found = events(said.text)
    assert found[-1][0] == "done"
    assert timeless(found[-1][1]) == timeless(document)
    assert "".join(data["text"] for name, data in found if name == "text") == document["text"]
    assert "".join(data["plain_text"] for name, data in found if name == "text") == document["plain_text"]
    regions = [(place, data) for place, (name, data) in enumerate(found) if name == "region"]
    assert [data for _, data in regions] == document["regions"]
    assert regions[0][0] < regions[-1][0] < len(found) - 1
    first = next(place for place, (name, data) in enumerate(found) if name == "text" and "</bbox>" in data["text"])
    assert regions[0][0] == first + 1, "a region waited for the end of the answer"


@pytest.mark.parametrize("task", FIELDS)
def test_strict_answers_are_markup_without_a_warning(server: RunningServer, sign: bytes, task: str) -> None:
    said = server.client.post(
        f"/v1/{task}", params=FIELDS[task] | {"strict": "1", "max_tokens": "400"}, content=sign, headers=PNG
    )
    document = said.json()
    assert said.status_code == 200, document
    if document["finish_reason"] == "stop":
        assert document["warnings"] == []


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/ocr?prompt=a", "prompt"),
        ("/v1/ground", "prompt"),
        ("/v1/refer?prompt=a&text=b&box=0,0,1", "box"),
        ("/v1/ocr?format=xml", "format"),
        ("/v1/ocr?temperature=nan", "temperature"),
    ],
)
def test_bad_fields_are_refused_by_name(server: RunningServer, sign: bytes, path: str, param: str) -> None:
    said = curl(server, path, sign)
    assert said.status_code == 400
    assert said.json()["error"]["param"] == param


def test_what_is_ignored_is_named(server: RunningServer, sign: bytes) -> None:
    said = curl(server, "/v1/ocr?made_up=1&max_tokens=3", sign)
    assert said.headers["varco-ignored"] == "made_up"
    assert said.json()["usage"]["completion_tokens"] == 3
