"""The sandbox in which a checkpoint's chat template runs: transformers' environment, closed and with a budget.

Closed: a template reaches the filters, tests, methods and attributes listed here and nothing else. Each of them takes
time and memory in proportion to its arguments or is charged by a bound of its own, and every use is charged before it
runs, whether the template names it or a filter such as `map` calls it. Loops, comparisons, literals and slices are no
functions: `template_meter.py` puts the filters `_guard`, `_each` and `_concat` around them, which draw on the same
budget. Nothing is evaluated while a template is compiled.
"""

from __future__ import annotations

import functools
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
from jinja2.filters import do_indent, do_round, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_VALUE_CHARS = 2 << 20
MAX_VALUE_NESTING = 32  # keeps what walks a value by recursion (hash, repr, JSON) and the indentation of JSON small
MAX_OUTPUT_CHARS = 4 << 20
MAX_RENDER_S = 10.0  # far beyond what the budget takes; for a machine that is busy with something else
MAX_RANGE = 10_000
MAX_INT_BITS = 128
MAX_DECIMALS = 16
WORK = 1 << 27  # units: about one per character handled, STEP per operation
STEP = 256
LOOK_UP = 32
PER_ITEM = 8  # an item or character that a filter may look at one by one
PER_PRODUCT = 8  # pairs of characters compared per unit

# fmt: off
FILTERS = frozenset([
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim",
    "unique", "upper", "wordcount",
])
TESTS = frozenset([
    "!=", "<", "<=", "==", ">", ">=", "boolean", "callable", "defined", "divisibleby", "eq", "equalto", "escaped",
    "even", "false", "filter", "float", "ge", "greaterthan", "gt", "in", "integer", "iterable", "le", "lessthan",
    "lower", "lt", "mapping", "ne", "none", "number", "odd", "sameas", "sequence", "string", "test", "true",
    "undefined", "upper",
])
TEXT_METHODS = frozenset([
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "title", "upper",
])
# Those that may compare each character of the text with each of their argument.
PRODUCT_METHODS = frozenset(["lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"])
LOOP_FACTS = frozenset([
    "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem",
    "revindex", "revindex0",
])
# fmt: on

ATTRIBUTES: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, TEXT_METHODS),
    (Mapping, frozenset(["copy", "get", "items", "keys", "values"])),
    ((list, tuple), frozenset(["copy", "count", "grouper", "index", "list"])),  # `grouper` and `list` of `groupby`
    (LoopContext, LOOP_FACTS),
)
"""What may be read of a value besides its items, by its type. A namespace's are its variables."""


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
        filters: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in FILTERS}
        filters |= {"tojson": _to_json, "replace": _replace, "join": _join, "indent": _indent}
        filters |= {"round": _round, "trim": _trim}
        self.filters = {name: self._charged(function) for name, function in filters.items()}
        self.filters |= {"_guard": _guard, "_each": _each, "_concat": _concat}
        tests = cast("dict[str, Callable[..., Any]]", self.tests)
        self.tests = {name: self._charged(tests[name]) for name in TESTS}
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

    def charge_product(self, text: Any, other: Any) -> None:
        """Charge for what may compare each character of one text with each of another."""
        self.charge(_size(text) * _size(other) // PER_PRODUCT)

    def guard(self, value: Any) -> Any:
        """Charge for a value and return it. Raises `SecurityError` when it is too large."""
        if isinstance(value, Iterator):
            return self.metered(value)
        self.charge(STEP + 2 * _size(value))
        return value

    def _charged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter or test that is charged for its arguments before it runs, and for its result."""

        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # jinja passes the context or itself in front

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.charge(STEP + PER_ITEM * sum(map(_size, (*args[first:], *kwargs.values()))))
            return self.guard(function(*args, **kwargs))

        return charged

    def metered(self, iterable: Iterable[Any], step: int = PER_ITEM) -> Iterator[Any]:
        for item in iterable:
            self.charge(step)
            yield item

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.charge(LOOK_UP + _size(argument))
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.charge(LOOK_UP)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        names = next((names for kind, names in ATTRIBUTES if isinstance(obj, kind)), frozenset[str]())
        offered = attr in names or isinstance(obj, jinja2.utils.Namespace)
        return offered and super().is_safe_attribute(obj, attr, value)

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
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", None)
        if name in ("format", "format_map") or (isinstance(owner, str) and name not in TEXT_METHODS):
            raise SecurityError(f"the text method {name!r} is not offered")
        values = (*args, *kwargs.values())
        __self.charge(__self.step + sum(map(_size, values)))
        if isinstance(owner, str | list | tuple):
            __self.charge(_size(owner))
        if isinstance(owner, str):
            if name in PRODUCT_METHODS:
                for value in values:
                    __self.charge_product(owner, value)
            if name == "replace" and len(values) > 1:
                _check_replace(owner, str(values[0]), str(values[1]))
            if name == "join":
                args = (_check_join([*__self.metered(args[0])], owner), *args[1:])
        return __self.guard(super().call(__context, __obj, *args, **kwargs))


def _budget(context: Context) -> Environment:
    return cast("Environment", context.environment)


def _size(value: Any) -> int:
    """Return the characters in a text, or those and the items in a container all the way down; what is shared counts
    each time. Raises `SecurityError` for a value beyond the bounds."""
    if isinstance(value, str):
        size = len(value)
    elif isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise SecurityError(f"a number of more than {MAX_INT_BITS} bits")
        size = 1
    elif isinstance(value, range):
        size = len(value) * PER_ITEM
    elif isinstance(value, _CONTAINERS):
        size = _container_size(value)
    else:
        size = 1
    if size > MAX_VALUE_CHARS:
        raise SecurityError(f"a value of more than {MAX_VALUE_CHARS:,} characters")
    return size


def _container_size(value: Any) -> int:
    size, level, nesting = 0, [value], 0
    while level and size <= MAX_VALUE_CHARS:
        if nesting > MAX_VALUE_NESTING:
            raise SecurityError(f"lists in lists, more than {MAX_VALUE_NESTING} deep")
        inner: list[Any] = []
        for item in level:
            size += PER_ITEM
            if isinstance(item, str):
                size += len(item)
            elif not isinstance(item, _SCALARS):
                inner.extend(_children(item))
                if len(inner) * PER_ITEM > MAX_VALUE_CHARS:
                    return MAX_VALUE_CHARS + 1
        level, nesting = inner, nesting + 1
    return size


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, jinja2.utils.Namespace):
        value = value._Namespace__attrs
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return value if isinstance(value, _CONTAINERS) else ()


_SCALARS = (int, float, type(None))
_CONTAINERS = (list, tuple, set, frozenset, Mapping, KeysView, ValuesView, ItemsView, jinja2.utils.Namespace)


@jinja2.pass_context
def _guard(context: Context, value: Any) -> Any:
    return _budget(context).guard(value)


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
    """Return `value` as transformers' `tojson` writes it: without HTML escapes."""
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


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if not (isinstance(precision, int) and abs(precision) <= MAX_DECIMALS):
        raise SecurityError(f"rounding to more than {MAX_DECIMALS} places")
    return do_round(value, precision, method)


@jinja2.pass_environment
def _trim(environment: Environment, value: Any, chars: str | None = None) -> str:
    text = str(value)
    environment.charge_product(text, chars)
    return text.strip(chars)


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
