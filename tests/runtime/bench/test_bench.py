"""`varco bench`: what it measures, that it decodes a fixed number of tokens, and that it keeps to its budget."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.doubles.libcuda import Libcuda
from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import add_engines, install
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, VerifyingBackend
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.bench import bandwidth, report
from varco_runtime.bench.limit import DEVICE_BUFFER_BYTES, Limit, measure_limit
from varco_runtime.bench.other_load import OtherLoad
from varco_runtime.bench.report import rows
from varco_runtime.bench.run import Options, Result, run
from varco_runtime.bench.samples import Percentiles, Samples, Spread
from varco_runtime.bench.stages import Plan, measure
from varco_runtime.bench.stopwatch import Budget, watch
from varco_runtime.bench.summary import summarize
from varco_runtime.bench.workload import Workload
from varco_runtime.errors import ContextError
from varco_runtime.picture.loading import load_picture

LIMIT = Limit("counting", 40e9, 30e9, 10, 2, 1 << 28)
SPREAD = {"median", "min", "max", "std", "p90", "p99", "count", "is_reckoned"}
SCHEMA: dict[str, set[str]] = {
    "": {
        *("benchmark", "format_version", "date", "bundle", "provider", "device", "threads", "max_context", "question"),
        *("measured", "limit", "check_s", "load_s", "stages", "prefill_tokens_per_s", "decode", "ask", "memory"),
        *("traffic_per_token", "dominant", "notes"),
    },
    "bundle": {"name", "sha256", "bytes", "model", "num_parameters", "precision"},
    "bundle.precision": {"vision", "projector", "decoder"},
    "question": {
        *(
            "copies",
            "is_video",
            "picture",
            "width",
            "height",
            "tiles",
            "prompt",
            "image_tokens",
            "prompt_tokens",
            "new_tokens",
        ),
    },
    "measured": {"repetitions", "seconds_given", "tiles", "prefill_tokens", "is_whole", "other_cores"},
    "limit": {"how", "bytes_per_s", "median_bytes_per_s", "passes", "threads", "buffer_bytes"},
    "stages": {
        *("preprocess_s", "vision_tile_s", "vision_s", "projector_s", "packing_s", "prefill_s", "ttft_s", "decode_s"),
    },
    **{
        f"stages.{name}_s": SPREAD
        for name in ("preprocess", "vision_tile", "vision", "projector", "packing", "prefill", "ttft", "decode")
    },
    "prefill_tokens_per_s": SPREAD,
    "decode": {"tokens_per_s", "tpot_s", "itl_s", "loop_s", "context_tokens"},
    "decode.tokens_per_s": SPREAD,
    "decode.tpot_s": SPREAD,
    "decode.loop_s": SPREAD,
    "decode.itl_s": {"p50", "p90", "p99", "std", "count"},
    "ask": {"ttft_s", "tpot_s", "total_s", "cached_tokens", "completion_tokens"},
    "memory": {"host_peak_bytes", "device_bytes", "kv_bytes_max_context"},
    "traffic_per_token": {"weight_bytes", "kv_bytes", "total_bytes", "fraction", "is_cached"},
    "dominant": {"stage", "share", "shares", "line"},
    "dominant.shares": {"preprocessing", "vision", "projector", "packing", "prefill", "decode", "loop"},
}
"""The keys of each object of the JSON document: who reads it relies on them."""


def noise(size: tuple[int, int] = (130, 90)) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def options(bundle: Path, **changes: Any) -> Options:
    given: dict[str, Any] = {"repetitions": 2, "new_tokens": 6, "threads": 1, "max_context": 2048} | changes
    return Options(bundle, load_picture(noise()), "noise", **given)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def result(tiny_bundle: Path) -> Result:
    return run(options(tiny_bundle), silent, find_limit=lambda *_: LIMIT)


def objects(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a document, with the names that lead to it."""
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            yield from objects(child, f"{path}.{key}".lstrip("."))


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_the_fields_it_has_always_had(result: Result) -> None:
    document = json.loads(json.dumps(result.to_dict()))
    assert document["format_version"] == 1
    assert {path: set(value) for path, value in objects(document)} == SCHEMA


