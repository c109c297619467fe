"""The command line: what users type, what they get, and the one line they get when it goes wrong."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cli.conftest import Captured, fail, run, shell
from tests.makers.manifests import forge, set_at
from varco_cli import console
from varco_cli.app import app
from varco_cli.commands import doctor
from varco_cli.main import main
from varco_runtime import __version__
from varco_runtime.errors import VarcoError

COMMANDS = ("export", "engines", "quantize", "run", "inspect", "verify", "probe", "bench", "demo", "doctor", "cache")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], capsys: Captured) -> None:
    out, err = run(capsys, *arguments)
    assert err == ""
    for command in COMMANDS:
        assert f" {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Captured) -> None:
    out, _ = run(capsys, command, "--help")
    assert f"Usage: varco {command}" in out


def test_help_wraps_where_the_terminal_ends() -> None:
    """Line breaks inside a later paragraph are kept, so that each paragraph is one line of its own."""
    for command in app.registered_commands:
        _, *paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")
        assert not [paragraph for paragraph in paragraphs if "\n" in paragraph], command.callback


def test_version_is_printed(capsys: Captured) -> None:
    assert run(capsys, "--version") == (f"varco-edge {__version__}\n", "")


def test_starting_loads_nothing_heavy() -> None:
    heavy = (
        "{'numpy', 'PIL', 'onnx', 'onnxruntime', 'jinja2', 'tokenizers', 'torch', 'transformers', 'huggingface_hub'}"
    )
    code = f"import sys, varco_cli.main; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runn"], "No such command 'runn'"),
        (["run"], "Missing argument 'BUNDLE'. See: varco run --help"),
        (["run", "b", "i.png", "hi", "--colour"], "No such option: --colour"),
        (["run", "b", "i.png", "what", "is", "this"], "extra argument"),
        (["run", "b", "i.png", "hi", "--temperature", "warm"], "Invalid value for '--temperature'"),
        (["run", "b", "i.png", "hi", "--seed"], "'--seed' requires an argument"),
        (["run", "b"], "No picture was given"),
        (["run", "b", "--task", "ocr"], "Expected: varco run BUNDLE IMAGE --task ocr"),
        (["run", "b", "i.png"], "No prompt was given"),
        (["run", "b", "--no-image"], "No prompt was given. Expected: varco run BUNDLE --no-image PROMPT"),
        (["run", "b", "i.png", "hi", "--no-image"], "--no-image takes a prompt only"),
        (["run", "b", "hi", "--no-image", "--task", "ground"], "--task ground is about a picture"),
        (["run", "b", "hi", "--no-image", "--save", "o.png"], "--save paints on the picture, got --no-image"),
        (["run", "b", "hi", "--no-image", "--format", "coco"], "--format coco places regions on a picture"),
        (["run", "b", "i.png", "hi", "--task", "ocr"], "--task ocr takes no prompt"),
        (["run", "b", "i.png", "hi", "--task", "sing"], "--task sing is unknown. Expected one of: chat, ocr, ground"),
        (["run", "b", "i.png", "hi", "--task", "refer"], "--task refer needs --text and --box"),
        (["run", "b", "i.png", "hi", "--task", "refer", "--text", "it"], "--task refer needs --box"),
        (["run", "b", "i.png", "hi", "--task", "refer", "--box", "0,0,1,1"], "--task refer needs --text"),
        (["run", "b", "i.png", "hi", "--box", "0,0,1,1"], "Add --task refer"),
        (["run", "b", "i.png", "hi", "--task", "refer", "--text", "it", "--box", "0,0,1"], "is not four numbers"),
        (["run", "b", "i.png", "hi", "--task", "refer", "--text", "it", "--box", "0;0;1;1"], "is not four numbers"),
        (
            ["run", "b", "i.png", "hi", "--task", "refer", "--text", "it", "--box", "0,0,1,3"],
            "is not inside the picture",
        ),
        (["run", "b", "i.png", "hi", "--task", "refer", "--text", "it", "--box", "0,0,1,nan"], "is not inside"),
        (["run", "b", "i.png", "hi", "--task", "refer", "--text", "it", "--box", "0.5,0,0.5,1"], "covers nothing"),
        (["run", "b", "i.png", "hi", "--task", "refer", "--text", " ", "--box", "0,0,1,1"], "expected some words"),
        (["run", "b", "i.png", "hi", "--format", "xml"], "--format xml is unknown. Expected one of: text, json"),
        (["run", "b", "i.png", "hi", "--json", "--format", "coco"], "--json is short for --format json"),
        (["run", "b", "i.png", "hi", "--stream", "--json"], "--stream prints text as it comes"),
        (["run", "b", "i.png", "hi", "--save", "o.psd"], "--save o.psd has an unknown ending"),
        (["run", "b", "i.png", "hi", "--save", "no/such/o.png"], "lies in a folder that does not exist"),
        (["run", "b", "i.png", "\udcff"], "The prompt is not valid UTF-8"),
        (["export", "c"], "Missing argument 'BUNDLE'. See: varco export --help"),
        (["export", "c", "b", "--decoder", "bf16"], "--decoder bf16 has no kernels on the CPU"),
        (["export", "c", "b", "--device", "rocm"], "--device rocm cannot be exported. Expected one of: cpu, cuda"),
        (["export", "c", "b", "--block-size", "33"], "--block-size 33 has no kernel"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], expected: str, capsys: Captured) -> None:
    assert expected in fail(capsys, 2, *arguments)


def test_options_out_of_range_are_one_line_and_status_2(tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    for option, value, expected in (
        ("--provider", "abacus", "Expected one of: auto, cpu"),
        ("--max-context", "1", "Expected 16 to"),
        ("--threads", "0", "Expected at least 1"),
        ("--max-new-tokens", "0", "Expected at least 1"),
        ("--top-p", "7", "top_p is 7"),
    ):
        assert expected in fail(capsys, 2, "run", tiny_bundle, picture, "hi", option, value)


def test_bad_input_is_one_line_and_status_1(tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "'nothing.png' cannot be opened" in fail(capsys, 1, "run", tiny_bundle, "nothing.png", "hi")
    assert "is not a bundle" in fail(capsys, 1, "run", tmp_path, picture, "hi")
    assert "the context holds 16" in fail(capsys, 1, "run", tiny_bundle, picture, "hi", "--max-context", 16)
    assert "is not a folder" in fail(capsys, 1, "export", tmp_path / "nothing", tmp_path / "out")


def test_control_characters_cannot_reach_the_terminal(tiny_bundle: Path, capsys: Captured) -> None:
    line = fail(capsys, 1, "run", tiny_bundle, "a\x1b[31mb\nc\u202e.png", "hi")
    assert "\\x1b[31m" in line
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert console.printable("a\tb\nc\x1b]0;owned\x07\u2066") == "a\tb\nc\\x1b]0;owned\\x07\\u2066"


def test_documents_hold_nothing_that_a_terminal_obeys(capfd: pytest.CaptureFixture[str]) -> None:
    """As they are in memory: JSON's escapes mean the same characters."""
    document = {"text": "a\x7f\x9b31m\u202eb\u2066\u2028\ud800\n가😀"}
    console.write_document(json.dumps(document, ensure_ascii=False))
    out = capfd.readouterr().out
    assert out == '{"text": "a\\u007f\\u009b31m\\u202eb\\u2066\\u2028\\ud800\\n가😀"}\n'
    assert json.loads(out) == document


