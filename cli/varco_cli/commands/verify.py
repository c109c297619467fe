"""`varco verify`: hash every file of a bundle, and with --numerics prove that this device computes what it should."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varco_cli.arguments import (
    PROVIDERS,
    BundleArgument,
    JsonOption,
    KvCacheOption,
    OpenVinoDeviceOption,
    PrecisionOption,
    ThreadsOption,
)
from varco_cli.console import note, print_table, size_text, write_document
from varco_cli.progress import HashProgress
from varco_runtime.errors import BackendError, BundleError, UsageError, VarcoError

if TYPE_CHECKING:
    from varco_runtime.backends.openvino.settings import OpenVinoSettings
    from varco_runtime.bundle.manifest import Manifest
    from varco_runtime.bundle.opening import Bundle
    from varco_runtime.probes.replay import Check


def verify(
    bundle: BundleArgument,
    numerics: Annotated[
        bool,
        typer.Option("--numerics", help="Run the bundle's probes too and compare with the exact model's answers."),
    ] = False,
    provider: Annotated[str, typer.Option(metavar=PROVIDERS, help="What to run the probes on.")] = "auto",
    threads: ThreadsOption = None,
    openvino_device: OpenVinoDeviceOption = "auto",
    precision: PrecisionOption = "auto",
    kv_cache_precision: KvCacheOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Hash every file of a bundle and compare it with the manifest; with --numerics, also run its probes."""
    from varco_runtime.backends.openvino.settings import OpenVinoSettings
    from varco_runtime.bundle.opening import Bundle

    if not numerics and (provider != "auto" or threads is not None):
        raise UsageError("--provider and --threads are for the probes. Add --numerics, or leave them out.")
    openvino = OpenVinoSettings(openvino_device, precision, kv_cache_precision)
    if not numerics and openvino != OpenVinoSettings():
        raise UsageError("OpenVINO's options are for the probes. Add --numerics, or leave them out.")
    opened = Bundle.read(bundle)
    manifest = opened.manifest
    faults = _hash(opened)
    document: dict[str, Any] = {"bundle": str(bundle), "ok": not faults, "files": _files(manifest, faults)}
    # A file that has been altered is never opened.
    failure: VarcoError | None = _first(faults) if faults else None
    if not as_json:
        _print_files(bundle, manifest, faults)
    if numerics and failure is None:
        checks, device, num_left_out, hint = _replay(bundle, provider, threads, openvino)
        grade = _grade(checks)
        failure = _failure(bundle, checks, manifest)
        rows = [{**asdict(check), "ok": check.passed} for check in checks]
        document |= {"ok": failure is None, "provider": device, "probes_left_out": num_left_out, "numerics": rows}
        document |= {"grade": grade, "advice": hint}
        if num_left_out:
            note(f"note: {num_left_out} probes need more positions than the engines hold and were left out.")
        if not as_json:
            _print_checks(checks, device, grade)
        for detail in [detail for check in checks for detail in check.details if not check.passed]:
            note(detail)
        if failure is None and hint is not None:
            note(f"note: {hint}")
    if as_json:
        write_document(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))
    if failure is not None:
        raise failure


# --- files ------------------------------------------------------------------------------------------------------------


def _hash(bundle: Bundle) -> dict[str, str]:
    """Return the files that are not as recorded, and graphs that read other files, with the reason."""
    faults: dict[str, str] = {}
    files = bundle.manifest.files
    with HashProgress({name: facts.size for name, facts in files.items()}) as progress:
        for name in sorted(files):
            try:
                bundle.check([name], full=True, progress=progress)
            except BundleError as error:
                faults[name] = str(error)
    return faults


def _files(manifest: Manifest, faults: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"file": name, **asdict(facts), "ok": name not in faults, "error": faults.get(name)}
        for name, facts in sorted(manifest.files.items())
    ]


def _print_files(bundle: Path, manifest: Manifest, faults: dict[str, str]) -> None:
    rows = [
        ("BAD" if name in faults else "ok", name, size_text(facts.size), facts.sha256[:16] + "…")
        for name, facts in sorted(manifest.files.items())
    ]
    print_table(str(bundle), ("", "file", "size", "sha256 as recorded"), rows, right=(2,))


def _first(faults: dict[str, str]) -> BundleError:
    """Return one fault as the command's error, after a line for each of the others."""
    *others, last = (faults[name] for name in sorted(faults))
    for fault in others:
        note(fault)
    return BundleError(last)


# --- numerics ---------------------------------------------------------------------------------------------------------


def _replay(
    bundle: Path, provider: str, threads: int | None, openvino: OpenVinoSettings
) -> tuple[list[Check], str, int, str | None]:
    """Ask the bundle its probes.

    Returns:
        The checks, what they ran on, how many probes the engines were too short for, and advice on number formats.
    """
    from varco_runtime.bundle.opening import Bundle
    from varco_runtime.probes.grade import advice
    from varco_runtime.probes.replay import read_probes, replay
    from varco_runtime.varco import Varco

    opened = Bundle.open(bundle)
    probes = read_probes(opened)
    # Engines hold what they were built for, which may be less than the probes need, and less saves no memory.
    max_context = None if opened.manifest.device == "tensorrt" else max(16, probes.max_tokens)
    varco = Varco.load(
        bundle,
        provider,
        max_context,
        threads,
        openvino_device=openvino.device,
        precision=openvino.precision,
        kv_cache_precision=openvino.kv_cache,
    )
    if varco.bundle.manifest != opened.manifest:
        raise BundleError(f"{bundle} was exchanged while it was being verified. Verify it again.")
    fitting = probes.within(varco.backend.max_context)
    device = varco.backend.description
    checks = replay(varco.bundle, fitting, varco.backend)
    hint = advice(opened.manifest, _divergence(checks), probes.divergences)
    return checks, device, len(probes.probes) - len(fitting.probes), hint


def _divergence(checks: list[Check]) -> float:
    return next(check.error for check in checks if check.limit is None)


def _grade(checks: list[Check]) -> str:
    from varco_runtime.probes.grade import grade_of

    return grade_of(_divergence(checks))


def _print_checks(checks: list[Check], device: str, grade: str) -> None:
    """Print a row for each check: whether it passes, or the grade in the first row that is one."""
    rows, grades = [], iter((grade,))
    for check in checks:
        verdict = "FAIL" if not check.passed else "ok" if check.limit is not None else next(grades, "")
        limit = "" if check.limit is None else _number(check.limit)
        rows.append((verdict, check.component, check.measure, _number(check.error), limit))
    print_table(f"\nnumerics on {device}", ("", "component", "measure", "error", "limit"), rows, right=(3, 4))


def _failure(bundle: Path, checks: list[Check], manifest: Manifest) -> BackendError | None:
    failed = [check for check in checks if not check.passed]
    if not failed:
        return None
    overflown = [check for check in failed if not math.isfinite(check.error)]
    if overflown and manifest.decoder.compute == "fp16":
        return BackendError(
            f"{bundle} gives numbers that are not finite, first in {overflown[0].component}. {manifest.overflow_advice}"
        )
    worst = failed[0]
    expected = "a number" if worst.limit is None else f"at most {_number(worst.limit)}"
    return BackendError(
        f"{bundle} fails {len(failed)} of {len(checks)} checks, first {worst.component}: {worst.measure} "
        f"{_number(worst.error)}, expected {expected}. Do not use it here: export it again, or "
        "build its engines again."
    )


def _number(value: float) -> str:
    """Return an error as a short text: `0`, `2.1e-06`, `0.0312`."""
    return f"{value:.3g}"


def _finite(value: Any) -> Any:
    """Return a value with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
