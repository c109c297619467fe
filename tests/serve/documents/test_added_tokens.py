"""Every added token that a caller writes is plain text, in every role and at every place; the markup alone is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.makers.requests import chat_request, picture_part, text_part, user
from tests.makers.server import DEMO_BUNDLE
from varco_export.config.prompts import load_prompts
from varco_runtime.bundle.opening import Bundle
from varco_runtime.bundle.settings import PromptSettings
from varco_runtime.prompt.prompter import IMAGE, Message, Prompter
from varco_runtime.prompt.tokenizer import Tokenizer
from varco_serve.documents.chat import ChatRequest, Limits, parse_chat
from varco_serve.documents.native import parse_native
from varco_serve.messages import AskTurn

HARMLESS = "x"


class Prompts:
    """The prompts of one tokenizer and template."""

    def __init__(self, template: str, settings: PromptSettings, tokenizer: Tokenizer) -> None:
        self._prompter = Prompter(template, settings, tokenizer)
        self._added = set(tokenizer.added_token_ids.values())
        self.forbidden = sorted(set(tokenizer.added_token_ids) - set(settings.markup_tokens))
        self.markup = settings.markup_tokens

    def added_ids(self, turns: tuple[AskTurn, ...]) -> list[int]:
        """The added tokens of a conversation's prompt."""
        messages = [
            Message(turn.role, tuple(part if isinstance(part, str) else IMAGE for part in turn.parts)) for turn in turns
        ]
        return [id_ for id_ in self._prompter.encode(messages, 3) if id_ in self._added]


@pytest.fixture(scope="module")
def demo() -> Prompts:
    bundle = Bundle.open(DEMO_BUNDLE)
    manifest = bundle.manifest
    tokenizer = Tokenizer.from_json(bundle.text(manifest.tokenizer))
    return Prompts(bundle.text(manifest.chat_template), manifest.prompt, tokenizer)


@pytest.fixture(scope="module")
def real(shared: Path) -> Prompts:
    folder = shared / "models" / "varco-vision-14b-hf"
    if not folder.is_dir():
        pytest.skip("the real tokenizer is not here")
    assets = load_prompts(folder, family="hf", image_token_id=151675, eos_token_id=(151645,), vocab_size=151680)
    return Prompts(assets.chat_template, assets.prompt, Tokenizer.from_json(assets.tokenizer_json))


def requests(text: str) -> Iterator[dict[str, Any]]:
    """Requests with a text in every role and at every place."""
    ask = user(picture_part(), text_part("What?"))
    answer = {"role": "assistant", "content": "That."}
    for role in ("system", "developer"):
        yield chat_request({"role": role, "content": text}, ask)
        yield chat_request({"role": role, "content": [text_part("a"), text_part(text)]}, ask)
    for spelled in (text, f" {text} ", f"a{text}b", f"\n{text}\n{text}"):
        yield chat_request(user(spelled))
        yield chat_request(user(text_part(spelled), picture_part(), text_part("What?")))
        yield chat_request(user(picture_part(), text_part("What?"), text_part(spelled)))
        yield chat_request(ask, {"role": "assistant", "content": spelled}, user("And?"))
        yield chat_request(ask, {"role": "assistant", "content": [text_part(spelled)]}, user("And?"))
        yield chat_request(ask, answer, user(spelled))


def parsed(document: dict[str, Any]) -> ChatRequest:
    return parse_chat(document, Limits("varco", 1))


def native(text: str) -> Iterator[tuple[AskTurn, ...]]:
    for task, fields in (
        ("ocr", {"system": text}),
        ("ground", {"prompt": text}),
        ("refer", {"prompt": text, "text": "this", "box": "0,0,1,1"}),
        ("refer", {"prompt": "What?", "text": text, "box": "0,0,1,1"}),
    ):
        yield parse_native(task, fields, "image/png", b"x").turns


def check_is_plain_text(prompts: Prompts) -> None:
    assert prompts.forbidden, "the tokenizer has no added token"
    expected = [prompts.added_ids(parsed(one).turns) for one in requests(HARMLESS)]
    expected += [prompts.added_ids(turns) for turns in native(HARMLESS)]
    for token in prompts.forbidden:
        given = [prompts.added_ids(parsed(one).turns) for one in requests(token)]
        given += [prompts.added_ids(turns) for turns in native(token)]
        assert given == expected, f"{token} counted as more than its characters"


def test_added_tokens_of_the_demo_are_plain_text(demo: Prompts) -> None:
    check_is_plain_text(demo)


@pytest.mark.full
def test_added_tokens_of_the_real_tokenizer_are_plain_text(real: Prompts) -> None:
    check_is_plain_text(real)


def test_markup_is_the_language_of_questions(demo: Prompts) -> None:
    harmless = demo.added_ids(parsed(chat_request(user(HARMLESS))).turns)
    for token in demo.markup:
        assert len(demo.added_ids(parsed(chat_request(user(token))).turns)) == len(harmless) + 1
