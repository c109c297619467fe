"""Bundles for the CPU on OpenVINO in fp32, against transformers (eager, fp32) on the same checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.reference.oracle import Oracle, photo, relative_error
from tests.reference.test_parity import CHECKPOINTS, LIMIT, clear_fixture
from varco_export.tiny import make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, ShowsFeatures
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile
from varco_runtime.prompt.prompter import IMAGE, Message


@pytest.mark.parametrize(
    ("name", "format_"),
    [("odd", "llava-next"), ("qwen3-wide-heads", "hf"), pytest.param("plain", "hf", marks=pytest.mark.full)],
)
def test_every_stage_equals_the_reference(
    name: str, format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    oracle = Oracle(make_tiny(tmp_path / "hf", CHECKPOINTS[name]))
    # transformers does not read the LLaVA-NeXT format: its twin in HF format is the reference.
    twin = make_tiny(tmp_path / "twin", replace(CHECKPOINTS[name], format=format_))
    bundle = export_bundle(twin, tmp_path / "bundle")
    varco = Varco.load(bundle, "openvino", threads=1, precision="fp32")
    image = photo(640, 480, seed=1120)
    settings, picture = varco.bundle.manifest.image, load_picture(image)

    pixel_values = normalize(tile(picture, settings), settings)
    assert isinstance(varco.backend, ShowsFeatures)
    features = varco.backend.features(pixel_values, packing_plan(picture.size_hw, settings))
    assert relative_error(features.patch_features, oracle.patch_features(image)) < LIMIT
    assert relative_error(features.image_tokens, oracle.image_tokens(image)) < LIMIT

    question, reference = clear_fixture(oracle, image)
    ids = varco.session.prompter.encode([Message("user", (IMAGE, question))], len(features.image_tokens))
    ids = np.array(ids + reference.token_ids[:-1], dtype=np.int64)
    inputs = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, features.packed)
    num_logits = len(reference.token_ids)
    whole = varco.backend.prefill(inputs, 0, num_logits)
    assert relative_error(whole[0], reference.logits[0]) < LIMIT
    rewound = varco.backend.prefill(inputs, len(ids) - num_logits, num_logits)
    assert relative_error(rewound, reference.logits) < LIMIT
    monkeypatch.setattr("varco_runtime.backends.openvino.backend.CHUNK_TOKENS", 100)
    assert relative_error(varco.backend.prefill(inputs, 0, num_logits), reference.logits) < LIMIT

    varco.session.memory.forget_sequence()
    assert list(varco.ask(image, question, max_new_tokens=64).token_ids) == reference.token_ids
    drafted = varco.ask(image, question, max_new_tokens=64, speculate=False).token_ids
    assert list(drafted) == reference.token_ids
