"""`varco run`: the answer and nothing else on standard output, in every format."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Captured, fail, run, shell
from varco_cli.commands.run import save_picture
from varco_runtime import Varco
from varco_runtime.errors import VarcoError
from varco_runtime.markup.parser import parse

DOCUMENT_KEYS = {
    *(
        "text",
        "plain_text",
        "token_ids",
        "picture",
        "media",
        "regions",
        "warnings",
        "finish_reason",
        "usage",
        "timings",
    ),
}
TIMINGS = {"load_s", "preprocess_s", "vision_s", "prefill_s", "ttft_s", "tpot_s", "total_s"}


def test_text_is_the_answer_and_nothing_else(varco: Varco, tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    out, err = run(capsys, "run", tiny_bundle, picture, "What is this?", "--max-new-tokens", 12)
    answer = varco.ask(picture, "What is this?", max_new_tokens=12)
    assert out == answer.text + "\n"
    assert f"prompt {answer.usage.image_tokens} image + " in err
    assert "note: the answer was cut off at 12 tokens. See --max-new-tokens." in err


def test_streamed_text_equals_text_at_once(tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    command = ("run", tiny_bundle, picture, "What is this?", "--max-new-tokens", 40)
    assert run(capsys, *command, "--stream")[0] == run(capsys, *command)[0]


def use_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")


def test_a_terminal_shows_how_far_it_is_and_the_answer_as_it_comes(
    tiny_bundle: Path, picture: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_terminals(monkeypatch)
    written: list[str] = []
    monkeypatch.setattr("varco_cli.commands.run.write_text", written.append)
    _, err = run(capsys, "run", tiny_bundle, picture, "What?", "--max-new-tokens", 12)
    first, *shown = err.split("\r")
    assert first == ""
    tiles = [line for line in shown if line.startswith("Encoding the picture: tile ")]
    assert [line.strip() for line in tiles] == [
        f"Encoding the picture: tile {number + 1} of {len(tiles)}" for number in range(len(tiles))
    ]
    assert any(line.startswith("Reading the prompt: ") for line in shown)
    assert shown[-2].strip() == ""  # taken away before the answer
    assert len(shown[-2]) >= len("Answering")
    assert "first token after" in shown[-1]
    assert len(written) > 2


@pytest.mark.parametrize("option", ["--no-stream", "--json"])
def test_an_answer_that_is_printed_at_once_leaves_no_line_of_progress(
    tiny_bundle: Path, option: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_terminals(monkeypatch)
    out, err = run(capsys, "run", tiny_bundle, "--no-image", "hi", "--max-new-tokens", 3, option)
    assert out.strip()
    *_, answering, blank, rest = err.split("\r")
    assert answering.strip() == "Answering"
    assert blank.strip() == ""
    assert "Answering" not in rest


def test_a_pipe_gets_no_progress(tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    assert "\r" not in run(capsys, "run", tiny_bundle, picture, "hi", "--max-new-tokens", 2)[1]


def test_json_has_the_documented_keys(varco: Varco, tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    out, err = run(capsys, "run", tiny_bundle, picture, "What is this?", "--json", "--max-new-tokens", 7)
    document = json.loads(out)
    assert document.keys() >= DOCUMENT_KEYS
    assert document["timings"].keys() >= TIMINGS
    assert document["usage"].keys() >= {"prompt_tokens", "image_tokens", "completion_tokens"}
    assert document["token_ids"] == list(varco.ask(picture, "What is this?", max_new_tokens=7).token_ids)
    assert err == ""


def test_standard_input_equals_a_file(
    tiny_bundle: Path, picture: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("hi", "--json", "--max-new-tokens", 7)
    from_file = json.loads(run(capsys, "run", tiny_bundle, picture, *command)[0])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    assert json.loads(run(capsys, "run", tiny_bundle, "-", *command)[0])["token_ids"] == from_file["token_ids"]


def test_standard_input_must_not_be_a_terminal(
    tiny_bundle: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "got a terminal" in fail(capsys, 2, "run", tiny_bundle, "-", "hi")


def test_a_closed_standard_input_is_one_line(tiny_bundle: Path) -> None:
    done = shell(f"varco run {tiny_bundle} - hi <&-")
    assert done.returncode == 2
    assert done.stderr.startswith("varco: - reads a picture from standard input, none is open.")
    assert done.stderr.count("\n") == 1


def test_tasks_ask_as_the_model_card_does(varco: Varco, tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    tokens = ("--json", "--max-new-tokens", 5)
    refer = ("--task", "refer", "--text", "it", "--box", "0.1, 0.2, 0.5, 0.6")
    asked = {
        varco.ocr(picture, max_new_tokens=5).token_ids: (picture, "--task", "ocr"),
        varco.ground(picture, "What?", max_new_tokens=5).token_ids: (picture, "What?", "--task", "ground"),
        varco.refer(picture, "{object}?", "it", (0.1, 0.2, 0.5, 0.6), max_new_tokens=5).token_ids: (
            *(picture, "{object}?"),
            *refer,
        ),
        varco.ask(None, "hi", max_new_tokens=5).token_ids: ("--no-image", "hi"),
        varco.ask(None, "hi", system="Sing.", max_new_tokens=5).token_ids: ("hi", "--no-image", "--system", "Sing."),
    }
    for token_ids, arguments in asked.items():
        document = json.loads(run(capsys, "run", tiny_bundle, *arguments, *tokens)[0])
        assert document["token_ids"] == list(token_ids), arguments


def test_every_option_reaches_the_runtime(
    tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    seen: dict[str, Any] = {}

    def spy(self: Varco, image: Any, prompt: str, **options: Any) -> None:
        seen.update(options, prompt=prompt, max_context=self.backend.max_context)
        raise VarcoError("Seen.")

    monkeypatch.setattr(Varco, "stream", spy)
    given = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 --seed 7 --stop a --stop bc"
    machine = "--max-new-tokens 9 --system S --max-context 2000 --threads 1 --provider cpu"
    fail(capsys, 1, "run", tiny_bundle, picture, "hi", *given.split(), *machine.split())
    assert seen == {
        "prompt": "hi",
        "max_context": 2000,
        "max_new_tokens": 9,
        "system": "S",
        "stop": ["a", "bc"],
        "seed": 7,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    }


MARKUP = "<char>서울</char><bbox>0.1, 0.2, 0.5, 0.6</bbox> <obj>a cat</obj><bbox>0, 0, 1, 1</bbox> <obj>odd"


@pytest.fixture
def answers_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked, the answer holds regions: random weights never say any."""
    from varco_runtime.stream import Stream

    finished = Stream.run

    def run_and_replace(self: Stream) -> Any:
        import dataclasses

        parsed = parse(MARKUP)
        answer = finished(self)
        return dataclasses.replace(
            answer, text=MARKUP, plain_text=parsed.plain_text, regions=parsed.regions, warnings=parsed.warnings
        )

    monkeypatch.setattr(Stream, "run", run_and_replace)


