"""Tiny checkpoints and defaults as transformers sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference needs torch")
transformers = pytest.importorskip("transformers", reason="the reference needs transformers")

from varco_export.checkpoint.checkpoint import Checkpoint  # noqa: E402
from varco_export.config.config_reader import read_config  # noqa: E402
from varco_export.reading.names import canonical_name  # noqa: E402
from varco_export.tiny import TinyOptions, make_tiny, token_ids  # noqa: E402

NUM_NEW_TOKENS = 64


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


def load(folder: Path, dtype: Any = torch.float32) -> tuple[Any, dict[str, Any]]:
    model, info = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), info


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True, "names": "new", "num_shards": 3},
        {"names": "new", "extra_vision_layer": True, "dtype": "bf16"},
        {
            "num_hidden_layers": 3,
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 601,
        },
        {"text": "qwen3", "patch_size": 16, "hidden_size": 160, "num_attention_heads": 10, "head_dim": 32},
        {"text": "qwen3", "names": "new", "tie_word_embeddings": True},
    ],
    ids=["untied", "tied, new names, sharded", "extra vision layer", "odd sizes", "qwen3", "qwen3, tied, new names"],
)
def test_transformers_loads_it_with_nothing_missing_or_unexpected(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = make_tiny(tmp_path / "tiny", TinyOptions(**options))
    model, info = load(folder)
    assert not any(info.values()), info
    checkpoint = Checkpoint.open(folder)
    reference = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
    for name in checkpoint.tensors:
        ours = checkpoint.tensor(name).read().astype(np.float32)
        assert np.array_equal(ours, reference[name].detach().numpy()), name
    config = model.config
    assert (
        config.vision_config.num_hidden_layers + 1 + config.vision_feature_layer
        == checkpoint.config.vision.num_hidden_layers
    )


def test_keys_left_out_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny", TinyOptions(image_size=384, sparse=True))
    pinpoints = [[384, 384]]
    minimal: list[dict[str, Any]] = [
        {"text_config": {}, "vision_config": {"image_size": 384}},
        {"image_grid_pinpoints": pinpoints},
        {"text_config": {"num_attention_heads": 64, "num_key_value_heads": None, "rope_theta": 7e5}},
        {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}, "tie_word_embeddings": True}},
    ]
    for values in minimal:
        (folder / "config.json").write_text(json.dumps({"model_type": "llava_onevision", **values}))
        preprocessor = {"size": {"height": 384, "width": 384}}
        if "image_grid_pinpoints" in values:
            preprocessor["image_grid_pinpoints"] = pinpoints  # type: ignore[assignment]
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        ours = read_config(folder, {})
        theirs = transformers.LlavaOnevisionConfig.from_pretrained(folder)
        text, vision = theirs.text_config, theirs.vision_config
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
        ):
            assert getattr(ours.text, name) == getattr(text, name), name
        for name in ("vocab_size", "rms_norm_eps", "max_position_embeddings"):
            assert getattr(ours.text, name) == getattr(text, name), name
        assert ours.text.rope_theta == text.rope_parameters["rope_theta"]
        assert ours.text.tie_word_embeddings == theirs.tie_word_embeddings
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size"):
            assert getattr(ours.vision, name) == getattr(vision, name), name
        assert (ours.vision.patch_size, ours.vision.layer_norm_eps) == (vision.patch_size, vision.layer_norm_eps)
        assert ours.image_token_id == theirs.image_token_index
        assert ours.image.max_grid_tiles == int(theirs.vision_aspect_ratio.removeprefix("anyres_max_"))
        assert [list(pair) for pair in ours.image.grid_pinpoints] == theirs.image_grid_pinpoints


def test_image_settings_left_out_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny", TinyOptions(image_size=384, sparse=True))
    (folder / "preprocessor_config.json").write_text("{}")
    ours, theirs = read_config(folder, {}).image, _image_processor(folder)
    assert (ours.mean, ours.std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.rescale_factor == theirs.rescale_factor
    assert [list(pair) for pair in ours.grid_pinpoints] == theirs.image_grid_pinpoints
    assert (theirs.size.height, theirs.size.width) == (ours.tile_px, ours.tile_px)


def test_what_transformers_saves_reads_back_the_same(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny", TinyOptions(tie_word_embeddings=True))
    model, _ = load(folder)
    model.save_pretrained(tmp_path / "saved")
    _image_processor(folder).save_pretrained(tmp_path / "saved")
    first, saved = Checkpoint.open(folder), Checkpoint.open(tmp_path / "saved")
    assert replace(saved.config, raw={}) == replace(first.config, raw={})
    for name in first.tensors:
        assert np.array_equal(first.tensor(name).read(), saved.tensor(name).read()), name


@pytest.mark.parametrize("options", [{}, {"tokenizer_files": True}, {"format": "llava-next"}])
def test_transformers_tokenizes_as_tokenizer_json_does(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = make_tiny(tmp_path / "tiny", TinyOptions(**options))
    json_folder = make_tiny(tmp_path / "json", TinyOptions(**{**options, "tokenizer_files": False}))
    (folder / "config.json").unlink()  # of a class that transformers does not know in the LLaVA-NeXT format
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(json_folder / "tokenizer.json"))
    text = "<|im_start|>user\n<image>\nDescribe 고양이 e\u0301 don't 12<obj>대한민국</obj> \u2713\n\n  <|im_end|>\n"
    assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert (theirs.eos_token_id, theirs.pad_token_id) == (token_ids()["<|im_end|>"], token_ids()["<|endoftext|>"])


def test_the_chat_template_renders_chatml(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image"}]
    system = "<|im_start|>system\nYou look at pictures and answer questions about them.<|im_end|>\n"
    turn = "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n"
    for content in (parts, "<image>\nWhat is it?"):
        for wanted, messages in (
            (system + turn, [{"role": "user", "content": content}]),
            (
                f"<|im_start|>system\nBe brief.<|im_end|>\n{turn}<|im_start|>assistant\nA cat.<|im_end|>\n",
                [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
                ],
            ),
        ):
            rendered = tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
            assert rendered == wanted + "<|im_start|>assistant\n"


@pytest.mark.parametrize("options", [{"seed": 0}, {"seed": 2, "tie_word_embeddings": True}], ids=["untied", "tied"])
def test_greedy_text_wanders_with_clear_margins_and_depends_on_the_picture(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = make_tiny(tmp_path / "tiny", TinyOptions(**options))
    model, _ = load(folder)
    exact, _ = load(folder, torch.float64)
    texts = []
    for picture in range(2):
        inputs = _inputs(model, picture)
        with torch.no_grad():
            text = model.generate(
                **inputs, max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS, do_sample=False
            )
            whole = {**inputs, "input_ids": text, "attention_mask": torch.ones_like(text)}
            logits = model(**whole).logits[0, -NUM_NEW_TOKENS - 1 : -1]
            whole["pixel_values"] = whole["pixel_values"].double()
            reference = exact(**whole).logits[0, -NUM_NEW_TOKENS - 1 : -1]
        top = reference.topk(2).values
        clear = (top[:, 0] - top[:, 1]) >= 100 * (logits - reference).abs().max()
        texts.append(text[0, -NUM_NEW_TOKENS:].tolist())
        assert len(set(texts[-1])) > NUM_NEW_TOKENS // 3
        assert clear.float().mean() > 0.9
    assert sum(left == right for left, right in zip(*texts, strict=True)) < NUM_NEW_TOKENS // 4


def _inputs(model: Any, seed: int) -> dict[str, Any]:
    """A base tile and one grid tile of a colour and some noise, and a prompt around them."""
    side = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(1, 1, 3, 1, 1, generator=generator) * 2 - 1
    pixels = (colour + 0.7 * torch.randn(1, 2, 3, side, side, generator=generator)).clamp(-1, 1)
    sizes = torch.tensor([[side, side]])
    with torch.no_grad():
        num_tokens = model.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output[0].shape[0]
    ids = token_ids()
    prompt = [ids["<|im_start|>"], *[ids["<image>"]] * num_tokens, ids["What"], ids["<|im_end|>"]]
    input_ids = torch.tensor([prompt])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixels,
        "image_sizes": sizes,
    }


def _image_processor(folder: Path) -> Any:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    return LlavaOnevisionImageProcessorPil.from_pretrained(folder)
