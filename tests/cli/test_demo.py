"""The demo runs from a checkpoint to an overlay, with random weights or trained ones."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools import demo, demo_bundle
from varco_cli.commands.demo import SIGN_PX, draw_sign
from varco_cli.main import main
from varco_runtime import Varco


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
    for question in ("--task ocr", "--task ground", "--task refer"):
        assert question in out
    assert "nonsense" not in out
    assert (tmp_path / "overlay.png").is_file()


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """The common area of two boxes over their joint one."""
    sides = [max(0, min(a[end], b[end]) - max(a[end - 2], b[end - 2])) for end in (2, 3)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    common = sides[0] * sides[1]
    return common / (sum(areas) - common)


def test_the_packaged_bundle_is_right_about_the_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every region once, where it is; and each printed command gives the answer that is printed under it."""
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert main(["demo", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "overlay.png").is_file()
    sign, truth = draw_sign()
    found = re.findall(r"^  (text|object) '(.+)' at \((.+)\) px$", out, re.MULTILINE)
    assert sorted(name for _, name, _ in found) == sorted(region.text for region in truth)
    for region in truth:
        (box,) = (tuple(map(int, sides.split(", "))) for _, name, sides in found if name == region.text)
        assert overlap(box, region.pixels(*sign.size)[0]) > 0.75, region.text

    asked = re.findall(r"^\$ varco (.+)\n((?:  [^\[\n]*\n)+)", out, re.MULTILINE)
    assert len(asked) == 3
    for command, answer in asked:
        assert main(shlex.split(command)) == 0
        lines = [f"  {line}" for line in capsys.readouterr().out.splitlines()]
        assert answer.splitlines()[: len(lines)] == lines
    assert asked[-1][1].splitlines()[0] == "  red"


def test_the_packaged_bundle_holds_probes_which_it_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(demo_bundle.BUNDLE), "--numerics"]) == 0
    assert "decoder, pictures" in capsys.readouterr().out


def test_the_demo_warms_up_before_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first call of each kind tells of loading and not of answering."""
    asked: list[tuple[str, bool]] = []
    stream = Varco.stream

    def watched(self: Varco, image: Any, prompt: str, **options: Any) -> Any:
        asked.append((prompt, image.getcolors() is not None and len(image.getcolors()) == 1))
        return stream(self, image, prompt, **options)

    monkeypatch.setattr(Varco, "stream", watched)
    assert main(["demo", str(tmp_path)]) == 0
    prompts = [prompt for prompt, is_blank in asked if not is_blank]
    assert asked == [(prompt, True) for prompt in prompts] + [(prompt, False) for prompt in prompts]


def but_probes(bundle: Path) -> dict[str, Any]:
    """Every file's bytes, and the manifest, without the probes: their sums differ from processor to processor."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    probes = manifest.pop("probes")
    del manifest["digest"], manifest["files"][probes]
    names = {path.name for path in bundle.iterdir()} - {"bundle.json", probes}
    return {name: (bundle / name).read_bytes() for name in names} | {"bundle.json": manifest}


def test_the_packaged_bundle_is_the_export_of_the_shipped_checkpoint(tmp_path: Path) -> None:
    made = demo_bundle.make(tmp_path / "bundle")
    assert but_probes(made) == but_probes(demo_bundle.BUNDLE), "it differs: run python -m tools.demo_bundle"
    assert sum(path.stat().st_size for path in demo_bundle.BUNDLE.iterdir()) <= 8_000_000


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
