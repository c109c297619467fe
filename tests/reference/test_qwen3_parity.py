"""Qwen3 in every dialect and number format against transformers, where its attention could differ from Qwen2's.

`test_parity.py` and `dialect_parity.py` hold the comparisons and the checkpoints, `qwen3*` among them. Here are weights
that are rounded or stored as integers or FP8, and sequences that are cut, rewound or drafted, in the three dialects.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.makers.exported_weights import export_exactly
from tests.reference import test_cuda_parity, test_tensorrt_parity
from tests.reference.dialect_parity import (
    GPTQ,
    QWEN3,
    Load,
    check_fp8,
    check_gptq,
    check_rewinding,
    check_rounded_weights,
    one_quick,
)
from tests.reference.oracle import Oracle, photo, relative_error, user_message
from tests.reference.test_parity import CHECKPOINTS, CLEAR_MARGIN, LIMIT, clear_fixture
from varco_export.tiny import make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, VerifyingBackend
from varco_runtime.backends.cpu import backend as cpu_backend
from varco_runtime.dtypes import Array

torch = pytest.importorskip("torch", reason="the reference needs torch")

NAMES = ("qwen3", "qwen3-tied", "qwen3-wide-heads")


def load_on_cpu(checkpoint: Path, bundle: Path, **options: object) -> Varco:
    exact = {"max_context": 512, "activations": "float", **options}
    make = export_bundle if "lm_head" in exact else export_exactly
    return Varco.load(make(checkpoint, bundle, **exact), threads=1)


LOADERS: dict[str, Load] = {
    "cpu": load_on_cpu,
    "cuda": test_cuda_parity.load,
    "tensorrt": test_tensorrt_parity.load_in_fp32,
}
over_dialects = pytest.mark.parametrize("device", LOADERS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Oracle, Varco]]:
    """One checkpoint in both programs, made once."""
    made: dict[str, tuple[Oracle, Varco]] = {}

    def make(name: str) -> tuple[Oracle, Varco]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            checkpoint = make_tiny(folder / "checkpoint", CHECKPOINTS[name])
            made[name] = Oracle(checkpoint), load_on_cpu(checkpoint, folder / "bundle")
        return made[name]

    return make


# --- sequences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_in_chunks_and_rewound_equals_the_reference(
    pair: Callable[[str], tuple[Oracle, Varco]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, varco = pair(name)
    ids = np.array(oracle.prompt_ids(user_message("Describe the 사진 of the text. " * 4, False), None))
    other = np.concatenate([ids[:20], ids[:30]])
    monkeypatch.setattr(cpu_backend, "CHUNK_TOKENS", 7)
    varco.session.memory.forget_sequence()
    for sequence, start in ((ids, 0), (other, 20), (ids, 20), (ids, len(ids) - 3)):
        expected = logits_of(oracle, sequence)[-3:]
        inputs = PromptInputs(sequence, varco.bundle.manifest.prompt.image_token_id, None)
        got = varco.backend.prefill(inputs, start, 3)
        assert relative_error(got, expected) < LIMIT, f"from {start} on"
    varco.session.memory.forget_sequence()


def logits_of(oracle: Oracle, ids: Array) -> Array:
    """The reference's logits `[n, vocab]` at every position."""
    with torch.no_grad():
        logits: Array = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    return logits


@pytest.mark.parametrize("name", NAMES)
def test_drafted_tokens_get_the_logits_of_the_reference(pair: Callable[[str], tuple[Oracle, Varco]], name: str) -> None:
    """A draft of which half is refused, and another in its place."""
    oracle, varco = pair(name)
    assert isinstance(varco.backend, VerifyingBackend)
    ids = np.array(oracle.prompt_ids(user_message("Describe the 사진.", False), None))
    varco.session.memory.forget_sequence()
    varco.backend.prefill(PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None), 0)
    kept = len(ids)
    for draft in ([5, 9, 70, 300, 41, 8, 8, 2], [11, 200, 7], [3]):
        got = varco.backend.decode_steps(draft, kept)
        expected = logits_of(oracle, np.concatenate([ids, draft]))[-len(draft) :]
        assert relative_error(got, expected) < LIMIT
        ids = np.concatenate([ids, draft[: (len(draft) + 1) // 2]])
        kept = len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_speculation_gives_the_tokens_of_the_reference(pair: Callable[[str], tuple[Oracle, Varco]], name: str) -> None:
    oracle, varco = pair(name)
    image = photo(90, 60)
    question, reference = clear_fixture(oracle, image)
    varco.session.memory.forget_sequence()
    answers = [varco.ask(image, question, max_new_tokens=64, speculate=drafts) for drafts in (False, True)]
    assert [list(answer.token_ids) for answer in answers] == [reference.token_ids] * 2


@over_dialects
def test_a_conversation_that_rewinds_equals_the_reference(tmp_path: Path, device: str) -> None:
    check_rewinding(LOADERS[device], tmp_path, "qwen3-wide-heads")


@pytest.mark.parametrize("name", NAMES)
def test_a_question_without_a_picture_equals_the_reference(
    pair: Callable[[str], tuple[Oracle, Varco]], name: str
) -> None:
    oracle, varco = pair(name)
    for question in ("대한민국의 수도는?", "What is this?", "How many?", "고양이가 몇 마리야?"):
        reference = oracle.greedy(user_message(question, image=False), None, 32)
        if reference.smallest_margin >= CLEAR_MARGIN:
            assert list(varco.ask(None, question, max_new_tokens=32).token_ids) == reference.token_ids
            return
    raise AssertionError("no question has an answer without a close call")


# --- number formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", one_quick(("int4", "int8", "fp8"), "int4"))
@over_dialects
def test_rounded_weights_equal_the_reference_with_the_same_weights(tmp_path: Path, device: str, decoder: str) -> None:
    if (device, decoder) == ("cpu", "fp8"):
        pytest.skip("--device cpu takes FP8 from a checkpoint alone")
    check_rounded_weights(LOADERS[device], tmp_path, decoder, QWEN3)


@pytest.mark.parametrize("name", one_quick(GPTQ, "exclusions"))
@over_dialects
def test_a_gptq_checkpoint_equals_the_reference_with_its_dequantised_weights(
    tmp_path: Path, device: str, name: str
) -> None:
    check_gptq(LOADERS[device], tmp_path, GPTQ[name], QWEN3)


@pytest.mark.parametrize("name", one_quick(("weights-alone", "static"), "static"))
@over_dialects
def test_an_fp8_checkpoint_equals_the_reference_on_the_same_checkpoint(tmp_path: Path, device: str, name: str) -> None:
    check_fp8(LOADERS[device], tmp_path, name, QWEN3)
