"""A library that is missing, one that is broken, and an interrupt are told apart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from varco_runtime.backends.tensorrt.library import find_module
from varco_runtime.errors import BrokenExtraError, MissingExtraError
from varco_runtime.system.libraries import import_onnxruntime, needs_extra

INTERRUPTED = (
    "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n    raise ImportError from error\n"
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that packages are found in first; of onnxruntime, onnx and tensorrt nothing is loaded yet."""

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in ("onnxruntime", "onnx", "tensorrt")]

    for name in loaded():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in loaded():  # the fakes; monkeypatch brings the others back
        del sys.modules[name]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libthing.so.1: cannot open\\nmore')", r"libthing\.so\.1: cannot open"),
        ("raise OSError('libthing.so.1: cannot open')", r"libthing\.so\.1: cannot open"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("import onnxruntime.capi", r"No module named 'onnxruntime\.capi'.*"),
        ("", "parts of it are missing"),
    ],
)
def test_a_broken_onnxruntime_is_not_called_missing(fake: Path, source: str, reason: str) -> None:
    (fake / "onnxruntime.py").write_text(source)
    with pytest.raises(
        BrokenExtraError,
        match=rf"^Running needs onnxruntime, which is installed but cannot be imported \({reason}\)\. Install that",
    ):
        import_onnxruntime("Running")


def test_a_missing_onnxruntime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"^Running needs the extra 'cpu'") as caught:
        import_onnxruntime("Running")
    assert not isinstance(caught.value, BrokenExtraError)


def test_what_a_library_lacks_is_its_fault_and_not_the_extras(fake: Path) -> None:
    (fake / "onnx.py").write_text("import no_such_module")
    with (
        pytest.raises(BrokenExtraError, match=r"needs onnx, which is installed but .*no_such_module"),
        needs_extra("Exporting", "export"),
    ):
        import onnx  # noqa: F401


def test_a_bug_of_our_own_is_not_dressed_up() -> None:
    with pytest.raises(ImportError, match="no_such_name"), needs_extra("Exporting", "export"):
        from varco_runtime.system.libraries import no_such_name  # type: ignore[attr-defined]  # noqa: F401


def test_an_interrupt_stays_one_whatever_a_library_makes_of_it(fake: Path) -> None:
    for name in ("onnxruntime", "tensorrt"):
        (fake / f"{name}.py").write_text(INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        import_onnxruntime("Running")
    with pytest.raises(KeyboardInterrupt):
        find_module("tensorrt")


# --- the command ------------------------------------------------------------------------------------------------------

STARTS_WITH_CTRL_C = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from varco_cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def command(code: str, *arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-c", code, *map(str, arguments)]
    if path is not None:
        given[2] = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    return subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "module", ["varco_cli.interrupts", "typer", "numpy", "tokenizers", "onnxruntime.capi._pybind_state"]
)
def test_ctrl_c_during_any_import_is_quiet(tiny_bundle: Path, module: str) -> None:
    done = command(STARTS_WITH_CTRL_C, module, "run", tiny_bundle, "--no-image", "hi", "--max-new-tokens", "1")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("swallow", ["pass", "raise ImportError('broken') from None"])
def test_an_interrupt_that_a_library_swallows_still_counts(tiny_bundle: Path, tmp_path: Path, swallow: str) -> None:
    """Twice, for only the first one waits for the import's end."""
    source = (
        "import os, signal\nfor _ in range(2):\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        f"    except KeyboardInterrupt:\n        {swallow}\nclass InferenceSession: pass\n"
    )
    (tmp_path / "onnxruntime.py").write_text(source)
    code = "from varco_cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = command(code, "run", tiny_bundle, "--no-image", "hi", path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_is_left_to_who_called_the_command() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from varco_cli.main import main; main(['doctor', '--json'])\n"
        "sys.exit(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)"
    )
    assert command(code).returncode == 0
