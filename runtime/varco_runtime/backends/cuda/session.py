"""Networks and buffers on one device through onnxruntime alone, without cuda-python.

A buffer is allocated once and bound by address, with the shape that a run needs. bf16, which numpy lacks, is stored as
its 16 bits and bound as what it is. The device is a GPU (`cuda`) or, for bundles whose operators allow it, the host
(`cpu`), where the same code runs without graphs.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from varco_runtime.backends.cuda.driver import clear_bytes, move_bytes
from varco_runtime.bundle.graph_contract import SILENT
from varco_runtime.dtypes import ITEM_BYTES, ONNX_TYPES, STORAGE, Array
from varco_runtime.errors import BackendError, ShortageError, first_line

GRAPH_KEY = "gpu_graph_id"
NO_GRAPH = "-1"
"""The provider's word for a run that is neither captured nor replayed."""
_FAULT = re.compile(r"(?:CUDA|CUBLAS) failure \d+: [^;\n]+")
_LONGEST_FAULT = 200
_SHORTAGE_WORDS = ("out of memory", "failed to allocate", "alloc_failed", "memoryallocation", "bfc_arena")


class Arena:
    """What onnxruntime's arena for buffers holds of the GPU: each was a piece of memory, kept for the process's next.

    A buffer finds its place in a piece that is large enough; pieces are not joined.
    """

    def __init__(self) -> None:
        self._free: list[int] = []

    def spare_bytes(self, sizes: Iterable[int]) -> int:
        """Return how many bytes of buffers of these sizes find their place in what is held."""
        free = sorted(self._free)
        found = 0
        for size in sorted(sizes, reverse=True):
            at = bisect.bisect_left(free, size)
            if at < len(free):
                del free[at]
                found += size
        return found

    def count(self, value: Any, num_bytes: int) -> None:
        """Count `value`, which occupies so much as long as it lives."""
        piece = min((size for size in self._free if size >= num_bytes), default=None)
        if piece is not None:
            self._free.remove(piece)
        weakref.finalize(value, self._free.append, piece or num_bytes)


