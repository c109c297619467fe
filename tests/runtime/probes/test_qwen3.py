"""Acceptance probes of Qwen3: good bundles pass, and faults of its own attention are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import export_bundle
from tests.makers import broken_norms
from tests.makers.broken import broken
from tests.makers.probes import GENTLE, OPTIONS, PRECISIONS, checks_of, failed
from varco_export.tiny import make_tiny

QWEN3 = replace(OPTIONS, text="qwen3", patch_size=16, scales=GENTLE)
QUICK = ("fp32", "int4")


def precisions(names: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full]) for name in names]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a Qwen3 checkpoint in a precision, with probes, exported once."""
    folder = tmp_path_factory.mktemp("qwen3")
    checkpoint = make_tiny(folder / "checkpoint", QWEN3)

    def bundle(precision: str) -> Path:
        target = folder / precision
        return target if target.exists() else export_bundle(checkpoint, target, probes=True, **PRECISIONS[precision])

    return bundle


@pytest.mark.parametrize("precision", precisions(tuple(PRECISIONS)))
def test_a_good_bundle_passes(good: Callable[[str], Path], precision: str) -> None:
    checks = checks_of(good(precision))
    assert not failed(checks), checks


@pytest.mark.parametrize("fault", broken_norms.FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("precision", precisions(("fp32", "int4", "int4-int8", "fast")))
def test_a_broken_bundle_fails_where_it_is_broken(
    good: Callable[[str], Path], tmp_path: Path, precision: str, fault: Callable[[Path], None]
) -> None:
    checks = checks_of(broken(good(precision), tmp_path / "broken", fault))
    assert broken_norms.FAULTS[fault] in failed(checks), f"{fault.__name__} passes: {checks}"


def test_the_same_order_written_out_passes(good: Callable[[str], Path], tmp_path: Path) -> None:
    """What `norm_behind_the_rotary` shows is the order, and not the nodes that it turns with."""

    def turned_apart(folder: Path) -> None:
        broken_norms.norm_behind_the_rotary(folder, in_order=True)

    checks = checks_of(broken(good("fp32"), tmp_path / "written-out", turned_apart))
    assert not failed(checks), checks
