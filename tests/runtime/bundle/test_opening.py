"""A bundle is opened only when it is exactly what was exported; every message of `bundle.py` is raised here."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from varco_runtime import Varco
from varco_runtime.bundle import opening as bundle_module
from varco_runtime.bundle import schema
from varco_runtime.bundle.bounds import Range
from varco_runtime.bundle.manifest import FORMAT_VERSION, Manifest
from varco_runtime.bundle.opening import MAX_MANIFEST_BYTES, Bundle, read_manifest, write_manifest
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import BundleError, ExportError

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
Change = Callable[[dict[str, Any]], object]
VERSION = f'"format_version": {FORMAT_VERSION}'.encode()


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))


def refusal(folder: Path, verify: str = "quick") -> str:
    """The one line that refuses `folder`."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder, verify)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"\. [A-Z][^.]* .*[^.]$|\.$", message), f"no next step in: {message}"
    assert len(message) - len(str(folder)) < 300
    return message


def forge(folder: Path, change: Change) -> None:
    """Change the manifest as somebody would who recomputes its digest."""
    document = json.loads((folder / MANIFEST).read_bytes())
    change(document)
    (folder / MANIFEST).write_bytes(schema.serialise(document))


def set_at(path: str, value: Any) -> Change:
    """Set `a.b.0.c` of a document."""

    def change(document: Any) -> None:
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in parents:
            document = document[key]
        document[last] = value

    return change


def hashed(folder: Path, verify: str = "quick") -> set[str]:
    """The names of the files that an opening hashes."""
    names: set[str] = set()
    Bundle.open(folder, verify, progress=lambda name, _: names.add(name))
    return names


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_bundle_as_exported_opens_and_holds_the_files_of_its_manifest(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert sorted([MANIFEST, *opened.manifest.files]) == sorted(FILES) == sorted(os.listdir(bundle))


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.full)])
def test_a_flip_of_any_byte_of_the_manifest_is_refused(bundle: Path, step: int) -> None:
    path = bundle / MANIFEST
    raw = path.read_bytes()
    for position in range(0, len(raw), step):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            read_manifest(bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", ["quick", "full"])
def test_a_flipped_byte_of_any_file_is_refused(bundle: Path, name: str, verify: str) -> None:
    Bundle.open(bundle)  # what it remembers must not help
    path = bundle / name
    raw = path.read_bytes()
    for position in (0, len(raw) // 3, len(raw) - 1):
        damaged = bytearray(raw)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        message = refusal(bundle, verify)
        assert f"{path} " in message
        if name != MANIFEST:
            assert "has been altered: its sha256 is" in message


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_is_refused_before_it_is_hashed(bundle: Path, name: str, change: int) -> None:
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, size + change)
    seen: list[str] = []
    with pytest.raises(BundleError, match=f"{name} has {size + change} bytes, expected {size}"):
        Bundle.open(bundle, progress=lambda hashed, _: seen.append(hashed))
    assert name not in seen


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST])
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert refusal(bundle) == f"{bundle / name} is missing. Copy or export the bundle again."


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_to_the_right_content_is_refused(bundle: Path, name: str, tmp_path: Path) -> None:
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    assert f"{name} is a symbolic link, expected a plain file" in refusal(bundle)


def test_two_files_that_changed_places_are_refused(bundle: Path) -> None:
    for one, other in (("vision.onnx", "projector.onnx"), ("decoder.onnx.data", "vision.onnx.data")):
        for left, right in ((one, "aside"), (other, one), ("aside", other)):
            os.rename(bundle / left, bundle / right)
        assert "bytes, expected" in refusal(bundle)


def test_a_file_of_another_bundle_with_the_same_length_is_refused(bundle: Path) -> None:
    path = bundle / "projector.onnx.data"
    other = bundle / "other"
    other.write_bytes(bytes(path.stat().st_size))
    os.replace(other, path)
    assert "projector.onnx.data has been altered" in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_does_not_block_and_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert f"{name} is a folder, pipe or device, expected a plain file" in refusal(bundle)


@pytest.mark.parametrize("name", ["bundle.json", "vision.onnx", "embedding.bin"])
def test_a_folder_in_place_of_a_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    assert "is a folder, pipe or device" in refusal(bundle)


