"""Bundles, engines, libraries and devices that TensorRT cannot run, each refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import RTX_VERSION, add_engines
from tests.runtime.backends.tensorrt.conftest import MAX_CONTEXT, refused, shorter
from varco_runtime import Varco
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.bundle.opening import read_manifest, write_manifest
from varco_runtime.errors import BackendError, BundleError, MissingExtraError, UsageError


def test_a_bundle_without_engines_is_refused(changed: Path, device: Device) -> None:
    write_manifest(changed, dataclasses.replace(read_manifest(changed), engines=()))
    refused(changed, device, BackendError, r"holds no engines\. Build them with: varco engines BUNDLE")


def test_a_bundle_without_an_engine_for_this_device_is_refused(bundle: Path, device: Device) -> None:
    device.capability = (8, 6)
    refused(
        bundle,
        device,
        BackendError,
        r"built for sm89, this GPU is sm86 \(Recording GPU\)\..*varco engines BUNDLE --sm 86",
    )


def test_engines_of_another_version_are_refused(changed: Path, device: Device) -> None:
    add_engines(changed, builder_version="1.6.0.1")
    refused(changed, device, BackendError, rf"built with TensorRT for RTX 1\.6\.0\.1, {RTX_VERSION} is installed")


def test_a_missing_component_is_refused(changed: Path, device: Device) -> None:
    manifest = read_manifest(changed)
    engines = tuple(engine for engine in manifest.engines if engine.component != "packing")
    write_manifest(changed, dataclasses.replace(manifest, engines=engines))
    refused(changed, device, BackendError, "holds no packing engine of TensorRT for RTX")


def test_a_tampered_engine_is_refused_before_anything_is_loaded(changed: Path, device: Device) -> None:
    engine = changed / "engines/sm89/decoder.engine"
    content = bytearray(engine.read_bytes())
    content[10] ^= 1
    engine.write_bytes(content)
    refused(changed, device, BundleError, r"decoder\.engine has been altered")
    assert not device.asked


def test_a_context_beyond_the_engines_is_refused(changed: Path, device: Device, tiny_checkpoint: Path) -> None:
    manifest = read_manifest(changed)
    write_manifest(changed, dataclasses.replace(manifest, max_context=2048))
    message = r"max_context=2000 is out of range: engines/.*\.engine was built for 1024 positions.*--max-context 2000"
    refused(changed, device, UsageError, message, max_context=2000)
    assert Varco.load(changed).backend.max_context == MAX_CONTEXT


def test_a_missing_tensorrt_is_one_clear_line(bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(bundle, device, BackendError, r"TensorRT for RTX, which built .* is not installed\. .*tensorrt-rtx")


def test_a_tensorrt_whose_libraries_are_missing_says_so(
    bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(
        "raise ImportError('libtensorrt_rtx.so.1: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    refused(bundle, device, BackendError, r"cannot be loaded \(libtensorrt_rtx\.so\.1: cannot open")


def test_a_missing_cuda_python_names_the_extra(bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    refused(bundle, device, MissingExtraError, r"extra 'tensorrt'.*pip install .*'cuda-python>=")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"driver_version": 0}, r"no NVIDIA driver was found.*--device cpu"),
        ({"driver_version": 12080}, r"the NVIDIA driver supports CUDA 12\.8, cuda-python needs 13\.4"),
        ({"num_devices": 0}, r"CUDA found no device \(cudaErrorNoDevice\)"),
    ],
)
def test_a_missing_device_or_driver_is_one_clear_line(
    bundle: Path, device: Device, facts: dict[str, int], message: str
) -> None:
    for name, value in facts.items():
        setattr(device, name, value)
    refused(bundle, device, BackendError, message)


def test_too_little_memory_is_refused_before_an_engine_is_loaded(bundle: Path, device: Device) -> None:
    device.memory_bytes = 600_000
    message = r"needs \d+ MB of GPU memory, 1 MB are free on Recording GPU\..*--max-context \(1 MB of it\).*--max-tiles"
    refused(bundle, device, BackendError, message)
    assert not [event for event in device.asked if event[0] == "Run"]


@pytest.mark.parametrize("is_integrated", [True, False])
def test_memory_that_others_take_meanwhile_is_one_clear_line(
    bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch, is_integrated: bool
) -> None:
    device.is_integrated = is_integrated
    device.memory_bytes = 600_000
    if not is_integrated:  # such a device does not know what is free before it asks
        monkeypatch.setattr("varco_runtime.backends.tensorrt.memory.DeviceMemory.check", lambda self: None)
    refused(bundle, device, BackendError, r"needs \d+ MB of GPU memory, 1 MB are free")


def test_an_engine_that_the_library_refuses_is_one_clear_line(changed: Path, device: Device) -> None:
    add_engines(changed)
    manifest = read_manifest(changed)
    name = "engines/sm89/vision.engine"
    (changed / name).write_bytes(b"no engine")
    files = manifest.files | {name: FileFacts(9, hashlib.sha256(b"no engine").hexdigest())}
    write_manifest(changed, dataclasses.replace(manifest, files=files))
    refused(
        changed,
        device,
        BackendError,
        r"could not load .*vision\.engine: Serialization assertion magicTag failed\. Build",
    )


def swap_graph(component: str, other: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        if document["component"] == component:
            document["graph"] = document["graph"].replace(component, other)
            document["profiles"] = [{"tiles": [1, 1, 64], "tokens": [1, 1, 4096]}]

    return change


def with_key(component: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        if document["component"] == component:
            document[key] = value

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (swap_graph("vision", "packing"), r"vision\.engine has input image_features .*, expected no image_features"),
        (
            with_key("decoder", "on_host", ["write_indices"]),
            r"input write_indices int64 on the host \[1\], expected input",
        ),
        (
            with_key("decoder", "aliases", {"present.1.key": "past.0.key"}),
            r"updates past\.0\.key in place with present\.1\.key",
        ),
        (
            shorter("decoder", 0, "sequence"),
            r"decoder\.engine takes at most 1 along axis 1 of inputs_embeds in profile 0, expected 32",
        ),
        (
            shorter("decoder", 1, "total"),
            r"decoder\.engine takes at most 1 along axis 3 of attention_mask in profile 1",
        ),
        (shorter("vision", 0, "tiles"), r"vision\.engine takes at most 1 along axis 0 of pixel_values"),
        (shorter("packing", 0, "tiles"), r"packing\.engine takes at most 1 along axis 0 of image_features"),
    ],
)
def test_an_engine_that_is_not_what_the_bundle_needs_is_refused(
    changed: Path, device: Device, changes: Callable[[dict[str, Any]], None], message: str
) -> None:
    add_engines(changed, changes)
    refused(changed, device, BundleError, message)


def test_a_decoder_of_another_context_is_refused(changed: Path, device: Device) -> None:
    add_engines(changed, max_context=512)
    refused(
        changed, device, BundleError, r"decoder\.engine has input past\.0\.key fp32 \[1, 2, 1024, 16\], expected .*512"
    )
