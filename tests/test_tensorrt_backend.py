"""The TensorRT backend against a double of CUDA and TensorRT: same tokens as the CPU, nothing undefined on the way."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from tests import broken
from tests.conftest import export_bundle
from tests.recording_cuda import CudaCalls, CudaError, Device
from tests.recording_tensorrt import (
    RTX_VERSION,
    AllocationStrategy,
    DataType,
    Engine,
    RtxContext,
    RuntimeCache,
    RuntimeConfig,
    SpecializationStrategy,
    add_engines,
    install,
    runs,
)
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.bundle import Bundle, read_manifest, write_manifest
from varco_runtime.cli.main import main
from varco_runtime.errors import (
    BackendError,
    BundleError,
    ContextError,
    ImageError,
    MissingExtraError,
    UsageError,
    VarcoError,
)
from varco_runtime.image import normalise, packing_plan, tile
from varco_runtime.manifest import FileFacts
from varco_runtime.picture import load_picture
from varco_runtime.probes import read_probes
from varco_runtime.storage import to_stored
from varco_runtime.tensorrt_backend import TensorRtBackend

MAX_CONTEXT = 1024


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` for TensorRT in fp32, without engines."""
    target = tmp_path_factory.mktemp("tensorrt") / "tiny"
    return export_bundle(tiny_checkpoint, target, device="tensorrt", decoder="fp32", max_context=MAX_CONTEXT)


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Path:
    """The same with engines for SM89: two tiles a batch, 32 positions a chunk, 4 logits a run."""
    add_engines(exported)
    return exported


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    """A copy for tests that alter it."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture
def cpu(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    install(monkeypatch, device)
    return device


@pytest.fixture
def varco(bundle: Path, device: Device) -> Varco:
    return Varco.load(bundle)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def backend_of(varco: Varco) -> TensorRtBackend:
    assert isinstance(varco.backend, TensorRtBackend)
    return varco.backend


def text_inputs(varco: Varco, length: int, seed: int = 0) -> PromptInputs:
    ids = np.random.default_rng(seed).integers(0, 250, length)
    return PromptInputs(ids.astype(np.int64), varco.bundle.manifest.prompt.image_token_id, None)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 2e-5 * np.abs(b).max())


# --- the same answers -------------------------------------------------------------------------------------------------


def test_a_picture_is_answered_with_the_tokens_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    expected = cpu.ask(image, "What is this?", max_new_tokens=64)
    answer = varco.ask(image, "What is this?", max_new_tokens=64)
    assert answer.token_ids == expected.token_ids
    assert answer.usage == expected.usage


def test_text_alone_is_answered_with_the_tokens_of_the_cpu(varco: Varco, cpu: Varco) -> None:
    assert varco.ask(None, "Hello", max_new_tokens=24).token_ids == cpu.ask(None, "Hello", max_new_tokens=24).token_ids


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "seed": 3},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 1},
    ],
)
def test_sampling_and_penalties_see_the_logits_of_the_cpu(varco: Varco, cpu: Varco, options: dict[str, Any]) -> None:
    expected = cpu.ask(None, "Hello", max_new_tokens=16, **options)
    assert varco.ask(None, "Hello", max_new_tokens=16, **options).token_ids == expected.token_ids


def test_a_second_question_encodes_no_tile_and_rewinds_the_cache(
    varco: Varco, cpu: Varco, device: Device, image: Image.Image
) -> None:
    varco.ask(image, "What is this?", max_new_tokens=8)
    before = len(list(runs(device.done, "vision")))
    answer = varco.ask(image, "And what colour is it?", max_new_tokens=16)
    assert len(list(runs(device.done, "vision"))) == before
    assert answer.usage.cached_tokens > answer.usage.image_tokens
    assert answer.token_ids == cpu.ask(image, "And what colour is it?", max_new_tokens=16).token_ids


def test_another_picture_replaces_the_first(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    other = Image.eval(image.resize((60, 200)), lambda value: 255 - value)
    for picture in (image, other, image):
        expected = cpu.ask(picture, "<ocr>", max_new_tokens=8)
        assert varco.ask(picture, "<ocr>", max_new_tokens=8).token_ids == expected.token_ids


def test_greedy_tokens_do_not_depend_on_who_chooses(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_by_device = varco.ask(None, "Hello", max_new_tokens=32).token_ids
    monkeypatch.setattr("varco_runtime.sampling.Sampler.is_greedy", False)
    assert varco.ask(None, "Hello", max_new_tokens=32).token_ids == chosen_by_device


def test_features_are_those_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    settings, picture = varco.bundle.manifest.image, load_picture(image)
    pixel_values, plan = normalise(tile(picture, settings), settings), packing_plan(picture.size_hw, settings)
    got = backend_of(varco).features(pixel_values, plan)
    want = cpu.backend.features(pixel_values, plan)  # type: ignore[attr-defined]
    for name in ("patch_features", "image_features", "image_tokens"):
        assert close(getattr(got, name), getattr(want, name)), name


@pytest.fixture(scope="module")
def probed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with probes, without engines."""
    target = tmp_path_factory.mktemp("probed") / "bundle"
    options = {"device": "tensorrt", "decoder": "fp32", "max_context": MAX_CONTEXT, "probes": True}
    return export_bundle(tiny_checkpoint, target, **options)