def test_a_socket_in_place_of_a_file_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "vision.onnx").unlink()
    monkeypatch.chdir(bundle)  # a socket's path may have 107 characters
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind("vision.onnx")
        assert "vision.onnx cannot be read (No such device or address), expected a plain file" in refusal(bundle)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_a_device_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "vision.onnx").unlink()
    try:
        os.mknod(bundle / "vision.onnx", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except OSError:
        pytest.skip("no device files can be made here")
    assert "vision.onnx is a folder, pipe or device" in refusal(bundle)


def test_a_linked_folder_inside_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        document["files"]["text/tokenizer.json"] = document["files"].pop("tokenizer.json")
        document["tokenizer"] = "text/tokenizer.json"

    forge(bundle, move)
    (bundle / "text").mkdir()
    (bundle / "tokenizer.json").rename(bundle / "text" / "tokenizer.json")
    Bundle.open(bundle)
    (bundle / "text").rename(tmp_path / "text")
    (bundle / "text").symlink_to(tmp_path / "text")
    assert "tokenizer.json lies behind a symbolic link, expected a plain file" in refusal(bundle)


def test_a_link_to_the_whole_bundle_opens(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    Bundle.open(tmp_path / "current")


# --- a hub's cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The bundle as huggingface_hub lays a download out: `snapshots/REVISION` links to `blobs`."""
    repository = tmp_path / "models--someone--bundle"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in tiny_bundle.iterdir():
        blob = hashlib.sha256(path.name.encode()).hexdigest()
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_bundle_in_a_hubs_cache_answers_as_the_bundle_itself(
    snapshot: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Varco.load(tiny_bundle).ask(None, "Hello", max_new_tokens=8).token_ids
    assert Varco.load(snapshot, verify="full").ask(None, "Hello", max_new_tokens=8).token_ids == expected
    monkeypatch.chdir(snapshot)
    assert Varco.load(".").bundle.manifest == read_manifest(tiny_bundle)


def test_a_blob_of_a_hubs_cache_must_hold_what_the_manifest_says(snapshot: Path) -> None:
    blob = (snapshot / "decoder.onnx").resolve()
    raw = bytearray(blob.read_bytes())
    raw[7] ^= 1
    blob.write_bytes(raw)
    assert "decoder.onnx has been altered" in refusal(snapshot)
    blob.unlink()
    assert "decoder.onnx is missing" in refusal(snapshot)
    os.mkfifo(blob)
    assert "decoder.onnx is a folder, pipe or device" in refusal(snapshot)


def test_a_link_of_a_hubs_cache_to_anything_but_its_blobs_is_refused(snapshot: Path, tmp_path: Path) -> None:
    link = snapshot / "decoder.onnx"
    blob = link.resolve()
    for target in (tmp_path / "outside", tmp_path / "blobs" / "outside", blob.parent / "below" / "it"):
        target.parent.mkdir(exist_ok=True)
        shutil.copy(blob, target)
        link.unlink()
        link.symlink_to(target)
        message = refusal(snapshot)
        assert "decoder.onnx is a symbolic link, expected a plain file or a link within a Hugging Face cache" in message
        assert message.endswith("Copy the files themselves: cp -rL BUNDLE COPY")


def test_a_hubs_cache_whose_blobs_lie_elsewhere_is_refused(snapshot: Path, tmp_path: Path) -> None:
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(tmp_path / "blobs")
    blobs.symlink_to(tmp_path / "blobs")
    assert "is a symbolic link" in refusal(snapshot)


def test_files_that_the_manifest_does_not_name_are_never_opened(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")  # opening it to read would block
    (bundle / "dangling").symlink_to("nowhere")
    (bundle / "README.md").write_text("mine")
    Bundle.open(bundle, verify="full")


def test_a_disk_that_fails_while_a_file_is_hashed_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, descriptor: int, *_: object, **__: object) -> None:
            self.descriptor = descriptor

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self.descriptor)

        def fileno(self) -> int:
            return self.descriptor

        def read(self, _: int) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(bundle_module, "open", Broken, raising=False)
    assert "bundle.json cannot be read (Input/output error). Check the disk" in refusal(bundle)


# --- what is no bundle ------------------------------------------------------------------------------------------------


def test_what_is_no_bundle_says_how_to_make_one(bundle: Path, tmp_path: Path) -> None:
    next_step = "Make one with: varco export CHECKPOINT BUNDLE"
    assert refusal(tmp_path / "x") == f"{tmp_path / 'x'} is not a bundle: there is no such folder. {next_step}"
    assert "vision.onnx is not a bundle: it is a file" in refusal(bundle / "vision.onnx")
    (bundle / MANIFEST).unlink()
    assert refusal(bundle) == f"{bundle} is not a bundle: it holds no bundle.json. {next_step}"


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 10**30])
def test_a_newer_format_version_says_to_upgrade(bundle: Path, version: int) -> None:
    forge(bundle, lambda document: document.update(format_version=version, something="new"))
    message = refusal(bundle)
    assert f"has format version {version}, this varco-edge reads version {FORMAT_VERSION}" in message
    assert "Upgrade varco-edge" in message


