"""VARCO's markup: the one grammar that turns text into regions and regions into text.

    answer := (TEXT | region)*
    region := ("<char>" TEXT "</char>" | "<obj>" TEXT "</obj>") box?
    box    := "<bbox>" quad ("<delim>" quad)* "</bbox>"        quad := x1 ", " y1 ", " x2 ", " y2

Numbers are fractions of the original picture, top-left corner first, written with at most three decimals. `<gro>` and
`<ocr>` belong into questions. This is the grammar of the VARCO-VISION-14B model card.

A model may write anything, so reading never raises and never drops a character of text; what was odd becomes a sentence
in `warnings`, with its offset in the markup:
- a tag that closes nothing, a `<delim>` outside a box, `<gro>` and `<ocr>`: the tag is dropped;
- a region that opens inside another, or meets a box before its end tag, ends the open one there;
- a region or box that is never closed ends with the text, or at the next tag;
- a quad that is not four numbers, or longer than MAX_QUAD_CHARS, stays in the plain text, just like numbers at which
  the text was cut off;
- so does a quad that is not in fractions (pixels and thousandths reach above 2), or lies beside the picture: a box made
  of it would be at a wrong place;
- swapped corners are put in order, and coordinates outside 0..1 are clamped;
- a quad without width or height, which three decimals make of a thin one, becomes a thousandth wide or high. So every
  box that is read has an area, and can be asked about;
- white space between a region and its box stays in the text, and the box still counts;
- a box with nothing in front becomes an "object" without text, so that its place is not lost.
A region without a box is legal and no warning. Quads may also be separated by commas or white space alone.

The grammar has no escape. `render` breaks a tag that stands in the text itself with a `<delim>`: reading drops it again
(with a warning), so plain text and regions always survive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Literal

from varco_runtime.errors import InputError, PromptError

MARKUP_TOKENS = ("<gro>", "<ocr>", "<char>", "</char>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>")
OCR_PROMPT = "<ocr>"
MAX_WARNINGS = 50
MAX_QUAD_CHARS = 128
_LEAST, _MOST = -1.0, 2.0  # a number of a quad: an object may reach out of the picture, but not by more than its size

Kind = Literal["text", "object"]

_TAG = re.compile("|".join(MARKUP_TOKENS))
_LONGEST_TAG = max(map(len, MARKUP_TOKENS))
_KINDS: dict[str, Kind] = {"<char>": "text", "<obj>": "object"}
_OPENING: dict[Kind, str] = {kind: tag for tag, kind in _KINDS.items()}
_CLOSING: dict[Kind, str] = {"text": "</char>", "object": "</obj>"}
_NOT_IN_QUAD = re.compile(r"[^0-9+\-.,\s]", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in fractions of the original picture: 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1.

    Raises PromptError for anything else, NaN included.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        if not (0 <= self.x1 <= self.x2 <= 1 and 0 <= self.y1 <= self.y2 <= 1):
            raise PromptError(
                f"The box ({self.x1}, {self.y1}, {self.x2}, {self.y2}) is not inside the picture: expected x1, y1, x2, "
                "y2 with 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1. Divide pixels by the picture's width and height."
            )

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in whole pixels of a `width` x `height` picture.

        Halves are rounded up. The right and bottom edges lie outside, at least one pixel from the left and top ones.
        """
        x1, x2 = _to_pixels(self.x1, self.x2, width)
        y1, y2 = _to_pixels(self.y1, self.y2, height)
        return x1, y1, x2, y2


def _to_pixels(low: float, high: float, side_px: int) -> tuple[int, int]:
    first = min(int(low * side_px + 0.5), side_px - 1)
    return first, min(max(int(high * side_px + 0.5), first + 1), side_px)


