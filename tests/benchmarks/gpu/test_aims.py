"""What follows from the figures: limits, ratios, aims, the table, and why an aim is missed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.gpu.aims import derive
from benchmarks.gpu.conclusions import conclusions
from benchmarks.gpu.table import table


def h200() -> dict[str, Any]:
    """A report of made-up figures: limits of 1 TB/s and 100 TFLOP/s."""
    prefill = {"ms": 200.0, "operations": 10 * 10**12}
    picture = {"vision_ms": 1.0, "packing_ms": 0.5, "prefill": prefill, "first_token_ms": 201.5, "ttft_ms": 210.0}
    model = {
        "decode": {"1024": {"ms": 2.0, "bytes": 10**9}},
        "vision": {"10": {"ms": 16.0, "ms_per_tile": 1.6, "operations": 8 * 10**11}},
        "pictures": {"2.9k": picture},
        "loop_overhead_ms": 0.12,
        "needed_memory_bytes": 12_000_000_000,
        "peak_memory_bytes": 12_340_000_000,
        "load_s": 9.0,
    }
    peer = {
        "dtype": "bf16",
        "decode": {"dynamic": {"1024": {"ms": 20.0}}, "static": {"1024": {"ms": 5.0}, "4096": {"left_out": "no room"}}},
        "pictures": {"2.9k": {"first_token_ms": 403.0}},
        "peak_memory_bytes": 24_680_000_000,
    }
    slow = json.loads(json.dumps(model))
    slow["decode"]["1024"]["ms"] = 8.0
    kernel = {"kernel": "gemv", "count": 336.0, "ms": 6.5}
    slow["kernels"] = {"decode": {"wall_ms": 8.0, "total_ms": 7.0, "gap_ms": 1.0, "kernels": [kernel]}}
    return {
        "machine": {"gpu": "NVIDIA H200", "onnxruntime": "1"},
        "max_context": 10_240,
        "limits": {"copy_bytes_per_s": 1e12, "matrix_ops_per_s": 1e14},
        "shapes": {"14b": {"models": {"int4": model, "bf16": slow}, "transformers": peer}},
    }


def test_limits_ratios_and_aims_follow_from_the_figures() -> None:
    report = h200()
    derive(report)
    model = report["shapes"]["14b"]["models"]["int4"]
    assert (model["decode"]["1024"]["limit_ms"], model["decode"]["1024"]["fraction_of_limit"]) == (1.0, 0.5)
    assert (model["vision"]["10"]["limit_ms"], model["vision"]["10"]["fraction_of_limit"]) == (8.0, 0.5)
    assert model["pictures"]["2.9k"]["prefill"]["fraction_of_limit"] == 0.5
    assert report["shapes"]["14b"]["times_transformers"]["int4"] == {
        "decode": {"1024": {"dynamic": 10.0, "static": 2.5}},
        "pictures": {"2.9k": 2.0},
        "memory": 2.0,
    }
    aims = {aim["what"]: aim for aim in report["aims"]}
    assert {what: aim["met"] for what, aim in aims.items()} == {
        "int4: a token at 1024": True,
        "int4: 10 tiles of vision": True,
        "int4: prefill of 2.9k tokens": False,
        "int4: memory, % from what is announced": True,
        "bf16: a token at 1024": False,
        "bf16: 10 tiles of vision": True,
        "bf16: prefill of 2.9k tokens": False,
        "bf16: memory, % from what is announced": True,
        "int4: times transformers' decode speed at 1024, static cache": False,
    }
    assert aims["int4: a token at 1024"] == {
        "what": "int4: a token at 1024",
        "aim_ms": 3.0,
        "got_ms": 2.0,
        "limit_ms": 1.0,
        "met": True,
        "model": "int4",
        "phase": "decode",
        "bytes": 10**9,
    }


def test_on_an_h100_a_token_has_as_much_more_time_as_its_memory_is_slower() -> None:
    report = h200()
    report["machine"]["gpu"] = "NVIDIA H100 80GB HBM3"
    derive(report)
    aims = {aim["what"]: aim for aim in report["aims"]}
    assert aims["int4: a token at 1024"]["aim_ms"] == pytest.approx(3.0 * 4.8 / 3.35)
    assert aims["int4: 10 tiles of vision"]["aim_ms"] == 17.0


def test_answers_at_once_have_aims_beside_the_limit() -> None:
    report = h200()
    steps = {
        str(count): {"ms": ms, "tokens_per_s": 1e3 * count / ms, "bytes": (10 + count) * 10**8}
        for count, ms in ((1, 2.0), (8, 3.2), (16, 6.4))
    }
    arrivals = {"gaps": 99, "gap_p50_ms": 3.3, "gap_p99_ms": 35.0, "max_stall_ms": 30.0}
    report["shapes"]["14b"]["rows"] = {"int4": {"steps": steps, "arrivals": arrivals, "drawn": {"8": {"ms": 3.9}}}}
    derive(report)
    assert steps["8"]["times_one"] == pytest.approx(5.0)
    assert steps["8"]["limit_times"] == pytest.approx(8 * 11 / 18)
    aims = {aim["what"]: aim["met"] for aim in report["aims"]}
    assert aims["int4: 8 answers at once, times the tokens of one"]
    assert not aims["int4: 16 answers at once, times the tokens of one"]
    assert not aims["int4: 99th percentile between tokens while pictures arrive, ms"]
    text = "\n".join(table(report))
    assert "14b int4, 8 at once: 3.20 ms, 2,500 tokens/s, 5.00x one (limit 4.89x)" in text
    assert "14b int4, gaps while pictures arrive: 3.30 ms, 99th percentile 35.00 ms, at most" in text


def test_a_missed_aim_is_explained_by_bytes_kernels_and_gaps() -> None:
    report = h200()
    report["steps"] = {"environment": {"status": "done", "s": 1.0}}
    derive(report)
    lines = list(conclusions(report))
    at = next(at for at, line in enumerate(lines) if line.startswith("bf16: a token at 1024"))
    assert lines[0] == "step environment: done, 1.0 s"
    assert lines[at : at + 4] == [
        "bf16: a token at 1024: aim 7.7 ms, got 8.0, limit 1.0: missed",
        "    it reads 1.00 GB, so 0.12 TB/s",
        "    7.00 ms in kernels, 1.00 ms between them; the 1 largest are launched 336 times",
        "    6.500 ms in 336 x gemv",
    ]
    assert "    no kernels were profiled for it" in lines
    assert "int4: a token at 1024: aim 3.0 ms, got 2.0, limit 1.0: met" in lines
    assert "int4: memory, % from what is announced: aim 5.0, got 2.8: met" in lines


def test_aims_are_those_of_two_gpus_and_figures_may_be_missing() -> None:
    report = h200()
    report["machine"]["gpu"] = "NVIDIA A100"
    derive(report)
    assert report["aims"] == []
    sparse: dict[str, Any] = {"machine": {"gpu": "NVIDIA H200"}, "shapes": {"14b": {"models": {"int4": {}}}}}
    derive(sparse)
    assert (sparse["aims"], sparse["shapes"]["14b"]["times_transformers"]) == ([], {})


def test_the_table_has_every_figure_and_what_is_missing() -> None:
    report = h200()
    derive(report)
    text = "\n".join(" ".join(line.split()) for line in table(report))
    assert "NVIDIA H200, onnxruntime 1, 10,240 positions" in text
    assert "copy bandwidth, GB/s 1,000.00" in text
    assert "14b int4 bf16 transformers dynamic transformers static" in text
    assert "ms per token at 1,024 2.00 50% 2.5x 8.00 12% 0.6x 20.00 5.00" in text
    assert "ms per token at 4,096 - - - -" in text
    assert "vision, ms for 10 tiles 16.00 50% 16.00 50% - -" in text
    assert "2.9k tokens: prefill, ms 200.00 50% 200.00 50% - -" in text
    assert "2.9k tokens: first token, ms 201.50 2.0x 201.50 2.0x 403.00 -" in text
    assert "peak memory, GB 12.34 12.34 24.68 -" in text
    assert "memory announced, GB 12.00 12.00 - -" in text
    assert "14b bf16, decode, kernels: 8.00 ms, of which 7.00 in kernels and 1.00 between them" in text
    assert "gemv 336 x 6.500 ms" in text
    assert "left out: shapes 14b transformers decode static 4096: no room" in text
