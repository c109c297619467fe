"""The TensorRT dialect: what its graphs hold, what they compute without a reference, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import export_bundle
from tests.makers.exported_weights import ExportedDecoder, exported_linears
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint
from tests.makers.tensorrt_graphs import GraphBackend
from varco_export.reading.names import canonical_name
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.backends.embedding import EmbeddingTable
from varco_runtime.backends.tensorrt.engine_io import engine_io
from varco_runtime.bundle.opening import Bundle, read_manifest
from varco_runtime.errors import ExportError, UsageError
from varco_runtime.picture.packing import pack, packing_plan

Array = np.ndarray[Any, Any]
DECODERS = ("fp32", "fp16", "bf16", "int8", "int4", "fp8")


@pytest.fixture(scope="module")
def backend(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphBackend:
    folder = tmp_path_factory.mktemp("tensorrt") / "bundle"
    return GraphBackend(
        Bundle.open(export_bundle(tiny_checkpoint, folder, device="tensorrt", decoder="fp32", max_context=96))
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for groups of 32."""
    options = TinyOptions(seed=3, hidden_size=128, num_attention_heads=8, intermediate_size=192)
    return make_tiny(tmp_path_factory.mktemp("wide") / "original", options)


def embeds(backend: GraphBackend, length: int) -> Array:
    rng = np.random.default_rng(length)
    return rng.standard_normal((1, length, backend.manifest.model.hidden_size)).astype(np.float32)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_graph_is_standard_onnx_without_plugins(tiny_checkpoint: Path, tmp_path: Path, decoder: str) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="tensorrt", decoder=decoder, max_context=64)
    manifest = read_manifest(bundle)
    assert list(manifest.components) == ["vision", "projector", "packing", "embedding", "decoder"]
    for name, tensors in engine_io(manifest, 64).items():
        path = bundle / manifest.components[name].file
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
        assert {node.domain for node in model.graph.node} == {""}
        assert {value.name for value in (*model.graph.input, *model.graph.output)} == tensors.keys()
        read = {name for node in model.graph.node for name in node.input}
        assert {value.name for value in (*model.graph.input, *model.graph.initializer)} <= read


def test_both_dialects_hold_the_same_weights(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    options = TinyOptions(seed=1)
    other = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="tensorrt", decoder="fp32")
    ours, theirs = exported_linears(other, options), exported_linears(tiny_bundle, options)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_chunks_of_any_size_equal_one_pass(backend: GraphBackend) -> None:
    x = embeds(backend, 40)
    whole = backend.step(x, 0, 40)
    pieces = [backend.step(x[:, :17], 0, 17), backend.step(x[:, 17:30], 17, 13)]
    pieces += [backend.step(x[:, i : i + 1], i, 1) for i in range(30, 40)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=5e-5)


def test_a_rewound_cache_equals_a_new_one(backend: GraphBackend) -> None:
    x, other = embeds(backend, 20), embeds(backend, 60)
    expected = backend.step(x, 0, 20)
    backend.step(other, 0, 1)
    backend.step(x[:, :8], 0, 1)
    np.testing.assert_allclose(backend.step(x[:, 8:], 8, 12), expected[8:], atol=5e-5)


def test_the_next_token_is_the_largest_logit_of_each_position(backend: GraphBackend) -> None:
    logits = backend.step(embeds(backend, 9), 0, 5)
    np.testing.assert_array_equal(backend.next_token, logits.argmax(axis=1))


@pytest.mark.parametrize("size_hw", [(480, 640), (37, 100), (960, 1168)])
def test_packing_equals_numpy(backend: GraphBackend, size_hw: tuple[int, int]) -> None:
    manifest = backend.manifest
    plan = packing_plan(size_hw, manifest.image)
    rows = plan.newline_row
    features = np.random.default_rng(0).standard_normal((rows, manifest.model.hidden_size)).astype(np.float32)
    newline = np.frombuffer((backend.bundle_folder / "packing.onnx.data").read_bytes(), np.float32)
    tiled = features.reshape(-1, manifest.image.patches_per_tile, manifest.model.hidden_size)
    np.testing.assert_allclose(backend.pack(tiled, plan), pack(features, newline, plan), atol=1e-6)


