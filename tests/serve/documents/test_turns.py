"""Messages: roles, parts and pictures, and their bounds, each before anything is allocated for what they hold."""

from __future__ import annotations

from typing import Any

import pytest

from tests.makers.requests import PIXEL, chat_request, data_url, picture_part, text_part, user
from varco_runtime.prompt import prompter
from varco_serve.documents import data_url as data_urls
from varco_serve.documents import turns
from varco_serve.documents.chat import ChatRequest, Limits, parse_chat
from varco_serve.documents.errors import RequestError
from varco_serve.messages import AskTurn


def parsed(*messages: Any, max_images: int | None = 2, **fields: Any) -> ChatRequest:
    return parse_chat(chat_request(*messages, **fields), Limits("varco", max_images))


def refusal(*messages: Any, max_images: int | None = 2, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(*messages, max_images=max_images, **fields)
    error = caught.value
    assert error.status == 400
    assert "\n" not in error.message
    assert len(error.message) < 400, "an error's line echoes the request"
    return error


def test_a_conversation_keeps_its_order_and_its_pictures_theirs() -> None:
    request = parsed(
        {"role": "system", "content": "Be short."},
        user(picture_part(), text_part("What is this?")),
        {"role": "assistant", "content": [text_part("A "), text_part("dot.")]},
        user(text_part("And"), picture_part(data_url(b"BM", "image/bmp")), text_part("this?")),
    )
    assert request.turns == (
        AskTurn("system", ("Be short.",)),
        AskTurn("user", (0, "What is this?")),
        AskTurn("assistant", ("A ", "dot.")),
        AskTurn("user", ("And", 1, "this?")),
    )
    assert request.pictures == (PIXEL, b"BM")
    assert request.picture_params == ("messages[1].content[0].image_url.url", "messages[3].content[1].image_url.url")


@pytest.mark.parametrize("max_chars", [turns.MAX_TEXT_CHARS])
def test_the_bound_of_texts_is_the_runtimes(max_chars: int) -> None:
    assert max_chars == prompter.MAX_PROMPT_CHARS


def test_developers_speak_as_the_system() -> None:
    assert parsed({"role": "developer", "content": "Be short."}, user("a")).turns[0] == AskTurn(
        "system", ("Be short.",)
    )


def test_an_answer_sent_back_as_it_came_is_taken() -> None:
    said = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None, "audio": None, "annotations": []}
    request = parsed(user("Hello"), said, user("Who are you?"))
    assert request.turns[1] == AskTurn("assistant", ("Hi",))
    assert request.ignored == ("messages.annotations",)


@pytest.mark.parametrize("content", ["", [text_part("")]])
def test_an_empty_text_is_one(content: object) -> None:
    assert parsed(user("a") | {"content": content}).turns == (AskTurn("user", ("",)),)


def test_an_answer_that_never_began_may_be_null() -> None:
    assert parsed({"role": "assistant", "content": None}, user("a")).turns[0] == AskTurn("assistant", ("",))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({}, "messages[0].role"),
        ({"role": "root", "content": "a"}, "messages[0].role"),
        ({"role": ["user"], "content": "a"}, "messages[0].role"),
        ({"role": "tool", "tool_call_id": "1", "content": "4"}, "messages[0].role"),
        ({"role": "function", "name": "f", "content": "4"}, "messages[0].role"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "assistant", "content": "a", "audio": {"id": "1"}}, "messages[0].audio"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "system", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": {}}, "messages[0].content"),
        ({"role": "user", "content": "\udfff"}, "messages[0].content"),
        ({"role": "user", "content": ["a"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "video_url", "video_url": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].image_url.url"),
        ({"role": "system", "content": [picture_part()]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": [picture_part()]}, "messages[0].content[0]"),
    ],
)
def test_a_message_that_is_none_is_refused_with_its_place(message: object, param: str) -> None:
    assert refusal(message).param == param


@pytest.mark.parametrize("messages", [None, [], "hi", {"role": "user"}, 5])
def test_a_request_needs_messages(messages: object) -> None:
    assert refusal(messages=messages).param == "messages"


@pytest.mark.parametrize("scheme", ["http", "HTTPS", "file", "ftp", "gopher", "blob"])
def test_no_url_is_fetched(scheme: str) -> None:
    error = refusal(user(picture_part(f"{scheme}://internal.example/secret?token=5")))
    assert (error.param, error.code) == ("messages[0].content[0].image_url.url", "invalid_image_url")
    assert f"scheme {scheme.lower()}:" in error.message
    assert "internal" not in error.message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "aGVsbG8=",
        "/etc/passwd",
        "data:",
        "data:image/png",
        "data:image/png,AAAA",
        "data:image/png;base64",
        "data:image/png;base64 ,AAAA",
        "data:image/png" + ";x=y" * 1000 + ";base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/tiff;base64,AAAA",
        "data:image/avif;base64,AAAA",
        "data:application/octet-stream;base64,AAAA",
        "data:video/mp4;base64,AAAA",
        "data:;base64,AAAA",
    ],
)
def test_other_urls_are_refused_with_what_is_expected(url: str) -> None:
    error = refusal(user(picture_part(url)))
    assert error.param == "messages[0].content[0].image_url.url"
    assert "image/png" in error.message


