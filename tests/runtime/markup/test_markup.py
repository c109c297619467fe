"""The markup grammar: what is read, what is written, and what is said about odd markup."""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.makers.steps import assert_linear
from varco_runtime.errors import InputError, PromptError
from varco_runtime.markup.parser import MAX_QUAD_CHARS, MAX_WARNINGS, StreamParser, parse
from varco_runtime.markup.questions import OCR_PROMPT, ground_prompt, refer_prompt
from varco_runtime.markup.regions import MARKUP_TOKENS, Box, Parsed, Region
from varco_runtime.markup.writer import render

SHARED = Path(__file__).resolve().parents[4] / "shared"

BOX = "<bbox>0.1, 0.2, 0.3, 0.4</bbox>"
FIRST = Box(0.1, 0.2, 0.3, 0.4)

# markup, plain text, (kind, text, boxes) of each region, one word group per warning in order
TABLE = [
    ("plain prose", "plain prose", [], []),
    ("", "", [], []),
    ("<char>간판</char>" + BOX, "간판", [("text", "간판", [FIRST])], []),
    (
        "A <obj>cat</obj>" + BOX[:-7] + "<delim>0, 0, 1, 1</bbox>!",
        "A cat!",
        [("object", "cat", [FIRST, Box(0, 0, 1, 1)])],
        [],
    ),
    ("<obj>cat</obj> sat", "cat sat", [("object", "cat", [])], []),
    ("<obj></obj>" + BOX, "", [("object", "", [FIRST])], []),
    ("<obj>c</obj><bbox>0.1,0.2,0.3,0.4</bbox>", "c", [("object", "c", [FIRST])], []),
    ("<obj>c</obj><bbox>.1 +0.2 0.30 0.4</bbox>", "c", [("object", "c", [FIRST])], []),
    ("a < b <o </obbj> <BBOX>", "a < b <o </obbj> <BBOX>", [], []),
    ("the end <bbo", "the end <bbo", [], []),
    # boxes
    ("<obj>c</obj>\n" + BOX, "c\n", [("object", "c", [FIRST])], ["apart from its <obj>"]),
    (BOX + "x", "x", [("object", "", [FIRST])], ["no <char> or <obj> in front"]),
    ("<obj>c</obj>" + BOX + BOX, "c", [("object", "c", [FIRST]), ("object", "", [FIRST])], ["no <char> or <obj>"]),
    ("<obj>c</obj><bbox>0.3, 0.4, 0.1, 0.2</bbox>", "c", [("object", "c", [FIRST])], ["swapped corners"]),
    ("<obj>c</obj><bbox>-1, 0.2, 2e, 1</bbox>", "c-1, 0.2, 2e, 1", [("object", "c", [])], ["not four numbers"]),
    ("<obj>c</obj><bbox>-1, -0, 2, 0.5</bbox>", "c", [("object", "c", [Box(0, 0, 1, 0.5)])], ["outside 0..1"]),
    ("<obj>c</obj><bbox>2, 1, 0.9, 0</bbox>", "c", [("object", "c", [Box(0.9, 0, 1, 1)])], ["swapped", "outside 0..1"]),
    ("<obj>c</obj><bbox>1, 2, 3</bbox>d", "c1, 2, 3d", [("object", "c", [])], ["not four numbers"]),
    ("<obj>c</obj><bbox>0,0,1,1,1</bbox>", "c0,0,1,1,1", [("object", "c", [])], ["not four numbers"]),
    ("<obj>c</obj><bbox>0,,1,1</bbox>", "c0,,1,1", [("object", "c", [])], ["not four numbers"]),
    ("<obj>c</obj><bbox>0, 0, 1.1.1, 1</bbox>", "c0, 0, 1.1.1, 1", [("object", "c", [])], ["not four numbers"]),
    ("<obj>c</obj><bbox>nan, 0, inf, 1</bbox>", "cnan, 0, inf, 1", [("object", "c", [])], ["not four numbers"]),
    ("<obj>c</obj><bbox>0, 0, 1e999, 1</bbox>", "c0, 0, 1e999, 1", [("object", "c", [])], ["not four numbers"]),
    (f"<obj>c</obj><bbox>{'9' * 99}, 0, 1, 1</bbox>", f"c{'9' * 99}, 0, 1, 1", [("object", "c", [])], ["in fractions"]),
    # boxes without area, and numbers that are no fractions
    ("<obj>c</obj><bbox>120, 80, 300, 200</bbox>", "c120, 80, 300, 200", [("object", "c", [])], ["not in fractions"]),
    ("<obj>c</obj><bbox>0, 0, 100, 50</bbox>", "c0, 0, 100, 50", [("object", "c", [])], ["not in fractions"]),
    ("<obj>c</obj><bbox>039, 138, 283, 257</bbox>", "c039, 138, 283, 257", [("object", "c", [])], ["not in fractions"]),
    (
        "<obj>c</obj><bbox>1.2, 1.2, 1.5, 1.5</bbox>",
        "c1.2, 1.2, 1.5, 1.5",
        [("object", "c", [])],
        ["beside the picture"],
    ),
    ("<obj>c</obj><bbox>0.1, -0.3, 0.5, -0.1</bbox>", "c0.1, -0.3, 0.5, -0.1", [("object", "c", [])], ["beside"]),
    ("<obj>c</obj><bbox>0.5, 0.5, 0.5, 0.5</bbox>", "c", [("object", "c", [Box(0.5, 0.5, 0.501, 0.501)])], ["widened"]),
    (
        "<obj>c</obj><bbox>0.1, 0.482, 0.9, 0.482</bbox>",
        "c",
        [("object", "c", [Box(0.1, 0.482, 0.9, 0.483)])],
        ["widene"],
    ),
    ("<obj>c</obj><bbox>1, 0, 1, 0.0004</bbox>", "c", [("object", "c", [Box(0.999, 0, 1, 0.001)])], ["widened"]),
    ("<obj>c</obj><bbox></bbox>", "c", [("object", "c", [])], ["is empty"]),
    ("<bbox></bbox>d", "d", [], ["no <char>", "is empty"]),
    ("<obj>c</obj><bbox>?<delim>0.1, 0.2, 0.3, 0.4</bbox>", "c?", [("object", "c", [FIRST])], ["not four numbers"]),
    ("<obj>c</obj>" + BOX[:-7] + "<delim></bbox>", "c", [("object", "c", [FIRST])], ["is empty"]),
    ("<obj>c</obj>" + BOX[:-7] + "\n<obj>d</obj>", "c\nd", [("object", "c", [FIRST]), ("object", "d", [])], ["not cl"]),
    ("<obj>c</obj><bbox>\n<obj>d</obj>", "c\nd", [("object", "c", []), ("object", "d", [])], ["not clo", "is empty"]),
    ("<obj>c</obj>" + BOX[:-7] + BOX, "c", [("object", "c", [FIRST]), ("object", "", [FIRST])], ["not clo", "no <ch"]),
    # truncated by the end of the text
    ("<obj>c", "c", [("object", "c", [])], ["<obj> at 0 is never closed"]),
    ("<obj>c</ob", "c</ob", [("object", "c</ob", [])], ["never closed"]),
    ("<obj>c</obj><bbox>", "c", [("object", "c", [])], ["never closed", "is empty"]),
    ("<obj>c</obj><bbox>0.1, 0.", "c0.1, 0.", [("object", "c", [])], ["never closed", "ends with the text"]),
    ("<obj>c</obj>" + BOX[:-7], "c0.1, 0.2, 0.3, 0.4", [("object", "c", [])], ["never closed", "ends with the text"]),
    ("<obj>c</obj>" + BOX[:-1], "c</bbox", [("object", "c", [FIRST])], ["never closed"]),
    ("<obj>c</obj><bbox>what", "cwhat", [("object", "c", [])], ["not four numbers", "never closed"]),
    # nested, crossed and stray tags
    ("<char>a<char>b</char>" + BOX, "ab", [("text", "a", []), ("text", "b", [FIRST])], ["<char> at 0 is not closed"]),
    ("<char>a<obj>b</obj></char>", "ab", [("text", "a", []), ("object", "b", [])], ["not closed", "closes nothing"]),
    ("<char>a</obj>" + BOX, "a", [("text", "a", [FIRST])], ["</obj> at 7 closes the <char> at 0"]),
    ("<char>a" + BOX + "</char>b", "ab", [("text", "a", [FIRST])], ["not closed before <bbox>", "closes nothing"]),
    ("a</char>b", "ab", [], ["closes nothing"]),
    ("a</bbox>b", "ab", [], ["closes nothing"]),
    ("a<delim>b", "ab", [], ["outside a box"]),
    ("<obj>a<delim>b</obj>", "ab", [("object", "ab", [])], ["outside a box"]),
    ("<gro>\na<ocr>b", "\nab", [], ["<gro> at 0 belongs into a question", "<ocr>"]),
    ("<ob<gro>j>", "<obj>", [], ["belongs into a question"]),
]


