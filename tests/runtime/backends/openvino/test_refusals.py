"""What OpenVINO cannot run, refused in one line, and what it must not cost where nobody asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.makers.inputs import close, text_inputs
from tests.makers.refusals import assert_refused
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, StopsRounding
from varco_runtime.backends.openvino.network import reason_of
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.errors import BackendError, BundleError, MissingExtraError, UsageError


def test_a_device_that_is_not_there_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_runtime.backends.openvino.network.available_devices", lambda _: ["CPU", "NPU"])
    message = r"no device GPU here, only: CPU, NPU\. Install the device's driver, or load with openvino_device='CPU'"
    assert_refused(tiny_bundle, BackendError, message, provider="openvino", openvino_device="GPU")


def test_one_of_several_gpus_is_enough(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_runtime.backends.openvino.network.available_devices", lambda _: ["GPU.0", "GPU.1"])
    with pytest.raises(BackendError, match=r"OpenVINO could not load .*vision\.onnx"):
        Varco.load(tiny_bundle, "openvino", openvino_device="GPU")


@pytest.mark.parametrize(
    ("option", "value"), [("openvino_device", "TPU"), ("precision", "fp16"), ("kv_cache_precision", "f16")]
)
def test_an_unknown_value_of_an_option_is_refused(tiny_bundle: Path, option: str, value: str) -> None:
    match = rf"{option}='{value}' is unknown\. Expected one of: auto, "
    assert_refused(tiny_bundle, UsageError, match, provider="openvino", **{option: value})


def test_a_cache_wider_than_what_is_computed_in_is_refused(tiny_bundle: Path) -> None:
    match = r"kv_cache_precision='fp32' goes with precision='fp32', got 'auto'"
    assert_refused(tiny_bundle, UsageError, match, provider="openvino", kv_cache_precision="fp32")


def test_openvinos_options_are_refused_for_another_provider(tiny_bundle: Path) -> None:
    assert_refused(tiny_bundle, UsageError, "are for the provider openvino, got 'auto'", precision="fp32")


def test_a_graph_of_another_model_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from varco_runtime.backends.openvino import network
    from varco_runtime.bundle.tensor import Tensor

    contract = network.graph_contract

    def another(manifest: Any) -> Any:
        tensors = contract(manifest)
        tensors["decoder"]["logits"] = Tensor("fp32", (1, "num_logits", 7), False)
        return tensors

    monkeypatch.setattr(network, "graph_contract", another)
    assert_refused(tiny_bundle, BundleError, r"decoder.onnx has for logits .*expected fp32", provider="openvino")


def test_a_missing_openvino_is_one_line_with_the_command_that_brings_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert_refused(tiny_bundle, MissingExtraError, "needs the extra 'openvino'.*openvino", provider="openvino")


def test_what_openvino_says_of_an_error_is_found_behind_its_places() -> None:
    text = "Exception from src/inference/src/cpp/core.cpp:84:\nCheck 'false' failed at src/x.cpp:151:\nNo memory.\n\n"
    assert reason_of(RuntimeError(text)) == "No memory"
    assert reason_of(RuntimeError("Exception from src/a.cpp:1:")) == "Exception from src/a.cpp:1:"
    assert reason_of(RuntimeError("")) == "RuntimeError"


def test_exact_means_exact_numbers_and_cache() -> None:
    told = OpenVinoSettings(precision="fp32").decoder_properties(3)
    assert told["INFERENCE_PRECISION_HINT"] == told["KV_CACHE_PRECISION"] == "f32"
    assert (told["INFERENCE_NUM_THREADS"], told["DYNAMIC_QUANTIZATION_GROUP_SIZE"]) == (3, "0")
    assert "INFERENCE_NUM_THREADS" not in OpenVinoSettings("GPU").properties(3)


def test_the_runtime_imports_no_openvino() -> None:
    code = "import sys, varco_runtime, varco_runtime.varco, varco_cli.main; assert 'openvino' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is lost on the way ------------------------------------------------------------------------------------------


def test_a_failed_run_leaves_the_cache_as_it_was(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, openvino: Any
) -> None:
    varco = Varco.load(tiny_bundle, "openvino", threads=1, precision="fp32")
    inputs = text_inputs(varco, 60)
    want = varco.backend.prefill(inputs, 0)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise RuntimeError("No memory.")

        patch.setattr(openvino.InferRequest, "infer", fail)
        with pytest.raises(BackendError, match="running the decoder: No memory"):
            varco.backend.decode_step(1, 60)
    assert close(varco.backend.prefill(inputs, 50), want)


def test_a_failed_second_compilation_leaves_the_model_as_it_was(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    varco = Varco.load(tiny_bundle, "openvino", threads=1, kv_cache_precision="u8")
    assert isinstance(varco.backend, StopsRounding)
    inputs, before = text_inputs(varco, 20), varco.backend.description
    want = varco.backend.prefill(inputs, 0)
    chosen = OpenVinoSettings.decoder_properties

    def fail_exactly(settings: OpenVinoSettings, *arguments: Any) -> Any:
        if settings.precision == "fp32":
            raise RuntimeError("No memory.")
        return chosen(settings, *arguments)

    monkeypatch.setattr(OpenVinoSettings, "decoder_properties", fail_exactly)
    with pytest.raises(BackendError, match=r"could not load .*decoder\.onnx: No memory"):
        varco.backend.stop_rounding()
    assert varco.backend.description == before
    assert np.array_equal(varco.backend.prefill(inputs, 0), want)


def test_memory_that_pages_do_not_get_is_one_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 8.00 GiB")

    monkeypatch.setattr("varco_runtime.backends.openvino.pages._zeros", fail)
    assert_refused(tiny_bundle, BackendError, "Unable to allocate 8.00 GiB. Run: varco doctor", provider="openvino")


def test_a_prompt_behind_media_needs_no_rows_of_theirs(tiny_bundle: Path) -> None:
    """Rows of media that are in the cache need not be handed over (`PromptInputs.media_rows`)."""
    varco = Varco.load(tiny_bundle, "openvino", threads=1, precision="fp32")
    backend, image_id = varco.backend, varco.bundle.manifest.prompt.image_token_id
    width = varco.bundle.manifest.model.hidden_size
    ids = text_inputs(varco, 40).ids
    ids[3] = image_id
    rows = np.full(40, -1)
    rows[3] = 0
    tokens = np.random.default_rng(0).standard_normal((1, width)).astype(np.float32)
    want = backend.prefill(PromptInputs(ids, image_id, tokens, rows), 0)
    got = backend.prefill(PromptInputs(ids, image_id, None, np.full(40, -1)), 5)
    assert close(got, want)


def test_an_int8_cache_is_refused_by_name(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from varco_runtime.bundle.manifest import Manifest

    monkeypatch.setattr(Manifest, "kv_format", "int8")
    assert_refused(tiny_bundle, BackendError, "this bundle's is in int8", provider="openvino")
