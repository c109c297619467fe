"""Answers over HTTP are those of `Varco.ask`: streamed and not, alone, beside seven others, and beside what fails."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.makers.server import DEMO_BUNDLE, RunningServer
from varco_runtime import Varco
from varco_runtime.answer.answer import Answer
from varco_runtime.markup.questions import OCR_PROMPT

WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.2, "seed": 6, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"70": 5.0, "71": -100.0}},
    {"stop": ["e", "9"]},
    {"ignore_eos": True, "max_new_tokens": 40},
]
"""One for each of eight slots, in the runtime's words."""


def picture_file(seed: int, format_: str = "PNG") -> bytes:
    """A file of a picture that is like no other."""
    array = np.random.default_rng(seed).integers(0, 256, (40 + seed, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, format_)
    return file.getvalue()


PICTURES = [picture_file(seed, format_) for seed, format_ in enumerate(("PNG", "JPEG", "WEBP", "GIF"))]
PROMPTS = ("What is this?", OCR_PROMPT)


def content(data: bytes, prompt: str) -> list[dict[str, Any]]:
    """What a client sends of a picture and a prompt."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]


def request(index: int, **more: Any) -> dict[str, Any]:
    """One of eight questions, each asked in a way of its own."""
    way = {"max_new_tokens": 60, **WAYS[index]}
    way["max_tokens"] = way.pop("max_new_tokens")
    asked = content(PICTURES[index % 4], PROMPTS[index % 2])
    return {"messages": [{"role": "user", "content": asked}], **way, **more}


@pytest.fixture(scope="module")
def varco() -> Varco:
    return Varco.load(DEMO_BUNDLE, provider="cpu", threads=1)


@pytest.fixture(scope="module")
def expected(varco: Varco) -> list[Answer]:
    answers = [
        varco.ask(PICTURES[index % 4], PROMPTS[index % 2], **{"max_new_tokens": 60, **way})
        for index, way in enumerate(WAYS)
    ]
    assert len({answer.text for answer in answers if answer.text}) == len(WAYS), "answers that show nothing"
    return answers


def check_whole(server: RunningServer, index: int, answer: Answer) -> None:
    got = server.post("/v1/chat/completions", **request(index))
    assert got.status_code == 200, got.text
    document = got.json()
    choice, whole = document["choices"][0], answer.to_dict()
    assert choice["message"]["content"] == answer.text
    for name in ("plain_text", "regions", "warnings", "finish_reason", "media"):
        assert choice["varco"][name] == whole[name], name
    assert document["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert document["usage"]["completion_tokens"] == answer.usage.completion_tokens


def check_streamed(server: RunningServer, index: int, answer: Answer) -> None:
    with server.client.stream("POST", "/v1/chat/completions", json=request(index, stream=True)) as got:
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == answer.text
    extras = [choice.get("varco", {}) for choice in choices]
    assert [region for extra in extras for region in extra.get("regions", [])] == answer.to_dict()["regions"]
    assert extras[-1]["finish_reason"] == answer.finish_reason


def test_alone(server: RunningServer, expected: list[Answer]) -> None:
    for index, answer in enumerate(expected):
        check_whole(server, index, answer)
        check_streamed(server, index, answer)


def test_beside_seven_others(server: RunningServer, expected: list[Answer]) -> None:
    with ThreadPoolExecutor(8) as pool:
        for check in (check_whole, check_streamed):
            for done in [pool.submit(check, server, index, answer) for index, answer in enumerate(expected)]:
                done.result()


def test_beside_answers_that_fail_are_refused_or_are_left(server: RunningServer, expected: list[Answer]) -> None:
    """A schema that dies, a value that is refused in the worker, a client that leaves after its first chunk."""

    def fail() -> int:
        schema = {"name": "none", "schema": {"type": "string", "pattern": "a{9}$^b"}}
        form = {"type": "json_schema", "json_schema": schema}
        return server.chat("Hi", response_format=form, max_tokens=20).status_code

    def refuse() -> int:
        return server.chat("Hi", logit_bias={"99999999": 1}).status_code

    def leave() -> int:
        document = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "ignore_eos": True}
        with server.client.stream("POST", "/v1/chat/completions", json=document) as got:
            next(got.iter_lines())
            return got.status_code

    with ThreadPoolExecutor(16) as pool:
        others = [pool.submit(other) for other in (fail, refuse, leave) * 2]
        asked = [pool.submit(check_whole, server, index, answer) for index, answer in enumerate(expected)]
        statuses = [other.result() for other in others]
        for done in asked:
            done.result()
    assert set(statuses) == {400, 200}
    assert statuses.count(400) == 4


@pytest.mark.parametrize("task", ["ocr", "ground", "refer"])
def test_the_native_routes_answer_with_the_document_of_varco_run(
    server: RunningServer, varco: Varco, task: str
) -> None:
    asked: dict[str, dict[str, str]] = {
        "ocr": {},
        "ground": {"prompt": "Where is it?"},
        "refer": {"prompt": "What is {object}?", "text": "it", "box": "0.1,0.1,0.5,0.5"},
    }
    answers = {
        "ocr": lambda: varco.ocr(PICTURES[0]),
        "ground": lambda: varco.ground(PICTURES[0], "Where is it?"),
        "refer": lambda: varco.refer(PICTURES[0], "What is {object}?", "it", (0.1, 0.1, 0.5, 0.5)),
    }
    got = server.client.post(
        f"/v1/{task}", params=asked[task], content=PICTURES[0], headers={"content-type": "image/png"}
    )
    assert got.status_code == 200, got.text
    whole, document = answers[task]().to_dict(), got.json()
    for name in ("text", "plain_text", "token_ids", "regions", "warnings", "finish_reason", "picture", "media"):
        assert document[name] == whole[name], name
