"""What cannot run on a GPU: one clear line each, or the CPU."""

from __future__ import annotations

import dataclasses
import gc
import sys
from pathlib import Path

import pytest
from numpy._core import _multiarray_umath

from tests.conftest import export_bundle
from tests.doubles.recording_onnxruntime import Gpu
from tests.runtime.backends.cuda.conftest import MAX_CONTEXT, refused
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.backends.cuda.library import check_capability, load_onnxruntime
from varco_runtime.backends.cuda.memory import buffer_sizes, needed_bytes, shortage, sizes_of
from varco_runtime.backends.cuda.session import ARENA
from varco_runtime.bundle.opening import Bundle, read_manifest
from varco_runtime.errors import BackendError, MissingExtraError, ShortageError


def test_a_wheel_without_cuda_is_one_clear_line(bundle: Path, gpu: Gpu) -> None:
    gpu.providers = ["CPUExecutionProvider"]
    refused(
        bundle,
        BackendError,
        r"onnxruntime 1\.31\.1 .* without CUDA, .*pip uninstall .*&& .*'onnxruntime-gpu\[",
    )


def test_a_missing_onnxruntime_names_the_extra(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(bundle, MissingExtraError, r"extra 'cuda'.*pip install 'onnxruntime-gpu\[")


def test_missing_libraries_are_named(bundle: Path, gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.missing = ["libcublasLt.so.13", "libcurand.so.10"]
    refused(
        bundle, BackendError, r"libraries of CUDA 13 are missing \(libcublasLt\.so\.13, libcurand\.so\.10\)\. .*pip"
    )
    assert capsys.readouterr().out == "", "what onnxruntime prints would be taken for an answer"


def test_missing_libraries_are_named_where_the_cpu_lacks_a_kernel(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder="bf16", max_context=64)
    gpu.missing = ["libcublas.so.13"]
    refused(folder, BackendError, r"libraries of CUDA 13 are missing \(libcublas\.so\.13\)")


def test_an_old_driver_is_one_clear_line(bundle: Path, gpu: Gpu) -> None:
    gpu.facts = dataclasses.replace(gpu.facts, cuda_version=(12, 8))
    refused(bundle, BackendError, r"driver supports CUDA 12\.8, expected 13\.0 or later\. Update the driver, or .*cpu$")


def test_an_old_gpu_keeps_the_integers_of_a_bundle(tmp_path: Path, gpu: Gpu) -> None:
    """`--decoder fp16` would be refused for packed weights, and give plain ones up for rounded ones."""
    checkpoint = make_tiny(tmp_path / "checkpoint", TinyOptions(dtype="bf16"))
    folder = export_bundle(checkpoint, tmp_path / "b", device="cuda", decoder="int4", vision="bf16", max_context=64)
    gpu.facts = dataclasses.replace(gpu.facts, capability=(7, 5))
    refused(folder, BackendError, r"a bundle in bf16 needs 8\.0 or later\. Export again with --vision fp16")


@pytest.mark.parametrize(
    ("capability", "compute", "message"),
    [
        ((7, 5), "bf16", r"compute capability 7\.5, a bundle in bf16 needs 8\.0 or later\. Export with --decoder fp16"),
        ((7, 5), "fp8", r"compute capability 7\.5, a bundle in fp8 needs 8\.0 or later\. Export with --decoder fp16"),
        ((7, 0), "fp16", r"compute capability 7\.0, a bundle in fp16 needs 7\.5 or later\. Use a newer GPU"),
        (
            (10, 0),
            "fp16",
            r"compute capability 10\.0, for which onnxruntime-gpu has no code, expected 7\.5, 8\.x, 9\.0 or",
        ),
    ],
)
def test_a_gpu_that_is_too_old_is_one_clear_line(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, capability: tuple[int, int], compute: str, message: str
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder=compute, max_context=64)
    gpu.facts = dataclasses.replace(gpu.facts, capability=capability)
    refused(folder, BackendError, message)


def test_too_little_memory_is_refused_before_anything_is_loaded(bundle: Path, gpu: Gpu, cpu: Varco) -> None:
    gpu.facts = dataclasses.replace(gpu.facts, free_bytes=400_000_000)
    message = (
        r"The model needs about 0\.\d\d GB of GPU memory, 0\.40 GB of 151\.40 GB were free on Recording GPU\..*"
        r"lower max_context \(the caches of 512 positions take 0\.00 GB\).*--decoder int4"
    )
    refused(bundle, BackendError, message)
    assert "load" not in gpu.names()


@pytest.mark.parametrize(
    ("precision", "place", "advice"),
    [
        ("fp16", "device", "with --decoder int4 --embedding host --lm-head int4"),
        ("int4 (blocks of 32, fp16 activations), head fp16", "device", "with --embedding host --lm-head int4"),
        ("int4 (blocks of 32, fp16 activations)", "host", "a smaller model"),
        ("int8 (GPTQ, groups of 128, fp16 activations), head fp16", "host", "with --lm-head int4"),
    ],
)
def test_a_shortage_names_the_options_that_are_left(
    bundle: Path, host_rows: Path, gpu: Gpu, precision: str, place: str, advice: str
) -> None:
    manifest = read_manifest(bundle if place == "device" else host_rows)
    manifest = dataclasses.replace(manifest, decoder=dataclasses.replace(manifest.decoder, precision=precision))
    assert str(shortage(manifest, sizes_of(manifest, 128), gpu.facts)).endswith(f"or export {advice}.")


def test_memory_of_a_model_that_has_gone_counts_for_the_next(bundle: Path, gpu: Gpu) -> None:
    """onnxruntime's arena keeps what buffers took, so the driver calls less free than there is."""
    backend = CudaBackend(Bundle.open(bundle))
    sizes = buffer_sizes(backend._manifest, sizes_of(backend._manifest, MAX_CONTEXT))
    before = ARENA.spare_bytes(sizes)
    gpu.sessions.clear()
    cache_bytes = MAX_CONTEXT * backend._manifest.kv_bytes_per_token
    del backend
    gc.collect()
    assert ARENA.spare_bytes(sizes) >= max(before, cache_bytes)
    assert ARENA.spare_bytes([1 << 40]) == 0, "pieces are not joined"
    needed, _ = needed_bytes(read_manifest(bundle), sizes_of(read_manifest(bundle), MAX_CONTEXT))
    gpu.facts = dataclasses.replace(gpu.facts, free_bytes=needed - cache_bytes)
    assert CudaBackend(Bundle.open(bundle)).max_context == MAX_CONTEXT


def test_the_memory_that_is_needed_follows_the_context(bundle: Path, gpu: Gpu) -> None:
    manifest = Varco.load(bundle).bundle.manifest
    small, large = (needed_bytes(manifest, sizes_of(manifest, context)) for context in (128, 512))
    assert large[1] == 4 * small[1] == 512 * manifest.kv_bytes_per_token
    assert large[0] - small[0] >= large[1] - small[1]


def test_a_shortage_says_what_was_free_and_what_is(bundle: Path, gpu: Gpu) -> None:
    def fail(call: str) -> Exception | None:
        if call != "allocate":
            return None
        gpu.facts = dataclasses.replace(gpu.facts, free_bytes=250_000_000)
        return RuntimeError("CUDA failure 2: out of memory")

    gpu.facts = dataclasses.replace(gpu.facts, free_bytes=5_000_000_000)
    gpu.fault = fail
    message = r"5\.00 GB of 151\.40 GB were free on Recording GPU before loading, 0\.25 GB are free now\. End other"
    refused(bundle, ShortageError, message)


def test_a_shortage_does_not_read_as_missing_libraries(bundle: Path, gpu: Gpu) -> None:
    gpu.missing = ["libcurand.so.10"]  # found elsewhere
    gpu.fault = lambda name: RuntimeError("Failed to allocate memory") if name == "load" else None
    refused(bundle, ShortageError, r"The GPU ran out of memory during the loading of pixels\.onnx")


@pytest.mark.parametrize(
    ("call", "during"),
    [
        ("load", "the loading of pixels.onnx"),
        ("allocate", "the allocation of a buffer"),
        ("capture", "a run of the decoder"),
    ],
)
def test_memory_that_runs_out_is_one_clear_line(bundle: Path, gpu: Gpu, call: str, during: str) -> None:
    text = "Non-zero status code\nFailed to allocate memory for requested buffer of size 304087040"
    gpu.fault = lambda name: RuntimeError(text) if name == call else None
    refused(bundle, BackendError, rf"ran out of memory during {during}: the model needs about .* max_context")


def test_auto_falls_back_to_the_cpu_and_says_why(tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, cpu: Varco) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder="fp16", max_context=256)
    gpu.providers = ["CPUExecutionProvider"]
    varco = Varco.load(folder, threads=1)
    assert varco.provider.startswith(
        "cpu, slowly (the bundle was exported for CUDA, which cannot be used: The installed"
    )
    assert varco.backend.description == "onnxruntime 1.31.1, CPU, 1 thread, a bundle made for CUDA"
    assert varco.ask(None, "Hello", max_new_tokens=4).token_ids == cpu.ask(None, "Hello", max_new_tokens=4).token_ids


def test_auto_with_a_gpu_and_no_onnxruntime_names_the_extra_for_the_gpu(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder="fp16", max_context=64)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(folder, MissingExtraError, r"extra 'cuda'.*pip install 'onnxruntime-gpu\[", provider="auto")


@pytest.mark.parametrize("decoder", ["bf16", "fp8"])
def test_auto_without_a_gpu_refuses_what_no_cpu_runs(
    tiny_checkpoint: Path, tmp_path: Path, gpu: Gpu, decoder: str
) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder=decoder, max_context=64)
    gpu.providers = ["CPUExecutionProvider"]
    message = rf"The CPU cannot run this bundle, it has no kernels for {decoder}.*, nor can the GPU: .*without CUDA, "
    refused(folder, BackendError, message, provider="auto")


