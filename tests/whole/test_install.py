"""The wheel with the `cpu` extra alone: what it contains, what it imports, and that it runs a bundle.

Nothing is downloaded. The wheel is built here, and beside it an environment is laid out that holds the distributions
that the wheel and its `cpu` extra ask for, and nothing else of what is installed.
"""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SERVER = ("starlette", "uvicorn", "prometheus_client", "llguidance")
HEAVY = ("torch", "transformers", "onnx", "safetensors", "ml_dtypes", "varco_export", "varco_serve", *SERVER)


def source_files() -> list[str]:
    """The files of the project: what git knows or would add, or all there is in an unpacked source distribution."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [name for name in listed if (ROOT / name).is_file()]
    made = {"__pycache__", ".venv", ".venv-provider", "build"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if not made.intersection(path.parts) and ".egg-info" not in path.parts[0]]


def copy_of_the_source(folder: Path) -> Path:
    """A copy to build in, for builds leave files behind."""
    for name in source_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_source(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-index", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, text=True
    )
    # Whoever types `make demo` or `pip install` sees the warnings of setuptools, a screen full for each.
    assert "BuildBackendWarning" not in built.stdout + built.stderr
    assert "absent from the `packages`" not in built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


def closure(extra: str) -> Iterator[str]:
    """The distributions that varco-edge[extra] needs, of those installed here."""
    seen: set[str] = set()
    todo = [("varco-edge", frozenset({extra}))]
    while todo:
        name, extras = todo.pop()
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            wanted = ["", *sorted(extras)]
            if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in wanted):
                continue
            if requirement.name.lower() not in seen:
                seen.add(requirement.name.lower())
                todo.append((requirement.name, frozenset(requirement.extras)))
                yield requirement.name


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: the wheel, unpacked, and links to what its `cpu` extra needs."""
    folder = tmp_path_factory.mktemp("environment")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in closure("cpu"):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return folder


def run(environment: Path, *arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with that folder as its only packages."""
    variables = {"PYTHONPATH": str(environment), "PATH": os.environ["PATH"], "HOME": str(environment)}
    if cache is not None:
        variables["VARCO_EDGE_CACHE"] = str(cache)
    command = [sys.executable, "-S", "-W", "error", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=environment, check=False)


def test_the_wheel_holds_the_code_the_font_and_the_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(name.startswith("varco_runtime/fonts/") and name.endswith(".woff") for name in names)
    assert "varco_cli/main.py" in names
    assert "varco_export/networks/decoder.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("OFL.txt") for name in names)
    assert not any(name.startswith(("tests/", "training/", "tools/", "benchmarks/")) for name in names)


def test_the_wheel_says_what_it_is_and_where_it_runs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    classifiers = metadata.get_all("Classifier") or []
    assert "Operating System :: POSIX :: Linux" in classifiers
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    assert not any(one.startswith("License ::") for one in classifiers), "the licence is an expression, not both"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Keywords"]
    assert metadata.get_all("Project-URL")


def test_the_source_distribution_holds_all_that_its_tests_need(tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path / "source")
    program = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    built = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert sorted(set(source_files()) - held) == []


def test_what_windows_lacks_stops_exports_in_one_line_and_no_bundle(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lacking = "import sys; sys.modules.update(dict.fromkeys(('fcntl', 'resource', 'termios', 'pwd', 'grp')))"
    program = f"{lacking}; from varco_cli.main import main; sys.exit(main())"

    def varco(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    refused = varco("export", str(tiny_checkpoint), "bundle")
    assert refused.returncode == 1
    assert refused.stderr.startswith("varco: Making bundles needs the file locks of Linux and macOS (fcntl), which ")
    assert refused.stderr.count("\n") == 1
    answered = varco("run", str(tiny_bundle), "--no-image", "Hello", "--max-new-tokens", "2")
    assert answered.returncode == 0, answered.stderr


def test_the_cpu_extra_alone_runs_a_bundle(environment: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(picture)
    program = "import sys; from varco_cli.main import main; sys.exit(main())"
    question = (str(tiny_bundle), str(picture), "What is this?", "--json", "--max-new-tokens", "4")
    result = run(environment, "-c", program, "run", *question, cache=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["token_ids"]) == 4
    assert run(environment, "-c", "import torch").returncode != 0, "the environment is not empty"


def test_importing_and_loading_the_runtime_imports_nothing_heavy(environment: Path) -> None:
    program = (
        "import sys, varco_runtime; from varco_runtime import Varco; import varco_runtime.backends.cpu.backend;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    # In the full environment, where all of it could be imported.
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert run(environment, "-c", program).stdout.strip() == "[]"


def test_a_command_without_its_extra_says_which(environment: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    program = "import sys; from varco_cli.main import main; sys.exit(main())"
    result = run(environment, "-c", program, "export", str(tiny_checkpoint), str(tmp_path / "bundle"))
    assert result.returncode == 1
    assert " -m pip install 'onnx>=" in result.stderr, "advice that works from a wheel, too"
    assert "varco-edge[" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_the_cpu_extra_brings_nothing_of_the_server(environment: Path) -> None:
    brought = {name.lower().replace("-", "_") for name in closure("cpu")}
    assert "onnxruntime" in brought
    assert brought.isdisjoint(SERVER)
    assert {"starlette", "uvicorn", "llguidance"} <= {name.lower().replace("-", "_") for name in closure("serve")}
    program = f"import importlib.util; print([name for name in {SERVER!r} if importlib.util.find_spec(name)])"
    assert run(environment, "-c", program).stdout.strip() == "[]"


def test_the_server_without_its_extra_says_which(environment: Path, tiny_bundle: Path) -> None:
    program = "import sys; from varco_cli.main import main; sys.exit(main())"
    result = run(environment, "-c", program, "serve", str(tiny_bundle), "--port", "0")
    assert result.returncode == 1
    assert " -m pip install 'starlette>=" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_installation_stays_small(wheel: Path) -> None:
    """README: 251 MB with `cpu`, 14 of them this project's, bytecode included; the command line brings no pydantic."""
    with zipfile.ZipFile(wheel) as archive:
        assert sum(info.file_size for info in archive.infolist()) < 10_500_000
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (typer,) = (found for found in map(Requirement, project["dependencies"]) if found.name == "typer")
    assert typer.specifier.contains("0.28.0")
    assert not typer.specifier.contains("0.29.0")
