"""Qwen3 as the language model: what config.json says, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.makers.refusals import export_refusal, refusal
from tests.makers.shard_files import change_header
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.config_reader import read_config
from varco_export.config.model_config import ModelConfig
from varco_export.tiny import TinyOptions, make_tiny, token_ids
from varco_runtime.errors import UsageError

QWEN3: dict[str, Any] = {"text": "qwen3", "patch_size": 16}
WIDE_HEADS: dict[str, Any] = {**QWEN3, "hidden_size": 160, "num_attention_heads": 10, "head_dim": 32}
Q_NORM = "language_model.model.layers.1.self_attn.q_norm.weight"
UNUSED = "vision_tower.vision_model.head.probe"
"""A name of what is left out."""
Change = dict[str, Any]


def change_text(folder: Path, changes: Change) -> Path:
    """Change keys of text_config, or remove those that are `...`."""
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= changes
    values["text_config"] = {key: value for key, value in values["text_config"].items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def read(copy: Callable[..., Path]) -> Callable[[Change], ModelConfig]:
    """The configuration of a tiny Qwen3 with some keys of text_config changed."""
    return lambda changes: read_config(change_text(copy(**QWEN3), changes), {})


# --- what is read -----------------------------------------------------------------------------------------------------


def test_qwen3_has_norms_of_heads_and_no_bias_and_qwen2_the_opposite(made: Callable[..., Path]) -> None:
    for options, expected in ((QWEN3, (True, False)), ({}, (False, True))):
        checkpoint = Checkpoint.open(made(**options))
        text, attention = checkpoint.config.text, "language_model.layers.0.self_attn"
        assert (text.qk_norm, text.qkv_bias) == expected
        assert (
            checkpoint.has(f"{attention}.q_norm.weight") is checkpoint.has(f"{attention}.k_norm.weight") is expected[0]
        )
        assert checkpoint.has(f"{attention}.q_proj.bias") is checkpoint.has(f"{attention}.v_proj.bias") is expected[1]


def test_heads_may_be_together_wider_than_the_model(made: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(made(**WIDE_HEADS))
    assert checkpoint.tensor("language_model.layers.0.self_attn.q_proj.weight").shape == (320, 160)
    assert checkpoint.tensor("language_model.layers.0.self_attn.o_proj.weight").shape == (160, 320)
    assert checkpoint.tensor("language_model.layers.0.self_attn.k_norm.weight").shape == (32,)


def test_a_head_dim_that_is_left_out_is_128(read: Callable[[Change], ModelConfig]) -> None:
    assert read({"head_dim": ...}).text.head_dim == 128
    assert read({"head_dim": None, "hidden_size": 60}).text.head_dim == 128


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": ...},
        {"attention_bias": None},
        {"rope_scaling": None, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 1},
        {"layer_types": ["full_attention"] * 2},
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
    ids=str,
)
def test_what_the_published_configurations_say_changes_nothing(
    read: Callable[[Change], ModelConfig], changes: Change
) -> None:
    assert read(changes).text == TinyOptions(**QWEN3).to_config().text


@pytest.mark.parametrize("names", ["old", "new"])
def test_both_spellings_of_names_read_the_same_norms(made: Callable[..., Path], names: str) -> None:
    checkpoint = Checkpoint.open(made(**QWEN3, names=names))
    expected = Checkpoint.open(made(**QWEN3)).tensor("language_model.layers.1.self_attn.k_norm.weight").read()
    got = checkpoint.tensor("language_model.layers.1.self_attn.k_norm.weight").read()
    assert (got == expected).all()
    assert 0.1 < got.std() < 0.6  # far from 1, so that a norm left out shows


# --- what is refused --------------------------------------------------------------------------------------------------

SLIDING: Change = {"use_sliding_window": True, "sliding_window": 8}
REFUSED: list[tuple[Change, str]] = [
    ({"model_type": "qwen3_moe"}, "text_config: model_type is 'qwen3_moe', expected 'qwen2' or 'qwen3'"),
    ({"model_type": "qwen3_next"}, "text_config: model_type is 'qwen3_next', expected 'qwen2' or 'qwen3'"),
    ({"model_type": ["qwen3"]}, "model_type is ["),
    ({"model_type": None}, "model_type is null, expected 'qwen2' or 'qwen3'"),
    ({"attention_bias": True}, "attention_bias is true, expected false (only Qwen3 without bias is implemented)"),
    ({"mlp_bias": True}, "mlp_bias is true, expected missing (Qwen3 has no bias in its MLP)"),
    (SLIDING | {"max_window_layers": 1}, "sliding_window is 8, expected a window of all"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window is missing, expected a window of all"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: rope_type is 'yarn', expected 'default'"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear', expected 'default'"),
    ({"head_dim": 15}, "head_dim is 15, expected an even number"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_another_network_is_refused_by_its_key(
    read: Callable[[Change], ModelConfig], changes: Change, message: str
) -> None:
    assert message in refusal(lambda: read(changes))


def test_a_tower_that_takes_pictures_of_any_size_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy(**QWEN3)
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"]["model_type"] = "siglip2_vision_model"
    (folder / "config.json").write_text(json.dumps(values))
    message = refusal(lambda: read_config(folder, {}))
    assert "model_type is 'siglip2_vision_model', expected 'siglip_vision_model'" in message
    assert "not NaFlex" in message


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("llavaonevision1_5", "LLaVAOneVision1_5_ForConditionalGeneration"),
        ("llava_onevision", "LLaVAOneVision1_5_ForConditionalGeneration"),
        ("llava_onevision2", "LlavaOnevision2ForConditionalGeneration"),
        ("llava_onevision", "LlavaOnevision2ForConditionalGeneration"),
    ],
)
def test_later_networks_of_the_same_name_are_told_apart(
    copy: Callable[..., Path], model_type: str, architecture: str
) -> None:
    folder = copy(**QWEN3)
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": model_type, "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(values))
    assert "another network with the same name" in refusal(lambda: read_config(folder, {}))


def test_weights_with_other_heads_than_an_absent_head_dim_means_are_refused(copy: Callable[..., Path]) -> None:
    folder = change_text(copy(**WIDE_HEADS), {"head_dim": ...})
    assert "no head_dim, which means 128, and the weights have heads of 32" in refusal(lambda: Checkpoint.open(folder))


def test_qwen2_weights_with_other_heads_than_the_width_means_are_refused(copy: Callable[..., Path]) -> None:
    folder = change_text(copy(head_dim=32), {"head_dim": ...})
    assert "no head_dim, which means 16, and the weights have heads of 32" in refusal(lambda: Checkpoint.open(folder))


def test_a_missing_norm_is_named(copy: Callable[..., Path]) -> None:
    folder = copy(**QWEN3)

    def rename(header: dict[str, Any]) -> None:
        header[UNUSED] = header.pop(Q_NORM)

    change_header(folder / "model.safetensors", rename)
    assert "layers.1.self_attn.q_norm.weight is missing" in refusal(lambda: Checkpoint.open(folder))


def test_a_norm_of_the_wrong_length_is_named(copy: Callable[..., Path]) -> None:
    folder = copy(**QWEN3)

    def shorten(header: dict[str, Any]) -> None:
        start, end = header[Q_NORM]["data_offsets"]
        header[UNUSED] = {**header[Q_NORM], "shape": [8], "data_offsets": [(start + end) // 2, end]}
        header[Q_NORM] |= {"shape": [8], "data_offsets": [start, (start + end) // 2]}

    change_header(folder / "model.safetensors", shorten)
    message = refusal(lambda: Checkpoint.open(folder))
    assert "layers.1.self_attn.q_norm.weight [8], expected [16] by config.json" in message


def test_a_qwen3_that_calls_itself_qwen2_is_refused(copy: Callable[..., Path]) -> None:
    folder = change_text(copy(**QWEN3), {"model_type": "qwen2", "attention_bias": ..., "head_dim": 16})
    assert "q_proj.bias and 5 more are missing" in refusal(lambda: Checkpoint.open(folder))


def test_ids_beyond_the_table_are_refused_and_leave_nothing(copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(**QWEN3)
    document = json.loads((folder / "tokenizer.json").read_text())
    extra = {**document["added_tokens"][-1], "id": 600, "content": "</think>"}
    document["added_tokens"].append(extra)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    message = export_refusal(folder, tmp_path / "bundle")
    assert "The tokenizer has ids up to 600, expected less than the 515 rows" in message
    assert len(token_ids()) < 515


def test_qwen3_is_made_in_its_only_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--text is qwen3 and --format llava-next, expected hf"):
        make_tiny(tmp_path / "tiny", TinyOptions(text="qwen3", format="llava-next"))
    for size in (0, 15):
        with pytest.raises(UsageError, match=f"--head-dim is {size}, expected an even number"):
            make_tiny(tmp_path / "tiny", TinyOptions(text="qwen3", head_dim=size))
