"""The exporter: twins, tied heads, choices, the graphs' own checks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import export_bundle
from varco_export.export import ExportOptions, export
from varco_export.precision import decoder_precision, vision_precision
from varco_export.progress import Silent
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import CheckpointError, ExportError, UsageError


def test_the_two_formats_of_one_checkpoint_give_the_same_graphs_byte_for_byte(tmp_path: Path) -> None:
    hf = make_tiny(tmp_path / "hf", TinyOptions(seed=7, names="new", num_shards=2))
    following = make_tiny(tmp_path / "next", TinyOptions(seed=7, format="llava-next", extra_vision_layer=True))
    first, second = (export_bundle(folder, tmp_path / f"bundle-{folder.name}") for folder in (hf, following))
    names = [path.name for path in first.glob("*.onnx*")] + ["embedding.bin"]
    assert len(names) == 7
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), f"{name} differs between the twins"


def test_an_export_is_reproducible(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    again = export_bundle(tiny_checkpoint, tmp_path / "again")
    for path in sorted(tiny_bundle.iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes(), f"{path.name} differs between two exports"


@pytest.mark.parametrize("decoder", ["fp32", "fp16", "int8", "int4"])
def test_every_graph_passes_the_onnx_checker_and_shape_inference(
    tiny_checkpoint: Path, tmp_path: Path, decoder: str
) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", decoder=decoder)
    for path in bundle.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("decoder", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_every_precision_answers(tiny_checkpoint: Path, tmp_path: Path, decoder: str, activations: str) -> None:
    if activations == "int8" and decoder == "fp16":
        with pytest.raises(UsageError, match="--activations int8 needs quantised weights"):
            export_bundle(tiny_checkpoint, tmp_path / "bundle", decoder=decoder, activations=activations)
        return
    vision = "fp16" if decoder == "fp16" else "fp32"
    bundle = export_bundle(
        tiny_checkpoint, tmp_path / "bundle", decoder=decoder, activations=activations, vision=vision
    )
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    answer = Varco.load(bundle, threads=1).ask(image, "What is this?", max_new_tokens=6)
    assert len(answer.token_ids) == 6


def test_int8_vision_stays_close_to_full_precision(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    small = export_bundle(tiny_checkpoint, tmp_path / "bundle", vision="int8")
    assert read_manifest(small).vision.precision == "int8 (a scale per row, int8 activations)"
    tiles = np.random.default_rng(0).uniform(-1, 1, (2, 3, 58, 58)).astype(np.float32)
    exact, rounded = (Varco.load(bundle, threads=1).backend.encode(tiles) for bundle in (tiny_bundle, small))
    cosine = (exact * rounded).sum() / np.linalg.norm(exact) / np.linalg.norm(rounded)
    assert cosine > 0.999


def test_a_weight_is_stored_once_and_in_the_bytes_that_were_announced(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    for component in (manifest.vision, manifest.projector, manifest.decoder):
        model = onnx.load(tiny_bundle / component.file, load_external_data=False)
        external = [tensor for tensor in model.graph.initializer if tensor.external_data]
        places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in external]
        assert {place["location"] for place in places} == {component.data}
        assert sum(int(place["length"]) for place in places) == component.weight_bytes
        assert all(int(place["offset"]) % 4096 == 0 for place in places)
        used = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= used, "a weight is written and never used"


def test_no_tensor_of_the_checkpoint_is_read_twice_or_forgotten(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "tied", TinyOptions(tie_word_embeddings=True))
    manifest = read_manifest(export_bundle(checkpoint, tmp_path / "bundle"))
    assert manifest.embedding.rows == manifest.model.vocab_size + 1


def put(folder: Path, name: str, value: float, every: bool = False) -> None:
    """Put a number into a tensor of a checkpoint of one shard: at its end, or everywhere."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].reshape(-1)[slice(None) if every else -1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