def test_a_newer_version_need_not_be_spelled_like_this_one(bundle: Path) -> None:
    (bundle / MANIFEST).write_text(f'{{"format_version": {FORMAT_VERSION + 1}}}')
    assert "Upgrade varco-edge" in refusal(bundle)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION - 1, True, 2.0, "2", None, [1], {}, ["x" * 10_000]])
def test_any_other_format_version_is_refused(bundle: Path, version: object) -> None:
    forge(bundle, lambda document: document.update(format_version=version))
    message = refusal(bundle)
    assert "has format version" in message
    assert message.endswith(" Export the bundle again.")  # a copy of it would be as old


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"format_version"',
        b"\xff\xfe{",
        b'{"format_version": 1',
        b'{"format_version": 1} {}',
        b'{"format_version": NaN}',
        b'{"format_version": 1, "x": Infinity}',
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b'{"format_version": 1, "x": ' + b"[" * 100_000,
        b'{"format_version": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"format_version": 1, "x": ' + b'{"x": ' * 20 + b"1" + b"}" * 21,
    ],
)
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, raw: bytes) -> None:
    (bundle / MANIFEST).write_bytes(raw)
    assert "is not a bundle manifest: it is no JSON object with a format_version" in refusal(bundle)


@pytest.mark.parametrize(
    "respell",
    [
        lambda raw: raw.replace(b" ", b"", 1),
        lambda raw: raw + b"\n",
        lambda raw: raw.decode().encode("utf-16"),
        lambda raw: raw.replace(VERSION, VERSION + b",\n " + VERSION),
        lambda raw: raw.replace(b"0.5", b"0.50", 1),
        lambda raw: raw.replace(b'"digest"', b'"digest2"'),
    ],
)
def test_a_manifest_in_another_spelling_is_refused(bundle: Path, respell: Callable[[bytes], bytes]) -> None:
    raw = (bundle / MANIFEST).read_bytes()
    assert respell(raw) != raw
    (bundle / MANIFEST).write_bytes(respell(raw))
    assert "has been altered: its digest does not match its content" in refusal(bundle)


def test_a_manifest_of_gigabytes_is_refused_unread(bundle: Path) -> None:
    os.truncate(bundle / MANIFEST, 1 << 40)
    assert f"has {1 << 40} bytes, expected at most {MAX_MANIFEST_BYTES}" in refusal(bundle)


# --- hostile values ---------------------------------------------------------------------------------------------------

