"""The benchmarks run and report what they should, on tiny weights and the peers of this environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import charts, peers, scaling, startup
from benchmarks.document import write_json
from benchmarks.machine import line_fit, power_fit, read_bandwidth, spread
from benchmarks.peer import contest
from benchmarks.peer.aims import make_aims, print_aims
from benchmarks.peer.contest import Contestant
from benchmarks.peer.llama_cpp import runs_repacked
from benchmarks.peer.material import Facts, make_material, write_text_checkpoint
from benchmarks.peer.ours import variant_parts
from benchmarks.peer.process import PeerError, PeerProcess
from benchmarks.peer.protocol import prompt_ids
from varco_runtime.errors import UsageError


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("material")


@pytest.fixture(autouse=True)
def _brief_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of reading, several times per report, says no more here than a hundredth."""
    for module in (contest, scaling):
        monkeypatch.setattr(module, "read_bandwidth", lambda threads: read_bandwidth(threads, seconds=0.01))


def run(main: Any, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, dict[str, Any]]:
    status = main([str(argument) for argument in arguments])
    out = capsys.readouterr().out
    return status, out, json.loads(out.splitlines()[-1])


QUICK = ("--here", "--shape", "tiny", "--rounds", 1, "--steps", 3, "--pause", 0, "--threads", 1)
VARIANTS = ("fp32", "int4-a8-head4-g128", "int4-a8-head4-g128+varco", "vision-fp32", "vision-int8")


