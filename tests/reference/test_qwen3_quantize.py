"""Quantised Qwen3 checkpoints: transformers loads them, and they answer in a bundle as they do there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("the reference needs the extra 'quantize'", allow_module_level=True)

import torch
import transformers

from tests.export.quantize.test_quantize import Quiet, options_for
from tests.makers.exported_weights import export_exactly
from tests.reference.oracle import Oracle, photo, relative_error, user_message
from tests.reference.test_quantised_parity import CLEAR_MARGIN, rounding_margin, token_sequences
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize import QuantizeOptions, quantize
from varco_export.quantize.embeddings import embed_samples
from varco_export.quantize.layer import Decoder
from varco_export.quantize.quantizer import _prepare
from varco_export.quantize.scheme import silence
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs

QWEN3 = TinyOptions(
    seed=51, text="qwen3", patch_size=16, hidden_size=160, num_attention_heads=10, head_dim=32, num_key_value_heads=2
)
METHODS: dict[str, dict[str, Any]] = {"gptq": {"group_size": 32}, "rtn": {"group_size": 32}, "fp8": {"max_samples": 0}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    silence()
    transformers.utils.logging.disable_progress_bar()
    return make_tiny(tmp_path_factory.mktemp("qwen3") / "tiny", QWEN3)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    photo(120, 80).save(folder / "0.png")
    return folder


@pytest.mark.parametrize("method", ["gptq", "fp8", pytest.param("rtn", marks=pytest.mark.full)])
def test_the_result_loads_in_transformers_and_answers_in_a_bundle_as_there(
    source: Path, calibration: Path, tmp_path: Path, method: Any
) -> None:
    options = QuantizeOptions(method, calibration if method == "gptq" else None, **METHODS[method])
    quantize(source, tmp_path / "out", options, Quiet())
    _, info = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys")), info
    oracle = Oracle(tmp_path / "out")
    ids = np.array(oracle.prompt_ids(user_message("What is this?", False), None))
    if method == "fp8":  # whose rounding of inputs no close call may decide
        ids = next(ids for ids in token_sequences() if rounding_margin(oracle, ids) > CLEAR_MARGIN)
    with torch.no_grad():
        expected = oracle.model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    varco = Varco.load(export_exactly(tmp_path / "out", tmp_path / "bundle"), threads=1)
    inputs = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None)
    got = varco.backend.prefill(inputs, 0, len(ids))
    assert relative_error(got, expected) < (1e-3 if method == "fp8" else 1e-4)


def test_the_calibrated_decoder_sees_what_transformers_decoder_sees(source: Path, calibration: Path) -> None:
    """Outputs of the last layer, of a sample with a picture."""
    _, run = _prepare(source, options_for(calibration), Quiet())
    checkpoint = Checkpoint.open(source)
    (hidden,) = embed_samples(checkpoint, run.samples[:1], run.prompts.prompt.image_token_id, CPU)
    decoder = Decoder(checkpoint.config.text, CPU)
    for index in range(checkpoint.config.text.num_hidden_layers):
        (hidden,) = decoder.run(decoder.layer(checkpoint, index), [hidden])

    oracle = Oracle(source)
    pixel_values, sizes = oracle.pixel_values(photo(120, 80))
    with torch.no_grad():
        states = oracle.model(
            input_ids=torch.tensor([list(run.samples[0].ids)]),
            pixel_values=pixel_values,
            image_sizes=sizes,
            output_hidden_states=True,
        ).hidden_states
    normed = oracle.model.model.language_model.norm(torch.from_numpy(hidden)).detach().numpy()
    assert relative_error(normed, states[-1][0].numpy()) < 1e-4
