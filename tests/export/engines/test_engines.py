"""TensorRT engines, built by TensorRT for RTX without a GPU: what they hold, what is recorded, what is refused."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from tests.export.engines.conftest import CONTEXT, PROGRESS, REPORTS, Quiet, build, export
from varco_cli.main import main
from varco_export.engines import build as engines
from varco_export.engines import builder as engine_builder
from varco_export.engines.build import EngineOptions, build_engines
from varco_export.engines.builder import Builder
from varco_export.tiny import TinyOptions, make_tiny
from varco_export.writing.hashed_file import HashedFile
from varco_runtime.backends.tensorrt.engine_io import COMPONENTS, engine_io
from varco_runtime.bundle.opening import Bundle, read_manifest
from varco_runtime.errors import BackendError, BundleError, ExportError, UsageError
from varco_runtime.picture.packing import largest_picture
from varco_runtime.system.memory import PeakMemory

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra dev or tensorrt)")


# --- what is built ----------------------------------------------------------------------------------------------------


def test_the_engines_are_recorded_with_builder_target_precision_profiles_and_hash(int4: Path) -> None:
    manifest = Bundle.open(int4, verify="full").manifest
    assert [engine.component for engine in manifest.engines] == list(COMPONENTS)
    most_tiles, _ = largest_picture(manifest.image)
    tiles = dict.fromkeys(COMPONENTS, engines.USUAL_TILES) | {"packing": most_tiles}  # a picture is packed whole
    for engine in manifest.engines:
        assert engine.file == f"engines/sm89/{engine.component}.engine"
        assert (engine.builder, engine.builder_version, engine.target) == ("tensorrt_rtx", trt.__version__, "sm89")
        assert engine.precision == manifest.components[engine.component].precision
        assert (engine.max_context, engine.max_tiles) == (CONTEXT, tiles[engine.component])
        assert (engine.prefill_tokens, engine.max_logits) == (CONTEXT, 16)
        assert manifest.files[engine.file].size == (int4 / engine.file).stat().st_size
    assert not (int4 / "engines" / ".sm89.partial").exists()
    assert "decoder.onnx" in (int4 / "engines" / "sm89.log").read_text()


def test_engines_take_their_memory_from_the_runtime_so_that_a_graph_can_hold_a_pass(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A finished engine does not tell its flags without a GPU, so they are read before the build."""
    configs: list[Any] = []
    add_profile = engine_builder._add_profile
    monkeypatch.setattr(
        engine_builder,
        "_add_profile",
        lambda builder, config, *rest: (configs.append(config), add_profile(builder, config, *rest)),
    )
    manifest, builder = read_manifest(fresh), Builder.load(is_target_named=True)
    tensors = engine_io(manifest, CONTEXT)["embedding"]
    lengths = [{"sequence": (1, 4, 16)}]
    graph, log = fresh / manifest.components["embedding"].file, tmp_path / "log"
    built = builder.build(graph, tensors, lengths, 89, tmp_path / "embedding.engine", log, lambda *_: None)
    assert [config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION) for config in configs] == [True]
    assert built.facts.size == (tmp_path / "embedding.engine").stat().st_size


@pytest.mark.full
@pytest.mark.parametrize("sm", [86, 89, 120])
@pytest.mark.parametrize("decoder", ["fp16", "bf16", "int8", "int4", "fp8"])
def test_engines_build_for_every_target_that_computes_in_the_type(
    tiny_checkpoint: Path, tmp_path: Path, decoder: str, sm: int
) -> None:
    bundle = export(tiny_checkpoint, tmp_path / "bundle", decoder)
    if (decoder, sm) == ("fp8", 86):
        with pytest.raises(UsageError, match=r"decoder.onnx holds fp8, which SM 86 does not compute in"):
            build(bundle, sm)
        assert not read_manifest(bundle).engines
        return
    reports = build(bundle, sm)
    assert [report.facts.target for report in reports] == [f"sm{sm}"] * 5
    Bundle.open(bundle, verify="full")


def test_attention_caches_and_rotations_are_native_layers(int4: Path, tmp_path: Path) -> None:
    manifest = read_manifest(int4)
    builder = Builder.load(is_target_named=True)
    found = {
        name: builder.check(int4 / manifest.components[name].file, tensors, 89, tmp_path / "log")
        for name, tensors in engine_io(manifest, CONTEXT).items()
    }
    num_layers = manifest.model.num_layers
    assert found["decoder"]["KV_CACHE_UPDATE"] == 2 * num_layers
    assert found["decoder"]["ROTARY_EMBEDDING"] == 2 * num_layers
    assert found["decoder"]["ATTENTION_INPUT"] == found["decoder"]["ATTENTION_OUTPUT"] == num_layers
    assert found["decoder"]["DEQUANTIZE"] == 4 * num_layers
    assert found["decoder"]["SOFTMAX"] == 0, "attention was taken apart"
    assert found["vision"]["ATTENTION_INPUT"] == manifest.model.vision_layers
    assert not [kind for layers in found.values() for kind in layers if kind.startswith("PLUGIN")]