def test_every_figure_is_there_and_positive(result: Result) -> None:
    document = result.to_dict()
    assert document["notes"] == []
    for path, value in objects(document):
        for key, figure in value.items():
            if (path, key) == ("memory", "device_bytes"):
                assert figure is None
            elif key == "other_cores":
                assert figure is None or figure >= 0
            elif isinstance(figure, int | float) and not isinstance(figure, bool):
                assert figure > 0, f"{path}.{key} is {figure}"
            else:
                assert figure is not None, f"{path}.{key}"


def test_the_figures_agree_with_each_other(result: Result, tiny_bundle: Path) -> None:
    document, manifest = result.to_dict(), result.manifest
    question, traffic = document["question"], document["traffic_per_token"]
    answer = result.samples.answer
    assert answer is not None
    assert question["prompt_tokens"] == answer.usage.prompt_tokens == document["measured"]["prefill_tokens"]
    assert question["image_tokens"] == answer.usage.image_tokens
    assert document["ask"]["completion_tokens"] == question["new_tokens"] == 6
    assert document["decode"]["itl_s"]["count"] == 2 * 6
    # The step in the middle of 6 sees 3.5 tokens of the answer.
    assert document["decode"]["context_tokens"] == question["prompt_tokens"] + 3.5
    assert traffic["weight_bytes"] == manifest.decoder.weight_bytes
    assert traffic["kv_bytes"] == round(manifest.kv_bytes_per_token * document["decode"]["context_tokens"])
    rate = traffic["total_bytes"] / document["decode"]["itl_s"]["p50"]
    assert traffic["fraction"] == pytest.approx(rate / LIMIT.bytes_per_s)
    assert sum(document["dominant"]["shares"].values()) == pytest.approx(1)
    assert document["dominant"]["share"] == max(document["dominant"]["shares"].values())
    assert document["bundle"]["bytes"] == sum(
        path.stat().st_size for path in tiny_bundle.iterdir() if path.name != "bundle.json"
    )


def test_spreads_and_rates() -> None:
    spread = Spread.of([4.0, 1.0, 2.0])
    assert spread == Spread(2.0, 1.0, 4.0, pytest.approx(1.5275, abs=1e-4), pytest.approx(3.6), pytest.approx(3.96), 3)  # type: ignore[arg-type]
    one = Spread.of([4.0], is_reckoned=True)
    assert one == Spread(4.0, 4.0, 4.0, None, 4.0, 4.0, 1, True)
    assert Spread.of([]) is None
    found = Percentiles.of([1.0] * 90 + [11.0] * 10)
    assert found == Percentiles(1.0, pytest.approx(2.0), 11.0, pytest.approx(3.0151, abs=1e-4), 100)  # type: ignore[arg-type]
    assert Percentiles.of([]) is None


def test_a_slow_tower_is_named_as_what_dominates(tiny_bundle: Path) -> None:
    manifest = Varco.load(tiny_bundle, threads=1).bundle.manifest
    samples = Samples(load_s=1, new_tokens=10, num_tiles=5, prompt_tokens=100, encoded_tiles=2, prefill_tokens=50)
    samples.encode_s, samples.projector_tile_s = [4.0], [0.5]
    samples.prefill_s, samples.itl_s, samples.tpot_s = [1.0], [0.01], [0.01]
    summary = summarize(samples, manifest, None)
    assert summary.stages.vision_s is not None
    assert summary.stages.vision_s.median == pytest.approx(7.5)
    assert summary.dominant.shares == pytest.approx(
        {"vision": 7.5 / 12.1, "projector": 2.5 / 12.1, "prefill": 2 / 12.1, "decode": 0.1 / 12.1}
    )
    assert summary.dominant.line == (
        "Vision dominates, 62% of an answer of 10 tokens: 5 tiles at 1.50 s each. Reckoned from parts, which ~ marks."
    )
    assert summary.traffic.fraction is None


