"""The graph that draws tokens, run on the CPU: the tokens are those of the host's sampler."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from varco_export.dialects.largest import block_width
from varco_export.networks.sampling import SETTINGS, emit_sampling
from varco_export.writing.graph import Graph
from varco_runtime.backend import Draw
from varco_runtime.backends.cuda.sampling import NUM_SETTINGS, SamplingStep
from varco_runtime.backends.cuda.session import Buffer, Device, Network
from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.errors import ShortageError
from varco_runtime.generation.sampling import Sampler, SamplingSettings, candidates

Array = np.ndarray[Any, Any]
GENERATION = GenerationSettings((0,), 1.0, penalise_prompt=True)
VOCAB_SIZES = (151, 576, 2048, 151680)
"""A prime, a square, a power of two, and one like the model's."""


class Drawing:
    """The graph for a vocabulary, behind the runtime's own step."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        with Graph("sampling", folder) as graph:
            emit_sampling(graph, vocab_size, lambda: None)
            graph.save()
        self._device = device = Device(onnxruntime, "cpu", 1, ShortageError)
        self._logits: Buffer = device.buffer("fp32", (1, 1, vocab_size))
        self._network = Network(device, "sampling", device.session(folder / "sampling.onnx", {}, {}))
        self._step = SamplingStep(device, self._network, self._logits)

    def __call__(self, logits: Array, draw: Draw) -> int:
        self._logits.set(logits)
        return self._step.run([draw])[0]

    def rows(self, logits: list[Array], draws: list[Draw]) -> list[int]:
        """The draws of several rows in one run."""
        shape = (len(logits), 1, logits[0].size)
        buffer = self._device.buffer("fp32", shape)
        buffer.set(np.stack(logits))
        return SamplingStep(self._device, self._network, buffer).run(draws)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Drawing]:
    made: dict[int, Drawing] = {}

    def make(vocab_size: int) -> Drawing:
        if vocab_size not in made:
            made[vocab_size] = Drawing(tmp_path_factory.mktemp(str(vocab_size)), vocab_size)
        return made[vocab_size]

    return make


def rows(vocab_size: int, count: int) -> list[Array]:
    """Logits flat and steep, with many ties and with the few values of fp16."""
    rng = np.random.default_rng(vocab_size)
    made = [rng.normal(0, (0.1, 2, 8)[at % 3], vocab_size).astype(np.float32) for at in range(count)]
    made[::4] = [np.round(row) for row in made[::4]]
    made[1::4] = [row.astype(np.float16).astype(np.float32) for row in made[1::4]]
    return made


def drawn_nearby(scores: Array, settings: SamplingSettings, place: float) -> set[int]:
    """The tokens that the host draws at about this place, of about these candidates.

    Powers differ in the last bit from library to library and from one kind of processor to another, and a draw that
    falls between two of 150,000 tokens feels it.
    """
    found: set[int] = set()
    for slip in (-1e-6, 1e-6):
        top_p = settings.top_p if settings.top_p in (0, 1) else settings.top_p + slip
        near = dataclasses.replace(settings, top_p=top_p, min_p=settings.min_p * (1 + slip))
        ids, probabilities = candidates(scores, near)
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        first, last = np.searchsorted(cumulative, (place + np.array([-1e-6, 1e-6])) * cumulative[-1], side="right")
        found.update(ids[max(first, 0) : last + 1].tolist())
    return found


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_every_setting_draws_the_tokens_of_the_host(drawing: Callable[[int], Drawing], vocab_size: int) -> None:
    device, logits = drawing(vocab_size), rows(vocab_size, 12)
    grid = list(itertools.product((0.0, 0.3, 2.0), (0, 1, 50), (0.0, 0.5, 0.9, 1.0), (0.0, 0.2), (1.0, 1.4)))
    chosen = grid if vocab_size < 10_000 else grid[:: len(grid) // 16]
    prompt = np.random.default_rng(1).integers(0, vocab_size, 20)
    different, num_close = set(), 0
    for index, (temperature, top_k, top_p, min_p, penalty) in enumerate(chosen):
        settings = SamplingSettings(temperature, top_k, top_p, min_p, penalty, seed=index)
        host, asking = (Sampler(settings, GENERATION, prompt) for _ in range(2))
        for turn in range(3):  # the draws go on from one another, and so does what was seen
            row = logits[(index + turn) % len(logits)]
            scores, draw = asking._penalized(row).copy(), asking.draw(vocab_size)
            expected, got = host.next(row), device(row, draw)
            if got != expected:
                assert got in drawn_nearby(scores, settings, draw.place), (settings, row[got], row[expected])
                num_close += 1
                break
            asking.accept(got)
            different.add(got)
    assert len(different) > 10
    assert num_close <= len(chosen) / 16


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES[:3])
@pytest.mark.parametrize("count", [2, 8, 16])
def test_rows_drawn_at_once_are_those_drawn_alone(
    drawing: Callable[[int], Drawing], vocab_size: int, count: int
) -> None:
    """Each row has its own options; some are greedy, one has no finite logits and chooses nothing."""
    device, logits = drawing(vocab_size), rows(vocab_size, count)
    logits[1] = np.full(vocab_size, np.nan, np.float32)
    grid = list(itertools.product((0.0, 0.7, 1.5), (0, 5), (0.5, 1.0), (0.0, 0.2), (1.0, 1.3)))
    prompt = np.random.default_rng(2).integers(0, vocab_size, 20)
    for turn in range(0, len(grid), count):
        settings = [SamplingSettings(*grid[(turn + at) % len(grid)], seed=at) for at in range(count)]
        draws = [Sampler(one, GENERATION, prompt).draw(vocab_size) for one in settings]
        got = device.rows(logits, draws)
        assert got == [device(row, draw) for row, draw in zip(logits, draws, strict=True)]
        assert got.index(-1) == 1
        assert got.count(-1) == 1


def test_the_draws_have_the_probabilities_of_the_softmax(drawing: Callable[[int], Drawing]) -> None:
    """Every place from 0 to just below 1, on four tokens of known weight."""
    logits = np.full(576, -np.inf, np.float32)
    logits[[3, 200, 201, 575]] = np.log([0.1, 0.4, 0.3, 0.2])
    none = np.empty(0, np.int64)
    places = [*(np.arange(1000) / 1000), 1 - 2.0**-52]
    found = [drawing(576)(logits, Draw(1.0, none, 1.0, 576, 0.0, 0.0, place)) for place in places]
    assert found == sorted(found)
    assert [found.count(token) for token in (3, 200, 201, 575)] == pytest.approx([100, 400, 300, 201], abs=1)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES[:3])
def test_logits_that_are_not_finite_choose_nothing(drawing: Callable[[int], Drawing], vocab_size: int) -> None:
    draw = Sampler(SamplingSettings(temperature=1.0, seed=0), GENERATION).draw(vocab_size)
    row = rows(vocab_size, 1)[0]
    for fault, expected in ((np.nan, -1), (np.inf, -1)):
        for place in (0, vocab_size // 2, vocab_size - 1):
            broken = row.copy()
            broken[place] = fault
            assert drawing(vocab_size)(broken, draw) == expected
    assert drawing(vocab_size)(np.full(vocab_size, -np.inf, np.float32), draw) == -1
    row[: vocab_size // 2] = -np.inf
    assert drawing(vocab_size)(row, draw) >= vocab_size // 2, "what is forbidden is not drawn, and is no fault"


def test_a_seen_token_counts_for_one_answer_alone(drawing: Callable[[int], Drawing]) -> None:
    """The flags stay on the device between answers; without a penalty they mean nothing."""
    device, logits = drawing(151), np.zeros(151, np.float32)
    logits[[5, 9]] = 3, 2.9
    penalised = Sampler(SamplingSettings(repetition_penalty=2.0), GENERATION, [5])
    assert device(logits, penalised.draw(151)) == 9
    assert device(logits, Sampler(SamplingSettings(), GENERATION).draw(151)) == 5
    assert device(logits, Sampler(SamplingSettings(repetition_penalty=2.0), GENERATION, [9]).draw(151)) == 5


def test_the_runtime_and_the_graph_agree_on_the_settings() -> None:
    assert len(SETTINGS) == NUM_SETTINGS


@pytest.mark.parametrize(("vocab_size", "width"), [(152064, 384), (151680, 395), (576, 24), (7, 7), (1, 1)])
def test_rows_are_about_as_long_as_they_are_many(vocab_size: int, width: int) -> None:
    assert vocab_size % block_width(vocab_size) == 0
    assert block_width(vocab_size) in (width, vocab_size // width)
