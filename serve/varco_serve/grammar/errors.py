"""The error of everything that a grammar may be refused for or die of."""

from __future__ import annotations

from varco_runtime.errors import InputError, one_line

MAX_REASON_CHARS = 200


class GrammarError(InputError):
    """A grammar that cannot be used, or that an answer cannot be held to. Its line may be shown to the caller."""


class GrammarBusyError(GrammarError):
    """A grammar that may be good and that cannot be compiled now: others take what compiling may take."""


def reason_of(message: str) -> str:
    """Return what llguidance says in one line, without the state of its parser or the place of its own faults."""
    if message.startswith("panic"):
        return "it is larger than the grammar library holds"
    lines = [line.strip() for line in message.splitlines()]
    lines = [line for line in lines if line and line != "<non-verbose/>"]
    told = f"{lines[0]} {lines[-1]}" if len(lines) > 1 and lines[-1].startswith("error:") else " ".join(lines[:1])
    return one_line(told, MAX_REASON_CHARS) or "the grammar library gives no reason"
