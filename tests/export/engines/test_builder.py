"""Graphs that TensorRT would build into something else are refused; builds end in order."""

from __future__ import annotations

import _thread
import importlib
import threading
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.export.engines.conftest import CONTEXT
from varco_export.engines import build as engines
from varco_export.engines import builder as engine_builder
from varco_export.engines import callbacks as build_callbacks
from varco_export.engines import checks as build_checks
from varco_export.engines import log as build_log
from varco_export.engines import timing_cache
from varco_export.engines.builder import Builder
from varco_export.engines.callbacks import build_monitor, engine_writer
from varco_export.engines.log import open_log, process_logger
from varco_export.writing.hashed_file import HashedFile
from varco_runtime.backends.tensorrt.engine_io import engine_io
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.bundle.tensor import Tensor
from varco_runtime.errors import ExportError
from varco_runtime.system import memory as peak_memory

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra dev or tensorrt)")


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
    builder, tensors = Builder.load(is_target_named=True), engine_io(manifest, CONTEXT)["embedding"]
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
            int4 / "projector.onnx", engine_io(manifest, CONTEXT)["projector"], 89, tmp_path / "log"
        )


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_the_interrupt_key_ends_a_build_in_order() -> None:
    cancelled = threading.Event()
    ended = []

    def work() -> bool:
        _thread.interrupt_main()
        assert cancelled.wait(600)  # the monitor's answer to TensorRT
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
