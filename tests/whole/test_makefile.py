"""`make demo` makes its environment, and makes it anew where an older Python or a failed attempt left one behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/sh
# Stands for an interpreter: new enough or not, with pip or without; keeps a record of what it was asked.
echo "{name} $*" >> {log}
case "$*" in
  *sys.version_info*) case "$*" in *"import pip"*) exit {without_pip};; esac; exit {too_old};;
  "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin"; cp {made} "$4/bin/python";;
esac
"""

if shutil.which("make") is None:
    pytest.skip("there is no make here", allow_module_level=True)


class Checkout:
    """A folder with the Makefile, and interpreters that only say what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "pyproject.toml").touch()
        self.interpreter("bin/made", "venv")

    def interpreter(self, path: str, name: str, *, too_old: bool = False, without_pip: bool = False) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = PYTHON.format(
            name=name,
            log=self.log,
            made=self.folder / "bin" / "made",
            too_old=int(too_old),
            without_pip=int(too_old or without_pip),
        )
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make where no Python of this machine is found by its name."""
        tools = self.folder / "tools-of-the-system"
        if not tools.exists():
            tools.mkdir()
            for name in ("sh", "rm", "mkdir", "cp", "touch", "make"):
                (tools / name).symlink_to(shutil.which(name) or name)
        variables = {"PATH": f"{self.folder / 'bin'}:{tools}"}
        self.log.write_text("")
        return subprocess.run(
            ["make", *arguments], cwd=self.folder, env=variables, capture_output=True, text=True, check=False
        )

    def asked(self) -> list[str]:
        """What the interpreters were asked in turn, but for their versions."""
        return [line for line in self.log.read_text().splitlines() if "version_info" not in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


MADE = [
    "new -m venv --clear .venv",
    "venv -m pip install --quiet --upgrade pip",
    "venv -m pip install --quiet --editable .[cpu,export]",
    "venv -m tools.demo demo",
]


def test_the_demo_takes_the_first_python_that_is_new_enough(checkout: Checkout) -> None:
    checkout.interpreter("bin/python3", "old", too_old=True)
    checkout.interpreter("bin/python3.13", "new")
    assert checkout.make("demo").returncode == 0
    assert checkout.asked() == MADE
    assert checkout.make("demo").returncode == 0
    assert checkout.asked() == MADE[-1:], "made once"


@pytest.mark.parametrize("left", ["an older Python", "no pip", "a link to nothing", "no pip after an installation"])
def test_the_demo_repairs_what_a_failed_attempt_left(checkout: Checkout, left: str) -> None:
    if left == "a link to nothing":
        (checkout.folder / ".venv" / "bin").mkdir(parents=True)
        (checkout.folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    else:
        checkout.interpreter(
            ".venv/bin/python", "left", too_old=left == "an older Python", without_pip=left != "an older Python"
        )
    if "after" in left:
        os.utime(checkout.folder / "pyproject.toml", (0, 0))
        (checkout.folder / ".venv" / ".demo").touch()
    checkout.interpreter("bin/python3.11", "new")
    done = checkout.make("demo")
    assert done.returncode == 0, done.stderr
    assert checkout.asked() == MADE


def test_no_python_that_is_new_enough_is_one_clear_line(checkout: Checkout) -> None:
    checkout.interpreter("bin/python3", "old", too_old=True)
    done = checkout.make("demo")
    assert done.returncode != 0
    assert "Python 3.11 or newer with its module venv is needed and was not found: make PYTHON=" in done.stderr
    assert not (checkout.folder / ".venv").exists()
    checkout.interpreter("elsewhere/python", "new")
    assert checkout.make("demo", f"PYTHON={checkout.folder}/elsewhere/python").returncode == 0
    assert checkout.asked() == MADE
