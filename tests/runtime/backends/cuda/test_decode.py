"""The decode step on CUDA: captures, threads, choices and drafts, call by call."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles.recording_onnxruntime import Gpu, install
from tests.makers.drafts import foretell
from tests.makers.inputs import text_inputs
from tests.runtime.backends.cuda.conftest import MAX_CONTEXT, VALUE, backend_of
from varco_runtime import Varco
from varco_runtime.backend import (
    MAX_STEP_TOKENS,
    PromptInputs,
)
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.errors import BackendError, ContextError
from varco_runtime.generation.sampling import Sampler, SamplingSettings


def test_step_and_draw_are_captured_at_loading_and_replayed_ever_after(bundle: Path, gpu: Gpu, cpu: Varco) -> None:
    varco = Varco.load(bundle)
    captured = [call[1] for call in gpu.asked if call[0] == "capture"]
    assert captured == ["decoder"] * MAX_STEP_TOKENS + ["sampling"], "each length of step, and the draw"
    gpu.asked.clear()
    questions = [("Hello", {"speculate": False}), ("Hello again", {"temperature": 0.9, "seed": 5})]
    answers = [varco.ask(None, text, max_new_tokens=6, **options).token_ids for text, options in questions]
    assert gpu.asked.count(("replay", "decoder")) == 10
    assert gpu.asked.count(("replay", "sampling")) == 5
    assert "capture" not in gpu.names()
    assert answers == [cpu.ask(None, text, max_new_tokens=6, **options).token_ids for text, options in questions]


def test_a_step_on_another_thread_is_captured_there_and_right(varco: Varco, cpu: Varco, gpu: Gpu) -> None:
    """The provider keeps graphs by thread, and runs a step several times to capture it."""
    found: list[tuple[int, ...]] = []
    options: dict[str, Any] = {"max_new_tokens": 12, "speculate": False}
    thread = threading.Thread(target=lambda: found.append(varco.ask(None, "Hello", **options).token_ids))
    gpu.captures = 0
    thread.start()
    thread.join()
    assert found == [cpu.ask(None, "Hello", **options).token_ids]
    assert gpu.captures == 1


def test_all_other_threads_share_one_and_its_captures(varco: Varco, cpu: Varco, gpu: Gpu) -> None:
    """The provider keeps what a thread captured until the session ends: a thread per request must not cost a graph."""
    options: dict[str, Any] = {"max_new_tokens": 6, "speculate": False}
    expected = cpu.ask(None, "Hello", **options).token_ids
    gpu.captures = 0
    for _ in range(3):
        found: list[tuple[int, ...]] = []
        thread = threading.Thread(
            target=lambda found=found: found.append(varco.ask(None, "Hello", **options).token_ids)
        )
        thread.start()
        thread.join()
        assert found == [expected]
    assert gpu.captures == 1
    assert varco.ask(None, "Hello", **options).token_ids == expected, "and here nothing is captured anew"
    assert gpu.captures == 1


def test_an_error_on_another_thread_reaches_it(varco: Varco) -> None:
    found: list[BaseException] = []

    def ask() -> None:
        try:
            varco.backend.decode_step(1, MAX_CONTEXT)
        except ContextError as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "513 positions do not fit" in str(found[0])


def test_a_greedy_step_moves_one_integer_to_the_host(varco: Varco, gpu: Gpu) -> None:
    varco.backend.prefill(text_inputs(varco, 12), 0)
    gpu.asked.clear()
    token = backend_of(varco).decode_greedy(7, 12)
    assert gpu.asked == [("write", 8), ("write", 4), ("replay", "decoder"), ("read", 8)]
    gpu.asked.clear()
    varco.backend.decode_step(token, 13)
    assert gpu.asked[-1] == ("read", VALUE * varco.bundle.manifest.model.vocab_size)


def test_a_draw_moves_six_numbers_to_the_device_and_one_integer_back(varco: Varco, gpu: Gpu) -> None:
    backend, vocab_size = backend_of(varco), varco.bundle.manifest.model.vocab_size
    backend.prefill(text_inputs(varco, 12), 0)
    sampler = Sampler(SamplingSettings(temperature=0.7, top_p=0.9, seed=1), varco.bundle.manifest.generation)
    gpu.asked.clear()
    backend.decode_sampled(7, 12, sampler.draw(vocab_size))
    step = [("write", 8), ("write", 4), ("replay", "decoder")]
    assert gpu.asked == [*step, ("write", 48), ("replay", "sampling"), ("read", 8)]
    penalised = Sampler(SamplingSettings(repetition_penalty=1.2), varco.bundle.manifest.generation, (3, 4))
    gpu.asked.clear()
    backend.decode_sampled(7, 13, penalised.draw(vocab_size))
    assert gpu.asked == [*step, ("write", 48), ("write", vocab_size), ("replay", "sampling"), ("read", 8)]


def test_steps_of_every_length_replay_what_was_captured_at_loading(varco: Varco, gpu: Gpu) -> None:
    backend = backend_of(varco)
    backend.prefill(text_inputs(varco, 40), 0)
    gpu.asked.clear()
    for count in range(1, MAX_STEP_TOKENS + 1):
        backend.decode_steps([5] * count, 40)
        backend.decode_greedy_steps([5] * count, 40)
    assert gpu.asked.count(("replay", "decoder")) == 2 * MAX_STEP_TOKENS
    assert "capture" not in gpu.names()


def test_drafts_change_the_steps_and_not_the_answer(
    varco: Varco, cpu: Varco, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cpu.ask(None, "Hello", max_new_tokens=64, speculate=False).token_ids
    foretell(monkeypatch, expected, (3, 0, 8, 1, 5))
    gpu.asked.clear()
    answer = varco.ask(None, "Hello", max_new_tokens=64)
    assert answer.token_ids == expected
    assert 20 < answer.timings.accepted < answer.timings.drafted
    steps = sum(call[0] in ("replay", "capture") for call in gpu.asked)
    assert steps == len(answer.token_ids) - 1 - answer.timings.accepted
    moved = sum(call[1] for call in gpu.asked if call[0] == "read")
    assert moved == 8 * (steps + answer.timings.drafted), "one integer for each token that was put"
    monkeypatch.undo()
    install(monkeypatch, gpu)
    again = varco.ask(None, "Hello again", max_new_tokens=16, speculate=False)
    assert again.token_ids == cpu.ask(None, "Hello again", max_new_tokens=16).token_ids, "the cache is what it says"


def test_past_and_present_are_one_memory_in_every_run(varco: Varco, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, tuple[int, tuple[int, ...]]]] = []
    session = gpu.sessions["decoder"]
    run = session.run_with_iobinding
    monkeypatch.setattr(
        session, "run_with_iobinding", lambda binding, o=None: (seen.append(binding.bound), run(binding, o))
    )
    varco.ask(None, "Hello", max_new_tokens=4)
    caches = [name.removeprefix("past.") for name in seen[0] if name.startswith("past.")]
    assert len(caches) == 2 * varco.bundle.manifest.model.num_layers
    for bound in seen:
        for name in caches:
            assert bound[f"past.{name}"] == bound[f"present.{name}"] == seen[0][f"past.{name}"]


def test_an_opening_that_overflows_is_refused_and_not_taken_for_cached(
    bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first positions are computed at loading, where nobody looks at their logits."""
    prefill_chunk = CudaBackend._prefill_chunk

    def overflowing(self: CudaBackend, inputs: PromptInputs, start: int, *args: Any, **kwargs: Any) -> Any:
        logits = prefill_chunk(self, inputs, start, *args, **kwargs)
        if start > 0:
            return logits
        for buffer in self._caches.buffers.values():
            buffer.value.inner.numpy()[:, :, 0] = np.nan
        return np.full_like(logits, np.nan)

    monkeypatch.setattr(CudaBackend, "_prefill_chunk", overflowing)
    varco = Varco.load(bundle)
    for _ in range(2):
        with pytest.raises(BackendError, match="gave the logit nan for token 0, expected finite numbers"):
            varco.ask(None, "Hello", max_new_tokens=4)
    assert np.isnan(varco.score(None, "Hello", [5, 6])).all()
    monkeypatch.undo()
    install(monkeypatch, gpu)
    assert varco.ask(None, "Hello", max_new_tokens=4).usage.cached_tokens == 0


@pytest.mark.parametrize("greedy", [True, False])
def test_a_nan_in_the_caches_is_seen_at_once_and_does_not_reach_the_next_answer(
    varco: Varco, cpu: Varco, gpu: Gpu, greedy: bool
) -> None:
    backend = backend_of(varco)
    backend.prefill(text_inputs(varco, 61), 0)
    for buffer in backend._caches.buffers.values():
        buffer.value.inner.numpy()[:, :, 20:50] = np.nan  # the double's memory, which no run has written to
    if greedy:
        gpu.asked.clear()
        with pytest.raises(BackendError, match="not finite at position 61"):
            backend.decode_greedy(3, 61)
        assert [call for call in gpu.asked if call[0] == "read"] == [("read", 8)]
    else:
        assert np.isnan(backend.decode_step(3, 61)).any(), "left to the sampler, which refuses it"
    assert not any(np.isnan(buffer.read()).any() for buffer in backend._caches.buffers.values())
    varco.session.memory.forget_sequence()  # as an answer that fails does
    assert varco.ask(None, "Hello", max_new_tokens=8).token_ids == cpu.ask(None, "Hello", max_new_tokens=8).token_ids