@pytest.mark.parametrize("cache_bytes", [0, 1 << 40])
def test_decoding_is_held_against_the_limit_unless_its_weights_are_cached(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    monkeypatch.setattr("varco_runtime.bench.summary.last_level_cache_bytes", lambda: cache_bytes)
    manifest = Varco.load(tiny_bundle, threads=1).bundle.manifest
    samples = Samples(load_s=1, new_tokens=10, num_tiles=1, itl_s=[0.01], tpot_s=[0.01])
    per_s = manifest.decoder.weight_bytes / 0.01
    line = summarize(samples, manifest, Limit("counting", 2 * per_s, per_s, 1, 1, 1)).dominant.line
    assert "Decode dominates, 100% of an answer of 10 tokens: each token takes 10 ms and reads" in line
    assert ("at 50% of the measured bandwidth" in line) == (cache_bytes == 0)
    assert ("fits the processor's cache" in line) == (cache_bytes > 0)


# --- what is run ------------------------------------------------------------------------------------------------------


def test_an_end_token_ends_nothing(tiny_bundle: Path) -> None:
    varco = Varco.load(tiny_bundle, threads=1)
    eos, step = varco.bundle.manifest.generation.eos_token_ids[0], steps_of(varco).decode_steps

    def ends_at_once(token_ids: Sequence[int], position: int) -> np.ndarray:
        logits = step(token_ids, position).copy()
        logits[:, eos] = 1e9
        return logits

    steps_of(varco).decode_steps = ends_at_once  # type: ignore[method-assign]
    samples = measure(varco, workload(varco), Plan(1, 9, "cpu", 1), Budget(60), silent)
    assert samples.answer is not None
    assert samples.answer.token_ids[1:] == (eos,) * 8
    assert len(samples.itl_s) == 9


def test_a_stopwatch_sees_calls_from_outside_and_leaves_no_trace(tiny_bundle: Path) -> None:
    backend = Varco.load(tiny_bundle, threads=1).backend
    ticks = iter(range(100))
    work = Workload.of(load_picture(noise()), 1, 0, "", Varco.load(tiny_bundle, threads=1).bundle.manifest)
    before = dict(vars(backend))
    with watch(backend, lambda: float(next(ticks))) as calls:
        backend.features(work.pixel_values(), work.plan())  # type: ignore[attr-defined]  # which calls `pack`
        with pytest.raises(ContextError):
            backend.decode_step(5, 10**9)
    assert [call.name for call in calls] == ["features", "decode_step"]
    assert calls[1].args == (5, 10**9)
    assert calls[0].started < calls[0].ended < calls[1].started
    assert dict(vars(backend)) == before


def test_a_question_that_does_not_fit_the_context_is_one_clear_line(tiny_bundle: Path) -> None:
    with pytest.raises(
        ContextError, match=r"The question has \d+ tokens and its answer 400, the context holds 512"
    ) as caught:
        run(options(tiny_bundle, new_tokens=400, max_context=512), silent, find_limit=lambda *_: LIMIT)
    assert "\n" not in str(caught.value)


def test_tensorrt_is_measured_with_its_own_limit_and_memory(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    install(monkeypatch, device)
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: Libcuda())
    bundle = export_bundle(tiny_checkpoint, tmp_path / "rtx", device="tensorrt", decoder="fp32", max_context=1024)
    add_engines(bundle)
    result = run(options(bundle, max_context=None, repetitions=1), silent)
    document = result.to_dict()
    assert document["limit"]["how"] == "copying device memory (read and write)"
    assert document["limit"]["bytes_per_s"] > 0
    assert document["memory"]["device_bytes"] > document["memory"]["kv_bytes_max_context"]
    assert document["stages"]["projector_s"] is None
    assert document["stages"]["vision_s"]["median"] > 0
    assert any(note.startswith("Projector and packing are part of vision") for note in document["notes"])
    assert document["decode"]["itl_s"]["count"] == 6


def test_a_bundle_for_cuda_is_measured_the_way_it_answers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it falls back to the CPU, whose limit then counts; its pixels go to the backend as bytes."""
    seen: list[np.dtype[Any]] = []
    encode = CudaBackend.encode_pixels
    monkeypatch.setattr(
        CudaBackend, "encode_pixels", lambda self, tiles: (seen.append(tiles.dtype), encode(self, tiles))[1]
    )
    bundle = export_bundle(tiny_checkpoint, tmp_path / "cuda", device="cuda", decoder="fp16", max_context=1024)
    asked: list[str] = []

    def find_limit(device: str, *_: Any) -> Limit | str:
        asked.append(device)
        return LIMIT if device == "cpu" else "no GPU"

    result = run(options(bundle, max_context=None, repetitions=1), silent, find_limit=find_limit)
    assert asked == ["cuda", "cpu"]
    assert result.limit == LIMIT
    assert result.to_dict()["provider"].startswith("cpu, slowly")
    assert set(seen) == {np.dtype(np.uint8)}


# --- the limit --------------------------------------------------------------------------------------------------------


def test_the_bandwidth_is_measured_in_a_process_of_its_own() -> None:
    limit = measure_limit("cpu", 2, 0.01)
    assert isinstance(limit, Limit)
    assert limit.bytes_per_s >= limit.median_bytes_per_s > 1e8
    assert limit.buffer_bytes >= bandwidth.MIN_BUFFER_BYTES
    assert limit.passes >= 2


def test_a_limit_that_cannot_be_measured_is_a_note(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    result = run(options(tiny_bundle, repetitions=1), silent)
    document = result.to_dict()
    assert document["limit"] is None
    assert document["traffic_per_token"]["fraction"] is None
    assert document["notes"] == ["The memory's bandwidth was not measured: FileNotFoundError in a process of its own."]


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpus_memory_is_copied_by_the_driver_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither kind of bundle needs cuda-python for it, which is not even imported."""
    driver = Libcuda()
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: driver)
    monkeypatch.setitem(sys.modules, "cuda", None)
    limit = measure_limit(device, 1, 0.01)
    assert isinstance(limit, Limit)
    assert limit.buffer_bytes == DEVICE_BUFFER_BYTES
    assert limit.bytes_per_s >= limit.median_bytes_per_s > 0
    assert driver.copied == DEVICE_BUFFER_BYTES * (1 + 4 * limit.passes)
    assert (driver.allocated, driver.contexts) == (0, 0), "the device keeps memory"


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_that_refuses_the_copy_is_a_note(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_runtime.backends.cuda.driver._load", lambda: Libcuda(failing={"cuMemAlloc_v2": 2}))
    note = measure_limit(device, 1, 0.01)
    assert isinstance(note, str)
    assert note.startswith("The device's bandwidth was not measured: The NVIDIA driver failed in cuMemAlloc")
    assert "\n" not in note


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1M", "junk", "", "2048K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert bandwidth.last_level_cache_bytes(tmp_path) == 2 << 20
    assert bandwidth.last_level_cache_bytes(tmp_path / "nothing") == bandwidth.UNKNOWN_CACHE_BYTES


def test_other_programs_are_told_from_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, now, own = tmp_path / "stat", [10.0], [1.0]
    ticks = os.sysconf("SC_CLK_TCK")

    def busy(seconds: int) -> None:
        stat.write_text(f"cpu  {seconds * ticks} 0 {2 * ticks} 999 999 0 0 {ticks} 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("os.times", lambda: os.times_result((own[0], 0.0, 0.0, 0.0, 0.0)))
    busy(50)
    other_load = OtherLoad(stat)
    now[0], own[0] = 20.0, 9.0  # of the 30 seconds that follow, 8 are this process's
    busy(80)
    assert other_load.cores() == pytest.approx(2.2)
    assert OtherLoad(tmp_path / "nothing").cores() is None


# --- the budget -------------------------------------------------------------------------------------------------------


def steps_of(varco: Varco) -> VerifyingBackend:
    """The backend by the method that all its decode steps go through."""
    assert isinstance(varco.backend, VerifyingBackend)
    return varco.backend


class SlowMachine:
    """A clock that moves when the backend works, by fixed costs; a microsecond when somebody looks.

    A token of the prompt costs `token_s`, and `position_s` for each position before it, which it attends to.
    """

    def __init__(self, varco: Varco, tile_s: float, token_s: float, step_s: float, position_s: float = 0.0) -> None:
        self.now = 0.0
        backend = varco.backend
        encode, prefill, steps = backend.encode, backend.prefill, steps_of(varco).decode_steps

        def slow_encode(pixel_values: np.ndarray) -> Any:
            self.now += tile_s * len(pixel_values)
            return encode(pixel_values)

        def slow_prefill(inputs: PromptInputs, start: int, num_logits: int = 1) -> np.ndarray:
            total = len(inputs.ids)
            self.now += token_s * (total - start) + position_s * (total**2 - start**2) / 2
            return prefill(inputs, start, num_logits)

        def slow_steps(token_ids: Sequence[int], position: int) -> np.ndarray:
            self.now += step_s
            return steps(token_ids, position)

        backend.encode = slow_encode  # type: ignore[method-assign]
        backend.prefill = slow_prefill  # type: ignore[method-assign]
        steps_of(varco).decode_steps = slow_steps  # type: ignore[method-assign]

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


def workload(varco: Varco) -> Workload:
    return Workload.of(load_picture(noise()), 1, 0, "What is this?", varco.bundle.manifest)


def measured(
    bundle: Path, seconds: float, tile_s: float, token_s: float, step_s: float, position_s: float = 0.0
) -> tuple[Samples, SlowMachine]:
    varco = Varco.load(bundle, threads=1)
    clock = SlowMachine(varco, tile_s, token_s, step_s, position_s)
    samples = measure(varco, workload(varco), Plan(5, 32, "cpu", 1), Budget(seconds, clock), silent)
    return samples, clock


def test_a_fast_model_is_measured_in_full(tiny_bundle: Path) -> None:
    samples, _ = measured(tiny_bundle, 60, 1e-3, 1e-5, 1e-3)
    assert samples.notes == []
    assert (samples.repetitions, samples.new_tokens) == (5, 32)
    # The slow machine's own figures come back.
    assert np.median(samples.tpot_s) == pytest.approx(1e-3, rel=0.01)
    assert np.median(samples.encode_s) == pytest.approx(samples.num_tiles * 1e-3, rel=0.01)
    assert np.median(samples.prefill_s) == pytest.approx(samples.prompt_tokens * 1e-5, rel=0.01)


def test_a_slower_model_is_repeated_less(tiny_bundle: Path) -> None:
    samples, clock = measured(tiny_bundle, 60, 0.8, 0.02, 0.15)
    assert 1 <= samples.repetitions < 5
    assert samples.notes == [f"{samples.repetitions} of 5 repetitions: more does not fit --seconds 60."]
    assert samples.answer is not None
    assert clock.now <= 60


def test_slower_still_decodes_fewer_tokens(tiny_bundle: Path) -> None:
    samples, clock = measured(tiny_bundle, 60, 0.1, 0.01, 1.0)
    assert 8 <= samples.new_tokens < 32
    assert samples.notes[0] == f"{samples.new_tokens} new tokens instead of 32: more does not fit --seconds 60."
    assert samples.answer is not None
    assert len(samples.answer.token_ids) == samples.new_tokens
    assert clock.now <= 60


@pytest.mark.parametrize(("tile_s", "all_tiles"), [(0.5, True), (4.0, False)])
def test_a_model_too_slow_for_the_question_is_measured_in_part(
    tiny_bundle: Path, tile_s: float, all_tiles: bool
) -> None:
    samples, clock = measured(tiny_bundle, 60, tile_s, 0.2, 1.0)
    assert samples.answer is None
    assert 0 < samples.prefill_tokens < samples.prompt_tokens
    assert len(samples.itl_s) >= 4
    assert any("the rest reckoned" in note for note in samples.notes)
    assert clock.now <= 60
    manifest = Varco.load(tiny_bundle, threads=1).bundle.manifest
    stages = summarize(samples, manifest, LIMIT).stages
    assert stages.prefill_s is not None
    assert stages.prefill_s.median == pytest.approx(0.2 * samples.prompt_tokens, rel=0.01)
    assert stages.vision_s is not None
    assert stages.vision_s.median + 7 * np.median(samples.projector_tile_s) == pytest.approx(7 * tile_s, rel=0.01)
    assert (samples.encoded_tiles == samples.num_tiles == 7) == all_tiles
    assert (stages.packing_s is not None) == all_tiles


def test_a_part_of_a_prompt_stands_for_all_of_it(tiny_bundle: Path) -> None:
    """A chunk at its beginning and one at its end: the later a token, the more it attends to."""
    samples, clock = measured(tiny_bundle, 60, 0.1, 0.1, 1.0, position_s=2e-3)
    assert samples.answer is None
    assert clock.now <= 60
    total, part = samples.prompt_tokens, samples.prefill_tokens
    assert 0 < part < total
    assert samples.context_tokens > total  # decoding follows the whole prompt
    manifest = Varco.load(tiny_bundle, threads=1).bundle.manifest
    stages = summarize(samples, manifest, LIMIT).stages
    assert stages.prefill_s is not None
    assert stages.prefill_s.median == pytest.approx(0.1 * total + 2e-3 * total**2 / 2, rel=0.01)
    assert (
        f"Prefill: a chunk of {part // 2} at its beginning and one at its end, of {total} tokens" in samples.notes[-1]
    )


def test_what_was_reckoned_is_marked_and_the_counts_are_the_questions(tiny_bundle: Path) -> None:
    samples, _ = measured(tiny_bundle, 60, 4.0, 0.2, 1.0)
    varco = Varco.load(tiny_bundle, threads=1)
    usage = varco.ask(noise(), "What is this?", max_new_tokens=1).usage
    assert (samples.prompt_tokens, samples.image_tokens) == (usage.prompt_tokens, usage.image_tokens)
    summary = summarize(samples, varco.bundle.manifest, LIMIT)
    marked = {name for name, value in asdict(summary.stages).items() if value and value["is_reckoned"]}
    assert marked == {"vision_s", "projector_s", "prefill_s", "ttft_s", "decode_s"}
    medians = {name: median for name, median, *_ in rows(samples, summary)}
    assert {name for name, median in medians.items() if median.startswith("~")} == {
        *("vision, all tiles", "projector", "prefill", "prefill, tokens/s", "first token (TTFT)")
    }
    assert medians["packing"] == "-"


def test_a_measured_answer_has_no_mark_but_at_the_projector(result: Result) -> None:
    stages = asdict(result.summary.stages)
    assert [name for name, value in stages.items() if value["is_reckoned"]] == ["projector_s"]  # one tile, times seven
    assert stages["prefill_s"]["std"] is not None


def test_every_figure_of_the_table_fits_its_column() -> None:
    for digits in range(-8, 4):
        for factor in (1, 3.14159, 9.99499, 9.99951):
            assert len(report._time(factor * 10.0**digits)) <= 8, factor * 10.0**digits
    shown = [report._time(value) for value in (12.345, 0.9996, 0.08217, 1.54e-6)]
    assert shown == ["12.3 s", "1,000 ms", "82.2 ms", "1.54 µs"]


def test_the_document_is_described() -> None:
    """docs/bench.md names every field, with its path."""
    text = (Path(__file__).parents[3] / "docs" / "bench.md").read_text(encoding="utf-8")
    for path, keys in SCHEMA.items():
        if path == "dominant.shares":
            continue
        for key in keys:
            name = key if keys == SPREAD else f"{path}.{key}".lstrip(".")
            assert f"`{name}`" in text or f"`{name}." in text, f"{path}.{key}"


def test_what_is_left_after_loading_can_be_reserved() -> None:
    now = [0.0]
    budget = Budget(60, lambda: now[0])
    now[0] = 55
    budget.reserve(20)
    assert budget.left_s == 20
    now[0] = 100
    assert budget.left_s == 0


# --- several pictures and video ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "tiles", "tokens"), [({"images": 3}, 3, 51), ({"frames": 5}, 5, 21)])
def test_several_pictures_and_a_video_are_measured(
    given: dict[str, int], tiles: int, tokens: int, media_bundle: Path
) -> None:
    found = run(options(media_bundle, max_context=512, **given), silent, find_limit=lambda *_: LIMIT)
    question = found.to_dict()["question"]
    assert (question["tiles"], question["image_tokens"], question["copies"]) == (tiles, tokens, tiles)
    assert question["is_video"] is ("frames" in given)
    answer = found.samples.answer
    assert answer is not None
    assert answer.usage.image_tokens == tokens
    assert found.samples.prefill_tokens == question["prompt_tokens"]


def test_a_bundle_for_one_picture_is_measured_with_several_all_the_same(tiny_bundle: Path) -> None:
    found = run(options(tiny_bundle, images=2), silent, find_limit=lambda *_: LIMIT)
    assert found.to_dict()["question"]["tiles"] == 2
