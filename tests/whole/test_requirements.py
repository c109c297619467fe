"""What pyproject.toml requires: no release with a published fault, by the dated list in advisories.toml."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
PYPROJECT = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
ADVISORIES = tomllib.loads((HERE / "advisories.toml").read_text(encoding="utf-8"))
DATE = datetime.date.fromisoformat(ADVISORIES.pop("date"))


def requirements() -> Iterator[Requirement]:
    """Every requirement: of the build, of each installation and of the extras."""
    project = PYPROJECT["project"]
    texts = [*PYPROJECT["build-system"]["requires"], *project["dependencies"]]
    yield from map(Requirement, texts + [text for extra in project["optional-dependencies"].values() for text in extra])


def minimum(requirement: Requirement) -> Version:
    """The oldest release that it allows; release 0 where it names none."""
    bounds = [Version(one.version.removesuffix(".*")) for one in requirement.specifier if one.operator in (">=", "==")]
    return max(bounds, default=Version("0"))


@pytest.mark.parametrize("name", ADVISORIES)
def test_no_release_with_a_published_fault_is_allowed(name: str) -> None:
    found = [one for one in requirements() if canonicalize_name(one.name) == name]
    assert found, f"{name} is required no more; remove it from advisories.toml"
    expected, reason = Version(ADVISORIES[name]["minimum"]), ADVISORIES[name]["advisories"]
    for requirement in found:
        assert minimum(requirement) >= expected, f"{requirement} allows releases below {expected} ({reason}, {DATE})"


def test_every_requirement_has_a_minimum() -> None:
    assert [str(one) for one in requirements() if one.name != "varco-edge" and minimum(one) == Version("0")] == []
