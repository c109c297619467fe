"""What `varco_export` hands on to programs: the names, where they come from, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import varco_export
from varco_export import ExportOptions, add_probes, build_engines, export_bundle, quantize_checkpoint
from varco_runtime import Varco

FUNCTIONS = (add_probes, build_engines, export_bundle, quantize_checkpoint)


def test_a_program_exports_a_bundle_in_silence_and_asks_it(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    manifest = export_bundle(tiny_checkpoint, bundle, ExportOptions(decoder="int4", probes=False))
    assert manifest.probes is None
    assert add_probes(tiny_checkpoint, bundle).probes is not None
    assert capsys.readouterr() == ("", "")
    assert Varco.load(bundle, max_context=512, threads=1).ask(None, "What is this?", max_new_tokens=2).text is not None


@pytest.mark.parametrize("name", varco_export.__all__)
def test_every_name_is_handed_on_and_is_no_module(name: str) -> None:
    assert name in dir(varco_export)
    assert not inspect.ismodule(getattr(varco_export, name))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_function_says_what_it_takes_returns_and_raises(function: object) -> None:
    text = inspect.getdoc(function) or ""
    assert all(f"\n{part}:\n" in text for part in ("Args", "Returns", "Raises"))
    for parameter in inspect.signature(function).parameters:  # type: ignore[arg-type]
        assert f"\n    {parameter}: " in text, parameter


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'varco_export' has no attribute 'export_bundles'"):
        varco_export.export_bundles  # noqa: B018


def test_the_package_itself_imports_neither_numpy_nor_onnx() -> None:
    code = "import sys, varco_export; print({'numpy', 'onnx', 'torch', 'typing'} & sys.modules.keys() or 'none')"
    done = subprocess.run([sys.executable, "-S", "-c", _paths() + code], check=True, capture_output=True, text=True)
    assert done.stdout == "none\n"


def _paths() -> str:
    """Lines that put the two packages on the path of a Python whose site imports nothing."""
    import varco_runtime

    folders = sorted({str(Path(package.__file__ or "").parents[1]) for package in (varco_export, varco_runtime)})
    return f"import sys; sys.path += {folders!r}\n"
