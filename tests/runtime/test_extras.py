"""How to install what an extra needs: advice that works from a checkout, a wheel and an editable installation."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from varco_cli.commands.doctor import EXTRAS
from varco_runtime.extras import install_command, reinstall_command, required_packages

RUNTIME = Path(__file__).parents[2] / "runtime" / "varco_runtime"
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_advice_names_what_pyproject_names_and_never_an_index_of_ours(extra: str) -> None:
    command = install_command(extra)
    assert "varco-edge[" not in command, "that needs a package index which has it"
    named = {Requirement(text).name for text in shlex.split(command) if text[0].isalpha() and ">=" in text}
    wanted = [text for text in PROJECT["optional-dependencies"][extra] if not text.startswith("varco-edge")]
    own = PROJECT["optional-dependencies"]["export"] if extra == "quantize" else []
    # Names alone: the metadata of a checkout is that of its last installation.
    assert named == {Requirement(text).name for text in [*wanted, *own]}


def test_pip_is_the_one_of_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pip").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "own" / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'own'}:{tmp_path / 'other'}")
    assert install_command("cpu", upgrade=True).startswith("pip install --upgrade 'onnxruntime>=")
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}:{tmp_path / 'own'}")
    assert install_command("cpu").startswith(f"{tmp_path / 'own' / 'python'} -m pip install 'onnxruntime>=")
    (tmp_path / "own" / "pip").unlink()
    assert "own/python -m pip uninstall --yes onnxruntime onnxruntime-gpu && " in reinstall_command("cuda")


def test_a_checkout_that_was_never_installed_installs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert list(required_packages("cpu")) == []
    assert install_command("cpu").endswith("pip install '.[cpu]'")


def test_an_error_of_the_runtime_names_an_option_only_beside_its_command() -> None:
    """Whoever calls `Varco.load` or `ask` from Python has given no `--provider`."""
    found = 0
    for path in sorted(RUNTIME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                text = " ".join(ast.unparse(argument) for argument in node.args)
                if re.search(r"(?<!\w)--[a-z]", text):
                    found += 1
                    assert re.search(r"varco (export|engines|run)|[Ee]xport|[Bb]uild", text), f"{path.name}: {text}"
    assert found > 5
