"""The documents are true of the tree: every folder has its line, links lead somewhere, and commands exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import typer

from varco_cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    ROOT / name for name in ("cli/varco_cli", "export/varco_export", "runtime/varco_runtime", "serve/varco_serve")
]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/RESULTS.md"])
PAGES_OF_COMMANDS = [page for page in PAGES if page.name not in ("CHANGELOG.md", "RESULTS.md")]
"""Without those that speak of benchmarks' options and of former ones."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BENCHMARK_OPTIONS = {"--budget-s", "--out", "--provider-archive", "--shape", "--steps"}
"""Options of `python -m benchmarks.gpu_check` that a page names."""
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def architecture() -> str:
    return (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_every_folder_has_its_line_in_the_architecture() -> None:
    named = re.findall(r"^\| `([\w/-]+)/` \|", architecture(), re.MULTILINE)
    others = [path for name in ("benchmarks", "training", "tools", "examples") for path in (ROOT / name).rglob("*.py")]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in [*modules(), *others]}
    assert len(folders) > 20
    assert sorted(folders - set(named)) == []
    assert sorted(set(named), key=named.index) == named
    assert [folder for folder in named if not (ROOT / folder).is_dir()] == []


def test_the_picture_of_the_floors_is_what_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    pictures = [
        block.splitlines() for block in re.findall(r"^```\n(.*?)^```", architecture(), re.MULTILINE | re.DOTALL)
    ]
    floors = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert len(floors) == 5
    for layers in floors:
        assert any(_is_drawn(layers, picture) for picture in pictures), layers


def _is_drawn(layers: list[str], picture: list[str]) -> bool:
    """Return whether the floors stand in a picture, each on a line below the one above it."""
    lines = iter(picture)
    return all(any(re.search(rf"(?<!\| )\b{re.escape(layer)}\b(?! \|)", line) for line in lines) for layer in layers)


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.\w+)`", architecture())
    assert len(named) > 10
    assert [file for file in named if not any((base / file).is_file() for base in (ROOT, *PACKAGES))] == []


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


def _options(name: str) -> set[str]:
    """Return all options of a command."""
    return {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^|`|\$ |&& |\| )varco ((?!is\b)[a-z]+[^`\n]*)", text, re.MULTILINE):
        name, *words = line.split("#")[0].split()
        if name not in COMMANDS:
            assert page.name == "CHANGELOG.md", f"{page.name}: varco {line}"
            continue
        known = _options(name)
        for word in words:
            if word.startswith("--"):
                option = re.split(r"[=.,;:)]", word)[0]
                assert option in {*known, "--help"}, f"{page.name}: varco {line}"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {"test-provider"}
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"{page.name}: make {target}"
    for module in re.findall(r"python -m ((?:benchmarks|training|tools|varco_export)[\w.]*)", text):
        assert importlib.util.find_spec(module.rstrip(".")) is not None, f"{page.name}: python -m {module}"


@pytest.mark.parametrize("page", PAGES_OF_COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_stand_alone_exist(page: Path) -> None:
    known = {option for name in COMMANDS for option in _options(name)} | BENCHMARK_OPTIONS
    alone = re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    assert sorted(set(alone) - known) == []


@pytest.mark.parametrize(
    ("name", "page"),
    [("export", "export.md"), ("quantize", "quantised-checkpoints.md"), ("engines", "rtx-and-jetson.md")],
)
def test_tables_have_every_option_and_its_values(name: str, page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    parameters = [parameter for parameter in COMMANDS[name].params if parameter.opts[0].startswith("--")]
    for parameter in parameters:
        option = next(
            row
            for row in re.findall(r"^\| (.+?) \|(?!\|)", text, re.MULTILINE)
            if row.startswith(f"`{parameter.opts[0]}")
        )
        if "|" in (parameter.metavar or "") and "..." not in parameter.metavar:
            assert option.replace("\\|", "|") == f"`{parameter.opts[0]} {parameter.metavar}`"
