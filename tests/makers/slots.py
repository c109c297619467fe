"""Several slots of a device beside the CPU's answers: what CUDA's and TensorRT's tests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tests.makers.inputs import close, text_inputs
from tests.makers.threads import in_threads
from varco_runtime import Varco
from varco_runtime.backend import BatchingBackend, PromptInputs


def filled(varco: Varco, lengths: tuple[int, ...]) -> list[PromptInputs]:
    """Prompts of these lengths, one in each slot."""
    assert isinstance(varco.backend, BatchingBackend)
    prompts = [text_inputs(varco, length, seed=slot) for slot, length in enumerate(lengths)]
    for slot, prompt in enumerate(prompts):
        varco.backend.select_slot(slot)
        varco.backend.prefill(prompt, 0)
    return prompts


def assert_answers_at_once_are_those_of_the_cpu(
    varco: Varco, cpu: Varco, image: Image.Image, options: Sequence[dict[str, Any]]
) -> None:
    """A question for each of the options, every second about the picture, all at once."""
    asked = [(image if index % 2 else None, f"Question {index}?", options[index]) for index in range(len(options))]
    expected = [cpu.ask(picture, text, max_new_tokens=12, **way).token_ids for picture, text, way in asked]
    found: dict[int, tuple[int, ...]] = {}

    def ask(index: int) -> None:
        picture, text, way = asked[index]
        found[index] = varco.ask(picture, text, max_new_tokens=12, **way).token_ids

    in_threads(ask, len(asked))
    assert [found[index] for index in range(len(asked))] == expected


def assert_every_row_is_the_step_of_its_slot_alone(varco: Varco, cpu: Varco, num_turns: int) -> None:
    """Rows of four slots beside the CPU's prefill of the same tokens, for so many steps."""
    lengths = (5, 90, 30, 61)
    prompts, backend = filled(varco, lengths), varco.backend
    assert isinstance(backend, BatchingBackend)
    for turn in range(num_turns):
        tokens = [3 + turn, 5, 7 + turn, 9]
        rows = backend.decode_rows(tokens, [length + turn for length in lengths]).copy()
        for slot, prompt in enumerate(prompts):
            ids = np.concatenate([prompt.ids, [tokens[slot]]])
            prompts[slot] = PromptInputs(ids, prompt.image_token_id, None)
            assert close(rows[slot], cpu.backend.prefill(prompts[slot], 0)[0]), f"slot {slot}, turn {turn}"