TOWER = "vision_tower.vision_model"
PLAIN = {  # of every kind of weight one, as the files call it, and as messages do
    "language_model.model.embed_tokens.weight": "language_model.embed_tokens.weight",
    "language_model.model.layers.1.self_attn.k_proj.bias": "language_model.layers.1.self_attn.k_proj.bias",
    "language_model.model.layers.1.mlp.down_proj.weight": "language_model.layers.1.mlp.down_proj.weight",
    "language_model.model.norm.weight": "language_model.norm.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    f"{TOWER}.embeddings.position_embedding.weight": "vision_tower.embeddings.position_embedding.weight",
    f"{TOWER}.encoder.layers.0.mlp.fc1.weight": "vision_tower.encoder.layers.0.mlp.fc1.weight",
    "multi_modal_projector.linear_2.bias": "multi_modal_projector.linear_2.bias",
    "image_newline": "image_newline",
}


@pytest.mark.parametrize("on_disk", PLAIN)
@pytest.mark.parametrize("options", [{}, {"decoder": "int4", "lm_head": "int4", "vision": "int8"}])
def test_nan_in_any_plain_weight_is_refused_by_name(tmp_path: Path, on_disk: str, options: dict[str, str]) -> None:
    checkpoint = make_tiny(tmp_path / "tiny", TinyOptions(seed=7))
    put(checkpoint, on_disk, np.nan)
    with pytest.raises(CheckpointError) as caught:
        export_bundle(checkpoint, tmp_path / "bundle", **options)
    assert str(caught.value).startswith(f"{PLAIN[on_disk]} holds NaN or infinity in model.safetensors, expected finite")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("on_disk", "named", "options"),
    [
        ("language_model.model.layers.1.mlp.down_proj.weight", "mlp.down_proj.weight", {"decoder": "fp16"}),
        ("language_model.model.layers.1.self_attn.v_proj.bias", "self_attn.qkv_proj.bias", {"decoder": "fp16"}),
        ("language_model.model.layers.1.input_layernorm.weight", "input_layernorm.weight", {"decoder": "fp16"}),
        (f"{TOWER}.encoder.layers.0.mlp.fc1.weight", "layers.0.mlp.fc1.weight", {"vision": "fp16"}),
        ("language_model.lm_head.weight", "lm_head.weight", {"device": "cuda", "decoder": "fp16"}),
    ],
)
def test_a_number_beyond_fp16_is_refused_by_name_and_kept_in_wider_types(
    tmp_path: Path, on_disk: str, named: str, options: dict[str, str]
) -> None:
    checkpoint = make_tiny(tmp_path / "tiny", TinyOptions(seed=7))
    put(checkpoint, on_disk, -65_504)
    export_bundle(checkpoint, tmp_path / "largest", **options)
    put(checkpoint, on_disk, -65_520)  # what rounds to infinity
    with pytest.raises(ExportError, match=rf"{re.escape(named)} holds a number beyond 65,504, the largest of fp16"):
        export_bundle(checkpoint, tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists()
    wider = {"device": "cuda", "decoder": "bf16"} if "device" in options else {}
    export_bundle(checkpoint, tmp_path / "wider", **wider)


@pytest.mark.parametrize("options", [{"decoder": "int4"}, {"decoder": "fp8"}])
def test_scales_beyond_fp16_are_refused_by_name(tmp_path: Path, options: dict[str, str]) -> None:
    checkpoint = make_tiny(tmp_path / "tiny", TinyOptions(seed=7))
    put(checkpoint, "language_model.model.layers.1.mlp.down_proj.weight", 1e9, every=True)
    with pytest.raises(ExportError, match=r"down_proj.scales holds a number beyond 65,504"):
        export_bundle(checkpoint, tmp_path / "bundle", device="tensorrt", vision="fp16", **options)
    export_bundle(checkpoint, tmp_path / "bundle", decoder="int4")


@pytest.mark.parametrize(
    ("head_dim", "good"), [(8, False), (16, True), (24, False), (40, False), (48, True), (72, False)]
)
def test_a_head_size_without_a_kernel_is_refused_before_anything_is_written(
    tmp_path: Path, head_dim: int, good: bool
) -> None:
    """Those that pass answer; the others onnxruntime would refuse at the first question."""
    options = TinyOptions(seed=7, hidden_size=2 * head_dim, num_attention_heads=2, num_key_value_heads=1)
    checkpoint = make_tiny(tmp_path / "tiny", options)
    if good:
        bundle = export_bundle(checkpoint, tmp_path / "bundle")
        assert len(Varco.load(bundle, threads=1).ask(None, "Hello", max_new_tokens=2).token_ids) == 2
        return
    for device in ("cpu", "cuda"):
        with pytest.raises(ExportError, match=f"heads have {head_dim} features, expected a multiple of 16"):
            export_bundle(checkpoint, tmp_path / "bundle", device=device)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    export_bundle(checkpoint, tmp_path / "bundle", device="tensorrt")


def test_an_existing_folder_is_kept_unless_asked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = export_bundle(tiny_checkpoint, tmp_path / "bundle")
    with pytest.raises(ExportError, match="exists already"):
        export_bundle(tiny_checkpoint, target)
    before = read_manifest(target).decoder.precision
    export_bundle(tiny_checkpoint, target, decoder="int4", overwrite=True)
    assert read_manifest(target).decoder.precision != before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_steps_of_the_progress_bar_are_the_steps_taken(tiny_checkpoint: Path, tmp_path: Path) -> None:
    promised: dict[str, int] = {}
    taken: dict[str, int] = {}

    class Counting(Silent):
        def component(self, name: str, steps: int):  # type: ignore[no-untyped-def]
            promised[name], taken[name] = steps, 0

            class Bar:
                def __enter__(self):  # type: ignore[no-untyped-def]
                    def advance() -> None:
                        taken[name] += 1

                    return advance

                def __exit__(self, *_: object) -> None:
                    pass

            return Bar()

    export(tiny_checkpoint, tmp_path / "bundle", ExportOptions(), Counting())
    assert promised == taken
    assert list(taken) == ["vision", "projector", "embedding", "decoder", "probes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bf16", "auto", 32, "float", "cpu"), "--decoder bf16 has no kernels on the CPU"),
        (("int4", "bf16", 32, "float", "cpu"), "--lm-head bf16 has no kernels on the CPU"),
        (("fp8", "auto", 32, "float", "cpu"), "--decoder fp8 needs a checkpoint in FP8, this one is not quantised"),
        (("q3", "auto", 32, "float", "cpu"), "--decoder q3 cannot be exported. Expected one of: auto, fp32"),
        (("int4", "auto", 48, "float", "cpu"), "--block-size 48 has no kernel"),
        (("int4", "auto", 32, "int2", "cpu"), "--activations int2 cannot"),
        (("fp32", "fp16", 32, "float", "cpu"), "--lm-head fp16 does not fit"),
        (("fp32", "int3", 32, "float", "cpu"), "--lm-head int3 cannot"),
        (
            ("fp32", "auto", 32, "float", "rocm"),
            "--device rocm cannot be exported. Expected one of: cpu, cuda, tensorrt",
        ),
    ],
)
def test_a_precision_that_does_not_exist_is_refused_by_name(
    arguments: tuple[str, str, int, str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        decoder_precision(*arguments)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("int4", "--vision int4 cannot be exported. Expected one of: auto, fp32, fp16, int8."),
        ("bf16", "--vision bf16 has no kernels on the CPU. Use --vision fp32 (exact) or int8 (fast)."),
    ],
)
def test_a_vision_precision_that_does_not_exist_is_refused_by_name(precision: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        vision_precision(precision)


@pytest.mark.parametrize("max_context", [15, 40_000])
def test_a_context_beyond_the_model_is_refused(tiny_checkpoint: Path, tmp_path: Path, max_context: int) -> None:
    with pytest.raises(UsageError, match=f"--max-context {max_context} is out of range"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", max_context=max_context)
    assert not any(tmp_path.iterdir())
