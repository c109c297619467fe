"""One TensorRT engine from one graph: parse, check that nothing was dropped, build for a target, stream to a file.

TensorRT and TensorRT for RTX are one interface under two names. TensorRT builds for the GPU that is there, and times
kernels on it; TensorRT for RTX builds for a named compute capability, with or without a GPU, and picks kernels when the
engine is loaded. The parser maps a graph's weights instead of reading them, and the engine is written in pieces of
64 MiB, so that a build holds one copy of the weights besides the mapped ones, which the system may drop.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from varco_export.output import HashedFile
from varco_runtime.contract import Tensor
from varco_runtime.engine import PRODUCTS, find_module
from varco_runtime.errors import BackendError, ExportError, UsageError
from varco_runtime.manifest import FileFacts
from varco_runtime.verified import cache_folder

MIN_PYTHON = (3, 11)
MIN_VERSIONS = {"tensorrt_rtx": (1, 7), "tensorrt": (10, 15)}
"""TensorRT 10.15 brought native cache updates and rotary embeddings; TensorRT for RTX is untested before 1.7."""
LEAST_SM = {"fp8": 89, "int4": 80, "bf16": 80}
"""The first compute capability (times ten) that computes in a type, or takes weights in it."""
_LOST = "unused|not used|dropp|ignor"
_DROPPED = re.compile(rf"({_LOST}).*\b(inputs?|outputs?|tensors?)\b|\b(inputs?|outputs?|tensors?)\b.*({_LOST})", re.I)

Lengths = Mapping[str, tuple[int, int, int]]
"""The least, usual and greatest of each length that a profile leaves open, by its name in the contract."""
OnStep = Callable[[str, int, int], None]
"""Called with a phase of the build, its finished steps and all its steps."""


@dataclass(frozen=True, slots=True)
class Built:
    """An engine on the disk. `peak_bytes` is memory of the process's own, `mapped_bytes` files it had mapped."""

    facts: FileFacts
    seconds: float
    peak_bytes: int
    mapped_bytes: int


