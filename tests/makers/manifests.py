"""Manifests as somebody would forge them, and what refuses them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from varco_runtime.bundle import schema
from varco_runtime.bundle.opening import Bundle
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import BundleError

Change = Callable[[dict[str, Any]], object]
FILES = (
    "bundle.json",
    "chat_template.jinja",
    "decoder.onnx",
    "decoder.onnx.data",
    "embedding.bin",
    "projector.onnx",
    "projector.onnx.data",
    "tokenizer.json",
    "vision.onnx",
    "vision.onnx.data",
)
"""The files of a bundle for the CPU."""


def refusal(folder: Path, verify: str = "quick") -> str:
    """Return the one line that refuses a bundle, which must end with what to do next."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder, verify)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"\. [A-Z][^.]* .*[^.]$|\.$", message), f"no next step in: {message}"
    assert len(message) - len(str(folder)) < 300
    return message


def forge(folder: Path, change: Change) -> None:
    """Change a manifest as somebody would who recomputes its digest."""
    document = json.loads((folder / MANIFEST).read_bytes())
    change(document)
    (folder / MANIFEST).write_bytes(schema.serialize(document))


def set_at(path: str, value: Any) -> Change:
    """Return what sets `a/b/0/c` of a document."""

    def change(document: Any) -> None:
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in parents:
            document = document[key]
        document[last] = value

    return change


def hashed(folder: Path, verify: str = "quick") -> set[str]:
    """Return the names of the files that an opening hashes."""
    names: set[str] = set()
    Bundle.open(folder, verify, progress=lambda name, _: names.add(name))
    return names
