"""A checkpoint's chat template, rendered as transformers renders it and with bounded work.

The template comes with a checkpoint, so it is not trusted. It runs in Jinja's immutable sandbox, closed to a list of
filters, tests, methods and attributes, and each render has a budget. Bounded are: the size of the template and of its
tree, before it is compiled; the characters of the result and of all `{{ }}` on the way; the size of every text, list
and number that an expression makes, checked before it is made where one operation multiplies; and the work, on which
everything draws before it runs, by the size of what it runs on. Recursive loops, includes and inheritance are refused.
"""

from __future__ import annotations

import threading
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError

from varco_runtime.errors import BundleError, PromptError, one_line
from varco_runtime.prompt.template_meter import Meter
from varco_runtime.prompt.template_sandbox import MAX_OUTPUT_CHARS, Environment

MAX_TEMPLATE_CHARS = 256 << 10


class ChatTemplate:
    """A compiled chat template.

    Args:
        text: Its Jinja source.

    Raises:
        BundleError: It is not valid Jinja, too large, or uses what is not offered.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEMPLATE_CHARS:
            raise BundleError(
                f"The chat template has {len(text):,} characters, expected at most {MAX_TEMPLATE_CHARS:,}. "
                "Export the checkpoint with another template."
            )
        self._environment = Environment(text)
        self._lock = threading.Lock()
        self._text = text
        try:
            code = self._environment.compile(self._tree())
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.globals)
        except Exception as error:
            raise BundleError(
                f"The chat template cannot be used ({_named(error)}), expected a Jinja template as transformers "
                "renders them. Export the checkpoint with another template."
            ) from None

    def asked_names(self) -> set[str]:
        """Return the variables that the template takes from whoever renders it."""
        return jinja2.meta.find_undeclared_variables(self._tree())

    def _tree(self) -> nodes.Template:
        tree = self._environment.parse(self._text)
        Meter().visit(tree)
        return tree

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """Return the prompt's text. Threads may call this at the same time; one renders at a time.

        Args:
            messages: The conversation, each message with `role` and `content` in the form that the template takes.
            add_generation_prompt: Whether the assistant's turn is opened at the end.

        Raises:
            PromptError: The template refuses the messages, or asks for more work or text than it may.
        """
        pieces: list[str] = []
        size = 0
        with self._lock:
            self._environment.start()
            try:
                for piece in self._template.generate(
                    messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt
                ):
                    size += len(piece)
                    if size > MAX_OUTPUT_CHARS:
                        raise SecurityError(f"more than {MAX_OUTPUT_CHARS:,} characters of output")
                    pieces.append(piece)
            except Exception as error:
                raise PromptError(
                    f"The chat template refused the messages ({_named(error)}), expected messages that it can "
                    "render. Change the messages."
                ) from None
        return "".join(pieces)


def _named(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}", 200)
