"""Engines for several answers at once, built by TensorRT for RTX without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.engines.conftest import CONTEXT, build, export
from tests.makers.earlier_export import without_rows
from varco_cli.main import main
from varco_export.engines.build import profiles
from varco_export.engines.builder import Builder
from varco_runtime.backends.tensorrt.engine_io import COMPONENTS, engine_io
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.bundle.opening import Bundle, read_manifest
from varco_runtime.errors import BundleError, UsageError

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra dev or tensorrt)")
SLOTS = 4


def test_a_decoder_of_four_rows_has_native_caches_and_nothing_is_dropped(int4: Path, tmp_path: Path) -> None:
    manifest, builder = read_manifest(int4), Builder.load(is_target_named=True)
    tensors = engine_io(manifest, CONTEXT, SLOTS)["decoder"]
    found = builder.check(int4 / manifest.decoder.file, tensors, 89, tmp_path / "log")
    num_layers = manifest.model.num_layers
    assert found["KV_CACHE_UPDATE"] == found["ROTARY_EMBEDDING"] == 2 * num_layers
    assert found["ATTENTION_INPUT"] == found["ATTENTION_OUTPUT"] == num_layers
    assert found["SOFTMAX"] == 0, "attention was taken apart"


@pytest.mark.parametrize("decoder", ["int4", pytest.param("fp16", marks=pytest.mark.full)])
def test_engines_build_with_four_rows(tiny_checkpoint: Path, tmp_path: Path, decoder: str) -> None:
    bundle = export(tiny_checkpoint, tmp_path / "bundle", decoder)
    reports = build(bundle, 89, slots=SLOTS)
    manifest = Bundle.open(bundle, verify="full").manifest
    assert [report.facts.component for report in reports] == list(COMPONENTS)
    assert {engine.component: engine.num_slots for engine in manifest.engines} == dict.fromkeys(COMPONENTS, 1) | {
        "decoder": SLOTS
    }
    prefill, one, rows = profiles(manifest, reports[-1].facts)
    assert (prefill[BATCH], one[BATCH], rows[BATCH]) == ((1, 1, 1), (1, 1, 1), (2, SLOTS, SLOTS))
    assert {name: lengths for name, lengths in rows.items() if name != BATCH} == {
        name: lengths for name, lengths in one.items() if name != BATCH
    }


@pytest.mark.usefixtures("quick")
def test_the_command_takes_slots(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", str(fresh), "--sm", "89", "--slots", "4"]) == 0
    assert "sm89/decoder " in capfd.readouterr().out
    assert [engine.slots for engine in read_manifest(fresh).engines] == [None] * 4 + [4]


@pytest.mark.parametrize("slots", [0, -1, 65])
def test_a_number_out_of_range_is_refused(fresh: Path, slots: int) -> None:
    with pytest.raises(UsageError, match=rf"--slots {slots} is out of range\. Expected 1 to 64\."):
        build(fresh, 89, slots=slots)


def test_a_context_whose_slots_begin_at_odd_addresses_is_refused(fresh: Path) -> None:
    """TensorRT takes addresses at multiples of 256 bytes."""
    with pytest.raises(UsageError, match=r"Slots of 255 positions do not begin .* 256 bytes.*--max-context 25\d\."):
        build(fresh, 89, slots=2, max_context=255)


def test_a_graph_of_an_earlier_export_is_refused(fresh: Path, tmp_path: Path) -> None:
    folder = without_rows(fresh, tmp_path / "earlier")
    with pytest.raises(BundleError, match=r"is of an earlier export, whose decoder takes one sequence\. Export it"):
        build(folder, 89, slots=2)