HOSTILE: list[tuple[str, Any, str]] = [
    # path, value, what the message says
    ("model", None, "model is null, expected an object"),
    ("model", [], "model is a list, expected an object"),
    ("files", 3, "files is an integer, expected an object"),
    ("files/vision.onnx", "x", "files['vision.onnx'] is text, expected an object"),
    ("files/vision.onnx/size", -1, "size is -1, expected 0 to"),
    ("files/vision.onnx/size", 1.5, "size is a number, expected an integer"),
    ("files/vision.onnx/size", True, "size is true or false, expected an integer"),
    ("files/vision.onnx/sha256", "A" * 64, "sha256 is 'AAAA"),
    ("files/vision.onnx/sha256", "", "sha256 has 0 characters, expected 1 to 4096"),
    ("extra", 1, "it holds 'extra', expected only known keys"),
    ("model/\x1b[2J", 1, "model holds '\\x1b[2J', expected only known keys"),
    ("device", "toaster", "device is 'toaster', expected one of: cpu, cuda, tensorrt"),
    ("license", 7, "license is an integer, expected text"),
    ("license", "x" * 5000, "license has 5000 characters, expected 1 to 4096"),
    ("provenance", [], "provenance is a list, expected an object"),
    ("max_context", 10**12, "max_context is 1000000000000, expected 16 to 1048576"),
    ("max_context", 0, "max_context is 0, expected 16 to"),
    ("max_context", 10**4000, "max_context is 1000"),
    ("model/num_layers", 10**9, "model.num_layers is 1000000000, expected 1 to 1024"),
    ("model/num_key_value_heads", 0, "model.num_key_value_heads is 0, expected 1 to 1024"),
    ("model/num_key_value_heads", 3, "num_attention_heads is 4, expected a multiple of model.num_key_value_heads 3"),
    ("model/head_dim", 10**6, "model.head_dim is 1000000, expected"),
    ("model/vocab_size", 10**9, "model.vocab_size is 1000000000, expected"),
    ("model/vocab_size", 514, "embedding has 516 rows of 64, expected 515 of 64"),
    ("model/hidden_size", 128, "embedding has 516 rows of 64, expected 516 of 128"),
    ("embedding", None, "embedding is null, expected the token rows, which a bundle for the CPU reads"),
    ("device", "cuda", "it has no pixels network, expected one in a bundle for cuda"),
    ("device", "tensorrt", "it has no packing network, expected one in a bundle for tensorrt"),
    ("embedding/dtype", "fp16", "embedding.bin has 132096 bytes, expected 66048 by its shape"),
    ("embedding/dtype", "complex", "embedding.dtype is 'complex', expected one of: fp32, fp16, bf16"),
    ("decoder/compute", "int3", "decoder.compute is 'int3', expected one of: fp32, fp16"),
    ("image/tile_px", 10**6, "image.tile_px is 1000000, expected 1 to 4096"),
    ("image/patch_px", 59, "image.patch_px is 59, expected at most image.tile_px 58"),
    ("image/grid_pinpoints", [], "image.grid_pinpoints is empty"),
    ("image/grid_pinpoints", [[58]], "image.grid_pinpoints has 1 entries, expected 2"),
    ("image/grid_pinpoints", [58, 58], "image.grid_pinpoints is an integer, expected a list"),
    ("image/grid_pinpoints", [[58, 59]], "holds [58, 59], expected multiples of image.tile_px 58"),
    ("image/grid_pinpoints", [[58, 10**9]], "image.grid_pinpoints is 1000000000, expected 1 to 65536"),
    ("image/grid_pinpoints", [[58 * 1000, 58 * 1000]], "expected at most 33554432 pixels"),
    ("image/grid_pinpoints", [[58, 58]] * 5000, "image.grid_pinpoints has 5000 entries, expected at most 4096"),
    ("image/max_grid_tiles", 0, "image.max_grid_tiles is 0, expected 1 to"),
    ("image/mean", [0.5, 0.5], "image.mean has 2 entries, expected 3"),
    ("image/mean", [0.5, 0.5, 10**400], "image.mean is 1000"),
    ("image/mean", ["a", "b", "c"], "image.mean is text, expected a number"),
    ("image/std", [0.5, 0.5, 0.0], "image.std is 0.0, expected 1e-06 to"),
    ("image/rescale_factor", 0, "image.rescale_factor is 0, expected"),
    ("prompt/image_token", "", "prompt.image_token has 0 characters"),
    ("prompt/image_token_id", 10**30, "prompt.image_token_id is 1000"),
    ("prompt/content_format", "html", "prompt.content_format is 'html', expected one of: parts, string"),
    ("prompt/markup_tokens", ["<obj>", 7], "prompt.markup_tokens is an integer, expected text"),
    ("generation/eos_token_ids", [-1], "generation.eos_token_ids is -1, expected 0 to"),
    ("generation/repetition_penalty", 0, "generation.repetition_penalty is 0, expected"),
    ("generation/penalise_prompt", 1, "generation.penalise_prompt is an integer, expected true or false"),
    ("generation/suggested", [["top_p", "x"]], "generation.suggested is text, expected a number"),
    ("vision/weight_bytes", -5, "vision.weight_bytes is -5, expected 0 to"),
    ("vision/file", "vision2.onnx", "it names the file 'vision2.onnx', expected a hash of it under files"),
]


