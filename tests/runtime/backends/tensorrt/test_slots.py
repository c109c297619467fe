"""Several answers at once on TensorRT: rows of a step, slots, masks and memory, on the double."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import add_engines, runs
from tests.makers.inputs import close
from tests.makers.slots import (
    assert_answers_at_once_are_those_of_the_cpu,
    assert_every_row_is_the_step_of_its_slot_alone,
    filled,
)
from tests.makers.threads import in_threads
from tests.runtime.backends.tensorrt.conftest import MAX_CONTEXT, backend_of, refused, shorter
from varco_runtime import Varco
from varco_runtime.backend import GREEDY, PromptInputs
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import BackendError, BundleError, UsageError
from varco_runtime.generation.sampling import Sampler, SamplingSettings

SLOTS = 4
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "top_k": 20, "seed": 3},
    {"repetition_penalty": 1.3},
    {"logit_bias": {7: 4.0, 9: -3.0}},
    {},
    {"presence_penalty": 1.0, "temperature": 0.7, "seed": 6},
)


@pytest.fixture(scope="session")
def slots_bundle(tensorrt_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with engines whose decoder takes up to four rows."""
    folder = Path(shutil.copytree(tensorrt_bundle, tmp_path_factory.mktemp("slots") / "bundle"))
    add_engines(folder, slots=SLOTS)
    return folder


