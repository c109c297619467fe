"""The device's memory: taken at loading, and not by questions."""

from __future__ import annotations

import pytest

from tests.provider.conftest import Observed, require_provider
from tests.provider.scenario import LOAD, PROMPTS
from varco_runtime.bundle.opening import read_manifest

require_provider()


def taken(observed: Observed, name: str, before: str) -> int:
    """Bytes that are free no more, since the section `before`."""
    return observed.free_bytes[before] - observed.free_bytes[name]


def test_prompts_of_any_length_take_no_memory(observed: Observed) -> None:
    """Each length twice: onnxruntime may plan memory anew for shapes that it has seen."""
    sections = [f"{time} {length}" for time in ("prompt of", "again a prompt of") for length in PROMPTS]
    assert {name: taken(observed, name, LOAD) for name in sections} == dict.fromkeys(sections, 0)


def test_steps_take_no_memory(observed: Observed) -> None:
    assert taken(observed, "logits of a draft", "later prompt") == 0


@pytest.mark.parametrize("name", ["small", "large"])
def test_pictures_of_any_size_take_no_memory(observed: Observed, name: str) -> None:
    before = "features of a small picture" if name == "large" else LOAD
    grown = {part: taken(observed, part, before) for part in (f"{name} picture", f"prompt with a {name} picture")}
    assert grown == dict.fromkeys(grown, 0)


def test_a_picture_of_a_known_size_takes_no_memory(observed: Observed) -> None:
    names = [name for name in observed.free_bytes if "second large picture" in name]
    assert len(names) == 4
    first = "features of a large picture"
    assert {name: taken(observed, name, first) for name in names} == dict.fromkeys(names, 0)


def test_another_thread_takes_no_memory_at_its_second_question(observed: Observed) -> None:
    assert taken(observed, "other thread, second question", "thread, first question") == 0


def test_a_model_gives_its_weights_back(observed: Observed) -> None:
    """Buffers come from an arena of the process, which keeps what it took."""
    manifest = read_manifest(observed.bundle)
    weights = sum(manifest.files[part.data].size for part in manifest.components.values())
    assert taken(observed, "closing", "greedy after threads") <= -weights
