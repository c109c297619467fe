"""Several pictures, where a bundle takes them: in any order among texts, and in every turn of a history."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from tests.makers.requests import data_url, picture_part, text_part, user
from tests.makers.server import RunningServer
from varco_runtime import Varco
from varco_runtime.conversation import Turn
from varco_runtime.picture.loading import load_picture
from varco_runtime.stream import start_stream


def picture_file(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30 + seed, 50, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


A, B = picture_file(1), picture_file(2)
SHOWN = {A: picture_part(data_url(A)), B: picture_part(data_url(B))}


@pytest.fixture(scope="module")
def media_varco(media_bundle: Path) -> Varco:
    return Varco.load(media_bundle, provider="cpu", threads=1)


@pytest.fixture(scope="module")
def media_client(media_bundle: Path) -> Iterator[openai.OpenAI]:
    with (
        RunningServer("--slots", "1", "--threads", "1", bundle=media_bundle) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def said(client: openai.OpenAI, *messages: Any) -> Any:
    return client.chat.completions.create(model="varco", messages=list(messages), max_tokens=12)


def asked(varco: Varco, *turns: tuple[str, tuple[str | bytes, ...]]) -> Any:
    loaded = [
        Turn(role, tuple(part if isinstance(part, str) else load_picture(part) for part in parts))
        for role, parts in turns
    ]
    return start_stream(varco.session, lambda: loaded, {"max_new_tokens": 12}).run()


@pytest.mark.parametrize(
    "parts",
    [(A, B, "Compare."), (B, A, "Compare."), ("First:", A, "second:", B, "Which?"), ("Same?", A, A), (A, "a", "b", B)],
)
def test_parts_keep_their_order(
    media_client: openai.OpenAI, media_varco: Varco, parts: tuple[str | bytes, ...]
) -> None:
    answer = asked(media_varco, ("user", parts))
    got = said(media_client, user(*[text_part(part) if isinstance(part, str) else SHOWN[part] for part in parts]))
    assert got.choices[0].message.content == answer.text
    assert got.usage.prompt_tokens == answer.usage.prompt_tokens
    assert got.choices[0].varco["media"] == answer.to_dict()["media"]
    assert got.choices[0].varco["picture"] is None  # it is not said which of them a box is for


def test_pictures_of_earlier_turns_stay_where_they_were(media_client: openai.OpenAI, media_varco: Varco) -> None:
    answer = asked(
        media_varco,
        ("system", ("Be short.",)),
        ("user", (A, "What is this?")),
        ("assistant", ("A dot.",)),
        ("user", ("And", B, "this?")),
    )
    got = said(
        media_client,
        {"role": "developer", "content": "Be short."},
        user(SHOWN[A], text_part("What is this?")),
        {"role": "assistant", "content": "A dot."},
        user(text_part("And"), SHOWN[B], text_part("this?")),
    )
    assert got.choices[0].message.content == answer.text
    assert got.usage.prompt_tokens == answer.usage.prompt_tokens


def test_more_pictures_than_the_context_holds_are_a_bad_request(media_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        said(media_client, user(*[SHOWN[A]] * 200, text_part("Compare.")))
    assert caught.value.param == "messages"
