"""`varco inspect`, `verify`, `doctor` and `demo`: what they tell of a bundle and a machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import types
from pathlib import Path

import pytest

from tests.cli.conftest import Captured, fail, run
from tests.conftest import export_bundle
from varco_cli import console, progress
from varco_cli.commands import doctor
from varco_cli.commands.demo import demonstrate
from varco_cli.main import main
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import __version__
from varco_runtime.errors import VarcoError
from varco_runtime.extras import install_command


def test_inspect_shows_costs_and_settings(tiny_bundle: Path, capsys: Captured) -> None:
    out, err = run(capsys, "inspect", tiny_bundle)
    for expected in ("licence of the weights   apache-2.0", "<|im_end|>", "512 bytes per token", "5.24 MB at 10,240"):
        assert expected in out
    assert "varco verify hashes every file" in out
    assert err == ""
    assert "\x1b" not in out
    derived = json.loads(run(capsys, "inspect", tiny_bundle, "--json")[0])["derived"]
    assert derived["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, fp32
    assert derived["kv_bytes_max_context"] == 10_240 * derived["kv_bytes_per_token"]
    assert derived["end_tokens"] == ["<|im_end|>"]


def test_inspect_warns_of_the_licence_and_keeps_suggestions_apart(tmp_path: Path, capsys: Captured) -> None:
    checkpoint = make_tiny(tmp_path / "tiny", TinyOptions(format="llava-next", repetition_penalty=1.05))
    (checkpoint / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    generation = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    generation |= {"do_sample": True, "temperature": 0.7, "top_k": 20}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    out, _ = run(capsys, "inspect", export_bundle(checkpoint, tmp_path / "bundle"))
    assert "cc-by-nc-4.0: non-commercial use only, of the bundle too" in out
    assert "1.05, over the answer alone" in out
    assert "temperature 0.7, top_k 20 (not applied unless asked)" in out


def test_inspect_works_where_a_large_file_is_bad(broken_bundle: Path, capsys: Captured) -> None:
    run(capsys, "inspect", broken_bundle)
    (broken_bundle / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "tokenizer.json has 2 bytes, expected" in fail(capsys, 1, "inspect", broken_bundle)


def test_piped_tables_are_never_cut(tiny_bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / ("long" * 40))
    assert str(bundle) in run(capsys, "inspect", bundle)[0].splitlines()[0]


def test_a_narrow_terminal_folds_no_word(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that cannot get narrower is left to the terminal, which wraps its lines."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    row = ("decoder.onnx.data", "12.2 MB", "blocks of 32", "45a3bf981891f22d")
    console.print_table("bundle", ("file", "size", "weights", "sha256"), [row], right=(1,))
    words = set(capsys.readouterr().out.replace("\x1b[", " ").split())
    assert words >= {word for cell in row for word in cell.split()}


def test_verify_accepts_a_whole_bundle(tiny_bundle: Path, capsys: Captured) -> None:
    out, err = run(capsys, "verify", tiny_bundle)
    num_files = len(list(tiny_bundle.iterdir())) - 1
    assert sum(line.startswith("ok ") for line in out.splitlines()) == num_files
    assert err == ""
    assert json.loads(run(capsys, "verify", tiny_bundle, "--json")[0])["ok"] is True


def test_verify_names_every_bad_file(broken_bundle: Path, capsys: Captured) -> None:
    assert main(["verify", str(broken_bundle)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines() if line.startswith("BAD")] == ["embedding.bin", "vision.onnx"]
    assert "embedding.bin has been altered" in err
    assert err.splitlines()[-1].startswith("varco: ")
    assert "vision.onnx is missing" in err.splitlines()[-1]
    assert main(["verify", str(broken_bundle), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert {entry["file"] for entry in document["files"] if not entry["ok"]} == {"embedding.bin", "vision.onnx"}


def test_a_broken_bundle_is_not_run(broken_bundle: Path, picture: Path, capsys: Captured) -> None:
    assert "embedding.bin has been altered" in fail(capsys, 1, "run", broken_bundle, picture, "hi")


def test_hashing_large_files_is_announced_once(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_twice() -> str:
        with progress.HashProgress({"big.data": 2000, "small.data": 10}, quiet_bytes=1000) as hashed:
            for name in ("big.data", "big.data", "small.data"):
                hashed(name, 1000)
        return capsys.readouterr().err

    assert hash_twice() == "Checking the sha256 of big.data (2 kB).\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert "100 %" in hash_twice()


def test_doctor_reports_this_machine(capsys: Captured) -> None:
    out, _ = run(capsys, "doctor")
    for expected in ("python", "onnxruntime", "CPU", "memory", "cache folder", os.environ["VARCO_EDGE_CACHE"]):
        assert expected in out
    report = json.loads(run(capsys, "doctor", "--json")[0])
    assert report["versions"]["varco-edge"] == __version__
    assert report["providers"][-1] == "CPU"
    assert report["num_cores"] >= 1


def test_doctor_names_what_is_missing(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if "onnx" in name else installed(name))
    monkeypatch.setattr(doctor, "_is_there", lambda _: False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out, _ = run(capsys, "doctor")
    assert f"cpu, running a bundle on a CPU:\n    {install_command('cpu')}\n" in out
    assert f"export, varco export:\n    {install_command('export')}\n" in out
    assert out.endswith(f"Bundles need an extra above. To run them on a CPU: {install_command('cpu')}\n")


@pytest.mark.parametrize(
    ("installed", "last_line"),
    [
        ({"tensorrt_rtx", "cuda.bindings"}, "Ready to run bundles for TensorRT. Those for a CPU need: {cpu}"),
        ({"tensorrt", "cuda.bindings"}, "Ready to run bundles for TensorRT. Those for a CPU need: {cpu}"),
        ({"tensorrt_rtx_bindings"}, "Ready to build engines. Running them needs cuda-python: {tensorrt}"),
        ({"cuda.bindings"}, "Bundles need an extra above. To run them on a CPU: {cpu}"),
    ],
)
def test_doctor_knows_an_environment_for_tensorrt(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, installed: set[str], last_line: str
) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if "onnxruntime" in name else version(name))
    monkeypatch.setattr(doctor, "_is_there", installed.__contains__)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    commands = {extra: install_command(extra) for extra in ("cpu", "tensorrt")}
    assert run(capsys, "doctor")[0].splitlines()[-1] == last_line.format(**commands)


def test_doctor_never_advises_one_onnxruntime_over_another(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = json.loads(run(capsys, "doctor", "--json")[0])["missing_extras"]
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu && " in missing["cuda"]
    versions = {"onnxruntime": None, "onnxruntime-gpu": "1.31.1"}
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else version(name))
    assert "cpu" not in json.loads(run(capsys, "doctor", "--json")[0])["missing_extras"]


def test_doctor_warns_of_two_onnxruntimes(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == "onnxruntime-gpu" else installed(name))
    assert "WARNING: onnxruntime and onnxruntime-gpu are both installed" in run(capsys, "doctor")[0]


def test_doctor_survives_a_broken_onnxruntime(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out, _ = run(capsys, "doctor")
    assert "WARNING: onnxruntime is installed but cannot be imported (its files are gone)" in out
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr("importlib.import_module", lambda name: types.ModuleType(name))
    out, _ = run(capsys, "doctor")
    for module in ("onnxruntime", "openvino"):
        assert f"{module}, which is installed but cannot be imported (parts of it are missing)" in out


def test_doctor_finds_gpus(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 8.9, 580.65.06'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpu = "NVIDIA L4 (23034 MiB, compute capability 8.9, driver 580.65.06)"
    assert json.loads(run(capsys, "doctor", "--json")[0])["gpus"] == [gpu]


def test_demo_needs_a_folder(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VarcoError, match=r"cannot be made: .*Choose another folder"):
        demonstrate(tiny_bundle, tmp_path / "file", can_read=True)


def test_demo_without_its_bundle_says_what_to_do(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_cli.commands.demo.BUNDLE", tmp_path / "nothing")
    assert "In a checkout of the project, type: make demo" in fail(capsys, 1, "demo", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def plain(text: str) -> list[str]:
    """Lines as a terminal shows them, without colours."""
    return re.sub("\x1b\\[[0-9;]*m", "", text).splitlines()


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--kernels"], ["verify"]])
def test_tables_fit_80_columns(
    tiny_bundle: Path, arguments: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in (("COLUMNS", "80"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tiny_bundle.parent)
    out, _ = run(capsys, arguments[0], tiny_bundle.name, *arguments[1:])
    assert [line for line in plain(out) if len(line) > 80] == []


def test_headings_of_numbers_wrap_where_a_table_is_wide(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seven columns of `varco engines`."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in (("COLUMNS", "80"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    header = ("", "weights", "read per pass", "on disk", "built in", "peak memory", "and mapped files")
    row = ("sm120/decoder", "int4", "8.37 GB", "8.23 GB", "362.1 s", "15.7 GB", "7.3 GB")
    console.print_table("TensorRT for RTX 1.7.1.116", header, [row], right=(2, 3, 4, 5, 6))
    *_, last = lines = plain(capsys.readouterr().out)
    assert last.split() == " ".join(row).split()
    assert max(map(len, lines)) <= 80
