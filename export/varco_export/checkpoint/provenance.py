"""Where a checkpoint comes from and under which licence, as the bundle's manifest tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from varco_export.config.model_config import ModelConfig
from varco_export.reading.json_file import read_head

_HEAD_BYTES = 64 << 10


def read_provenance(folder: Path, repo_id: str | None, shards: list[Path], config: ModelConfig) -> dict[str, Any]:
    """Return source, revision, format, shards, licence and notes of a checkpoint, as the manifest tells them.

    Args:
        folder: The checkpoint.
        repo_id: The Hugging Face repository that it was downloaded from, or None.
        shards: The files that hold its tensors.
        config: Its configuration.
    """
    source = repo_id or folder.resolve().name
    return {
        "source": source,
        "revision": folder.name if repo_id else None,  # the hub's cache names a snapshot's folder by its commit
        "format": config.family,
        "shards": [{"name": shard.name, "size": shard.stat().st_size} for shard in shards],
        "license": find_license(folder, source),
        "notes": list(config.notes),
    }


def find_license(folder: Path, source: str) -> str:
    """Return the licence as README.md's front matter names it, as its LICENSE file reads, or "unknown"."""
    front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", read_head(folder / "README.md", _HEAD_BYTES), re.DOTALL)
    if front:
        for key in ("license_name", "license"):
            stated = re.search(rf"^{key}:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?[\"']?([\w.+-]+)", front[1], re.MULTILINE)
            if stated and stated[1] != "other":
                return stated[1].lower()
    for path in sorted(folder.glob("LICENSE*")):
        text = f"{path.name} {read_head(path, _HEAD_BYTES)[:2000]}".lower().replace("-", " ")
        for words, name in _LICENSE_WORDS:
            if words in text:
                return name
    return "cc-by-nc-4.0" if "varco-vision" in source.lower() else "unknown"


_LICENSE_WORDS = (
    ("attribution noncommercial 4.0", "cc-by-nc-4.0"),
    ("cc by nc 4.0", "cc-by-nc-4.0"),
    ("apache license", "apache-2.0"),
    ("mit license", "mit"),
    ("tongyi qianwen", "tongyi-qianwen"),
)