def facts(parsed: Parsed) -> list[tuple[str, str, list[Box]]]:
    return [(region.kind, region.text, list(region.boxes)) for region in parsed.regions]


@pytest.mark.parametrize(("markup", "plain", "regions", "warnings"), TABLE)
def test_each_form_of_markup_is_read_as_documented(
    markup: str, plain: str, regions: list[tuple[str, str, list[Box]]], warnings: list[str]
) -> None:
    parsed = parse(markup)
    assert parsed.plain_text == plain
    assert facts(parsed) == regions
    assert len(parsed.warnings) == len(warnings), parsed.warnings
    assert all(part in warning for part, warning in zip(warnings, parsed.warnings, strict=True)), parsed.warnings


def test_a_warning_is_a_sentence_of_one_line() -> None:
    said = [warning for markup, *_ in TABLE for warning in parse(markup).warnings]
    assert all(re.fullmatch(r"(The|<).*\.", warning) for warning in said), said


def streamed(pieces: list[str]) -> Parsed:
    """Feed the pieces, and check that the events are the result."""
    parser = StreamParser()
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    assert "".join(event for event in events if isinstance(event, str)) == parser.parsed.plain_text
    assert tuple(event for event in events if isinstance(event, Region)) == parser.parsed.regions
    return parser.parsed