def test_our_peer_runs_and_the_report_is_written(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "peers.json"
    arguments = (*QUICK, "--peers", "ours", "--variants", *VARIANTS, "--contexts", 40, 80, "--material", material)
    status, text, report = run(peers.main, capsys, *arguments, "--out", out)
    assert status == 0
    assert report == json.loads(out.read_text())
    assert report["left_out"] == []
    assert [row["variant"] for row in report["text"]] == list(VARIANTS[:3])
    assert [row["variant"] for row in report["vision"]] == ["fp32", "int8"]
    for row in report["text"]:
        assert set(row["decode_ms"]) == set(row["prefill_s"]) == {"40", "80"}
        assert all(0 < one["min"] <= one["median"] <= one["max"] for one in row["decode_ms"].values())
        assert row["peak_rss_bytes"] > row["model_bytes"] > 0
    assert report["text"][0]["agreement"] == {"logits_cosine": 1.0, "same_tokens": 3}
    assert all(row["cosine"] > 0.99 for row in report["vision"])
    assert 0 < report["limit_decode_ms"]["40"] < report["limit_decode_ms"]["80"]
    assert "| ours int4-a8-head4-g128+varco |" in text
    assert "| limit |" in text


def test_a_whole_question_is_asked_twice(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*QUICK, "--peers", "ours", "--variants", "question", "--question", "--contexts", 40)
    status, text, report = run(peers.main, capsys, *arguments, "--material", material)
    assert status == 0
    assert report["left_out"] == []
    sizes, (row,) = report["question"]["sizes"], report["question"]["rows"]
    assert row["variant"] == "question"
    assert not row["is_sum"]
    first, second = ({part: values["median"] for part, values in row[name].items()} for name in ("first", "second"))
    assert first["new_tokens"] == second["new_tokens"] == sizes["new_tokens"] == 300
    assert first["prompt_tokens"] == sizes["positions"] > sizes["tiles"] > 1
    assert second["prompt_tokens"] - second["cached_tokens"] == sizes["new_positions"] < sizes["positions"] / 2
    assert first["vision_s"] > 0 == second["vision_s"]
    for parts in (first, second):
        assert parts["vision_s"] + parts["prefill_s"] < parts["first_token_s"] < parts["total_s"]
        assert parts["total_s"] == pytest.approx(parts["first_token_s"] + parts["decode_s"], abs=1e-3)
    assert "| ours question, second |" in text


def test_a_variant_names_bundle_provider_and_precision() -> None:
    assert variant_parts("int4-a8") == ("int4-a8", "cpu", "auto")
    assert variant_parts("int4-a8+varco") == ("int4-a8", "cpu", "auto")
    assert variant_parts("vision-int8@openvino") == ("vision-int8", "openvino", "auto")
    assert variant_parts("int4-a8@openvino-fp32") == ("int4-a8", "openvino", "fp32")


def test_the_aims_compare_chosen_rows_with_the_best_peer(capsys: pytest.CaptureFixture[str]) -> None:
    def text(peer: str, variant: str, decode_ms: float, growth_ms: float, prefill_s: float) -> dict[str, Any]:
        return {
            "peer": peer,
            "variant": variant,
            "decode_ms": {"512": {"median": decode_ms}, "1512": {"median": decode_ms + growth_ms}},
            "prefill_s": {"512": {"median": prefill_s}, "1512": {"median": 4 * prefill_s}},
            "settings": {"kv_cache": "fp32"},
            "peak_rss_bytes": 300,
            "model_bytes": 100,
            "max_context": 5,
        }

    rows = [
        text("ours", "int4", 1, 0, 0.1),  # lucky, but not the chosen one
        text("ours", "int4-a8-head4-g128", 9, 3, 4),
        text("llama_cpp", "q4-head4", 12, 3, 8),
        text("openvino", "int4", 18, 2, 2),
    ]
    vision = [
        {"peer": peer, "variant": variant, "cosine": cosine, "vision_s": {"median": seconds}}
        for peer, variant, cosine, seconds in (
            ("ours", "int8@openvino", 0.9999, 0.5),
            ("openvino", "int8", 0.9990, 0.1),
            ("openvino", "bf16", 0.9999, 1.0),
        )
    ]
    questions = [
        {"peer": "ours", "variant": variant, "first": {"first_token_s": {"median": seconds}}}
        for variant, seconds in (("question", 40.0), ("question@openvino", 10.0))
    ]
    report = {
        "contexts": [512, 1512],
        "machine": {"instructions": ["AVX2", "AMX"]},
        "read_bytes_per_s": {"median": 8e6},
        "text": rows,
        "vision": vision,
        "question": {"rows": questions},
    }
    facts = Facts("tiny", 500, 56, 100, kv_values_per_token=2, num_layers=1, hidden_size=2)
    aims = make_aims(report, facts)
    found = [(one["cpu"], one["openvino"], one["best_peer"]) for one in aims]
    assert found == [
        (2.0, None, "openvino int4"),
        (2.0, None, "openvino int4"),
        (None, 0.5, "openvino bf16"),
        (0.75, None, "llama_cpp q4-head4"),
        (0.8, None, "llama_cpp q4-head4"),
        (3.0, None, None),
        (1.0, 0.25, None),
        (2.143, None, None),
    ]
    assert [one["aim"] for one in aims] == [1.0, 1.0, 1.0, 0.74, 0.7, 2.0, 0.3, 1.15]
    print_aims(aims)
    assert "| decode at 512, over the best peer | <= 0.74 | 0.75 |  | llama_cpp q4-head4 |" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "is_repacked"), [(0, True), (139, False)])
def test_llama_cpp_runs_without_what_kills_it(tmp_path: Path, status: int, is_repacked: bool) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)
    assert runs_repacked(tmp_path / "some.gguf", 1, str(python)) is is_repacked


