"""compressed-tensors checkpoints: what the library packs reaches the graph bit for bit; the rest is refused by name."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from tests.conftest import export_bundle
from tests.makers.exported_weights import (
    FUSED,
    ExportedDecoder,
    assert_equal_bit_for_bit,
    export_exactly,
    exported_linears,
)
from tests.makers.refusals import assert_matches, export_refusal
from varco_export.quantized import patterns
from varco_export.quantized.compressed_config import Names
from varco_export.quantized.patterns import match_names
from varco_export.reading.names import canonical_name, spellings
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import UsageError

torch = pytest.importorskip("torch", reason="the packer needs torch")
pytest.importorskip("compressed_tensors", reason="the packer needs compressed-tensors")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.makers.compressed_packer import CompressedPacking, compress_checkpoint  # noqa: E402

Array = np.ndarray[Any, Any]
TINY = TinyOptions(seed=12, hidden_size=128, num_attention_heads=8, intermediate_size=192, vocab_size=523)

GROUP = {"num_bits": 4, "strategy": "group", "group_size": 64}
FP8 = {"num_bits": 8, "type": "float"}
TOKEN = {**FP8, "strategy": "token", "dynamic": True}
PACKINGS = {
    "w4a16": CompressedPacking(GROUP),
    "w4a16-asymmetric": CompressedPacking({**GROUP, "symmetric": False}),
    "w4a16-group-32-bf16": CompressedPacking({**GROUP, "group_size": 32}, dtype=torch.bfloat16),
    "w4a16-asymmetric-fp16": CompressedPacking({**GROUP, "symmetric": False}, dtype=torch.float16),
    "w4a16-channel": CompressedPacking({"num_bits": 4, "strategy": "channel"}),
    "w4a16-channel-asymmetric": CompressedPacking({"num_bits": 4, "strategy": "channel", "symmetric": False}),
    "w4a16-tensor": CompressedPacking({"num_bits": 4, "strategy": "tensor"}),
    "w4a16-weight-order": CompressedPacking({**GROUP, "actorder": "weight"}),
    "w4a16-g-idx": CompressedPacking(GROUP, g_idx=True),
    "w4a16-g-idx-asymmetric": CompressedPacking({**GROUP, "symmetric": False}, g_idx=True),
    "w8a16": CompressedPacking({**GROUP, "num_bits": 8}),
    "w8a16-channel-asymmetric": CompressedPacking({"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "head": CompressedPacking({**GROUP, "symmetric": False}, lm_head=True),
    "exclusions": CompressedPacking(GROUP, plain=("k_proj", "layers.1.mlp.down_proj")),
    "fp8-tensor-static": CompressedPacking({**FP8, "strategy": "tensor"}, {**FP8, "strategy": "tensor"}),
    "fp8-channel-dynamic": CompressedPacking({**FP8, "strategy": "channel"}, TOKEN),
    "fp8-channel-dynamic-bf16": CompressedPacking({**FP8, "strategy": "channel"}, TOKEN, dtype=torch.bfloat16),
    "fp8-tensor-dynamic": CompressedPacking({**FP8, "strategy": "tensor"}, TOKEN, lm_head=True),
    "fp8-exclusions": CompressedPacking(
        {**FP8, "strategy": "channel"}, TOKEN, plain=("v_proj", "layers.0.mlp.up_proj")
    ),
    "fp8-weights-alone": CompressedPacking({**FP8, "strategy": "channel"}),
}
NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}
PART = "language_model.model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("compressed") / "original", TINY)


def expected_linears(packed: Path, dequantised: dict[str, Array]) -> dict[str, Array]:
    """The library's own dequantisation, the features between gate, up and down sorted as down's are."""
    tensors = load_file(packed / "model.safetensors")
    weights = {name: t.float().numpy() for name, t in tensors.items() if name.endswith("weight")} | dequantised
    weights = {str(canonical_name(name)).removesuffix(".weight"): array for name, array in weights.items()}
    g_idx = {str(canonical_name(name)): t.numpy() for name, t in tensors.items() if name.endswith("g_idx")}
    layers = [f"language_model.layers.{index}" for index in range(TINY.num_hidden_layers)]
    linears = {f"{layer}.{part}": weights[f"{layer}.{part}"] for layer in layers for p in FUSED.values() for part in p}
    for layer in layers if g_idx else []:
        gate, up, down = (f"{layer}.mlp.{part}_proj" for part in ("gate", "up", "down"))
        order = np.argsort(g_idx[f"{down}.weight_g_idx"], kind="stable")
        linears |= {gate: linears[gate][order], up: linears[up][order], down: linears[down][:, order]}
    return linears | {"lm_head": weights["lm_head"]}


@pytest.mark.parametrize("name", PACKINGS)
def test_every_linear_equals_the_librarys_own_dequantisation_bit_for_bit(
    original: Path, tmp_path: Path, name: str
) -> None:
    packing = PACKINGS[name]
    dequantised = compress_checkpoint(original, tmp_path / "packed", packing)
    bundle = export_exactly(tmp_path / "packed", tmp_path / "bundle")
    rounding = NUMPY[packing.dtype]
    expected = {
        key: weight.astype(rounding) for key, weight in expected_linears(tmp_path / "packed", dequantised).items()
    }
    assert_equal_bit_for_bit(exported_linears(bundle, TINY), expected, rounding)


def test_linears_stay_fused_and_packed(original: Path, tmp_path: Path) -> None:
    compress_checkpoint(original, tmp_path / "packed", CompressedPacking(GROUP))
    decoder = ExportedDecoder(export_exactly(tmp_path / "packed", tmp_path / "bundle"))
    assert len(decoder.nodes("MatMulNBits")) == 4 * TINY.num_hidden_layers
    words = load_file(tmp_path / "packed" / "model.safetensors")[f"{PART.replace('up_', 'down_')}.weight_packed"]
    rows = decoder.tensors["language_model.layers.1.mlp.down_proj.weight_int4"]
    np.testing.assert_array_equal(rows.reshape(len(rows), -1), words.numpy().view(np.uint8))


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("w4a16-g-idx", "int4 (compressed-tensors, groups of 64, act-order, fp32 activations), head int8"),
        ("w8a16-channel-asymmetric", "int8 (compressed-tensors, one group per output, fp32 activations)"),
        ("fp8-channel-dynamic", "fp8 (compressed-tensors, a scale per output, fp8 activations by token), head fp32"),
        ("fp8-tensor-static", "fp8 (compressed-tensors, one scale, fp8 activations), head fp32"),
    ],
)
def test_the_manifest_says_what_is_stored(original: Path, tmp_path: Path, name: str, description: str) -> None:
    compress_checkpoint(original, tmp_path / "packed", PACKINGS[name])
    manifest = read_manifest(export_bundle(tmp_path / "packed", tmp_path / "bundle"))
    assert manifest.decoder.precision == description


# --- groups -----------------------------------------------------------------------------------------------------------

DOWN = "language_model.model.layers.1.mlp.down_proj"


def group(targets: list[str], weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    form = "float-quantized" if weights.get("type") == "float" else "pack-quantized"
    return {"targets": targets, "weights": weights, "input_activations": inputs, "format": form}


def set_groups(folder: Path, groups: list[dict[str, Any]]) -> None:
    def change(config: dict[str, Any]) -> None:
        config |= {"format": "mixed-precision", "config_groups": {f"group_{n}": one for n, one in enumerate(groups)}}

    change_config(folder, change)


def num_rounded_inputs(bundle: Path) -> int:
    """How many linears of the decoder round their input to FP8."""
    casts = [{one.name: one.i for one in node.attribute} for node in ExportedDecoder(bundle).nodes("Cast")]
    return sum(one["to"] == TensorProto.FLOAT8E4M3FN for one in casts)


def graphs(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.glob("decoder.onnx*")}


@pytest.fixture(scope="module")
def mixed(original: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """int4 but for `DOWN` and every o_proj, which are FP8; with the library's own dequantisation."""
    folder = tmp_path_factory.mktemp("mixed")
    words = ("o_proj", DOWN.removeprefix("language_model.model."))
    integers = compress_checkpoint(original, folder / "mixed", replace(PACKINGS["w4a16"], plain=words))
    floats = compress_checkpoint(original, folder / "fp8", PACKINGS["fp8-weights-alone"])
    tensors = load_file(folder / "mixed" / "model.safetensors")
    own = {
        name: t for name, t in load_file(folder / "fp8" / "model.safetensors").items() if any(w in name for w in words)
    }
    save_file(tensors | own, folder / "mixed" / "model.safetensors", metadata={"format": "pt"})
    change_config(folder / "mixed", lambda config: config.update(ignore=["lm_head"]))
    return folder / "mixed", integers | {name: array for name, array in floats.items() if f"{name}_scale" in own}


