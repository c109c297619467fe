"""The folder that a run fills, and that a run which was killed is continued from.

    .OUT.varco-quantize/
      lock                      held by the run that fills the folder; it dies with its process
      run.json                  what the run was asked for, checkpoint and calibration included
      checkpoint/               the shards so far; renamed to OUT at the end
      activations-00003.bin     what flows into layer 3
      originals-00003.bin       the same by the layers as they were, of what is held out or compensated
      activations-00003-mlp.bin, originals-00003-mlp.bin    between layer 3's halves, while it is made
      layer-00002.json          what rounding cost the linears of layer 2; head.json, the head and the whole model

Unlike an export's, this folder outlives an error and a kill: a 14B takes hours. A layer is finished when its shard is
there. Its outputs are written before, and its inputs removed after, so that whatever is lost by a kill can be computed
again from what is there, to the same bytes (with as many threads: their number changes the order of sums). Only a run
of the same command may continue it; OUT is whole or absent.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varco_export.writing.disk import disk_errors, sync
from varco_export.writing.lock import locked
from varco_runtime.errors import ExportError
from varco_runtime.system.files import durable_file

_CONTINUE = (
    "Expected a writable folder with enough free space; run the same command again to continue where it stopped."
)


@dataclass(frozen=True, slots=True)
class Work:
    """An opened work folder, the folder `target` that comes of it, and how many shards that will have."""

    folder: Path
    target: Path
    num_shards: int

    @property
    def checkpoint(self) -> Path:
        """Return the folder that becomes OUT."""
        return self.folder / "checkpoint"

    def shard(self, number: int) -> Path:
        """Return the path of shard `number`, from 1."""
        return self.checkpoint / f"model-{number:05}-of-{self.num_shards:05}.safetensors"

    def activations(self, layer: int) -> Path:
        """Return the path of what flows into a layer."""
        return self.folder / f"activations-{layer:05}.bin"

    def originals(self, layer: int) -> Path:
        """Return the path of what flows into a layer of the original."""
        return self.folder / f"originals-{layer:05}.bin"

    def between(self, path: Path) -> Path:
        """Return the path of what flows into the layer's second half, of that of what flows into the layer."""
        return path.with_name(f"{path.stem}-mlp.bin")

    def keep_activations(self, layer: int | None) -> None:
        """Remove all activations but those that flow into `layer`."""
        kept = () if layer is None else (self.activations(layer), self.originals(layer))
        for path in (*self.folder.glob("activations-*"), *self.folder.glob("originals-*")):
            if path not in kept:
                path.unlink()

    def write_facts(self, name: str, facts: Mapping[str, float]) -> None:
        """Write what was measured under a name. It is there when it is complete."""
        with durable_file(self.folder / f"{name}.json") as file:
            file.write(json.dumps(facts, indent=2).encode())
        sync(self.folder)

    def read_facts(self, name: str) -> dict[str, float]:
        """Return what was measured under a name, nothing where that was not."""
        path = self.folder / f"{name}.json"
        found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def publish(self) -> None:
        """Rename the checkpoint to OUT and remove the rest.

        Every file is on the disk before the rename is: after a power cut OUT is whole or absent too.
        """
        for path in self.checkpoint.iterdir():
            sync(path)
        sync(self.checkpoint)
        if os.path.lexists(self.target):
            raise _exists(self.target)
        self.checkpoint.replace(self.target)
        sync(self.target.parent)
        shutil.rmtree(self.folder, ignore_errors=True)


def check_target(target: Path) -> None:
    """Refuse a `target` that exists: before minutes of reading pictures, rather than after."""
    work = _work_of(target)
    if os.path.lexists(work.target):
        if not work.checkpoint.exists():  # killed after the rename
            shutil.rmtree(work.folder, ignore_errors=True)
        raise _exists(work.target)


def _work_of(target: Path, num_shards: int = 0) -> Work:
    target = Path(os.path.abspath(target))
    return Work(target.with_name(f".{target.name}.varco-quantize"), target, num_shards)


@contextmanager
def resumable_folder(target: Path, asked: dict[str, Any], num_shards: int) -> Iterator[Work]:
    """Open the work folder of `target`, new or as an earlier run of the same `asked` left it.

    Args:
        target: The folder that is made in the end.
        asked: What the run is asked for; a run that continues another must be asked for the same.
        num_shards: How many shards the result has.

    Raises:
        ExportError: `target` exists, another run fills the folder, an earlier one was asked for something else, or the
            disk refuses.
    """
    check_target(target)
    work = _work_of(target, num_shards)
    busy = f"{work.target} is being made by another run. Wait until it ends, or choose another output folder."
    with disk_errors(work.folder, _CONTINUE):
        work.folder.mkdir(parents=True, exist_ok=True)
        with locked(work.folder / "lock", busy):
            _claim(work, asked)
            yield work


def _claim(work: Work, asked: dict[str, Any]) -> None:
    """Remember what is asked for, or compare it with what an earlier run was asked for."""
    path = work.folder / "run.json"
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        others = sorted(key for key in asked.keys() | before.keys() if asked.get(key) != before.get(key))
        if others:
            raise ExportError(
                f"{work.folder} holds an unfinished run with another {', '.join(others)}. Run the same command as "
                f"before to finish it, or remove the folder to begin anew."
            )
    else:
        shutil.rmtree(work.checkpoint, ignore_errors=True)
        work.keep_activations(None)
        with durable_file(path) as file:
            file.write(json.dumps(asked, indent=2, sort_keys=True).encode())
        sync(work.folder)
    work.checkpoint.mkdir(exist_ok=True)


def _exists(target: Path) -> ExportError:
    return ExportError(f"{target} exists already. Choose another output folder or remove it.")
