"""The command line: what users type, what they get, and the one line they get when it goes wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import export_bundle
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco, __version__
from varco_runtime.cli import console, doctor, progress
from varco_runtime.cli.demo import demonstrate
from varco_runtime.cli.main import main
from varco_runtime.cli.run import save_picture
from varco_runtime.errors import VarcoError
from varco_runtime.markup import parse

COMMANDS = ("export", "engines", "quantize", "run", "inspect", "verify", "probe", "bench", "demo", "doctor")
DOCUMENT_KEYS = {"text", "plain_text", "token_ids", "regions", "warnings", "finish_reason", "usage", "timings"}
TIMINGS = {"load_s", "preprocess_s", "vision_s", "prefill_s", "ttft_s", "tpot_s", "total_s"}

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "sky.png"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="session")
def varco(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle)


@pytest.fixture
def broken_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a flipped byte in a large file and a missing graph."""
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    content = bytearray((broken / "embedding.bin").read_bytes())
    content[7] ^= 1
    (broken / "embedding.bin").write_bytes(content)
    (broken / "vision.onnx").unlink()
    return broken


def run(capsys: Captured, *arguments: str | Path) -> tuple[str, str]:
    """Standard output and error of a command that must succeed."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def fail(capsys: Captured, status: int, *arguments: str | Path) -> str:
    """The one line of a command that must fail and print nothing else."""
    assert main([str(argument) for argument in arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("varco: ")
    assert err.count("\n") == 1, f"not one line: {err!r}"
    return err


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `varco` is the command."""
    script = f'set -o pipefail; varco() {{ "{sys.executable}" -m varco_runtime.cli.main "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )


# --- the command itself -----------------------------------------------------------------------------------------------


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


def test_version_is_printed(capsys: Captured) -> None:
    assert run(capsys, "--version") == (f"varco-edge {__version__}\n", "")


def test_starting_loads_nothing_heavy() -> None:
    heavy = (
        "{'numpy', 'PIL', 'onnx', 'onnxruntime', 'jinja2', 'tokenizers', 'torch', 'transformers', 'huggingface_hub'}"
    )
    code = f"import sys, varco_runtime.cli.main; print(sorted({heavy} & sys.modules.keys()))"
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
    refer = ("--task", "refer", "--text", "it", "--box", "0,0,1,3")
    assert "'nothing.png' cannot be opened" in fail(capsys, 1, "run", tiny_bundle, "nothing.png", "hi")
    assert "is not a bundle" in fail(capsys, 1, "run", tmp_path, picture, "hi")
    assert "is not inside the picture" in fail(capsys, 1, "run", tiny_bundle, picture, "hi", *refer)
    assert "the context holds 16" in fail(capsys, 1, "run", tiny_bundle, picture, "hi", "--max-context", 16)
    assert "is not a folder" in fail(capsys, 1, "export", tmp_path / "nothing", tmp_path / "out")


def test_control_characters_cannot_reach_the_terminal(tiny_bundle: Path, capsys: Captured) -> None:
    line = fail(capsys, 1, "run", tiny_bundle, "a\x1b[31mb\nc\u202e.png", "hi")
    assert "\\x1b[31m" in line
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert console.printable("a\tb\nc\x1b]0;owned\x07\u2066") == "a\tb\nc\\x1b]0;owned\\x07\\u2066"


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
        "import sys, os, signal; from varco_runtime.cli.main import main; from varco_runtime.varco import Stream; "
        "Stream.__next__ = lambda self: os.kill(os.getpid(), signal.SIGINT); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", str(tiny_bundle), str(picture), "hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
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


# --- run --------------------------------------------------------------------------------------------------------------


