"""VARCO's markup as llguidance's grammar (Lark): answers that `varco_runtime.markup.parser` reads without a warning.

    ocr    := (item (SEP? item)*)?        item   := "<char>" LABEL "</char>" box
    ground := PROSE? (object PROSE?)*     object := "<obj>" LABEL "</obj>" box
    box    := "<bbox>" quad ("<delim>" quad)* "</bbox>"

Tags are the added tokens and nothing else: text cannot spell one. A quad is four numbers of at most three decimals,
x1 < x2 and y1 < y2 in thousandths. That is said by rules with a parameter (llguidance's `parametric.md`), in which the
digits of x1 stand in the bits 0 to 11 and those of y1 in 12 to 23: once x1 is written, a digit of x2 may be greater
than its own, or equal to it where a greater one can follow. x2 and y2 may be 1, so there is always a way on.
"""

from __future__ import annotations

from collections.abc import Mapping

from varco_serve.grammar.errors import GrammarError

MAX_QUADS = 64
_TAGS_OF = {"ocr": ("<char>", "</char>"), "ground": ("<obj>", "</obj>"), "refer": ("<obj>", "</obj>")}
_BOX_TAGS = ("<bbox>", "</bbox>", "<delim>")

_DEVIATIONS = (
    r"[^<gocbdt/{0}]|g[^r<{0}]|o[^bc<{0}]|c[^h<{0}]|b[^b<{0}]|d[^e<{0}]|t[^h<{0}]"
    r"|/([^cob<{0}]|c[^h<{0}]|o[^b<{0}]|b[^b<{0}])"
)
"""What may follow `<` in text: nothing that goes on to `<gro>`, `<ocr>`, `<char>`, `<obj>`, `<bbox>`, `<delim>`, their
ends, or `<think>`. An expression without complement, since masks of one cost twenty times as much."""
_CONTROL = r"\x00-\x1F\x7F"


def markup_grammar(task: str, token_ids: Mapping[str, int]) -> str:
    """Return the grammar of a task's answers, for `LLMatcher.grammar_from_lark`.

    Args:
        task: `ocr`, `ground` or `refer`.
        token_ids: The ids of the tokenizer's added tokens.

    Raises:
        GrammarError: The task is none of these, or the model has no such tags.
    """
    if task not in _TAGS_OF:
        raise GrammarError(f"The markup of {task[:40]!r} is asked for, expected ocr, ground or refer. Name one.")
    for tag in (*_TAGS_OF[task], *_BOX_TAGS):
        if tag not in token_ids:
            raise GrammarError(f"The model has no token {tag}, which the markup of {task} needs. Ask without it.")
    opening, closing, box, end_of_box, delim = (f"<[{token_ids[tag]}]>" for tag in (*_TAGS_OF[task], *_BOX_TAGS))
    start = f"start: PROSE? (item PROSE?)*\n{_prose()}"
    if task == "ocr":
        start = 'start: (item (SEP? item)*)?\nSEP: "\\n" | " "'
    return "\n".join(
        (
            start,
            f"item: {opening} LABEL {closing} box",
            _label(),
            f"box: {box} quad ({delim} quad){{0,{MAX_QUADS - 1}}} {end_of_box}",
            "quad: xa::0x0",
            *_first("xa", 0, '", " ya::_'),
            *_first("ya", 12, '", " xb::_'),
            *_second("xb", 0, '", " yb::_', "::_"),
            *_second("yb", 12, '""', ""),
            "",
        )
    )


def _label() -> str:
    """Return the terminal of a label: a line that begins with no space."""
    deviation = f"<+({_DEVIATIONS.format(_CONTROL)})".replace("/", "\\/")
    return f"LABEL: /([^<\\x20{_CONTROL}]|{deviation})([^<{_CONTROL}]|{deviation})*<*|<+/"


def _prose() -> str:
    deviation = f"<+({_DEVIATIONS.format('')})".replace("/", "\\/")
    return f"PROSE: /([^<]|{deviation})+<*|<+/"


def _first(name: str, shift: int, go_on: str) -> list[str]:
    """Return the rules of x1 or y1, which put its digits into the parameter from a bit on, and go on."""
    digits = [
        [f'"{digit}" {name}{place + 1}::bit_or({digit << shift + 4 * (place - 1):#x})' for digit in range(10)]
        for place in (1, 2, 3)
    ]
    return [
        f'{name}::_: "0" {name}0::_',
        _rule(f"{name}0::_", [go_on, f'"." {name}1::_']),
        _rule(f"{name}1::_", digits[0]),
        _rule(f"{name}2::_", [go_on, *digits[1]]),
        _rule(f"{name}3::_", [go_on, *digits[2]]),
        f"{name}4::_: {go_on}",
    ]


def _second(name: str, shift: int, go_on: str, param: str) -> list[str]:
    """Return the rules of x2 or y2: greater than the number whose digits stand from a bit on.

    `param` is handed over by the rules of a number that is greater already, unless nothing follows that needs it.
    """
    one, two, three = (f"[{bit}:{bit + 4}]" for bit in range(shift, shift + 12, 4))
    nines = f"and(eq({two}, 9), eq({three}, 9))"
    return [
        _rule(f"{name}::_", [f'"1" {go_on}', f'"0." {name}1::_ %if not(and(eq({one}, 9), {nines}))']),
        _rule(
            f"{name}1::_",
            [f'"{digit}" {name}2::_ %if and(eq({one}, {digit}), not({nines}))' for digit in range(10)]
            + [f'"{digit}" {name}b{param} %if lt({one}, {digit})' for digit in range(1, 10)],
        ),
        _rule(
            f"{name}2::_",
            [f'"{digit}" {name}3::_ %if and(eq({two}, {digit}), lt({three}, 9))' for digit in range(10)]
            + [f'"{digit}" {name}c{param} %if lt({two}, {digit})' for digit in range(1, 10)],
        ),
        _rule(f"{name}3::_", [f'"{digit}" {go_on} %if lt({three}, {digit})' for digit in range(1, 10)]),
        _rule(f"{name}b{param}", [go_on, f"/[0-9]/ {name}c{param}"]),
        _rule(f"{name}c{param}", [go_on, f"/[0-9]/ {go_on}"]),
    ]


def _rule(name: str, alternatives: list[str]) -> str:
    return f"{name}: " + "\n    | ".join(alternatives)
