"""TensorRT engines, built by TensorRT for RTX without a GPU: what they hold, what is recorded, what is refused."""

from __future__ import annotations

import _thread
import dataclasses
import fcntl
import importlib
import os
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.conftest import export_bundle
from varco_export import (
    build_callbacks,
    build_checks,
    build_log,
    engine_builder,
    engines,
    peak_memory,
    timing_cache,
)
from varco_export.build_callbacks import build_monitor, engine_writer
from varco_export.build_log import open_log, process_logger
from varco_export.engine_builder import Builder, Built, check_python
from varco_export.engines import EngineOptions, EngineReport, build_engines
from varco_export.output import HashedFile
from varco_export.peak_memory import PeakMemory
from varco_export.timing_cache import load_timings, save_timings
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.bundle import Bundle, read_manifest
from varco_runtime.cli.main import main
from varco_runtime.contract import COMPONENTS, Tensor, contract
from varco_runtime.device_memory import largest_picture
from varco_runtime.errors import BackendError, BundleError, ExportError, UsageError

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra dev or tensorrt)")
CONTEXT = 256


class Quiet:
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, int, int]] = []

    @contextmanager
    def engine(self, name: str, target: str) -> Iterator[Callable[[str, int, int], None]]:
        yield lambda phase, done, steps: self.steps.append((name, phase, done, steps))


def build(bundle: Path, *sm: int, **options: Any) -> list[EngineReport]:
    return build_engines(bundle, EngineOptions(sm, **options), Quiet())


def export(checkpoint: Path, target: Path, decoder: str, **options: Any) -> Path:
    return export_bundle(
        checkpoint, target, **{"device": "tensorrt", "max_context": CONTEXT, **options}, decoder=decoder
    )


REPORTS: list[EngineReport] = []
PROGRESS = Quiet()


@pytest.fixture(scope="module")
def int4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines for SM 89."""
    bundle = export(tiny_checkpoint, tmp_path_factory.mktemp("engines") / "bundle", "int4")
    REPORTS.extend(build_engines(bundle, EngineOptions((89,)), PROGRESS))
    return bundle


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of a few bytes instead of TensorRT's, for tests of what is around them."""

    def write(self: Builder, graph: Path, tensors: Any, profiles: Any, sm: int, target: Path, *rest: Any) -> Built:
        with HashedFile(target) as file:
            file.write(f"{graph.name} for {sm}, {profiles}".encode())
        return Built(file.facts(), 1.0, 2, 3)

    monkeypatch.setattr(Builder, "build", write)


@pytest.fixture
def fresh(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A bundle without engines."""
    return export(tiny_checkpoint, tmp_path / "bundle", "fp16")


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
    tensors = contract(manifest, CONTEXT)["embedding"]
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
        for name, tensors in contract(manifest, CONTEXT).items()
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
    assert prefill == {"sequence": (1, 256, 256), "total": (1, 128, 256), "num_logits": (1, 1, 16)}
    assert decode == {"sequence": (1, 1, 1), "total": (1, 128, 256), "num_logits": (1, 1, 1)}
    assert [set(lengths) for lengths in engines.profiles(manifest, facts["packing"])] == [{"tiles", "tokens"}]


def test_progress_tells_phases_and_peak_memory_is_measured(int4: Path) -> None:
    assert {name for name, *_ in PROGRESS.steps} == set(COMPONENTS)
    assert all(0 <= done <= steps for _, _, done, steps in PROGRESS.steps)
    assert all(report.built.peak_bytes > report.built.facts.size for report in REPORTS)


def test_memory_that_is_used_is_seen() -> None:
    with PeakMemory() as memory:
        content = bytearray(os.urandom(1)) * (64 << 20)
        threading.Event().wait(0.1)
        before = len(content)
        del content
    assert memory.own_bytes > before


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
    assert "engines/sm89/decoder.engine" in out
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


def only(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Let these modules be all that is installed of TensorRT; an exception is raised by the import."""

    def find(name: str) -> Any:
        found = modules.get(name)
        if found is None:
            raise ModuleNotFoundError(name=name)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", find)


def test_no_tensorrt_at_all_is_one_line(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    with pytest.raises(
        BackendError, match=r"neither is installed. Install it with: pip install .*varco-edge\[tensorrt\]"
    ):
        build(int4, 89)


def test_a_tensorrt_that_cannot_be_loaded_is_one_line(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tensorrt_rtx=OSError("libcudart.so.13: cannot open\nmore"))
    with pytest.raises(
        BackendError, match=r"TensorRT for RTX cannot be loaded \(libcudart.so.13: cannot open\). Install"
    ):
        build(int4, 89)


def test_a_tensorrt_whose_dependency_is_missing_is_not_called_missing(
    int4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ModuleNotFoundError("No module named 'cuda_pathfinder'", name="cuda_pathfinder")
    only(monkeypatch, tensorrt_rtx_bindings=error)
    with pytest.raises(
        BackendError, match=r"TensorRT for RTX cannot be loaded \(No module named 'cuda_pathfinder'\). Install"
    ):
        build(int4, 89)


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("tensorrt_rtx", "1.6.2.3", "TensorRT for RTX 1.6.2.3 is too old, engines need native .*: 1.7 or later"),
        ("tensorrt", "10.3.0", "TensorRT 10.3.0 is too old, engines need native .*: 10.15 or later. Update it as"),
    ],
)
def test_a_tensorrt_without_native_cache_updates_is_refused(
    int4: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, message: str
) -> None:
    only(monkeypatch, **{name: types.SimpleNamespace(__version__=version)})
    with pytest.raises(BackendError, match=message):
        build(int4, 89)


def test_an_old_python_is_refused() -> None:
    check_python((3, 11))
    with pytest.raises(BackendError, match=r"Python 3.10 is too old, expected 3.11 or later"):
        check_python((3, 10))


def as_tensorrt() -> types.SimpleNamespace:
    """The bindings at hand under the other product's name, without the choice of a target."""
    names = {name: getattr(trt, name) for name in dir(trt) if not name.startswith("_") and name != "ComputeCapability"}
    return types.SimpleNamespace(**names, __version__="11.4.0.106")


def test_tensorrt_builds_for_the_gpu_that_is_there_alone(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tensorrt=as_tensorrt())
    with pytest.raises(UsageError, match=r"--sm 89 needs TensorRT for RTX, which is not installed"):
        build(int4, 89)


def test_with_both_installed_a_named_target_goes_to_tensorrt_for_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tensorrt=as_tensorrt(), tensorrt_rtx_bindings=trt)
    assert Builder.load(is_target_named=True).name == "tensorrt_rtx"
    assert Builder.load(is_target_named=False).name == "tensorrt"
    assert Builder.load(is_target_named=False).targets() == []