@pytest.mark.parametrize("fault", [None, broken.transposed_vision_projection])
def test_probes_judge_vision_and_projector_of_engines_too(
    probed: Path, device: Device, tmp_path: Path, fault: Callable[[Path], None] | None, capsys: Any
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(probed, bundle) if fault is None else broken.broken(probed, bundle, fault)
    add_engines(bundle)
    assert main(["verify", str(bundle), "--numerics", "--json"]) == (0 if fault is None else 1)
    rows = {row["component"]: row["ok"] for row in json.loads(capsys.readouterr().out)["numerics"]}
    assert {"vision", "projector", "image tokens", "newlines", "decoder, text"} <= rows.keys()
    assert rows["vision"] is (fault is None)
    assert rows["decoder, text"]


def test_probes_that_the_engines_are_too_short_for_are_left_out(
    probed: Path, tiny_checkpoint: Path, device: Device, tmp_path: Path, capsys: Any
) -> None:
    lengths = sorted(len(probe.ids) for probe in read_probes(Bundle.open(probed)).probes)
    some, none = tmp_path / "some", tmp_path / "none"
    for bundle, max_context in ((some, lengths[-1] - 1), (none, lengths[0] - 1)):
        shutil.copytree(probed, bundle)
        # The double takes its caches' length from a graph; TensorRT is told it when an engine is built.
        short = tmp_path / f"{bundle.name}-graphs"
        export_bundle(tiny_checkpoint, short, device="tensorrt", decoder="fp32", max_context=max_context)

        def take_short_graph(document: dict[str, Any], short: Path = short) -> None:
            document["graph"] = str(short / Path(document["graph"]).name)

        add_engines(bundle, take_short_graph, max_context=max_context)
    assert main(["verify", str(some), "--numerics", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["probes_left_out"] == sum(length == lengths[-1] for length in lengths)
    assert {"vision", "decoder, text"} <= {row["component"] for row in document["numerics"]}
    assert "probes need more positions than the engines hold" in err
    assert main(["verify", str(none), "--numerics"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"The probes need {lengths[0]} positions and more, {lengths[0] - 1} can be held here." in message
    assert message.endswith(f"varco engines BUNDLE --max-context {lengths[-1]}")


# --- prefill ----------------------------------------------------------------------------------------------------------


def test_chunked_prefill_has_the_logits_of_the_cpu(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, 100)
    assert close(varco.backend.prefill(inputs, 0), cpu.backend.prefill(inputs, 0))
    assert close(varco.backend.prefill(inputs, 40, num_logits=33), cpu.backend.prefill(inputs, 0, num_logits=33))


def test_image_tokens_may_stand_anywhere_in_a_chunk(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    settings, picture = varco.bundle.manifest.image, load_picture(image)
    pixel_values, plan = normalise(tile(picture, settings), settings), packing_plan(picture.size_hw, settings)
    ids = text_inputs(varco, plan.num_tokens + 40).ids
    places = np.sort(np.random.default_rng(1).permutation(len(ids) - 1)[: plan.num_tokens])
    image_token_id = varco.bundle.manifest.prompt.image_token_id
    ids[places] = image_token_id
    logits = []
    for backend in (varco.backend, cpu.backend):
        tokens = backend.pack(backend.encode(pixel_values), plan)
        logits.append(backend.prefill(PromptInputs(ids, image_token_id, tokens), 0, num_logits=20))
    assert close(*logits)


def test_a_chunk_computes_no_more_logits_than_the_engine_allows(varco: Varco, device: Device) -> None:
    device.done.clear()
    varco.backend.prefill(text_inputs(varco, 70), 0, num_logits=6)
    lengths = [(run["sequence"], run["total"], run["num_logits"]) for run in runs(device.done, "decoder")]
    assert lengths == [(32, 32, 1), (32, 64, 1), (4, 68, 4), (2, 70, 2)]


def test_a_rewound_cache_forgets_what_came_after(varco: Varco, device: Device) -> None:
    inputs, other = text_inputs(varco, 60), text_inputs(varco, 60, seed=9)
    fresh = varco.backend.prefill(inputs, 0, num_logits=30)
    mixed = PromptInputs(np.concatenate([inputs.ids[:30], other.ids]), inputs.image_token_id, None)
    varco.backend.prefill(mixed, 0)
    assert close(varco.backend.prefill(inputs, 30, num_logits=30), fresh)
    cache = backend_of(varco)._buffers["cache.0.key"]
    model = varco.bundle.manifest.model
    rows = device.bytes_at(cache.address, cache.num_bytes).view(np.float32)
    rows = rows.reshape(model.num_key_value_heads, MAX_CONTEXT, model.head_dim)
    assert np.abs(rows[:, :60]).min(axis=(0, 2)).all()
    assert not rows[:, 60:].any()


def test_a_rewound_nan_does_not_reach_the_next_answer(varco: Varco, cpu: Varco, device: Device) -> None:
    """Positions beyond the sequence weigh nothing, but nothing times NaN is NaN."""
    varco.ask(None, "Something else entirely, and at length.", max_new_tokens=64)
    backend = backend_of(varco)
    for name, cache in backend._buffers.items():
        if name.startswith("cache."):
            model = varco.bundle.manifest.model
            rows = device.bytes_at(cache.address, cache.num_bytes).view(np.float32)
            last = slice(backend._length - 20, backend._length)
            rows.reshape(model.num_key_value_heads, -1, model.head_dim)[:, last] = np.nan
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == cpu.ask(None, "Hello", max_new_tokens=8).token_ids


# --- decode -----------------------------------------------------------------------------------------------------------


def test_decode_steps_equal_one_full_pass(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_runtime.tensorrt_step.BUCKET_POSITIONS", 16)
    inputs = text_inputs(varco, 60)
    whole = varco.backend.prefill(inputs, 0, num_logits=60)
    first = PromptInputs(inputs.ids[:20], inputs.image_token_id, None)
    rows = [varco.backend.prefill(first, 0)[0].copy()]
    rows += [varco.backend.decode_step(int(token), 20 + i).copy() for i, token in enumerate(inputs.ids[20:])]
    assert close(np.stack(rows), whole[19:])


def test_a_step_runs_plainly_then_is_captured_then_replayed(
    varco: Varco, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.tensorrt_step.BUCKET_POSITIONS", 16)
    device.done.clear()
    varco.backend.prefill(text_inputs(varco, 12), 0)
    kinds = []
    token = 7
    for position in range(12, 36):
        device.asked.clear()
        token = backend_of(varco).decode_greedy(token, position)
        names = [event[0] for event in device.asked]
        kinds.append("c" if "Capture" in names else "r" if "Replay" in names else "p")
        assert ("Replay" in names) == (kinds[-1] != "p")
    assert "".join(kinds) == "pcrr" + "pc" + "r" * 14 + "pcrr"
    totals = [run["total"] for run in runs(device.done, "decoder")][1:]
    assert totals == [16] * 4 + [32] * 16 + [48] * 4


def test_a_greedy_step_moves_one_integer(varco: Varco, device: Device) -> None:
    varco.backend.prefill(text_inputs(varco, 12), 0)
    backend = backend_of(varco)
    token = 7
    for position in range(12, 16):
        token = backend.decode_greedy(token, position)
    device.asked.clear()
    backend.decode_greedy(token, 16)
    assert device.asked == [("DeviceToDevice", 8), ("Set", 1), ("Replay",), ("DeviceToHost", 8), ("Wait",)]


def test_a_token_that_the_device_did_not_choose_is_handed_to_it(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, 12)
    for one in (varco, cpu):
        one.backend.prefill(inputs, 0)
    backend = backend_of(varco)
    first = backend.decode_greedy(5, 12)
    other = (first + 1) % 200
    tokens = (5, other, other, first, first)
    expected = [int(np.argmax(cpu.backend.decode_step(token, 12 + i))) for i, token in enumerate(tokens)]
    chosen = [first, backend.decode_greedy(other, 13), int(np.argmax(backend.decode_step(other, 14)))]
    chosen += [int(np.argmax(backend.decode_step(first, 15))), backend.decode_greedy(first, 16)]
    assert chosen == expected


def test_a_step_may_go_back(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, 30)
    for one in (varco, cpu):
        one.backend.prefill(inputs, 0)
    for token, position in ((5, 30), (6, 31), (7, 32), (9, 31), (3, 20), (4, 21)):
        got, want = varco.backend.decode_step(token, position), cpu.backend.decode_step(token, position)
        assert close(got, want), position


def test_prefill_between_steps_leaves_the_graph_valid(varco: Varco, device: Device) -> None:
    varco.ask(None, "Hello", max_new_tokens=6)
    device.asked.clear()
    varco.ask(None, "Hello again", max_new_tokens=6)
    names = [event[0] for event in device.asked]
    assert "Capture" not in names
    assert names.count("Replay") == 5


def test_engines_of_either_builder_answer_alike(changed: Path, device: Device, cpu: Varco, image: Image.Image) -> None:
    add_engines(changed, builder="tensorrt", builder_version="11.4.0.12")
    varco = Varco.load(changed)
    answer = varco.ask(image, "What is this?", max_new_tokens=8)
    assert answer.token_ids == cpu.ask(image, "What is this?", max_new_tokens=8).token_ids
    assert varco.backend.description == "TensorRT 11.4.0.12, Recording GPU (sm89)"


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_what_cannot_be_captured_runs_plainly(
    changed: Path, device: Device, cpu: Varco, builder: str, image: Image.Image
) -> None:
    device.can_capture = False
    version = "11.4.0.12" if builder == "tensorrt" else RTX_VERSION
    add_engines(changed, builder=builder, builder_version=version)
    varco = Varco.load(changed)
    answer = varco.ask(image, "What is this?", max_new_tokens=8)
    assert answer.token_ids == cpu.ask(image, "What is this?", max_new_tokens=8).token_ids
    assert "without a CUDA graph" in varco.backend.description
    assert "Replay" not in [event[0] for event in device.asked]


def test_logits_that_are_not_finite_end_a_greedy_answer(varco: Varco, device: Device) -> None:
    backend = backend_of(varco)
    backend.prefill(text_inputs(varco, 64), 0)
    backend.decode_greedy(5, 64)
    backend.decode_greedy(5, 65)
    logits = backend._buffers["logits"]
    copy = backend._cuda.download

    def poisoned(array: np.ndarray, source: Any) -> None:
        if array.dtype == np.float32:
            backend._cuda.fill(logits, 0xFF)
        copy(array, source)

    backend._cuda.download = poisoned  # type: ignore[method-assign]
    backend.decode_greedy(5, 66)
    with pytest.raises(BackendError, match="not finite at position 64"):
        backend.decode_greedy(5, 64)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_tiles_are_encoded_in_batches(varco: Varco, device: Device, image: Image.Image) -> None:
    varco.ask(image, "What is this?", max_new_tokens=1)
    batches = [run["tiles"] for run in runs(device.done, "vision")]
    tiles = next(runs(device.done, "packing"))["tiles"]
    assert batches == [2] * (tiles // 2) + [1] * (tiles % 2)
    assert tiles > 4
    assert len(batches) == len(list(runs(device.done, "projector")))


def test_no_feature_leaves_the_device(varco: Varco, device: Device, image: Image.Image) -> None:
    device.done.clear()
    answer = varco.ask(image, "What is this?", max_new_tokens=4)
    moved = [event[1] for event in device.done if event[0] == "DeviceToHost"]
    assert moved == [4 * varco.bundle.manifest.model.vocab_size] + [8] * 3
    assert answer.usage.image_tokens > 0


def test_a_picture_of_too_many_tiles_is_one_clear_line(changed: Path, device: Device, image: Image.Image) -> None:
    add_engines(changed, max_tiles=3)
    varco = Varco.load(changed)
    with pytest.raises(ImageError, match=r"makes \d+ tiles, these engines take 3\..*--max-tiles"):
        varco.ask(image, "What is this?", max_new_tokens=4)
    assert varco.ask(None, "Hello", max_new_tokens=4).token_ids


def test_a_picture_of_too_many_tokens_is_one_clear_line(changed: Path, device: Device, image: Image.Image) -> None:
    add_engines(changed, shorter("packing", 0, "tokens", 50))
    varco = Varco.load(changed)
    with pytest.raises(ContextError, match=r"makes \d+ image tokens, these engines take 50\."):
        varco.ask(image, "What is this?", max_new_tokens=4)
    assert varco.ask(None, "Hello", max_new_tokens=4).token_ids


def test_bf16_is_rounded_to_nearest_even() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=4000), [0, -0.0, 1.00390625, 1.01171875]])
    expected = values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert (to_stored(values.astype(np.float32), "bf16") == expected).all()


def test_fp16_engines_answer_like_their_graphs_do(tiny_checkpoint: Path, tmp_path: Path, device: Device) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "fp16", device="tensorrt", decoder="fp16", max_context=256)
    add_engines(folder)
    varco = Varco.load(folder)
    small = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    assert len(varco.ask(small, "What is this?", max_new_tokens=4).token_ids) == 4
    assert backend_of(varco)._buffers["pixel_values"].num_bytes % 2 == 0


# --- bounds and memory ------------------------------------------------------------------------------------------------


def test_no_position_beyond_the_context_reaches_the_device(bundle: Path, device: Device) -> None:
    varco = Varco.load(bundle, max_context=64)
    answer = varco.ask(None, "Hello", max_new_tokens=1000)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + len(answer.token_ids) == 64
    for step in (varco.backend.decode_step, backend_of(varco).decode_greedy):
        with pytest.raises(ContextError, match="65 positions do not fit the context of 64"):
            step(1, 64)
    with pytest.raises(ContextError, match="100 positions do not fit"):
        varco.backend.prefill(text_inputs(varco, 100), 0)


def test_the_last_position_of_the_caches_can_be_used(varco: Varco, cpu: Varco) -> None:
    inputs = text_inputs(varco, MAX_CONTEXT - 2)
    got, want = varco.backend.prefill(inputs, 0), cpu.backend.prefill(inputs, 0)
    for position in (MAX_CONTEXT - 2, MAX_CONTEXT - 1):
        got, want = varco.backend.decode_step(3, position), cpu.backend.decode_step(3, position)
    assert close(got, want)


def test_memory_is_allocated_at_loading_and_freed_once(bundle: Path, device: Device, image: Image.Image) -> None:
    varco = Varco.load(bundle)
    allocated = len(device.memory)
    varco.ask(image, "What is this?", max_new_tokens=6)
    assert len(device.memory) == allocated
    backend = backend_of(varco)
    backend._cuda.fill(backend._buffers["logits"], 0)  # work that nobody waits for
    backend.close()
    backend.close()
    device.assert_all_is_freed()


def test_losing_the_model_frees_the_device(bundle: Path, device: Device) -> None:
    varco = Varco.load(bundle)
    varco.ask(None, "Hello", max_new_tokens=4)
    assert device.memory
    del varco
    gc.collect()
    device.assert_all_is_freed()


def test_a_fault_of_the_device_is_one_clear_line(varco: Varco, device: Device) -> None:
    device.fault = CudaError.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress") as caught:
        varco.ask(None, "Hello", max_new_tokens=4)
    assert "\n" not in str(caught.value)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(bundle: Path, device: Device, error: type[VarcoError], match: str, **options: Any) -> None:
    """Loading must fail with one line, before anything is left on the device."""
    with pytest.raises(error, match=match) as caught:
        Varco.load(bundle, **options)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()
    device.assert_all_is_freed()


def test_a_bundle_without_engines_is_refused(changed: Path, device: Device) -> None:
    write_manifest(changed, dataclasses.replace(read_manifest(changed), engines=()))
    refused(changed, device, BackendError, r"holds no engines\. Build them with: varco engines BUNDLE")


def test_a_bundle_without_an_engine_for_this_device_is_refused(bundle: Path, device: Device) -> None:
    device.capability = (8, 6)
    refused(
        bundle,
        device,
        BackendError,
        r"built for sm89, this GPU is sm86 \(Recording GPU\)\..*varco engines BUNDLE --sm 86",
    )


def test_engines_of_another_version_are_refused(changed: Path, device: Device) -> None:
    add_engines(changed, builder_version="1.6.0.1")
    refused(changed, device, BackendError, rf"built with TensorRT for RTX 1\.6\.0\.1, {RTX_VERSION} is installed")


def test_a_missing_component_is_refused(changed: Path, device: Device) -> None:
    manifest = read_manifest(changed)
    engines = tuple(engine for engine in manifest.engines if engine.component != "packing")
    write_manifest(changed, dataclasses.replace(manifest, engines=engines))
    refused(changed, device, BackendError, "holds no packing engine of TensorRT for RTX")


def test_a_tampered_engine_is_refused_before_anything_is_loaded(changed: Path, device: Device) -> None:
    engine = changed / "engines/sm89/decoder.engine"
    content = bytearray(engine.read_bytes())
    content[10] ^= 1
    engine.write_bytes(content)
    refused(changed, device, BundleError, r"decoder\.engine has been altered")
    assert not device.asked


def test_a_context_beyond_the_engines_is_refused(changed: Path, device: Device, tiny_checkpoint: Path) -> None:
    manifest = read_manifest(changed)
    write_manifest(changed, dataclasses.replace(manifest, max_context=2048))
    message = r"max_context=2000 is out of range: engines/.*\.engine was built for 1024 positions.*--max-context 2000"
    refused(changed, device, UsageError, message, max_context=2000)
    assert Varco.load(changed).backend.max_context == MAX_CONTEXT


def test_a_missing_tensorrt_is_one_clear_line(bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(
        bundle, device, BackendError, r"TensorRT for RTX, which built .* is not installed\. .*varco-edge\[tensorrt\]"
    )


def test_a_tensorrt_whose_libraries_are_missing_says_so(
    bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(
        "raise ImportError('libtensorrt_rtx.so.1: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    refused(bundle, device, BackendError, r"cannot be loaded \(libtensorrt_rtx\.so\.1: cannot open")


def test_a_missing_cuda_python_names_the_extra(bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    refused(bundle, device, MissingExtraError, r"varco-edge\[tensorrt\]")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"driver_version": 0}, r"no NVIDIA driver was found.*--device cpu"),
        ({"driver_version": 12080}, r"the NVIDIA driver supports CUDA 12\.8, cuda-python needs 13\.4"),
        ({"num_devices": 0}, r"CUDA found no device \(cudaErrorNoDevice\)"),
    ],
)
def test_a_missing_device_or_driver_is_one_clear_line(
    bundle: Path, device: Device, facts: dict[str, int], message: str
) -> None:
    for name, value in facts.items():
        setattr(device, name, value)
    refused(bundle, device, BackendError, message)


def test_too_little_memory_is_refused_before_an_engine_is_loaded(bundle: Path, device: Device) -> None:
    device.memory_bytes = 600_000
    message = r"needs \d+ MB of GPU memory, 1 MB are free on Recording GPU\..*--max-context \(1 MB of it\).*--max-tiles"
    refused(bundle, device, BackendError, message)
    assert not [event for event in device.asked if event[0] == "Run"]


@pytest.mark.parametrize("is_integrated", [True, False])
def test_memory_that_others_take_meanwhile_is_one_clear_line(
    bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch, is_integrated: bool
) -> None:
    device.is_integrated = is_integrated
    device.memory_bytes = 600_000
    if not is_integrated:  # such a device does not know what is free before it asks
        monkeypatch.setattr("varco_runtime.device_memory.DeviceMemory.check", lambda self: None)
    refused(bundle, device, BackendError, r"needs \d+ MB of GPU memory, 1 MB are free")


def test_an_engine_that_the_library_refuses_is_one_clear_line(changed: Path, device: Device) -> None:
    add_engines(changed)
    manifest = read_manifest(changed)
    name = "engines/sm89/vision.engine"
    (changed / name).write_bytes(b"no engine")
    files = manifest.files | {name: FileFacts(9, hashlib.sha256(b"no engine").hexdigest())}
    write_manifest(changed, dataclasses.replace(manifest, files=files))
    refused(
        changed,
        device,
        BackendError,
        r"could not load .*vision\.engine: Serialization assertion magicTag failed\. Build",
    )


def swap_graph(component: str, other: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        if document["component"] == component:
            document["graph"] = document["graph"].replace(component, other)
            document["profiles"] = [{"tiles": [1, 1, 64], "tokens": [1, 1, 4096]}]

    return change


def shorter(component: str, profile: int, length: str, most: int = 1) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        if document["component"] == component:
            document["profiles"][profile][length] = [1, 1, most]

    return change


def with_key(component: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        if document["component"] == component:
            document[key] = value

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (swap_graph("vision", "packing"), r"vision\.engine has input image_features .*, expected no image_features"),
        (
            with_key("decoder", "on_host", ["write_indices"]),
            r"input write_indices int64 on the host \[1\], expected input",
        ),
        (
            with_key("decoder", "aliases", {"present.1.key": "past.0.key"}),
            r"updates past\.0\.key in place with present\.1\.key",
        ),
        (
            shorter("decoder", 0, "sequence"),
            r"decoder\.engine takes at most 1 along axis 1 of inputs_embeds in profile 0, expected 32",
        ),
        (
            shorter("decoder", 1, "total"),
            r"decoder\.engine takes at most 1 along axis 3 of attention_mask in profile 1",
        ),
        (shorter("vision", 0, "tiles"), r"vision\.engine takes at most 1 along axis 0 of pixel_values"),
        (shorter("packing", 0, "tiles"), r"packing\.engine takes at most 1 along axis 0 of image_features"),
    ],
)
def test_an_engine_that_is_not_what_the_bundle_needs_is_refused(
    changed: Path, device: Device, changes: Callable[[dict[str, Any]], None], message: str
) -> None:
    add_engines(changed, changes)
    refused(changed, device, BundleError, message)


def test_a_decoder_of_another_context_is_refused(changed: Path, device: Device) -> None:
    add_engines(changed, max_context=512)
    refused(
        changed, device, BundleError, r"decoder\.engine has input past\.0\.key fp32 \[1, 2, 1024, 16\], expected .*512"
    )


# --- providers --------------------------------------------------------------------------------------------------------


def test_auto_takes_what_the_bundle_was_exported_for_and_says_why(varco: Varco, cpu: Varco) -> None:
    assert varco.provider == "tensorrt (the bundle was exported for TensorRT, and its engines fit this sm89)"
    assert cpu.provider == "cpu (the bundle was exported for the CPU)"
    assert varco.backend.description == f"TensorRT for RTX {RTX_VERSION}, Recording GPU (sm89)"


def test_a_provider_that_the_bundle_was_not_exported_for_is_refused(
    bundle: Path, tiny_bundle: Path, device: Device
) -> None:
    refused(bundle, device, BackendError, r"exported for TensorRT, got --provider cpu\..*--device cpu", provider="cpu")
    refused(tiny_bundle, device, BackendError, r"exported for the CPU, got .*--device tensorrt", provider="tensorrt")
    refused(tiny_bundle, device, BackendError, r"exported for the CPU, got .*--device cuda", provider="cuda")
    assert Varco.load(tiny_bundle, provider="cpu", threads=1).provider == "cpu (as asked)"


# --- compiled kernels -------------------------------------------------------------------------------------------------


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels are kept, empty."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def ask_and_close(bundle: Path) -> None:
    varco = Varco.load(bundle)
    varco.ask(None, "Hello", max_new_tokens=4)
    backend_of(varco).close()


def test_what_rtx_compiled_is_kept_for_the_next_run(bundle: Path, device: Device, kernels: Path) -> None:
    ask_and_close(bundle)
    assert device.compiled
    device.compiled.clear()
    ask_and_close(bundle)
    assert not device.compiled
    manifest = read_manifest(bundle)
    hashes = {manifest.files[engine.file].sha256 for engine in manifest.engines}
    assert {path.name for path in kernels.iterdir()} == {f"{sha256}.cache" for sha256 in hashes}


def test_a_run_that_compiled_nothing_new_writes_nothing(bundle: Path, device: Device, kernels: Path) -> None:
    ask_and_close(bundle)
    before = {path: path.stat().st_ino for path in kernels.iterdir()}
    ask_and_close(bundle)
    assert {path: path.stat().st_ino for path in kernels.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"not kernels", b'["(8, 6)", ["of another GPU"]]'])
def test_kernels_that_do_not_fit_are_compiled_again_and_replaced(
    bundle: Path, device: Device, kernels: Path, content: bytes
) -> None:
    ask_and_close(bundle)
    good = {path: path.read_bytes() for path in kernels.iterdir()}
    for path in good:
        path.write_bytes(content)
    device.compiled.clear()
    ask_and_close(bundle)
    assert device.compiled
    assert {path: path.read_bytes() for path in kernels.iterdir()} == good


def test_a_cache_folder_that_cannot_be_written_costs_only_time(bundle: Path, device: Device, kernels: Path) -> None:
    kernels.parent.write_text("a file where the folder should be")
    ask_and_close(bundle)
    assert device.compiled


def test_the_kernels_of_engines_long_gone_are_forgotten(
    bundle: Path, device: Device, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.kernel_cache.MAX_FILES", 6)
    kernels.mkdir(parents=True)
    for number in range(9):
        (kernels / f"{number}.cache").write_bytes(b"old")
        os.utime(kernels / f"{number}.cache", (number, number))
    ask_and_close(bundle)
    assert len(list(kernels.iterdir())) == 6
    assert (kernels / "8.cache").exists()


def test_tensorrt_itself_has_no_kernels_to_keep(changed: Path, device: Device, kernels: Path) -> None:
    add_engines(changed, builder="tensorrt", builder_version="11.4.0.12")
    ask_and_close(changed)
    assert not kernels.exists()


# --- the double -------------------------------------------------------------------------------------------------------


def test_the_double_has_the_calls_of_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name in dir(CudaCalls):
        if name.startswith("cuda"):
            call = getattr(CudaCalls, name)
            parameters = call.__code__.co_varnames[1 : call.__code__.co_argcount]
            signature = getattr(runtime, name).__doc__.splitlines()[0]
            found = [
                part.split(":")[0].split()[-1] for part in signature.partition("(")[2].rstrip(")").split(",") if part
            ]
            assert list(parameters) == found, signature
    for error in CudaError:
        assert int(getattr(runtime.cudaError_t, error.name)) == error


def test_the_double_has_the_names_of_tensorrt_for_rtx() -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    own = {"device", "profiles", "ports", "session", "aliases", "on_host", "is_rtx", "engine", "compiles_at_once"}
    pairs = [(Engine, module.ICudaEngine), (RtxContext, module.IExecutionContext)]
    for double, real in (*pairs, (RuntimeConfig, module.IRuntimeConfig), (RuntimeCache, module.IRuntimeCache)):
        names = {name for name in dir(double) if not name.startswith("_")} - own
        assert not names - set(dir(real))
    assert {one.name for one in SpecializationStrategy} == set(
        module.DynamicShapesKernelSpecializationStrategy.__members__
    )
    assert {one.name for one in AllocationStrategy} == set(module.ExecutionContextAllocationStrategy.__members__)
    assert {one.name for one in DataType} <= set(module.DataType.__members__)


def test_the_real_library_says_in_one_line_why_it_loads_no_engine(
    bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    if module.__version__ != RTX_VERSION:
        pytest.skip(f"TensorRT for RTX is {module.__version__}, the double's engines are of {RTX_VERSION}")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    message = rf"TensorRT for RTX {RTX_VERSION} could not load .*vision\.engine: .*deserializeCudaEngine"
    refused(bundle, device, BackendError, message)