@pytest.mark.parametrize(("path", "value", "says"), HOSTILE, ids=lambda value: str(value)[:30])
def test_a_hostile_value_is_refused_by_name(bundle: Path, path: str, value: object, says: str) -> None:
    forge(bundle, set_at(path, value))
    message = refusal(bundle)
    assert "bundle.json does not fit the schema: " in message
    assert says in message


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../b", "a//b", "a/", ".hidden", "a\\..\\b", "a\nb", "a\0b", "", ".", "..", "ü",
     "a/b/c/d/e", "x" * 200, "bundle.json"],
)  # fmt: skip
def test_a_file_name_that_could_leave_the_bundle_is_refused(bundle: Path, name: str) -> None:
    forge(bundle, lambda document: document["files"].update({name: document["files"]["vision.onnx"]}))
    assert "expected a plain relative name" in refusal(bundle)


def test_more_files_than_a_bundle_has_are_refused(bundle: Path) -> None:
    facts = {"size": 0, "sha256": "0" * 64}
    forge(bundle, lambda document: document["files"].update({f"file{index}": facts for index in range(300)}))
    assert "it lists 309 files, expected at most 256" in refusal(bundle)


def test_a_context_of_terabytes_is_refused(bundle: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["model"].update(num_layers=1024, head_dim=4096)
        document["max_context"] = 1 << 20

    forge(bundle, change)
    assert "a full context takes 70368744177664 bytes of keys and values, expected at most" in refusal(bundle)


def paths_of(document: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield f"{prefix}{key}"
            if key != "provenance":
                yield from paths_of(value, f"{prefix}{key}/")


def test_every_key_is_needed(bundle: Path) -> None:
    document = json.loads((bundle / MANIFEST).read_bytes())
    for path in paths_of(document):
        parent, _, key = path.rpartition("/")
        if path in ("digest", "format_version") or parent == "files":
            continue

        def remove(forged: Any, parent: str = parent, key: str = key) -> None:
            for step in filter(None, parent.split("/")):
                forged = forged[step]
            del forged[key]

        (bundle / MANIFEST).write_bytes(schema.serialise(document))
        forge(bundle, remove)
        assert f"{key} is missing, expected it there" in refusal(bundle)


@pytest.mark.parametrize("value", [None, -1, 2**70, 1e300, "", "x", [], [[]], {}, {"x": 1}, True, "\ud800"])
def test_no_value_anywhere_ends_in_anything_but_a_bundle_error(bundle: Path, value: object) -> None:
    original = json.loads((bundle / MANIFEST).read_bytes())
    for path in paths_of(original):
        document = json.loads(json.dumps(original))
        set_at(path, value)(document)
        (bundle / MANIFEST).write_bytes(schema.serialise(document))
        with contextlib.suppress(BundleError):
            read_manifest(bundle)


def test_every_number_of_the_schema_has_limits() -> None:
    def bare_numbers(hint: Any, where: str) -> Iterator[str]:
        if dataclasses.is_dataclass(hint):
            for name, inner in get_type_hints(hint, include_extras=True).items():
                yield from bare_numbers(inner, f"{where}.{name}")
        elif get_origin(hint) is Annotated:
            kind, bound = get_args(hint)
            assert isinstance(bound, Range) == (kind in (int, float)), where
        elif hint in (int, float):
            yield where
        else:
            for inner in get_args(hint):
                yield from bare_numbers(inner, where)

    assert list(bare_numbers(Manifest, "Manifest")) == []
    assert list(bare_numbers(tuple[int, ...], "control")) == ["control"]


def test_a_manifest_that_would_be_refused_is_not_written(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    object.__setattr__(manifest, "max_context", 10**7)
    with pytest.raises(
        ExportError, match=r"No bundle can be made of this checkpoint: max_context is 10000000, expected"
    ):
        write_manifest(tmp_path, manifest)
    assert not list(tmp_path.iterdir())


def test_writing_a_manifest_that_was_read_gives_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, read_manifest(tiny_bundle))
    assert (tmp_path / MANIFEST).read_bytes() == (tiny_bundle / MANIFEST).read_bytes()


def test_text_that_is_not_utf8_is_refused(bundle: Path) -> None:
    template = bundle / "chat_template.jinja"
    template.write_bytes(b"\xff" * template.stat().st_size)
    forge(
        bundle,
        set_at("files/chat_template.jinja/sha256", hashlib.sha256(template.read_bytes()).hexdigest()),
    )
    with pytest.raises(BundleError, match=r"chat_template\.jinja of .* cannot be read"):
        Bundle.open(bundle).text("chat_template.jinja")