@pytest.fixture
def four(slots_bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> Varco:
    """Four slots, whose answers always go together, and masks that are wider every 16 positions."""
    monkeypatch.setattr("varco_runtime.backends.tensorrt.step.BUCKET_POSITIONS", 16)
    monkeypatch.setattr("varco_runtime.engine.costs.RowCosts.go_together", lambda *_: True)
    return Varco.load(slots_bundle, slots=SLOTS)


def test_answers_at_once_are_those_of_the_cpu(four: Varco, cpu: Varco, image: Image.Image, device: Device) -> None:
    assert_answers_at_once_are_those_of_the_cpu(four, cpu, image, OPTIONS)
    assert {run[BATCH] for run in runs(device.done, "decoder")} >= {1, 4}


def test_every_row_is_the_step_of_its_slot_alone(four: Varco, cpu: Varco) -> None:
    assert_every_row_is_the_step_of_its_slot_alone(
        four, cpu, num_turns=20
    )  # the widest row goes from one width of the mask to the next


def test_rows_and_steps_of_one_slot_may_take_turns(four: Varco, cpu: Varco) -> None:
    prompts, backend = filled(four, (5, 20, 30, 14)), backend_of(four)
    ids = [list(prompt.ids) for prompt in prompts]

    def alone(slot: int, token: int) -> np.ndarray:
        backend.select_slot(slot)
        row = backend.decode_step(token, len(ids[slot])).copy()
        ids[slot].append(token)
        return row

    def expected(slot: int) -> np.ndarray:
        row: np.ndarray = cpu.backend.prefill(PromptInputs(np.array(ids[slot]), prompts[0].image_token_id, None), 0)[0]
        return row

    for turn in range(4):
        rows = backend.decode_rows([4, 5], [len(ids[0]), len(ids[1])]).copy()
        ids[0].append(4)
        ids[1].append(5)
        assert close(rows[0], expected(0))
        assert close(rows[1], expected(1))
        for slot in (3, turn % 2, 2):
            assert close(alone(slot, 6 + turn), expected(slot)), (turn, slot)
    backend.select_slot(1)
    ids[1] = ids[1][:9]
    backend.prefill(PromptInputs(np.array(ids[1]), prompts[0].image_token_id, None), 3)
    ids[1].append(8)
    assert close(backend.decode_rows([7, 8], [len(ids[0]), 9])[1], expected(1)), "a rewound row"


def test_greedy_rows_move_one_integer_each_and_replay_one_graph(four: Varco, device: Device) -> None:
    filled(four, (5, 9, 30, 50))
    backend = backend_of(four)
    tokens: list[Any] = [1, 2, 3, 4]
    for turn in range(4):
        device.asked.clear()
        tokens = backend.decode_chosen_rows(tokens, [at + turn for at in (5, 9, 30, 50)], [GREEDY] * 4)
        assert (("Capture",) in device.asked) == (turn == 1)
    replay = [event for event in device.asked if event[0] != "Set"]
    assert replay == [("HostToDevice", 32), ("Replay",), ("DeviceToHost", 32), ("Wait",)], "positions, and no token"


def test_rows_that_the_device_cannot_choose_come_to_the_host(four: Varco, device: Device) -> None:
    filled(four, (5, 9, 30, 61))
    backend, vocab_size = backend_of(four), four.bundle.manifest.model.vocab_size
    drawn = Sampler(SamplingSettings(temperature=0.8, seed=1), four.bundle.manifest.generation).draw(vocab_size)
    device.done.clear()
    rows = backend.decode_chosen_rows([1, 2, 3, 4], [5, 9, 30, 61], [GREEDY, drawn, None, GREEDY])
    assert [type(row) for row in rows] == [int, np.ndarray, np.ndarray, int]
    assert [event[1] for event in device.done if event[0] == "DeviceToHost"] == [32, 4 * 4 * vocab_size]


def test_a_row_that_is_not_finite_fails_alone_and_leaves_its_slot_clean(four: Varco, device: Device) -> None:
    filled(four, (5, 9, 30, 61))
    backend, model = backend_of(four), four.bundle.manifest.model
    want = backend.decode_chosen_rows([1, 2, 3, 4], [5, 9, 30, 61], [GREEDY] * 4)
    download = backend._cuda.download

    def poisoned(array: np.ndarray, source: Any) -> None:
        if array.dtype == np.float32:
            row_bytes = 4 * model.vocab_size
            backend._cuda.fill(backend._buffers["logits"].part(2 * row_bytes, row_bytes), 0xFF)
        download(array, source)

    backend._cuda.download = poisoned  # type: ignore[method-assign]
    rows = backend.decode_chosen_rows([1, 2, 3, 4], [5, 9, 30, 61], [GREEDY, GREEDY, None, GREEDY])
    assert isinstance(rows[2], BackendError)
    assert "not finite at position 30" in str(rows[2])
    assert rows[:2] + rows[3:] == want[:2] + want[3:]
    cache = backend._buffers["cache.0.key"]
    backend._cuda.synchronize()
    held = device.bytes_at(cache.address, cache.num_bytes).view(np.float32).reshape(SLOTS, -1)
    assert [bool(slot.any()) for slot in held] == [True, True, False, True]


def test_a_second_question_about_a_picture_encodes_and_prefills_none_of_it(
    four: Varco, cpu: Varco, image: Image.Image, device: Device
) -> None:
    first = four.stream(image, "What is this?", max_new_tokens=30)
    next(first)
    device.done.clear()
    second = four.stream(image, "And what colour is it?", max_new_tokens=8).run()
    assert not list(runs(device.done, "vision"))
    assert second.usage.cached_tokens > second.usage.image_tokens > 0
    assert second.token_ids == cpu.ask(image, "And what colour is it?", max_new_tokens=8).token_ids
    assert first.run().token_ids == cpu.ask(image, "What is this?", max_new_tokens=30).token_ids


def test_a_picture_comes_tile_by_tile_while_an_answer_waits(
    slots_bundle: Path, cpu: Varco, image: Image.Image, device: Device
) -> None:
    varco = Varco.load(slots_bundle, slots=2, max_stall_ms=0)
    running = varco.stream(None, "Hello", max_new_tokens=60)
    next(running)
    device.done.clear()
    answer = varco.ask(image, "What is this?", max_new_tokens=4)
    assert {run["tiles"] for run in runs(device.done, "vision")} == {1}
    assert answer.token_ids == cpu.ask(image, "What is this?", max_new_tokens=4).token_ids
    assert running.run().token_ids == cpu.ask(None, "Hello", max_new_tokens=60).token_ids


def test_everything_is_freed(four: Varco, device: Device) -> None:
    in_threads(lambda index: four.ask(None, f"{index}?", max_new_tokens=8), 4)
    backend_of(four).close()
    device.assert_all_is_freed()


# --- how many ---------------------------------------------------------------------------------------------------------


def test_more_than_the_engines_were_built_for_is_refused(bundle: Path, slots_bundle: Path, device: Device) -> None:
    message = r"slots=8 is too many: engines/sm89/decoder.engine was built for {}\..*varco engines BUNDLE --slots 8"
    refused(slots_bundle, device, UsageError, message.format(4), slots=8)
    refused(bundle, device, UsageError, message.format(1), slots=8)


def test_auto_takes_what_the_engines_and_the_memory_allow(bundle: Path, slots_bundle: Path, device: Device) -> None:
    varco = Varco.load(slots_bundle, slots="auto")
    assert varco.slots == SLOTS
    per_slot = varco.bundle.manifest.kv_bytes_per_token * MAX_CONTEXT / 1e6
    assert varco.slots_line.startswith(f"4 slots of {per_slot:.1f} MB each, {4 * per_slot:.1f} MB in all beside ")
    del varco
    one = Varco.load(bundle, slots="auto")
    assert (one.slots, one.slots_line.partition(":")[0]) == (1, "1 slot")
    assert "varco engines BUNDLE --slots N" in one.slots_line


def test_more_than_the_memory_holds_is_refused_with_the_sum(
    slots_bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    varco = Varco.load(slots_bundle, slots=SLOTS)
    manifest, needed = varco.bundle.manifest, sum(buffer.num_bytes for buffer in backend_of(varco)._buffers.values())
    per_slot = manifest.kv_bytes_per_token * MAX_CONTEXT
    files = sum(manifest.files[engine.file].size for engine in manifest.engines)
    del varco
    monkeypatch.setattr(
        "varco_runtime.backends.tensorrt.cuda_api.Cuda.free_bytes", lambda self: needed + files - per_slot
    )
    message = r"slots=4 needs 4 x .* MB = .* MB for keys and values beside .* are free on Recording GPU: 3 fit"
    refused(slots_bundle, device, UsageError, message, slots=SLOTS)


def test_a_profile_that_takes_fewer_rows_than_the_manifest_says_is_refused(
    tensorrt_bundle: Path, tmp_path: Path, device: Device
) -> None:
    folder = Path(shutil.copytree(tensorrt_bundle, tmp_path / "bundle"))
    add_engines(folder, shorter("decoder", 2, BATCH, 3), slots=SLOTS)
    refused(folder, device, BundleError, "takes at most 3 along axis 0 of inputs_embeds in profile 2", slots=SLOTS)


def test_a_manifest_of_engines_for_one_slot_is_what_it_was(bundle: Path, slots_bundle: Path) -> None:
    assert b'"slots"' not in (bundle / "bundle.json").read_bytes()
    engines = read_manifest(slots_bundle).engines
    assert {engine.component: engine.num_slots for engine in engines}["decoder"] == SLOTS
