"""Which file and key a setting comes from, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.export.config.test_config import UNUSED_WINDOWS
from tests.export.config.test_prompts import checkpoint, load
from varco_export.config.config_hf import _processor_fields

transformers = pytest.importorskip("transformers", reason="the reference needs transformers (extra 'quantize')")
from transformers import GenerationConfig  # noqa: E402
from transformers.models.llava_onevision import image_processing_pil_llava_onevision as reference_image  # noqa: E402

Processor = reference_image.LlavaOnevisionImageProcessorPil


@pytest.mark.parametrize(
    "nested", [{}, {"image_processor": None}, {"image_processor": {}}, {"image_processor": {"image_mean": [0.1] * 3}}]
)
@pytest.mark.parametrize("old", [None, {"image_mean": [0.2] * 3}])
def test_image_settings_come_from_the_file_that_transformers_reads(nested: Any, old: Any, tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    if old is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    elif nested.get("image_processor") is None:
        return  # neither reads anything
    assert _processor_fields(tmp_path).values == Processor.get_image_processor_dict(tmp_path)[0]


@pytest.mark.parametrize("kwargs", [{"do_pad": None}, {"do_pad": False}, {"do_convert_rgb": None}], ids=str)
def test_steps_that_may_be_left_out_change_no_rgb_picture(kwargs: Any) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    expected = Processor()(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(Processor(**kwargs)(picture, return_tensors="np")["pixel_values"], expected)


@pytest.mark.parametrize("changes", UNUSED_WINDOWS, ids=str)
def test_no_layer_of_transformers_uses_those_windows(changes: Any) -> None:
    config = transformers.Qwen2Config(num_hidden_layers=2, max_position_embeddings=1024, **changes)
    if changes.get("sliding_window") != 1 << 20:  # which holds every position
        assert config.layer_types == ["full_attention"] * 2


@pytest.mark.parametrize(
    "config",
    [
        {"repetition_penalty": 1.2},
        {"text_config": {"repetition_penalty": 1.3}},
        {"repetition_penalty": 1.0, "text_config": {"repetition_penalty": 1.3}},
        {"repetition_penalty": None, "text_config": {"repetition_penalty": 1.3}},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("own", [None, {"eos_token_id": 7}, {"eos_token_id": 7, "repetition_penalty": 1.4}], ids=str)
def test_the_penalty_is_the_one_that_transformers_applies(config: Any, own: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path, config__json=config)
    if own is None:
        reference = GenerationConfig.from_pretrained(tmp_path, "config.json", _from_model_config=True)
    else:
        (tmp_path / "generation_config.json").write_text(json.dumps(own))
        reference = GenerationConfig.from_pretrained(tmp_path)
    assert load(tmp_path).generation.repetition_penalty == (reference.repetition_penalty or 1.0)
