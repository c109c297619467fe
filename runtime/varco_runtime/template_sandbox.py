"""The sandbox in which a checkpoint's chat template runs: transformers' environment with a budget.

`template_meter.py` puts the filters `_guard`, `_weigh`, `_each` and `_concat` into a template wherever it can loop,
grow or take time; here they draw on the budget.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_VALUE_CHARS = 2 << 20
MAX_OUTPUT_CHARS = 4 << 20
MAX_RENDER_S = 10.0
MAX_RANGE = 10_000
MAX_INT_BITS = 128
WORK = 1 << 27  # units: about one per character handled, STEP per operation
STEP = 256
PER_ITEM = 8  # an item or character that a filter may look at one by one

# fmt: off
FILTERS = frozenset([
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim",
    "unique", "upper", "wordcount",
])
TEXT_METHODS = frozenset([
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "title", "upper",
])
# fmt: on


class _Generation(Extension):
    """HF's `{% generation %}` marks the assistant's text for training; a prompt just needs its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class Environment(ImmutableSandboxedEnvironment):
    """transformers' environment (`utils/chat_template_utils.py`) with a budget."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, text: str) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_emit,
            optimized=False,
        )
        self.start()
        self.step = STEP + len(text)  # one pass through a loop or macro writes at most the template's own text
        self.filters = {name: function for name, function in self.filters.items() if name in FILTERS}
        self.filters |= {"tojson": _to_json, "replace": _replace, "join": _join, "indent": _indent}
        self.filters |= {"_guard": _guard, "_weigh": _weigh, "_each": _each, "_concat": _concat}
        self.globals = {
            "range": _short_range,
            "dict": dict,
            "namespace": jinja2.utils.Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def start(self) -> None:
        """Fill the budget for one render."""
        self.budget = WORK
        self.output_budget = MAX_OUTPUT_CHARS
        self.deadline_s = time.monotonic() + MAX_RENDER_S

    def charge(self, units: int) -> None:
        self.budget -= units
        if self.budget < 0 or time.monotonic() > self.deadline_s:
            raise SecurityError("more work than a chat template may ask for")

    def guard(self, value: Any, per_char: int = 1) -> Any:
        """Charge for a value and return it. Raises `SecurityError` when it is too large."""
        if isinstance(value, Iterator):
            return self.metered(value)
        size = _size(value)
        self.charge(STEP + size * per_char)
        return value

    def metered(self, iterable: Iterable[Any], step: int = PER_ITEM) -> Iterator[Any]:
        for item in iterable:
            self.charge(step)
            yield item

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = (_size(left), _size(right))
        self.charge(STEP + sum(sizes))
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not offered")
        if operator == "+" and sum(sizes) > MAX_VALUE_CHARS:
            raise SecurityError(f"a value of more than {MAX_VALUE_CHARS:,} characters")
        if operator == "*":
            count = left if isinstance(left, int) else right
            size = sizes[1] if isinstance(left, int) else sizes[0]
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if not numbers and isinstance(count, int) and size * max(count, 0) > MAX_VALUE_CHARS:
                raise SecurityError(f"a value of more than {MAX_VALUE_CHARS:,} characters")
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            raise SecurityError("a power of more than 64")
        return self.guard(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 has it
        __self.charge(__self.step)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", None)
        if name in ("format", "format_map") or (isinstance(owner, str) and name not in TEXT_METHODS):
            raise SecurityError(f"the text method {name!r} is not offered")
        if isinstance(owner, str):
            __self.charge(_size(owner) + sum(map(_size, args)))
            if name == "replace" and len(args) > 1:
                _check_replace(owner, str(args[0]), str(args[1]))
            if name == "join":
                args = (_check_join([*__self.metered(args[0])], owner), *args[1:])
        return __self.guard(super().call(__context, __obj, *args, **kwargs))


def _budget(context: Context) -> Environment:
    return cast("Environment", context.environment)


def _size(value: Any) -> int:
    """Characters in a text, characters and items in a container all the way down; shared parts count each time.

    Raises `SecurityError` for a value beyond the bounds.
    """
    if isinstance(value, str):
        size = len(value)
    elif isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise SecurityError(f"a number of more than {MAX_INT_BITS} bits")
        size = 1
    elif isinstance(value, range):
        size = len(value) * PER_ITEM
    elif isinstance(value, _CONTAINERS):
        size, rest = 0, [value]
        while rest and size <= MAX_VALUE_CHARS:
            item = rest.pop()
            if isinstance(item, jinja2.utils.Namespace):
                item = item._Namespace__attrs
            if isinstance(item, Mapping):
                rest.extend(item.keys())
                rest.extend(item.values())
            elif isinstance(item, _CONTAINERS):
                rest.extend(item)
            size += PER_ITEM + (len(item) if isinstance(item, str) else 0)
    else:
        size = 1
    if size > MAX_VALUE_CHARS:
        raise SecurityError(f"a value of more than {MAX_VALUE_CHARS:,} characters")
    return size


_CONTAINERS = (list, tuple, set, frozenset, Mapping, KeysView, ValuesView, ItemsView, jinja2.utils.Namespace)


@jinja2.pass_context
def _guard(context: Context, value: Any) -> Any:
    return _budget(context).guard(value)


@jinja2.pass_context
def _weigh(context: Context, value: Any) -> Any:
    return _budget(context).guard(value, PER_ITEM)


@jinja2.pass_context
def _each(context: Context, iterable: Any) -> Iterator[Any]:
    environment = _budget(context)
    return environment.metered(iterable, environment.step)


@jinja2.pass_context
def _emit(context: Context, value: Any) -> Any:
    environment = _budget(context)
    environment.output_budget -= _size(value)
    if environment.output_budget < 0:
        raise SecurityError(f"more than {MAX_OUTPUT_CHARS:,} characters of output")
    return value


@jinja2.pass_context
def _concat(context: Context, values: list[Any]) -> str:
    _budget(context).guard(values)
    return "".join(map(str, values))


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format_: str) -> str:
    if len(format_) > 64 or re.search(r"%[^a-zA-Z%]", format_):
        raise SecurityError("a date format with widths or of more than 64 characters")
    return datetime.now().strftime(format_)


def _short_range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_RANGE:
        raise SecurityError(f"a range of more than {MAX_RANGE:,} numbers")
    return numbers


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' `tojson`: no HTML escapes."""
    if (indent or 0) > 8 or len("".join(separators or ())) > 8:
        raise SecurityError("JSON indented by more than 8")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_replace(text: str, old: str, new: str) -> None:
    if len(text) + text.count(old) * len(new) > MAX_VALUE_CHARS:
        raise SecurityError(f"a value of more than {MAX_VALUE_CHARS:,} characters")


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    text, old, new = str(value), str(old), str(new)
    _check_replace(text, old, new)
    return text.replace(old, new, count)


def _check_join(items: list[Any], separator: str) -> list[Any]:
    if sum(_size(item) + len(separator) for item in items) > MAX_VALUE_CHARS:
        raise SecurityError(f"a value of more than {MAX_VALUE_CHARS:,} characters")
    return items


@jinja2.pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    getter: Callable[[Any], Any] = make_attrgetter(environment, attribute) if attribute is not None else _same
    return str(d).join(map(str, _check_join([getter(item) for item in environment.metered(value)], str(d))))


def _same(item: Any) -> Any:
    return item


def _indent(value: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if not (isinstance(width, int) and width <= 8 and _size(value) * 8 <= MAX_VALUE_CHARS):
        raise SecurityError("text indented by more than 8")
    return do_indent(value, width, first, blank)
