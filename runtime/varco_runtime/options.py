"""The options of a question: their names, their checks, and what they say once they are checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TypedDict

from varco_runtime.bundle.settings import MAX_LONG_SIDE_PX
from varco_runtime.errors import UsageError
from varco_runtime.generation.constraint import Constraint
from varco_runtime.generation.logit_bias import logit_bias
from varco_runtime.generation.sampling import SamplingSettings

MAX_NEW_TOKENS = 1024


class Options(TypedDict, total=False):
    """How to answer; see `Varco.ask`."""

    system: str | None
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float | None
    seed: int | None
    stop: str | tuple[str, ...] | list[str] | None
    speculate: bool
    tiling: str
    untrained: bool
    long_side: int | None
    stop_loops: bool
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    ignore_eos: bool
    top_logprobs: int | None
    constraint: Constraint | None


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """Options that were checked; None where the question decides."""

    sampling: SamplingSettings
    stop: tuple[str, ...]
    max_new_tokens: int | None
    speculate: bool
    tiling: str = "auto"
    untrained: bool = False
    long_side: int | None = None
    stop_loops: bool | None = None
    ignore_eos: bool = False
    constraint: Constraint | None = None

    @property
    def may_draft(self) -> bool:
        """Return whether drafts are asked for and possible: they are confirmed by greedy choices alone."""
        return self.speculate and not self.sampling.temperature

    @property
    def goes_on_after_eos(self) -> bool:
        """Return whether an end token ends nothing. Where a constraint has let the answer end, there is no way on."""
        return self.ignore_eos and self.constraint is None


def check_names(options: Options) -> None:
    """Check that every option is one: a misspelled one would silently change nothing.

    Raises:
        UsageError: It names an option that is none, and the one that may be meant.
    """
    known = Options.__annotations__
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"Did you mean {close[0]}?" if close else f"Expected one of: {', '.join(known)}."
            raise UsageError(f"{name} is no option of a question. {hint}")


def answer_settings(options: Options) -> AnswerSettings:
    """Return what the options say, with the defaults for those that are not given.

    Raises:
        UsageError: A value is out of range or of another type.
    """
    sampling = _sampling(options)
    stop = _stop_strings(options)
    max_new_tokens = options.get("max_new_tokens")
    if "max_new_tokens" in options and not isinstance(max_new_tokens, Integral):
        raise UsageError(f"max_new_tokens={max_new_tokens!r} is no whole number. Expected at least 1.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens} is too few. Expected at least 1.")
    long_side = options.get("long_side")
    check_long_side(long_side)
    constraint, ignore_eos = options.get("constraint"), options.get("ignore_eos", False)
    if constraint is not None and not isinstance(constraint, Constraint):
        raise UsageError(
            f"constraint is of type {type(constraint).__name__}, expected an object with the methods forced, allowed "
            "and accept. See varco_runtime.generation.constraint."
        )
    if not isinstance(ignore_eos, bool):
        raise UsageError(f"ignore_eos is {ignore_eos!r}, expected True or False. Give another ignore_eos.")
    return AnswerSettings(
        sampling,
        stop,
        max_new_tokens,
        options.get("speculate", True),
        options.get("tiling", "auto"),
        options.get("untrained", False),
        long_side,
        options.get("stop_loops"),
        ignore_eos,
        constraint,
    )


def check_long_side(long_side: int | None) -> None:
    """Check the length to which a picture's long side is to be brought; None leaves it to the bundle.

    Raises:
        UsageError: It is out of range or no number.
    """
    is_whole = isinstance(long_side, Integral) and not isinstance(long_side, bool)
    if long_side is not None and not (is_whole and 0 <= long_side <= MAX_LONG_SIDE_PX):
        raise UsageError(
            f"long_side={long_side!r} is out of range. Expected pixels, at most {MAX_LONG_SIDE_PX}, or 0 for the "
            "picture as it is."
        )


def _sampling(options: Options) -> SamplingSettings:
    names = (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "presence_penalty",
        "frequency_penalty", "top_logprobs",
    )  # fmt: skip
    given = {name: options[name] for name in names if name in options}  # type: ignore[literal-required]
    return SamplingSettings(**given, logit_bias=logit_bias(options.get("logit_bias")))


def _stop_strings(options: Options) -> tuple[str, ...]:
    """Return the strings that end an answer; None, as other libraries spell it, is none."""
    stop = options.get("stop")
    try:
        strings = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    except TypeError:  # not even a list
        strings = (stop,)  # type: ignore[assignment]
    if not all(isinstance(string, str) for string in strings):
        raise UsageError(f"stop={stop!r} is no text. Expected a string, a list of strings, or None.")
    return strings
