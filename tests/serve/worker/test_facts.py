"""What a loaded model says about itself, and what is said at the start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.makers.server import DEMO_BUNDLE
from varco_runtime import Varco
from varco_runtime.errors import ContextError
from varco_serve.serve import start_lines
from varco_serve.settings import ServeSettings
from varco_serve.worker.facts import facts_of


def load(**options: int) -> Varco:
    return Varco.load(DEMO_BUNDLE, provider="cpu", threads=1, **options)  # type: ignore[arg-type]


def test_facts_are_those_of_the_bundle_and_survive_json() -> None:
    varco = load(slots=3)
    facts = facts_of(varco)
    assert (facts.max_context, facts.slots, facts.max_images) == (1024, 3, 1)
    assert json.loads(json.dumps(facts.details)) == facts.details
    details = facts.details
    assert details["license"] == "apache-2.0"
    assert details["bundle"]["device"] == "cpu"
    assert set(details["precision"]) == {"vision", "projector", "decoder"}
    assert details["cache_bytes"] == 3 * 1024 * varco.bundle.manifest.kv_bytes_per_token
    assert str(DEMO_BUNDLE) not in json.dumps(details)


@pytest.mark.parametrize("max_context", [1024, 350, 300, 250, 200])
def test_the_picture_that_is_said_to_fit_is_answered_and_the_next_larger_one_is_not(max_context: int) -> None:
    varco = load(max_context=max_context)
    details = facts_of(varco).details
    said = details["largest_fitting_picture"]
    assert said is not None

    def ask(height: int, width: int) -> int:
        picture = np.zeros((height, width, 3), np.uint8)
        return varco.ask(picture, "What is this?", max_new_tokens=1).usage.image_tokens

    assert ask(said["height"], said["width"]) == said["tokens"]
    if not details["largest_picture_fits"] and said["tokens"] < 246:
        with pytest.raises(ContextError):
            ask(228, 228)  # the grid of 246 tokens, the demo's largest


def test_the_start_says_what_is_served_and_under_which_licence() -> None:
    settings = ServeSettings(Path("bundle"), model_name="signs")
    lines = start_lines(facts_of(load(slots=2)), settings)
    assert lines[0].startswith("Serving varco-tiny as 'signs': 2 answers at once, 1024 tokens each. Runs on cpu")
    assert lines[1:] == ["Licence of the weights: apache-2.0."]
    *_, last = start_lines(facts_of(load(max_context=200)), settings)
    assert last == (
        "The context does not hold the largest picture's 313 tokens: 114 x 114 pixels (136 tokens) still fit."
    )
    *_, last = start_lines(facts_of(load(max_context=100)), settings)
    assert last.endswith("no grid of tiles fits, only pictures of one tile.")