def test_timings_of_kernels_are_kept_for_the_next_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a double: TensorRT times kernels on a GPU."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    given: list[bytes] = []

    class Config:
        def create_timing_cache(self, known: bytes) -> Any:
            given.append(known)
            return types.SimpleNamespace(serialize=lambda: b"timed") if known != b"broken" else None

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
            self.cache = cache

        def get_timing_cache(self) -> Any:
            return self.cache

    builder, config = Builder("tensorrt", as_tensorrt()), Config()
    path = load_timings(builder.name, builder.version, config, 87)
    save_timings(path, config)
    assert path == tmp_path / "cache" / "timings-11.4.0.106-sm87.cache"
    load_timings(builder.name, builder.version, config, 87)
    path.write_bytes(b"broken")
    load_timings(builder.name, builder.version, config, 87)
    assert given == [b"", b"timed", b"broken", b""]
    assert load_timings("tensorrt_rtx", trt.__version__, config, 89) is None


def test_without_a_home_no_timings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(timing_cache, "cache_folder", no_home)
    builder = Builder("tensorrt", as_tensorrt())
    assert load_timings(builder.name, builder.version, None, 87) is None
    save_timings(None, None)


# --- graphs that TensorRT would build into something else -------------------------------------------------------------


def graph(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any]
) -> dict[str, Tensor]:
    """Save a small graph in fp16 and return its contract."""
    kinds = {TensorProto.FLOAT16: "fp16", TensorProto.INT64: "int64"}
    values = {name: helper.make_tensor_value_info(name, *value) for name, value in (inputs | outputs).items()}
    made = helper.make_graph(nodes, "g", [values[name] for name in inputs], [values[name] for name in outputs])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)], ir_version=12), path)
    return {
        name: Tensor(kinds[kind], tuple(shape), name in inputs) for name, (kind, shape) in (inputs | outputs).items()
    }


HALF = TensorProto.FLOAT16


def check(path: Path, tensors: dict[str, Tensor]) -> None:
    Builder.load(is_target_named=True).check(path, tensors, 89, path.with_suffix(".log"))


def test_a_length_that_the_parser_drops_fails_the_build(tmp_path: Path) -> None:
    """Attention's `nonpad_kv_seqlen`: it parses, and is ignored."""
    cache, query = (HALF, [1, 2, 16, 32]), (HALF, [1, 2, 1, 32])
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"])
    inputs = {"q": query, "k": cache, "v": cache, "lengths": (TensorProto.INT64, [1])}
    tensors = graph(tmp_path / "g.onnx", [node], inputs, {"y": query})
    with pytest.raises(ExportError, match=r"lengths"):
        check(tmp_path / "g.onnx", tensors)


def test_an_input_that_nothing_reads_fails_the_build(tmp_path: Path) -> None:
    inputs = {"x": (HALF, [2]), "idle": (HALF, [2])}
    tensors = graph(tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])], inputs, {"y": (HALF, [2])})
    with pytest.raises(ExportError, match=r"g.onnx.* idle"):
        check(tmp_path / "g.onnx", tensors)


def test_a_warning_about_something_unused_fails_the_build(tmp_path: Path) -> None:
    """Whatever it is about: the engine would build cleanly and answer nonsense."""
    with open_log(trt, tmp_path / "log", "g.onnx") as log:
        log.add("WARNING", "Make sure input position_ids has Int64 binding.")
        log.check()
        log.add("WARNING", "Unused Input: nonpad_kv_seqlen")
        with pytest.raises(
            ExportError, match=r"g.onnx: TensorRT dropped something it needs: Unused Input: nonpad.* See"
        ):
            log.check()


