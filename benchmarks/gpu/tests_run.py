"""The third step: tests/gpu, in a process of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.gpu.process import Tell
from varco_runtime.errors import BackendError

ROOT = Path(__file__).resolve().parents[2]
SELECTED = {"14b": ["tests/gpu"], "tiny": ["tests/gpu/test_widths.py", "-k", "two_layers or (int4 and fp16)"]}
MAX_NAMED = 10


class FailedTestsError(BackendError):
    """Tests failed, or none ran."""


def run_tests(shape: str, provider: str, tell: Tell) -> None:
    """Tell how many tests passed, failed and were skipped. Raises `FailedTestsError`, also where none passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-W", "default", f"--junitxml={report}", *SELECTED[shape]]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what else is installed there is none of ours
        if provider == "cpu":
            environment["VARCO_GPU_TESTS_ON"] = "cpu"
        tell(("selected",), SELECTED[shape])
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not report.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise FailedTestsError(f"pytest ended with status {done.returncode}: {''.join(last)}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    tell(("passed",), passed)
    tell(("skipped",), sorted({str(case.find("skipped").get("message")) for case in skipped}))  # type: ignore[union-attr]
    for case in failed[:MAX_NAMED]:
        fault = next(one for one in (case.find("failure"), case.find("error")) if one is not None)
        tell(("failures", str(case.get("name"))), str(fault.get("message")))
    if failed or not passed:
        raise FailedTestsError(f"{len(failed)} of {len(cases)} tests failed, {passed} passed: {done.stdout[-300:]}")
