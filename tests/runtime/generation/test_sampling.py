"""The next token: greedy, drawn, penalised, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.errors import BackendError, UsageError
from varco_runtime.generation.sampling import Sampler, SamplingSettings, candidates

PLAIN = GenerationSettings((0,), 1.0, penalise_prompt=True)
PENALISED = GenerationSettings((0,), 2.0, penalise_prompt=True)


def logits(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler(SamplingSettings(), PLAIN).next(logits(0, 3, 3, 1)) == 1


def test_top_k_p_and_min_p_have_no_effect_when_greedy() -> None:
    assert Sampler(SamplingSettings(top_k=1, top_p=0.0, min_p=1.0), PLAIN).next(logits(0, 3, 2)) == 1


def test_the_penalty_of_the_bundle_counts_the_prompt_and_what_was_generated() -> None:
    sampler = Sampler(SamplingSettings(), PENALISED, [1])
    assert [sampler.next(logits(1, 3, 2, 1.9)) for _ in range(3)] == [2, 3, 1]


def test_the_penalty_lowers_negative_logits_too() -> None:
    assert Sampler(SamplingSettings(), PENALISED, [0]).next(logits(-1, -1.5)) == 1


def test_a_llava_next_checkpoint_does_not_penalise_its_prompt() -> None:
    generation = GenerationSettings((0,), 2.0, penalise_prompt=False)
    sampler = Sampler(SamplingSettings(), generation, [1, -200])
    assert [sampler.next(logits(1, 3, 2)) for _ in range(2)] == [1, 2]


def test_a_penalty_of_the_user_wins_over_the_bundles() -> None:
    sampler = Sampler(SamplingSettings(repetition_penalty=1.0), PENALISED, [1])
    assert [sampler.next(logits(1, 3, 2)) for _ in range(2)] == [1, 1]


def test_the_logits_stay_as_they_are() -> None:
    given = logits(1, 3, 2)
    given.flags.writeable = False
    Sampler(SamplingSettings(temperature=0.5, top_p=0.5, seed=1), PENALISED, [1]).next(given)
    assert given.tolist() == [1, 3, 2]


def test_a_seed_repeats_an_answer() -> None:
    settings = SamplingSettings(temperature=1.0, seed=5)
    first, second = Sampler(settings, PLAIN), Sampler(settings, PLAIN)
    values = logits(*np.linspace(0, 1, 50))
    assert [first.next(values) for _ in range(50)] == [second.next(values) for _ in range(50)]


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingSettings(temperature=1.0, seed=3), PLAIN)
    counts = Counter(sampler.next(np.log(logits(0.5, 0.3, 0.2))) for _ in range(5000))
    assert [counts[i] / 5000 for i in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_top_k_keeps_ties_at_its_last_place() -> None:
    ids, _ = candidates(logits(1, 2, 3, 2), SamplingSettings(temperature=1.0, top_k=2))
    assert ids.tolist() == [1, 2, 3]


def test_top_p_keeps_at_least_one() -> None:
    ids, probabilities = candidates(logits(1, 2, 3), SamplingSettings(temperature=1.0, top_p=0.0))
    assert (ids.tolist(), probabilities.tolist()) == ([2], [1.0])


def test_min_p_is_relative_to_the_most_probable() -> None:
    scores = np.log(logits(0.5, 0.3, 0.2))
    assert candidates(scores, SamplingSettings(temperature=1.0, min_p=0.5))[0].tolist() == [0, 1]


def test_masked_logits_are_never_drawn() -> None:
    sampler = Sampler(SamplingSettings(temperature=1.0, seed=0), PLAIN)
    assert {sampler.next(logits(-np.inf, 1, 1)) for _ in range(200)} == {1, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_or_infinite_logits_end_in_one_line(bad: float, temperature: float) -> None:
    with pytest.raises(BackendError, match=r"logit (nan|inf) for token 1"):
        Sampler(SamplingSettings(temperature=temperature), PLAIN).next(logits(0, bad, 2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0), ("temperature", float("nan")), ("temperature", 1e-9), ("top_k", -1), ("top_k", 1.5),
        ("top_p", 1.5), ("top_p", "x"), ("min_p", -0.1), ("repetition_penalty", 0.0), ("seed", -1), ("seed", 1 << 64),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is .*expected"):
        SamplingSettings(**{name: value})
