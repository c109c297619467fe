"""How many answers at once: what is refused, what `auto` takes, and bundles and devices that take one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.makers.earlier_export import without_rows
from tests.makers.inputs import noise_picture
from tests.makers.refusals import assert_refused
from tests.makers.threads import in_threads
from varco_runtime import Varco
from varco_runtime.backend import BatchingBackend
from varco_runtime.errors import UsageError


@pytest.fixture
def earlier_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose decoder takes one sequence, as exports wrote it before there were slots."""
    return without_rows(tiny_bundle, tmp_path / "earlier")


@pytest.mark.parametrize("slots", [0, -1, 65, 10**9])
def test_a_number_out_of_range_is_refused(tiny_bundle: Path, slots: int) -> None:
    assert_refused(tiny_bundle, UsageError, rf"slots={slots} is out of range\. Expected 1 to 64", slots=slots)


@pytest.mark.parametrize("slots", [1.5, "many", "4", None, True, float("nan")])
def test_what_is_no_number_is_refused(tiny_bundle: Path, slots: object) -> None:
    assert_refused(tiny_bundle, UsageError, r"slots=.* is no whole number\. Expected 1 to 64, or 'auto'", slots=slots)


@pytest.mark.parametrize("stall", [-1, float("inf"), float("nan"), "long", True])
def test_a_stall_limit_that_is_no_time_is_refused(tiny_bundle: Path, stall: object) -> None:
    assert_refused(tiny_bundle, UsageError, r"max_stall_ms=.* is no time\. Expected milliseconds", max_stall_ms=stall)


def test_more_than_memory_holds_is_refused_with_the_sum(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    varco = Varco.load(tiny_bundle, threads=1, max_context=256)
    per_slot = varco.bundle.manifest.kv_bytes_per_token * 256
    monkeypatch.setattr("varco_runtime.backends.slots.machine_memory", lambda: (None, 5 * per_slot + 1))
    message = rf"slots=6 needs 6 x {per_slot / 1e6:.1f} MB = .* for keys and values, .* are free: 5 fit\. Load with"
    assert_refused(tiny_bundle, UsageError, message, slots=6, max_context=256, threads=1)
    assert Varco.load(tiny_bundle, threads=1, max_context=256, slots=5).slots == 5


@pytest.mark.parametrize(("num_fitting", "expected"), [(0, 1), (3, 3), (100, 8)])
def test_auto_takes_what_fits_in_half_of_the_free_memory_and_says_so(
    tiny_bundle: Path, num_fitting: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_slot = Varco.load(tiny_bundle, threads=1, max_context=256).bundle.manifest.kv_bytes_per_token * 256
    monkeypatch.setattr("varco_runtime.backends.slots.machine_memory", lambda: (None, 2 * num_fitting * per_slot))
    varco = Varco.load(tiny_bundle, threads=1, max_context=256, slots="auto")
    assert varco.slots == expected
    assert varco.slots_line.startswith(f"{expected} slots of {per_slot / 1e6:.1f} MB each")
    assert "are free" in varco.slots_line


def test_a_bundle_of_an_earlier_export_takes_one_answer_at_a_time_and_says_so(
    earlier_bundle: Path, tiny_bundle: Path
) -> None:
    expected = Varco.load(tiny_bundle, threads=1).ask(None, "Hello", max_new_tokens=8).token_ids
    varco = Varco.load(earlier_bundle, threads=1)
    assert (varco.slots, varco.slots_line) == (1, "")
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == expected
    auto = Varco.load(earlier_bundle, threads=1, slots="auto")
    assert (auto.slots, auto.slots_line) == (
        1,
        "1 slot: the bundle is of an earlier export, whose decoder takes one answer at a time",
    )
    assert_refused(earlier_bundle, UsageError, r"slots=2 is too many: this bundle is of an earlier export", slots=2)


def test_openvino_answers_several_questions_in_one_run(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    exact = {"provider": "openvino", "precision": "fp32", "threads": 1, "max_context": 512}
    alone, varco = (Varco.load(tiny_bundle, slots=slots, **exact) for slots in (1, 3))  # type: ignore[arg-type]
    picture = noise_picture(3)
    asked = [(picture if index % 2 else None, f"Question {index}?") for index in range(5)]
    found: dict[int, tuple[int, ...]] = {}
    in_threads(lambda index: found.update({index: varco.ask(*asked[index], max_new_tokens=8).token_ids}), len(asked))
    assert varco.slots == 3
    assert [found[index] for index in range(5)] == [alone.ask(*one, max_new_tokens=8).token_ids for one in asked]
    assert isinstance(varco.backend, BatchingBackend)


def test_openvino_has_slots_for_bundles_of_earlier_exports(earlier_bundle: Path, tiny_bundle: Path) -> None:
    """There the runtime lays out keys and values, not the graph."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    earlier = Varco.load(earlier_bundle, "openvino", threads=1, precision="fp32", slots=2)
    cpu = Varco.load(tiny_bundle, "cpu", threads=1)
    assert earlier.slots == 2
    assert earlier.ask(None, "Hello", max_new_tokens=8).token_ids == cpu.ask(None, "Hello", max_new_tokens=8).token_ids
