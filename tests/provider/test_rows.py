"""Several answers at once through the real provider: what is captured when, what moves, which kernels serve them."""

from __future__ import annotations

import pytest

from tests.provider.conftest import A100, CASES, FAST, Observed, params, require_provider
from tests.provider.kernel_families import families
from tests.provider.scenario import ROWS
from tests.provider.test_runs import (
    FLAG_BYTES,
    LOGIT_BYTES,
    POSITION_BYTES,
    SETTINGS_BYTES,
    TO_DEVICE,
    TO_HOST,
    TOKEN_BYTES,
    moved,
    vocab_size,
)
from varco_runtime.backends.kernels import FP8_ROWS
from varco_runtime.bundle.opening import read_manifest

require_provider()

DRAWN = 4
"""Rows of the steps that draw or read."""
AMPERE_ON = [case for case in FAST if case.capability >= A100]
FUSED = [case for case in AMPERE_ON if case.decoder in ("int8", "int4")]
FP8 = [case for case in FAST if case.decoder == "fp8"]
PROFILED_GEMV = 16
"""The profiler takes the GEMV below so many rows."""
PRODUCTS = ("cuBLAS", "fpA_intB", "n-bit", "FP8", "unpacking")


def sent(observed: Observed, rows: int) -> list[tuple[str, int]]:
    """The copies to the device before a step: each row's token, or what stands for it, and its length."""
    manifest = read_manifest(observed.bundle)
    token_bytes = TOKEN_BYTES if manifest.embedding is None else 2 * manifest.model.hidden_size
    return [(TO_DEVICE, rows * token_bytes), (TO_DEVICE, rows * POSITION_BYTES)]


@pytest.mark.parametrize("rows", ROWS)
def test_a_step_of_rows_is_captured_once_and_one_replay_then(observed: Observed, rows: int) -> None:
    first, again = (observed.sections[f"rows of {rows}, {time}"] for time in ("first", "again"))
    assert len(first.captures) == 1
    assert (again.num_replays, again.launches, again.captures, again.allocations) == (1, [], [], [])
    assert moved(again) == [*sent(observed, rows), (TO_HOST, rows * TOKEN_BYTES)]


def test_rows_are_drawn_in_one_replay_more(observed: Observed) -> None:
    section = observed.sections["rows drawn, again"]
    assert (section.num_replays, section.launches, section.captures) == (2, [], [])
    settings, flags = DRAWN * SETTINGS_BYTES, DRAWN * vocab_size(observed) * FLAG_BYTES
    draw = [(TO_DEVICE, settings), (TO_DEVICE, flags), (TO_HOST, DRAWN * TOKEN_BYTES)]
    assert moved(section) == [*sent(observed, DRAWN), *draw]


def test_logits_of_rows_come_back_where_the_host_chooses(observed: Observed) -> None:
    back = [(TO_HOST, DRAWN * TOKEN_BYTES), (TO_HOST, DRAWN * vocab_size(observed) * LOGIT_BYTES)]
    assert moved(observed.sections["rows read, again"]) == [*sent(observed, DRAWN), *back]


def test_another_slot_has_a_graph_of_its_own(observed: Observed) -> None:
    first, again = (observed.sections[f"greedy in another slot, {time}"] for time in ("first", "again"))
    assert len(first.captures) == 1
    assert (again.num_replays, again.launches) == (1, [])


def test_a_slot_is_copied_on_the_device(observed: Observed) -> None:
    model = read_manifest(observed.bundle).model
    pieces = 2 * model.num_layers * model.num_key_value_heads
    assert moved(observed.sections["slot copied"]) == [("device to device", 30 * 2 * model.head_dim)] * pieces


@pytest.mark.parametrize("observed", params(FUSED), indirect=True)
@pytest.mark.parametrize("rows", ROWS)
def test_products_of_rows_take_the_gemv_below_its_limit(observed: Observed, rows: int) -> None:
    """Which kernel serves M = 2 .. 16: below 16 rows the one that reads a weight once."""
    num_products = observed.operators["decoder"]["MatMulNBits"]
    found = families(observed.sections[f"rows of {rows}, first"].captures[0])
    family = "fpA_intB GEMV" if rows < PROFILED_GEMV else "fpA_intB"
    assert sum(one.startswith(family) for one in found) == num_products, found


@pytest.mark.parametrize("observed", params(FP8), indirect=True)
@pytest.mark.parametrize("rows", ROWS)
def test_fp8_products_of_rows_take_their_own_kernel(observed: Observed, rows: int) -> None:
    num_products = observed.operators["decoder"]["MatMulBlockQuantizedFp8Weight"]
    found = families(observed.sections[f"rows of {rows}, first"].captures[0])
    assert (found.count("FP8 GEMV on tensor cores") == num_products) is (rows <= FP8_ROWS), found


@pytest.mark.parametrize("observed", params(AMPERE_ON), indirect=True)
@pytest.mark.parametrize("rows", ROWS)
def test_rows_attend_with_xqa_as_one_does(observed: Observed, rows: int) -> None:
    found = families(observed.sections[f"rows of {rows}, first"].captures[0])
    layers = read_manifest(observed.bundle).model.num_layers
    assert [name for name in found if not name.startswith(PRODUCTS)] == ["XQA of 5"] * layers


def test_rows_take_memory_once(observed: Observed) -> None:
    """For their buffers and, as the provider plans memory anew for new shapes, at the first of each number."""
    for rows in ROWS:
        names = [f"rows of {rows}, {time}" for time in ("first", "again")]
        assert observed.free_bytes[names[0]] == observed.free_bytes[names[1]], rows


def test_all_cases_are_there() -> None:
    assert {case.decoder for case in CASES} >= {"int4", "int8", "fp8", "fp16"}