@pytest.mark.parametrize("first", [0, 1, 2])
def test_an_exact_name_comes_before_a_pattern_and_a_pattern_before_a_class_in_any_order(
    mixed: tuple[Path, dict[str, Array]], tmp_path: Path, first: int
) -> None:
    """Here of int4 and FP8, whose weights would not even have the right dtype."""
    packed, dequantised = mixed
    copy = shutil.copytree(packed, tmp_path / "packed")
    fp8, int4 = {**FP8, "strategy": "channel"}, {**GROUP, "symmetric": True}
    groups = [
        group(["Linear"], int4),
        group([DOWN, r"re:.*\.self_attn\.o_proj$"], fp8),
        group([r"re:.*\.mlp\..*", r"re:.*[qkv]_proj$"], int4),
    ]
    set_groups(copy, groups[first:] + groups[:first])
    bundle = export_exactly(copy, tmp_path / "bundle")
    assert_equal_bit_for_bit(exported_linears(bundle, TINY), expected_linears(copy, dequantised), np.float32)


def test_fp8_groups_that_differ_in_their_inputs_alone_give_the_same_graphs_in_any_order(
    original: Path, tmp_path: Path
) -> None:
    compress_checkpoint(original, tmp_path / "packed", PACKINGS["fp8-channel-dynamic"])
    fp8 = {**FP8, "strategy": "channel"}
    groups = [group(["Linear"], fp8, TOKEN), group([DOWN], fp8), group([r"re:.*\.gate_proj", r"re:.*\.up_proj"], fp8)]
    made = []
    for order in itertools.permutations(groups):
        set_groups(tmp_path / "packed", list(order))
        made.append(graphs(export_exactly(tmp_path / "packed", tmp_path / f"bundle-{len(made)}")))
    assert all(one == made[0] for one in made)
    assert num_rounded_inputs(tmp_path / "bundle-0") == 2 * 2 + 1  # both layers' qkv and o, and the first one's down


