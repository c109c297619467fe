"""Several pictures and videos on every backend: the CPU's answers, in runs where buffers end, and nothing twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.doubles import recording_tensorrt
from tests.makers.cuda_graphs import export_in_fp32
from tests.makers.inputs import close, noise_picture
from tests.makers.media import drawn_clip
from varco_runtime import Varco
from varco_runtime.backend import KeepsPrefixes, PromptInputs
from varco_runtime.conversation import user_turn
from varco_runtime.errors import ContextError
from varco_runtime.media_encoder import VisionTimes
from varco_runtime.picture.media import Clip

CONTEXT = 512
TILE_PX = 58
A, B, C = (noise_picture(seed) for seed in range(3))


def clip(num_frames: int, seed: int = 0) -> Clip:
    return drawn_clip(num_frames, TILE_PX, seed)


ASKED: dict[str, Any] = {
    "two pictures": [A, B],
    "the same picture twice": [A, A],
    "a video": clip(5),
    "a video of two runs": clip(40),
    "a picture and a video": [A, clip(5)],
    "two pictures and two videos": [A, clip(3), B, clip(5, seed=1)],
    "pictures of two runs": [noise_picture(seed) for seed in range(14)],
    "texts between": ["First:", A, "second:", B, "Which?"],
}


@pytest.fixture(scope="module")
def cuda_media_bundle(media_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_in_fp32(media_checkpoint, tmp_path_factory.mktemp("media") / "cuda", max_context=CONTEXT)


@pytest.fixture(scope="module")
def tensorrt_media_bundle(media_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("media") / "tensorrt"
    export_bundle(media_checkpoint, target, device="tensorrt", decoder="fp32", max_context=CONTEXT)
    recording_tensorrt.add_engines(target)
    return target


@pytest.fixture
def cpu(media_bundle: Path) -> Varco:
    return Varco.load(media_bundle, threads=1)


@pytest.fixture(params=["cpu", "cuda", "tensorrt"])
def varco(request: pytest.FixtureRequest, cpu: Varco) -> Varco:
    """The model on the real CPU, or on a double of a device."""
    if request.param != "cpu":
        request.getfixturevalue({"cuda": "gpu", "tensorrt": "device"}[request.param])
    name = "media_bundle" if request.param == "cpu" else f"{request.param}_media_bundle"
    bundle: Path = request.getfixturevalue(name)
    return Varco.load(bundle, threads=1 if request.param == "cpu" else None)


on_devices = pytest.mark.parametrize("varco", ["cuda", "tensorrt"], indirect=True)


@pytest.fixture
def encoded(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tiles of every call of the vision tower."""
    return count_tiles(varco, monkeypatch)


