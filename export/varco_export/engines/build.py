"""The TensorRT engines of a bundle: built from its graphs, recorded in its manifest.

A bundle that stands is never broken: engines are built beside it, and named by the manifest only when all of a target's
are complete. A manifest that names old engines loses them first, since their files are replaced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from varco_export.engines.builder import Builder, Built, Lengths
from varco_export.progress import SILENT, EngineProgress
from varco_export.writing.disk import disk_errors
from varco_export.writing.lock import locked
from varco_runtime.backends.slots import MAX_SLOTS
from varco_runtime.backends.tensorrt.cuda_api import ALIGNMENT, Cuda
from varco_runtime.backends.tensorrt.engine_io import COMPONENTS, engine_io
from varco_runtime.backends.tensorrt.memory import slot_bytes
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.bundle.graph_nodes import takes_rows
from varco_runtime.bundle.manifest import EngineFacts, FileFacts, Manifest
from varco_runtime.bundle.opening import Bundle, read_manifest, write_manifest
from varco_runtime.bundle.tensor import Tensor
from varco_runtime.errors import BackendError, BundleError, ExportError, MissingExtraError, UsageError
from varco_runtime.picture.packing import largest_picture

PREFILL_TOKENS = 512
"""Prompt positions in one run: enough to keep a GPU's matrix units busy, and few enough for its memory."""
MAX_LOGITS = 16
"""Positions of one prefill run whose logits are wanted: one to answer, more to compare bundles."""
USUAL_TILES = 5
"""Tiles in one run of the vision tower unless asked otherwise: a picture of 2x2 tiles with its overview. That is 3,645
rows in every matrix product of the 14B's tower, enough for any GPU here, so larger pictures lose nothing by taking
several runs. TensorRT for RTX 1.7 reports 73 MB of scratch memory for 5 tiles, 117 for 8 and 543 for 37, the largest
picture; the buffers of a batch take another 10 MB a tile."""

_WRITABLE = "Expected a writable bundle with enough space."


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of a build of engines, with the defaults of the command `varco engines`.

    Args:
        sm: Compute capabilities to build for, times ten; none for the GPU that is there.
        max_context: Most tokens of prompt, picture and answer together; None is the bundle's.
        max_tiles: Tiles that are encoded at a time; None is `USUAL_TILES`.
        slots: The most answers at once.
    """

    sm: tuple[int, ...] = ()
    max_context: int | None = None
    max_tiles: int | None = None
    slots: int = 1


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A build of one component.

    Args:
        facts: What the manifest says of the engine.
        weight_bytes: Weights that a pass reads.
        built: The engine's file, and what its build took.
    """

    facts: EngineFacts
    weight_bytes: int
    built: Built


def build_engines(
    folder: Path,
    options: EngineOptions = EngineOptions(),
    progress: EngineProgress = SILENT,
    hashing: Callable[[str, int], None] | None = None,
) -> list[EngineReport]:
    """Build the TensorRT engines of a bundle for each target and record them in its manifest.

    Engines that were built for a target before are replaced, whatever built them. On an error, targets that were
    finished stay recorded. The failing one keeps its former engines, or has none if their files could not be exchanged.

    Args:
        folder: The bundle, exported with `device="tensorrt"`.
        options: What is asked for.
        progress: Who is told how far each engine is.
        hashing: Called with the name of each hashed file and the bytes done, while the graphs are checked.

    Returns:
        A report per component and target.

    Raises:
        UsageError: The options do not go with the bundle, the GPU or the installed library.
        BundleError: The folder holds no bundle for TensorRT, or a changed one.
        BackendError: There is no library that builds engines, or no GPU to build for.
        ExportError: A build fails, another process builds engines of this bundle, or the disk refuses.
    """
    bundle = Bundle.read(folder)
    manifest = bundle.manifest
    limits = _choose_limits(folder, manifest, options)
    builder = Builder.load(is_target_named=bool(options.sm))
    targets = tuple(dict.fromkeys(options.sm)) or (_sm_of_this_gpu(builder),)
    for sm in targets:
        builder.check_target(sm, is_named=bool(options.sm))
    busy = f"Engines of {folder} are being built by another process. Wait until it ends."
    with locked(folder, busy, os.O_RDONLY):  # two builds of one bundle would write the same files
        # The graphs and their weights are what was exported, before a library parses them.
        bundle.check((name for part in manifest.components.values() for name in (part.file, part.data)), False, hashing)
        for sm in targets:
            with bundle.unchanged():
                _check_target(folder, manifest, builder, sm, limits)
        reports = []
        for sm in targets:
            reports += _build_target(bundle, builder, sm, limits, progress)
    return reports


