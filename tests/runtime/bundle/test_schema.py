"""A manifest's values: every one is bounded, and every refusal says which, what it is and what was expected."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from tests.makers.manifests import forge, refusal, set_at
from varco_runtime.bundle import schema
from varco_runtime.bundle.bounds import Range
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.bundle.opening import Bundle, digest_of, read_manifest, write_manifest
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import BundleError, ExportError

pytestmark = pytest.mark.usefixtures("empty_cache")

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
        if path in ("digest", "format_version", "media") or parent == "files":
            continue

        def remove(forged: Any, parent: str = parent, key: str = key) -> None:
            for step in filter(None, parent.split("/")):
                forged = forged[step]
            del forged[key]

        (bundle / MANIFEST).write_bytes(schema.serialize(document))
        forge(bundle, remove)
        assert f"{key} is missing, expected it there" in refusal(bundle)


def test_a_bundle_of_before_media_takes_one_picture_and_keeps_its_digest(bundle: Path) -> None:
    forge(bundle, lambda document: document.pop("media"))
    manifest = read_manifest(bundle)
    stated = json.loads((bundle / MANIFEST).read_bytes())["digest"]
    assert digest_of(manifest) == stated
    assert (manifest.media, manifest.media_facts.max_images, manifest.media_facts.video_token) == (None, 1, None)
    before = (bundle / MANIFEST).read_bytes()
    write_manifest(bundle, manifest)
    assert (bundle / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("media/video_token", "<video>", "media.video_token_id is None, expected one if there is a video_token"),
        ("media/video_token_id", 7, "media.video_token_id is 7, expected one if there is a video_token"),
        ("media/max_images", 0, "media.max_images is 0, expected 1 to 1024"),
    ],
)
def test_media_that_contradict_each_other_are_refused(bundle: Path, path: str, value: object, message: str) -> None:
    forge(bundle, set_at(path, value))
    assert message in refusal(bundle)


@pytest.mark.parametrize("value", [None, -1, 2**70, 1e300, "", "x", [], [[]], {}, {"x": 1}, True, "\ud800"])
def test_no_value_anywhere_ends_in_anything_but_a_bundle_error(bundle: Path, value: object) -> None:
    original = json.loads((bundle / MANIFEST).read_bytes())
    for path in paths_of(original):
        document = json.loads(json.dumps(original))
        set_at(path, value)(document)
        (bundle / MANIFEST).write_bytes(schema.serialize(document))
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