def test_the_target_that_decides_is_the_librarys_own() -> None:
    from compressed_tensors.utils.match import match_targets

    linear, names = torch.nn.Linear(1, 1), spellings("language_model.layers.1.mlp.down_proj")
    known = [
        *names,
        "Linear",
        "Module",
        "Other",
        "layers.1",
        "re:.*",
        "re:.*down_proj",
        "re:.*mlp",
        "re:model",
        "re:lm",
    ]
    random = np.random.default_rng(0)
    for _ in range(300):
        targets = [known[index] for index in random.permutation(len(known))[: random.integers(0, 6)]]
        name = names[random.integers(len(names))]
        found = Names.of(targets)
        fits = (
            match_names(found.expressions, [name], "")
            if found.patterns and random.random() < 0.1
            else {one: frozenset([name]) if re.match(one, name) else frozenset() for one in found.expressions}
        )
        assert found.find([name], fits) == next(iter(match_targets(name, linear, targets)), None), (name, targets)


def test_of_two_groups_with_one_target_the_later_decides(original: Path, tmp_path: Path) -> None:
    """As in compressed-tensors, which keeps the schemes by target."""
    compress_checkpoint(original, tmp_path / "packed", PACKINGS["fp8-channel-dynamic"])
    fp8 = {**FP8, "strategy": "channel"}
    set_groups(tmp_path / "packed", [group(["Linear"], {**GROUP, "symmetric": True}), group(["Linear"], fp8)])
    bundle = export_exactly(tmp_path / "packed", tmp_path / "bundle")
    assert num_rounded_inputs(bundle) == 0


def test_fp8_activations_cannot_become_int8(original: Path, tmp_path: Path) -> None:
    compress_checkpoint(original, tmp_path / "packed", PACKINGS["fp8-channel-dynamic"])
    with pytest.raises(UsageError, match="--activations int8 needs integer weights, the checkpoint holds fp8"):
        export_bundle(tmp_path / "packed", tmp_path / "bundle", activations="int8")
    assert export_bundle(tmp_path / "packed", tmp_path / "bundle", decoder="fp8").exists()


