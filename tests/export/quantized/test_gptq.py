"""GPTQ checkpoints: every layout reaches the graph bit for bit, and every contradiction is refused in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import export_bundle
from tests.makers.exported_weights import (
    FUSED,
    ExportedDecoder,
    assert_equal_bit_for_bit,
    export_exactly,
    exported_linears,
)
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint, quantization_config, write_config
from tests.makers.refusals import assert_matches, export_refusal
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantized import patterns
from varco_export.reading.names import Scheme, canonical_name, disk_name
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import UsageError

Array = np.ndarray[Any, Any]
TINY = TinyOptions(seed=11, hidden_size=128, num_attention_heads=8, intermediate_size=192, vocab_size=520)
LAYERS = [f"language_model.layers.{index}" for index in range(TINY.num_hidden_layers)]
PACKINGS = {
    "plain": GptqPacking(),
    "v2": GptqPacking(version=2),
    "group-64": GptqPacking(group_size=64),
    "group-128": GptqPacking(group_size=128),
    "group-48": GptqPacking(group_size=48),
    "whole-column": GptqPacking(group_size=-1),
    "asymmetric-v1": GptqPacking(sym=False),
    "asymmetric-v2": GptqPacking(sym=False, version=2),
    "asymmetric-whole-column": GptqPacking(sym=False, group_size=-1),
    "8-bits": GptqPacking(bits=8),
    "8-bits-asymmetric-v1": GptqPacking(bits=8, sym=False),
    "8-bits-asymmetric-v2": GptqPacking(bits=8, sym=False, version=2, group_size=64),
    "act-order": GptqPacking(act_order=True),
    "act-order-asymmetric-v1": GptqPacking(act_order=True, sym=False),
    "act-order-whole-column": GptqPacking(act_order=True, sym=False, group_size=-1),
    "act-order-8-bits": GptqPacking(act_order=True, sym=False, bits=8, group_size=64),
    "act-order-apart": GptqPacking(act_order=True, apart=True, sym=False, version=2),
    "head": GptqPacking(lm_head=True, sym=False),
    "head-act-order": GptqPacking(lm_head=True, act_order=True),
    "exclusions": GptqPacking(plain=("k_proj", "layers.1.mlp.down_proj"), act_order=True),
    "exclusion-of-a-producer": GptqPacking(plain=("up_proj",), act_order=True),
    "overrides": GptqPacking(overrides={"gate_proj": {"bits": 8}, "o_proj": {"group_size": 64}}, act_order=True),
    "zero-biases": GptqPacking(zero_biases=True),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("gptq") / "original", TINY)


def expected_linears(source: Path, packed: Path, dequantised: dict[str, Array]) -> dict[str, Array]:
    """The same from the packer's own dequantisation, the features between gate, up and down sorted as down's are."""
    weights = load_file(source / "model.safetensors") | dequantised
    weights = {str(canonical_name(name)).removesuffix(".weight"): array for name, array in weights.items()}
    g_idx = {str(canonical_name(k)): v for k, v in load_file(packed / "model.safetensors").items() if "g_idx" in k}
    names = [f"{layer}.{part}" for layer in LAYERS for parts in FUSED.values() for part in parts]
    linears = {name: weights[name] for name in [*names, "lm_head"]}
    for layer in LAYERS:
        gate, up, down = (f"{layer}.mlp.{part}_proj" for part in ("gate", "up", "down"))
        if all(f"{part}.g_idx" in g_idx for part in (gate, up, down)):
            order = np.argsort(g_idx[f"{down}.g_idx"], kind="stable")
            linears |= {gate: linears[gate][order], up: linears[up][order], down: linears[down][:, order]}
    return linears


def test_every_linear_equals_a_packer_that_rounds_to_fp16_bit_for_bit(original: Path, tmp_path: Path) -> None:
    packing = GptqPacking(sym=False, act_order=True)
    dequantised = pack_checkpoint(original, tmp_path / "packed", packing, dequantise_in=np.float16)
    got = exported_linears(export_exactly(tmp_path / "packed", tmp_path / "bundle"), TINY)
    assert_equal_bit_for_bit(got, expected_linears(original, tmp_path / "packed", dequantised))


@pytest.mark.parametrize("name", PACKINGS)
def test_every_linear_equals_the_packers_own_dequantisation_bit_for_bit(
    original: Path, tmp_path: Path, name: str
) -> None:
    dequantised = pack_checkpoint(original, tmp_path / "packed", PACKINGS[name])
    bundle = export_exactly(tmp_path / "packed", tmp_path / "bundle")
    assert_equal_bit_for_bit(
        exported_linears(bundle, TINY), expected_linears(original, tmp_path / "packed", dequantised)
    )


def test_int4_weights_reach_matmulnbits_unchanged(original: Path, tmp_path: Path) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking(group_size=64))
    decoder = ExportedDecoder(export_bundle(tmp_path / "packed", tmp_path / "bundle"))
    packed = load_file(tmp_path / "packed" / "model.safetensors")
    for layer in LAYERS:
        disk = disk_name(f"{layer}.mlp.down_proj", "hf_old")
        words = packed[f"{disk}.qweight"]
        bytes_by_row = np.ascontiguousarray(words.T).view(np.uint8).reshape(TINY.hidden_size, -1, 32)
        np.testing.assert_array_equal(decoder.tensors[f"{layer}.mlp.down_proj.weight_int4"], bytes_by_row)
        np.testing.assert_array_equal(decoder.tensors[f"{layer}.mlp.down_proj.scales"], packed[f"{disk}.scales"].T)
    stored = [node for node in decoder.nodes("MatMulNBits") if node.input[1].endswith(".weight_int4")]
    assert len(stored) == 4 * len(LAYERS)
    assert all(len(node.input) == 3 for node in stored), "symmetric weights need no zero points"


def test_act_order_costs_one_gather_for_qkv_one_for_o_and_one_for_gate_and_up(original: Path, tmp_path: Path) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking(act_order=True))
    decoder = ExportedDecoder(export_exactly(tmp_path / "packed", tmp_path / "bundle"))
    assert len(decoder.nodes("Gather")) == 3 * len(LAYERS), "down_proj's order belongs into gate's and up's rows"
    assert len(decoder.nodes("MatMulNBits")) == 4 * len(LAYERS)
    assert all(len(node.input) <= 4 for node in decoder.nodes("MatMulNBits")), "g_idx at run time"


@pytest.mark.parametrize("scheme", ["hf_old", "hf_5", "llava_next"])
def test_any_spelling_of_the_names_reads_the_same(original: Path, tmp_path: Path, scheme: Scheme) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking())
    expected = exported_linears(export_exactly(tmp_path / "packed", tmp_path / "expected"), TINY)
    rename(tmp_path / "packed", lambda name: disk_name(str(canonical_name(name)), scheme))
    assert_equal_bit_for_bit(exported_linears(export_exactly(tmp_path / "packed", tmp_path / "bundle"), TINY), expected)


@pytest.mark.parametrize("scheme", ["llava_next", "hf_old", "hf_4_57", "hf_5"])
def test_dynamic_is_applied_in_any_spelling_of_the_names(original: Path, tmp_path: Path, scheme: Scheme) -> None:
    folder = tmp_path / "packed"
    packing = GptqPacking(overrides={"gate_proj": {"bits": 8}, "layers.1.self_attn.o_proj": {"group_size": 64}})
    dequantised = pack_checkpoint(original, folder, packing)
    layers = re.escape(disk_name("language_model.layers.", scheme))
    dynamic = {
        rf"+:^{layers}\d+\.mlp\.gate_proj$": {"bits": 8},
        rf"{layers}1\.self_attn\.o_proj": {"group_size": 64},
        rf"-:{layers}.*vision": {},
    }
    change_config(folder, dynamic=dynamic)
    bundle = export_exactly(folder, tmp_path / "bundle")
    assert_equal_bit_for_bit(exported_linears(bundle, TINY), expected_linears(original, folder, dequantised))


def test_dynamic_means_the_stored_name_before_another_spelling(original: Path, tmp_path: Path) -> None:
    """And what excludes another spelling does not exclude what is quantised."""
    folder = tmp_path / "packed"
    dequantised = pack_checkpoint(original, folder, GptqPacking(overrides={"up_proj": {"bits": 8}}))
    dynamic = {
        r"-:model\.layers\..*": {},
        r"model\.language_model\..*\.up_proj": {"bits": 4},
        r"language_model\.model\..*\.up_proj": {"bits": 8},
    }
    change_config(folder, dynamic=dynamic)
    bundle = export_exactly(folder, tmp_path / "bundle")
    assert_equal_bit_for_bit(exported_linears(bundle, TINY), expected_linears(original, folder, dequantised))


def test_a_dynamic_pattern_that_never_ends_is_refused(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MAX_CPU_S", 1)
    pack_checkpoint(original, tmp_path / "packed", GptqPacking())
    change_config(tmp_path / "packed", dynamic={r"-:(\w+\.?)+!": {}, r"-:(.*.*.*.*.*.*.*.*)*!": {}})
    message = export_refusal(tmp_path / "packed", tmp_path / "bundle")
    assert "quantization_config: dynamic: its 2 regular expressions take more than 1 s" in message


def test_a_text_model_quantised_apart_takes_its_vision_side_from_the_original(original: Path, tmp_path: Path) -> None:
    pack_checkpoint(original, tmp_path / "whole", GptqPacking(sym=False))
    whole = export_bundle(tmp_path / "whole", tmp_path / "expected")
    text = text_model_of(tmp_path / "whole", tmp_path / "text")
    bundle = export_bundle(text, tmp_path / "bundle", vision_from=str(original))
    for file in ("vision.onnx.data", "projector.onnx.data", "decoder.onnx", "decoder.onnx.data", "embedding.bin"):
        assert (bundle / file).read_bytes() == (whole / file).read_bytes(), file
    assert read_manifest(bundle).provenance["vision_source"] == "original"


def test_the_manifest_says_what_is_stored(original: Path, tmp_path: Path) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking(act_order=True, lm_head=True))
    manifest = read_manifest(export_bundle(tmp_path / "packed", tmp_path / "bundle"))
    assert manifest.decoder.precision == "int4 (GPTQ, groups of 32, act-order, fp32 activations)"
    plain = export_bundle(original, tmp_path / "plain", decoder="int4", lm_head="int4")
    difference = manifest.decoder.weight_bytes - read_manifest(plain).decoder.weight_bytes
    assert 0 <= difference < 8_000, "an int4 checkpoint reads other bytes per token than int4 made here"
    assert manifest.model.num_parameters == read_manifest(plain).model.num_parameters


@pytest.mark.parametrize(("asked", "head"), [("auto", "int8"), ("int8", "int8"), ("int4", "int4"), ("fp32", "fp32")])
def test_a_plain_head_is_rounded_to_int8_unless_asked_otherwise(
    original: Path, tmp_path: Path, asked: str, head: str
) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking())
    bundle = export_bundle(tmp_path / "packed", tmp_path / "bundle", lm_head=asked, activations="int8", decoder="int4")
    text = "int4 (GPTQ, groups of 32, int8 activations)"
    assert read_manifest(bundle).decoder.precision == (text if head == "int4" else f"{text}, head {head}")
    held = {name for name in ExportedDecoder(bundle).tensors if name.startswith("lm_head.weight")}
    assert held == {"lm_head.weight" if head == "fp32" else f"lm_head.weight_{head}"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "int8"}, r"--decoder int8 would round weights a second time, the checkpoint holds int4 \(GPTQ"),
        ({"decoder": "fp32"}, "--decoder fp32 would round"),
        ({"lm_head": "int8"}, "--lm-head int8 would round weights a second time"),
        ({"decoder": "fp8"}, "--decoder fp8 would round"),
    ],
)
def test_another_format_than_the_stored_one_is_refused(
    original: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking(lm_head=True))
    with pytest.raises(UsageError, match=message):
        export_bundle(tmp_path / "packed", tmp_path / "bundle", **options)


# --- refusals ---------------------------------------------------------------------------------------------------------

PART = "language_model.model.layers.1.mlp.up_proj"


def rename(folder: Path, name_of: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    save_file({name_of(name): array for name, array in load_file(path).items()}, path)


def text_model_of(whole: Path, out: Path) -> Path:
    """The language model of a checkpoint on its own, as a text model's tools would save it."""
    out.mkdir()
    tensors = {str(canonical_name(name)): array for name, array in load_file(whole / "model.safetensors").items()}
    text = {disk_name(k, "llava_next"): v for k, v in tensors.items() if k.startswith(("language_model", "lm_head"))}
    save_file(text, out / "model.safetensors")
    config = json.loads((whole / "config.json").read_text())
    text_config = config["text_config"] | {"quantization_config": config["quantization_config"]}
    (out / "config.json").write_text(json.dumps(text_config))
    return out


