"""Configurations of both families, and every refusal by name."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.makers.refusals import refusal
from varco_export.checkpoint.expected_shapes import expected_shapes
from varco_export.checkpoint.provenance import find_license
from varco_export.config.config_hf import _CLIP_MEAN
from varco_export.config.config_reader import read_config
from varco_export.config.model_config import ModelConfig, Shapes
from varco_export.tiny import TinyOptions, make_tiny

REAL = Path("models", "varco-vision-14b-hf")
TINY = TinyOptions(sparse=True)
Change = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("configs")
    return {kind: make_tiny(folder / kind, replace(TINY, format=kind)) for kind in ("hf", "llava-next")}


@pytest.fixture
def read(made: dict[str, Path], tmp_path: Path) -> Callable[..., ModelConfig]:
    """Read the tiny config of a format with some keys (`text_config__hidden_act`) changed, or removed by `...`."""

    def change_and_read(
        kind: str = "hf", file: str = "config.json", shapes: Shapes | None = None, **changes: Any
    ) -> ModelConfig:
        for name in ("config.json", "preprocessor_config.json"):
            if (made[kind] / name).exists():
                values = json.loads((made[kind] / name).read_text())
                for path, value in changes.items() if name == file else ():
                    *parents, key = path.split("__")
                    inner = values
                    for parent in parents:
                        inner = inner[parent]
                    if value is ...:
                        del inner[key]
                    else:
                        inner[key] = value
                (tmp_path / name).write_text(json.dumps(values))
        return read_config(tmp_path, expected_shapes(TINY.to_config()) if shapes is None else shapes)

    return change_and_read


# --- what is read -----------------------------------------------------------------------------------------------------


def test_the_real_configuration_is_read_to_the_number(shared: Path) -> None:
    config = read_config(shared / REAL, {})
    vision, text, image = config.vision, config.text, config.image
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1152, 26, 16)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (4304, 384, 14)
    assert vision.layer_norm_eps == text.rms_norm_eps == 1e-6
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (5120, 48, 40)
    assert (text.num_key_value_heads, text.head_dim, text.intermediate_size) == (8, 128, 13824)
    assert (text.vocab_size, text.max_position_embeddings, text.rope_theta) == (151680, 32768, 1e6)
    assert (text.tie_word_embeddings, config.image_token_id, config.eos_token_id) == (False, 151675, (151645,))
    assert image.grid_pinpoints == tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7))
    assert (image.max_grid_tiles, image.mean, image.std, image.rescale_factor) == (9, (0.5,) * 3, (0.5,) * 3, 1 / 255)
    unused = 2 * 1152  # post_layernorm
    assert sum(math.prod(shape) for shape in expected_shapes(config).values()) + unused == 15_195_977_248


@pytest.mark.parametrize("kind", ["hf", "llava-next"])
def test_both_families_give_the_same_network(read: Callable[..., ModelConfig], kind: Any) -> None:
    assert replace(read(kind), raw={}) == replace(TINY, format=kind).to_config()


@pytest.mark.parametrize(("layer", "running"), [(-1, 2), (-2, 1), (1, 1), (2, 2), ([-1], 2), ([-2], 1)], ids=str)
def test_vision_feature_layer_says_how_many_layers_run(
    read: Callable[..., ModelConfig], layer: int | list[int], running: int
) -> None:
    assert read(vision_feature_layer=layer).vision.num_hidden_layers == running


def test_a_top_level_false_does_not_untie_a_tied_text_config(read: Callable[..., ModelConfig]) -> None:
    assert read(text_config__tie_word_embeddings=True).text.tie_word_embeddings is True


def test_plain_anyres_never_shrinks_a_grid(read: Callable[..., ModelConfig]) -> None:
    assert read(vision_aspect_ratio="anyres").image.max_grid_tiles is None


def test_transformers_5_spellings_of_rope_and_image_token_are_read(read: Callable[..., ModelConfig]) -> None:
    config = read(
        image_token_index=...,
        image_token_id=7,
        text_config__rope_theta=...,
        text_config__rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    assert (config.image_token_id, config.text.rope_theta) == (7, 5e5)


def test_an_explicit_head_dim_wins(read: Callable[..., ModelConfig]) -> None:
    assert read(text_config__head_dim=32).text.head_dim == 32


def test_several_end_tokens_are_kept(read: Callable[..., ModelConfig]) -> None:
    assert read(eos_token_id=[5, 6]).eos_token_id == (5, 6)


def test_no_end_token_at_all_is_left_to_generation_config(read: Callable[..., ModelConfig]) -> None:
    assert read(text_config__eos_token_id=...).eos_token_id == ()


def test_processor_config_of_transformers_5_may_hold_the_image_settings(made: dict[str, Path], tmp_path: Path) -> None:
    image = json.loads((made["hf"] / "preprocessor_config.json").read_text())
    (tmp_path / "config.json").write_text((made["hf"] / "config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": image}))
    assert read_config(tmp_path, {}).image == TINY.to_config().image


@pytest.mark.parametrize("nested", [{}, {"image_mean": [0.1, 0.2, 0.3]}, None], ids=str)
def test_image_settings_in_processor_config_win_over_the_older_file(
    made: dict[str, Path], tmp_path: Path, nested: Change | None
) -> None:
    image = json.loads((made["hf"] / "preprocessor_config.json").read_text())
    (tmp_path / "config.json").write_text((made["hf"] / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image))
    inner = None if nested is None else {key: image[key] for key in ("size", "image_grid_pinpoints")} | nested
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    expected = (0.5, 0.5, 0.5) if nested is None else tuple(nested.get("image_mean", _CLIP_MEAN))
    assert read_config(tmp_path, {}).image.mean == expected


@pytest.mark.parametrize("value", [{"do_pad": None}, {"do_pad": False}, {"do_convert_rgb": None}], ids=str)
def test_steps_that_change_no_rgb_picture_may_be_left_to_their_class(
    read: Callable[..., ModelConfig], value: Change
) -> None:
    assert read(file="preprocessor_config.json", **value).image == TINY.to_config().image


UNUSED_WINDOWS: list[Change] = [
    {"use_sliding_window": True},  # from the 28th layer on
    {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
    {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None},
    {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 1 << 20},
    {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
    {"use_sliding_window": False, "max_window_layers": 0, "sliding_window": 8},
]


@pytest.mark.parametrize("changes", UNUSED_WINDOWS, ids=str)
def test_a_window_that_no_layer_uses_changes_nothing(read: Callable[..., ModelConfig], changes: Change) -> None:
    config = read(**{f"text_config__{key}": value for key, value in changes.items()})
    assert replace(config, raw={}) == TINY.to_config()


def test_the_vision_tower_of_llava_next_comes_from_weights_and_table(read: Callable[..., ModelConfig]) -> None:
    shapes = expected_shapes(replace(TINY, image_size=384, vision_hidden_size=64).to_config())
    config = read(
        "llava-next",
        mm_vision_tower="/models/siglip-so400m-patch14-384/",
        vision_config=...,
        image_grid_pinpoints="(1x1),...,(2x3)",
        shapes=shapes,
    )
    vision = config.vision
    assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size) == (64, 2, 80)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (16, 384, 14)
    assert vision.layer_norm_eps == 1e-6
    # (width, height) in the file, (height, width) here
    assert config.image.grid_pinpoints == tuple((384 * h, 384 * w) for w in (1, 2) for h in (1, 2, 3))


def test_the_27th_layer_of_the_so400m_tower_is_dropped(read: Callable[..., ModelConfig]) -> None:
    for layers in (26, 27):
        shapes = expected_shapes(
            replace(TINY, image_size=384, vision_hidden_size=64, num_vision_layers=layers).to_config()
        )
        name = "google/siglip-so400m-patch14-384"
        config = read(
            "llava-next",
            mm_vision_tower=name,
            vision_config=...,
            image_grid_pinpoints=[[384, 768]],
            shapes=shapes,
        )
        assert config.vision.num_hidden_layers == 26
        assert config.image.grid_pinpoints == ((768, 384),)


def test_a_vision_config_wins_over_the_table(read: Callable[..., ModelConfig]) -> None:
    vision = read("llava-next", mm_vision_tower="google/siglip-so400m-patch14-384").vision
    assert vision == TINY.to_config().vision


def test_pinpoints_may_be_a_list_written_as_text(read: Callable[..., ModelConfig]) -> None:
    assert read("llava-next", image_grid_pinpoints="[[58, 116]]").image.grid_pinpoints == ((116, 58),)


@pytest.mark.parametrize("stated", [512, ...])
def test_the_vocabulary_of_llava_next_follows_the_weights_and_says_so(
    read: Callable[..., ModelConfig], stated: Any
) -> None:
    config = read("llava-next", vocab_size=stated)
    assert config.text.vocab_size == 515
    assert config.notes[0].endswith("the weights have 515 rows: the weights were followed.")


@pytest.mark.parametrize("model_type", ["llava", "qwen2"])
def test_llava_next_is_known_by_its_class_where_model_type_is_another(
    read: Callable[..., ModelConfig], model_type: str
) -> None:
    assert read("llava-next", model_type=model_type).family == "llava_next"


# --- what is refused --------------------------------------------------------------------------------------------------

SLIDING: Change = {"text_config__use_sliding_window": True, "text_config__max_window_layers": 1}
REFUSED_HF: list[tuple[Change, str]] = [
    ({"model_type": "llava_next"}, "model_type is 'llava_next', expected 'llava_onevision'"),
    ({"model_type": ...}, "model_type is missing, expected 'llava_onevision'"),
    ({"text_config__model_type": "llama"}, "text_config: model_type is 'llama', expected 'qwen2'"),
    ({"vision_config__model_type": "clip_vision_model"}, "model_type is 'clip_vision_model', expected 'siglip_vision"),
    (
        {"text_config__rope_scaling": {"type": "yarn", "factor": 4.0}},
        "rope_scaling: type is 'yarn', expected 'default'",
    ),
    ({"text_config__rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', expected 'default'"),
    ({"text_config__rope_parameters": {"mrope_section": [1]}}, "mrope_section is [1], expected plain rotary positions"),
    ({"text_config__rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, expected 1.0"),
    ({"text_config__rope_parameters": 3}, "rope_parameters is 3, expected an object"),
    ({"text_config__use_sliding_window": 1}, "use_sliding_window is 1, expected true or false"),
    (SLIDING | {"text_config__sliding_window": "all"}, "sliding_window is 'all', expected a whole number"),
    (SLIDING | {"text_config__max_window_layers": [0]}, "max_window_layers is [0], expected a whole number"),
    (SLIDING | {"text_config__sliding_window": 8}, "sliding_window is 8, expected a window of all"),
    ({"text_config__layer_types": ["sliding_attention"] * 2}, "sliding_window is missing, expected a window of all"),
    ({"text_config__layer_types": ["linear_attention"]}, "expected 'full_attention' for every layer"),
    ({"text_config__hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
    ({"text_config__attention_bias": False}, "attention_bias is false"),
    ({"text_config__mlp_bias": True}, "mlp_bias is true"),
    (
        {"text_config__num_key_value_heads": 3},
        "num_key_value_heads is 3, expected a divisor of num_attention_heads (4)",
    ),
    ({"text_config__hidden_size": 66}, "num_attention_heads is 4, expected a divisor of hidden_size (66)"),
    ({"text_config__hidden_size": 60}, "head_dim is 15, expected an even number"),
    ({"vision_config__num_attention_heads": 5}, "num_attention_heads is 5, expected a divisor of hidden_size (48)"),
    ({"vision_config__patch_size": 59}, "patch_size is 59, expected at most image_size (58)"),
    ({"vision_config__hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'gelu_pytorch_tanh'"),
    ({"vision_config__num_channels": 1}, "num_channels is 1, expected 3"),
    ({"vision_config": [1]}, "vision_config is [1], expected an object"),
    ({"vision_feature_select_strategy": "default"}, "is 'default', expected 'full'"),
    ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer is [-2, -1], expected one layer, 1 to 2 or -1 to -2"),
    ({"vision_feature_layer": []}, "vision_feature_layer is [], expected one layer"),
    ({"vision_feature_layer": [[-1]]}, "vision_feature_layer is [[-1]], expected one layer"),
    ({"vision_feature_layer": None}, "vision_feature_layer is null, expected one layer"),
    ({"vision_feature_layer": 0}, "vision_feature_layer is 0, expected one layer"),
    ({"vision_feature_layer": -3}, "vision_feature_layer is -3, expected one layer"),
    ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu', expected 'gelu'"),
    ({"multimodal_projector_bias": False}, "multimodal_projector_bias is false, expected true"),
    ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad', expected 'anyres_max_N' or 'anyres'"),
    ({"vision_aspect_ratio": "anyres_max_0"}, "expected 'anyres_max_N' or 'anyres'"),
    ({"image_token_index": 515}, "image_token_index is 515, expected a token id below vocab_size (515)"),
    ({"eos_token_id": "<|im_end|>"}, "eos_token_id is '<|im_end|>', expected a token id or a list of them"),
    ({"eos_token_id": []}, "eos_token_id is [], expected a token id"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
    (
        {"image_grid_pinpoints": []},
        "image_grid_pinpoints is [], expected 1 to 1000 pairs of multiples of the tile size 58",
    ),
    ({"image_grid_pinpoints": [[58, 59]]}, "image_grid_pinpoints is [58, 59], expected"),
    ({"image_grid_pinpoints": [[58, 58, 58]]}, "image_grid_pinpoints is [58, 58, 58], expected"),
    ({"image_grid_pinpoints": [[58 * 32, 58 * 32]]}, "at most 1000 tiles each"),
    ({"image_grid_pinpoints": [[58, 58]]}, "image_grid_pinpoints differ: 1 in config.json, 36 in preprocessor_config"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_HF, ids=[message[:60] for _, message in REFUSED_HF])
def test_what_is_not_implemented_is_refused_by_name(
    read: Callable[..., ModelConfig], changes: Change, message: str
) -> None:
    assert message in refusal(lambda: read(**changes))


@pytest.mark.parametrize("value", [-1, 0, True, 10**12, 1.5, math.nan, math.inf, "64", [64], {"a": 1}])
def test_a_hostile_width_is_refused_by_name(read: Callable[..., ModelConfig], value: Any) -> None:
    for key in ("text_config__hidden_size", "text_config__num_hidden_layers", "vision_config__image_size"):
        assert f"{key.rpartition('__')[2]} is " in refusal(lambda key=key: read(**{key: value}))


@pytest.mark.parametrize("value", [-1.0, 0, True, math.nan, math.inf, 10**400, 5e-324, 1e-40, "1e-6"])
def test_a_hostile_number_is_refused_by_name(read: Callable[..., ModelConfig], value: Any) -> None:
    assert "rms_norm_eps is " in refusal(lambda: read(text_config__rms_norm_eps=value))


REFUSED_IMAGE: list[tuple[Change, str]] = [
    ({"do_resize": False}, "do_resize is false, expected true"),
    ({"do_normalize": None}, "do_normalize is null, expected true"),
    ({"do_convert_rgb": False}, "do_convert_rgb is false, expected true"),
    ({"do_center_crop": True}, "do_center_crop is true"),
    ({"resample": 2}, "resample is 2, expected 3 (only bicubic"),
    ({"size": {"height": 60, "width": 58}}, 'size is {"height": 60, "width": 58}, expected height and width 58'),
    ({"image_mean": [0.5]}, "image_mean is [0.5], expected three numbers"),
    ({"image_mean": [0.5, 0.5, 10**400]}, "expected three numbers"),
    ({"image_std": [0.5, 0.5, 5e-324]}, "expected three numbers, each 0 or 1e-30 to 1e30 in size"),
    ({"image_std": [0.5, 0.5, 0]}, "image_std is [0.5, 0.5, 0], expected three positive numbers"),
    ({"rescale_factor": 0}, "rescale_factor is 0, expected a positive number"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_IMAGE, ids=[message[:40] for _, message in REFUSED_IMAGE])
def test_another_preprocessing_is_refused_by_name(
    read: Callable[..., ModelConfig], changes: Change, message: str
) -> None:
    assert message in refusal(lambda: read(file="preprocessor_config.json", **changes))


REFUSED_LLAVA_NEXT: list[tuple[Change, str]] = [
    ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear', expected 'mlp2x_gelu'"),
    ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type is 'spatial', expected 'spatial_unpad'"),
    ({"mm_patch_merge_type": ...}, "mm_patch_merge_type is 'flat', expected 'spatial_unpad'"),
    ({"mm_resampler_type": "qformer"}, "mm_resampler_type is 'qformer'"),
    ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch', expected 'patch'"),
    ({"mm_vision_select_layer": -3}, "mm_vision_select_layer is -3, expected -2"),
    ({"mm_use_im_start_end": True}, "mm_use_im_start_end is true, expected false"),
    ({"use_pos_skipping": True}, "use_pos_skipping is true, expected false"),
    ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad', expected 'anyres_max_N'"),
    ({"image_aspect_ratio": ...}, "image_aspect_ratio is missing, expected 'anyres_max_N'"),
    ({"image_grid_pinpoints": ...}, "image_grid_pinpoints is missing, expected a list of pairs"),
    ({"image_grid_pinpoints": "everything"}, "image_grid_pinpoints is 'everything', expected a list of pairs"),
    ({"image_grid_pinpoints": "(1x1),...,(99x99)"}, "expected a range of tiles such as '(1x1),...,(6x6)'"),
    ({"vision_config": ...}, "mm_vision_tower is 'varco-edge/tiny-siglip', expected 'siglip-so400m-patch14-384'"),
    ({"vision_config__num_attention_heads": ...}, "vision_config: num_attention_heads is missing, expected a value"),
    ({"model_type": "llava", "architectures": ["LlavaForCausalLM"]}, "model_type is 'llava', expected"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_LLAVA_NEXT, ids=[m[:50] for _, m in REFUSED_LLAVA_NEXT])
def test_another_llava_next_model_is_refused_by_name(
    read: Callable[..., ModelConfig], changes: Change, message: str
) -> None:
    assert message in refusal(lambda: read("llava-next", **changes))


def test_llava_next_weights_without_a_vision_tower_are_refused(read: Callable[..., ModelConfig]) -> None:
    name = "vision_tower.embeddings.patch_embedding.weight"
    assert f"{name} is missing from the weights" in refusal(lambda: read("llava-next", shapes={}))
    assert f"{name} has shape [0], expected 4 dimensions" in refusal(lambda: read("llava-next", shapes={name: (0,)}))


def test_a_missing_or_broken_file_is_named(made: dict[str, Path], tmp_path: Path) -> None:
    assert "config.json is missing from" in refusal(lambda: read_config(tmp_path, {}))
    (tmp_path / "config.json").write_text((made["hf"] / "config.json").read_text())
    assert "preprocessor_config.json is missing from" in refusal(lambda: read_config(tmp_path, {}))
    (tmp_path / "config.json").write_text("[1]")
    assert "holds '[1]', expected a JSON object" in refusal(lambda: read_config(tmp_path, {}))
    for text in ("{", "", "[" * 10**5, '{"a": ' + "9" * 5000 + "}"):
        (tmp_path / "config.json").write_text(text)
        assert "config.json is not JSON" in refusal(lambda: read_config(tmp_path, {}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "preprocessor_config.json"])
def test_no_file_is_waited_for(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(made["hf"], tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert f"{name} cannot be read (it is a folder, pipe or device)" in refusal(lambda: read_config(tmp_path, {}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_licence_that_is_a_pipe_tells_nothing(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE"):
        os.mkfifo(tmp_path / name)
    assert find_license(tmp_path, "someone/model") == "unknown"