@dataclass(frozen=True, slots=True)
class _Limits:
    """How far engines reach."""

    max_context: int
    max_tiles: int
    slots: int

    def tensors(self, manifest: Manifest) -> dict[str, dict[str, Tensor]]:
        """Return what engines of these limits take and give."""
        return engine_io(manifest, self.max_context, self.slots)


def _choose_limits(folder: Path, manifest: Manifest, options: EngineOptions) -> _Limits:
    """Return the positions, the tiles and the slots to build for."""
    if manifest.device != "tensorrt":
        raise BundleError(
            f"{folder} was exported for {manifest.device}, engines are built from graphs for TensorRT. Make them with: "
            "varco export CHECKPOINT BUNDLE --device tensorrt"
        )
    most_tiles, _ = largest_picture(manifest.image)
    max_context = manifest.max_context if options.max_context is None else options.max_context
    max_tiles = min(USUAL_TILES, most_tiles) if options.max_tiles is None else options.max_tiles
    for option, asked, least, most in (
        ("--max-context", max_context, 16, manifest.max_context),
        ("--max-tiles", max_tiles, 1, most_tiles),
        ("--slots", options.slots, 1, MAX_SLOTS),
    ):
        if not least <= asked <= most:
            why = "" if option == "--slots" else ", what the bundle was made for"
            raise UsageError(f"{option} {asked} is out of range. Expected {least} to {most}{why}.")
    if options.slots > 1:
        _check_slots(folder, manifest, max_context)
    return _Limits(max_context, max_tiles, options.slots)


def _check_slots(folder: Path, manifest: Manifest, max_context: int) -> None:
    """Check that the decoder's graph has rows, and that each slot of a cache begins where TensorRT takes an address."""
    if not takes_rows((folder / manifest.decoder.file).read_bytes()):
        raise BundleError(
            f"{folder} is of an earlier export, whose decoder takes one sequence. Export it again, or build with "
            "--slots 1."
        )
    num_bytes = slot_bytes(manifest, max_context)
    if num_bytes % ALIGNMENT:
        better = next(n for n in range(max_context, 0, -1) if slot_bytes(manifest, n) % ALIGNMENT == 0)
        raise UsageError(
            f"Slots of {max_context} positions do not begin at multiples of {ALIGNMENT} bytes, as TensorRT wants. "
            f"Build with --max-context {better}."
        )


def _sm_of_this_gpu(builder: Builder) -> int:
    try:
        cuda = Cuda()
    except (BackendError, MissingExtraError) as error:
        if builder.name == "tensorrt":
            raise
        known = ", ".join(str(target) for target in builder.targets())
        raise BackendError(
            f"No GPU to build for was found ({str(error).partition('. ')[0]}). "
            f"Name the target with --sm, one of: {known}."
        ) from None
    try:
        return int(cuda.target.removeprefix("sm"))
    finally:
        cuda.close()


def _check_target(folder: Path, manifest: Manifest, builder: Builder, sm: int, limits: _Limits) -> None:
    """Parse every graph before the first is built: what a target refuses is refused at once."""
    log = _log_file(folder, sm)
    with disk_errors(log, _WRITABLE):
        log.parent.mkdir(exist_ok=True)
        log.write_text(f"{builder.product} {builder.version} for sm{sm}\n", encoding="utf-8")
    for name, tensors in limits.tensors(manifest).items():
        builder.check(folder / manifest.components[name].file, tensors, sm, log)


def _log_file(folder: Path, sm: int) -> Path:
    return folder / "engines" / f"sm{sm}.log"