@pytest.mark.parametrize("markup", [row[0] for row in TABLE])
def test_text_cut_at_every_position_reads_like_the_whole(markup: str) -> None:
    whole = parse(markup)
    for cut in range(len(markup) + 1):
        assert streamed([markup[:cut], markup[cut:]]) == whole, f"cut at {cut}"
    assert streamed(list(markup)) == whole


@pytest.mark.parametrize("markup", [row[0] for row in TABLE])
def test_text_cut_at_every_byte_reads_like_the_whole(markup: str) -> None:
    whole, data = parse(markup), markup.encode()
    for cut in range(len(data) + 1):
        decoder = codecs.getincrementaldecoder("utf-8")()
        assert streamed([decoder.decode(data[:cut]), decoder.decode(data[cut:], final=True)]) == whole, f"cut at {cut}"


def test_a_region_comes_out_as_its_box_closes() -> None:
    parser = StreamParser()
    assert parser.feed("A <obj>cat</obj><bbox>0.1, 0.2, 0.3, 0.4</bbo") == ["A ", "cat"]
    assert parser.feed("x>") == [Region("object", "cat", (FIRST,), 2, 5)]
    assert parser.feed(" sat <") == [" sat "]
    assert parser.finish() == ["<"]
    assert parser.finish() == []