def break_tensor(folder: Path, name: str, change: Callable[[Array], Array | None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    changed = change(tensors.pop(name))
    save_file(tensors | ({} if changed is None else {name: np.ascontiguousarray(changed)}), path)


def change_config(folder: Path, **changes: Any) -> None:
    write_config(folder, json.loads((folder / "config.json").read_text())["quantization_config"] | changes)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("scales", lambda a: a[:-1], r"scales has the shape \[3, 192\], expected \[4, 192\]. .*groups of 32"),
        ("scales", lambda a: None, "up_proj.scales is missing"),
        ("scales", lambda a: np.full_like(a, np.nan), "up_proj.scales holds NaN or infinity"),
        (
            "scales",
            lambda a: a.astype(np.int32),
            "scales in model.safetensors has dtype I32, expected BF16, F16 or F32",
        ),
        ("qweight", lambda a: a[:-1], r"qweight has the shape \[15, 192\], expected \[16, 192\]"),
        ("qweight", lambda a: a.T, "qweight has the shape"),
        ("qweight", lambda a: a.astype(np.int64), "has dtype I64, expected I32"),
        ("qzeros", lambda a: a[:, :-1], r"qzeros has the shape \[4, 23\], expected \[4, 24\]"),
        ("qzeros", lambda a: None, "up_proj.qzeros is missing"),
        ("qzeros", lambda a: a + 0x11111111, "has a zero point of 9 and its quantization_config says sym, expected 8"),
        ("g_idx", lambda a: a[:-1], r"g_idx has the shape \[127\], expected \[128\]"),
        ("g_idx", lambda a: a + 1, r"g_idx names group 4, expected 0 to 3"),
        ("g_idx", lambda a: a - 1, r"g_idx names group -1, expected 0 to 3"),
        ("g_idx", lambda a: np.where(a == 0, 1, a), "g_idx does not give each group 32 input features"),
    ],
)
def test_a_broken_tensor_is_refused_in_one_line(
    original: Path, tmp_path: Path, part: str, change: Callable[[Array], Array], message: str
) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking())
    break_tensor(tmp_path / "packed", f"{PART}.{part}", change)
    assert_matches(message, export_refusal(tmp_path / "packed", tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits is 3, expected 4 or 8"),
        ({"bits": 2}, "bits is 2, expected 4 or 8"),
        ({"bits": "\x1b[31m\n4"}, r"bits is \\x1b\[31m 4, expected 4 or 8"),
        ({"bits": 8}, r"down_proj.qweight has the shape \[24, 128\], expected \[48, 128\]"),
        ({"group_size": 64}, r"qzeros has the shape \[6, 16\], expected \[3, 16\]. .*in groups of 64"),
        ({"group_size": 0}, "group_size is 0, expected -1 or 16 and more"),
        ({"group_size": 40}, "group_size is 40, expected a multiple of 16"),
        ({"group_size": "large"}, "group_size is large, expected -1"),
        ({"sym": "yes"}, "sym is 'yes', expected true or false"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin', expected 'gptq' or 'gptq_v2'"),
        ({"checkpoint_format": "gptq_v2"}, "has a zero point of 7 .*says sym, expected 8"),
        ({"checkpoint_format": None, "format": "gptq_v2"}, "has a zero point of 7 .*says sym, expected 8"),
        ({"format": "gptq_v2"}, "checkpoint_format is 'gptq' and format is 'gptq_v2', expected both to agree"),
        ({"format": "marlin", "checkpoint_format": None}, "checkpoint_format is 'marlin', expected 'gptq'"),
        ({"is_marlin_format": True}, "checkpoint_format is 'marlin'"),
        ({"pack_dtype": "int16"}, "pack_dtype is 'int16', expected 'int32'"),
        ({"quant_method": "awq"}, "quant_method is 'awq', expected 'gptq' or 'compressed-tensors'"),
        ({"quant_method": None}, "quant_method is 'None', expected"),
        ({"lm_head": True}, "says lm_head is quantised and the weights hold a plain one"),
        ({"dynamic": {"-:.*up_proj": {}}}, "up_proj.qweight stands in the weights .* excludes it in 'dynamic'"),
        ({"dynamic": {"-:(": {}}}, r"dynamic holds '\(', expected a regular expression"),
        ({"dynamic": {".*up_proj": 8}}, "dynamic maps '.*up_proj' to '8', expected settings"),
        ({"dynamic": [1]}, "dynamic is '.1.', expected patterns"),
        ({"dynamic": {".*up_proj": {"bits": 3}}}, "dynamic, .*up_proj: bits is 3, expected 4 or 8"),
    ],
)
def test_a_config_that_contradicts_or_is_unknown_is_refused(
    original: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking())
    change_config(tmp_path / "packed", **changes)
    assert_matches(message, export_refusal(tmp_path / "packed", tmp_path / "bundle"))


def test_two_configs_must_agree(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_checkpoint(original, folder, GptqPacking())
    config = quantization_config(GptqPacking())
    (folder / "quantize_config.json").write_text(json.dumps(config))
    export_bundle(folder, tmp_path / "agreeing")
    (folder / "quantize_config.json").write_text(json.dumps(config | {"group_size": 128}))
    message = export_refusal(folder, tmp_path / "bundle")
    assert message.startswith("group_size is 32 in config.json and 128 in quantize_config.json")
    apart = "checkpoint_format is gptq in config.json and gptq_v2 in quantize_config.json"
    for key in ("checkpoint_format", "format"):  # of which the other is not there, or null
        other = config | {"checkpoint_format": None, key: "gptq_v2"}
        (folder / "quantize_config.json").write_text(json.dumps(other))
        assert export_refusal(folder, tmp_path / "bundle").startswith(apart)
    document = json.loads((folder / "config.json").read_text())
    document["text_config"]["quantization_config"] = config | {"bits": 8}
    (folder / "config.json").write_text(json.dumps(document))
    assert "two different quantization_configs" in export_refusal(folder, tmp_path / "bundle")


def test_quantize_config_json_alone_is_enough(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    dequantised = pack_checkpoint(original, folder, GptqPacking(sym=False))
    document = json.loads((folder / "config.json").read_text())
    config = document.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(document))
    config.pop("quant_method")
    (folder / "quantize_config.json").write_text(json.dumps(config))
    bundle = export_exactly(folder, tmp_path / "bundle")
    assert_equal_bit_for_bit(exported_linears(bundle, TINY), expected_linears(original, folder, dequantised))


def test_a_convention_that_one_of_two_keys_or_files_states_is_read(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    dequantised = pack_checkpoint(original, folder, GptqPacking(sym=False, version=2))
    expected = expected_linears(original, folder, dequantised)
    change_config(folder, checkpoint_format=None, format="gptq_v2")
    assert_equal_bit_for_bit(exported_linears(export_exactly(folder, tmp_path / "one"), TINY), expected)
    change_config(folder, format=None)
    second = quantization_config(GptqPacking(sym=False, version=2))
    (folder / "quantize_config.json").write_text(json.dumps(second))
    assert_equal_bit_for_bit(exported_linears(export_exactly(folder, tmp_path / "two"), TINY), expected)


def test_a_config_over_plain_weights_is_refused(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(original, folder)
    write_config(folder, quantization_config(GptqPacking()))
    assert "says GPTQ and the weights hold no qweight" in export_refusal(folder, tmp_path / "bundle")


def test_quantised_weights_without_a_config_are_refused(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_checkpoint(original, folder, GptqPacking())
    document = json.loads((folder / "config.json").read_text())
    document.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(document))
    assert "quantised and config.json holds no quantization_config" in export_refusal(folder, tmp_path / "bundle")


def test_a_quantised_vision_tower_is_refused(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_checkpoint(original, folder, GptqPacking())
    name = "vision_tower.vision_model.encoder.layers.0.mlp.fc1"
    rename(folder, lambda disk: disk.replace(f"{name}.weight", f"{name}.qweight"))
    assert f"{name}.qweight is quantised, expected only the language model's" in export_refusal(
        folder, tmp_path / "bundle"
    )


def test_a_bias_that_the_network_does_not_have_is_refused(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_checkpoint(original, folder, GptqPacking(zero_biases=True))
    break_tensor(folder, f"{PART}.bias", lambda bias: bias + 1)
    assert "up_proj.bias is not zero, expected no bias" in export_refusal(folder, tmp_path / "bundle")


def test_act_order_without_g_idx_is_refused(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_checkpoint(original, folder, GptqPacking(act_order=True))
    break_tensor(folder, f"{PART}.g_idx", lambda g_idx: None)
    assert "g_idx is missing and quantization_config says desc_act" in export_refusal(folder, tmp_path / "bundle")


def test_a_missing_g_idx_is_fine_without_act_order(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    dequantised = pack_checkpoint(original, folder, GptqPacking())
    break_tensor(folder, f"{PART}.g_idx", lambda g_idx: None)
    bundle = export_exactly(folder, tmp_path / "bundle")
    assert_equal_bit_for_bit(exported_linears(bundle, TINY), expected_linears(original, folder, dequantised))


def test_a_text_model_alone_or_with_the_wrong_vision_side_is_refused(original: Path, tmp_path: Path) -> None:
    pack_checkpoint(original, tmp_path / "whole", GptqPacking())
    text = text_model_of(tmp_path / "whole", tmp_path / "text")
    assert "add --vision-from ORIGINAL" in export_refusal(text, tmp_path / "bundle")
    message = export_refusal(tmp_path / "whole", tmp_path / "bundle", vision_from=str(original))
    assert "is no part of a language model" in message
    other = make_tiny(tmp_path / "other", replace(TINY, rope_theta=5e5))
    message = export_refusal(text, tmp_path / "bundle", vision_from=str(other))
    assert message.startswith("text: rope_theta is 1000000.0 and 500000.0 in the checkpoint of the vision side")


def test_every_tensor_of_a_quantised_checkpoint_is_used_or_skipped_with_a_reason(
    original: Path, tmp_path: Path
) -> None:
    pack_checkpoint(original, tmp_path / "packed", GptqPacking(zero_biases=True))
    checkpoint = Checkpoint.open(tmp_path / "packed")
    assert {reason for name, reason in checkpoint.skipped.items() if name.endswith("proj.bias")} == {"a bias of zeros"}
    for name in checkpoint.quantized:
        checkpoint.weight(name)
    for name in checkpoint.tensors:
        checkpoint.tensor(name)
    checkpoint.finish()
