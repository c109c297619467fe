"""Positions, buffers and options: what reaches the GPU, and what never may."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.doubles.recording_onnxruntime import Gpu
from tests.runtime.backends.cuda.conftest import backend_of
from varco_runtime import Varco
from varco_runtime.backends.cuda.backend import PROFILED_ROWS, CudaBackend, warm_up_rows
from varco_runtime.bundle.opening import Bundle


def test_no_token_beyond_the_vocabulary_reaches_the_device(varco: Varco) -> None:
    with pytest.raises(AssertionError, match="token ids 999999"):
        varco.backend.decode_step(999_999, 3)


def test_buffers_are_allocated_at_loading_alone_and_hold_finite_numbers(
    bundle: Path, gpu: Gpu, image: Image.Image
) -> None:
    varco = Varco.load(bundle)
    backend = backend_of(varco)
    opening = len(varco.session.memory.sequence.ids)  # what every question begins with, prefilled at loading
    beyond = [buffer.value.inner.numpy()[:, :, opening:] for buffer in backend._caches.buffers.values()]
    assert all(np.isfinite(values).all() for values in beyond), "nothing times NaN is NaN"
    gpu.asked.clear()
    varco.ask(image, "What is this?", max_new_tokens=6)
    assert "allocate" not in gpu.names()


def test_losing_the_backend_gives_its_memory_back_at_once(bundle: Path, gpu: Gpu) -> None:
    backend = CudaBackend(Bundle.open(bundle))
    cache = weakref.ref(backend._caches.buffers["0.key"].value.keep)
    gpu.sessions.clear()
    gc.disable()
    try:
        del backend
        assert cache() is None, "a cycle keeps the device's memory until it is found"
    finally:
        gc.enable()


def test_the_provider_is_asked_for_what_the_design_needs(varco: Varco, gpu: Gpu) -> None:
    decoder, vision = gpu.sessions["decoder"], gpu.sessions["vision"]
    assert decoder.provider_options["enable_cuda_graph"] == "1"
    assert {one.provider_options["enable_cudnn"] for one in gpu.sessions.values()} == {"0"}
    assert decoder.disabled_optimizers == {"MatMulNBitsFusion"}, "which would take the fused kernel from QKV"
    assert vision.provider_options["enable_cuda_graph"] == "0"
    assert decoder.options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert os.environ["ORT_ENABLE_XQA"] == "1"


@pytest.mark.parametrize(("decoder", "fused"), [("fp16", "1"), ("int4", "1"), ("fp32", "0")])
def test_the_fused_integer_kernel_is_asked_for_in_fp16(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, bundle: Path, decoder: str, fused: str
) -> None:
    folder = bundle
    if decoder != "fp32":
        folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder=decoder, max_context=64)
    Varco.load(folder)
    assert gpu.sessions["decoder"].options.get_session_config_entry("ep.cuda.fpa_intb_gemm") == fused


def test_a_setting_of_the_user_is_kept(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_ENABLE_XQA", "0")
    Varco.load(bundle)
    assert os.environ["ORT_ENABLE_XQA"] == "0"


@pytest.mark.parametrize(
    ("prefill_tokens", "rows"),
    [(4096, [4096, 2048, 1024, 512, 256, 128, 64, 32]), (3000, [3000, 2048, 1024, 512, 256, 128, 64, 32]), (16, [16])],
)
def test_runs_of_every_power_of_two_choose_kernels_at_loading(prefill_tokens: int, rows: list[int]) -> None:
    """Shorter ones are profiled when the session is made, for every product; the head's never sees these."""
    assert warm_up_rows(prefill_tokens) == rows
    assert PROFILED_ROWS == (1, 2, 3, 4, 5, 6, 7, 8, 9, 16)


def test_loading_runs_prompts_of_these_lengths(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.PREFILL_TOKENS", 100)
    CudaBackend(Bundle.open(bundle))
    lengths = [run["token_ids"][1] for run in gpu.sessions["decoder"].runs]
    assert lengths[:3] == [100, 64, 32]
