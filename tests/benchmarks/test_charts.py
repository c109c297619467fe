"""Charts hold the figures of their reports, can be read, and are the same bytes every time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from benchmarks.charts import COLORS, STYLE, main, peer_charts, quality_chart, scaling_charts

ROOT = Path(__file__).resolve().parents[2]
REPORTS = (
    "peers.json",
    "scaling.json",
    "quality.json",
    "quality_gptq.json",
    "serve.json",
    "serve_soak.json",
    "samples.json",
)


def kept(name: str) -> dict[str, Any]:
    """Return a report that RESULTS.md speaks of."""
    report: dict[str, Any] = json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
    return report


def peers(values: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Return a report of milliseconds and MiB by the name of a peer, at one context."""
    rows = [
        {"peer": peer, "variant": f"v{at}", "peak_rss_bytes": mib * 2**20, "decode_ms": {"512": {"median": ms}}}
        for peer, points in values.items()
        for at, (ms, mib) in enumerate(points)
    ]
    return {"shape": "tiny", "threads": 1, "contexts": [512], "text": rows, "limit_decode_ms": {"512": 1.0}}


def draw(chart: Callable[[], Figure]) -> Figure:
    with style.context(["default", STYLE]):
        return chart()


def memory(report: dict[str, Any]) -> Figure:
    return draw(lambda: dict(peer_charts(report))["memory"])


def quality() -> Figure:
    return draw(lambda: quality_chart(kept("quality.json") | kept("quality_gptq.json")))


def notes(figure: Figure) -> list[Annotation]:
    """Return the labels of points, without the name of a guide."""
    texts = figure.axes[0].texts
    return [text for text in texts if isinstance(text, Annotation) and text.xycoords == "data"]


def test_points_are_the_figures_of_the_report() -> None:
    axes = memory(peers({"ours": [(10, 500), (20, 400)], "theirs": [(30, 600)]})).axes[0]
    series = {container.get_label(): container.lines[0].get_xydata().tolist() for container in axes.containers}
    assert series == {"ours": [[10, 500], [20, 400]], "theirs": [[30, 600]]}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("decode, ms/token", "peak resident memory, MiB")
    assert axes.get_ylim()[0] == 0, "a linear axis begins at zero, or differences look larger than they are"


def test_errors_are_drawn_as_long_as_they_are() -> None:
    figures = kept("quality.json")
    axes = quality().axes[0]
    bars = [bar.flatten().tolist() for drawn in axes.collections for bar in drawn.get_segments()]
    for name in ("int4", "int8"):
        x, kl, error = (figures[name][key] for key in ("bytes_per_token", "kl", "kl_error"))
        assert [x / 1e6, kl - error, x / 1e6, kl + error] in [pytest.approx(bar) for bar in bars]


def test_a_fit_and_a_limit_are_lines_and_what_was_measured_are_points() -> None:
    axes = draw(lambda: dict(scaling_charts(kept("scaling.json")))["decode-by-context"]).axes[0]
    look = {one.get_label(): (one.lines[0].get_linestyle(), one.lines[0].get_marker()) for one in axes.containers}
    assert look["measured"] == ("None", "o")
    assert look["least squares"] == look["bytes over bandwidth, from the first point"] == ("-", "")


def test_each_series_has_its_color_and_shape_and_its_name_below_the_frame() -> None:
    names = [f"peer {at}" for at in range(len(COLORS))]
    figure = memory(peers({name: [(10 * at + 5, 100)] for at, name in enumerate(names)}))
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert [to_hex(line.get_color()) for line in lines] == list(COLORS)
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not memory(peers({"alone": [(10, 100)]})).legends, "the title says what it is"


@pytest.mark.parametrize("chart", [quality, lambda: memory(kept("peers.json"))])
def test_labels_cover_neither_each_other_nor_points(chart: Callable[[], Figure]) -> None:
    figure = chart()
    axes, renderer = figure.axes[0], FigureCanvasAgg(figure).get_renderer()
    boxes = [Text.get_window_extent(note, renderer) for note in notes(figure)]
    places = [axes.transData.transform(note.xy) for note in notes(figure)]
    assert len(boxes) > 5
    for index, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:index] + boxes[index + 1 :])
        assert not any(box.contains(*place) for place in places)
        assert axes.bbox.contains(box.x0, box.y0)
        assert axes.bbox.contains(box.x1, box.y1)


def test_labels_at_one_place_do_not_cover_each_other() -> None:
    figure = memory(peers({"ours": [(10, 500), (10, 500), (90, 900)]}))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [Text.get_window_extent(note, renderer) for note in notes(figure)]
    assert [box.count_overlaps(boxes) for box in boxes] == [1, 1, 1]


def test_a_label_that_finds_no_room_is_written_all_the_same() -> None:
    report = peers({"ours": [(10, 500), (20, 500)]})
    report["text"][0]["variant"] = "v" * 300
    assert {note.get_text() for note in notes(memory(report))} == {"v" * 300, "v1"}


def test_every_bundle_of_the_shipped_checkpoint_has_its_label() -> None:
    named = {note.get_text() for note in notes(quality())}
    assert named == (kept("quality.json").keys() | kept("quality_gptq.json").keys()) - {"fp32", "transformers"}


@pytest.mark.parametrize("values", [[(1, 1)], [(1, 3), (2, 3)], [(1e-9, 1), (1e6, 2)]])
def test_few_and_far_values_are_no_difficulty(values: list[tuple[float, float]]) -> None:
    FigureCanvasAgg(memory(peers({"a": values}))).draw()


def test_ticks_are_written_as_people_write_numbers() -> None:
    axes = quality().axes[0]
    write = axes.yaxis.get_major_formatter()
    texts = [write(value, 0) for value in (0, 12000, 0.05, 2e-5, 1.5)]
    assert texts == ["0", "12,000", "0.05", "2e-5", "1.5"]


def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    for values, says in (
        ([], "The chart 'Qwen2 tiny shape, 1 threads, context 512' has no points"),
        ([(0.0, 1.0)], r"decode, ms/token has the value 0\.0, expected positive ones on a logarithmic axis"),
        ([(1.0, float("nan"))], "peak resident memory, MiB has the value nan, expected finite numbers"),
    ):
        (tmp_path / "a.json").write_text(json.dumps({"benchmark": "peers"} | peers({"a": values})))
        with pytest.raises(ValueError, match=says):
            main([str(tmp_path / "a.json")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_kept_charts_are_those_of_the_kept_reports_and_come_out_the_same(tmp_path: Path) -> None:
    for name in REPORTS:
        (tmp_path / name).write_text(json.dumps(kept(name)))
    main([str(tmp_path / name) for name in REPORTS])
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert {path.name for path in (ROOT / "benchmarks" / "plots").iterdir()} <= drawn.keys()
    for name in drawn:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.size == (1440, 900)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        main([str(tmp_path / name) for name in REPORTS if name != "scaling.json"])
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}


def test_charts_need_no_screen_and_warn_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "quality.json").write_text(json.dumps(kept("quality.json")))
    call = "from benchmarks.charts import main; main(sys.argv[1:])"
    code = f"import sys; {call}; print('matplotlib.pyplot' in sys.modules)"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "quality.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'plots' / 'quality.png'}\nFalse\n", "")
