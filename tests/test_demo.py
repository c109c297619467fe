"""The demo runs from a checkpoint to an overlay, with random weights or trained ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tools import demo, demo_bundle
from varco_runtime.cli.demo import SIGN_PX, draw_sign
from varco_runtime.cli.main import main


def test_demo_writes_the_overlay_and_says_that_it_is_nonsense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # it can be run again
        demo.run(tmp_path / "demo", trained=tmp_path / "nothing")
    out = capsys.readouterr().out
    assert "the answer is nonsense by design" in out
    assert "first token after" in out
    for name in ("sign.png", "overlay.png", "expected.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            assert picture.size == (SIGN_PX, SIGN_PX)


def test_demo_with_a_trained_checkpoint_reads_locates_and_points(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.run(tmp_path, trained=tiny_checkpoint)
    out = capsys.readouterr().out
    for question in ("What is written there?", "What is where?", "What colour is this"):
        assert question in out
    assert "nonsense" not in out
    assert (tmp_path / "overlay.png").is_file()


def test_the_packaged_bundle_reads_the_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for word in ("EXIT", "서울", "red circle", "blue square"):
        assert word in out
    assert (tmp_path / "overlay.png").is_file()


def test_the_packaged_bundle_is_the_export_of_the_shipped_checkpoint(tmp_path: Path) -> None:
    made = demo_bundle.make(tmp_path / "bundle")
    names = sorted(path.name for path in made.iterdir())
    assert names == sorted(path.name for path in demo_bundle.BUNDLE.iterdir())
    for name in names:
        assert (made / name).read_bytes() == (demo_bundle.BUNDLE / name).read_bytes(), (
            f"{name} differs: run python -m tools.demo_bundle"
        )
    assert sum(path.stat().st_size for path in made.iterdir()) <= 8_000_000


def test_the_sign_is_where_it_says() -> None:
    sign, regions = draw_sign()
    assert [region.text for region in regions] == ["EXIT", "서울", "red circle", "blue square"]
    paper = (246, 243, 232)
    for region in regions:
        (left, top, right, bottom) = region.pixels(*sign.size)[0]
        assert {sign.getpixel((x, top - 2)) for x in range(left, right)} == {paper}, f"{region.text}: ink above its box"
        colours = sign.crop((left, top, right, bottom)).getcolors()
        assert colours is not None
        assert any(colour != paper for _, colour in colours)


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([]) == 2
    (tmp_path / "bundle").write_text("in the way", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert demo.main([str(tmp_path / "file")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("varco: ") for line in lines)
