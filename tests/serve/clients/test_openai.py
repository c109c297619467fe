"""OpenAI's client, unchanged: whole answers and streams, histories, tools, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.makers.requests import PIXEL, data_url, picture_part, text_part, user
from tests.makers.server import RunningServer
from varco_runtime import Varco

HELLO: Any = [user("Hello")]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def asking(sign: bytes, text: str) -> Any:
    return [user(picture_part(data_url(sign)), text_part(text))]


def test_an_answer_is_the_runtimes(client: openai.OpenAI, varco: Varco, sign: bytes) -> None:
    said = client.chat.completions.create(model="varco", messages=asking(sign, "<ocr>"), temperature=0)
    expected = varco.ocr(sign)
    document = expected.to_dict()
    choice = said.choices[0]
    assert choice.message.content == expected.text
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert choice.model_extra is not None
    extra = choice.model_extra["varco"]
    assert extra["regions"] == document["regions"]
    assert len(extra["regions"]) >= 2
    assert (extra["plain_text"], extra["picture"]) == (expected.plain_text, document["picture"])
    assert said.usage is not None
    assert said.usage.prompt_tokens == expected.usage.prompt_tokens
    assert said.usage.completion_tokens == expected.usage.completion_tokens
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens


def test_a_stream_joins_to_the_whole_answer(client: openai.OpenAI, varco: Varco, sign: bytes) -> None:
    stream = client.chat.completions.create(
        model="varco", messages=asking(sign, "<ocr>"), stream=True, stream_options={"include_usage": True}
    )
    expected = varco.ocr(sign)
    chunks = list(stream)
    *said, last = chunks
    choices = [chunk.choices[0] for chunk in said]
    assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", "")
    assert "".join(choice.delta.content or "" for choice in choices) == expected.text
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    extras = [(choice.model_extra or {}).get("varco", {}) for choice in choices]
    regions = [region for extra in extras for region in extra.get("regions", ())]
    assert regions == expected.to_dict()["regions"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == expected.usage.completion_tokens


def test_several_at_once_get_the_answers_of_one_alone(server: RunningServer, varco: Varco, sign: bytes) -> None:
    questions = [HELLO, asking(sign, "<ocr>"), asking(sign, "Describe this image."), [user("What is this?")]] * 2

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(messages: Any, stream: bool) -> str | None:
                if not stream:
                    whole = await client.chat.completions.create(model="varco", messages=messages, max_tokens=60)
                    return whole.choices[0].message.content
                chunks = await client.chat.completions.create(
                    model="varco", messages=messages, max_tokens=60, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*[ask(messages, index % 2 == 0) for index, messages in enumerate(questions)])

    limit = {"max_new_tokens": 60}
    expected = [
        varco.ask(None, "Hello", **limit).text,
        varco.ask(sign, "<ocr>", **limit).text,
        varco.ask(sign, "Describe this image.", **limit).text,
        varco.ask(None, "What is this?", **limit).text,
    ] * 2
    assert asyncio.run(ask_all()) == expected


def test_the_helper_for_streams_takes_ours(client: openai.OpenAI, varco: Varco, sign: bytes) -> None:
    with client.chat.completions.stream(model="varco", messages=asking(sign, "<ocr>"), n=2, logprobs=True) as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    text = varco.ocr(sign).text
    assert [(choice.index, choice.message.content) for choice in whole.choices] == [(0, text), (1, text)]
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert joined(choice.logprobs.content) == text.encode()


def joined(content: Any) -> bytes:
    return b"".join(bytes(entry.bytes) for entry in content)


def test_probabilities_are_those_of_the_answers_tokens(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="varco", messages=HELLO, logprobs=True, top_logprobs=20, max_tokens=8, temperature=0
    )
    logprobs = said.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert joined(logprobs.content).decode() == said.choices[0].message.content
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 20
        assert entry.top_logprobs[0].logprob == max(one.logprob for one in entry.top_logprobs) == entry.logprob <= 0
    plain = client.chat.completions.create(model="varco", messages=HELLO, max_tokens=8)
    assert plain.choices[0].logprobs is None


def test_several_answers_to_one_question(client: openai.OpenAI) -> None:
    def drawn() -> list[str | None]:
        said = client.chat.completions.create(
            model="varco", messages=HELLO, n=4, temperature=2, seed=5, max_tokens=8, extra_body={"ignore_eos": True}
        )
        assert [choice.index for choice in said.choices] == [0, 1, 2, 3]
        assert said.usage is not None
        assert said.usage.completion_tokens == 32
        return [choice.message.content for choice in said.choices]

    first = drawn()
    assert len(set(first)) > 1, "all were drawn alike"
    assert drawn() == first, "a seed that repeats nothing"


def test_a_history_with_a_picture_is_a_conversation(client: openai.OpenAI, varco: Varco, sign: bytes) -> None:
    chat = varco.chat(sign)
    first, second = chat.ask("Describe this image."), chat.ask("What does it say?", max_new_tokens=40)
    messages = asking(sign, "Describe this image.")
    said = client.chat.completions.create(model="varco", messages=messages)
    assert said.choices[0].message.content == first.text
    messages += [said.choices[0].message.model_dump(), user("What does it say?")]
    again = client.chat.completions.create(model="varco", messages=messages, max_completion_tokens=40)
    assert again.choices[0].message.content == second.text
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens, "the picture was read again"


def test_tools_that_nobody_demands_are_ignored_and_named(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="varco", messages=HELLO, tools=TOOLS, tool_choice="auto", user="me", store=False, max_tokens=4
    )
    assert set(raw.headers["varco-ignored"].split(", ")) == {"tools", "tool_choice", "user", "store"}
    message = raw.parse().choices[0].message
    assert message.tool_calls is None
    assert message.content


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"messages": [user(picture_part("https://example.com/a.png"))]}, "messages[0].content[0].image_url.url"),
        ({"messages": [user({"type": "input_audio", "input_audio": {}})]}, "messages[0].content[0].type"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"extra_body": {"chat_template": "x"}}, "chat_template"),
        ({"extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_a_bad_request_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "varco", "messages": HELLO, "stream": stream, **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("data", [b"GIF89a...", b"II*\0" + bytes(40), b"hello", PIXEL[:45]])
def test_a_picture_that_is_none_is_a_bad_request_with_its_place(client: openai.OpenAI, data: bytes) -> None:
    messages: Any = [user("Hello"), user(text_part("And?"), picture_part(data_url(data)))]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="varco", messages=messages)
    assert caught.value.param == "messages[1].content[1].image_url.url"


def test_the_model_has_a_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["varco"]
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not here"):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)


def test_a_stop_text_ends_an_answer_before_it(client: openai.OpenAI, varco: Varco, sign: bytes) -> None:
    said = client.chat.completions.create(model="varco", messages=asking(sign, "<ocr>"), stop=["</char>"])
    assert said.choices[0].message.content == varco.ocr(sign, stop="</char>").text
    assert said.choices[0].finish_reason == "stop"


def test_more_tokens_than_there_is_room_are_clamped(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="varco", messages=HELLO, max_tokens=32_768)
    assert said.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(model="varco", messages=HELLO, max_tokens=1, logit_bias={"2": -100})
    assert cut.choices[0].finish_reason == "length"
