"""One TensorRT engine from one graph: parse, check that nothing was dropped, build for a target, stream to a file.

TensorRT and TensorRT for RTX are one interface under two names. TensorRT builds for the GPU that is there, and times
kernels on it; TensorRT for RTX builds for a named compute capability, with or without a GPU, and picks kernels when the
engine is loaded. The parser maps a graph's weights instead of reading them, and the engine is written in pieces of
64 MiB, so that a build holds one copy of the weights besides the mapped ones, which the system may drop.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varco_export.engines.callbacks import build_monitor, engine_writer
from varco_export.engines.checks import check_types, count_layers, layers_of
from varco_export.engines.log import BuildLog, open_log, process_logger, short_reason
from varco_export.engines.timing_cache import load_timings, save_timings
from varco_export.progress import OnStep
from varco_export.writing.hashed_file import HashedFile
from varco_runtime.backends.tensorrt.library import PRODUCTS, find_module
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.bundle.tensor import Tensor
from varco_runtime.errors import BackendError, ExportError, UsageError
from varco_runtime.extras import install_command
from varco_runtime.system.memory import PeakMemory

MIN_PYTHON = (3, 11)
MIN_VERSIONS = {"tensorrt_rtx": (1, 7), "tensorrt": (10, 15)}
"""TensorRT 10.15 brought native cache updates and rotary embeddings; TensorRT for RTX is untested before 1.7."""

Lengths = Mapping[str, tuple[int, int, int]]
"""The least, usual and greatest of each length that a profile leaves open, by its name in the contract."""


@dataclass(frozen=True, slots=True)
class Built:
    """An engine on the disk, and what its build took.

    Args:
        facts: Its size and hash.
        seconds: How long the build took.
        peak_bytes: The process's own memory at its peak.
        mapped_bytes: Files that were mapped at the peak, which the system may drop.
    """

    facts: FileFacts
    seconds: float
    peak_bytes: int
    mapped_bytes: int


class Builder:
    """TensorRT or TensorRT for RTX as it is installed.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        module: The imported library.

    Raises:
        BackendError: The library is too old; the message says which release is needed.
    """

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        self.product = PRODUCTS[name]
        self.version = str(module.__version__)
        found = tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])
        if found < MIN_VERSIONS[name]:
            least = ".".join(str(part) for part in MIN_VERSIONS[name])
            raise BackendError(
                f"{self.product} {self.version} is too old, engines need native key/value cache updates: {least} or "
                f"later. {_how_to_get(name)}"
            )

    @classmethod
    def load(cls, is_target_named: bool) -> Builder:
        """Load the library that is installed.

        With both: TensorRT, or for a named target TensorRT for RTX, which alone builds for GPUs that are not there.
        """
        check_python(sys.version_info[:2])
        for name in PRODUCTS if is_target_named else reversed(PRODUCTS):
            module, reason = find_module(name)
            if module is not None:
                return cls(name, module)
            if reason:
                raise BackendError(f"{PRODUCTS[name]} cannot be loaded ({reason}). {_how_to_get(name)}")
        raise BackendError(
            "Building engines needs TensorRT for RTX or, for a Jetson or a data-centre GPU, TensorRT: neither is "
            f"installed. {_how_to_get('tensorrt_rtx')}"
        )

    def targets(self) -> list[int]:
        """Return the compute capabilities (times ten) that can be named."""
        names = getattr(self.module, "ComputeCapability", None)
        return sorted(int(name[2:]) for name in dir(names) if re.fullmatch(r"SM\d+", name))

    def check_target(self, sm: int, is_named: bool) -> None:
        """Raise `UsageError` for a target that this library does not build for."""
        if self.name == "tensorrt":
            if is_named:
                raise UsageError(
                    f"--sm {sm} needs TensorRT for RTX, which is not installed: TensorRT builds for the GPU that is "
                    f"there. Leave --sm out, or: {install_command('tensorrt')}"
                )
            return
        if sm not in self.targets():
            known = ", ".join(str(target) for target in self.targets())
            raise UsageError(
                f"{self.product} {self.version} does not build for SM {sm}. Expected one of: {known}. "
                "For other GPUs use TensorRT on the machine that holds one."
            )

    def check(self, graph: Path, tensors: Mapping[str, Tensor], sm: int, log: Path) -> Counter[str]:
        """Parse a graph and return its layers by kind.

        Args:
            graph: The ONNX file.
            tensors: Its inputs and outputs, as the runtime will bind them.
            sm: The compute capability to check for, times ten.
            log: The file at whose end everything stands that TensorRT says.

        Raises:
            ExportError: The parser fails, drops an input, or makes plugins of it.
            UsageError: The target does not compute in one of the graph's types.
        """
        with open_log(self.module, log, graph.name) as said:
            network, _ = self._parse(graph, tensors, said)
            check_types(self.module, network, graph.name, sm)
            return count_layers(network)

    def build(
        self,
        graph: Path,
        tensors: Mapping[str, Tensor],
        profiles: list[Lengths],
        sm: int,
        target: Path,
        log: Path,
        on_step: OnStep,
    ) -> Built:
        """Build the engine of a graph that has been checked.

        Args:
            graph: The ONNX file.
            tensors: Its inputs and outputs, as the runtime will bind them.
            profiles: The lengths that each way of running it may have.
            sm: The compute capability to build for, times ten.
            target: The engine's file, made here.
            log: The file at whose end everything stands that TensorRT says.
            on_step: Called with a phase of the build, its finished steps and all its steps.

        Returns:
            The size and hash of the engine, and what the build took.

        Raises:
            ExportError: The build fails or drops something, or the disk refuses.
        """
        started = time.perf_counter()
        with PeakMemory() as memory, open_log(self.module, log, graph.name) as said, HashedFile(target) as engine:
            network, parsed = self._parse(graph, tensors, said)
            self._serialize(network, parsed, tensors, profiles, sm, engine, said, on_step)
        return Built(engine.facts(), time.perf_counter() - started, memory.own_bytes, memory.mapped_bytes)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _parse(self, graph: Path, tensors: Mapping[str, Tensor], log: BuildLog) -> tuple[Any, Any]:
        """Return the network, checked so that nothing is lost, and what must outlive it."""
        module = self.module
        builder = module.Builder(process_logger(module))
        strongly_typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
        parser = module.OnnxParser(network, process_logger(module))
        if not parser.parse_from_file(str(graph)):
            reasons = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            raise ExportError(
                f"{self.product} {self.version} cannot parse {graph.name}: {short_reason(reasons)}. {log.see}"
            )
        self._check_network(network, graph.name, tensors, log)
        return network, (builder, parser)

    def _check_network(self, network: Any, name: str, tensors: Mapping[str, Tensor], log: BuildLog) -> None:
        """Check that what the runtime will bind is there and used, and caches are updated natively, without plugins."""
        inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
        outputs = {network.get_output(index).name for index in range(network.num_outputs)}
        expected = {key for key, tensor in tensors.items() if tensor.is_input}
        if inputs.keys() != expected or outputs != tensors.keys() - expected:
            odd = sorted((inputs.keys() | outputs) ^ tensors.keys())
            raise ExportError(f"{name} lost or gained {', '.join(odd)} when it was parsed. {log.see}")
        layers = layers_of(network)
        used = {
            layer.get_input(index).name
            for layer in layers
            for index in range(layer.num_inputs)
            if layer.get_input(index)
        }
        if unused := sorted(inputs.keys() - used):
            raise ExportError(f"{name}: the parser dropped the input {unused[0]}, no layer reads it. {log.see}")
        kinds = count_layers(network)
        num_caches = sum(key.startswith("past.") for key in inputs)
        num_updates = sum(count for kind, count in kinds.items() if kind.replace("_", "") == "KVCACHEUPDATE")
        if num_updates != num_caches:
            raise ExportError(
                f"{name} has {num_caches} caches and {num_updates} native updates of them in {self.product} "
                f"{self.version}. {_how_to_get(self.name)}"
            )
        if plugins := [kind for kind in kinds if kind.startswith("PLUGIN")]:
            raise ExportError(f"{name} was parsed into {', '.join(plugins)} layers, expected none. {log.see}")
        log.check()
        # A shorter context than the graph's makes shorter caches, and an engine has one row of the decoder's batch.
        for key, tensor in tensors.items():
            if tensor.is_input:
                inputs[key].shape = tuple(length if isinstance(length, int) else -1 for length in tensor.shape)

    def _serialize(
        self,
        network: Any,
        parsed: Any,
        tensors: Mapping[str, Tensor],
        profiles: list[Lengths],
        sm: int,
        engine: HashedFile,
        log: BuildLog,
        on_step: OnStep,
    ) -> None:
        module, builder = self.module, parsed[0]
        config = builder.create_builder_config()
        if self.name == "tensorrt_rtx":
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(module.ComputeCapability, f"SM{sm}"), 0)
            # Contexts get their memory from the runtime anyway, and without this flag a pass may allocate some of its
            # own while it is captured into a CUDA graph, which cannot be (release notes of TensorRT for RTX 1.2).
            config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
        for lengths in profiles:
            _add_profile(builder, config, tensors, lengths)
        timings = load_timings(self.name, self.version, config, sm)
        cancelled = threading.Event()
        monitor = build_monitor(module, on_step, cancelled)
        if hasattr(config, "progress_monitor"):
            config.progress_monitor = monitor
        writer = engine_writer(module, engine)
        done = _run(lambda: _build_to(builder, network, config, writer), cancelled)
        if writer.error is not None:
            raise writer.error
        if not done:
            raise ExportError(
                f"{self.product} {self.version} could not build {engine.path.name}: {log.reason}. {log.see}"
            )
        log.check()
        save_timings(timings, config)


def _how_to_get(builder: str) -> str:
    if builder == "tensorrt_rtx":
        return f"Install it with: {install_command('tensorrt', upgrade=True)}"
    return "Update it as the README says (JetPack and NVIDIA's containers bring it)."


def check_python(version: tuple[int, ...]) -> None:
    """Raise `BackendError` for a Python that is too old."""
    if version < MIN_PYTHON:
        raise BackendError(
            f"Python {'.'.join(map(str, version))} is too old, expected {'.'.join(map(str, MIN_PYTHON))} or later. "
            "Install a newer one beside it, with the TensorRT bindings for it."
        )


def _add_profile(builder: Any, config: Any, tensors: Mapping[str, Tensor], lengths: Lengths) -> None:
    profile = builder.create_optimization_profile()
    for name, tensor in tensors.items():
        if tensor.is_input and not tensor.is_fixed:
            shapes = [
                tuple(length if isinstance(length, int) else lengths[length][which] for length in tensor.shape)
                for which in range(3)
            ]
            profile.set_shape(name, *shapes)
    assert config.add_optimization_profile(profile) >= 0, "Bug: TensorRT refused a profile"


def _build_to(builder: Any, network: Any, config: Any, writer: Any) -> bool:
    """Build and write in pieces; older libraries give the whole engine at once."""
    if hasattr(builder, "build_serialized_network_to_stream"):
        return bool(builder.build_serialized_network_to_stream(network, config, writer))
    engine = builder.build_serialized_network(network, config)
    return engine is not None and writer.write(memoryview(engine)) == engine.nbytes


def _run(build: Callable[[], bool], cancelled: threading.Event) -> bool:
    """Run a build in a thread of its own, so that the interrupt key reaches this one and ends it in order."""
    outcome: list[bool | BaseException] = []

    def work() -> None:
        try:
            outcome.append(build())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="tensorrt-build")
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    except BaseException:
        cancelled.set()
        thread.join()
        raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result
