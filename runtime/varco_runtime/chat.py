"""Conversations: several turns about pictures and videos."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Unpack

from varco_runtime.answer.answer import Answer
from varco_runtime.conversation import Asked, Turn, system_turns, user_turn
from varco_runtime.errors import UsageError
from varco_runtime.options import Options
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.media import Clip
from varco_runtime.session import Session
from varco_runtime.stream import start_stream


class Chat:
    """Several turns about pictures and videos. What earlier turns left in the cache is not computed again.

    The number of pictures in the whole conversation decides how each becomes tiles, as it did in training: with a
    second picture the first one is tiled and encoded anew, and its prompt is computed again.

    Questions from several threads are asked one after the other, each with all answers before it. `Varco.chat` makes
    conversations.

    Args:
        session: The model that answers.
        media: What is asked about. It belongs to the first question.
        system: A system message, or None for the template's own.
        long_side: Pixels to which the picture's long side is scaled up, 0 for the picture as it is; None for what the
            bundle says of the first question.
    """

    def __init__(
        self,
        session: Session,
        media: Sequence[Picture | Clip],
        system: str | None,
        long_side: int | None = None,
    ) -> None:
        self._session = session
        self._media = tuple(media)
        self._long_side = long_side
        self._asking = threading.Lock()
        self._turns: list[Turn] = system_turns(system)

    def ask(self, prompt: str, image: Asked = None, **options: Unpack[Options]) -> Answer:
        """Ask the next question. An error leaves the conversation as it was.

        Args:
            prompt: The question.
            image: Pictures and videos that come with this question, as for `Varco.ask`; None for no more.
            **options: How to answer, as for `Varco.ask`, but for `system` and `long_side`.

        Raises:
            UsageError: `system` or `long_side` is given, or another option cannot be honoured.
            ImageError: A picture cannot be opened, or the bundle does not take so many.
            VideoError: A video cannot be opened, or the bundle takes none.
            PromptError: The prompt cannot be encoded.
            ContextError: The conversation leaves no room for an answer.
        """
        if options.get("system") is not None:
            raise UsageError("A conversation's system message is set once. Give it to chat(image, system=...).")
        if options.get("long_side") is not None:
            raise UsageError("A conversation's picture is scaled once. Give it to chat(image, long_side=...).")
        options["long_side"] = self._long_side
        with self._asking:
            is_first = not any(turn.role == "user" for turn in self._turns)
            turns: list[Turn] = []

            def load() -> list[Turn]:
                question = user_turn(image, prompt, self._session.bundle.manifest)
                parts = (*(self._media if is_first else ()), *question.parts)
                turns.extend([*self._turns, Turn("user", parts)])
                return turns

            answer = start_stream(self._session, load, options).run()
            self._turns = [*turns, Turn("assistant", (answer.text,))]
            return answer
