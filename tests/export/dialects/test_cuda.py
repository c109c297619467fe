"""The graphs of a bundle for CUDA: what they hold, what they compute on the CPU, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from tests.conftest import export_bundle
from tests.makers.cuda_graphs import FP8_OPERATOR, export_in_fp32
from tests.makers.exported_weights import ExportedDecoder, assert_equal_bit_for_bit, exported_linears
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint
from varco_export.dialects.cuda import CudaDialect
from varco_export.networks.pixels import emit_pixels
from varco_export.precision import INTEGERS_IN_BF16, Precision
from varco_export.reading.names import canonical_name
from varco_export.tiny import TinyOptions, make_tiny
from varco_export.writing.graph import Graph
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import BackendError, UsageError
from varco_runtime.picture.packing import pack, packing_plan
from varco_runtime.picture.tiles import normalize
from varco_runtime.probes.replay import read_probes, replay

Array = np.ndarray[Any, Any]
DECODERS = ("fp16", "bf16", "int8", "int4", "fp8")
FUSED = TinyOptions(
    seed=3, hidden_size=128, num_attention_heads=8, num_key_value_heads=4, intermediate_size=192, vocab_size=576
)
"""Every linear has a multiple of 64 output features, which the fused kernel asks for."""

CUDA_KERNELS = {
    "": {
        *("Add", "And", "Attention", "Cast", "Concat", "CumSum", "Div", "Exp", "Gather", "GatherElements", "Gelu"),
        *("Greater", "GreaterOrEqual", "LayerNormalization", "Less", "MatMul", "Mul", "RMSNormalization", "Reshape"),
        *("ScatterElements", "Slice", "Sub", "TopK", "Transpose", "Unsqueeze", "Where"),
    },
    "com.microsoft": {
        *("FastGelu", "FusedMatMul", "GatedRMSNorm", "GroupQueryAttention", FP8_OPERATOR, "MatMulNBits", "QuickGelu"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    },
}
"""Operators with a CUDA kernel for fp16 and bf16 at opset 23 that needs no cuDNN (onnxruntime's OperatorKernels.md)."""


@pytest.fixture(scope="module")
def fused_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("fused") / "original", FUSED)


@pytest.fixture(scope="module")
def bf16_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("bf16") / "checkpoint", TinyOptions(dtype="bf16"))


@pytest.fixture(scope="module")
def varco(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Varco:
    folder = tmp_path_factory.mktemp("cuda") / "bundle"
    return Varco.load(export_in_fp32(tiny_checkpoint, folder), provider="cpu", threads=1)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_graph_is_valid_and_has_a_cuda_kernel_for_each_node(
    tiny_checkpoint: Path, tmp_path: Path, decoder: str
) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="cuda", decoder=decoder, max_context=64)
    manifest = read_manifest(bundle)
    assert list(manifest.components) == ["pixels", "vision", "projector", "packing", "decoder", "sampling"]
    for component in manifest.components.values():
        path = bundle / component.file
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            assert node.op_type in CUDA_KERNELS[node.domain], f"{component.file}: {node.name}"
        read = {name for node in model.graph.node for name in node.input}
        assert {value.name for value in (*model.graph.input, *model.graph.initializer)} <= read


@pytest.mark.parametrize("decoder", ["fp16", "bf16", "int4"])
def test_shape_inference_reaches_the_outputs(tiny_checkpoint: Path, tmp_path: Path, decoder: str) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="cuda", decoder=decoder, max_context=64)
    for component in read_manifest(bundle).components.values():
        model = onnx.shape_inference.infer_shapes(
            onnx.load(bundle / component.file, load_external_data=False), strict_mode=True, data_prop=True
        )
        for value in model.graph.output:
            assert value.type.tensor_type.HasField("shape"), f"{component.file}: {value.name}"