def test_a_token_of_zeros_gives_finite_logits_in_fp8(original: Path, tmp_path: Path) -> None:
    compress_checkpoint(original, tmp_path / "packed", PACKINGS["fp8-channel-dynamic"])
    change_tensor(tmp_path / "packed", "language_model.model.embed_tokens.weight", torch.zeros_like)
    varco = Varco.load(export_bundle(tmp_path / "packed", tmp_path / "bundle"), threads=1)
    assert np.isfinite(varco.backend.prefill(PromptInputs(np.array([5, 6]), -1, None), 0, 2)).all()


# --- refusals ---------------------------------------------------------------------------------------------------------


def change_tensor(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    changed = change(tensors.pop(name) if name in tensors else None)
    save_file(tensors | ({} if changed is None else {name: changed.contiguous()}), path)


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    change(document["quantization_config"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("packing", "part", "change", "message"),
    [
        (
            "w4a16",
            "weight_packed",
            lambda t: t[:, :-1],
            r"weight_packed has the shape \[192, 15\], expected \[192, 16\]",
        ),
        ("w4a16", "weight_packed", lambda t: t.long(), "has dtype I64, expected I32"),
        ("w4a16", "weight_scale", lambda t: t[:-1], r"weight_scale has the shape \[191, 2\], expected \[192, 2\]"),
        ("w4a16", "weight_scale", lambda t: t * torch.nan, "weight_scale|scales holds NaN or infinity"),
        ("w4a16", "weight_scale", lambda t: None, "up_proj.weight_scale is missing"),
        ("w4a16", "weight_shape", lambda t: t + 1, r"weight_shape says \[193, 129\], expected \[192, 128\]"),
        ("w4a16", "weight_shape", lambda t: None, "up_proj.weight_shape is missing"),
        ("w4a16", "weight_zero_point", lambda t: torch.ones(24, 2), "is not zero and quantization_config says symm"),
        ("w4a16-asymmetric", "weight_zero_point", lambda t: None, "up_proj.weight_zero_point is missing"),
        ("w4a16-asymmetric", "weight_zero_point", lambda t: t[:-1], r"has the shape \[23, 2\], expected \[24, 2\]"),
        ("w4a16-g-idx", "weight_g_idx", lambda t: t + 1, "weight_g_idx names group 2, expected 0 to 1"),
        ("w4a16-g-idx", "weight_g_idx", lambda t: t * 0, "weight_g_idx does not give each group 64"),
        ("fp8-channel-dynamic", "weight", lambda t: t[:-1], r"weight has the shape \[191, 128\], expected"),
        ("fp8-channel-dynamic", "weight", lambda t: t.float(), "has dtype F32, expected F8_E4M3"),
        ("fp8-channel-dynamic", "weight", lambda t: None, "up_proj.weight is missing"),
        ("fp8-channel-dynamic", "weight_scale", lambda t: t[:-1], r"weight_scale has the shape \[191, 1\]"),
        ("fp8-channel-dynamic", "weight_scale", lambda t: None, "up_proj is plain in the weights and quantised by"),
        ("fp8-tensor-static", "input_scale", lambda t: None, "up_proj.input_scale is missing"),
        ("fp8-tensor-static", "input_scale", lambda t: t * 0, "up_proj.input_scale is 0.0, expected a positive number"),
    ],
)
def test_a_broken_tensor_is_refused_in_one_line(
    original: Path, tmp_path: Path, packing: str, part: str, change: Callable[[Any], Any], message: str
) -> None:
    compress_checkpoint(original, tmp_path / "packed", PACKINGS[packing])
    change_tensor(tmp_path / "packed", f"{PART}.{part}", change)
    assert_matches(message, export_refusal(tmp_path / "packed", tmp_path / "bundle"))


def in_group(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["config_groups"]["group_0"].update(changes)


def in_weights(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["config_groups"]["group_0"]["weights"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(config_groups={}), "config_groups is {}, expected groups with targets and weights"),
        (lambda c: c.update(config_groups={"W4A16": ["Linear"]}), r"W4A16 is \['Linear'\], expected an object"),
        (lambda c: c.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme quantises the cache, expected none"),
        (lambda c: c.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config is set, expected dense"),
        (lambda c: c.update(transform_config={"config_groups": {"u": {}}}), "transform_config rotates the weights"),
        (lambda c: c.update(format="marlin-24"), "int weights of 4 bits as 'marlin-24', expected int of 4 or 8"),
        (lambda c: c.update(format="nvfp4-pack-quantized"), "as 'nvfp4-pack-quantized', expected"),
        (lambda c: c.update(ignore=["re:("]), r"quantization_config holds .\(., expected a regular expression"),
        (lambda c: c.update(ignore="lm_head"), "ignore is lm_head, expected a list of names"),
        (lambda c: c.update(ignore=[*c["ignore"], PART]), "up_proj is quantised in the weights and not by"),
        (lambda c: c.update(ignore=[]), "lm_head is plain in the weights and quantised by"),
        (in_group(targets=["re:.*self_attn.*"]), "up_proj|gate_proj|down_proj is quantised in the weights and not by"),
        (in_group(weights=None), "group_0: weights is missing, expected what quantises them"),
        (in_group(input_activations={"num_bits": 8}), "input_activations is .*, expected none beside integer weights"),
        (in_group(output_activations={"num_bits": 8}), "output_activations is .*, expected none"),
        (in_weights(num_bits=2), "int weights of 2 bits as 'pack-quantized', expected int of 4 or 8"),
        (in_weights(num_bits=8), r"weight_packed has the shape \[.*\]. .*says 8 bits, groups of 64"),
        (in_weights(type="float", num_bits=4), "float weights of 4 bits"),
        (in_weights(strategy="block"), "strategy is block, expected 'group', 'channel' or 'tensor'"),
        (in_weights(group_size=32), r"weight_scale has the shape \[.*\], expected .*groups of 32"),
        (in_weights(group_size=24), "group_size is 24, expected a multiple of 16"),
        (in_weights(symmetric=False), "weight_zero_point is missing"),
        (in_weights(symmetric="no"), "symmetric is no, expected true, or false"),
        (in_weights(dynamic=True), "dynamic is True, expected false"),
    ],
)
def test_a_config_that_contradicts_or_is_unknown_is_refused(
    original: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    compress_checkpoint(original, tmp_path / "packed", CompressedPacking(GROUP))
    change_config(tmp_path / "packed", change)
    assert_matches(message, export_refusal(tmp_path / "packed", tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="int-quantized"), "float weights of 8 bits as 'int-quantized'"),
        (in_weights(strategy="block"), "strategy is block, expected 'channel' or 'tensor'"),
        (in_weights(symmetric=False), "symmetric is False, expected true"),
        (
            in_group(input_activations={**FP8, "strategy": "tensor", "dynamic": True}),
            "expected symmetric FP8, by token",
        ),
        (in_group(input_activations={"num_bits": 8, "strategy": "token", "dynamic": True}), "expected symmetric FP8"),
        (in_weights(type="int"), "int weights of 8 bits as 'float-quantized'"),
        (
            lambda c: (
                c.update(format="pack-quantized"),
                in_weights(type="int", num_bits=4)(c),
                in_group(input_activations=None)(c),
            ),
            "is stored as float-quantized and quantization_config says pack-quantized",
        ),
    ],
)
def test_an_fp8_config_that_contradicts_or_is_unknown_is_refused(
    original: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    compress_checkpoint(original, tmp_path / "packed", PACKINGS["fp8-channel-dynamic"])
    change_config(tmp_path / "packed", change)
    assert_matches(message, export_refusal(tmp_path / "packed", tmp_path / "bundle"))


def test_a_pattern_that_never_ends_is_refused(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_CPU_S", 1)
    compress_checkpoint(original, tmp_path / "packed", CompressedPacking(GROUP))
    change_config(tmp_path / "packed", lambda config: config["ignore"].append(r"re:(.*.*.*.*.*.*.*.*)*!"))
    message = export_refusal(tmp_path / "packed", tmp_path / "bundle")
    assert_matches(r"quantization_config: its 3 regular expressions take more than 1 s or 1 GiB", message)


def test_a_quantised_vision_tower_is_refused(original: Path, tmp_path: Path) -> None:
    compress_checkpoint(original, tmp_path / "packed", CompressedPacking(GROUP))
    name = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight_scale"
    change_tensor(tmp_path / "packed", name, lambda t: torch.ones(1))
    assert f"{name} is quantised, expected only" in export_refusal(tmp_path / "packed", tmp_path / "bundle")
