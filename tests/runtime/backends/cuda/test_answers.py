"""The backend for CUDA against a double of onnxruntime that computes on the CPU: whole answers, and prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.doubles.recording_onnxruntime import Gpu
from tests.makers.inputs import close, text_inputs
from tests.runtime.backends.cuda.conftest import backend_of
from varco_runtime import Varco
from varco_runtime.backend import (
    Backend,
    GreedyBackend,
    GreedyVerifyingBackend,
    NormalizesPixels,
    PromptInputs,
    SamplingBackend,
    ShowsFeatures,
    VerifyingBackend,
)
from varco_runtime.backends.cuda.memory import NUM_LOGITS
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalise, tile


def test_a_picture_is_answered_with_the_tokens_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    expected = cpu.ask(image, "What is this?", max_new_tokens=64)
    answer = varco.ask(image, "What is this?", max_new_tokens=64)
    assert answer.token_ids == expected.token_ids
    assert answer.usage == expected.usage
    assert varco.provider == "cuda (the bundle was exported for CUDA)"
    assert varco.backend.description == "onnxruntime 1.31.1, CUDA, Recording GPU (sm90)"


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.5, "seed": 3}, {"repetition_penalty": 1.3}, {"temperature": 0.8, "top_k": 20, "seed": 1}],
)
def test_sampling_and_penalties_see_the_logits_of_the_cpu(varco: Varco, cpu: Varco, options: dict[str, Any]) -> None:
    expected = cpu.ask(None, "Hello", max_new_tokens=16, **options)
    assert varco.ask(None, "Hello", max_new_tokens=16, **options).token_ids == expected.token_ids


def test_a_second_question_encodes_no_tile_and_rewinds_the_cache(
    varco: Varco, cpu: Varco, gpu: Gpu, image: Image.Image
) -> None:
    varco.ask(image, "What is this?", max_new_tokens=8)
    before = len(gpu.sessions["vision"].runs)
    answer = varco.ask(image, "And what colour is it?", max_new_tokens=16)
    assert len(gpu.sessions["vision"].runs) == before
    assert answer.usage.cached_tokens > answer.usage.image_tokens
    assert answer.token_ids == cpu.ask(image, "And what colour is it?", max_new_tokens=16).token_ids


def test_another_picture_replaces_the_first(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    other = Image.eval(image.resize((60, 200)), lambda value: 255 - value)
    for picture in (image, other, image):
        expected = cpu.ask(picture, "<ocr>", max_new_tokens=8)
        assert varco.ask(picture, "<ocr>", max_new_tokens=8).token_ids == expected.token_ids


def test_features_are_those_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    settings, picture = varco.bundle.manifest.image, load_picture(image)
    pixel_values, plan = normalise(tile(picture, settings), settings), packing_plan(picture.size_hw, settings)
    got = backend_of(varco).features(pixel_values, plan)
    want = cpu.backend.features(pixel_values, plan)  # type: ignore[attr-defined]
    for name in ("patch_features", "image_features", "image_tokens"):
        assert close(getattr(got, name), getattr(want, name)), name


def test_a_cancelled_answer_leaves_the_model_usable(varco: Varco, cpu: Varco) -> None:
    stream = varco.stream(None, "Hello", max_new_tokens=50)
    next(iter(stream))
    stream.cancel()
    assert stream.run().finish_reason == "cancelled"
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == cpu.ask(None, "Hello", max_new_tokens=8).token_ids


def test_the_backend_fulfils_the_protocols(varco: Varco) -> None:
    backend: Backend = backend_of(varco)
    for protocol in (
        GreedyBackend,
        GreedyVerifyingBackend,
        NormalizesPixels,
        SamplingBackend,
        ShowsFeatures,
        VerifyingBackend,
    ):
        assert isinstance(backend, protocol), protocol


def test_chunked_prefill_has_the_logits_of_the_cpu(varco: Varco, cpu: Varco, gpu: Gpu) -> None:
    inputs = text_inputs(varco, 100)
    gpu.sessions["decoder"].runs.clear()
    assert close(varco.backend.prefill(inputs, 0), cpu.backend.prefill(inputs, 0))
    assert [run["token_ids"][1] for run in gpu.sessions["decoder"].runs] == [32, 32, 32, 4]
    assert close(varco.backend.prefill(inputs, 40, num_logits=33), cpu.backend.prefill(inputs, 0, num_logits=33))


def test_a_chunk_computes_no_more_logits_than_there_is_room_for(varco: Varco, gpu: Gpu) -> None:
    gpu.sessions["decoder"].runs.clear()
    varco.backend.prefill(text_inputs(varco, 70), 0, num_logits=40)
    runs = [(run["token_ids"][1], run["logit_positions"][0]) for run in gpu.sessions["decoder"].runs]
    assert runs == [(32, 2), (16, 16), (16, 16), (6, 6)]
    assert max(count for _, count in runs) <= NUM_LOGITS


def test_a_prompt_is_neither_captured_nor_replayed(varco: Varco, gpu: Gpu) -> None:
    varco.backend.prefill(text_inputs(varco, 70), 0)
    assert set(gpu.names()) == {"upload", "run"}


def test_a_rewound_cache_forgets_what_came_after(varco: Varco) -> None:
    inputs, other = text_inputs(varco, 60), text_inputs(varco, 60, seed=9)
    fresh = varco.backend.prefill(inputs, 0, num_logits=30)
    varco.backend.prefill(PromptInputs(np.concatenate([inputs.ids[:30], other.ids]), inputs.image_token_id, None), 0)
    assert close(varco.backend.prefill(inputs, 30, num_logits=30), fresh)
