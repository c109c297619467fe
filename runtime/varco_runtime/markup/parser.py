"""VARCO's markup read: the one grammar, which turns text into regions.

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
A region without a box is legal and no warning. Quads may also be separated by commas or white space alone. Regions may
follow each other on one line or on lines of their own. A thought in front of the answer is left out (`thought.py`).

The grammar has no escape. `writer.py` breaks a tag that stands in the text itself with a `<delim>`: reading drops it
again (with a warning), so plain text and regions always survive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from varco_runtime.markup.regions import (
    CLOSING,
    KINDS,
    LONGEST_TAG,
    MARKUP_TOKENS,
    OPENING,
    TAG,
    Box,
    Kind,
    Parsed,
    Region,
)
from varco_runtime.markup.thought import Thought

MAX_WARNINGS = 50
MAX_QUAD_CHARS = 128
_LEAST, _MOST = -1.0, 2.0  # a number of a quad: an object may reach out of the picture, but not by more than its size

_NOT_IN_QUAD = re.compile(r"[^0-9+\-.,\s]", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)


Event = str | Region


def parse(text: str) -> Parsed:
    """Read a whole answer, in linear time. Never raises.

    Args:
        text: The answer with its markup.

    Returns:
        The plain text, its regions, and warnings about what was odd.
    """
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
    """Read the grammar as text arrives, cut anywhere: text comes out at once, a region when it is complete.

    At most a tag's beginning or one quad is held back. `parsed` is what was read so far, final after `finish`.
    """

    def __init__(self) -> None:
        self._thought = Thought()
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
        """Return what was read so far."""
        more = (f"The markup was odd in {self._num_unlisted} more places.",) if self._num_unlisted else ()
        return Parsed("".join(self._pieces), tuple(self._regions), (*self._warnings, *more))

    @property
    def is_in_thought(self) -> bool:
        """Return whether a thought has begun in front of the answer and not ended."""
        return self._thought.is_open

    def feed(self, piece: str) -> list[Event]:
        """Read on.

        Args:
            piece: The next characters of the answer, cut anywhere.

        Returns:
            Plain text (`str`) and finished regions (`Region`), in order.
        """
        assert not self._finished, "Bug: feed() after finish()."
        piece, num_left_out = self._thought.feed(piece)
        self._held_at += num_left_out  # nothing is held back yet where a thought is left out
        return self._read(piece)

    def _read(self, piece: str) -> list[Event]:
        text = self._held + piece
        position = 0
        for match in TAG.finditer(text):
            self._read_text(text[position : match.start()], self._held_at + position)
            self._read_tag(match.group(), self._held_at + match.start())
            position = match.end()
        cut = _unfinished_tag(text, position)
        self._read_text(text[position:cut], self._held_at + position)
        self._held, self._held_at = text[cut:], self._held_at + cut
        return self._take_events()

    def finish(self) -> list[Event]:
        """End the text, and return what was still held back; nothing where it has ended already."""
        if self._finished:
            return []
        if self._thought.is_open:
            self._warn("<think> is never closed; the answer ends within it.")
        self._events += self._read(self._thought.finish())
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
        if tag in KINDS:
            self._end_label(f"is not closed before {tag} at {at}.")
            self._label = _Label(KINDS[tag], at, self._plain_length, len(self._pieces))
        elif tag in CLOSING.values():
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
        if tag != CLOSING[label.kind]:
            self._warn(f"{tag} at {at} closes the {OPENING[label.kind]} at {label.at}.")
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
            self._warn(f"{OPENING[label.kind]} at {label.at} {complaint}")
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
            self._warn(f"{OPENING[label.kind]} at {label.at} is not closed before <bbox> at {at}.")
        elif label.end < self._plain_length:
            self._warn(f"<bbox> at {at} is apart from its {OPENING[label.kind]} at {label.at}.")
        if not label.closed:
            self._close(label)
        self._box = _OpenBox(at, label, owned)

    def _end_box(self) -> None:
        box, self._box = self._box, None
        assert box is not None, "Bug: no box is open."
        if box.owned or box.quads:
            self._add_region(box.label, box.quads)

    def _end_quad(self, cut_off: bool = False, closed: bool = True) -> None:
        """Make a box or text of the current quad. One that the text's end cut off is text: its last number may lack
        digits."""
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


def _with_width(edge: float, opposite: float) -> tuple[float, float, bool]:
    """Return two edges in order and within 0..1, apart at three decimals, and whether they had to be drawn apart."""
    low, high = sorted((_clamp(edge), _clamp(opposite)))
    if round(low, 3) < round(high, 3):
        return low, high, False
    low = min(round(low, 3), 0.999)
    return low, round(low + 0.001, 3), True


def _clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0) + 0.0  # adding zero turns -0.0 into 0.0


def _unfinished_tag(text: str, position: int) -> int:
    """Return where the tail of `text` may be the beginning of a tag, else its length."""
    start = text.rfind("<", max(position, len(text) - LONGEST_TAG + 1))
    if start >= 0 and any(tag.startswith(text[start:]) for tag in MARKUP_TOKENS):
        return start
    return len(text)
