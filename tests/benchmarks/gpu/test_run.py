"""`python -m benchmarks.gpu_check` at tiny size on the CPU: what it runs, what it keeps, and when it stops."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import report as report_file
from benchmarks.gpu import run as run_file
from benchmarks.gpu.names import DEFAULT_STEPS, LIMIT_S, STEPS
from benchmarks.gpu.process import Tell
from tests.benchmarks.gpu.conftest import Run

ROOT = Path(__file__).resolve().parents[3]


def test_every_step_has_a_limit_and_those_that_decide_come_first(run: Run, instant: list[str]) -> None:
    assert set(LIMIT_S) == set(STEPS)
    status, report = run()
    assert status == 0
    assert list(report["steps"]) == list(DEFAULT_STEPS)
    order = list(dict.fromkeys(instant))
    assert order == [
        "check_environment",
        "check_tokens",
        "run_tests",
        "check_products",
        "measure_limits",
        "measure_model",
        "measure_rows",
        "measure_variant",
        "measure_transformers",
    ]
    assert instant.count("check_tokens") == 4
    assert instant.count("measure_variant") == len(report["pairs"]) == 10
    assert set(report["shapes"]) == {"tiny", "tiny-small"}


def test_what_is_in_the_report_is_not_measured_again_unless_asked(run: Run, instant: list[str]) -> None:
    run("--steps", "tests")
    assert run("--steps", "tests")[1]["tests"]["ms"] == {"default": 1.0}
    assert run("--steps", "tests", "--again")[1]["tests"]["ms"] == {"default": 2.0}
    assert instant == ["run_tests", "run_tests"]


def test_a_step_that_decides_stops_the_run_with_everything_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fails_at_int4(measure: Callable[..., None], arguments: Any, tell: Tell, timeout_s: float) -> str | None:
        asked.append(measure.__name__)
        tell(("error",), 0.5)
        return "Logits are off by 0.5" if measure.__name__ == "check_tokens" and "int4" in arguments else None

    monkeypatch.setattr(run_file, "run_apart", fails_at_int4)
    status, report = run()
    assert status == 1
    assert asked == ["check_environment", "check_tokens", "check_tokens"]
    assert report["tokens"]["int4"]["failed"] == "Logits are off by 0.5"
    assert {name: step["status"] for name, step in report["steps"].items()} == {
        "environment": "done",
        "tokens": "failed",
    }
    assert report["tokens"]["fp16"]["error"] == 0.5
    assert "step tokens: failed" in (out := capfd.readouterr().out)
    assert "tokens int4: Logits are off by 0.5" in out
    asked.clear()
    run()
    assert asked == ["check_tokens"], "the same command tries what failed again, and nothing else"


def test_what_fails_in_a_step_that_measures_is_left_out_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fails(measure: Callable[..., None], arguments: Any, tell: Tell, timeout_s: float) -> str | None:
        asked.append(measure.__name__)
        return "no room" if measure.__name__ == "measure_limits" else None

    monkeypatch.setattr(run_file, "run_apart", fails)
    status, report = run("--steps", "int4", "small")
    assert (status, asked) == (0, ["measure_limits", "measure_model", "measure_model"])
    assert report["limits"]["left_out"] == "no room"
    assert report["steps"]["int4"]["status"] == "left out"
    assert report["steps"]["small"]["status"] == "done"


def test_a_step_has_no_more_time_than_its_limit_and_what_the_budget_leaves(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def note(measure: Callable[..., None], arguments: Any, tell: Tell, timeout_s: float) -> None:
        given.append(timeout_s)

    monkeypatch.setattr(run_file, "run_apart", note)
    run("--steps", "environment", "--again")
    run("--steps", "environment", "--again", "--budget-s", "7")
    assert LIMIT_S["environment"] - 1 < given[0] <= LIMIT_S["environment"]
    assert 6 < given[1] <= 7
    run("--steps", "environment", "--again", "--budget-s", "4800")
    assert given.pop() > 9 * LIMIT_S["environment"], "slow machines may take longer"
    _, report = run("--steps", "small", "--budget-s", "1e-9")
    assert "no time was left" in report["shapes"]["tiny-small"]["models"]["int4"]["left_out"]
    run("--steps", "small")
    assert len(given) == 3, "and the same command goes on there"


def test_other_settings_or_another_machine_start_an_empty_report(
    run: Run, instant: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run("--steps", "tests")
    monkeypatch.setattr(report_file, "machine", lambda provider: {"onnxruntime": "2"})
    _, report = run("--steps", "environment")
    assert (report["machine"], "tests" in report) == ({"onnxruntime": "2"}, False)
    assert "has another machine: starting anew" in capfd.readouterr().err


def test_a_file_that_is_no_report_is_left_as_it_is(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / run_file.REPORT
    path.parent.mkdir()
    for content in ("[]", '{"benchmark": "peers"}'):
        path.write_text(content)
        assert run()[0] == 1
        assert "is no report of this program, expected one or nothing there" in capfd.readouterr().err
        assert path.read_text() == content


def test_it_runs_from_a_checkout_of_which_nothing_is_installed(tmp_path: Path) -> None:
    """Without the module site, which reads the files that make an editable installation."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    command = [sys.executable, "-S", "-m", "benchmarks.gpu_check", "--shape", "tiny", "--provider", "cpu"]
    command += ["--steps", "environment", "--out", str(tmp_path / "out"), "--folder", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "step environment: done" in done.stdout


@pytest.mark.full
def test_every_step_runs_whole(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, report = run("--budget-s", "4800", "--steps", *STEPS)
    assert status == 0, capfd.readouterr().err
    assert {step["status"] for step in report["steps"].values()} == {"done"}, report["steps"]
    assert report["environment"]["doctor"]["versions"]["onnxruntime"]
    assert report["tokens"]["int4"]["equal"] == {"steps": 32, "drafts": 32}
    assert "no kernels for fp8" in report["tokens"]["fp8"]["does_not_apply"]
    assert report["tests"]["passed"] > 1
    assert set(report["products"]["int4-fp16"]["errors"]) == {"640x640", "640x256", "640x1344", "1344x640"}
    found = report["shapes"]["tiny"]
    model, peer, times = found["models"]["int4"], found["transformers"], found["times_transformers"]["int4"]
    assert set(times) == {"decode", "vision", "pictures", "memory"}
    for cache in ("dynamic", "static"):
        ratio = peer["decode"][cache]["64"]["ms"] / model["decode"]["64"]["ms"]
        assert times["decode"]["64"][cache] == pytest.approx(ratio)
    assert "torch sees no GPU" in model["kernels"]["does_not_apply"]
    assert set(found["operators"]["int4"]) > {"decode", "prefill", "vision"}
    rows = found["rows"]["int4"]
    assert set(rows["steps"]) == {"1", "2", "4", "8", "16"}
    assert rows["steps"]["1"]["times_one"] == 1
    assert rows["arrivals"]["gaps"] > 10
    assert rows["drawn"]["8"]["ms"] > 0
    assert len(report["pairs"]["default"]["ms"]) == len(report["pairs"]["default-again"]["ms"]) == 6
    out = capfd.readouterr().out
    assert "tiny int4, decode, operators:" in out
    assert "one-band: do bands of the caches make drafts faster?" in out
    assert [path.name for path in (tmp_path / "work").iterdir() if (path / "bundle.json").exists()] == []
