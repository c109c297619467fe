"""Charts: ticks are round and hold the data, what is drawn lies where the axes say, files are whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from benchmarks.plot import COLOURS, SCALE, Axis, Chart, Point, Series, draw, save, tick_text, ticks
from benchmarks.quality_plot import main, quality_chart

QUALITY = Path(__file__).resolve().parents[2] / "benchmarks" / "quality.json"


def chart(*series: Series, is_log: bool = False, **options: object) -> Chart:
    return Chart("Title", Axis("tokens"), Axis("seconds", is_log), series, **options)  # type: ignore[arg-type]


def coloured(image: Image.Image, colour: str) -> np.ndarray:
    """Rows and columns of the pixels of a colour, `[2, n]`."""
    return np.array(np.nonzero((np.asarray(image) == ImageColor.getrgb(colour)).all(axis=2)))


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(1, 2), (0.3, 977.0), (2e-5, 5e-3), (10, 1000), (3, 3.001), (1e-9, 1e6)])
def test_ticks_hold_the_data_and_are_few(low: float, high: float, is_log: bool) -> None:
    found = ticks(low, high, is_log)
    assert found[0] <= low * (1 + 1e-9)
    assert found[-1] >= high * (1 - 1e-9)
    assert 2 <= len(found) <= 10
    steps = np.diff(np.log10(found) if is_log else found)
    assert (steps > 0).all()
    assert steps.max() < (3.1 * steps.min() if is_log else 1.01 * steps.min())


def test_linear_ticks_are_round() -> None:
    assert ticks(0, 12.2, False) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert ticks(0.1, 0.34, False) == [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12000, "12,000"), (0.05, "0.05"), (2e-6, "2e-6"), (1e9, "1e9"), (1.5, "1.5")]
)
def test_ticks_are_written_as_people_write_numbers(value: float, text: str) -> None:
    assert tick_text(value) == text


@pytest.mark.parametrize("is_log", [False, True])
def test_points_lie_where_the_axes_say(is_log: bool) -> None:
    """Of three points with equal steps along both axes, the middle one is drawn in the middle."""
    ys = (1, 10, 100) if is_log else (0, 50, 100)
    images = [draw(chart(Series("a", [Point(0, ys[0]), Point(100, ys[2])]), is_log=is_log))]
    images.append(draw(chart(Series("a", [Point(0, ys[0]), Point(50, ys[1]), Point(100, ys[2])]), is_log=is_log)))
    ends, all_three = (coloured(image, COLOURS[0]) for image in images)
    middle = set(map(tuple, all_three.T)) - set(map(tuple, ends.T))
    centre = (ends.min(axis=1) + ends.max(axis=1)) / 2
    np.testing.assert_allclose(np.mean(list(middle), axis=0), centre, atol=1.5)


def test_errors_lines_and_labels_are_drawn() -> None:
    bare = coloured(draw(chart(Series("a", [Point(1, 5), Point(9, 5)]))), COLOURS[0])
    with_error = coloured(draw(chart(Series("a", [Point(1, 5, error=2), Point(9, 5)]))), COLOURS[0])
    line = coloured(draw(chart(Series("a", [Point(1, 5), Point(9, 5)], is_line=True))), COLOURS[0])
    labelled = coloured(draw(chart(Series("a", [Point(1, 5, label="first"), Point(9, 5)]))), COLOURS[0])
    assert np.ptp(with_error[0]) > 4 * np.ptp(bare[0])
    assert len(set(line[1])) > 0.95 * np.ptp(line[1])
    assert labelled.shape[1] > bare.shape[1]


def test_each_series_has_its_colour_and_its_name_above_the_frame() -> None:
    image = draw(chart(Series("fp32", [Point(1, 1)]), Series("int4", [Point(2, 2)])))
    assert image.size == (720 * SCALE, 420 * SCALE)
    for colour in COLOURS[:2]:
        rows, _ = coloured(image, colour)
        assert rows.min() < 60 * SCALE < rows.max(), "a key and a point"


def test_labels_at_one_place_do_not_cover_each_other() -> None:
    """What two labels colour together is what each colours alone."""
    points = [Point(1, 1, label="alpha"), Point(1, 1, label="omega"), Point(9, 9)]
    both = coloured(draw(chart(Series("a", points))), COLOURS[0]).shape[1]
    none = coloured(draw(chart(Series("a", [Point(1, 1), Point(1, 1), Point(9, 9)]))), COLOURS[0]).shape[1]
    alone = [
        coloured(draw(chart(Series("a", [Point(1, 1, label=text), Point(9, 9)]))), COLOURS[0]).shape[1] - none
        for text in ("alpha", "omega")
    ]
    assert both - none == pytest.approx(sum(alone), rel=0.05)


@pytest.mark.parametrize("points", [[Point(1, 1)], [Point(0, 0)], [Point(1, 3), Point(2, 3)]])
def test_a_single_value_is_no_difficulty(points: list[Point]) -> None:
    assert coloured(draw(chart(Series("a", points))), COLOURS[0]).size


def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no points"):
        save(chart(Series("a", [])), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"seconds has the value 0\.0, expected positive ones on a logarithmic axis"):
        save(chart(Series("a", [Point(1, 0.0)]), is_log=True), tmp_path / "a.png")
    with pytest.raises(ValueError, match="tokens has the value nan, expected finite numbers"):
        save(chart(Series("a", [Point(math.nan, 1)])), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_the_quality_of_the_shipped_checkpoint_is_drawn(tmp_path: Path) -> None:
    results = json.loads(QUALITY.read_text())
    series = quality_chart(results).series
    assert {point.label for one in series for point in one.points} == results.keys() - {"fp32", "transformers"}
    main([str(QUALITY), str(tmp_path / "plots" / "quality.png")])
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["quality.png"]
    with Image.open(tmp_path / "plots" / "quality.png") as image:
        assert image.size == (1440, 840)