@pytest.mark.usefixtures("answers_markup")
def test_regions_are_written_in_every_format(tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    command = ("run", tiny_bundle, picture, "hi", "--max-new-tokens", 1)
    text, notes = run(capsys, *command)
    assert text == MARKUP + "\n"
    assert "note: " in notes
    document = json.loads(run(capsys, *command, "--format", "json")[0])
    assert document["regions"][0]["boxes_px"] == [[9, 12, 45, 36]]
    coco = json.loads(run(capsys, *command, "--format", "coco")[0])
    assert [result["bbox"] for result in coco] == [[9.0, 12.0, 36.0, 24.0], [0.0, 0.0, 90.0, 60.0]]
    assert coco[0]["file_name"] == "sky.png"
    hocr = run(capsys, *command, "--format", "hocr")[0]
    assert "서울" in hocr
    assert "<title>sky.png</title>" in hocr


@pytest.mark.usefixtures("answers_markup")
def test_json_names_the_size_of_the_upright_picture(tiny_bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (60, 90), "teal").save(tmp_path / "turned.jpg", exif=exif)
    command = ("hi", "--json", "--max-new-tokens", 1)
    document = json.loads(run(capsys, "run", tiny_bundle, tmp_path / "turned.jpg", *command)[0])
    assert document["picture"] == {"width": 90, "height": 60}
    assert document["regions"][1]["boxes_px"] == [[0, 0, 90, 60]]
    assert json.loads(run(capsys, "run", tiny_bundle, "--no-image", *command)[0])["picture"] is None


@pytest.mark.usefixtures("answers_markup")
@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.webp"])
def test_save_paints_the_regions(name: str, tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / name
    _, err = run(capsys, "run", tiny_bundle, picture, "hi", "--save", path, "--max-new-tokens", 1)
    assert f"{path} written: " in err
    with Image.open(path) as saved, Image.open(picture) as original:
        assert saved.size == original.size
        assert saved.convert("RGB").tobytes() != original.tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_picture_that_cannot_be_saved_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.png").write_bytes(b"the old one")

    def fill_the_disk(self: Image.Image, file: Any, format: str) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(VarcoError, match=r"could not be written: No space left on device\. Choose another place"):
        save_picture(Image.new("RGB", (2, 2)), tmp_path / "out.png")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("out.png", b"the old one")]


def test_a_format_with_a_size_limit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VarcoError, match="could not be written"):
        save_picture(Image.new("RGB", (70_000, 1)), tmp_path / "out.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_full_context_is_named(tiny_bundle: Path, capsys: Captured) -> None:
    _, err = run(capsys, "run", tiny_bundle, "--no-image", "hi", "--max-context", 60)
    assert "See --max-context." in err
