"""Prompts on CUDA, in chunks of 32 positions, run by run."""

from __future__ import annotations

from tests.doubles.recording_onnxruntime import Gpu
from tests.makers.inputs import text_inputs
from varco_runtime import Varco
from varco_runtime.backends.cuda.memory import NUM_LOGITS


def test_chunks_are_as_long_as_there_is_room_for(varco: Varco, gpu: Gpu) -> None:
    gpu.sessions["decoder"].runs.clear()
    varco.backend.prefill(text_inputs(varco, 100), 0)
    assert [run["token_ids"][1] for run in gpu.sessions["decoder"].runs] == [32, 32, 32, 4]


def test_a_chunk_computes_no_more_logits_than_there_is_room_for(varco: Varco, gpu: Gpu) -> None:
    gpu.sessions["decoder"].runs.clear()
    varco.backend.prefill(text_inputs(varco, 70), 0, num_logits=40)
    runs = [(run["token_ids"][1], run["logit_positions"][0]) for run in gpu.sessions["decoder"].runs]
    assert runs == [(32, 2), (16, 16), (16, 16), (6, 6)]
    assert max(count for _, count in runs) <= NUM_LOGITS


def test_a_prompt_is_neither_captured_nor_replayed(varco: Varco, gpu: Gpu) -> None:
    varco.backend.prefill(text_inputs(varco, 70), 0)
    assert set(gpu.names()) == {"upload", "run"}
