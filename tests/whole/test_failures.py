"""What goes wrong from checkpoint to answer is one clear line, exit status 1, and leaves no half-written output.

Each failure goes through the Python API, and through the command as a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.makers.picture_files import png_chunk
from varco_runtime import Varco
from varco_runtime.bundle.manifest import FORMAT_VERSION
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.bundle.schema import MANIFEST, serialize
from varco_runtime.errors import (
    BundleError,
    CheckpointError,
    ContextError,
    ExportError,
    ImageError,
    PromptError,
    VarcoError,
)
from varco_runtime.picture.loading import load_picture


@dataclass(frozen=True, slots=True)
class Place:
    """Where a failure is made: a checkpoint and a bundle to damage, a good picture, an output that must not appear."""

    checkpoint: Path
    bundle: Path
    picture: Path
    output: Path

    def ask(self, picture: Path | None = None, prompt: str = "What is this?") -> None:
        Varco.load(self.bundle).ask(picture or self.picture, prompt, max_new_tokens=1)

    def export(self) -> None:
        export_bundle(self.checkpoint, self.output)


@dataclass(frozen=True, slots=True)
class Failure:
    """`break_it` damages something; `call` and `command` then fail with `error`, saying `says`."""

    name: str
    break_it: Callable[[Place], object]
    call: Callable[[Place], object]
    command: Callable[[Place], list[str | Path]]
    error: type[VarcoError]
    says: str
    status: int = 1


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def make_newer(place: Place) -> None:
    document = json.loads((place.bundle / MANIFEST).read_bytes())
    document["format_version"] = FORMAT_VERSION + 1
    (place.bundle / MANIFEST).write_bytes(serialize(document))


def write_bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that claims 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000))), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def ask_command(place: Place, *more: str) -> list[str | Path]:
    return ["run", place.bundle, place.picture, *(more or ("What is this?",)), "--max-new-tokens", "1"]


def export_command(place: Place) -> list[str | Path]:
    return ["export", place.checkpoint, place.output]


def outside_box(place: Place) -> None:
    Varco.load(place.bundle).refer(place.picture, "What is {object}?", text="it", box=(0.1, 0.1, 1.2, 0.5))


LONG = "a b c d " * 4000

FAILURES = [
    Failure(
        "a truncated shard",
        lambda place: cut_in_half(place.checkpoint / "model.safetensors"),
        Place.export,
        export_command,
        CheckpointError,
        "model.safetensors is truncated: ",
    ),
    Failure(
        "an output that cannot be written",
        lambda place: (place.output.parent / ".out.varco-partial").touch(),
        Place.export,
        export_command,
        ExportError,
        "out could not be written: File exists",
    ),
    Failure(
        "a flipped byte in the weights",
        lambda place: flip(place.bundle / "decoder.onnx.data"),
        Place.ask,
        ask_command,
        BundleError,
        "decoder.onnx.data has been altered: its sha256 is ",
    ),
    Failure(
        "a flipped byte in the manifest",
        lambda place: flip(place.bundle / MANIFEST),
        Place.ask,
        ask_command,
        BundleError,
        "bundle.json ",
    ),
    Failure(
        "a missing file",
        lambda place: (place.bundle / "tokenizer.json").unlink(),
        Place.ask,
        ask_command,
        BundleError,
        "tokenizer.json is missing. ",
    ),
    Failure(
        "a newer format version",
        make_newer,
        Place.ask,
        ask_command,
        BundleError,
        f"has format version {FORMAT_VERSION + 1}, this varco-edge reads version {FORMAT_VERSION}. Upgrade varco-edge",
    ),
    Failure(
        "an image bomb",
        lambda place: write_bomb(place.picture),
        Place.ask,
        ask_command,
        ImageError,
        "too large to be opened safely. Expected at most ",
    ),
    Failure(
        "a corrupt image",
        lambda place: cut_in_half(place.picture),
        Place.ask,
        ask_command,
        ImageError,
        "cannot be decoded: ",
    ),
    Failure(
        "a box outside 0-1",
        lambda place: None,
        outside_box,
        lambda place: ask_command(place, "{object}?", "--task", "refer", "--text", "it", "--box", "0.1,0.1,1.2,0.5"),
        PromptError,
        "is not inside the picture: expected x1, y1, x2, y2 with ",
        status=2,  # the command got it as an option
    ),
    Failure(
        "a prompt longer than the context",
        lambda place: None,
        lambda place: place.ask(prompt=LONG),
        lambda place: ask_command(place, LONG),
        ContextError,
        "the context holds 10240 and needs room for an answer. ",
    ),
]
every_failure = pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)


@pytest.fixture
def place(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> Place:
    (tmp_path / "outputs").mkdir()
    picture = tmp_path / "picture.png"
    Image.effect_noise((80, 60), 90).save(picture)
    return Place(
        shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"),
        shutil.copytree(tiny_bundle, tmp_path / "bundle"),
        picture,
        tmp_path / "outputs" / "out",
    )


@every_failure
def test_a_failure_is_one_line_of_its_own_kind(failure: Failure, place: Place) -> None:
    failure.break_it(place)
    before = sorted(place.output.parent.iterdir())
    with pytest.raises(failure.error) as caught:
        failure.call(place)
    assert failure.says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(place.output.parent.iterdir()) == before


@every_failure
def test_a_failed_command_prints_one_line_and_its_status(failure: Failure, place: Place) -> None:
    failure.break_it(place)
    before = sorted(place.output.parent.iterdir())
    command = [sys.executable, "-m", "varco_cli.main", *failure.command(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (failure.status, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("varco: ")
    assert failure.says in line
    assert "Traceback" not in line
    assert sorted(place.output.parent.iterdir()) == before


def test_a_failed_run_writes_no_picture(place: Place) -> None:
    flip(place.bundle / "vision.onnx")
    overlay = place.output.with_suffix(".png")
    command = [sys.executable, "-m", "varco_cli.main", *ask_command(place), "--save", overlay]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    assert not list(overlay.parent.iterdir())


def test_a_flipped_byte_of_any_file_stops_a_load(tiny_bundle: Path, place: Place) -> None:
    for name in (MANIFEST, *read_manifest(tiny_bundle).files):
        flip(place.bundle / name)
        with pytest.raises(BundleError, match=name):
            Varco.load(place.bundle)
        shutil.copy(tiny_bundle / name, place.bundle / name)
    Varco.load(place.bundle)


def test_a_model_answers_on_after_a_failed_question(place: Place) -> None:
    varco = Varco.load(place.bundle)
    expected = varco.ask(place.picture, "What is this?", max_new_tokens=8).token_ids
    bomb = place.picture.with_name("bomb.png")
    write_bomb(bomb)
    for picture, prompt in ((bomb, "What?"), (place.picture, LONG)):
        with pytest.raises((ImageError, ContextError)):
            varco.ask(picture, prompt)
    assert varco.ask(place.picture, "What is this?", max_new_tokens=8).token_ids == expected


def test_a_bomb_is_refused_before_it_takes_memory(place: Place) -> None:
    write_bomb(place.picture)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            load_picture(io.BytesIO(place.picture.read_bytes()))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