def test_token_lookup_equals_the_table(backend: GraphBackend, tiny_bundle: Path) -> None:
    facts = read_manifest(tiny_bundle).embedding
    assert facts is not None
    table = EmbeddingTable(tiny_bundle / facts.file, facts)
    ids = np.arange(table.num_tokens)
    np.testing.assert_array_equal(backend.run("embedding", token_ids=ids[None])["inputs_embeds"][0], table.rows(ids))


@pytest.mark.parametrize(("decoder", "limit"), [("int8", 0.5 / 127), ("int4", 0.5 / 7), ("fp8", 1 / 16)])
def test_rounded_weights_are_the_nearest(tiny_checkpoint: Path, tmp_path: Path, decoder: str, limit: float) -> None:
    """No entry is off by more than half a step of its block, measured by the block's largest."""
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="tensorrt", decoder=decoder, vision="fp32")
    options = TinyOptions(seed=1)
    stored = load_file(tiny_checkpoint / "model.safetensors")
    weights = {str(canonical_name(name)).removesuffix(".weight"): array for name, array in stored.items()}
    for name, rows in exported_linears(bundle, options).items():
        if name == "lm_head":
            assert np.array_equal(rows, weights[name]), "the head stays a float unless asked for"
            continue
        width = rows.shape[1] if decoder == "fp8" else 32
        blocks, expected = (array.reshape(len(array), -1, width) for array in (rows, weights[name]))
        error = np.abs(blocks - expected) / np.abs(expected).max(axis=2, keepdims=True)
        assert error.max() <= limit * 1.001, name