def test_a_peer_that_does_not_run_is_left_out_with_one_line(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The environment of this project never holds onnxruntime-genai.
    arguments = (*QUICK, "--peers", "onnxruntime_genai", "--contexts", 40, "--no-vision", "--material", material)
    status, text, report = run(peers.main, capsys, *arguments)
    assert status == 0
    assert [(one["peer"], one["variant"]) for one in report["left_out"]] == [("onnxruntime_genai", "int4")]
    assert "\n" not in report["left_out"][0]["reason"]
    assert f"Left out: onnxruntime_genai int4: {report['left_out'][0]['reason']}" in text
    assert report["text"] == []


def test_transformers_and_ours_run_the_same_network(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the reference needs torch")
    pytest.importorskip("transformers", reason="the reference needs transformers")
    arguments = (*QUICK, "--check", "--peers", "ours", "transformers", "--material", material)
    status, _, report = run(peers.main, capsys, *arguments)
    assert status == 0
    assert report["left_out"] == []
    assert report["errors"]["transformers fp32"] == 0
    assert 0 <= report["errors"]["ours fp32"] < 1e-4


def test_the_check_tells_another_network_apart(capsys: pytest.CaptureFixture[str]) -> None:
    def contestant(name: str, logits: list[float] | None, tokens: list[int]) -> Contestant:
        answer = {64: {"logits": logits, "tokens": tokens}}
        return Contestant(name, "fp32", None, {}, answers=answer)  # type: ignore[arg-type]

    right = contestant("transformers", [1.0, 2.0], [1, 2])
    assert peers._check([right, contestant("ours", [1.0, 2.0001], [1, 2])], []) == 0
    assert peers._check([right, contestant("ours", [2.0, 1.0], [1, 2])], []) == 1
    assert peers._check([right, contestant("openvino", None, [1, 2])], []) == 0
    assert peers._check([right, contestant("openvino", None, [1, 3])], []) == 1
    assert "by its tokens" in capsys.readouterr().out


def test_a_failing_and_a_hanging_request_are_peer_errors(material: Path, tmp_path: Path) -> None:
    make_material(material, "tiny")
    with open(tmp_path / "log", "w") as log:
        with (
            PeerProcess(Path(sys.executable), "benchmarks.peer.ours", log) as process,
            pytest.raises(PeerError, match=r"^load: BundleError: [^\n]*$"),
        ):
            process.request(60, do="load", material=str(material), variant="none", max_context=64, threads=1)
        with (
            PeerProcess(Path(sys.executable), "benchmarks.peer.ours", log) as process,
            pytest.raises(PeerError, match="took more than 0 s"),
        ):
            process.request(0.01, do="about")
        with (
            PeerProcess(Path(sys.executable), "benchmarks.peer.nobody", log) as process,
            pytest.raises(PeerError, match="ended with status 1"),
        ):
            process.request(60, do="about")


def test_the_text_checkpoint_is_the_decoder_byte_for_byte(material: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="reads the checkpoint independently")
    torch = pytest.importorskip("torch", reason="holds bf16")
    make_material(material, "tiny")
    write_text_checkpoint(material / "checkpoint", tmp_path / "text")
    with (
        safetensors.safe_open(material / "checkpoint" / "model.safetensors", "pt") as whole,
        safetensors.safe_open(tmp_path / "text" / "model.safetensors", "pt") as text,
    ):
        wanted = {name for name in whole.keys() if name.startswith("language_model.")}  # noqa: SIM118 - no dict
        assert {f"language_model.{name}" for name in text.keys()} == wanted  # noqa: SIM118
        for name in text.keys():  # noqa: SIM118
            assert torch.equal(text.get_tensor(name), whole.get_tensor(f"language_model.{name}"))


def test_the_limit_of_the_half_billion_shape_is_its_weights_at_four_bits() -> None:
    linears = 24 * (2 * 896 * (896 + 128) + 3 * 896 * 4864) + 152000 * 896
    facts = Facts("0.5b", 152000, 384, linears, kv_values_per_token=2 * 24 * 128, num_layers=24, hidden_size=896)
    assert facts.int4_bytes(0) == linears / 2
    assert facts.int4_bytes(2048) - facts.int4_bytes(0) == 2048 * 12288


def test_prompts_repeat_by_seed_and_differ_by_length() -> None:
    assert np.array_equal(prompt_ids(1, 64, 500), prompt_ids(1, 64, 500))
    assert not np.array_equal(prompt_ids(1, 64, 500), prompt_ids(2, 64, 500))
    assert not np.array_equal(prompt_ids(1, 64, 500), prompt_ids(1, 128, 500)[:64])
    assert prompt_ids(1, 4096, 500).max() == 499


def test_scaling_fits_every_growth(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scaling.json"
    arguments = ("--shape", "tiny", "--contexts", 32, 64, 96, "--tiles", 1, 2, "--rounds", 1, "--steps", 2)
    status, text, report = run(scaling.main, capsys, *arguments, "--threads", 1, "--material", material, "--out", out)
    assert status == 0
    assert report == json.loads(out.read_text())
    names = "decode by context", "prefill by length", "decode by size", "vision by tiles", "preprocessing by tiles"
    assert tuple(study["name"] for study in report["studies"]) == names
    for study in report["studies"]:
        assert len(study["x"]) == len(study["y"]) >= 2
        assert set(study["fit"]) == {"line", "power"}
    assert report["studies"][0]["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert "exponent" in text


def test_startup_reports_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "startup.json"
    status, text, report = run(startup.main, capsys, "--runs", 1, "--out", out)
    assert status == 0
    assert report == json.loads(out.read_text())
    seconds = {name: values["median"] for name, values in report["seconds"].items()}
    assert set(seconds) == set(startup.MEANINGS)
    parts = ("interpreter_s", "import_s", "load_s", "first_token_s")
    assert seconds["total_s"] == pytest.approx(sum(seconds[name] for name in parts), abs=0.05)
    assert text.count("\n| ") == len(seconds) + 1


def test_fits_find_the_growth_they_are_given() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    assert line_fit(x, [3 + 2 * at for at in x]) == pytest.approx({"slope": 2, "intercept": 3, "r2": 1})
    assert power_fit(x, [5 * at**1.5 for at in x]) == pytest.approx({"exponent": 1.5, "factor": 5, "r2": 1})
    assert line_fit(x, [1.0, -1.0, -1.0, 1.0])["r2"] < 0.5


def test_spread_is_the_median_between_least_and_largest() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0}


def test_bandwidth_is_a_positive_rate() -> None:
    assert read_bandwidth(threads=1, seconds=0.01) > 0


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert list(tmp_path.iterdir()) == []
    write_json(path, {"good": 1})
    assert json.loads(path.read_text()) == {"good": 1}


def test_charts_are_drawn_of_reports(tmp_path: Path) -> None:
    rows = [
        {"peer": peer, "variant": "int4", "peak_rss_bytes": 500 << 20, "decode_ms": {"512": ms, "2048": ms}}
        for peer, ms in (("ours", {"median": 10.0}), ("llama_cpp", {"median": 12.0}))
    ]
    limit = {"512": 6.4, "2048": 7.0}
    report = {"benchmark": "peers", "shape": "tiny", "threads": 2, "contexts": [512, 2048], "text": rows}
    write_json(tmp_path / "peers.json", {**report, "limit_decode_ms": limit})
    study = scaling.study("decode by size", "MB", "ms", [(1.0, lambda: 2.0), (2.0, lambda: 4.0)], 1, limit_slope=1.0)
    assert study["fit"]["line"]["slope"] == pytest.approx(2)
    write_json(tmp_path / "scaling.json", {"benchmark": "scaling", "studies": [study]})
    assert charts.main([str(tmp_path / "peers.json"), str(tmp_path / "scaling.json")]) == 0
    drawn = sorted(path.name for path in (tmp_path / "plots").glob("*.png"))
    assert drawn == ["peers-context.png", "peers-memory.png", "scaling-decode-by-size.png"]
    for name in drawn:
        with Image.open(tmp_path / "plots" / name) as image:
            assert len(image.getcolors(1 << 20) or []) > 10
    write_json(tmp_path / "other.json", {"benchmark": "other"})
    with pytest.raises(UsageError, match="is a report of 'other', expected one of: peers, samples, scaling, serve"):
        charts.main([str(tmp_path / "other.json")])