def test_fp16_and_bf16_are_the_same_graph(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Why numbers that were tested in fp16 and fp32 speak for bf16, which no CPU runs."""

    def nodes(decoder: str) -> list[Any]:
        bundle = export_bundle(tiny_checkpoint, tmp_path / decoder, device="cuda", decoder=decoder, max_context=64)
        graphs = [onnx.load(path, load_external_data=False).graph for path in sorted(bundle.glob("*.onnx"))]
        return [(node.op_type, list(node.input), list(node.output)) for graph in graphs for node in graph.node]

    assert nodes("fp16") == nodes("bf16")


@pytest.mark.parametrize(
    ("options", "compute"),
    [
        ({}, "bf16"),
        ({"decoder": "fp8"}, "bf16"),
        ({"decoder": "int4"}, "fp16"),
        ({"decoder": "int8", "lm_head": "int8"}, "fp16"),
        ({"lm_head": "int4"}, "fp16"),
        ({"decoder": "int4", "vision": "bf16"}, "bf16"),
        ({"decoder": "int4", "lm_head": "bf16"}, "bf16"),
        ({"decoder": "bf16", "lm_head": "int8"}, "bf16"),
    ],
)
def test_integers_of_a_checkpoint_in_bf16_compute_in_fp16_unless_asked(
    bf16_checkpoint: Path, tmp_path: Path, options: dict[str, str], compute: str
) -> None:
    """Integer products in bf16 cost accuracy, and export says so where it was asked for them."""
    manifest = read_manifest(
        export_bundle(bf16_checkpoint, tmp_path / "bundle", device="cuda", max_context=64, **options)
    )
    computes = {name: part.compute for name, part in manifest.components.items()}
    assert (computes.pop("pixels"), computes.pop("sampling")) == ("fp32", "fp32")
    assert set(computes.values()) == {compute}
    has_integers = any(kind in ("int4", "int8") for kind in options.values())
    assert (INTEGERS_IN_BF16 in manifest.provenance["notes"]) == (has_integers and compute == "bf16")


def test_integers_of_a_quantized_checkpoint_in_bf16_compute_in_fp16_unless_asked(
    bf16_checkpoint: Path, tmp_path: Path
) -> None:
    pack_checkpoint(bf16_checkpoint, tmp_path / "packed", GptqPacking(group_size=32))
    for options, compute in (({}, "fp16"), ({"vision": "bf16"}, "bf16")):
        folder = tmp_path / compute
        manifest = read_manifest(export_bundle(tmp_path / "packed", folder, device="cuda", max_context=64, **options))
        assert manifest.decoder.compute == compute
        assert (INTEGERS_IN_BF16 in manifest.provenance["notes"]) == (compute == "bf16")


def test_a_step_reads_one_row_of_the_token_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16", max_context=64)
    manifest = read_manifest(bundle)
    held = onnx.load(bundle / "decoder.onnx", load_external_data=False).graph.initializer
    lengths = [int(entry.value) for tensor in held for entry in tensor.external_data if entry.key == "length"]
    table = (manifest.model.vocab_size - 1) * manifest.model.hidden_size * 2
    assert manifest.decoder.weight_bytes == sum(lengths) - table


# --- integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [64, 128, -1])
def test_gptq_groups_become_blocks_of_32_with_the_same_weights(
    fused_checkpoint: Path, tmp_path: Path, group_size: int
) -> None:
    expected = pack_checkpoint(fused_checkpoint, tmp_path / "packed", GptqPacking(group_size=group_size))
    bundle = export_bundle(tmp_path / "packed", tmp_path / "bundle", device="cuda", vision="fp16", max_context=64)
    nodes = ExportedDecoder(bundle).nodes("MatMulNBits")
    assert len(nodes) == 10
    for node in nodes:
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        assert (settings["block_size"], settings["N"] % 64, len(node.input)) == (32, 0, 3), node.name
    got = exported_linears(bundle, FUSED)
    named = {str(canonical_name(name)).removesuffix(".weight"): rows for name, rows in expected.items()}
    assert_equal_bit_for_bit({name: got[name] for name in named}, named)


@pytest.mark.parametrize(("sym", "vision", "block_size"), [(False, "fp16", 64), (True, "bf16", 32)])
def test_only_symmetric_groups_are_cut_for_the_fused_kernel(
    fused_checkpoint: Path, tmp_path: Path, sym: bool, vision: str, block_size: int
) -> None:
    pack_checkpoint(fused_checkpoint, tmp_path / "packed", GptqPacking(group_size=64, sym=sym))
    bundle = export_bundle(tmp_path / "packed", tmp_path / "bundle", device="cuda", vision=vision, max_context=64)
    for node in ExportedDecoder(bundle).nodes("MatMulNBits"):
        assert {attribute.name: attribute.i for attribute in node.attribute}["block_size"] == block_size


# --- FP8 --------------------------------------------------------------------------------------------------------------


def test_the_fp8_product_is_the_operator_that_onnxruntime_declares(tiny_checkpoint: Path, tmp_path: Path) -> None:
    schema = next(one for one in get_all_operator_schema() if one.name == FP8_OPERATOR)
    assert [one.name for one in schema.inputs] == ["A", "B", "b_scale", "a_scale", "bias"]
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="cuda", decoder="fp8", max_context=64)
    decoder = ExportedDecoder(bundle)
    nodes = decoder.nodes(FP8_OPERATOR)
    assert len(nodes) == 10
    for node in nodes:
        assert {attribute.name for attribute in node.attribute} <= set(schema.attributes)
        weight, scales = (decoder.tensors[name] for name in node.input[1:3])
        assert (weight.dtype.name, scales.dtype.name) == ("float8_e4m3fn", "float32")
        block_size = node.attribute[0].i
        assert scales.shape == (len(weight), -(-weight.shape[1] // block_size)), "[N, ceil(K / block_size)]"


def test_inputs_with_one_scale_are_rounded_by_the_operator_and_others_are_not(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the packer needs compressed-tensors")
    from tests.makers.compressed_packer import CompressedPacking, compress_checkpoint

    fp8 = {"num_bits": 8, "type": "float"}
    token = {**fp8, "strategy": "token", "dynamic": True}
    original = make_tiny(tmp_path / "original", TinyOptions(hidden_size=64, intermediate_size=96))
    for name, packing, is_rounded in (
        ("static", CompressedPacking({**fp8, "strategy": "tensor"}, {**fp8, "strategy": "tensor"}), True),
        ("token", CompressedPacking({**fp8, "strategy": "channel"}, token), False),
    ):
        compress_checkpoint(original, tmp_path / name, packing)
        bundle = export_bundle(tmp_path / name, tmp_path / f"bundle-{name}", device="cuda", max_context=64)
        nodes = ExportedDecoder(bundle).nodes(FP8_OPERATOR)
        assert nodes
        assert {any(node.input[3:4]) for node in nodes} == {is_rounded}
        assert [len(node.input) == 5 for node in nodes] == [node.input[-1].endswith(".bias") for node in nodes]


def test_fp8_rounds_to_the_nearest(tiny_checkpoint: Path, tmp_path: Path) -> None:
    exact = exported_linears(export_in_fp32(tiny_checkpoint, tmp_path / "exact", decoder="fp16"), TinyOptions(seed=1))
    got = exported_linears(export_in_fp32(tiny_checkpoint, tmp_path / "fp8", decoder="fp8"), TinyOptions(seed=1))
    for name, rows in got.items():
        largest = np.abs(exact[name]).max(axis=1, keepdims=True)
        assert (np.abs(rows - exact[name]) / largest).max() <= (0 if name == "lm_head" else 1 / 16 * 1.001), name


# --- what they compute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "operators"), [(1536, ["GatedRMSNorm"]), (160, ["QuickGelu", "Mul"])])
@pytest.mark.parametrize("compute", ["fp16", "fp32"])
def test_gate_and_up_are_multiplied_without_loss(
    tmp_path: Path, compute: str, width: int, operators: list[str]
) -> None:
    """For ups as an MLP has them, and with single ones near the end of fp16."""
    numpy_type = {"fp16": np.float16, "fp32": np.float32}[compute]
    with Graph("gate", tmp_path) as graph:
        dialect = CudaDialect(graph, Precision(compute, compute, compute))
        gate, up = (graph.input(name, compute, [1, "sequence", width]) for name in ("gate", "up"))
        graph.rename(dialect.multiply_gate(gate, up, width), graph.output("y", compute, [1, "sequence", width]))
        graph.save()
    path = tmp_path / "gate.onnx"
    assert [node.op_type for node in onnx.load(path).graph.node] == operators
    rng = np.random.default_rng(0)
    gate_values = (3 * rng.standard_normal((1, 6, width))).astype(numpy_type)
    up_values = rng.standard_normal((1, 6, width)) * np.array([0.01, 0.3, 1, 10, 100, 500])[:, None]
    up_values[:, :, ::600] = 15000
    up_values = up_values.astype(numpy_type)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"gate": gate_values, "up": up_values})
    wide_gate, wide_up = gate_values.astype(np.float64), up_values.astype(np.float64)
    exact = wide_gate / (1 + np.exp(-wide_gate)) * wide_up
    # The result's rounding and as much again; the CPU's sigmoid is off by about 1e-6, in fp16 by 1e-3.
    coarse = compute == "fp16" and operators[0] == "QuickGelu"
    allowed = {"fp16": 2.0**-10, "fp32": 2.0**-18}[compute] * np.abs(exact)
    allowed += (2e-3 if coarse else 2e-6) * np.abs(wide_gate * wide_up)
    allowed += 2.0**-25  # half of fp16's smallest number
    within = np.abs(exact) < 60000
    assert (np.abs(found.astype(np.float64) - exact) <= allowed)[within].all()


@pytest.mark.parametrize("decoder", ["fp16", "int8", "int4"])
def test_what_has_cpu_kernels_answers_on_the_cpu(tiny_checkpoint: Path, tmp_path: Path, decoder: str) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="cuda", decoder=decoder, max_context=512)
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    answer = Varco.load(bundle, provider="cpu", threads=1).ask(image, "What is this?", max_new_tokens=6)
    assert len(answer.token_ids) == 6


def test_an_answer_equals_that_of_the_bundle_for_the_cpu(varco: Varco, tiny_bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    expected = Varco.load(tiny_bundle, threads=1).ask(image, "What is this?", max_new_tokens=48)
    assert varco.ask(image, "What is this?", max_new_tokens=48).token_ids == expected.token_ids


@pytest.mark.parametrize("size_hw", [(480, 640), (37, 100), (960, 1168)])
def test_packing_equals_numpy(varco: Varco, size_hw: tuple[int, int]) -> None:
    manifest, backend = varco.bundle.manifest, varco.backend
    assert isinstance(backend, CudaBackend)
    plan = packing_plan(size_hw, manifest.image)
    side = manifest.image.tile_px
    tiles = np.random.default_rng(0).standard_normal(
        (plan.newline_row // manifest.image.patches_per_tile, 3, side, side)
    )
    found = backend.features(tiles.astype(np.float32), plan)
    newline = np.frombuffer((varco.bundle.folder / "packing.onnx.data").read_bytes(), np.float32)
    np.testing.assert_allclose(found.image_tokens, pack(found.image_features, newline, plan), atol=1e-6)


def test_tokens_and_a_picture_may_alternate(varco: Varco, tiny_bundle: Path) -> None:
    cpu = Varco.load(tiny_bundle, threads=1)
    settings = varco.bundle.manifest.image
    plan = packing_plan((90, 130), settings)
    tiles = np.random.default_rng(1).uniform(
        -1, 1, (plan.newline_row // settings.patches_per_tile, 3, settings.tile_px, settings.tile_px)
    )
    image_token_id = varco.bundle.manifest.prompt.image_token_id
    ids = np.random.default_rng(2).integers(0, 250, plan.num_tokens + 40)
    ids[np.sort(np.random.default_rng(3).permutation(len(ids) - 1)[: plan.num_tokens])] = image_token_id
    rows = []
    for backend in (varco.backend, cpu.backend):
        tokens = backend.pack(backend.encode(tiles.astype(np.float32)), plan)
        rows.append(backend.prefill(PromptInputs(ids, image_token_id, tokens), 0, num_logits=20))
    np.testing.assert_allclose(*rows, atol=2e-4)


@pytest.mark.parametrize(
    ("mean", "std", "factor"), [((0.5,) * 3, (0.5,) * 3, 1 / 255), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 1 / 127.5)]
)
def test_pixels_become_what_the_host_makes_of_them_to_the_bit(
    varco: Varco, tmp_path: Path, mean: Any, std: Any, factor: float
) -> None:
    settings = dataclasses.replace(varco.bundle.manifest.image, mean=mean, std=std, rescale_factor=factor)
    with Graph("pixels", tmp_path) as graph:
        emit_pixels(graph, settings, lambda: None)
        graph.save()
    session = onnxruntime.InferenceSession(str(tmp_path / "pixels.onnx"), providers=["CPUExecutionProvider"])
    side = settings.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
    (found,) = session.run(["pixel_values"], {"tiles": tiles})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, normalize(tiles, settings))


def test_token_rows_on_the_host_are_no_part_of_the_decoder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folders = {place: tmp_path / place for place in ("device", "host")}
    for place, folder in folders.items():
        export_bundle(tiny_checkpoint, folder, device="cuda", decoder="fp16", max_context=64, embedding=place)
    device, host = (read_manifest(folder) for folder in folders.values())
    assert device.embedding is None
    assert host.embedding is not None
    assert (folders["host"] / host.embedding.file).exists()
    assert not (folders["device"] / host.embedding.file).exists(), "the rows are there once"
    inputs = {
        place: {value.name for value in onnx.load(folder / "decoder.onnx", load_external_data=False).graph.input}
        for place, folder in folders.items()
    }
    assert inputs["device"] - inputs["host"] == {"token_ids"}
    assert inputs["host"] - inputs["device"] == {"inputs_embeds"}
    row_bytes = 2 * device.model.hidden_size
    assert device.decoder.weight_bytes == host.decoder.weight_bytes + row_bytes, "a step reads one row"


@pytest.mark.parametrize(("device", "place"), [("cpu", "device"), ("tensorrt", "host"), ("cuda", "disk")])
def test_a_place_for_token_rows_that_a_device_lacks_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, device: str, place: str
) -> None:
    with pytest.raises(UsageError, match=rf"--embedding {place} does not go with --device {device}\. Expected one of"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", device=device, embedding=place)
    assert not any(tmp_path.iterdir())


def test_the_chosen_token_is_the_first_of_the_largest_and_none_of_nan(tmp_path: Path) -> None:
    """On logits with many ties, for vocabularies that are prime, square and like the model's."""
    rng = np.random.default_rng(0)
    for vocab_size, dtype in itertools.product((151, 576, 2048, 151680), (np.float16, np.float32)):
        folder = tmp_path / f"{vocab_size}-{dtype.__name__}"
        folder.mkdir()
        with Graph("argmax", folder) as graph:
            dialect = CudaDialect(graph, Precision("fp32", "fp32", "fp32"))
            dialect._vocab_size = vocab_size
            dialect.logits(graph.input("x", "fp32", [1, "num_logits", vocab_size]))
            graph.output("logits", "fp32", [1, "num_logits", vocab_size])
            graph.save()
        session = onnxruntime.InferenceSession(str(folder / "argmax.onnx"), providers=["CPUExecutionProvider"])
        logits = rng.normal(0, 8, (1, 5, vocab_size)).astype(dtype).astype(np.float32)
        logits[0, 1] = np.round(logits[0, 1])  # dozens of equals
        logits[0, 2] = 3.0
        logits[0, 3, [vocab_size // 3, vocab_size - 1]] = 60
        (chosen,) = session.run(["next_token"], {"x": logits})
        np.testing.assert_array_equal(chosen, logits.argmax(axis=2))
        logits[0, 0, 1] = -np.inf  # never chosen, and no fault
        logits[0, 1, vocab_size // 2] = np.nan
        logits[0, 2] = np.nan
        logits[0, 3, 5] = np.inf
        (marked,) = session.run(["next_token"], {"x": logits})
        np.testing.assert_array_equal(marked, [[logits[0, 0].argmax(), -1, -1, -1, chosen[0, 4]]])


def test_the_acceptance_probes_pass_on_the_cpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(
        tiny_checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16", max_context=2048, probes=True
    )
    varco = Varco.load(bundle, provider="cpu", threads=1)
    checks = replay(varco.bundle, read_probes(varco.bundle), varco.backend)
    assert {check.component for check in checks} >= {"vision", "projector", "answers"}
    assert [check for check in checks if not check.passed] == []

    class Dark(CudaBackend):
        """Takes every pixel for half as bright as it is."""

        def encode_pixels(self, tiles: Any) -> Any:
            return super().encode_pixels(tiles // 2)

    checks = replay(varco.bundle, read_probes(varco.bundle), Dark(varco.bundle, place="cpu", threads=1))
    assert "decoder, pictures" in {check.component for check in checks if not check.passed}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decoder": "fp32"},
            "--decoder fp32 does not run with --device cuda, whose attention computes in fp16 or bf16",
        ),
        ({"vision": "int8"}, r"--vision int8 cannot be exported \(not available in this version\)"),
        ({"activations": "int8", "decoder": "int4"}, "--activations int8 is for --device cpu"),
        ({"decoder": "fp16", "lm_head": "bf16"}, "--lm-head bf16 does not fit a decoder that computes in fp16"),
        ({"decoder": "q5"}, "--decoder q5 cannot be exported. Expected one of: auto, fp16, bf16, int8, int4, fp8"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", device="cuda", **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("decoder", ["bf16", "fp8"])
def test_what_the_cpu_cannot_run_is_refused_in_one_line(tiny_checkpoint: Path, tmp_path: Path, decoder: str) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="cuda", decoder=decoder, max_context=64)
    message = rf"The CPU cannot run this bundle, it has no kernels for {decoder}.*--device cpu"
    with pytest.raises(BackendError, match=message) as caught:
        Varco.load(bundle, provider="cpu")
    assert "\n" not in str(caught.value)


def test_the_operator_table_of_this_test_names_operators_that_exist() -> None:
    known = {(one.domain, one.name) for one in get_all_operator_schema()}
    for domain, names in CUDA_KERNELS.items():
        assert {(domain, name) for name in names} <= known