def test_warnings_that_go_elsewhere_fail_the_build(tmp_path: Path) -> None:
    """TensorRT keeps the first logger of a process: that of an engine that runs, for instance."""
    with (
        open_log(trt, tmp_path / "log", "g.onnx") as log,
        pytest.raises(ExportError, match=r"TensorRT's warnings go to another part of this program"),
    ):
        log.check()


def test_warnings_are_seen_while_an_earlier_builder_is_alive(int4: Path, tmp_path: Path) -> None:
    manifest = read_manifest(int4)
    builder, tensors = Builder.load(is_target_named=True), contract(manifest, CONTEXT)["embedding"]
    kept = trt.Builder(process_logger(trt))
    for name in ("first", "second"):
        builder.check(int4 / "embedding.onnx", tensors, 89, tmp_path / name)
        assert "token_ids has Int64 binding" in (tmp_path / name).read_text()
    del kept


def test_an_input_that_is_not_in_the_contract_fails_the_build(tmp_path: Path) -> None:
    tensors = graph(
        tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": (HALF, [2])}, {"y": (HALF, [2])}
    )
    tensors["z"] = tensors.pop("x")
    with pytest.raises(ExportError, match=r"g.onnx lost or gained x, z when it was parsed"):
        check(tmp_path / "g.onnx", tensors)


def test_an_operator_that_is_unknown_fails_the_build(tmp_path: Path) -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="example")
    tensors = graph(tmp_path / "g.onnx", [node], {"x": (HALF, [2])}, {"y": (HALF, [2])})
    with pytest.raises(ExportError, match=r"TensorRT for RTX .* cannot parse g.onnx: .*Mystery"):
        check(tmp_path / "g.onnx", tensors)


def test_a_cache_that_is_not_updated_natively_fails_the_build(tmp_path: Path) -> None:
    shape = (HALF, [1, 2, 16, 32])
    node = helper.make_node("Identity", ["past.0.key"], ["present.0.key"])
    tensors = graph(tmp_path / "g.onnx", [node], {"past.0.key": shape}, {"present.0.key": shape})
    with pytest.raises(ExportError, match=r"g.onnx has 1 caches and 0 native updates of them"):
        check(tmp_path / "g.onnx", tensors)


def test_a_plugin_fails_the_build(int4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = engine_builder.count_layers
    monkeypatch.setattr(
        engine_builder, "count_layers", lambda network: count(network) + count(network).__class__(["PLUGIN_V3"])
    )
    manifest = read_manifest(int4)
    with pytest.raises(ExportError, match=r"projector.onnx was parsed into PLUGIN_V3 layers, expected none"):
        Builder.load(True).check(
            int4 / "projector.onnx", contract(manifest, CONTEXT)["projector"], 89, tmp_path / "log"
        )


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
    answers = iter([read(fresh), read(fresh), dataclasses.replace(read(fresh), license="another")])
    monkeypatch.setattr(engines, "read_manifest", lambda folder: next(answers))
    with pytest.raises(ExportError, match=r"was changed while its engines were built"):
        build(fresh, 89)


def test_two_builds_at_once_are_refused(int4: Path) -> None:
    descriptor = os.open(int4, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ExportError, match=r"are being built by another process"):
            build(int4, 89)
    finally:
        os.close(descriptor)


def test_the_interrupt_key_ends_a_build_in_order() -> None:
    cancelled = threading.Event()
    ended = []

    def work() -> bool:
        _thread.interrupt_main()
        assert cancelled.wait(10)  # the monitor's answer to TensorRT
        ended.append(True)
        return False

    with pytest.raises(KeyboardInterrupt):
        engine_builder._run(work, cancelled)
    assert ended == [True]
    monitor = build_monitor(trt, lambda *_: None, cancelled)
    monitor.phase_start("tactics", None, 4)
    assert monitor.step_complete("tactics", 0) is False


def test_an_error_of_a_callback_reaches_the_caller() -> None:
    def fail() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine_builder._run(fail, threading.Event())


def test_a_library_without_streams_gives_the_engine_whole(tmp_path: Path) -> None:
    """As TensorRT did before it could stream."""
    content = memoryview(b"engine")
    builder = types.SimpleNamespace(build_serialized_network=lambda network, config: content)
    with HashedFile(tmp_path / "engine") as file:
        writer = engine_writer(types.SimpleNamespace(), file)
        assert engine_builder._build_to(builder, None, None, writer)
    assert (tmp_path / "engine").read_bytes() == b"engine"


def test_the_engine_builder_needs_neither_onnx_nor_numpy_types() -> None:
    """A Jetson builds engines without the extra 'export'."""
    for module in (engines, engine_builder, build_callbacks, build_checks, build_log, peak_memory, timing_cache):
        source = Path(importlib.import_module(module.__name__).__file__ or "").read_text()
        assert "import onnx" not in source
        assert "ml_dtypes" not in source