@pytest.mark.parametrize(
    "base64",
    ["", "A", "AA", "AAA", "AA==AAAA", "AAAA====", "A-_A", "AAAA\n", "AA AA", "AA%3D%3D", "=AAA", "AAAé", "AB==" + "A"],
)
def test_base64_is_taken_to_the_letter(base64: str) -> None:
    error = refusal(user(picture_part(f"data:image/png;base64,{base64}")))
    assert (error.param, error.code) == ("messages[0].content[0].image_url.url", "invalid_base64")


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,AAAA",
        "DATA:IMAGE/PNG;BASE64,AAAA",
        "data:image/jpg;base64,AAAA",
        "data:image/jpeg;name=a.jpg;base64,AAAA",
    ],
)
def test_spellings_of_a_data_url(url: str) -> None:
    assert parsed(user(picture_part(url))).pictures == (b"\0\0\0",)


def test_an_url_without_the_object_around_it_is_taken() -> None:
    assert parsed(user({"type": "image_url", "image_url": data_url()})).pictures == (PIXEL,)


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        pytest.fail("a picture was decoded before all were counted")

    monkeypatch.setattr(turns, "decode_picture", fail)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize(("max_images", "most"), [(2, 2), (0, 0), (None, turns.MAX_PICTURES)])
def test_pictures_of_the_whole_conversation_are_counted_before_one_is_decoded(
    max_images: int | None, most: int
) -> None:
    messages = [user(picture_part(), text_part("a")) for _ in range(most + 1)]
    error = refusal(*messages, max_images=max_images)
    assert (error.param, error.code) == ("messages", "too_many_images")
    assert str(most + 1) in error.message
    assert str(most) in error.message


def test_more_pictures_than_the_model_was_trained_with_are_let_through_where_that_is_asked() -> None:
    request = parsed(user(*[picture_part()] * 3), max_images=1, untrained=True)
    assert len(request.pictures) == 3
    assert request.options == {"untrained": True}


class Untouched(dict[str, Any]):
    """A message or part that must not be looked into."""

    def get(self, *_: object) -> Any:
        pytest.fail("a part was read before all were counted")

    __getitem__ = items = get


def test_a_million_parts_are_refused_by_their_number_alone() -> None:
    error = refusal(user(*[Untouched()] * 1_000_000))
    assert error.param == "messages"
    assert "1,000,000 parts" in error.message
    spread = [user(*[Untouched()] * 5) for _ in range(turns.MAX_PARTS // 5 + 1)]
    assert "parts" in refusal(*spread).message


def test_a_million_messages_are_refused_by_their_number_alone() -> None:
    assert "1,000,000 messages" in refusal(messages=[user("a")] * 1_000_000).message


def test_texts_longer_than_any_context_are_refused_wherever_they_stand() -> None:
    half = "x" * (turns.MAX_TEXT_CHARS // 2 + 1)
    assert refusal(user(half + half)).param == "messages[0].content"
    error = refusal(user(half), {"role": "assistant", "content": half}, user("a"))
    assert error.code == "context_length_exceeded"


def test_the_types_of_pictures_are_those_that_are_decoded() -> None:
    assert [one.partition("/")[2].upper() for one in data_urls.TYPES] == ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "messages is missing, expected a list of at least one message."),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing, expected a text or a list of parts."),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role is missing, expected one of system, developer, user"),
    ],
)
def test_what_is_not_there_is_called_missing(document: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(document, Limits("varco", 2))
    assert caught.value.message.startswith(message)