def test_inspect_and_doctor_print_no_controls_of_others(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    forge(bundle, set_at("license", "free\x9b2J\x7f\u202e"))
    for arguments in (["inspect", str(bundle)], ["inspect", str(bundle), "--json"]):
        assert main(arguments) == 0
        assert not set("\x9b\x7f\u202e") & set(capfd.readouterr().out)


def test_with_standard_error_closed_notes_go_nowhere(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    answered = shell(f"varco run {tiny_bundle} {picture} Hi --max-new-tokens 3 --json 2>&-")
    assert answered.returncode == 0
    assert json.loads(answered.stdout)["usage"]["completion_tokens"] == 3
    refused = shell(f"varco run {tmp_path} {picture} Hi 2>&-")
    assert (refused.returncode, refused.stdout) == (1, "")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_no_file_takes_the_number_of_a_closed_stream(closed: int) -> None:
    """What a library prints would be written into it."""
    code = (
        "import os, sys; from varco_cli import console; console.open_missing_streams();"
        f"print(os.path.samefile('/dev/null', '/proc/self/fd/{closed}'), file=open(sys.argv[1], 'w'))"
    )
    with tempfile.NamedTemporaryFile() as answer:
        subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" "{answer.name}" {closed}>&-'], check=True)
        assert answer.read() == b"True\n"


def test_a_bug_is_not_dressed_up_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "varco: There is not enough memory (no detail). Close programs or lower --max-context.\n"),
        (VarcoError("Two\nlines."), 1, "varco: Two\\nlines.\n"),
    ],
)
def test_errors_have_their_exit_status(
    error: BaseException, status: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def stumble() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", stumble)
    assert main(["doctor"]) == status
    assert capsys.readouterr() == ("", expected)


def test_an_interrupt_ends_an_answer_quietly(tiny_bundle: Path, picture: Path) -> None:
    """As a user presses Ctrl-C: the signal comes while tokens are made."""
    code = (
        "import sys, os, signal; from varco_cli.main import main; from varco_runtime.stream import Stream; "
        "Stream.__next__ = lambda self: os.kill(os.getpid(), signal.SIGINT); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", str(tiny_bundle), str(picture), "hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_closed_pipe_is_silent(tiny_bundle: Path, picture: Path) -> None:
    done = shell(f"varco run {tiny_bundle} {picture} hi --stream | head -c 3")
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tiny_bundle: Path) -> None:
    done = shell(f"varco inspect {tiny_bundle} > /dev/full")
    assert done.returncode == 1
    assert (
        done.stderr
        == "varco: The output could not be written: No space left on device. Free some space, then try again.\n"
    )


def test_an_encoding_without_hangul_gets_escapes(tiny_bundle: Path) -> None:
    command = f"varco run {tiny_bundle} --no-image hi --max-new-tokens 20"
    plain, ascii_only = shell(command), shell(command, PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0
    assert ascii_only.stdout == plain.stdout.encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (30_391_954_496, "30.4 GB"), (524_288_000, "524 MB")],
)
def test_sizes_read_well(num_bytes: int, expected: str) -> None:
    assert console.size_text(num_bytes) == expected