@pytest.mark.parametrize(
    ("precision", "advice"),
    [
        ("int4 (blocks of 32, bf16 activations), head fp8", "--vision fp16 --lm-head fp16, which keeps the integers."),
        ("fp8 (compressed-tensors, a scale per row)", "Export the checkpoint that this one was quantised from."),
        ("bf16", "Export with --decoder fp16."),
    ],
)
def test_the_advice_for_an_old_gpu_can_be_followed(bundle: Path, gpu: Gpu, precision: str, advice: str) -> None:
    manifest = read_manifest(bundle)
    decoder = dataclasses.replace(manifest.decoder, precision=precision, compute="bf16")
    old = dataclasses.replace(gpu.facts, capability=(7, 5))
    with pytest.raises(BackendError) as caught:
        check_capability(old, dataclasses.replace(manifest, decoder=decoder))
    assert str(caught.value).endswith(advice)


def test_libraries_of_a_torch_in_another_folder_are_found(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any shared library serves; the folder is one that onnxruntime does not look into."""
    (tmp_path / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    (tmp_path / "nvidia" / "cu13" / "lib" / "libcublas.so.13").symlink_to(_multiarray_umath.__file__)
    monkeypatch.syspath_prepend(str(tmp_path))
    gpu.missing = ["/x/libcublas.so.13", "libcublas.so.13", "libcurand.so.10"]
    assert load_onnxruntime()[1] == ["libcurand.so.10"]
