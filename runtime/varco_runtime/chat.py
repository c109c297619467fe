"""Conversations: several turns about one picture."""

from __future__ import annotations

import threading
from typing import Unpack

from varco_runtime.answer.answer import Answer
from varco_runtime.errors import UsageError
from varco_runtime.options import Options
from varco_runtime.picture.loading import Picture
from varco_runtime.prompt.prompter import Message
from varco_runtime.session import Session
from varco_runtime.stream import start_stream


class Chat:
    """Several turns about one picture. What earlier turns left in the cache is not computed again.

    Questions from several threads are asked one after the other, each with all answers before it. `Varco.chat` makes
    conversations.

    Args:
        session: The model that answers.
        picture: What is asked about, or None. It belongs to the first question.
        system: A system message, or None for the template's own.
        long_side: Pixels to which the picture's long side is scaled up, 0 for the picture as it is; None for what the
            bundle says of the first question.
    """

    def __init__(
        self, session: Session, picture: Picture | None, system: str | None, long_side: int | None = None
    ) -> None:
        self._session = session
        self._picture = picture
        self._long_side = long_side
        self._asking = threading.Lock()
        self._messages: list[Message] = [] if system is None else [Message("system", system)]

    def ask(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """Ask the next question. An error leaves the conversation as it was.

        Args:
            prompt: The question.
            **options: How to answer, as for `Varco.ask`, but for `system` and `long_side`.

        Raises:
            UsageError: `system` or `long_side` is given, or another option cannot be honoured.
            PromptError: The prompt cannot be encoded.
            ContextError: The conversation leaves no room for an answer.
        """
        if options.get("system") is not None:
            raise UsageError("A conversation's system message is set once. Give it to chat(image, system=...).")
        if options.get("long_side") is not None:
            raise UsageError("A conversation's picture is scaled once. Give it to chat(image, long_side=...).")
        options["long_side"] = self._long_side
        with self._asking:
            is_first = not any(message.role == "user" for message in self._messages)
            question = Message("user", prompt, image=is_first and self._picture is not None)
            answer = start_stream(self._session, self._picture, [*self._messages, question], options).run()
            self._messages += [question, Message("assistant", answer.text)]
            return answer
