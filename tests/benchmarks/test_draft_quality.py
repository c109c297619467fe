"""Other orders of sums: what `benchmarks/draft_quality.py` measures, and that drafts leave a real model as good."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.draft_quality import (
    A_TOKEN_A_STEP,
    QUESTIONS,
    WAYS,
    Question,
    Way,
    by_answers,
    by_tokens,
    expect,
    logits_of,
)
from tests.conftest import export_bundle
from tests.makers.inputs import close
from varco_runtime import Varco

ONE_OF_EACH = [Question(None, prompt) for prompt in QUESTIONS[:3]]


def test_a_prompt_is_cut_without_gaps() -> None:
    assert Way("whole").cuts(40) == [0, 40]
    assert Way("halves", halves=True).cuts(41) == [0, 20, 41]
    assert Way("parts", part=16).cuts(40) == [0, 16, 32, 40]
    assert Way("parts", part=20).cuts(40) == [0, 20, 40]


def test_every_way_gives_the_same_logits_in_fp32(tiny_bundle: Path) -> None:
    varco = Varco.load(tiny_bundle, threads=1)
    token_ids = varco.ask(None, "Hello", max_new_tokens=20).token_ids
    expected = varco.score(None, "Hello", token_ids)
    for way in WAYS:
        assert close(logits_of(varco, Question(None, "Hello"), token_ids, way), expected), way.name


def test_a_model_is_as_good_as_itself(tiny_bundle: Path) -> None:
    exact, varco = (Varco.load(tiny_bundle, threads=1) for _ in range(2))
    ways = by_tokens(varco, ONE_OF_EACH, expect(exact, ONE_OF_EACH, 12))
    assert ways[A_TOKEN_A_STEP]["moved"] == 0.0
    assert ways[A_TOKEN_A_STEP]["kl"] < 1e-8
    assert ways[A_TOKEN_A_STEP]["same_bits"] == 1.0
    assert all(abs(row["kl_more"]) < 1e-8 and row["top1_agreement"] == 1.0 for row in ways.values())
    answers = by_answers(exact, varco, ONE_OF_EACH, 12)
    assert (answers["answers"], answers["equal_answers"], answers["nats_more"]) == (3, 3, 0.0)
    assert math.isfinite(answers["nats_per_token_without"])


@pytest.fixture(scope="module")
def smollm_fp32(smollm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(smollm_checkpoint, tmp_path_factory.mktemp("fp32") / "bundle", max_context=1024)


FAST = {"decoder": "int4", "lm_head": "int4", "block_size": 128}


@pytest.mark.full
@pytest.mark.parametrize("options", [{"decoder": "int8"}, FAST], ids=["int8", "all fast options"])
def test_with_int8_activations_every_way_is_as_near_to_the_exact_model(
    smollm_checkpoint: Path, smollm_fp32: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    """The KL of drafts, restored prefixes and other chunks is that of a token a step, within a tenth of it."""
    bundle = export_bundle(smollm_checkpoint, tmp_path / "bundle", max_context=1024, activations="int8", **options)
    questions = [Question(None, prompt) for prompt in QUESTIONS[:4]]
    ways = by_tokens(Varco.load(bundle), questions, expect(Varco.load(smollm_fp32), questions, 48))
    base = ways[A_TOKEN_A_STEP]
    assert base["kl"] > 0
    for name, row in ways.items():
        assert abs(row["kl_more"]) < 0.1 * base["kl"] + 3 * row["kl_more_error"], name
        assert row["moved"] < 2 * base["kl"], name  # two ways that round independently


@pytest.mark.full
@pytest.mark.parametrize("decoder", ["fp32", "int8", "int4"])
def test_with_float_activations_drafts_leave_a_real_models_answers_as_they_are(
    smollm_checkpoint: Path, smollm_fp32: Path, tmp_path: Path, decoder: str
) -> None:
    bundle = smollm_fp32
    if decoder != "fp32":
        bundle = export_bundle(smollm_checkpoint, tmp_path / "bundle", max_context=1024, decoder=decoder)
    varco = Varco.load(bundle)
    compared = 0
    for prompt in QUESTIONS[:4]:
        without = varco.ask(None, prompt, max_new_tokens=48, speculate=False)
        second, first = np.partition(varco.score(None, prompt, without.token_ids), -2, axis=1)[:, -2:].T
        if (first - second).min() < 1e-2:
            continue  # near a tie, where nothing is promised
        varco.session.costs.slope = 0.0  # as if a step's length cost nothing: all that can be drafted is
        with_drafts = varco.ask(None, prompt, max_new_tokens=48)
        assert with_drafts.token_ids == without.token_ids, prompt
        assert with_drafts.timings.drafted
        compared += 1
    assert compared