def test_a_box_that_never_closes_holds_little_text_back() -> None:
    parser = StreamParser()
    parser.feed("<obj>c</obj><bbox>")
    said = [event for _ in range(1000) for event in parser.feed("0.1, ")]
    assert len("".join(event for event in said if isinstance(event, str))) >= 5000 - MAX_QUAD_CHARS


def test_zero_has_no_sign() -> None:
    (region,) = parse("<obj>c</obj><bbox>-0, -0.0, 1, 1</bbox>").regions
    assert str(region.boxes[0]) == "Box(x1=0.0, y1=0.0, x2=1.0, y2=1.0)"


def test_feeding_a_finished_parser_is_a_bug() -> None:
    parser = StreamParser()
    parser.finish()
    with pytest.raises(AssertionError, match="Bug"):
        parser.feed("more")


pieces = st.one_of(
    st.sampled_from(MARKUP_TOKENS),
    st.sampled_from(["<", ">", "</", "<ob", "0.1", "0.25, ", "1.5, ", "-0", ",", " ", "\n", BOX, "0.1, 0.2, 0.3, 0.4"]),
    st.text(max_size=4),
)
wild_markup = st.lists(pieces, max_size=24).map("".join)


@settings(derandomize=True, deadline=None)
@given(wild_markup, st.data())
def test_wild_markup_streams_like_the_whole(markup: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(markup)), max_size=8)))
    assert streamed([markup[i:j] for i, j in zip([0, *cuts], [*cuts, len(markup)], strict=True)]) == parse(markup)


@settings(derandomize=True, deadline=None)
@given(wild_markup)
def test_wild_markup_loses_no_text_and_its_regions_fit_the_plain_text(markup: str) -> None:
    parsed = parse(markup)
    letters = [char for char in re.sub("|".join(MARKUP_TOKENS), "", markup) if char not in "0123456789+-., \n\t\r\f\v"]
    assert [char for char in parsed.plain_text if char not in "0123456789+-., \n\t\r\f\v"] == letters
    for region in parsed.regions:
        assert parsed.plain_text[region.start : region.end] == region.text
        assert all(0 <= value <= 1 for box in region.boxes for value in (box.x1, box.y1, box.x2, box.y2))


quads = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.1005, 1.0005, -0.0005]), st.floats(-1.5, 2.5), st.integers(0, 1000)),
    min_size=4,
    max_size=4,
)


@given(quads)
def test_every_box_that_is_read_has_an_area_and_can_be_asked_about(numbers: list[float]) -> None:
    quad = ", ".join(f"{number:.6f}" for number in numbers)
    (region,) = parse(f"<obj>c</obj><bbox>{quad}</bbox>").regions
    for box in region.boxes:
        assert refer_prompt("what?", "this", box)
        left, top, right, bottom = box.pixels(3, 2000)
        assert 0 <= left < right <= 3
        assert 0 <= top < bottom <= 2000


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x1, x2 = sorted(draw(st.sets(st.integers(0, 1000), min_size=2, max_size=2)))
    y1, y2 = sorted(draw(st.sets(st.integers(0, 1000), min_size=2, max_size=2)))
    return Box(x1 / 1000, y1 / 1000, x2 / 1000, y2 / 1000)


@st.composite
def answers(draw: st.DrawFn, text: st.SearchStrategy[str]) -> Parsed:
    plain, regions = draw(text), []
    for _ in range(draw(st.integers(0, 5))):
        start, inside = len(plain), draw(text)
        places = tuple(draw(st.lists(boxes(), max_size=3)))
        regions.append(Region(draw(st.sampled_from(["text", "object"])), inside, places, start, start + len(inside)))
        plain += inside + draw(text)
    return Parsed(plain, tuple(regions))


bare_text = st.text(max_size=12).filter(lambda text: not any(token in text for token in MARKUP_TOKENS))
tagged_text = st.lists(
    st.one_of(st.sampled_from([*MARKUP_TOKENS, "<", "<ob", "j>", " "]), st.text(max_size=3)), max_size=5
)


