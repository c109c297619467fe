"""Every benchmark: what a user can mend is one line, and the JSON goes where it is asked to go."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks import charts, peers
from benchmarks.document import add_out, finish
from varco_runtime.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(
    ".".join(path.relative_to(ROOT / "benchmarks").with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text("utf-8")
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-m", *arguments]  # -S: nothing is installed
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["charts", "engines", "speculation"])
def test_a_missing_package_is_one_line(name: str) -> None:
    done = run(f"benchmarks.{name}")
    assert done.returncode == 1
    assert re.fullmatch(rf"benchmarks\.{name}: No module named '\w+'\. From a checkout, install .*\n", done.stderr)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "a.json"),
            "a.json: No such file or directory. Check the path.",
        ),
        (json.JSONDecodeError("Expecting value", "", 0), "A file that should be JSON is not (Expecting value: "),
        (UsageError("Two\nlines."), "Two lines."),
        (subprocess.CalledProcessError(2, ["python"]), "A process of its own ended with status 2; its error is above."),
        (KeyboardInterrupt(), ""),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: BaseException, line: str) -> None:
    said = benchmarks.explain(error)
    assert said is not None
    assert said.startswith(line)
    assert "\n" not in said


def test_a_bug_keeps_its_traceback() -> None:
    assert benchmarks.explain(AttributeError("bug")) is None
    assert sys.excepthook is not benchmarks._show  # an importing program keeps its own


def test_figures_of_another_benchmark_are_refused(tmp_path: Path) -> None:
    for content, says in (({"a": "text"}, "holds no figures of benchmarks.quality"), ({"a": {}}, "no figures of fp32")):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=says):
            charts.main([str(tmp_path / "a.json")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_report_ends_as_one_line_and_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_out(parser)
    options = parser.parse_args(["--out", str(tmp_path / "a.json")])
    finish({"benchmark": "a"}, options.out)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "a.json").read_text()) == {"benchmark": "a"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", str(tmp_path / "nothing" / "a.json")])
    assert "is not a folder, expected one to write a.json into" in capsys.readouterr().err


def test_commands_of_the_results_exist_and_write_what_they_are_said_to() -> None:
    """A figure's command is typed as it stands: its module runs, and a JSON file beside it comes of --out."""
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    commands = re.findall(r"python -m benchmarks\.([\w.]+)([^`]*)`", text)
    assert {name for name, _ in commands} <= set(NAMES)
    assert "python benchmarks/" not in text
    written = {Path(found).name for _, rest in commands for found in re.findall(r"--out\s+(\S+)", rest)}
    kept = {path.name for path in (ROOT / "benchmarks").glob("*.json")}
    assert kept <= written


def test_the_peers_say_how_much_goes_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = argparse.Namespace(
        environments=tmp_path / "peers", peers=["ours", "llama_cpp"], here=False, shape="0.5b", question=False
    )
    peers.say_what_goes_where(given, tmp_path / "peers" / "material")
    *places, last = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'peers' / 'material'}: about 13 GB to be written" in places
    assert f"{tmp_path / 'peers' / 'llama-cpp'}: about 0.2 GB to be written" in places
    assert "openvino" not in " ".join(places)
    assert last.startswith("In all about 13.2 GB, of ")
    assert last.endswith(f"rm -r {tmp_path / 'peers'}")
    (tmp_path / "peers" / "material").mkdir(parents=True)
    peers.say_what_goes_where(given, tmp_path / "peers" / "material")
    assert "In all about 0.2 GB" in capsys.readouterr().err
    given.question = True
    peers.say_what_goes_where(given, tmp_path / "peers" / "material")
    question = f"{tmp_path / 'peers' / 'material' / 'question'}: about {peers.QUESTION_GB:g} GB to be written"
    assert question in capsys.readouterr().err
