"""Every speed option leaves greedy answers as they are, on questions whose margins rule out ties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.makers.neutral import Question, assert_neutral, clear_questions
from varco_runtime import Varco
from varco_runtime.backend import VerifyingBackend
from varco_runtime.backends.cpu import prepacked
from varco_runtime.generation.speculation import StepCosts

NUM_TOKENS = 24


FORMATS = [
    "fp32",
    "int4 with int8 activations",
    pytest.param("int8 with float activations", marks=pytest.mark.full),
    pytest.param("int4 with float activations", marks=pytest.mark.full),
]


@pytest.fixture(scope="module", params=FORMATS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact bundle, the kind for which drafts are made, and those whose answers drafts leave as they are.

    That the second one's answers stay as they are, too, is because random weights hold no outliers.
    """
    if request.param == "fp32":
        return Path(request.getfixturevalue("tiny_bundle"))
    decoder, _, activations, _ = request.param.split()
    return export_bundle(
        request.getfixturevalue("tiny_checkpoint"),
        tmp_path_factory.mktemp("bundles") / "bundle",
        decoder=decoder,
        activations=activations,
    )


@pytest.fixture(scope="module")
def plain(bundle: Path) -> Callable[[], Varco]:
    """Models without any option: nothing kept of earlier pictures, no drafts, no packed weights."""

    def make() -> Varco:
        varco = Varco.load(bundle, threads=1, memory_mb=0)
        varco.session.drafter = lambda ids: None  # type: ignore[method-assign]
        return varco

    return make


@pytest.fixture(scope="module")
def questions(plain: Callable[[], Varco]) -> list[Question]:
    """Two questions about each of three pictures and about none, in turn, so that each comes back to every picture."""
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)) for seed in range(3)
    ]
    found = [
        clear_questions(plain, (Question(image, f"Read <ocr> number {n}, {n}, {n}") for n in range(60)), NUM_TOKENS, 2)
        for image in (*pictures, None)
    ]
    return [question for turn in zip(*found, strict=True) for question in turn]


def test_memory_of_pictures(plain: Callable[[], Varco], questions: list[Question]) -> None:
    def make() -> Varco:
        varco = plain()
        return Varco(varco.bundle, varco.backend, memory_mb=64)

    assert_neutral(make, plain, questions, NUM_TOKENS)


def test_drafts(
    bundle: Path, plain: Callable[[], Varco], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(StepCosts, "count", lambda self, num_tokens, seconds: steps.append(num_tokens))

    def make() -> Varco:
        """Draft whatever is possible, as if a step's length cost nothing."""
        varco = Varco.load(bundle, threads=1, memory_mb=0)
        varco.session.costs.slope = 0.0
        return varco

    assert_neutral(make, plain, questions, NUM_TOKENS)
    assert max(steps) > 4


def test_packed_weights(
    bundle: Path,
    plain: Callable[[], Varco],
    questions: list[Question],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(prepacked, "MIN_WEIGHT_BYTES", 0)
    Varco.load(bundle, threads=1)
    assert prepacked.num_entries() >= 2
    assert_neutral(lambda: Varco.load(bundle, threads=1, memory_mb=0), plain, questions, NUM_TOKENS)


def test_all_together_with_all_threads(bundle: Path, plain: Callable[[], Varco], questions: list[Question]) -> None:
    assert isinstance(plain().backend, VerifyingBackend)
    assert_neutral(lambda: Varco.load(bundle), plain, questions, NUM_TOKENS)
