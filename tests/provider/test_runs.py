"""Everything a bundle is asked for, through the real provider: what returns, is captured, replayed and copied."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.provider.conftest import B200, H200, NUM_LAYERS, Case, Observed, require_provider
from tests.provider.kernel_families import families
from tests.provider.launch_log import Section
from tests.provider.scenario import DRAFTS, GROWN, LOAD, LONG_PROMPT, PENALISED, THREADS
from varco_runtime.backend import MAX_STEP_TOKENS
from varco_runtime.bundle.opening import read_manifest

require_provider()

TOKEN_BYTES, POSITION_BYTES, LOGIT_BYTES, SETTINGS_BYTES, FLAG_BYTES = 8, 4, 4, 48, 1
TO_DEVICE, TO_HOST = "host to device", "device to host"


def moved(section: Section) -> list[tuple[str, int]]:
    """Direction and bytes of every copy."""
    return [(copy.direction, copy.num_bytes) for copy in section.copies]


def vocab_size(observed: Observed) -> int:
    return read_manifest(observed.bundle).model.vocab_size


def sent(observed: Observed, num_tokens: int) -> list[tuple[str, int]]:
    """The copies to the device before a step: its tokens, or their rows in 16 bits where the host holds those; and
    their position."""
    manifest = read_manifest(observed.bundle)
    token_bytes = TOKEN_BYTES if manifest.embedding is None else 2 * manifest.model.hidden_size
    return [(TO_DEVICE, num_tokens * token_bytes), (TO_DEVICE, POSITION_BYTES)]


def test_every_call_returns(observed: Observed) -> None:
    assert observed.failures == {}
    major, minor = observed.case.capability
    assert observed.description.endswith(f"CUDA, Stub GPU (sm{major}{minor})")


def test_nothing_waits_allocates_or_copies_in_a_capture(observed: Observed) -> None:
    assert {name: section.refused for name, section in observed.sections.items() if section.refused} == {}
    for name, section in observed.sections.items():
        assert [one for one in section.allocations if one.in_capture] == [], name
        captured = [one for one in section.copies if one.in_capture]
        assert [one for one in captured if one.is_synchronous or one.direction != "device to device"] == [], name


def test_no_graph_holds_a_node_that_copies_to_the_host_and_back(observed: Observed) -> None:
    assert set(observed.operators) == set(read_manifest(observed.bundle).components)
    for network, operators in observed.operators.items():
        assert [name for name in operators if name.startswith("Memcpy")] == [], network


def test_loading_captures_every_step_and_the_draw(observed: Observed) -> None:
    load = observed.sections[LOAD]
    assert len(load.captures) == len(observed.bands) * MAX_STEP_TOKENS + 1
    assert all(load.captures)


def test_a_sequence_that_outgrows_a_band_is_moved_once(observed: Observed) -> None:
    """Every head but the first of every cache, on the device."""
    model = read_manifest(observed.bundle).model
    pieces = 2 * model.num_layers * (model.num_key_value_heads - 1)
    row_bytes = 2 * model.head_dim
    for name, positions in (("draft beyond a band", GROWN), ("prompt back in the first band", 20)):
        moves = [copy.num_bytes for copy in observed.sections[name].copies if copy.direction == "device to device"]
        assert moves.count(positions * row_bytes) == pieces, name
    for name in ("draft beyond a band", "draft in the next band"):
        assert (observed.sections[name].num_replays, observed.sections[name].launches) == (1, [])
    assert moved(observed.sections["draft in the next band"]) == moved(
        observed.sections[f"draft of {DRAFTS[1]}, again"]
    )


def test_the_thread_that_loaded_captures_nothing_more(observed: Observed) -> None:
    in_threads = {name for thread in THREADS for name in observed.matching(thread)}
    others = {
        name: section
        for name, section in observed.sections.items()
        if name not in in_threads | {LOAD} and not name.endswith(", first")
    }
    assert [name for name, section in others.items() if section.captures] == []


def test_all_other_threads_share_one_set_of_captures(observed: Observed) -> None:
    """The provider keeps graphs by thread; the runtime gives all other threads one between them."""
    captures = {
        name: len(section.captures) for thread in THREADS for name, section in observed.matching(thread).items()
    }
    first = f"{THREADS[0]}, first question"
    assert captures.pop(first) == 3  # a step, a draft's and the draw
    assert set(captures.values()) == {0}


@pytest.mark.parametrize("name", ["greedy", "greedy after threads"])
def test_a_greedy_step_is_one_replay_and_moves_two_numbers_there_and_one_back(observed: Observed, name: str) -> None:
    section = observed.sections[name]
    assert section.num_replays == 1
    assert section.launches == []
    assert moved(section) == [*sent(observed, 1), (TO_HOST, TOKEN_BYTES)]
    assert section.allocations == []
    assert section.synchronisations == ["stream"] * 3  # after each copy there, and before the one back


def test_only_loading_and_closing_wait_for_the_whole_device(observed: Observed) -> None:
    waiting = {name for name, section in observed.sections.items() if "device" in section.synchronisations}
    assert waiting - {LOAD, "closing"} == set()


@pytest.mark.parametrize("count", DRAFTS)
def test_a_draft_is_one_replay_and_moves_its_tokens_both_ways(observed: Observed, count: int) -> None:
    for section in observed.matching(f"draft of {count}").values():
        assert section.num_replays == 1
        assert section.launches == []
        assert moved(section) == [*sent(observed, count), (TO_HOST, count * TOKEN_BYTES)]


def test_a_drawn_token_is_two_replays_and_no_logits_come_back(observed: Observed) -> None:
    assert PENALISED.penalty != 1
    section = observed.sections["drawn"]
    assert section.num_replays == 2
    assert section.launches == []
    draw = [(TO_DEVICE, SETTINGS_BYTES), (TO_DEVICE, vocab_size(observed) * FLAG_BYTES), (TO_HOST, TOKEN_BYTES)]
    assert moved(section) == [*sent(observed, 1), *draw]


@pytest.mark.parametrize(("name", "rows"), [("step", 1), ("logits of a draft", MAX_STEP_TOKENS)])
def test_logits_come_back_only_where_they_are_asked_for(observed: Observed, name: str, rows: int) -> None:
    back = [copy.num_bytes for copy in observed.sections[name].copies if copy.direction == TO_HOST]
    assert back == [rows * vocab_size(observed) * LOGIT_BYTES]


@pytest.mark.parametrize(("length", "runs"), [(650, 1), (LONG_PROMPT, 2)])
def test_a_run_of_a_prompt_brings_one_row_of_logits_back(observed: Observed, length: int, runs: int) -> None:
    back = [copy for copy in observed.sections[f"prompt of {length}"].copies if copy.direction == TO_HOST]
    assert [copy.num_bytes for copy in back] == [vocab_size(observed) * LOGIT_BYTES] * runs


def test_pictures_stay_on_the_device(observed: Observed) -> None:
    for name in ("small picture", "large picture", "small picture as pixel values", "large picture as pixel values"):
        assert TO_HOST not in {copy.direction for copy in observed.sections[name].copies}, name


def test_a_picture_goes_through_the_tower_in_batches(observed: Observed) -> None:
    """The large one has 37 tiles, a batch 16."""
    small, large = (len(families(observed.sections[name].launches)) for name in ("small picture", "large picture"))
    assert small >= NUM_LAYERS
    assert large == 3 * small


def test_a_gpu_that_the_provider_has_no_code_for_is_refused(
    run_scenario: Callable[..., tuple[subprocess.CompletedProcess[str], Path]],
) -> None:
    done, _ = run_scenario(Case("fp16", "fp16", B200))
    assert done.returncode == 1
    assert "compute capability 10.0, for which onnxruntime-gpu has no code" in done.stderr.splitlines()[-1]


def test_one_model_answers_while_another_captures(
    run_scenario: Callable[..., tuple[subprocess.CompletedProcess[str], Path]],
) -> None:
    """A capture bears no other call to CUDA in the process, so models take turns."""
    done, _ = run_scenario(Case("fp16", "fp16", H200), "two_models")
    assert (done.returncode, done.stderr.strip()) == (0, "")
