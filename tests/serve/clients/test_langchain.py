"""LangChain's client for OpenAI, unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Literal

import openai
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from tests.makers.requests import data_url, picture_part, text_part
from tests.makers.server import RunningServer
from varco_runtime import Varco


@pytest.fixture(scope="module")  # its connections are those of all clients that it makes
def chat(server: RunningServer) -> Iterator[ChatOpenAI]:
    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="varco", max_retries=0)  # type: ignore[arg-type]
    yield chat
    chat.root_client.close()
    asyncio.run(chat.root_async_client.close())


def showing(sign: bytes, text: str) -> HumanMessage:
    return HumanMessage(content=[picture_part(data_url(sign)), text_part(text)])


def test_invoke(chat: ChatOpenAI, varco: Varco) -> None:
    said = chat.invoke([SystemMessage("Be short."), HumanMessage("Hello")])
    expected = varco.ask(None, "Hello", system="Be short.")
    assert said.content == expected.text
    assert said.response_metadata["finish_reason"] == "stop"
    assert isinstance(said, AIMessage)
    assert said.usage_metadata is not None
    assert said.usage_metadata["output_tokens"] == expected.usage.completion_tokens


def test_stream_with_a_picture(chat: ChatOpenAI, varco: Varco, sign: bytes) -> None:
    pieces = list(chat.stream([showing(sign, "<ocr>")]))
    assert "".join(str(piece.content) for piece in pieces) == varco.ocr(sign).text
    assert len(pieces) > 3


def test_a_picture_in_langchains_own_words(chat: ChatOpenAI, varco: Varco, sign: bytes) -> None:
    data = data_url(sign).partition(",")[2]
    part = {"type": "image", "base64": data, "mime_type": "image/png"}
    said = chat.invoke([HumanMessage(content=[part, text_part("<ocr>")])])
    assert said.content == varco.ocr(sign).text


def test_several_at_once(chat: ChatOpenAI, varco: Varco) -> None:
    texts = ["Hello", "What is this?", "Hello"]
    assert [said.content for said in chat.batch(texts)] == [varco.ask(None, text).text for text in texts]


def test_a_conversation(chat: ChatOpenAI, varco: Varco, sign: bytes) -> None:
    first = chat.invoke([showing(sign, "Describe this image.")])
    second = chat.invoke(
        [showing(sign, "Describe this image."), first, HumanMessage("What does it say?")], max_tokens=40
    )
    expected = varco.chat(sign)
    assert first.content == expected.ask("Describe this image.").text
    assert second.content == expected.ask("What does it say?", max_new_tokens=40).text


class Sign(pydantic.BaseModel):
    """What a picture shows."""

    kind: Literal["sign", "photo"]
    is_korean: bool


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output(chat: ChatOpenAI, method: Literal["json_schema", "json_mode"], sign: bytes) -> None:
    form = chat.with_structured_output(Sign, method=method, include_raw=True)
    said = form.invoke([showing(sign, "Describe this image.")], max_tokens=100)
    assert isinstance(said, dict)
    if method == "json_schema":  # the other leaves the fields to the model, which is too small to know them
        assert isinstance(said["parsed"], Sign)
    assert str(said["raw"].content).lstrip().startswith("{")


def test_a_tool_that_must_be_called_is_refused(chat: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        chat.with_structured_output(Sign, method="function_calling").invoke("Hello")


def test_tools_that_may_be_called_are_ignored(chat: ChatOpenAI, varco: Varco) -> None:
    said = chat.bind_tools([Sign]).invoke("Hello")
    assert said.content == varco.ask(None, "Hello").text
    assert said.tool_calls == []
