"""The command `varco bench`: table, document, misuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import export_bundle
from tests.runtime.bench.test_bench import noise
from varco_cli.main import main
from varco_export.tiny import TinyOptions, make_tiny

Captured = pytest.CaptureFixture[str]
FAST = ("--seconds", "60", "--repetitions", "1", "--new-tokens", "4", "--threads", "1")


def test_the_command_prints_a_table_and_writes_the_document(
    tiny_bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    picture, out = tmp_path / "picture.png", tmp_path / "bench.json"
    noise().save(picture)
    assert main(["bench", str(tiny_bundle), str(picture), "What?", *FAST, "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    for name in ("vision, per tile", "projector", "packing", "first token", "(TPOT)", "loop beyond", "read per token"):
        assert name in printed
    assert "GB/s, reading host memory" in printed
    assert "dominates" in printed
    assert "Loading the bundle." in err
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["question"]["picture"] == "picture.png"
    assert document["question"]["prompt"] == "What?"
    assert document["versions"]["onnxruntime"]
    assert document["machine"]["num_cores"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "picture.png"]


def test_several_answers_at_once_are_a_table_and_a_document(
    tiny_bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    picture, out = tmp_path / "picture.png", tmp_path / "bench.json"
    noise().save(picture)
    arguments = ["bench", str(tiny_bundle), str(picture), "What?", *FAST, "--slots", "3", "--out", str(out)]
    assert main(arguments) == 0
    printed, _ = capsys.readouterr()
    for name in ("answers at once", "tokens/s", "limit", "first token", "gap p99"):
        assert name in printed
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [row["answers"] for row in document["rows"]] == [1, 2, 3]
    for row in document["rows"]:
        assert row["tokens_per_s"] == pytest.approx(4 * row["answers_per_s"])
        assert 0 < row["gap_p50_s"] <= row["gap_p99_s"]
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"]
    limits = [row["limit_tokens_per_s"] for row in document["rows"]]
    assert limits == sorted(limits), "more rows share the weights"
    assert (document["slots"], document["new_tokens"]) == (3, 4)


def test_without_a_bundle_the_demo_is_measured_and_json_is_alone_on_stdout(capsys: Captured) -> None:
    assert main(["bench", *FAST, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bundle"]["model"] == "varco-tiny"
    assert document["threads"] == 1
    assert document["dominant"]["line"]


def test_what_scaling_up_for_ocr_costs_is_said_beside_the_picture_as_it_is(tmp_path: Path, capsys: Captured) -> None:
    options = TinyOptions(text="qwen3", image_size=48, patch_size=16, max_grid=(3, 3))
    checkpoint = make_tiny(tmp_path / "checkpoint", options)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", ocr_long_side=144)
    picture = tmp_path / "picture.png"
    noise().resize((48, 40)).save(picture)
    command = ["bench", str(bundle), str(picture), "<ocr>", *FAST]
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "48x40 was scaled up to 144x120: 10 tiles and " in err
    assert "instead of 2 and 21 with --long-side 0." in err
    assert main([*command, "--long-side", "0"]) == 0
    assert "scaled up" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--repetitions", "0"], 2, "--repetitions 0 is too few. Expected at least 1."),
        (["--new-tokens", "3"], 2, "--new-tokens 3 is too few. Expected at least 4."),
        (["--seconds", "0.5"], 2, "--seconds 0.5 cannot be kept. Expected at least 1."),
        (["--seconds", "nan"], 2, "--seconds nan cannot be kept. Expected at least 1."),
        (["--provider", "gpu"], 2, "The provider 'gpu' is unknown."),
        (["--threads", "0", "--seconds", "1"], 2, "threads=0 is too few."),
        (["--max-context", "5", "--seconds", "1"], 2, "max_context=5 is out of range."),
        (["--slots", "0"], 2, "slots=0 is out of range. Expected 1 to 64, or 'auto'."),
        (["--slots", "1.5"], 2, "slots='1.5' is no whole number. Expected 1 to 64, or 'auto'."),
        (["--slots", "many"], 2, "slots='many' is no whole number. Expected 1 to 64, or 'auto'."),
        (["--out", "nowhere/bench.json"], 2, "--out nowhere/bench.json lies in a folder that does not exist."),
    ],
)
def test_misuse_is_one_line(tiny_bundle: Path, capsys: Captured, arguments: list[str], status: int, says: str) -> None:
    assert main(["bench", str(tiny_bundle), *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("varco: ")
    assert says in line


def test_a_picture_that_cannot_be_opened_ends_it_before_the_bundle_is_read(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", str(tmp_path), str(tmp_path / "none.png"), "--out", str(out)]) == 1
    assert "none.png" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failed_benchmark_leaves_no_document_and_the_old_one_in_place(
    tiny_bundle: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench.json"
    out.write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    assert main(["bench", str(tiny_bundle), *FAST, "--out", str(out)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"varco: {out} could not be written: No space left on device. Choose another place for --out."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--images", "0"), "--images 0 is too few"),
        (("--frames", "-1"), "--frames -1 is too few"),
        (("--images", "5000"), "--images 5000 is too many. Expected at most 4,096"),
        (("--frames", "5000"), "--frames 5000 is too many. Expected at most 4,096"),
        (("--images", "2", "--frames", "2"), "--images and --frames ask about pictures and about a video"),
    ],
)
def test_pictures_and_frames_that_cannot_be_are_wrong_usage(
    given: tuple[str, ...], message: str, tiny_bundle: Path, capsys: Captured
) -> None:
    assert main(["bench", str(tiny_bundle), *given]) == 2
    assert message in capsys.readouterr().err