class Builder:
    """TensorRT or TensorRT for RTX as it is installed. Raises `BackendError` that says what is missing."""

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
                f"later. {_HOW_TO_GET[name]}"
            )

    @classmethod
    def load(cls, is_target_named: bool) -> Builder:
        """The one that is installed. With both: TensorRT, or for a named target TensorRT for RTX, which alone can."""
        check_python(sys.version_info[:2])
        for name in PRODUCTS if is_target_named else reversed(PRODUCTS):
            module, reason = find_module(name)
            if module is not None:
                return cls(name, module)
            if reason:
                raise BackendError(f"{PRODUCTS[name]} cannot be loaded ({reason}). {_HOW_TO_GET[name]}")
        raise BackendError(
            "Building engines needs TensorRT for RTX or, for a Jetson or a data-centre GPU, TensorRT: neither is "
            f"installed. {_HOW_TO_GET['tensorrt_rtx']}"
        )

    def targets(self) -> list[int]:
        """The compute capabilities (times ten) that can be named."""
        names = getattr(self.module, "ComputeCapability", None)
        return sorted(int(name[2:]) for name in dir(names) if re.fullmatch(r"SM\d+", name))

    def check_target(self, sm: int, is_named: bool) -> None:
        """Raise `UsageError` for a target that this library does not build for."""
        if self.name == "tensorrt":
            if is_named:
                raise UsageError(
                    f"--sm {sm} needs TensorRT for RTX, which is not installed: TensorRT builds for the GPU that is "
                    "there. Leave --sm out, or: pip install 'varco-edge[tensorrt]'"
                )
            return
        if sm not in self.targets():
            known = ", ".join(str(target) for target in self.targets())
            raise UsageError(
                f"{self.product} {self.version} does not build for SM {sm}. Expected one of: {known}. "
                "For other GPUs use TensorRT on the machine that holds one."
            )

    def check(self, graph: Path, tensors: Mapping[str, Tensor], sm: int, log: Path) -> Counter[str]:
        """Parse a graph and return its layers by kind. `tensors` is the contract of its inputs and outputs.

        Everything TensorRT says goes to the file `log`. Raises `ExportError` where the parser fails or drops an input,
        and `UsageError` for a type that the target does not compute in.
        """
        with _log(self.module, log, graph.name) as said:
            network, _ = self._parse(graph, tensors, said)
            _check_types(self.module, network, graph.name, sm)
            return _count_layers(network)

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
        """Build the engine of a graph that has been checked into the new file `target`. Raises `ExportError`."""
        started = time.perf_counter()
        with PeakMemory() as memory, _log(self.module, log, graph.name) as said, HashedFile(target) as engine:
            network, parsed = self._parse(graph, tensors, said)
            self._serialise(network, parsed, tensors, profiles, sm, engine, said, on_step)
        return Built(engine.facts(), time.perf_counter() - started, memory.own_bytes, memory.mapped_bytes)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _parse(self, graph: Path, tensors: Mapping[str, Tensor], log: BuildLog) -> tuple[Any, Any]:
        """The network, with nothing lost, and what must outlive it."""
        module = self.module
        builder = module.Builder(_logger(module))
        strongly_typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
        parser = module.OnnxParser(network, _logger(module))
        if not parser.parse_from_file(str(graph)):
            reasons = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            raise ExportError(f"{self.product} {self.version} cannot parse {graph.name}: {_reason(reasons)}. {log.see}")
        self._check_network(network, graph.name, tensors, log)
        return network, (builder, parser)

    def _check_network(self, network: Any, name: str, tensors: Mapping[str, Tensor], log: BuildLog) -> None:
        """What the runtime will bind must be there and used, and caches must be updated natively, without plugins."""
        inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
        outputs = {network.get_output(index).name for index in range(network.num_outputs)}
        expected = {key for key, tensor in tensors.items() if tensor.is_input}
        if inputs.keys() != expected or outputs != tensors.keys() - expected:
            odd = sorted((inputs.keys() | outputs) ^ tensors.keys())
            raise ExportError(f"{name} lost or gained {', '.join(odd)} when it was parsed. {log.see}")
        layers = _layers(network)
        used = {
            layer.get_input(index).name
            for layer in layers
            for index in range(layer.num_inputs)
            if layer.get_input(index)
        }
        if unused := sorted(inputs.keys() - used):
            raise ExportError(f"{name}: the parser dropped the input {unused[0]}, no layer reads it. {log.see}")
        kinds = _count_layers(network)
        num_caches = sum(key.startswith("past.") for key in inputs)
        num_updates = sum(count for kind, count in kinds.items() if kind.replace("_", "") == "KVCACHEUPDATE")
        if num_updates != num_caches:
            raise ExportError(
                f"{name} has {num_caches} caches and {num_updates} native updates of them in {self.product} "
                f"{self.version}. {_HOW_TO_GET[self.name]}"
            )
        if plugins := [kind for kind in kinds if kind.startswith("PLUGIN")]:
            raise ExportError(f"{name} was parsed into {', '.join(plugins)} layers, expected none. {log.see}")
        log.check()
        for key, tensor in tensors.items():  # a shorter context than the graph's makes shorter caches
            if key.startswith("past."):
                inputs[key].shape = tensor.shape

    def _serialise(
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
        timings = _load_timings(self, config, sm)
        cancelled = threading.Event()
        monitor = _monitor(module, on_step, cancelled)
        if hasattr(config, "progress_monitor"):
            config.progress_monitor = monitor
        writer = _writer(module, engine)
        done = _run(lambda: _build_to(builder, network, config, writer), cancelled)
        if writer.error is not None:
            raise writer.error
        if not done:
            raise ExportError(
                f"{self.product} {self.version} could not build {engine.path.name}: {log.reason}. {log.see}"
            )
        log.check()
        _save_timings(timings, config)


_HOW_TO_GET = {
    "tensorrt_rtx": "Install it with: pip install --upgrade 'varco-edge[tensorrt]'",
    "tensorrt": "Update it as the README says (JetPack and NVIDIA's containers bring it).",
}


def check_python(version: tuple[int, ...]) -> None:
    """Raise `BackendError` for a Python that is too old."""
    if version < MIN_PYTHON:
        raise BackendError(
            f"Python {'.'.join(map(str, version))} is too old, expected {'.'.join(map(str, MIN_PYTHON))} or later. "
            "Install a newer one beside it, with the TensorRT bindings for it."
        )


# --- the network ------------------------------------------------------------------------------------------------------


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _count_layers(network: Any) -> Counter[str]:
    return Counter(str(layer.type).rpartition(".")[2].upper() for layer in _layers(network))


def _check_types(module: Any, network: Any, name: str, sm: int) -> None:
    """Raise `UsageError` where the target does not compute in one of the network's types."""
    kinds = {"FP8": "fp8", "INT4": "int4", "BF16": "bf16", "FLOAT": "fp32"}
    found = set()
    for layer in _layers(network):
        for index in range(layer.num_outputs):
            found.add(kinds.get(str(layer.get_output(index).dtype).rpartition(".")[2]))
    for kind, least in LEAST_SM.items():
        if kind in found and sm < least:
            raise UsageError(
                f"{name} holds {kind}, which SM {sm} does not compute in; that begins with SM {least}. Export with "
                "another --decoder, or build for another --sm."
            )
    caches = (network.get_input(index) for index in range(network.num_inputs))
    if any(cache.name.startswith("past.") and cache.dtype == module.DataType.FLOAT for cache in caches):
        raise UsageError(
            f"{name} computes in fp32, for which TensorRT has no attention kernel. Export with --decoder fp16 or bf16."
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


# --- callbacks: classes whose base is known once the library is there -------------------------------------------------


class BuildLog:
    """What TensorRT says about one graph: all of it in a file, the first error and dropped inputs kept."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self._name = name
        self._dropped: list[str] = []
        self._errors: list[str] = []
        self.num_messages = 0
        self.see = f"See {file.name}"

    def add(self, kind: str, message: str) -> None:
        self.num_messages += 1
        if kind == "VERBOSE":
            return
        self._file.write(f"{kind} {message}\n")
        self._file.flush()
        if kind == "WARNING" and _DROPPED.search(message):
            self._dropped.append(message)
        elif kind.endswith("ERROR"):
            self._errors.append(message)

    @property
    def reason(self) -> str:
        return _reason(self._errors)

    def check(self) -> None:
        """Raise if anything was dropped, or was said elsewhere: the engine would build cleanly and answer nonsense."""
        if self._dropped:
            raise ExportError(
                f"{self._name}: TensorRT dropped something it needs: {_reason(self._dropped)}. {self.see}"
            )
        if not self.num_messages:  # it always names the file that it parses
            raise ExportError(
                f"{self._name}: TensorRT's warnings go to another part of this program, expected them here. Build "
                "engines in a process of their own: varco engines BUNDLE"
            )


@functools.cache
def _logger(module: Any) -> Any:
    """The one logger of this process. TensorRT keeps the first that it is given and ignores all others, as long as
    anything made with the first is alive; so the logger stays, and what it writes to changes (`_log`)."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.target: BuildLog | None = None

        def log(self, severity: Any, message: str) -> None:
            if self.target is not None:
                self.target.add(str(severity).rpartition(".")[2], message)

    return Logger()


@contextlib.contextmanager
def _log(module: Any, path: Path, name: str) -> Iterator[BuildLog]:
    """Write what TensorRT says to the end of a file."""
    logger = _logger(module)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"--- {name} ---\n")
        logger.target = BuildLog(file, name)
        try:
            yield logger.target
        finally:
            logger.target = None


def _monitor(module: Any, on_step: OnStep, cancelled: threading.Event) -> Any:
    """Progress of the outermost phase that has several steps; ends the build when it is cancelled."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self.steps[phase] = num_steps
            on_step(phase, 0, num_steps)

        def step_complete(self, phase: str, step: int) -> bool:
            on_step(phase, step + 1, self.steps.get(phase, step + 1))
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            num_steps = self.steps.pop(phase, 1)
            on_step(phase, num_steps, num_steps)

    return Monitor()


def _writer(module: Any, file: HashedFile) -> Any:
    """Takes the engine's pieces. An exception must not pass through the library, so it waits in `error`."""
    base: Any = getattr(module, "IStreamWriter", object)

    class Writer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.error: ExportError | None = None

        def write(self, data: Any) -> int:
            try:
                return file.write(memoryview(data))
            except ExportError as error:
                self.error = error
                return 0

    return Writer()


def _reason(messages: list[str]) -> str:
    text = " ".join(messages[0].split()).rstrip(".") if messages else "no reason was given"
    return text if len(text) <= 300 else text[:297] + "..."


# --- timings and memory -----------------------------------------------------------------------------------------------


def _load_timings(builder: Builder, config: Any, sm: int) -> Path | None:
    """Give what kernels took in earlier builds to TensorRT, which times them on the GPU; the file for those of now."""
    if builder.name != "tensorrt":
        return None  # builds without a GPU and times nothing
    try:
        path = cache_folder() / f"timings-{builder.version}-sm{sm}.cache"
    except RuntimeError:  # a user without a home
        return None
    known = b""
    with contextlib.suppress(OSError):
        known = path.read_bytes()
    cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return path


def _save_timings(path: Path | None, config: Any) -> None:
    if path is None:
        return
    partial = path.with_suffix(".partial")
    with contextlib.suppress(OSError):  # a cache folder that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
        partial.replace(path)


class PeakMemory:
    """The greatest resident memory while it is entered, looked at every 20 ms; 0 where the system does not tell."""

    def __init__(self) -> None:
        self.own_bytes = 0
        self.mapped_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            found = dict(
                re.findall(r"^(RssAnon|RssFile):\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
            )
            self.own_bytes = max(self.own_bytes, int(found.get("RssAnon", 0)) * 1024)
            self.mapped_bytes = max(self.mapped_bytes, int(found.get("RssFile", 0)) * 1024)
