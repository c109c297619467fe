"""A network of a bundle for the CPU, read and compiled by OpenVINO."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varco_runtime.backends.openvino.attention import PagedAttention
from varco_runtime.backends.openvino.integer_product import IntegerProducts
from varco_runtime.backends.openvino.pages import PageLayout, Pages
from varco_runtime.backends.openvino.row_product import INPUT_GROUP, RowProducts, has_row_products
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.bundle.graph_contract import graph_contract
from varco_runtime.bundle.opening import Bundle
from varco_runtime.bundle.tensor import Tensor
from varco_runtime.errors import BackendError, BrokenExtraError, BundleError, first_line
from varco_runtime.system.libraries import needs_extra

_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i32": "int32", "i64": "int64"}
"""Formats of inputs and outputs as OpenVINO spells them."""


def import_openvino(what: str) -> Any:
    """Return the module openvino.

    Args:
        what: The beginning of the message where that fails: `Running a bundle`.

    Raises:
        MissingExtraError: It is not installed.
        BrokenExtraError: It is, and cannot be imported.
    """
    with needs_extra(what, "openvino"):
        module = importlib.import_module("openvino")
        importlib.import_module("openvino.frontend.onnx")
    if not hasattr(module, "Core"):  # an uninstallation that left files behind
        raise BrokenExtraError(what, "openvino", "openvino", "parts of it are missing")
    return module


def available_devices(openvino: Any) -> list[str]:
    """Return the devices that OpenVINO finds here: `CPU`, `GPU.0`."""
    return [str(name) for name in openvino.Core().available_devices]


class Networks:
    """Maker of the networks of one bundle on one device.

    Args:
        bundle: A checked bundle for the CPU.
        settings: How to compute.
        threads: Processor threads.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: The device is not there.
    """

    def __init__(self, bundle: Bundle, settings: OpenVinoSettings, threads: int) -> None:
        self._openvino: Any = import_openvino("Running a bundle on OpenVINO")
        self._bundle = bundle
        self._settings = settings
        self._threads = threads
        self._products = IntegerProducts()
        device = settings.chosen_device
        found = available_devices(self._openvino)
        if not any(name == device or name.startswith(f"{device}.") for name in found):
            raise BackendError(
                f"OpenVINO finds no device {device} here, only: {', '.join(found) or 'none'}. Install the device's "
                "driver, or load with openvino_device='CPU'."
            )

    @property
    def version(self) -> str:
        """Return OpenVINO's version: `2026.4.1`."""
        return str(self._openvino.__version__).partition("-")[0]

    def plain(self, name: str) -> Any:
        """Return the compiled network `name`, which keeps nothing between two runs."""
        with self._named(name):
            core, rows = self._openvino.Core(), RowProducts()
            has_rows = has_row_products(self._bundle.manifest.components[name].precision)
            for extension in rows.extensions() if has_rows else ():
                core.add_extension(extension)
            network = core.read_model(self._path(name))
            self._check(network, name)
            rows.leave_out_scales()
            properties = self._settings.properties(self._threads, INPUT_GROUP if has_rows else None)
            return core.compile_model(network, self._settings.chosen_device, properties)

    def decoder(self) -> Any:
        """Return the compiled decoder, whose caches are pages that a request is to be given."""
        attention = PagedAttention(self._bundle.manifest.model)
        with self._named("decoder"):
            self._core = self._openvino.Core()
            for translator in (attention, self._products):
                self._core.add_extension(translator.extension())
            decoder = self._core.read_model(self._path("decoder"))
            self._check(decoder, "decoder")
            attention.take_pages(decoder)
            self._products.take_apart()
            properties = self._settings.decoder_properties(self._threads, self._products.rounded_inputs)
            return self._core.compile_model(decoder, self._settings.chosen_device, properties)

    def request(self, decoder: Any, layout: PageLayout, num_slots: int, max_context: int) -> tuple[Any, Pages]:
        """Return a request of a compiled decoder, and its pages for so many sequences of so many positions at most.

        Raises:
            BackendError: The device has no memory for them.
        """
        device = self._settings.chosen_device
        with self._named("decoder"):
            context = None if device == "CPU" else self._core.get_default_context(device)
            pages = Pages(self._openvino, layout, context, num_slots, max_context)
            request = decoder.create_infer_request()
            pages.bind(request)
            return request, pages

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Say which network OpenVINO could not load, in one line."""
        try:
            yield
        except BundleError:
            raise
        except Exception as error:  # openvino raises RuntimeError and its own
            raise BackendError(
                f"OpenVINO could not load {self._path(name)}: {reason_of(error)}. Run: varco doctor"
            ) from None

    def _path(self, name: str) -> Path:
        return self._bundle.path(self._bundle.manifest.components[name].file)

    def _check(self, network: Any, name: str) -> None:
        """Compare a network with what the manifest says of it, whose numbers size the buffers."""
        found = {
            name: (port, is_input)
            for ports, is_input in ((network.inputs, True), (network.outputs, False))
            for port in ports
            for name in port.get_names()
        }
        for tensor, expected in graph_contract(self._bundle.manifest)[name].items():
            port, is_input = found.get(tensor, (None, False))
            if port is None or is_input != expected.is_input or not _fits(port, expected):
                got = "none" if port is None else f"{port.get_element_type()} {port.get_partial_shape()}"
                raise BundleError(
                    f"{self._path(name)} has for {tensor} {got}, expected {expected.dtype} {list(expected.shape)} by "
                    "the manifest. Export the bundle again."
                )


def _fits(port: Any, expected: Tensor) -> bool:
    """Return whether type and shape agree; dimensions that have names are free."""
    shape = port.get_partial_shape()
    if _TYPES.get(port.get_element_type().get_type_name()) != expected.dtype or len(shape) != len(expected.shape):
        return False
    return all(
        isinstance(want, str) or got.is_dynamic or got.get_length() == want
        for got, want in zip(shape, expected.shape, strict=True)
    )


def reason_of(error: Exception) -> str:
    """Return what OpenVINO says in an error. Its first lines name places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API", "While "))]
    return (telling or [first_line(error)])[0].rstrip(".")
