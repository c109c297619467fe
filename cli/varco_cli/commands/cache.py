"""`varco cache`: what is kept between runs, how much of it, and how to be rid of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from varco_cli.arguments import JsonOption
from varco_cli.console import note, print_facts, size_text, write, write_document
from varco_runtime.errors import UsageError, VarcoError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_PARTS = {
    "prepacked": "packed weights",
    "kernels": "compiled kernels",
    "timings": "kernel timings",
    "verified": "remembered hashes",
}


def cache(
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Keep at most this much from now on, such as 2GB or 500MB; 0 keeps nothing large.",
            show_default=False,
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it, the limit too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is kept between runs to start faster, bound it, or remove it."""
    from varco_runtime.system import cache_folder as kept

    if limit is not None and clear:
        raise UsageError("--clear removes the limit as well, got --limit with it. Leave one out.")
    max_bytes = None if limit is None else _bytes_of(limit)
    try:
        folder = kept.cache_folder()
    except RuntimeError as error:
        raise VarcoError(f"There is no cache folder: {error}. Set VARCO_EDGE_CACHE to a folder of your own.") from None
    if clear:
        note(f"{size_text(kept.clear(folder))} removed from {folder}")
    elif max_bytes is not None:
        if not kept.set_max_cache_bytes(max_bytes):
            fault = kept.cache_fault() or f"{folder} cannot be written. Set VARCO_EDGE_CACHE to a folder of your own."
            raise VarcoError(f"The limit could not be kept. {fault}")
        removed = kept.drop_oldest(kept.entries_of(folder), max_bytes)
        note(f"{size_text(removed)} removed from {folder}")
    document = _document(folder)
    if as_json:
        write_document(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print(document)


def _bytes_of(limit: str) -> int:
    """Return the bytes of a size such as `1.5 GB`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]?B)?", limit.strip().upper(), re.ASCII)
    if not match or (not match[2] and match[1] != "0"):
        raise UsageError(f"--limit {limit} is no size. Expected a number and its unit, such as 2GB or 500MB, or 0.")
    return int(float(match[1]) * {**_UNITS, "B": 1}[match[2] or ""])


def _document(folder: Path) -> dict[str, Any]:
    """Return what lies in the cache folder, as a JSON document."""
    from varco_runtime.system import cache_folder as kept

    paths = {
        "prepacked": [folder / "prepacked"],
        "kernels": [folder / "kernels"],
        "timings": sorted(folder.glob("timings-*.cache")),
        "verified": [folder / "verified.json"],
    }
    sizes = {name: sum(map(kept.num_bytes, files)) for name, files in paths.items()}
    return {
        "folder": str(folder),
        "fault": kept.cache_fault(),
        "bytes": sum(sizes.values()),
        "limit_bytes": kept.max_cache_bytes(),
        "parts_bytes": sizes,
        "num_packed": sum(1 for entry in kept.entries_of(folder) if entry.parent.name == "prepacked"),
    }


def _print(document: dict[str, Any]) -> None:
    count = document["num_packed"]
    networks = f", of {count} network{'' if count == 1 else 's'}" if count else ""
    facts = [("in all", f"{size_text(document['bytes'])}, at most {size_text(document['limit_bytes'])}")]
    for name, words in _PARTS.items():
        num_bytes = document["parts_bytes"][name]
        facts.append((words, size_text(num_bytes) + (networks if name == "prepacked" else "") if num_bytes else "none"))
    print_facts(document["folder"], facts)
    if document["fault"]:
        note(f"note: {document['fault']} Nothing in it is used.")
    elif document["bytes"]:
        write("\nAll of it is made again when it is needed. Remove it with: varco cache --clear\n")
