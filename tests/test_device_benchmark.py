"""`benchmarks/device.py` at tiny size on the CPU: that it runs to its end and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import device
from benchmarks.device_model import bundle_bytes, make_bundle
from varco_runtime import Varco
from varco_runtime.bundle import read_manifest


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "device.json"
    common = ["--shape", "tiny", "--provider", "cpu", "--folder", str(tmp_path / "work"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["device.py", *common, "--max-context", "128", *arguments])
    status = device.main()
    return status, json.loads(out.read_text()) if out.exists() else {}


def test_steps_may_be_run_apart_and_fill_one_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, tmp_path, "--steps", "limits")[0] == 0
    status, report = run(monkeypatch, tmp_path, "--steps", "models", "--decoder", "int4")
    assert status == 0
    assert set(report["limits"]) == {"copy_bytes_per_s", "matrix_ops_per_s"}
    (decode,) = report["models"]["int4"]["decode"].values()
    assert set(decode) == {"ms_per_token", "limit_ms", "fraction_of_limit"}
    assert report["models"]["int4"]["vision_10_tiles_ms"] > 0
    assert "do not fit --max-context" in report["models"]["int4"]["picture_7.3k"]["left_out"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["tiny"], "the bundle is deleted"


def test_another_shape_or_machine_starts_an_empty_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "_limits", lambda options: {"copy_bytes_per_s": 1.0, "matrix_ops_per_s": 1.0})
    monkeypatch.setattr(device, "_machine", lambda options: {"onnxruntime": "1"})
    monkeypatch.setattr(device, "make_checkpoint", lambda *args: tmp_path)
    monkeypatch.setattr(device, "measure_transformers", lambda *args: {"left_out": "not here"})
    run(monkeypatch, tmp_path, "--steps", "limits")
    assert "limits" in run(monkeypatch, tmp_path, "--steps", "transformers")[1]
    monkeypatch.setattr(device, "_machine", lambda options: {"onnxruntime": "2"})
    _, report = run(monkeypatch, tmp_path, "--steps", "transformers")
    assert (report["machine"], "limits" in report) == ({"onnxruntime": "2"}, False)
    assert "has another machine: starting anew" in capsys.readouterr().err
    run(monkeypatch, tmp_path, "--steps", "limits")
    _, report = run(monkeypatch, tmp_path, "--steps", "transformers", "--shape", "0.5b")
    assert (report["shape"], "limits" in report) == ("0.5b", False)


def test_the_table_has_packing_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    picture = {"first_token_ms": 6.5, "vision_ms": 1.0, "packing_ms": 0.5, "prefill_ms": 5.0}
    model = {"load_s": 1.0, "loop_overhead_ms": 0.1, "vision_1_tiles_ms": 1.0, "vision_10_tiles_ms": 9.0}
    model |= {"memory_bytes": 12_340_000_000, "decode": {}, "picture_2.9k": picture, "picture_7.3k": picture}
    device._print({"shape": "14b", "machine": {"onnxruntime": "1"}, "models": {"int4": model}})
    text = capsys.readouterr().out
    assert "6.5 ms to the first token: 1.0 vision, 0.50 packing, 5.0 prefill" in text
    assert "12.34 GB of the GPU's" in text


def test_a_missing_transformers_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, report = run(monkeypatch, tmp_path, "--steps", "transformers")
    assert (status, report["transformers"]) == (0, {"left_out": "torch is not installed"})


def test_too_little_disk_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10 << 30})())
    monkeypatch.setattr(
        sys,
        "argv",
        ["device.py", "--folder", str(tmp_path / "work"), "--out", str(tmp_path / "o"), "--decoder", "bf16"],
    )
    assert device.main() == 1
    assert "has 10.7 GB free, expected 34." in capsys.readouterr().err
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("decoder", ["fp16", "int8", "int4"])
def test_a_model_of_random_blocks_keeps_its_activations_in_size(tmp_path: Path, decoder: str) -> None:
    bundle = make_bundle(tmp_path, "tiny", decoder, 128)
    varco = Varco.load(bundle, provider="cpu", threads=1)
    logits = varco.backend.decode_step(3, 0)
    assert np.isfinite(logits).all()
    assert 0.01 < np.abs(logits).max() < 1e3


def test_the_size_that_is_checked_is_that_of_the_bundle(tmp_path: Path) -> None:
    for decoder in ("fp16", "int4", "fp8"):
        files = read_manifest(make_bundle(tmp_path, "tiny", decoder, 128)).files
        weights = sum(facts.size for name, facts in files.items() if name.endswith((".data", ".bin")))
        # Rotary tables, norms and the alignment of every tensor to a page count here and not at full size.
        assert 0.4 * weights < bundle_bytes("tiny", decoder) <= weights, decoder