def has_tag(answer: Parsed) -> bool:
    """Whether one of the runs of text between the region's own tags holds a tag."""
    ends = sorted({0, len(answer.plain_text)} | {offset for r in answer.regions for offset in (r.start, r.end)})
    runs = [answer.plain_text[i:j] for i, j in pairwise(ends)]
    return any(token in run for run in runs for token in MARKUP_TOKENS)


@settings(derandomize=True, deadline=None)
@given(answers(bare_text))
def test_rendered_regions_are_read_back_unchanged(answer: Parsed) -> None:
    assert parse(render(answer)) == answer


@settings(derandomize=True, deadline=None)
@given(answers(tagged_text.map("".join)))
def test_tags_within_the_text_survive_and_are_reported(answer: Parsed) -> None:
    again = parse(render(answer))
    assert replace(again, warnings=()) == answer
    assert bool(again.warnings) == has_tag(answer)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(wild_markup)
def test_what_was_read_can_be_rendered_and_read_again(markup: str) -> None:
    once = parse(markup)
    assert replace(parse(render(once)), warnings=()) == replace(once, warnings=())


def test_numbers_are_written_as_the_model_writes_them() -> None:
    region = Region("object", "c", (Box(0.51, 0.1234, 0.9996, 1), Box(0, 0.003, 0.5, 0.28)), 0, 1)
    assert render(Parsed("c", (region,))) == ("<obj>c</obj><bbox>0.51, 0.123, 1, 1<delim>0, 0.003, 0.5, 0.28</bbox>")


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([Region("text", "ab", (), 0, 2), Region("text", "bc", (), 1, 3)], r"1..3 overlaps the one before.*at 2"),
        ([Region("text", "", (), -1, 0)], "-1..0 overlaps"),
        ([Region("text", "", (), 2, 1)], "2..1 overlaps"),
        ([Region("text", "xx", (), 0, 2)], "is 'xx', but the plain text has 'ab' there"),
        ([Region("text", "", (), 9, 9)], "9..9 is ''"),
    ],
)
def test_regions_that_do_not_fit_the_text_are_refused(regions: list[Region], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(Parsed("abc", tuple(regions)))


@pytest.mark.parametrize(
    "numbers",
    [(0.5, 0, 0.4, 1), (0, 0.5, 1, 0.4), (-0.1, 0, 1, 1), (0, 0, 1.1, 1), (math.nan, 0, 1, 1), (0, 0, 1, math.inf)],
)
def test_a_box_outside_the_picture_is_refused(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(PromptError, match="not inside the picture: expected"):
        Box(*numbers)


def test_pixels_are_rounded_and_stay_in_the_picture() -> None:
    assert Box(0.014, 0.106, 0.51, 0.996).pixels(640, 480) == (9, 51, 326, 478)
    assert Box(0, 0, 1, 1).pixels(3, 1) == (0, 0, 3, 1)
    assert Box(0.5, 0.5, 0.5, 0.5).pixels(1, 1) == (0, 0, 1, 1)
    assert Box(0.2, 0.999, 0.201, 1).pixels(100, 100) == (20, 99, 21, 100)
    assert Region("text", "a", (FIRST, FIRST), 0, 1).pixels(100, 10) == [(10, 2, 30, 4)] * 2


@pytest.mark.parametrize(
    "unit", ["<", "<bbox>", "<obj>", "</", "<delim>", "0.1, ", "<bbox>0", " ", "<obj>a</obj>", "9"]
)
@pytest.mark.parametrize("opening", ["", "<obj>c</obj><bbox>"])
def test_a_megabyte_of_anything_is_read_in_linear_time(unit: str, opening: str) -> None:
    assert_linear(lambda num_chars: parse(opening + unit * (num_chars // len(unit))), 4_000)
    assert len(parse(opening + unit * (1_000_000 // len(unit))).warnings) <= MAX_WARNINGS + 1


def test_warnings_are_counted_beyond_the_first_ones() -> None:
    warnings = parse("<delim>" * (MAX_WARNINGS + 7)).warnings
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1] == "The markup was odd in 7 more places."


def test_prompts_are_the_ones_of_the_model_card() -> None:
    assert ground_prompt("Describe the image in detail.") == "<gro>\nDescribe the image in detail."
    assert OCR_PROMPT == "<ocr>"
    assert refer_prompt("{object}은 어떻게 쓰는거야?", "이 물건", (0.039, 0.138, 0.283, 0.257)) == (
        "<obj>이 물건</obj><bbox>0.039, 0.138, 0.283, 0.257</bbox>은 어떻게 쓰는거야?"
    )


def test_the_object_stands_in_front_of_a_question_without_a_place_for_it() -> None:
    assert refer_prompt("what?", "this", FIRST) == f"<obj>this</obj>{BOX}what?"


def test_braces_in_a_question_are_taken_literally() -> None:
    assert (
        refer_prompt("{object} {0} {x!r} }{", "{object}", [0.1, 0.2, 0.3, 0.4])
        == f"<obj>{{object}}</obj>{BOX} {{0}} {{x!r}} }}{{"
    )


@pytest.mark.parametrize(
    ("text", "box", "message"),
    [
        ("a</obj>", (0, 0, 1, 1), "holds the markup </obj>"),
        (" ", (0, 0, 1, 1), "expected some words"),
        ("a", (0, 0, 1), "is not four numbers"),
        ("a", "0,0,1,1", "is not four numbers"),
        ("a", (0, 0, 1, 1.5), "not inside the picture"),
        ("a", (0, 0, math.nan, 1), "not inside the picture"),
        ("a", (0.9, 0, 0.1, 1), "not inside the picture"),
        ("a", (0.5, 0, 0.5, 1), "covers nothing"),
        ("a", (0, 0.1001, 1, 0.1004), "covers nothing at three decimals"),
    ],
)
def test_an_object_that_cannot_be_referred_to_is_refused_in_one_line(
    text: str, box: tuple[float, ...], message: str
) -> None:
    with pytest.raises(PromptError, match=message) as refusal:
        refer_prompt("{object}?", text, box)
    assert "\n" not in str(refusal.value)


def card_outputs() -> list[str]:
    """The expected outputs printed in the model card, in its order: grounding, referring, OCR."""
    cards = sorted((SHARED / "seeds").glob("000*.txt"))
    if not cards:
        pytest.skip("the model card lies in ../shared/seeds, which is not here")
    card = cards[0].read_text(encoding="utf-8")
    outputs = re.findall(r"\*\*Expected Output Example:\*\*\s*```\w*\n(.*?)\n```", card, re.DOTALL)
    assert len(outputs) == 3
    return outputs


def test_the_expected_outputs_of_the_card_give_the_boxes_printed_there() -> None:
    for output in card_outputs():
        parsed = parse(output)
        printed = re.findall(r"(?:\d\.\d+(?:, )?){4}", output)
        read = [[box.x1, box.y1, box.x2, box.y2] for region in parsed.regions for box in region.boxes]
        assert read == [[float(number) for number in quad.split(", ")] for quad in printed]
        assert [region.text for region in parsed.regions] == re.findall(r"<(?:char|obj)>(.*?)</", output)
        assert parsed.plain_text == re.sub(r"<bbox>.*?</bbox>|</?(?:char|obj)>", "", output)
        assert parsed.warnings == ()


def test_the_expected_outputs_of_the_card_are_rendered_back_to_the_letter() -> None:
    for output in card_outputs():
        assert render(parse(output)) == output


def test_the_card_answers_as_many_regions_as_it_shows() -> None:
    counts = [
        (len(parse(output).regions), sum(len(r.boxes) for r in parse(output).regions)) for output in card_outputs()
    ]
    assert counts == [(3, 5), (0, 0), (16, 16)]