def count_tiles(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counting(encode: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(tiles: Any) -> Any:
            calls.append(len(tiles))
            return encode(tiles)

        return call

    for name in ("encode", "encode_pixels"):
        if hasattr(varco.backend, name):
            monkeypatch.setattr(varco.backend, name, counting(getattr(varco.backend, name)))
    return calls


def ask(varco: Varco, asked: Any, prompt: str | None = "What is this?", **options: Any) -> tuple[int, ...]:
    is_parts = isinstance(asked, list) and any(isinstance(part, str) for part in asked)
    return varco.ask(asked, None if is_parts else prompt, max_new_tokens=16, **options).token_ids


@on_devices
@pytest.mark.parametrize("name", ASKED)
def test_a_device_answers_as_the_cpu(name: str, varco: Varco, cpu: Varco) -> None:
    assert ask(varco, ASKED[name]) == ask(cpu, ASKED[name])


@on_devices
def test_media_beyond_the_buffers_are_taken_in_runs(varco: Varco, encoded: list[int]) -> None:
    """12 padded pictures make 204 of 215 tokens, 37 frames are 37 tiles."""
    ask(varco, ASKED["pictures of two runs"])
    assert encoded == [12, 2]
    del encoded[:]
    ask(varco, ASKED["a video of two runs"])
    assert encoded == [37, 3]


def test_asking_again_about_two_pictures_encodes_no_tile(varco: Varco, encoded: list[int]) -> None:
    first = varco.ask([A, B], "What is this?", max_new_tokens=16)
    num_tiles = sum(encoded)
    again = varco.ask([A, B], "And now?", max_new_tokens=16)
    assert sum(encoded) == num_tiles == 2
    assert again.usage.cached_tokens >= again.usage.image_tokens == 34
    assert again.timings.vision_s == again.timings.preprocess_s == 0
    assert varco.ask([A, B], "What is this?", max_new_tokens=16).token_ids == first.token_ids


def test_another_second_picture_encodes_itself_alone_and_is_prefilled_from_there(
    varco: Varco, encoded: list[int]
) -> None:
    fresh = ask(varco, [A, C])
    varco.ask(None, "Something else", max_new_tokens=1)
    varco.ask([A, B], "What is this?", max_new_tokens=4)
    del encoded[:]
    first = varco.session.prompt([user_turn([A, C], "What is this?", varco.bundle.manifest)]).places[1].span.start
    if isinstance(varco.backend, KeepsPrefixes):
        assert ask(varco, [A, C]) == fresh
        assert encoded == []  # its tokens, and its prompt, are in the store
        return
    answer = varco.ask([A, C], "What is this?", max_new_tokens=16)
    assert encoded == [1]
    assert answer.usage.cached_tokens == first
    assert answer.token_ids == fresh


def test_a_new_picture_beside_a_known_one_shares_the_prompt_up_to_it(varco: Varco, encoded: list[int]) -> None:
    varco.ask([A, B], "What is this?", max_new_tokens=4)
    del encoded[:]
    first = varco.session.prompt([user_turn([A, C], "What is this?", varco.bundle.manifest)]).places[1].span.start
    answer = varco.ask([A, C], "What is this?", max_new_tokens=16)
    assert encoded == [1]
    assert answer.usage.cached_tokens == first


def test_a_second_picture_in_a_later_turn_tiles_the_first_one_anew(varco: Varco, encoded: list[int]) -> None:
    chat = varco.chat(A)
    alone = chat.ask("What is this?", max_new_tokens=4)
    grid = sum(encoded)
    assert alone.media[0].num_tiles == grid > 1
    chat.ask("And its colour?", max_new_tokens=4)
    assert sum(encoded) == grid
    del encoded[:]
    both = chat.ask("And this one?", image=B, max_new_tokens=16)
    assert sum(encoded) == 2
    assert [one.num_tiles for one in both.media] == [1, 1]
    third = chat.ask("Compare.", max_new_tokens=4)
    assert sum(encoded) == 2
    assert third.usage.cached_tokens >= both.usage.prompt_tokens


def test_a_conversation_answers_as_a_model_that_has_seen_nothing(varco: Varco, cpu: Varco) -> None:
    chat = varco.chat(A)
    chat.ask("What is this?", max_new_tokens=4)
    second = chat.ask("And this one?", image=[B, clip(3)], max_new_tokens=16)
    turns = chat._turns[:3]
    prompt = cpu.session.prompt(turns)
    assert len(prompt.ids) == second.usage.prompt_tokens
    logits = cpu.session.score(prompt.followed_by(second.token_ids[:-1]), len(second.token_ids))
    assert tuple(np.argmax(logits, axis=1)) == second.token_ids


@pytest.mark.parametrize("chunk", [3, 7, 16, 25])
def test_a_prompt_in_chunks_equals_one_pass(chunk: int, cpu: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks end inside a picture, between two, and inside a video."""
    prompt = cpu.session.prompt([user_turn([A, B, clip(9)], "What is this?", cpu.bundle.manifest)])
    inputs = whole_inputs(cpu, prompt)
    at_once = cpu.backend.prefill(inputs, 0, 5).copy()
    monkeypatch.setattr("varco_runtime.backends.cpu.backend.CHUNK_TOKENS", chunk)
    assert close(cpu.backend.prefill(inputs, 0, 5), at_once)


def whole_inputs(varco: Varco, prompt: Any) -> PromptInputs:
    tokens, firsts = varco.session.encoder.tokens(prompt.places, VisionTimes())
    rows = np.full(len(prompt.ids), -1)
    for span in prompt.spans:
        rows[span.start : span.end] = firsts[span.key] + np.arange(span.end - span.start)
    return PromptInputs(np.array(prompt.ids), -1, tokens, rows)


@pytest.mark.parametrize("place", ["inside a picture", "between two", "inside the video"])
def test_a_rewound_prompt_equals_one_pass(place: str, varco: Varco) -> None:
    """The positions before stay in the cache, those behind are computed again over other ones."""
    prompt = varco.session.prompt([user_turn([A, B, clip(9)], "What is this?", varco.bundle.manifest)])
    first, second, video = prompt.spans
    places = {"inside a picture": first.start + 5, "between two": second.start, "inside the video": video.start + 11}
    start = places[place]
    inputs = whole_inputs(varco, prompt)
    at_once = varco.backend.prefill(inputs, 0, 1).copy()
    other = np.where(np.arange(len(prompt.ids)) < start, inputs.ids, 7)
    rows = np.where(np.arange(len(prompt.ids)) < start, inputs.media_rows, -1)
    varco.backend.prefill(dataclasses.replace(inputs, ids=other, media_rows=rows), 0, 1)
    assert close(varco.backend.prefill(inputs, start, 1), at_once)


def test_more_pictures_than_the_context_holds_are_refused_by_number(varco: Varco) -> None:
    pictures = [noise_picture(seed) for seed in range(30)]
    with pytest.raises(
        ContextError,
        match=r"510 of them the 30 pictures', the context holds 512.*fewer pictures: the first (\d+) of 30",
    ) as refused:
        varco.ask(pictures, "What is this?")
    fit = int(str(refused.value).split("the first ")[1].split()[0])
    assert varco.ask(pictures[:fit], "What is this?", max_new_tokens=1).finish_reason
    with pytest.raises(ContextError):
        varco.ask(pictures[: fit + 1], "What is this?")


def test_more_frames_than_the_context_holds_are_refused_with_the_number_that_fits(varco: Varco) -> None:
    with pytest.raises(ContextError, match=r"Ask with at most (\d+) frames instead of 140") as refused:
        varco.ask(clip(140), "What is this?")
    fit = int(str(refused.value).split("at most ")[1].split()[0])
    assert varco.ask(clip(fit), "What is this?", max_new_tokens=1).finish_reason
    with pytest.raises(ContextError):
        varco.ask(clip(fit + 1), "What is this?")
