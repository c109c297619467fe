"""Sampling against transformers' logits processors on random logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.generation.sampling import Sampler, SamplingSettings, candidates

torch = pytest.importorskip("torch", reason="the reference needs torch (extra 'quantize')")
pytest.importorskip("transformers", reason="the reference needs transformers (extra 'quantize')")
from transformers.generation import logits_process as reference  # noqa: E402

VOCAB = 1000
Array = np.ndarray[Any, np.dtype[np.float32]]


def logits(seed: int, scale: float = 3.0, ties: bool = True) -> Array:
    """Random logits."""
    values = np.random.default_rng(seed).normal(0, scale, VOCAB).astype(np.float32)
    if ties:
        values[seed % 7 :: 50] = values.max() - 1
    return values


def reference_candidates(scores: Array, settings: SamplingSettings) -> tuple[Array, Array]:
    """As `GenerationMixin._get_logits_processor` orders them; None and neutral values are left out there too."""
    warpers: list[Any] = [reference.TemperatureLogitsWarper(float(settings.temperature))]
    if settings.top_k:
        warpers.append(reference.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(reference.TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        warpers.append(reference.MinPLogitsWarper(settings.min_p))
    tensor = torch.from_numpy(scores.copy())[None]
    for warper in warpers:
        tensor = warper(None, tensor)
    ids = torch.isfinite(tensor[0]).nonzero()[:, 0]
    return ids.numpy(), torch.softmax(tensor, dim=-1)[0, ids].numpy()


def assert_no_close_call(scores: Array, settings: SamplingSettings) -> None:
    """No token is so near to a limit that the last bit of a sum, which each kind of processor takes apart, decides."""
    scaled = scores.astype(np.float64) / settings.temperature
    kept = np.sort(scaled)[::-1][: settings.top_k or None]
    probabilities = np.exp(kept - kept[0]) / np.exp(kept - kept[0]).sum()
    if settings.top_p < 1:
        assert np.abs(np.cumsum(probabilities) - settings.top_p).min() > 1e-6
    if 0 < settings.min_p < 1:
        assert np.abs(probabilities / probabilities[0] - settings.min_p).min() > 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 20, 2000])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.8, 0.0), (0.0, 0.0), (1.0, 0.1), (0.95, 0.05), (1.0, 1.0)])
def test_the_same_tokens_may_be_drawn_with_the_same_probabilities(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    settings = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    values = logits(seed, ties=top_p == 1)  # torch's sort leaves open which of equal tokens top-p cuts off
    assert_no_close_call(values, settings)
    ids, probabilities = candidates(values, settings)
    expected_ids, expected = reference_candidates(values, settings)
    assert ids.tolist() == expected_ids.tolist()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("penalty", [0.5, 1.05, 1.1, 2.0])
@pytest.mark.parametrize("penalise_prompt", [True, False])
def test_the_repetition_penalty_chooses_transformers_tokens(penalty: float, penalise_prompt: bool) -> None:
    prompt = [3, 5, 5, 7]
    sampler = Sampler(SamplingSettings(), GenerationSettings((0,), penalty, penalise_prompt), prompt)
    processor = reference.RepetitionPenaltyLogitsProcessor(penalty)
    ids = list(prompt) if penalise_prompt else []
    for step in range(40):
        values = logits(step % 3, scale=0.1)
        input_ids = torch.tensor([ids], dtype=torch.long)
        expected = int(processor(input_ids, torch.from_numpy(values.copy())[None])[0].argmax())
        assert sampler.next(values) == expected
        ids.append(expected)
