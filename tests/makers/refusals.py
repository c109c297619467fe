"""What is refused is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import export_bundle
from varco_runtime import Varco
from varco_runtime.errors import CheckpointError, VarcoError


def refusal(
    call: Callable[[], object], error: type[VarcoError] = CheckpointError, endings: tuple[str, ...] = (".",)
) -> str:
    """Return the message that refuses a call: one line with an ending of these."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(endings)
    return message


def export_refusal(folder: Path, bundle: Path, **options: Any) -> str:
    """Return the message that refuses the export of a checkpoint, of which no bundle may be left."""
    message = refusal(lambda: export_bundle(folder, bundle, **options), endings=(".", "varco quantize"))
    assert not bundle.exists()
    return message


def assert_matches(pattern: str, text: str) -> None:
    """Check that a pattern is found in a text, and show the text if not."""
    assert re.search(pattern, text), text


def assert_refused(bundle: Path, error: type[VarcoError], match: str, **options: Any) -> None:
    """Check that loading a bundle fails with one line in which `match` is found."""
    with pytest.raises(error, match=match) as caught:
        Varco.load(bundle, **options)
    assert "\n" not in str(caught.value)
