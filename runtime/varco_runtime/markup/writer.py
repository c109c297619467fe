"""Regions written as VARCO's markup: the other direction of `parser.py`."""

from __future__ import annotations

from itertools import pairwise

from varco_runtime.errors import InputError
from varco_runtime.markup.regions import CLOSING, OPENING, TAG, Parsed, Region, quad_text
from varco_runtime.markup.thought import THINK


def render(parsed: Parsed) -> str:
    """Write regions back as markup, so that `parse(render(x))` gives the same plain text and regions.

    Representable is every plain text with regions in its order that do not overlap and boxes of three decimals that
    cover something; more decimals are rounded. `warnings` are not written.

    Args:
        parsed: Plain text and its regions.

    Returns:
        The markup.

    Raises:
        InputError: The regions overlap, or do not fit the text.
    """
    plain, out, done = parsed.plain_text, [], 0
    _check_regions(parsed)
    for region in parsed.regions:
        boxes = "<delim>".join(map(quad_text, region.boxes))
        out.append(_break_tags(plain[done : region.start]))
        out.append(OPENING[region.kind] + _break_tags(region.text) + CLOSING[region.kind])
        out.append(f"<bbox>{boxes}</bbox>" if boxes else "")
        done = region.end
    written = "".join([*out, _break_tags(plain[done:])])
    start = len(written) - len(written.lstrip())
    # Text that begins like a thought is not to be read as one.
    return written.replace(THINK, f"<<delim>{THINK[1:]}", 1) if written.startswith(THINK, start) else written


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
    return TAG.sub(lambda tag: "<<delim>" + tag.group()[1:], text)