@pytest.mark.full
@pytest.mark.parametrize("decoder", ["fp16", "bf16", "int8", "int4", "fp8"])
def test_both_profiles_share_the_weights(tmp_path: Path, decoder: str) -> None:
    """Kernels aside, of which a small network has its share."""
    options = TinyOptions(seed=1, num_hidden_layers=1, hidden_size=1024, num_attention_heads=8, intermediate_size=4096)
    bundle = export(make_tiny(tmp_path / "checkpoint", options), tmp_path / "bundle", decoder)
    *_, report = build(bundle, 89)
    assert report.weight_bytes > 9e6
    assert report.built.facts.size < report.weight_bytes + 8e6


@pytest.mark.full
def test_a_shorter_context_makes_shorter_caches(fresh: Path) -> None:
    """TensorRT refuses a cache whose update has another shape."""
    build(fresh, 120, max_context=64, max_tiles=3)
    Bundle.open(fresh, verify="full")


@pytest.mark.usefixtures("quick")
def test_each_engine_reaches_as_far_as_asked(fresh: Path) -> None:
    reports = build(fresh, 120, max_context=64, max_tiles=3)
    by_name = {report.facts.component: report.facts for report in reports}
    assert by_name["decoder"].max_context == by_name["decoder"].prefill_tokens == 64
    assert by_name["vision"].max_tiles == by_name["projector"].max_tiles == 3
    assert by_name["packing"].max_tiles == largest_picture(read_manifest(fresh).image)[0], "a picture is packed whole"


def test_the_profiles_are_prefill_and_decode(int4: Path) -> None:
    manifest = read_manifest(int4)
    facts = {engine.component: engine for engine in manifest.engines}
    prefill, decode = engines.profiles(manifest, facts["decoder"])
    one_row = {"batch": (1, 1, 1), "total": (1, 128, 256)}
    assert prefill == {"sequence": (1, 256, 256), "num_logits": (1, 1, 16), **one_row}
    assert decode == {"sequence": (1, 1, 1), "num_logits": (1, 1, 1), **one_row}
    assert [set(lengths) for lengths in engines.profiles(manifest, facts["packing"])] == [{"tiles", "tokens"}]


def test_progress_tells_phases_and_peak_memory_is_measured(int4: Path) -> None:
    assert {name for name, *_ in PROGRESS.steps} == set(COMPONENTS)
    assert all(0 <= done <= steps for _, _, done, steps in PROGRESS.steps)
    assert all(report.built.peak_bytes > report.built.facts.size for report in REPORTS)


def test_memory_that_is_used_is_seen() -> None:
    with PeakMemory() as memory:
        before = memory.own_bytes
        content = bytearray(os.urandom(1)) * (64 << 20)
        for _ in range(3000):  # a busy machine looks late
            if memory.own_bytes >= before + (48 << 20):
                break
            threading.Event().wait(0.02)
        del content
    assert memory.own_bytes >= before + (48 << 20)


@pytest.mark.usefixtures("quick")
def test_building_again_replaces_the_engines_of_that_target_alone(fresh: Path) -> None:
    build(fresh, 89)
    build(fresh, 120)
    first = read_manifest(fresh)
    build(fresh, 89, max_context=64)
    manifest = Bundle.open(fresh, verify="full").manifest
    assert [engine.target for engine in manifest.engines] == ["sm120"] * 5 + ["sm89"] * 5
    assert {engine.max_context for engine in manifest.engines if engine.target == "sm89"} == {64}
    assert [engine for engine in manifest.engines if engine.target == "sm120"] == [
        engine for engine in first.engines if engine.target == "sm120"
    ]


def test_inspect_lists_networks_and_engines(int4: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(int4)]) == 0
    out, _ = capfd.readouterr()
    for name in COMPONENTS:
        assert f"engines/sm89/{name}.engine" in out
    assert "int4 (blocks of 32, fp16 activations), head fp16" in out
    assert "256 tokens, 256 at a time" in out
    assert "read per token" in out


