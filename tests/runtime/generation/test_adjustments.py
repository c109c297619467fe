"""What a server's callers ask for beside temperature: bias, penalties by count, probabilities, a constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.makers.constraints import Rule
from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.errors import BackendError, UsageError
from varco_runtime.generation.logit_bias import logit_bias
from varco_runtime.generation.sampling import Sampler, SamplingSettings
from varco_runtime.options import answer_settings

PLAIN = GenerationSettings((0,), 1.0, penalise_prompt=True)
Array = np.ndarray[Any, Any]


def logits(*values: float) -> Array:
    return np.array(values, np.float32)


@dataclass
class Only:
    """A constraint that allows the same tokens at each place."""

    ids: Sequence[int]
    size: int
    taken: list[int] = field(default_factory=list)

    def forced(self) -> Sequence[int]:
        return ()

    def allowed(self) -> Array:
        mask = np.zeros(self.size, np.bool_)
        mask[list(self.ids)] = True
        return mask

    def accept(self, token: int) -> None:
        self.taken.append(token)


def test_presence_and_frequency_follow_openais_formula_over_the_answers_tokens_alone() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence; what the prompt holds counts for nothing."""
    settings = SamplingSettings(presence_penalty=0.5, frequency_penalty=0.25)
    sampler, given, counts = Sampler(settings, PLAIN, [2, 2, 2]), logits(0, 1, 1.9, 2), np.zeros(4)
    for _ in range(40):
        expected = int(np.argmax(given - counts * 0.25 - (counts > 0) * 0.5))
        assert sampler.next(given) == expected
        counts[expected] += 1
    assert (counts > 1).all()


def test_a_negative_penalty_favors_what_was_said() -> None:
    sampler = Sampler(SamplingSettings(presence_penalty=-1.0), PLAIN)
    assert [sampler.next(logits(0, 1)), sampler.next(logits(1.5, 1)), sampler.next(logits(2.5, 1))] == [1, 1, 0]


def test_the_order_is_bias_then_repetition_then_presence_and_frequency() -> None:
    """As in vLLM's sampler: (4 + 2) / 2 - 1 - 0.5 = 1.5 for what was said, whichever other order gives more or less."""
    settings = SamplingSettings(
        repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.5, logit_bias=((1, 2.0),)
    )
    for other, expected in ((1.49, 1), (1.51, 2)):
        sampler = Sampler(settings, PLAIN)
        assert sampler.next(logits(0, 4, 0)) == 1
        assert sampler.next(logits(0, 4, other)) == expected


def test_a_bias_of_100_decides_and_the_logits_stay_as_they_are() -> None:
    given = logits(1, 3, 2)
    given.flags.writeable = False
    assert Sampler(SamplingSettings(logit_bias=((0, 100.0),)), PLAIN).next(given) == 0
    assert Sampler(SamplingSettings(logit_bias=((1, -100.0),)), PLAIN).next(given) == 2
    assert given.tolist() == [1, 3, 2]


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_probabilities_are_those_of_the_raw_logits(num_top: int) -> None:
    """Whatever else is asked for, and however the token is chosen."""
    given = np.random.default_rng(1).normal(0, 4, 300).astype(np.float32)
    given[[7, 9]] = given.max() + 1  # equals: the lower id first
    exact = given.astype(np.float64) - np.log(np.exp(given.astype(np.float64)).sum())
    settings = SamplingSettings(
        temperature=2.0, seed=1, top_k=30, repetition_penalty=1.5, presence_penalty=2.0, logit_bias=((7, -100.0),),
        top_logprobs=num_top,
    )  # fmt: skip
    sampler = Sampler(settings, PLAIN, constraint=Only(range(50, 300), 300))
    chosen = [sampler.next(given) for _ in range(20)]
    assert len(set(chosen)) > 5
    assert [score.token for score in sampler.scores] == chosen
    order = np.lexsort((np.arange(300), -given))[:num_top].tolist()
    for score in sampler.scores:
        assert score.logprob == pytest.approx(exact[score.token], abs=1e-5)
        assert [id_ for id_, _ in score.top] == order
        assert [logprob for _, logprob in score.top] == pytest.approx(exact[order].tolist(), abs=1e-5)


def test_no_probability_is_worked_out_unless_asked_for() -> None:
    sampler = Sampler(SamplingSettings(presence_penalty=1.0), PLAIN)
    sampler.next(logits(1, 2))
    assert not sampler.scores


@pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(temperature=5.0, top_k=7, seed=1)], ids=str)
def test_a_constraint_is_asked_for_each_token_and_told_what_was_chosen(settings: SamplingSettings) -> None:
    constraint = Rule(1).constraint(64)  # it checks every token itself
    sampler = Sampler(settings, PLAIN, constraint=constraint)
    rng = np.random.default_rng(2)
    chosen = [sampler.next(rng.normal(size=64).astype(np.float32)) for _ in range(50)]
    assert constraint.taken == chosen


def test_of_what_is_allowed_the_likeliest_is_taken_and_draws_keep_their_proportions() -> None:
    values = np.log(logits(0.6, 0.3, 0.1))
    assert Sampler(SamplingSettings(), PLAIN, constraint=Only((1, 2), 3)).next(values) == 1
    sampler = Sampler(SamplingSettings(temperature=1.0, seed=3), PLAIN, constraint=Only((1, 2), 3))
    drawn = [sampler.next(values) for _ in range(4000)]
    assert drawn.count(1) / 4000 == pytest.approx(0.75, abs=0.02)
    assert 0 not in drawn


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_seen_where_they_are_not_allowed_too(bad: float) -> None:
    sampler = Sampler(SamplingSettings(), PLAIN, constraint=Only((0,), 3))
    with pytest.raises(BackendError, match="expected finite numbers"):
        sampler.next(logits(0, bad, 1))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(3, np.bool_), "allows no token"), (np.ones(4, np.bool_), r"bool \(4,\), expected a mask bool \(3,\)"),
        (np.ones(3, np.int8), "int8"), ([True], "list"),
    ],
)  # fmt: skip
def test_a_mask_that_is_none_is_one_line(mask: Any, message: str) -> None:
    constraint = Only((0,), 3)
    constraint.allowed = lambda: mask  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=message):
        Sampler(SamplingSettings(), PLAIN, constraint=constraint).next(logits(1, 2, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", 2.1), ("presence_penalty", "1"), ("presence_penalty", float("nan")),
        ("frequency_penalty", -2.1), ("frequency_penalty", True), ("frequency_penalty", None), ("top_logprobs", 21),
        ("top_logprobs", -1), ("top_logprobs", 1.0), ("top_logprobs", True), ("logit_bias", [1]),
        ("logit_bias", {1: 101}), ("logit_bias", {1: float("nan")}), ("logit_bias", {"x": 1}), ("logit_bias", {-1: 1}),
        ("logit_bias", {1.0: 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {1: None}), ("logit_bias", {"1": 1, 1: 1}),
        ("logit_bias", {"9" * 5000: 1}), ("logit_bias", dict.fromkeys(range(1025), 1)), ("ignore_eos", 1),
        ("constraint", object()),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_named_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} .*expected") as caught:
        answer_settings({name: value})  # type: ignore[misc]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_bias_is_taken_as_json_writes_it() -> None:
    assert logit_bias({"50256": -100, 3: 1.5}) == ((50256, -100.0), (3, 1.5))
    assert logit_bias(None) == logit_bias({}) == ()