def test_zero_weights_have_positive_scales(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """TensorRT's parser refuses others, for the whole graph."""
    checkpoint = tmp_path / "zeros"
    checkpoint.mkdir()
    for path in tiny_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (checkpoint / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    save_file({name: tensor * 0 for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
    for decoder in ("int4", "fp8"):
        decoder_graph = ExportedDecoder(
            export_bundle(checkpoint, tmp_path / decoder, device="tensorrt", decoder=decoder)
        )
        scales = [tensor for name, tensor in decoder_graph.tensors.items() if name.endswith(".scales")]
        assert len(scales) == 8
        assert all((scale > 0).all() for scale in scales)


@pytest.mark.parametrize("decoder", ["fp16", "int8", "int4", "fp8"])
def test_every_precision_answers(tiny_checkpoint: Path, tmp_path: Path, decoder: str) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="tensorrt", decoder=decoder, max_context=256)
    opened = Bundle.open(bundle)
    answer = Varco(opened, GraphBackend(opened)).ask(None, "What is this?", max_new_tokens=6)
    assert len(answer.token_ids) == 6


def test_bf16_products_are_not_there_on_the_cpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Why the numbers of a bf16 bundle are tested widened to fp32; what has kernels runs as it is."""
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", device="tensorrt", decoder="bf16", max_context=64)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    loads = {}
    for name in ("vision", "projector", "packing", "embedding", "decoder"):
        try:
            onnxruntime.InferenceSession(str(bundle / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            loads[name] = True
        except Exception:
            loads[name] = False
    assert loads == {"vision": False, "projector": False, "packing": False, "embedding": True, "decoder": False}


def test_act_order_gathers_the_input_once_per_product(wide: Path, tmp_path: Path) -> None:
    pack_checkpoint(wide, tmp_path / "packed", GptqPacking(act_order=True))
    decoder = ExportedDecoder(export_bundle(tmp_path / "packed", tmp_path / "bundle", device="tensorrt"))
    gathered = [node for node in decoder.nodes("Gather") if node.input[1].endswith("input_order")]
    assert len(gathered) == 3 * 2, "q, k, v share one; o has its own; gate and up share one; down's folds into theirs"


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_asymmetric_integers_are_refused_by_name(wide: Path, tmp_path: Path) -> None:
    pack_checkpoint(wide, tmp_path / "packed", GptqPacking(sym=False))
    with pytest.raises(ExportError, match=r"self_attn.qkv_proj is stored in asymmetric int4 \(with zero points\)"):
        export_bundle(tmp_path / "packed", tmp_path / "bundle", device="tensorrt")
    assert not (tmp_path / "bundle").exists()


def test_negative_scales_are_refused_by_name(wide: Path, tmp_path: Path) -> None:
    pack_checkpoint(wide, tmp_path / "packed", GptqPacking())
    path = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.o_proj.scales"))
    save_file(tensors | {name: -tensors[name]}, path)
    with pytest.raises(ExportError, match=r"layers.1.self_attn.o_proj holds negative scales, TensorRT takes positive"):
        export_bundle(tmp_path / "packed", tmp_path / "bundle", device="tensorrt")


@pytest.mark.parametrize("block_size", [64, 128])
def test_blocks_that_do_not_divide_the_input_features_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, block_size: int
) -> None:
    with pytest.raises(ExportError, match=rf"input features in blocks of {block_size}, TensorRT takes blocks of 16"):
        export_bundle(tiny_checkpoint, tmp_path / "b", device="tensorrt", decoder="int4", block_size=block_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decoder": "q3"},
            "--decoder q3 cannot be exported. Expected one of: auto, fp16, bf16, fp32, int8, int4, fp8",
        ),
        ({"lm_head": "q3"}, "--lm-head q3 cannot be exported"),
        ({"vision": "fp8"}, r"--vision fp8 cannot be exported \(not available in this version\)"),
        ({"activations": "int2"}, "--activations int2 cannot"),
        ({"activations": "int8"}, "--activations int8 is for --device cpu"),
        ({"decoder": "int4", "block_size": 48}, "--block-size 48 has no kernel"),
        ({"decoder": "fp16", "vision": "fp32"}, "--vision fp32 does not fit a decoder that computes in fp16"),
        ({"decoder": "int4", "lm_head": "bf16"}, "--lm-head bf16 does not fit a decoder that computes in fp16"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", device="tensorrt", **options)


def test_rounding_a_second_time_is_refused(wide: Path, tmp_path: Path) -> None:
    pack_checkpoint(wide, tmp_path / "packed", GptqPacking())
    with pytest.raises(UsageError, match=r"--decoder fp8 would round weights a second time, the checkpoint holds int4"):
        export_bundle(tmp_path / "packed", tmp_path / "bundle", device="tensorrt", decoder="fp8")


@pytest.mark.parametrize(
    ("dtype", "options", "compute"),
    [
        ("fp32", {}, "fp16"),
        ("fp16", {}, "fp16"),
        ("bf16", {}, "bf16"),
        ("bf16", {"decoder": "fp16"}, "fp16"),
        ("bf16", {"decoder": "int4"}, "bf16"),
        ("bf16", {"decoder": "int4", "vision": "fp16"}, "fp16"),
        ("fp16", {"decoder": "bf16"}, "bf16"),
    ],
)
def test_all_networks_compute_in_one_type_as_stored_unless_asked(
    tmp_path: Path, dtype: Any, options: dict[str, Any], compute: str
) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", dataclasses.replace(TinyOptions(seed=4), dtype=dtype))
    manifest = read_manifest(export_bundle(checkpoint, tmp_path / "bundle", device="tensorrt", **options))
    assert {component.compute for component in manifest.components.values()} == {compute}
    assert manifest.device == "tensorrt"
    assert manifest.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2


def test_a_prompt_with_a_picture_reaches_the_decoder_through_the_graphs(backend: GraphBackend) -> None:
    """Image tokens stand where the prompt says, whatever the chunks."""
    manifest = backend.manifest
    image_token, width = manifest.prompt.image_token_id, manifest.model.hidden_size
    ids = np.array([1, 2, *[image_token] * 20, 3, 4])
    tokens = np.random.default_rng(1).standard_normal((20, width)).astype(np.float32)
    expected = backend.prefill(PromptInputs(ids, image_token, tokens), 0, 3)
    backend.chunk_tokens, before = 7, backend.chunk_tokens
    np.testing.assert_allclose(backend.prefill(PromptInputs(ids, image_token, tokens), 0, 3), expected, atol=5e-5)
    backend.chunk_tokens = before
