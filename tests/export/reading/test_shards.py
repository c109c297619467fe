"""Shards and their index that are broken, cut off, exchanged or no files: each is one line that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.makers.refusals import refusal
from tests.makers.shard_files import write_header
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.reading.shards import _unique_keys
from varco_export.reading.tensor import NUMPY_DTYPES, Tensor

EMBEDDING = "language_model.embed_tokens.weight"


def test_a_truncated_shard_is_named_before_anything_is_read(copy: Callable[..., Path]) -> None:
    shard = copy() / "model.safetensors"
    content = shard.read_bytes()
    for size, message in (
        (4, "model.safetensors is 4 bytes long, expected a safetensors file"),
        (100, "is truncated inside its header at 100 bytes"),
        (len(content) - 1, "is truncated: "),
    ):
        shard.write_bytes(content[:size])
        assert message in refusal(lambda: Checkpoint.open(shard.parent))


def test_a_shard_with_bytes_behind_its_last_tensor_is_refused(copy: Callable[..., Path]) -> None:
    shard = copy() / "model.safetensors"
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert "the end of its last tensor" in refusal(lambda: Checkpoint.open(shard.parent))


def test_a_shard_truncated_while_it_is_read_is_named(copy: Callable[..., Path]) -> None:
    folder = copy()
    checkpoint = Checkpoint.open(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    message = refusal(lambda: [checkpoint.tensor(name).read() for name in checkpoint.tensors])
    assert "model.safetensors was truncated while lm_head.weight was read" in message


def test_a_shard_that_vanishes_is_named(tmp_path: Path) -> None:
    tensor = Tensor("image_newline", "fp32", (4,), tmp_path / "model.safetensors", 0)
    assert "model.safetensors cannot be read (No such file" in refusal(tensor.read)


def test_a_shard_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "model.safetensors cannot be read (Is a directory)" in refusal(lambda: Checkpoint.open(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "LICENSE", "README.md"],
)
def test_a_fifo_in_the_place_of_a_file_is_never_waited_for(copy: Callable[..., Path], name: str) -> None:
    folder = copy(num_shards=2 if "index" in name or "-of-" in name else 1)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name in ("LICENSE", "README.md"):
        for other in {"README.md"} - {name}:
            (folder / other).unlink()
        assert Checkpoint.open(folder).provenance["license"] == "unknown"
    else:
        assert f"{name} cannot be read (Not a regular file)" in refusal(lambda: Checkpoint.open(folder))


def test_a_fifo_that_took_a_shards_place_is_never_waited_for(copy: Callable[..., Path]) -> None:
    folder = copy()
    tensor = Checkpoint.open(folder).tensor(EMBEDDING)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "model.safetensors cannot be read" in refusal(tensor.read)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_number_that_is_none_is_refused_by_name_wherever_it_is(
    copy: Callable[..., Path], dtype: Any, value: float
) -> None:
    folder = copy(dtype=dtype)
    tensor = Checkpoint.open(folder).tensor(EMBEDDING)
    for index in (0, 515 * 64 - 1):
        with tensor.path.open("r+b") as file:
            file.seek(tensor.offset + index * NUMPY_DTYPES[dtype].itemsize)
            kept = file.read(NUMPY_DTYPES[dtype].itemsize)
            file.seek(-len(kept), os.SEEK_CUR)
            file.write(np.array(value, NUMPY_DTYPES[dtype]).tobytes())
        assert f"{EMBEDDING} holds NaN or infinity in model.safetensors" in refusal(lambda: list(tensor.blocks(1000)))
        assert f"{EMBEDDING} holds NaN or infinity in model.safetensors" in refusal(
            lambda: list(tensor.column_blocks())
        )
        with tensor.path.open("r+b") as file:
            file.seek(tensor.offset + index * NUMPY_DTYPES[dtype].itemsize)
            file.write(kept)
    assert len(tensor.read()) == 515


@pytest.mark.parametrize("num_dims", [9, 300, 200_000])
def test_a_tensor_of_many_dimensions_is_refused(tmp_path: Path, num_dims: int) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [(1 << 59) + 1] * num_dims, "data_offsets": [0, 4]}})
    write_header(tmp_path / "model.safetensors", header.encode(), bytes(4))
    assert f"gives a {num_dims} dimensions, expected at most 8" in refusal(lambda: Checkpoint.open(tmp_path))


def test_a_name_that_stands_twice_is_found_in_linear_time() -> None:
    class Name(str):
        num_compared = 0

        def __eq__(self, other: object) -> bool:
            Name.num_compared += 1
            return str.__eq__(self, other)  # type: ignore[arg-type]

        __hash__ = str.__hash__

    names = [Name(number) for number in range(10_000)]
    with pytest.raises(ValueError, match="'9999' stands there twice"):
        _unique_keys([(name, None) for name in [*names, Name(9999)]])
    assert Name.num_compared < 10 * len(names)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "has a header that is not JSON"),
        (b"\xff\xfe", "has a header that is not JSON"),
        (b"[" * 200_000, "has a header that is not JSON"),
        (b"[]", "has a header that is not a JSON object"),
        (b'{"a":{"a":1,"a":2}}', "'a' stands there twice"),
        (b'{"a":{}}', "describes a as {}, expected dtype, shape and data_offsets"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "describes a as"),
        (b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "describes a as"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', "describes a as"),
        (b'{"a":{"dtype":"F32","shape":[1e3],"data_offsets":[0,4]}}', "describes a as"),
        (b'{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}', "holds a in the unknown dtype Q4"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "gives a 4 bytes, expected 8 for F32 [2]"),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', "is truncated: a ends at byte"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
            "has b at byte 2 of its data, expected byte 4, without overlap or gap",
        ),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "has a at byte 4 of its data, expected byte 0"),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    write_header(tmp_path / "model.safetensors", header, bytes(8))
    assert message in refusal(lambda: Checkpoint.open(tmp_path))


def test_a_header_of_more_than_100_mb_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little"))
    assert "claims a header of 4611686018427387904 bytes, expected at most 100000000" in refusal(
        lambda: Checkpoint.open(tmp_path)
    )


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", "..\\x.safetensors"]
)
def test_an_index_that_points_elsewhere_is_refused(copy: Callable[..., Path], name: str) -> None:
    folder = copy(num_shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"image_newline": name}}))
    assert "names the shard" in refusal(lambda: Checkpoint.open(folder))


def test_an_index_without_a_weight_map_is_refused(tmp_path: Path) -> None:
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": []}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        assert "has no usable weight_map" in refusal(lambda: Checkpoint.open(tmp_path))


def test_an_index_of_any_size_is_bounded(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.touch()
    os.truncate(index, (64 << 20) + 1)
    assert "has more than 67,108,864 bytes" in refusal(lambda: Checkpoint.open(tmp_path))


def test_a_missing_shard_is_named(copy: Callable[..., Path]) -> None:
    folder = copy(num_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing from" in refusal(lambda: Checkpoint.open(folder))


def test_a_tensor_in_the_index_but_not_in_its_shard_is_named(copy: Callable[..., Path]) -> None:
    folder = copy(num_shards=2)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["image_newline"] = "model-00001-of-00002.safetensors"
    values["weight_map"]["extra"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(values))
    assert "extra" in refusal(lambda: Checkpoint.open(folder))
    assert "expected there by model.safetensors.index.json" in refusal(lambda: Checkpoint.open(folder))
