"""The steps of `gpu_check`: what each measures, part by part, and where in the report that goes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.environment import check_environment
from benchmarks.gpu.limits import measure_limits
from benchmarks.gpu.model import PAIRS, bundle_path
from benchmarks.gpu.names import MEASURED, SHAPES
from benchmarks.gpu.pairs import measure_variant
from benchmarks.gpu.peer import measure_transformers
from benchmarks.gpu.products import FORMATS as PRODUCTS
from benchmarks.gpu.products import check_products
from benchmarks.gpu.profile import profile_operators
from benchmarks.gpu.report import at
from benchmarks.gpu.rows import measure_rows
from benchmarks.gpu.stages import Setup, measure_model
from benchmarks.gpu.tests_run import run_tests
from benchmarks.gpu.tokens import FORMATS, check_tokens
from benchmarks.gpu.variants import AGAIN, VARIANTS, Variant

PEER_DTYPE = {"cuda": "bf16", "cpu": "fp32"}


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement in a process of its own: `measure(*arguments, tell)`, told to a place of the report.

    `bundle` is removed once no later part of the step needs it. `goes_on` keeps what is at the place.
    """

    place: tuple[str, ...]
    measure: Callable[..., None]
    arguments: tuple[Any, ...]
    bundle: Path | None = None
    goes_on: bool = False


def parts_of(step: str, options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    """Return the parts of a step; `left_s` are the seconds that it may take."""
    return _PARTS[step](options, report, left_s)


def _environment(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    return [Part(("environment",), check_environment, (options.provider,))]


def _tokens(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    return [Part(("tokens", decoder), check_tokens, (options.folder, options.provider, decoder)) for decoder in FORMATS]


def _tests(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    return [Part(("tests",), run_tests, (options.shape, options.provider))]


def _products(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    arguments = (options.folder, options.shape, options.provider)
    return [
        Part(("products", f"{weights}-{compute}"), check_products, (*arguments, weights, compute))
        for weights, compute in PRODUCTS
    ]


def _int4(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    limits = Part(("limits",), measure_limits, (options.provider, options.shape == "tiny"))
    return [limits, _model(options, _large(options), MEASURED[0], with_kernels=True)]


def _rows(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    shape, decoder = _large(options), MEASURED[0]
    setup = _setup(options, shape, decoder)
    return [Part(("shapes", shape, "rows", decoder), measure_rows, (setup,), bundle_path(setup.folder, shape, decoder))]


def _pairs(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    return [_pair(options, variant) for variant in (*VARIANTS, AGAIN)]


def _pair(options: argparse.Namespace, variant: Variant) -> Part:
    shape = _large(options) + PAIRS
    setup = _setup(options, shape, MEASURED[0], variant.bundle, variant.export)
    return Part(
        ("pairs", variant.name), measure_variant, (setup, variant), bundle_path(setup.folder, shape, setup.name)
    )


def _precisions(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    return [_model(options, _large(options), decoder) for decoder in MEASURED[1:]]


def _transformers(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    shape = _large(options)
    place = ("shapes", shape, "transformers")
    former = {} if options.again else dict(at(report, place))
    arguments = (_setup(options, shape, ""), PEER_DTYPE[options.provider], former, left_s)
    return [Part(place, measure_transformers, arguments, goes_on=True)]


def _small(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    return [_model(options, SHAPES[options.shape][1], MEASURED[0])]


def _operators(options: argparse.Namespace, report: dict[str, Any], left_s: float) -> list[Part]:
    shape, decoder = _large(options), MEASURED[0]
    setup = _setup(options, shape, decoder)
    place = ("shapes", shape, "operators", decoder)
    return [Part(place, profile_operators, (setup,), bundle_path(setup.folder, shape, decoder))]


def _model(options: argparse.Namespace, shape: str, decoder: str, with_kernels: bool = False) -> Part:
    setup = _setup(options, shape, decoder)
    place = ("shapes", shape, "models", decoder)
    return Part(place, measure_model, (setup, with_kernels), bundle_path(setup.folder, shape, decoder))


def _setup(
    options: argparse.Namespace, shape: str, decoder: str, name: str = "", export: tuple[tuple[str, object], ...] = ()
) -> Setup:
    return Setup(options.folder, shape, decoder, options.provider, options.max_context, name, export)


def _large(options: argparse.Namespace) -> str:
    return SHAPES[options.shape][0]


_PARTS: dict[str, Callable[[argparse.Namespace, dict[str, Any], float], list[Part]]] = {
    "environment": _environment,
    "tokens": _tokens,
    "tests": _tests,
    "products": _products,
    "int4": _int4,
    "rows": _rows,
    "pairs": _pairs,
    "precisions": _precisions,
    "transformers": _transformers,
    "small": _small,
    "operators": _operators,
}