@dataclass(frozen=True, slots=True)
class Region:
    """A text (`<char>`) or an object (`<obj>`) and its places; `plain_text[start:end]` is `text`."""

    kind: Kind
    text: str
    boxes: tuple[Box, ...]
    start: int
    end: int

    def pixels(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """Every box in whole pixels of a `width` x `height` picture."""
        return [box.pixels(width, height) for box in self.boxes]


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer without its tags, its regions in the order of the text, and what was odd about its markup."""

    plain_text: str
    regions: tuple[Region, ...] = ()
    warnings: tuple[str, ...] = ()


Event = str | Region


def parse(text: str) -> Parsed:
    """Read a whole answer. Takes linear time and never raises."""
    parser = StreamParser()
    parser.feed(text)
    parser.finish()
    return parser.parsed


@dataclass(slots=True)
class _Label:
    """A region whose boxes are still to come; `closed` once its end tag was read."""

    kind: Kind
    at: int
    start: int
    first_piece: int
    end: int = 0
    text: str = ""
    closed: bool = False


@dataclass(slots=True)
class _OpenBox:
    """A `<bbox>` being read: the quads so far and the characters of the current one."""

    at: int
    label: _Label
    owned: bool
    quads: list[Box] = field(default_factory=list)
    content: str = ""
    spoiled: bool = False


class StreamParser:
    """The grammar as text arrives, cut anywhere: text comes out at once, a region when it is complete.

    At most a tag's beginning or one quad is held back. `parsed` is what was read so far, final after `finish`.
    """

    def __init__(self) -> None:
        self._held = ""
        self._held_at = 0
        self._pieces: list[str] = []
        self._plain_length = 0
        self._regions: list[Region] = []
        self._warnings: list[str] = []
        self._num_unlisted = 0
        self._label: _Label | None = None
        self._box: _OpenBox | None = None
        self._events: list[Event] = []
        self._finished = False

    @property
    def parsed(self) -> Parsed:
        more = (f"The markup was odd in {self._num_unlisted} more places.",) if self._num_unlisted else ()
        return Parsed("".join(self._pieces), tuple(self._regions), (*self._warnings, *more))

    def feed(self, piece: str) -> list[Event]:
        """Read on; returns plain text (`str`) and finished regions (`Region`) in order."""
        assert not self._finished, "Bug: feed() after finish()."
        text = self._held + piece
        position = 0
        for match in _TAG.finditer(text):
            self._read_text(text[position : match.start()], self._held_at + position)
            self._read_tag(match.group(), self._held_at + match.start())
            position = match.end()
        cut = _unfinished_tag(text, position)
        self._read_text(text[position:cut], self._held_at + position)
        self._held, self._held_at = text[cut:], self._held_at + cut
        return self._take_events()

    def finish(self) -> list[Event]:
        """The text has ended; returns what was still held back."""
        if self._finished:
            return []
        self._finished = True
        if self._box is not None:
            self._warn(f"<bbox> at {self._box.at} is never closed.")
            self._end_quad(cut_off=not self._held, closed=False)
            self._end_box()
        self._say(self._held)
        self._end_label("is never closed.")
        self._held = ""
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _warn(self, sentence: str) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(sentence)
        else:
            self._num_unlisted += 1

    def _say(self, text: str) -> None:
        """Append plain text; anything but white space ends the wait of a closed region for its box."""
        if not text:
            return
        if self._label is not None and self._label.closed and not text.isspace():
            self._end_label()
        self._pieces.append(text)
        self._plain_length += len(text)
        self._events.append(text)

    def _read_text(self, text: str, at: int) -> None:
        box = self._box
        if box is None or box.spoiled:
            self._say(text)
            return
        foreign = _NOT_IN_QUAD.search(text)
        keep = min(foreign.start() if foreign else len(text), MAX_QUAD_CHARS - len(box.content))
        box.content += text[:keep]
        if keep < len(text):
            self._warn(f"The box at {box.at} is not four numbers; its content from {at + keep} on was kept as text.")
            self._say(box.content + text[keep:])
            box.content, box.spoiled = "", True

    def _read_tag(self, tag: str, at: int) -> None:
        if self._box is not None and tag in ("<delim>", "</bbox>"):
            self._end_quad()
            if tag == "</bbox>":
                self._end_box()
            return
        if self._box is not None:
            self._warn(f"<bbox> at {self._box.at} is not closed before {tag} at {at}.")
            self._end_quad(closed=False)
            self._end_box()
        if tag in _KINDS:
            self._end_label(f"is not closed before {tag} at {at}.")
            self._label = _Label(_KINDS[tag], at, self._plain_length, len(self._pieces))
        elif tag in _CLOSING.values():
            self._close_label(tag, at)
        elif tag == "<bbox>":
            self._open_box(at)
        else:
            self._drop_tag(tag, at)

    def _drop_tag(self, tag: str, at: int) -> None:
        reason = {"<delim>": "stands outside a box", "</bbox>": "closes nothing"}
        self._warn(f"{tag} at {at} {reason.get(tag, 'belongs into a question')}; it was dropped.")

    def _close_label(self, tag: str, at: int) -> None:
        label = self._label
        if label is None or label.closed:
            self._warn(f"{tag} at {at} closes nothing; it was dropped.")
            return
        if tag != _CLOSING[label.kind]:
            self._warn(f"{tag} at {at} closes the {_OPENING[label.kind]} at {label.at}.")
        self._close(label)

    def _close(self, label: _Label) -> None:
        label.text = "".join(self._pieces[label.first_piece :])
        label.end, label.closed = self._plain_length, True

    def _end_label(self, complaint: str = "") -> None:
        """Finish the region without boxes; `complaint` says why one that is still open ends here."""
        label, self._label = self._label, None
        if label is None:
            return
        if not label.closed:
            self._warn(f"{_OPENING[label.kind]} at {label.at} {complaint}")
            self._close(label)
        self._add_region(label, ())

    def _add_region(self, label: _Label, boxes: Sequence[Box]) -> None:
        region = Region(label.kind, label.text, tuple(boxes), label.start, label.end)
        self._regions.append(region)
        self._events.append(region)

    def _open_box(self, at: int) -> None:
        label, self._label = self._label, None
        owned = label is not None
        if label is None:
            self._warn(f"<bbox> at {at} has no <char> or <obj> in front.")
            label = _Label("object", at, self._plain_length, len(self._pieces))
        elif not label.closed:
            self._warn(f"{_OPENING[label.kind]} at {label.at} is not closed before <bbox> at {at}.")
        elif label.end < self._plain_length:
            self._warn(f"<bbox> at {at} is apart from its {_OPENING[label.kind]} at {label.at}.")
        if not label.closed:
            self._close(label)
        self._box = _OpenBox(at, label, owned)

    def _end_box(self) -> None:
        box, self._box = self._box, None
        assert box is not None, "Bug: no box is open."
        if box.owned or box.quads:
            self._add_region(box.label, box.quads)

    def _end_quad(self, cut_off: bool = False, closed: bool = True) -> None:
        """Judge the current quad. One that the end of the text cut off is text: its last number may lack digits."""
        box = self._box
        assert box is not None, "Bug: no box is open."
        content, box.content = box.content, ""
        spoiled, box.spoiled = box.spoiled, False
        if spoiled:
            return
        if not content.strip():
            self._warn(f"The box at {box.at} is empty.")
            self._say(content if not closed else "")
            return
        quad = "ends with the text" if cut_off else self._read_quad(content, box.at)
        if isinstance(quad, Box):
            box.quads.append(quad)
            self._say("" if closed else content[len(content.rstrip()) :])
            return
        self._warn(f"The box at {box.at} {quad}; {content.strip()!r} was kept as text.")
        self._say(content)

    def _read_quad(self, content: str, at: int) -> Box | str:
        """Return the box, or what is wrong with it."""
        words = content.split("," if "," in content else None)
        if len(words) != 4 or not all(_NUMBER.fullmatch(word.strip()) for word in words):
            return "is not four numbers"
        x1, y1, x2, y2 = numbers = [float(word) for word in words]
        if min(numbers) < _LEAST or max(numbers) > _MOST:
            return "is not in fractions of the picture"
        if max(x1, x2) < 0 or min(x1, x2) > 1 or max(y1, y2) < 0 or min(y1, y2) > 1:
            return "lies beside the picture"
        if x1 > x2 or y1 > y2:
            self._warn(f"The box at {at} has swapped corners; they were put in order.")
        if min(numbers) < 0 or max(numbers) > 1:
            self._warn(f"The box at {at} lies outside 0..1; it was clamped to the picture.")
        left, right, is_thin = _with_width(x1, x2)
        top, bottom, is_flat = _with_width(y1, y2)
        if is_thin or is_flat:
            self._warn(f"The box at {at} covers nothing; it was widened to a thousandth of the picture.")
        return Box(left, top, right, bottom)


def _with_width(one: float, other: float) -> tuple[float, float, bool]:
    """Return both in order and within 0..1, apart at three decimals, and whether they had to be drawn apart."""
    low, high = sorted((_clamp(one), _clamp(other)))
    if round(low, 3) < round(high, 3):
        return low, high, False
    low = min(round(low, 3), 0.999)
    return low, round(low + 0.001, 3), True


def _clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0) + 0.0  # adding zero turns -0.0 into 0.0


def _unfinished_tag(text: str, position: int) -> int:
    """Where the tail of `text` may be the beginning of a tag, else its length."""
    start = text.rfind("<", max(position, len(text) - _LONGEST_TAG + 1))
    if start >= 0 and any(tag.startswith(text[start:]) for tag in MARKUP_TOKENS):
        return start
    return len(text)


def render(parsed: Parsed) -> str:
    """Write regions back as markup, so that `parse(render(x))` gives the same plain text and regions.

    Representable is every plain text with regions in its order that do not overlap and boxes of three decimals that
    cover something; more decimals are rounded. `warnings` are not written. Raises InputError for regions that do not
    fit the text.
    """
    plain, out, done = parsed.plain_text, [], 0
    _check_regions(parsed)
    for region in parsed.regions:
        boxes = "<delim>".join(map(_quad_text, region.boxes))
        out.append(_break_tags(plain[done : region.start]))
        out.append(_OPENING[region.kind] + _break_tags(region.text) + _CLOSING[region.kind])
        out.append(f"<bbox>{boxes}</bbox>" if boxes else "")
        done = region.end
    return "".join([*out, _break_tags(plain[done:])])


def _check_regions(parsed: Parsed) -> None:
    for before, region in pairwise((Region("text", "", (), 0, 0), *parsed.regions)):
        there = parsed.plain_text[region.start : region.end]
        if region.start < before.end or region.end < region.start:
            raise InputError(
                f"The region at {region.start}..{region.end} overlaps the one before, which ends at {before.end}. "
                "Sort the regions by their start and drop one of the two."
            )
        if there != region.text or region.end > len(parsed.plain_text):
            raise InputError(
                f"The region at {region.start}..{region.end} is {region.text!r}, but the plain text has {there!r} "
                "there. Make start and end its offsets in the plain text."
            )


def _break_tags(text: str) -> str:
    return _TAG.sub(lambda tag: "<<delim>" + tag.group()[1:], text)


def _number_text(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _quad_text(box: Box) -> str:
    return ", ".join(map(_number_text, (box.x1, box.y1, box.x2, box.y2)))


def ground_prompt(question: str) -> str:
    """A question whose answer shall name places."""
    return f"<gro>\n{question}"


def refer_prompt(template: str, text: str, box: Box | Sequence[float]) -> str:
    """A question about the object `text` in `box`.

    The object's markup takes the place of `{object}` in the template, or stands in front where there is none. Raises
    PromptError for a box that is not inside the picture or covers nothing, and for a text that is blank or holds a tag.
    """
    if tag := _TAG.search(text):
        raise PromptError(
            f"The object text {text!r} holds the markup {tag.group()}: expected words. Leave the tags out."
        )
    if not text.strip():
        raise PromptError(f"The object text is {text!r}: expected some words. Name the object, as 'this thing'.")
    markup = f"<obj>{text}</obj><bbox>{_quad_text(_check_box(box))}</bbox>"
    return template.replace("{object}", markup) if "{object}" in template else markup + template


def _check_box(box: Box | Sequence[float]) -> Box:
    numbers = (box.x1, box.y1, box.x2, box.y2) if isinstance(box, Box) else tuple(box)
    if len(numbers) != 4 or not all(isinstance(number, Real) for number in numbers):
        raise PromptError(
            f"The box {numbers} is not four numbers: expected x1, y1, x2, y2. Give it as 0.1, 0.2, 0.3, 0.4."
        )
    checked = Box(*map(float, numbers))
    if round(checked.x1, 3) >= round(checked.x2, 3) or round(checked.y1, 3) >= round(checked.y2, 3):
        raise PromptError(
            f"The box {numbers} covers nothing at three decimals: expected x1 < x2 and y1 < y2. "
            "Give the top-left corner first, then the bottom-right one."
        )
    return checked
