"""What is kept between questions: pictures come back without work, within a bound, and answers stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.makers.inputs import noise_picture
from varco_runtime import Varco
from varco_runtime.backend import KeepsPrefixes
from varco_runtime.errors import UsageError
from varco_runtime.generation.prefix_cache import Memory

QUESTION, OTHER_QUESTION = "What is this?", "And what colour is it?"


@pytest.fixture
def varco(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def fresh_answers(tiny_bundle: Path) -> dict[tuple[int, str], tuple[int, ...]]:
    """Every answer as a model that has seen nothing gives it."""

    def answer(seed: int, question: str) -> tuple[int, ...]:
        varco = Varco.load(tiny_bundle, threads=1, memory_mb=0)
        return varco.ask(noise_picture(seed), question, max_new_tokens=16).token_ids

    return {(seed, question): answer(seed, question) for seed in range(3) for question in (QUESTION, OTHER_QUESTION)}


@pytest.fixture
def num_encoded(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    encode, calls = varco.backend.encode, []

    def counting(pixel_values: np.ndarray) -> object:
        calls.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(varco.backend, "encode", counting)
    return calls


def test_coming_back_to_a_picture_computes_none_of_it_again(
    varco: Varco, num_encoded: list[int], fresh_answers: dict[tuple[int, str], tuple[int, ...]]
) -> None:
    for round_, question in enumerate((QUESTION, OTHER_QUESTION, QUESTION)):
        for seed in range(3):
            answer = varco.ask(noise_picture(seed), question, max_new_tokens=16)
            assert answer.token_ids == fresh_answers[seed, question]
            if round_:
                assert answer.usage.cached_tokens >= answer.usage.image_tokens
                assert answer.timings.vision_s == 0
    assert len(num_encoded) == 3


def test_without_memory_only_the_latest_picture_is_kept(
    tiny_bundle: Path, fresh_answers: dict[tuple[int, str], tuple[int, ...]]
) -> None:
    varco = Varco.load(tiny_bundle, threads=1, memory_mb=0)
    for seed, question in [(0, QUESTION), (1, QUESTION), (0, OTHER_QUESTION), (0, QUESTION)]:
        answer = varco.ask(noise_picture(seed), question, max_new_tokens=16)
        assert answer.token_ids == fresh_answers[seed, question]
    assert answer.usage.cached_tokens >= answer.usage.image_tokens
    assert varco.session.memory.num_bytes == 0


def test_the_least_recently_used_picture_goes_first(varco: Varco, num_encoded: list[int]) -> None:
    varco.ask(noise_picture(0), QUESTION, max_new_tokens=1)
    one = varco.session.memory.num_bytes  # image tokens alone: the keys and values are still in the cache
    prefix = varco.backend.prefix_bytes_per_position * 80  # type: ignore[attr-defined]
    varco.session.memory._max_bytes = 2 * (one + prefix)
    for seed in (1, 0, 2, 3):
        varco.ask(noise_picture(seed), QUESTION, max_new_tokens=1)
        assert varco.session.memory.num_bytes <= varco.session.memory._max_bytes
    before = len(num_encoded)
    varco.ask(noise_picture(1), QUESTION, max_new_tokens=1)
    assert len(num_encoded) == before + 1


def test_a_question_without_a_picture_in_between_keeps_the_picture(varco: Varco) -> None:
    first = varco.ask(noise_picture(0), QUESTION, max_new_tokens=16)
    varco.ask(None, "Hello", max_new_tokens=16)
    again = varco.ask(noise_picture(0), QUESTION, max_new_tokens=16)
    assert again.token_ids == first.token_ids
    assert again.usage.cached_tokens >= again.usage.image_tokens


def test_a_copy_that_fails_leaves_the_model_usable(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    first = varco.ask(noise_picture(0), QUESTION, max_new_tokens=16)
    varco.ask(noise_picture(1), QUESTION, max_new_tokens=16)

    def failing(prefix: np.ndarray) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(varco.backend, "restore_prefix", failing)
        with pytest.raises(MemoryError):
            varco.ask(noise_picture(0), QUESTION, max_new_tokens=16)
    assert varco.ask(noise_picture(0), QUESTION, max_new_tokens=16).token_ids == first.token_ids


def test_a_backend_that_cannot_copy_keeps_nothing_else(varco: Varco) -> None:
    class OnDevice:
        """Holds one list of media at a time, as TensorRT's backend does."""

    assert isinstance(varco.backend, KeepsPrefixes)
    memory = Memory(OnDevice(), 1 << 30)  # type: ignore[arg-type]
    memory.keep_image_tokens("a", object())
    assert memory.image_tokens("a") is not None
    memory.make_room([])
    assert memory.image_tokens("a") is None
    assert memory.num_bytes == 0


def test_the_system_message_is_in_the_cache_before_the_first_question(varco: Varco) -> None:
    opening = len(varco.session.memory.sequence.ids)
    assert opening > 0
    assert varco.ask(None, "Hello", max_new_tokens=1).usage.cached_tokens >= opening
    assert varco.ask(noise_picture(0), QUESTION, max_new_tokens=1).usage.cached_tokens >= opening


def test_a_negative_bound_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="memory_mb=-1"):
        Varco.load(tiny_bundle, memory_mb=-1)
