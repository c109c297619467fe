"""Messages to token ids: chat template -> text with owners -> added tokens and plain stretches -> ids.

Whose text may hold which added token is the point of this file. Text that the chat template writes may hold any.
Text of the user, the system message and the history may hold the markup tokens alone; every other added token in it
(`<|im_end|>`, `<image>`, `[UNK]`, ...) is encoded as the plain text that it is.

To know who wrote what, the template is rendered twice: as it is, and with every message's text between two characters
that occur nowhere else. If the second result without those characters is the first, they tell the owners. (If the
template trims, they are put inside the white space.) If a template does more to a text, its result is used only when
it holds the very added tokens that it holds for harmless messages. The ids are those of transformers for any text
without added tokens, because byte-pair encoding runs over each whole stretch between two added tokens, across owners.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from varco_runtime.bundle.settings import NO_MEDIA_FACTS, MediaSettings, PromptSettings
from varco_runtime.errors import BundleError, PromptError
from varco_runtime.prompt.added_tokens import AddedTokens, Owners, Span
from varco_runtime.prompt.chat_template import ChatTemplate
from varco_runtime.prompt.tokenizer import AddedToken, Tokenizer, check_encodable

ROLES = ("system", "user", "assistant")
MAX_PROMPT_CHARS = 1_000_000  # some 30 times what fits the longest context of these models
_MARKS = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # private use, planes 15 and 16


class Placeholder(Enum):
    """What stands in a message for a picture or a video; its value is the `type` of a template's part."""

    IMAGE = "image"
    VIDEO = "video"


