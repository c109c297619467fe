"""One benchmark from the bundle's folder to the summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varco_runtime.backends.cpu.prepacked import num_entries
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.backends.providers import check_provider
from varco_runtime.bench.limit import Limit, measure_limit
from varco_runtime.bench.memory import free_device_bytes
from varco_runtime.bench.other_load import OtherLoad
from varco_runtime.bench.report import Setup, document
from varco_runtime.bench.samples import Samples
from varco_runtime.bench.stages import Plan, Progress, measure
from varco_runtime.bench.stopwatch import Budget, Clock
from varco_runtime.bench.summary import Summary, summarize
from varco_runtime.bench.workload import PROMPT, Workload
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.bundle.opening import Bundle, digest_of
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.media import Medium
from varco_runtime.system.processor import usable_cores
from varco_runtime.varco import Varco

LIMIT_SECONDS, LIMIT_SHARE = 1.5, 0.05
"""How long the bandwidth is measured at most, in seconds and as a share of the time given.

Long enough for a quiet moment on a busy machine."""
LEAST_SHARE = 1 / 3
"""The share of the time given that is left for measuring, however long hashing and loading took."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    Args:
        bundle: The bundle's folder.
        picture: The picture that is asked about.
        picture_name: Its name, for the document.
        images: How many copies of it are asked about at a time.
        frames: The frames of a video that is asked about instead; 0 for none.
        prompt: The question.
        repetitions: How often at most.
        new_tokens: How many tokens an answer has.
        seconds: About what everything but loading may take.
        provider: As `Varco.load` takes it.
        threads: Threads of the networks; None is all cores.
        max_context: Positions of the cache; None is the bundle's.
        openvino: How OpenVINO computes, where `provider` is that.
        long_side: As for `Varco.ask`.
    """

    bundle: Path
    picture: Picture
    picture_name: str
    prompt: str = PROMPT
    repetitions: int = 5
    new_tokens: int = 64
    seconds: float = 60.0
    provider: str = "auto"
    threads: int | None = None
    max_context: int | None = None
    openvino: OpenVinoSettings = OpenVinoSettings()  # noqa: RUF009 - frozen
    images: int = 1
    frames: int = 0
    long_side: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A finished benchmark.

    Args:
        setup: What was measured, and on what.
        samples: The measurements.
        summary: What follows from them.
        manifest: The bundle's.
        limit: The bandwidth of the memory; None where it could not be measured.
    """

    setup: Setup
    samples: Samples
    summary: Summary
    manifest: Manifest
    limit: Limit | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document, as `report.document` describes it."""
        return document(self.setup, self.samples, self.summary, self.manifest, self.limit)


def run(
    options: Options,
    progress: Progress,
    hashing: Callable[[str, int], None] | None = None,
    find_limit: Callable[[str, int, float], Limit | str] = measure_limit,
    clock: Clock = time.perf_counter,
) -> Result:
    """Measure the limit, load the bundle, measure the question.

    Args:
        options: What to measure.
        progress: Told what happens, a sentence each.
        hashing: The `progress` of `Bundle.open`.
        find_limit: What measures the limit, as `measure_limit` does.
        clock: The time in seconds.

    Raises:
        VarcoError: As `Varco.load` and `Varco.ask` raise it, and where the question does not fit the context.
    """
    check_provider(options.provider)
    budget, other_load = Budget(options.seconds, clock), OtherLoad()
    threads = options.threads or usable_cores()
    started = clock()
    bundle = Bundle.open(options.bundle, progress=hashing)
    check_s = clock() - started
    device = bundle.manifest.device if options.provider == "auto" else options.provider
    memory = "cpu" if device == "openvino" and options.openvino.chosen_device == "CPU" else device

    progress("Measuring the memory's bandwidth.")
    measured = find_limit(memory, usable_cores(), min(LIMIT_SECONDS, LIMIT_SHARE * options.seconds))
    free_before = free_device_bytes(device)
    progress("Loading the bundle.")
    num_packed = num_entries()
    openvino = options.openvino
    varco = Varco.load(
        options.bundle,
        options.provider,
        options.max_context,
        options.threads,
        openvino_device=openvino.device,
        precision=openvino.precision,
        kv_cache_precision=openvino.kv_cache,
    )
    bundle = varco.bundle  # what is measured, whatever was there at first
    has_packed = num_entries() != num_packed
    free_after = free_device_bytes(device)
    if device != "cpu" and varco.provider.startswith("cpu"):  # no GPU can be used
        device, free_before = "cpu", None
        measured = find_limit(device, usable_cores(), min(LIMIT_SECONDS, LIMIT_SHARE * options.seconds))
    budget.reserve(LEAST_SHARE * options.seconds)
    plan = Plan(options.repetitions, options.new_tokens, device, threads)
    work = Workload.of(
        options.picture, options.images, options.frames, options.prompt, bundle.manifest, options.long_side
    )
    samples = measure(varco, work, plan, budget, progress)
    if work.media[0].given is not None:
        samples.notes.append(_scaling_note(work, bundle.manifest))
    if has_packed:
        samples.notes.append("Loading also packed weights for next time: load and peak memory will be less.")
    limit = measured if isinstance(measured, Limit) else None
    if isinstance(measured, str):
        samples.notes.append(measured)
    setup = Setup(
        bundle=options.bundle.resolve().name,
        digest=digest_of(bundle.manifest),
        bundle_bytes=sum(facts.size for facts in bundle.manifest.files.values()),
        provider=varco.provider,
        device=varco.backend.description,
        threads=threads,
        max_context=varco.backend.max_context,
        seconds=options.seconds,
        picture=options.picture_name,
        picture_size=(options.picture.width, options.picture.height),
        copies=options.frames or options.images,
        is_video=options.frames > 0,
        prompt=options.prompt,
        check_s=check_s,
        other_cores=other_load.cores(),
        device_bytes=None if free_before is None or free_after is None else max(free_before - free_after, 0),
    )
    return Result(setup, samples, summarize(samples, bundle.manifest, limit), bundle.manifest, limit)


def _scaling_note(work: Workload, manifest: Manifest) -> str:
    """Return what scaling the picture up costs, beside the same question without it."""
    medium = work.media[0]
    shown, given = medium.source, medium.asked
    as_it_is = Workload((Medium(given, medium.tiling),), work.prompt, manifest.image)
    return (
        f"The picture of {given.width}x{given.height} was scaled up to {shown.width}x{shown.height}: "
        f"{work.num_tiles} tiles and {work.plan().num_tokens} image tokens, instead of {as_it_is.num_tiles} and "
        f"{as_it_is.plan().num_tokens} with --long-side 0."
    )
