"""`varco export`: what it reports, and what it needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Captured, fail, run
from varco_cli import progress
from varco_runtime.extras import install_command


def test_export_reports_what_was_chosen(tiny_checkpoint: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "a bundle"
    out, err = run(capsys, "export", tiny_checkpoint, target, "--decoder", "int4", "--max-context", 500)
    assert "int4 (blocks of 32, fp32 activations), head int8" in out
    *_, before, last = err.splitlines()
    assert before.startswith("Next: ")
    assert last.startswith(
        "int4 was rounded without calibration, which cost a model of 135 million parameters 0.61 nats"
    )
    assert last.endswith(f"varco quantize {tiny_checkpoint} {tiny_checkpoint.name}-int4 --method gptq --group-size 32")
    assert "500 tokens" in out
    assert "apache-2.0" in out
    for component in ("vision", "projector", "embedding", "decoder"):
        assert f"{component} exported in " in err
    assert f"Next: varco run '{target}' PICTURE" in err
    assert json.loads(run(capsys, "inspect", target, "--json")[0])["max_context"] == 500


def test_a_rotated_checkpoint_is_not_rounded_without_a_word(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Captured
) -> None:
    """It loses more than the original, and quantizing it again is no way back."""
    rotated = shutil.copytree(tiny_checkpoint, tmp_path / "rotated")
    (rotated / "quantization.json").write_text(json.dumps({"method": "none"}))
    _, err = run(capsys, "export", rotated, tmp_path / "bundle", "--decoder", "int4", "--max-context", 500)
    last = err.splitlines()[-1]
    assert last.endswith("Quantise that one: varco quantize ORIGINAL OUT --method gptq --group-size 32")


def test_tiling_and_the_long_side_for_ocr_are_options(
    tiny_checkpoint: Path, tmp_path: Path, picture: Path, capsys: Captured
) -> None:
    target = tmp_path / "bundle"
    chosen = ("--max-grid-tiles", "16", "--ocr-long-side", "400", "--no-probes")
    run(capsys, "export", tiny_checkpoint, target, *chosen)
    image = json.loads((target / "bundle.json").read_text())["image"]
    assert (image["max_grid_tiles"], image["ocr_long_side_px"]) == (16, 400)
    shown = " ".join(run(capsys, "inspect", target)[0].split())
    assert "scaled up for OCR to a long side of 400 px" in shown
    read = ("run", target, picture, "--task", "ocr", "--json", "--max-new-tokens", "1")
    scaled, as_it_is = (json.loads(run(capsys, *read, *more)[0]) for more in ((), ("--long-side", "0")))
    assert scaled["usage"]["image_tokens"] > as_it_is["usage"]["image_tokens"]
    assert scaled["picture"] == as_it_is["picture"] == {"width": 90, "height": 60}
    assert "long_side=-3 is out of range" in fail(capsys, 2, *read, "--long-side", "-3")
    assert "--max-grid-tiles 5 is no preset" in fail(capsys, 2, "export", "x", "y", "--max-grid-tiles", "5")


def test_what_the_checkpoint_asks_for_and_is_not_applied_is_said(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Captured
) -> None:
    source = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = source / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_beams": 4}))
    said = "generation_config.json asks for num_beams 4, not applied here: transformers' answers may differ."
    assert f"note: {said}" in run(capsys, "export", source, tmp_path / "bundle", "--no-probes")[1]
    assert " ".join(said.split()) in " ".join(run(capsys, "inspect", tmp_path / "bundle")[0].split())


def test_export_replaces_only_when_asked(tiny_checkpoint: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    assert "add --overwrite" in fail(capsys, 1, "export", tiny_checkpoint, target)
    assert list(target.iterdir()) == []
    run(capsys, "export", tiny_checkpoint, target, "--overwrite")
    run(capsys, "verify", target)


@pytest.mark.parametrize("module", ["onnx", "ml_dtypes"])
def test_export_without_its_extra_names_it(module: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['{module}'] = None; from varco_cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", "c", "b"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == (f"varco: Exporting needs the extra 'export'. Install it with: {install_command('export')}\n")


def test_export_shows_a_bar_per_component_on_a_terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress.ExportProgress() as bars:
        for name, steps in (("vision", 2), ("decoder", 3)):
            with bars.component(name, steps) as advance:
                for _ in range(steps):
                    advance()
    err = capsys.readouterr().err
    assert "vision" in err
    assert "3/3" in err