IMAGE, VIDEO = Placeholder.IMAGE, Placeholder.VIDEO


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Args:
        role: One of `ROLES`.
        content: What was said: a text, or texts, pictures and videos in their order.
    """

    role: str
    content: str | tuple[str | Placeholder, ...]

    @property
    def parts(self) -> tuple[str | Placeholder, ...]:
        """Return texts, pictures and videos in their order."""
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts alone."""
        return tuple(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> tuple[Placeholder, ...]:
        """Return the pictures and videos alone."""
        return tuple(part for part in self.parts if not isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt's token ids, and where its media stand.

    Args:
        ids: The token ids.
        starts: For each picture and video, in the order of the messages, the position of its first token.
    """

    ids: list[int]
    starts: tuple[int, ...]


class Prompter:
    """A builder of one bundle's prompts.

    Args:
        template: The text of the chat template.
        settings: What the bundle says about prompts.
        tokenizer: The bundle's.
        media: What the bundle says about several pictures and videos.

    Raises:
        BundleError: They do not go together, or the template cannot be used.
    """

    def __init__(
        self,
        template: str,
        settings: PromptSettings,
        tokenizer: Tokenizer,
        media: MediaSettings = NO_MEDIA_FACTS,
    ) -> None:
        if settings.content_format not in ("parts", "string"):
            raise BundleError(
                f"The bundle's content_format is {settings.content_format!r}, expected 'parts' or 'string'. "
                "Export the checkpoint again."
            )
        image_token = tokenizer.added_tokens.get(settings.image_token)
        if image_token is None:  # LLaVA-NeXT cuts its prompt at <image> before it tokenizes
            image_token = AddedToken(settings.image_token, settings.image_token_id)
        if image_token.id != settings.image_token_id:
            raise BundleError(
                f"The bundle's image token {settings.image_token!r} has id {settings.image_token_id} in its settings "
                f"and {image_token.id} in its tokenizer, expected one id. Export the checkpoint again."
            )
        video_token = image_token
        if media.video_token not in (None, settings.image_token):
            found = tokenizer.added_tokens.get(media.video_token)
            if found is None or found.id != media.video_token_id:
                raise BundleError(
                    f"The bundle's video token {media.video_token!r} has id {media.video_token_id} in its settings and "
                    f"{None if found is None else found.id} in its tokenizer, expected one id. Export the checkpoint "
                    "again."
                )
            video_token = found
        self._settings = settings
        self._tokenizer = tokenizer
        self._contents_of = {IMAGE: image_token.content, VIDEO: video_token.content}
        self._template = ChatTemplate(template)
        self._template_chars = frozenset(template)
        tokens = {**tokenizer.added_tokens, image_token.content: image_token}.values()
        self._markup = frozenset(settings.markup_tokens)
        # The tokenizers library takes tokens with `normalized` in a second pass over what the first has left.
        self._passes = [
            AddedTokens([t for t in tokens if t.normalized is normalized], self._markup) for normalized in (False, True)
        ]

    def encode(
        self, messages: Sequence[Message], num_image_tokens: int, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the token ids of a conversation whose pictures all have as many tokens.

        Args:
            messages: The turns, the oldest first.
            num_image_tokens: How often the id of a picture's placeholder stands in a row.
            add_generation_prompt: Whether the assistant's turn is opened at the end.

        Raises:
            PromptError: As `encode_media` raises it.
        """
        num_media = sum(len(message.media) for message in messages)
        return self.encode_media(messages, [num_image_tokens] * num_media, add_generation_prompt).ids

    def encode_media(
        self, messages: Sequence[Message], num_tokens: Sequence[int], add_generation_prompt: bool = True
    ) -> Encoded:
        """Return the token ids of a conversation, and where its pictures and videos stand.

        Templates put pictures first, then videos, then text, whatever the order of the parts: the places are those of
        the placeholders.

        Args:
            messages: The turns, the oldest first.
            num_tokens: For each picture and video, in the order of the messages, how often the id of its placeholder
                stands in a row.
            add_generation_prompt: Whether the assistant's turn is opened at the end.

        Raises:
            PromptError: The messages cannot be encoded: a role, a text or their number is out of bounds, or the
                template refuses or alters them.
        """
        _check(messages)
        text, spans = self._render(messages, add_generation_prompt)
        waiting = self._waiting(messages)
        starts = [0] * len(num_tokens)
        num_written = dict.fromkeys(waiting, 0)
        ids: list[int] = []
        for token, start, end in self._cut(text, Owners(spans)):
            if token is None:
                ids += self._tokenizer.encode_plain(text[start:end])
            elif token.content in waiting:
                index = num_written[token.content]
                num_written[token.content] += 1
                if index < len(waiting[token.content]):
                    medium = waiting[token.content][index]
                    starts[medium] = len(ids)
                    ids += [token.id] * num_tokens[medium]
            else:
                ids.append(token.id)
        for content, media in waiting.items():
            if num_written[content] != len(media):
                what = "image" if content == self._settings.image_token else "video"
                raise PromptError(
                    f"The chat template wrote {num_written[content]} {what} placeholders, expected {len(media)}. "
                    f"Ask with other messages, or export the checkpoint with a template for {_KINDS[what]}."
                )
        return Encoded(ids, tuple(starts))

    def _waiting(self, messages: Sequence[Message]) -> dict[str, list[int]]:
        """Return by the text of a placeholder which media stand for its occurrences, in order."""
        waiting: dict[str, list[int]] = {self._settings.image_token: []}
        placeholders = [placeholder for message in messages for placeholder in message.media]
        for index, placeholder in enumerate(placeholders):
            waiting.setdefault(self._contents_of[placeholder], []).append(index)
        return waiting

    def _cut(self, text: str, owners: Owners) -> Iterator[tuple[AddedToken | None, int, int]]:
        """Yield the text as added tokens and the stretches (None) between them."""
        first, second = self._passes
        for token, start, end in first.cut(text, 0, len(text), owners):
            if token is None:
                yield from second.cut(text, start, end, owners)
            else:
                yield token, start, end

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> tuple[str, list[Span]]:
        """Return the prompt's text and the stretches of it that are not the template's own."""
        error: PromptError | None = None
        for system_as_text in self._layouts(messages):
            try:
                return self._render_as(messages, add_generation_prompt, system_as_text)
            except PromptError as refusal:
                error = error or refusal
        assert error is not None, "Bug: no layout was tried."
        raise error

    def _layouts(self, messages: Sequence[Message]) -> tuple[bool, ...]:
        """Return the ways to try, as whether the first system message goes in as plain text.

        VARCO's template takes it in no other way.
        """
        return (False, True) if self._settings.content_format == "parts" and messages[0].role == "system" else (False,)

    def _render_as(
        self, messages: Sequence[Message], add_generation_prompt: bool, system_as_text: bool
    ) -> tuple[str, list[Span]]:
        def render(texts: Iterable[str]) -> str:
            return self._template.render(self._contents(messages, texts, system_as_text), add_generation_prompt)

        texts = [text for message in messages for text in message.texts]
        plain = render(texts)
        reached = 0
        for index, message in enumerate(messages):
            for text in map(str.strip, message.texts):
                at = plain.find(text, reached)  # they come in order; from the start for each would be quadratic
                reached = at + len(text) if at >= 0 else reached
                if message.role != "assistant" and at < 0 and text not in plain:
                    raise PromptError(
                        f"The chat template left out or altered message {index + 1} ({message.role}), expected it in "
                        "the prompt. Ask without it, or export the checkpoint with another template."
                    )
        opening, closing = _fresh_marks(self._template_chars.union(*texts))
        for mark in (_mark_all, _mark_inside):
            try:
                marked = render(mark(text, opening, closing) for text in texts)
            except PromptError:
                continue
            if marked.replace(opening, "").replace(closing, "") == plain:
                spans = _spans(marked, opening, closing)
                if spans is not None:
                    return plain, spans
        harmless = render("x" if text.strip() else text for text in texts)
        if self._tokens(plain) != self._tokens(harmless):
            raise PromptError(
                "The chat template rewrites the messages, and they hold added tokens of the model, expected text "
                "without them. Remove tokens such as '<|im_end|>' from the text."
            )
        return plain, []

    def _tokens(self, text: str) -> list[str]:
        """Return the added tokens in `text` that a user may not write."""
        tokens = (token for token, _, _ in self._cut(text, Owners([])) if token is not None)
        return [token.content for token in tokens if token.content not in self._markup]

    def _contents(
        self, messages: Sequence[Message], texts: Iterable[str], system_as_text: bool
    ) -> list[dict[str, Any]]:
        """Return the messages in the form that the template takes."""
        turns: list[dict[str, Any]] = []
        following = iter(texts)
        for index, message in enumerate(messages):
            parts = [next(following) if isinstance(part, str) else part for part in message.parts]
            content: str | list[dict[str, str]]
            if self._settings.content_format == "string" or (system_as_text and index == 0):
                content = self._as_string(parts)
            else:
                content = [self._as_part(part) for part in parts]
            turns.append({"role": message.role, "content": content})
        assert next(following, None) is None, "Bug: more texts than the messages have"
        return turns

    def _as_part(self, part: str | Placeholder) -> dict[str, str]:
        """Return a part as templates of parts take it; a video without a token of its own stands as a picture."""
        if isinstance(part, str):
            return {"type": "text", "text": part}
        has_own = self._contents_of[part] != self._settings.image_token
        return {"type": part.value if has_own else IMAGE.value}

    def _as_string(self, parts: Sequence[str | Placeholder]) -> str:
        """Return one string: placeholders where the parts stand, those in front apart from the text.

        Source: lmms-eval's adapter of LLaVA-OneVision, `<image> <image>\\nquestion`; LLaVA-NeXT's tutorial for
        placeholders between texts.
        """
        num_leading = next((index for index, part in enumerate(parts) if isinstance(part, str)), len(parts))
        written = [part if isinstance(part, str) else self._contents_of[part] for part in parts]
        leading = " ".join(written[:num_leading])
        return (f"{leading}\n" if leading else "") + "".join(written[num_leading:])


_KINDS = {"image": "pictures", "video": "videos"}


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise PromptError("There is no message, expected at least one. Pass a question.")
    for message in messages:
        if message.role not in ROLES:  # templates write the role as their own text
            raise PromptError(
                f"The role is {message.role[:80]!r}, expected one of {', '.join(ROLES)}. Change the role."
            )
        for text in message.texts:
            check_encodable(text)
    num_chars = sum(len(text) for message in messages for text in message.texts)
    if num_chars > MAX_PROMPT_CHARS:
        raise PromptError(
            f"The prompt has {num_chars:,} characters, expected at most {MAX_PROMPT_CHARS:,}. Shorten it."
        )


def _fresh_marks(used: frozenset[str]) -> tuple[str, str]:
    """Return two private-use characters that no text holds."""
    marks = list(islice((chr(code) for codes in _MARKS for code in codes if chr(code) not in used), 2))
    if len(marks) < 2:
        raise PromptError("The text holds every private-use character of Unicode, expected ordinary text. Shorten it.")
    return marks[0], marks[1]


def _mark_all(text: str, opening: str, closing: str) -> str:
    """Put the marks around a text. An empty one has nothing to own, and templates ask whether there is a text."""
    return f"{opening}{text}{closing}" if text else text


def _mark_inside(text: str, opening: str, closing: str) -> str:
    """Put the marks inside the white space around a text, where they do not stop a template from trimming it."""
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return f"{text[:start]}{opening}{core}{closing}{text[start + len(core) :]}"


def _spans(marked: str, opening: str, closing: str) -> list[Span] | None:
    """Return where the marked stretches lie once the marks are gone, or None when the marks do not come in pairs."""
    spans: list[Span] = []
    start: int | None = None
    for num_before, match in enumerate(re.finditer(f"[{opening}{closing}]", marked)):
        position = match.start() - num_before
        if (match.group() == opening) is not (start is None):
            return None
        if start is None:
            start = position
        else:
            spans.append((start, position))
            start = None
    return spans if start is None else None