def _build_target(
    bundle: Bundle, builder: Builder, sm: int, limits: _Limits, progress: EngineProgress
) -> list[EngineReport]:
    folder = bundle.folder
    manifest, target = read_manifest(folder), f"sm{sm}"
    partial = folder / "engines" / f".{target}.partial"
    with disk_errors(partial, _WRITABLE):
        shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
        partial.mkdir()
    reports = []
    try:
        for name in COMPONENTS:
            component = manifest.components[name]
            facts = EngineFacts(
                component=name,
                file=f"engines/{target}/{name}.engine",
                builder=builder.name,
                builder_version=builder.version,
                target=target,
                precision=component.precision,
                max_context=limits.max_context,
                # A picture is packed as a whole; its tiles may be encoded in several runs.
                max_tiles=largest_picture(manifest.image)[0] if name == "packing" else limits.max_tiles,
                prefill_tokens=min(PREFILL_TOKENS, limits.max_context),
                max_logits=min(MAX_LOGITS, limits.max_context),
                slots=limits.slots if name == "decoder" and limits.slots > 1 else None,
            )
            tensors = limits.tensors(manifest)[name]
            with progress.engine(name, target) as on_step:
                built = builder.build(
                    folder / component.file,
                    tensors,
                    profiles(manifest, facts),
                    sm,
                    partial / f"{name}.engine",
                    _log_file(folder, sm),
                    on_step,
                )
            reports.append(EngineReport(facts, component.weight_bytes, built))
        bundle.check_unchanged()
        _record(folder, manifest, target, partial, reports)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return reports


def profiles(manifest: Manifest, facts: EngineFacts) -> list[Lengths]:
    """Return how far each length of a component reaches, per profile: (least, usual, greatest)."""
    tokens = min(largest_picture(manifest.image)[1], facts.max_context)
    match facts.component:
        case "vision" | "projector":
            return [{"tiles": (1, min(USUAL_TILES, facts.max_tiles), facts.max_tiles)}]
        case "packing":
            usual = min(USUAL_TILES, facts.max_tiles)
            return [{"tiles": (1, usual, facts.max_tiles), "tokens": (1, tokens, tokens)}]
    context = (1, -(-facts.max_context // 2), facts.max_context)
    prefill = (1, facts.prefill_tokens, facts.prefill_tokens)
    step = {"sequence": (1, 1, longest_step(facts.precision)), "total": context, "num_logits": (1, 1, 1)}
    lengths: list[Lengths] = [
        {BATCH: (1, 1, 1), "sequence": prefill, "total": context, "num_logits": (1, 1, facts.max_logits)},
        {BATCH: (1, 1, 1), **step},
    ]
    # A step of several sequences is a profile of its own, so that a step of one is what it is without them.
    slots = facts.num_slots
    return [*lengths, {BATCH: (2, slots, slots), **step}] if slots > 1 else lengths


def longest_step(precision: str) -> int:
    """Return the new positions that the decode profile allows. It is used with one.

    For exactly one position, TensorRT stores float weights of q, k, v, gate and up a second time in another layout:
    360 MB for each layer of the 14B. A length that may be two keeps it from that. Quantized weights are shared anyway.
    """
    return 2 if precision.startswith(("fp16", "bf16")) else 1


def _record(folder: Path, manifest: Manifest, target: str, partial: Path, reports: list[EngineReport]) -> None:
    """Put the engines in place and name them in the manifest, last."""
    if read_manifest(folder) != manifest:
        raise ExportError(f"{folder} was changed while its engines were built. Build them again.")
    old = {engine.file for engine in manifest.engines if engine.target == target}
    others = tuple(engine for engine in manifest.engines if engine.target != target)
    files = {name: facts for name, facts in manifest.files.items() if name not in old}
    built: dict[str, FileFacts] = {report.facts.file: report.built.facts for report in reports}
    place = folder / "engines" / target
    with disk_errors(folder, _WRITABLE):
        if old:
            write_manifest(folder, replace(manifest, engines=others, files=files))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(partial, place)
        engines = (*others, *(report.facts for report in reports))
        write_manifest(folder, replace(manifest, engines=engines, files=files | built))