def test_text_is_the_answer_and_nothing_else(varco: Varco, tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    out, err = run(capsys, "run", tiny_bundle, picture, "What is this?", "--max-new-tokens", 12)
    answer = varco.ask(picture, "What is this?", max_new_tokens=12)
    assert out == answer.text + "\n"
    assert f"prompt {answer.usage.image_tokens} image + " in err
    assert "note: the answer was cut off at 12 tokens. See --max-new-tokens." in err


def test_streamed_text_equals_text_at_once(tiny_bundle: Path, picture: Path, capsys: Captured) -> None:
    command = ("run", tiny_bundle, picture, "What is this?", "--max-new-tokens", 40)
    assert run(capsys, *command, "--stream")[0] == run(capsys, *command)[0]


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
    from varco_runtime.varco import Stream

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


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_reports_what_was_chosen(tiny_checkpoint: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "a bundle"
    out, err = run(capsys, "export", tiny_checkpoint, target, "--decoder", "int4", "--max-context", 500)
    assert "int4 (blocks of 32, fp32 activations), head int8" in out
    assert "500 tokens" in out
    assert "apache-2.0" in out
    for component in ("vision", "projector", "embedding", "decoder"):
        assert f"{component} exported in " in err
    assert f"Next: varco run '{target}' PICTURE" in err
    assert json.loads(run(capsys, "inspect", target, "--json")[0])["max_context"] == 500


def test_export_replaces_only_when_asked(tiny_checkpoint: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    assert "add --overwrite" in fail(capsys, 1, "export", tiny_checkpoint, target)
    assert list(target.iterdir()) == []
    run(capsys, "export", tiny_checkpoint, target, "--overwrite")
    run(capsys, "verify", target)


@pytest.mark.parametrize("module", ["onnx", "ml_dtypes"])
def test_export_without_its_extra_names_it(module: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['{module}'] = None; from varco_runtime.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", "c", "b"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == (
        "varco: Exporting needs the extra 'export'. Install it with: pip install 'varco-edge[export]'\n"
    )


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


# --- inspect, verify, doctor, demo ------------------------------------------------------------------------------------


def test_inspect_shows_costs_and_settings(tiny_bundle: Path, capsys: Captured) -> None:
    out, err = run(capsys, "inspect", tiny_bundle)
    for expected in ("licence of the weights   apache-2.0", "<|im_end|>", "512 bytes per token", "5.24 MB at 10,240"):
        assert expected in out
    assert "varco verify hashes every file" in out
    assert err == ""
    assert "\x1b" not in out
    derived = json.loads(run(capsys, "inspect", tiny_bundle, "--json")[0])["derived"]
    assert derived["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, fp32
    assert derived["kv_bytes_max_context"] == 10_240 * derived["kv_bytes_per_token"]
    assert derived["end_tokens"] == ["<|im_end|>"]


def test_inspect_warns_of_the_licence_and_keeps_suggestions_apart(tmp_path: Path, capsys: Captured) -> None:
    checkpoint = make_tiny(tmp_path / "tiny", TinyOptions(format="llava-next", repetition_penalty=1.05))
    (checkpoint / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    generation = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    generation |= {"do_sample": True, "temperature": 0.7, "top_k": 20}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    out, _ = run(capsys, "inspect", export_bundle(checkpoint, tmp_path / "bundle"))
    assert "cc-by-nc-4.0: non-commercial use only, of the bundle too" in out
    assert "1.05, over the answer alone" in out
    assert "temperature 0.7, top_k 20 (not applied unless asked)" in out


def test_inspect_works_where_a_large_file_is_bad(broken_bundle: Path, capsys: Captured) -> None:
    run(capsys, "inspect", broken_bundle)
    (broken_bundle / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "tokenizer.json has 2 bytes, expected" in fail(capsys, 1, "inspect", broken_bundle)


def test_piped_tables_are_never_cut(tiny_bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / ("long" * 40))
    assert str(bundle) in run(capsys, "inspect", bundle)[0].splitlines()[0]


def test_verify_accepts_a_whole_bundle(tiny_bundle: Path, capsys: Captured) -> None:
    out, err = run(capsys, "verify", tiny_bundle)
    num_files = len(list(tiny_bundle.iterdir())) - 1
    assert sum(line.startswith("ok ") for line in out.splitlines()) == num_files
    assert err == ""
    assert json.loads(run(capsys, "verify", tiny_bundle, "--json")[0])["ok"] is True


def test_verify_names_every_bad_file(broken_bundle: Path, capsys: Captured) -> None:
    assert main(["verify", str(broken_bundle)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines() if line.startswith("BAD")] == ["embedding.bin", "vision.onnx"]
    assert "embedding.bin has been altered" in err
    assert err.splitlines()[-1].startswith("varco: ")
    assert "vision.onnx is missing" in err.splitlines()[-1]
    assert main(["verify", str(broken_bundle), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert {entry["file"] for entry in document["files"] if not entry["ok"]} == {"embedding.bin", "vision.onnx"}


def test_a_broken_bundle_is_not_run(broken_bundle: Path, picture: Path, capsys: Captured) -> None:
    assert "embedding.bin has been altered" in fail(capsys, 1, "run", broken_bundle, picture, "hi")


def test_hashing_large_files_is_announced_once(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_twice() -> str:
        with progress.HashProgress({"big.data": 2000, "small.data": 10}, quiet_bytes=1000) as hashed:
            for name in ("big.data", "big.data", "small.data"):
                hashed(name, 1000)
        return capsys.readouterr().err

    assert hash_twice() == "Checking the sha256 of big.data (2 kB).\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert "100 %" in hash_twice()


def test_doctor_reports_this_machine(capsys: Captured) -> None:
    out, _ = run(capsys, "doctor")
    for expected in ("python", "onnxruntime", "CPU", "memory", "cache folder", os.environ["VARCO_EDGE_CACHE"]):
        assert expected in out
    report = json.loads(run(capsys, "doctor", "--json")[0])
    assert report["versions"]["varco-edge"] == __version__
    assert report["providers"][-1] == "CPU"
    assert report["num_cores"] >= 1


def test_doctor_names_what_is_missing(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if "onnx" in name else installed(name))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out, _ = run(capsys, "doctor")
    assert "pip install 'varco-edge[cpu]'" in out
    assert "pip install 'varco-edge[export]'" in out
    assert "Install the extra 'cpu' to run bundles." in out


def test_doctor_warns_of_two_onnxruntimes(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == "onnxruntime-gpu" else installed(name))
    assert "WARNING: onnxruntime and onnxruntime-gpu are both installed" in run(capsys, "doctor")[0]


def test_doctor_survives_a_broken_onnxruntime(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out, _ = run(capsys, "doctor")
    assert "WARNING: onnxruntime is installed but cannot be imported" in out


def test_doctor_finds_gpus(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 8.9, 580.65.06'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpu = "NVIDIA L4 (23034 MiB, compute capability 8.9, driver 580.65.06)"
    assert json.loads(run(capsys, "doctor", "--json")[0])["gpus"] == [gpu]


def test_demo_needs_a_folder(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VarcoError, match=r"cannot be made: .*Choose another folder"):
        demonstrate(tiny_bundle, tmp_path / "file", can_read=True)


def test_demo_without_its_bundle_says_what_to_do(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.cli.demo.BUNDLE", tmp_path / "nothing")
    assert "In a checkout of the project, type: make demo" in fail(capsys, 1, "demo", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_readme_names_every_module() -> None:
    root = Path(__file__).resolve().parents[1]
    command = ["git", "ls-files", "export/*.py", "runtime/*.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    readme = (root / "README.md").read_text(encoding="utf-8")
    modules = {Path(line).name for line in done.stdout.splitlines()} - {"__init__.py"}
    assert sorted(name for name in modules if name not in readme) == []


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (30_391_954_496, "30.4 GB"), (524_288_000, "524 MB")],
)
def test_sizes_read_well(num_bytes: int, expected: str) -> None:
    assert console.size_text(num_bytes) == expected
