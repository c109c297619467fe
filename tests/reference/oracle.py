"""transformers on the same checkpoint: what every stage of ours is compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the reference needs torch")
transformers = pytest.importorskip("transformers", reason="the reference needs transformers")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Greedy:
    """A reference run: prompt ids, generated ids, and the raw logits `[n, vocab]` that chose them."""

    prompt_ids: list[int]
    token_ids: list[int]
    logits: Array

    @property
    def margins(self) -> Array:
        """The gap between the two largest logits at every step, `[n]`."""
        top = np.sort(self.logits, axis=1)[:, -2:]
        return top[:, 1] - top[:, 0]

    @property
    def smallest_margin(self) -> float:
        return float(self.margins.min())


class Oracle:
    """A checkpoint in transformers: eager attention, fp32."""

    def __init__(self, folder: Path) -> None:
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )
        from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

        torch.set_num_threads(1)
        self.folder = folder
        self.model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.image_processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        jinja = folder / "chat_template.jinja"
        legacy = folder / "chat_template.json"
        self.template = jinja.read_text() if jinja.exists() else json.loads(legacy.read_text())["chat_template"]
        config = self.model.config
        # The processor's counting of image tokens, without its constructor, which insists on torchvision.
        self.processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
        self.processor.image_processor = self.image_processor
        self.processor.num_image_tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.processor.vision_aspect_ratio = config.vision_aspect_ratio

    def pixel_values(self, image: Image.Image) -> Any:
        """`[1, T, 3, S, S]` and the image sizes."""
        batch = self.image_processor(images=image, return_tensors="pt")
        return batch["pixel_values"], batch["image_sizes"]

    def patch_features(self, image: Image.Image) -> Array:
        """The vision tower's features `[T, P, hidden]` before the projector."""
        pixel_values, _ = self.pixel_values(image)
        with torch.no_grad():
            output = self.model.model.vision_tower(pixel_values[0], output_hidden_states=True)
        return output.hidden_states[-1].numpy()

    def image_tokens(self, image: Image.Image) -> Array:
        """Projected, packed image tokens `[N, D]`."""
        pixel_values, sizes = self.pixel_values(image)
        with torch.no_grad():
            features = self.model.get_image_features(
                pixel_values=pixel_values, image_sizes=sizes, vision_aspect_ratio=self.model.config.vision_aspect_ratio
            )
        packed = getattr(features, "pooler_output", features)
        return torch.cat(list(packed)).numpy()

    def prompt_ids(self, messages: list[dict[str, Any]], image: Image.Image | None) -> list[int]:
        """The chat template rendered, `<image>` repeated, tokenized."""
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, add_generation_prompt=True, tokenize=False
        )
        if image is not None:
            side = self.model.config.vision_config.image_size
            count = self.processor._get_number_of_features(image.height, image.width, side, side)
            text = text.replace("<image>", "<image>" * count)
        return list(self.tokenizer(text)["input_ids"])

    def greedy(self, messages: list[dict[str, Any]], image: Image.Image | None, max_new_tokens: int) -> Greedy:
        ids = self.prompt_ids(messages, image)
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if image is not None:
            inputs["pixel_values"], inputs["image_sizes"] = self.pixel_values(image)
            inputs["vision_aspect_ratio"] = self.model.config.vision_aspect_ratio
        return self.continued(inputs, max_new_tokens)

    def continued(self, inputs: dict[str, Any], max_new_tokens: int) -> Greedy:
        """The greedy answer to what the model's `generate` takes."""
        with torch.no_grad():
            output = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids = inputs["input_ids"][0].tolist()
        return Greedy(ids, output.sequences[0, len(ids) :].tolist(), torch.cat(output.logits).numpy())


def user_message(text: str, image: bool) -> list[dict[str, Any]]:
    content = [{"type": "image"}] if image else []
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with structure at every scale: smooth colour waves and some noise, the same on every machine."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [
        np.sin(2 * np.pi * (x * fx / max(width, 8) + y * fy / max(height, 8)) + phase)
        for fx, fy, phase in rng.uniform(0.5, 6, size=(3, 3))
    ]
    values = 127.5 + 90 * np.stack(waves, axis=2) + rng.normal(0, 12, size=(height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def relative_error(got: Array, expected: Array) -> float:
    """Largest deviation over the largest expected magnitude."""
    assert got.shape == expected.shape, f"got shape {got.shape}, expected {expected.shape}"
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())