ARENA = Arena()
"""There is one in a process."""


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Memory of the device for values of one type; `shape` is the most it holds."""

    value: Any
    dtype: str
    shape: tuple[int, ...]
    is_host: bool

    def set(self, array: Array) -> None:
        """Fill all of it from the host. The address stays."""
        self.value.update_inplace(np.ascontiguousarray(array, dtype=STORAGE[self.dtype]).reshape(self.shape))

    def read(self) -> Array:
        """Return a copy of all of it on the host, as it is stored."""
        array: Array = self.value.numpy()
        return array.copy() if self.is_host else array


class Device:
    """Where buffers and sessions live. `shortage` makes the error for a device that ran out of memory."""

    def __init__(self, ort: Any, place: str, threads: int, shortage: Callable[[str], ShortageError]) -> None:
        self.ort = ort
        self.place = place
        self._threads = threads
        self._shortage = shortage

    def buffer(self, dtype: str, shape: tuple[int, ...], zeros: Array | None = None) -> Buffer:
        """Allocate memory full of zeros. `zeros` spares making them again for buffers of one shape."""
        array: Array = np.zeros(shape, STORAGE[dtype]) if zeros is None or self.place == "cpu" else zeros
        try:
            if self.place == "cpu":  # the array itself, whose pages cost nothing before they are used
                value = self.ort.OrtValue.ortvalue_from_numpy(array)
            else:
                value = self.ort.OrtValue.ortvalue_from_shape_and_type(
                    list(shape), np.dtype(STORAGE[dtype]).type, self.place, 0
                )
                value.update_inplace(array)
                ARENA.count(value, array.nbytes)
        except Exception as error:  # onnxruntime raises its own types, which share no base
            raise self.failure("the allocation of a buffer", error) from None
        return Buffer(value, dtype, shape, self.place == "cpu")

    def upload(self, array: Array) -> Any:
        """Return a value on the device with what the array holds."""
        try:
            return self.ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.place, 0)
        except Exception as error:
            raise self.failure("a copy to the device", error) from None

    def move(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Copy pieces of the device's memory, each (to, from, bytes), one after the other, and wait for all of them.

        Raises `BackendError`.
        """
        if self.place == "cuda":
            move_bytes(pieces)
            return
        for target, source, num_bytes in pieces:
            ctypes.memmove(target, source, num_bytes)

    def clear(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Fill pieces of the device's memory with zeros, each (where, bytes). Raises `BackendError`."""
        if self.place == "cuda":
            clear_bytes(pieces)
            return
        for address, num_bytes in pieces:
            ctypes.memset(address, 0, num_bytes)

    def graph_options(self, graph_id: int) -> Any | None:
        """Return the options of runs that are captured as a CUDA graph and replayed; None where there are no graphs."""
        if self.place != "cuda":
            return None
        options = self.ort.RunOptions()
        options.add_run_config_entry(GRAPH_KEY, str(graph_id))
        return options

    def session(self, path: Path, provider: dict[str, str], entries: dict[str, str]) -> Any:
        """Open the graph at `path`, with options for the CUDA provider and for the session.

        What fails is raised. By default onnxruntime prints it and goes on with the CPU, here and in every run.
        """
        options = self.ort.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = 1 if self.place == "cuda" else self._threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        for key, text in entries.items():
            options.add_session_config_entry(key, text)
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.place == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", provider))
        # Folding a bias into a product of integers costs that product its fused kernel.
        disabled = {"MatMulNBitsFusion"} if self.place == "cuda" else set()
        try:
            session = self.ort.InferenceSession(
                str(path), options, providers=providers, enable_fallback=0, disabled_optimizers=disabled
            )
        except Exception as error:
            if _is_shortage(error):
                raise self._shortage(f"the loading of {path.name}") from None
            raise BackendError(f"onnxruntime could not load {path}: {_fault(error)}. Run: varco doctor") from None
        return session

    def failure(self, what: str, error: Exception) -> BackendError:
        """Return the error of a run or copy in one line."""
        if _is_shortage(error):
            return self._shortage(what)
        return BackendError(f"onnxruntime failed during {what}: {_fault(error)}. Start again; run: varco doctor")


class Network:
    """One session, and bindings for it."""

    def __init__(self, device: Device, name: str, session: Any) -> None:
        self._device = device
        self._name = name
        self._session = session
        self._plain = device.ort.RunOptions()
        if device.place == "cuda":
            self._plain.add_run_config_entry(GRAPH_KEY, NO_GRAPH)

    def binding(self) -> Binding:
        return Binding(self._device.place, self._session.io_binding())

    def run(self, binding: Binding, options: Any | None = None) -> None:
        """Run and wait. Without `options` neither captured nor replayed. Raises `BackendError`."""
        try:
            self._session.run_with_iobinding(binding.io, self._plain if options is None else options)
        except Exception as error:
            raise self._device.failure(f"a run of the {self._name}", error) from None


class Binding:
    """What a run reads and writes."""

    def __init__(self, place: str, io: Any) -> None:
        self.io = io
        self._place = place
        self._kept: dict[str, Any] = {}

    def value(self, name: str, value: Any) -> None:
        """Bind an input that is a whole value, which is kept as long as it is bound."""
        self.io.bind_ortvalue_input(name, value)
        self._kept[name] = value

    def value_as(self, name: str, value: Any, dtype: str) -> None:
        """Bind an input that is a whole value of stored bits, of a type that numpy may lack."""
        self.io.bind_input(name, self._place, 0, ONNX_TYPES[dtype], value.shape(), value.data_ptr())
        self._kept[name] = value

    def input(self, name: str, buffer: Buffer, shape: tuple[int, ...], offset: int = 0) -> None:
        """Bind an input of `shape` that begins `offset` elements into a buffer."""
        self.io.bind_input(name, self._place, 0, *_place_in(buffer, shape, offset))

    def output(self, name: str, buffer: Buffer, shape: tuple[int, ...], offset: int = 0) -> None:
        self.io.bind_output(name, self._place, 0, *_place_in(buffer, shape, offset))

    def host_output(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """Bind an output that the run copies to the host: the array holds it afterwards, as it is stored."""
        array: Array = np.empty(shape, STORAGE[dtype])
        self.io.bind_output(name, "cpu", 0, ONNX_TYPES[dtype], list(shape), array.ctypes.data)
        self._kept[name] = array
        return array


def _place_in(buffer: Buffer, shape: tuple[int, ...], offset: int) -> tuple[int, list[int], int]:
    """Return type, shape and address. What lies outside is a bug: the device would go there without a word."""
    end, size = offset + math.prod(shape), math.prod(buffer.shape)
    assert 0 <= offset <= end <= size, f"Bug: elements {offset}..{end} of a buffer of {size}"
    return ONNX_TYPES[buffer.dtype], list(shape), buffer.value.data_ptr() + offset * ITEM_BYTES[buffer.dtype]


def _fault(error: Exception) -> str:
    """Return what went wrong, out of a line with source files, signatures and the name of the machine."""
    found = _FAULT.search(str(error))
    if found:
        return found[0].strip()
    line = first_line(error)
    return line if len(line) <= _LONGEST_FAULT else f"{line[:_LONGEST_FAULT]}..."


def _is_shortage(error: Exception) -> bool:
    text = str(error).lower()
    return any(word in text for word in _SHORTAGE_WORDS)
