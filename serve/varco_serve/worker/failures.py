"""Errors as the caller is told of them: one line, and nothing of our insides."""

from __future__ import annotations

import re

from varco_runtime.errors import ContextError, ImageError, InputError, PromptError, UsageError, one_line
from varco_serve.grammar.errors import GrammarBusyError, GrammarError
from varco_serve.messages import Failed

_MAX_CHARS = 500
_BUSY_S = 5.0
_OF_THE_COMMAND = re.compile(r",? or (?:load|run|try)\b[^.]*|, or varco run [^.]*| Change --[\w-]+\.")
"""Advice for whoever started the server or calls the library: a caller over HTTP can do neither."""


def failed_of(error: Exception) -> Failed:
    """Return what a caller is told of an error.

    Args:
        error: What the runtime raised. The message of one that is not about the question stays here.
    """
    match error:
        case ContextError():
            return Failed(400, _line(error), "context_length_exceeded", "messages")
        case ImageError():
            return Failed(400, _line(error), "invalid_image", "messages")
        case GrammarBusyError():  # no fault of the question's, which may be asked again as it is
            return Failed(429, _line(error), "grammars_busy", None, _BUSY_S)
        case GrammarError():
            return Failed(400, _line(error), "invalid_grammar", "response_format")
        case PromptError() | InputError():
            return Failed(400, _line(error), "invalid_prompt", "messages")
        case UsageError():
            return Failed(400, _line(error), "invalid_value")
    return Failed(500, "The answer failed. Ask again; if it fails again, tell whoever runs this server.", "failed")


def _line(error: Exception) -> str:
    return _OF_THE_COMMAND.sub("", one_line(error, _MAX_CHARS))
