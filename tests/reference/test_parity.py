"""The bundle against transformers (eager, fp32) on the same checkpoint, stage by stage: features to tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.reference.oracle import Greedy, Oracle, photo, relative_error, user_message
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile
from varco_runtime.prompt.prompter import IMAGE, Message

# A checkpoint per thing that could go wrong: tied and untied heads, odd head counts, a vocabulary not divisible by 64,
# half-precision storage, the real 27x27 patches, grids that shrink, both formats; Qwen3 with both heads, heads that
# are no part of the width, and the 24x24 patches of VARCO-VISION 2.0.
CHECKPOINTS = {
    "plain": TinyOptions(seed=1),
    "odd": TinyOptions(
        seed=2,
        num_hidden_layers=3,
        hidden_size=96,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=200,
        vocab_size=517,
        dtype="bf16",
        num_shards=3,
    ),
    "tied": TinyOptions(seed=3, tie_word_embeddings=True, num_key_value_heads=1, names="new", dtype="fp16"),
    "shrinking": TinyOptions(seed=4, image_size=114, max_grid=(2, 2), max_grid_tiles=3, num_vision_layers=3),
    "real-geometry": TinyOptions(seed=5, image_size=384, vision_hidden_size=32, num_vision_heads=2),
    "qwen3": TinyOptions(seed=41, text="qwen3", patch_size=16),
    "qwen3-tied": TinyOptions(
        seed=42, text="qwen3", patch_size=16, tie_word_embeddings=True, num_key_value_heads=1, names="new", dtype="bf16"
    ),
    "qwen3-wide-heads": TinyOptions(
        seed=43, text="qwen3", patch_size=16, hidden_size=160, num_attention_heads=10, head_dim=32, dtype="fp16"
    ),
    "qwen3-geometry": TinyOptions(
        seed=44, text="qwen3", image_size=384, patch_size=16, vision_hidden_size=32, num_vision_heads=2
    ),
}
NEXT = "next"
SIZES = [
    (640, 480),
    (1, 1),
    (336, 1008),
    (960, 1168),
    (4000, 3000),
    (100, 37),
    (480, 640),
    (1304, 732),
    (729, 1),
    (1, 700),
    (1920, 1080),
    (768, 1920),
]
QUESTIONS = [
    "What is this?",
    "<gro>\nDescribe the image in detail.",
    "이 물건은 무엇인가요?",
    "<ocr>",
    "<obj>this</obj><bbox>0.1, 0.2, 0.3, 0.4</bbox> What colour is it?",
    "How many?",
    "Where?",
    "고양이가 몇 마리야?",
    "Read the sign.",
    "And now?",
]
CLEAR_MARGIN = 0.02
"""Logits here are good to about 5e-5: over 64 steps no choice may be closer than this, or a flip could be a tie."""
LIMIT = 1e-4


class Pair:
    """One checkpoint in both programs."""

    def __init__(self, name: str, folder: Path) -> None:
        options = CHECKPOINTS["odd"] if name == NEXT else CHECKPOINTS[name]
        checkpoint = make_tiny(folder / "checkpoint", options)
        self.oracle = Oracle(checkpoint)
        if name == NEXT:
            # transformers does not read the LLaVA-NeXT format: its twin in HF format is the reference.
            checkpoint = make_tiny(folder / "next", replace(options, format="llava-next", extra_vision_layer=True))
        self.varco = Varco.load(export_bundle(checkpoint, folder / "bundle"), threads=1)


_pairs: dict[str, Pair] = {}


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name = request.param
    if name not in _pairs:
        _pairs[name] = Pair(name, tmp_path_factory.mktemp(name))
    return _pairs[name]


def matrix() -> list[object]:
    """All sizes on one checkpoint, three on the others; a few of them in the quick run."""
    cases: list[object] = []
    for name in (*CHECKPOINTS, NEXT):
        sizes = SIZES if name == "plain" else SIZES[:1] + SIZES[2:4]
        for index, size in enumerate(sizes):
            quick = (name == "plain" and index < 5) or (index == 0 and not name.endswith("-geometry"))
            marks = [] if quick else [pytest.mark.full]
            cases.append(pytest.param(name, size, id=f"{name}-{size[0]}x{size[1]}", marks=marks))
    return cases


def clear_fixture(oracle: Oracle, image: Image.Image) -> tuple[str, Greedy]:
    """The first question to which the reference gives 64 tokens without a close call."""
    for question in QUESTIONS:
        reference = oracle.greedy(user_message(question, image=True), image, 64)
        if len(reference.token_ids) == 64 and reference.smallest_margin >= CLEAR_MARGIN:
            return question, reference
    raise AssertionError("no question has an answer without a close call: add questions or change the seed")


@pytest.mark.parametrize(("pair", "size"), matrix(), indirect=["pair"])
def test_every_stage_equals_the_reference(pair: Pair, size: tuple[int, int]) -> None:
    oracle, varco = pair.oracle, pair.varco
    image = photo(*size, seed=sum(size))
    settings = varco.bundle.manifest.image
    picture = load_picture(image)

    pixel_values = normalize(tile(picture, settings), settings)
    np.testing.assert_array_equal(pixel_values, oracle.pixel_values(image)[0][0].numpy(), "tiles")

    backend = varco.backend
    features = backend._run(backend._vision, {"pixel_values": pixel_values})  # type: ignore[attr-defined]
    error = relative_error(features, oracle.patch_features(image))
    assert error < LIMIT, (
        f"vision features differ by {error:.1e}: suspect the layer that counts, GELU or the patch order"
    )

    tokens = backend.pack(backend.encode(pixel_values), packing_plan(picture.size_hw, settings))
    error = relative_error(tokens, oracle.image_tokens(image))
    assert error < LIMIT, f"image tokens differ by {error:.1e}: suspect unpadding, newlines or the shrink"

    question, reference = clear_fixture(oracle, image)
    ids = varco.session.prompter.encode([Message("user", (IMAGE, question))], len(tokens))
    prompt = varco.bundle.manifest.prompt
    # LLaVA-NeXT's placeholder is no token of the vocabulary; it stands where its twin has <image>.
    image_token_id = oracle.model.config.image_token_id
    assert [image_token_id if token == prompt.image_token_id else token for token in ids] == reference.prompt_ids

    # Teacher forcing: one pass gives the logits at every step of the reference's answer.
    all_ids = np.array(ids + reference.token_ids[:-1], dtype=np.int64)
    logits = backend.prefill(PromptInputs(all_ids, prompt.image_token_id, tokens), 0, len(reference.token_ids))
    varco.session.memory.forget_sequence()
    first = relative_error(logits[0], reference.logits[0])
    assert first < LIMIT, f"first logits differ by {first:.1e}: suspect rotary positions, masks or the head"

    error = float(np.abs(logits - reference.logits).max())
    assert reference.smallest_margin >= 100 * error, (
        f"margin {reference.smallest_margin:.1e} near error {error:.1e}: a tie"
    )
    answer = varco.ask(image, question, max_new_tokens=64, long_side=0)
    assert list(answer.token_ids) == reference.token_ids


@pytest.mark.parametrize("pair", ["plain"], indirect=True)
def test_a_question_without_a_picture_equals_the_reference(pair: Pair) -> None:
    reference = pair.oracle.greedy(user_message("대한민국의 수도는?", image=False), None, 64)
    assert reference.smallest_margin >= CLEAR_MARGIN, "a close call: ask another question"
    answer = pair.varco.ask(None, "대한민국의 수도는?", max_new_tokens=64)
    assert list(answer.token_ids) == reference.token_ids


@pytest.mark.parametrize("pair", ["plain"], indirect=True)
def test_a_conversation_equals_the_reference(pair: Pair) -> None:
    image = photo(300, 200)
    chat = pair.varco.chat(image)
    first = chat.ask("What is this?", max_new_tokens=8)
    second = chat.ask("이 물건은 무엇인가요?", max_new_tokens=32)
    messages = [
        *user_message("What is this?", image=True),
        {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
        *user_message("이 물건은 무엇인가요?", image=False),
    ]
    reference = pair.oracle.greedy(messages, image, 32)
    assert reference.smallest_margin >= CLEAR_MARGIN, "a close call: ask another question"
    assert list(second.token_ids) == reference.token_ids
    assert second.usage.cached_tokens > first.usage.image_tokens, "the picture's positions were computed again"


def test_a_repetition_penalty_from_the_checkpoint_is_applied_as_the_reference_does(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", TinyOptions(seed=6, repetition_penalty=1.3))
    image, question = photo(90, 60), "How many?"  # no token's penalised margin is below CLEAR_MARGIN
    reference = Oracle(checkpoint).greedy(user_message(question, image=True), image, 64)
    varco = Varco.load(export_bundle(checkpoint, tmp_path / "bundle"), threads=1)
    assert list(varco.ask(image, question, max_new_tokens=64).token_ids) == reference.token_ids
    assert list(varco.ask(image, question, max_new_tokens=64, repetition_penalty=1.0).token_ids) != reference.token_ids
