"""The documents are true of the tree: every folder has its line, links lead somewhere, and commands exist."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import typer

from varco_cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / "cli/varco_cli", ROOT / "export/varco_export", ROOT / "runtime/varco_runtime"]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/RESULTS.md"])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def test_every_folder_has_its_line_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in modules()}
    assert len(folders) > 20
    assert sorted(folder for folder in folders if f"| `{folder}/` |" not in text) == []
    named = re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE)
    assert [folder for folder in named if not (ROOT / folder).is_dir()] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in modules() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{page.name} links to {target}"


def _anchor(heading: str) -> str:
    """Return what a heading is called in links: lower case, hyphens for blanks, no other punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_anchors_are_made_as_the_common_hosts_make_them() -> None:
    assert _anchor("Data-centre GPUs (A100, H100)") == "data-centre-gpus-a100-h100"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^|`|\$ |&& |\| )varco ((?!is\b)[a-z]+[^`\n]*)", text, re.MULTILINE):
        name, *words = line.split("#")[0].split()
        if name not in COMMANDS:
            assert page.name == "CHANGELOG.md" or not words, f"{page.name}: varco {line}"
            continue
        known = {
            option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words:
            if word.startswith("--"):
                option = re.split(r"[=.,;:)]", word)[0]
                assert option in {*known, "--help"}, f"{page.name}: varco {line}"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {"test-provider"}
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"{page.name}: make {target}"
    for module in re.findall(r"python -m ((?:benchmarks|training|tools|varco_export)[\w.]*)", text):
        assert importlib.util.find_spec(module.rstrip(".")) is not None, f"{page.name}: python -m {module}"
