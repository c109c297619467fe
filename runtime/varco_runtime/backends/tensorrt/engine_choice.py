"""Which of a bundle's engines run here: those for this kind of device, of one builder, of its installed version."""

from __future__ import annotations

from dataclasses import dataclass

from varco_runtime.backends.slots import AUTO, AUTO_SLOTS, Slots, device_slots
from varco_runtime.backends.tensorrt.cuda_api import Cuda
from varco_runtime.backends.tensorrt.engine import Library
from varco_runtime.backends.tensorrt.engine_io import COMPONENTS
from varco_runtime.bundle.manifest import EngineFacts, Manifest
from varco_runtime.errors import BackendError, UsageError


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """The device's memory: bytes of a slot, of all else that the bundle takes, and what is free."""

    per_slot: int
    others: int
    free: int


Engines = dict[str, EngineFacts]
"""One engine for each component."""

_BUILD = "Build them with: varco engines BUNDLE"


def choose_engines(manifest: Manifest, cuda: Cuda) -> tuple[Library, Engines]:
    """The library to load and the engines to load with it. Raises `BackendError` that says what does not match.

    `varco engines` keeps one set for each kind of device, the last that was built for it, of one builder and version.
    Of a manifest that lists more for a device, the first set that runs here is taken.
    """
    if not manifest.engines:
        raise BackendError(f"The bundle holds no engines. {_BUILD}")
    here = [engine for engine in manifest.engines if engine.target == cuda.target]
    if not here:
        targets = ", ".join(sorted({engine.target for engine in manifest.engines}))
        raise BackendError(
            f"The bundle's engines were built for {targets}, this GPU is {cuda.target} ({cuda.name}). "
            f"Build some for it with: varco engines BUNDLE --sm {cuda.target.removeprefix('sm')}"
        )
    refusals = []
    for builder in dict.fromkeys(engine.builder for engine in here):
        try:
            library = Library(builder)
            return library, _of_version(library, [engine for engine in here if engine.builder == builder])
        except BackendError as error:
            refusals.append(error)
    raise refusals[0]


def _of_version(library: Library, engines: list[EngineFacts]) -> Engines:
    matching = {engine.component: engine for engine in engines if engine.builder_version == library.version}
    if not matching:
        first = engines[0]
        raise BackendError(
            f"{first.file} was built with {library.product} {first.builder_version}, {library.version} is installed, "
            "and an engine runs on the version that built it alone. Install that one, or build again with: "
            "varco engines BUNDLE"
        )
    for component in COMPONENTS:
        if component not in matching:
            raise BackendError(
                f"The bundle holds no {component} engine of {library.product} {library.version} for "
                f"{engines[0].target}. {_BUILD}"
            )
    return matching


def choose_slots(asked: int | str, engines: Engines, cuda: Cuda, memory: DeviceBytes) -> Slots:
    """Answers at once, as asked, within what the decoder was built for and the memory. Raises `UsageError`."""
    decoder = engines["decoder"]
    most = decoder.num_slots
    if asked != AUTO and int(asked) > most:
        raise UsageError(
            f"slots={asked} is too many: {decoder.file} was built for {most}. Load with fewer, or build again with: "
            f"varco engines BUNDLE --slots {asked}"
        )
    if asked == AUTO and most == 1:
        return Slots(1, f"1 slot: {decoder.file} was built for one; more with: varco engines BUNDLE --slots N")
    if cuda.is_integrated:  # what is free is not known before it is asked for
        return Slots(min(AUTO_SLOTS, most) if asked == AUTO else int(asked), f"as many as {decoder.file} takes, or 8")
    return device_slots(asked, memory.per_slot, memory.others, memory.free, cuda.name, most)


def choose_max_context(asked: int | None, engines: Engines) -> int:
    """Positions to allow: as asked, else all that the decoder's caches hold. Raises `UsageError`."""
    decoder = engines["decoder"]
    limit = decoder.max_context
    if asked is not None and asked > limit:
        raise UsageError(
            f"max_context={asked} is out of range: {decoder.file} was built for {limit} positions. Lower it, or build "
            f"again with: varco engines BUNDLE --max-context {asked}"
        )
    return limit if asked is None else asked