@pytest.mark.usefixtures("quick")
def test_the_command_builds_and_reports(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", str(fresh), "--sm", "89"]) == 0
    out, err = capfd.readouterr()
    assert "sm89/decoder " in out
    assert "peak memory" in out
    assert "sm89 decoder: built in" in err
    assert "build it on your own machine" in err


# --- what is refused, and what stays as it was ------------------------------------------------------------------------


def test_a_type_that_the_target_lacks_is_refused_before_anything_is_built(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = export(tiny_checkpoint, tmp_path / "bundle", "fp8")
    progress = Quiet()
    with pytest.raises(UsageError, match=r"fp8, which SM 86 does not compute in; that begins with SM 89"):
        build_engines(bundle, EngineOptions((120, 86)), progress)
    assert not progress.steps
    assert not read_manifest(bundle).engines


def test_fp32_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"computes in fp32, for which TensorRT has no attention kernel"):
        build(export(tiny_checkpoint, tmp_path / "bundle", "fp32"), 89)


def test_an_unknown_target_is_refused_with_the_known_ones(int4: Path) -> None:
    with pytest.raises(UsageError, match=r"does not build for SM 90. Expected one of: 75, 80, 86, 89, 120, 121"):
        build(int4, 90)


def test_a_bundle_for_another_device_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"was exported for cpu, engines are built from graphs for TensorRT"):
        build(tiny_bundle, 89)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_context": 257}, "--max-context 257 is out of range. Expected 16 to 256"),
        ({"max_context": 15}, "--max-context 15 is out of range"),
        ({"max_tiles": 0}, "--max-tiles 0 is out of range. Expected 1 to 37"),
        ({"max_tiles": 38}, "--max-tiles 38 is out of range"),
    ],
)
def test_a_limit_beyond_the_bundle_is_refused(int4: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(int4, 89, **options)


def test_without_a_gpu_the_target_must_be_named(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> None:
        raise BackendError("There is no NVIDIA driver here. Install it.")

    monkeypatch.setattr(engines, "Cuda", no_gpu)
    with pytest.raises(
        BackendError, match=r"found \(There is no NVIDIA driver here\). Name the target with --sm, one of: 75"
    ):
        build(int4)


@pytest.mark.usefixtures("quick")
def test_the_gpu_that_is_there_is_the_target(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(
        engines, "Cuda", lambda: types.SimpleNamespace(target="sm89", close=lambda: closed.append(True))
    )
    assert {report.facts.target for report in build(fresh)} == {"sm89"}
    assert closed == [True]


def test_a_build_that_fails_leaves_the_bundle_as_it_was(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_manifest(int4)
    monkeypatch.setattr(engine_builder, "_add_profile", lambda *_: None)  # TensorRT refuses open lengths without
    with pytest.raises(ExportError, match=r"could not build vision.engine: .* See .*sm89.log"):
        build(int4, 89, max_context=64)
    assert Bundle.open(int4, verify="full").manifest == before
    assert sorted(path.name for path in (int4 / "engines").iterdir()) == ["sm89", "sm89.log"]


def test_a_full_disk_is_one_line_and_leaves_the_bundle_as_it_was(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: HashedFile, data: Any) -> int:
        raise ExportError(f"{self.path} could not be written: No space left on device.")

    monkeypatch.setattr(HashedFile, "write", full)
    with pytest.raises(ExportError, match=r"vision.engine could not be written: No space left"):
        build(fresh, 89)
    monkeypatch.undo()
    assert not Bundle.open(fresh, verify="full").manifest.engines
    assert not (fresh / "engines" / "sm89").exists()


def test_a_folder_that_cannot_be_written_is_one_line(fresh: Path) -> None:
    (fresh / "engines").write_text("in the way")
    with pytest.raises(ExportError, match=r"could not be written: .*Expected a writable bundle"):
        build(fresh, 89)


def test_an_altered_graph_is_not_parsed(fresh: Path) -> None:
    path = fresh / "vision.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"vision.onnx has been altered"):
        build(fresh, 89)


@pytest.mark.usefixtures("quick")
def test_a_bundle_that_changes_meanwhile_is_not_recorded(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = engines.read_manifest
    answers = iter([read(fresh), dataclasses.replace(read(fresh), license="another")])
    monkeypatch.setattr(engines, "read_manifest", lambda folder: next(answers))
    with pytest.raises(ExportError, match=r"was changed while its engines were built"):
        build(fresh, 89)


@pytest.mark.usefixtures("quick")
def test_graphs_that_are_exchanged_meanwhile_make_no_engines(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_manifest(fresh)
    check = engines._check_target

    def exchanging(*given: Any) -> None:
        check(*given)
        shutil.copy(fresh / "vision.onnx", fresh / "copy")
        os.replace(fresh / "copy", fresh / "vision.onnx")

    monkeypatch.setattr(engines, "_check_target", exchanging)
    with pytest.raises(BundleError, match=r"vision\.onnx was exchanged"):
        build(fresh, 89)
    assert read_manifest(fresh) == before


def test_two_builds_at_once_are_refused(int4: Path) -> None:
    descriptor = os.open(int4, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ExportError, match=r"are being built by another process"):
            build(int4, 89)
    finally:
        os.close(descriptor)
