"""`varco verify`: hash every file of a bundle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from varco_runtime.cli.console import note, print_table, size_text, write_document
from varco_runtime.cli.progress import HashProgress
from varco_runtime.errors import BundleError


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> None:
    """Hash every file of a bundle and compare it with the manifest."""
    from varco_runtime.bundle import check_file, read_manifest
    from varco_runtime.verified import Remembered

    manifest = read_manifest(bundle)
    remembered = Remembered.load()
    faults: dict[str, str] = {}
    with HashProgress({name: facts.size for name, facts in manifest.files.items()}) as progress:
        for name, facts in sorted(manifest.files.items()):
            try:
                check_file(bundle, name, facts, remembered, full=True, progress=progress)
            except BundleError as error:
                faults[name] = str(error)
    remembered.save()

    if as_json:
        files = [
            {"file": name, **asdict(facts), "ok": name not in faults, "error": faults.get(name)}
            for name, facts in sorted(manifest.files.items())
        ]
        document = {"bundle": str(bundle), "ok": not faults, "files": files}
        write_document(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        rows = [
            ("BAD" if name in faults else "ok", name, size_text(facts.size), facts.sha256[:16] + "…")
            for name, facts in sorted(manifest.files.items())
        ]
        print_table(str(bundle), ("", "file", "size", "sha256 as recorded"), rows, right=(2,))
    if faults:
        *others, last = (faults[name] for name in sorted(faults))
        for fault in others:
            note(fault)
        raise BundleError(last)
