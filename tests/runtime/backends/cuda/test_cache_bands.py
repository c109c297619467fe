"""Caches laid out in bands: a sequence moves to the next one when it outgrows its own, and nothing of it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.doubles.recording_onnxruntime import Gpu
from tests.makers.inputs import close, text_inputs
from tests.runtime.backends.cuda.conftest import MAX_CONTEXT, VALUE, backend_of
from varco_runtime import Varco
from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.bundle.opening import Bundle

BANDS = (32, 128)


@pytest.fixture
def banded(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Varco:
    monkeypatch.setattr("varco_runtime.backends.cuda.cache.BANDS", BANDS)
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.PREFILL_TOKENS", 32)
    return Varco.load(bundle)


def moves(gpu: Gpu) -> list[int]:
    return [call[1] for call in gpu.asked if call[0] == "move"]


def heads_but_one(varco: Varco, num_positions: int) -> list[int]:
    """Bytes of the moves of so many positions: of every head but each cache's first, which stays."""
    model = varco.bundle.manifest.model
    count = 2 * model.num_layers * (model.num_key_value_heads - 1)
    return [num_positions * model.head_dim * VALUE] * count


def test_loading_captures_each_length_of_step_in_each_band(banded: Varco, gpu: Gpu) -> None:
    assert backend_of(banded)._caches.bands == (*BANDS, MAX_CONTEXT)
    captured = [call[1] for call in gpu.asked if call[0] == "capture"]
    assert captured == ["decoder"] * 3 * MAX_STEP_TOKENS + ["sampling"]


def test_a_context_that_a_band_nearly_fills_has_no_such_band(bundle: Path, gpu: Gpu) -> None:
    """A move must not overlap itself, and would gain little."""
    backend = CudaBackend(Bundle.open(bundle))
    assert backend._caches.bands == (MAX_CONTEXT,)


def test_steps_across_the_bands_equal_one_full_pass(banded: Varco, cpu: Varco, gpu: Gpu) -> None:
    inputs = text_inputs(banded, 150)
    whole = cpu.backend.prefill(inputs, 0, num_logits=150)
    backend = backend_of(banded)
    gpu.asked.clear()
    rows = [backend.prefill(PromptInputs(inputs.ids[:20], inputs.image_token_id, None), 0)[0].copy()]
    position, seen = 20, []
    while position < 150:
        count = min(1 + position % MAX_STEP_TOKENS, 150 - position)
        tokens = [int(token) for token in inputs.ids[position : position + count]]
        rows += [row.copy() for row in backend.decode_steps(tokens, position)]
        position += count
        seen.append(backend._caches.capacity)
    assert close(np.stack(rows), whole[19:])
    assert sorted(set(seen)) == [*BANDS, MAX_CONTEXT]
    assert seen == sorted(seen)
    assert "capture" not in gpu.names()
    per_move = len(heads_but_one(banded, 1))
    assert len(moves(gpu)) == 2 * per_move


def test_a_shorter_prompt_takes_what_it_keeps_back_to_a_smaller_band(banded: Varco, cpu: Varco, gpu: Gpu) -> None:
    long, short = text_inputs(banded, 200), text_inputs(banded, 30)
    ids = np.concatenate([long.ids[:12], short.ids[12:]])
    for backend in (banded.backend, cpu.backend):
        backend.prefill(long, 0)
    gpu.asked.clear()
    rows = [
        backend.prefill(PromptInputs(ids, long.image_token_id, None), 12, num_logits=18)
        for backend in (banded.backend, cpu.backend)
    ]
    assert close(*rows)
    assert backend_of(banded)._caches.capacity == BANDS[0]
    assert moves(gpu) == heads_but_one(banded, 12)
    gpu.asked.clear()
    banded.backend.prefill(PromptInputs(ids, long.image_token_id, None), 12)
    assert moves(gpu) == []


def test_questions_of_all_lengths_are_answered_as_on_the_cpu(banded: Varco, cpu: Varco, gpu: Gpu) -> None:
    for text in ("Hello", "Hello " * 60, "Hello"):
        options = {"max_new_tokens": 40}
        assert banded.ask(None, text, **options).token_ids == cpu.ask(None, text, **options).token_ids  # type: ignore[arg-type]
    assert moves(gpu)


def test_caches_of_the_host_move_alike(bundle: Path, cpu: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_runtime.backends.cuda.cache.BANDS", BANDS)
    varco = Varco.load(bundle, provider="cpu", threads=1)
    inputs = text_inputs(varco, 60)
    whole = cpu.backend.prefill(inputs, 0, num_logits=40)
    rows = [varco.backend.prefill(PromptInputs(inputs.ids[:21], inputs.image_token_id, None), 0)[0].copy()]
    rows += [varco.backend.decode_step(int(inputs.ids[at]), at).copy() for at in range(21, 60)]
    assert close(np.stack(rows), whole)
