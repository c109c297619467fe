"""Small JSON files of a checkpoint: read within bounds, or refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.makers import refusals
from varco_export.reading.json_file import MAX_NESTING, open_plain, read_head, read_json, read_text
from varco_runtime.errors import CheckpointError


def refusal(path: Path, max_bytes: int = 1000) -> str:
    return refusals.refusal(lambda: read_json(path, max_bytes=max_bytes))


def test_an_object_is_read_through_a_link_as_the_hubs_cache_has_it(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"a": [1, {"b": "\\ud83d\\ude00"}]}')
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    assert read_json(tmp_path / "config.json") == {"a": [1, {"b": "\U0001f600"}]}


def test_a_missing_file_is_named_unless_it_may_be_missing(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json", required=False) == {}
    assert f"absent.json is missing from {tmp_path}" in refusal(tmp_path / "absent.json")


@pytest.mark.parametrize("required", [True, False])
def test_a_link_to_nothing_is_not_a_missing_file(tmp_path: Path, required: bool) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    with pytest.raises(CheckpointError, match="is a link to nothing, expected a file"):
        read_json(tmp_path / "config.json", required)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert "it is a folder, pipe or device" in refusal(tmp_path / "config.json")
    assert read_head(tmp_path / "config.json", 10) == ""


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_a_device_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    for path in (tmp_path / "config.json", tmp_path):
        assert "cannot be read (" in refusal(path)
        with pytest.raises(CheckpointError, match="expected a plain file"):
            open_plain(path)


def test_a_file_beyond_its_bound_is_refused_and_one_at_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read_json(path, max_bytes=8) == {"a": 1}
    assert "has more than 7 bytes" in refusal(path, max_bytes=7)


@pytest.mark.parametrize("opening", ['{"a": ', "["])
def test_nesting_beyond_any_real_files_is_refused(tmp_path: Path, opening: str) -> None:
    path, closing = tmp_path / "config.json", "]" if opening == "[" else "}"
    for depth in (MAX_NESTING, 500, 100_000):
        path.write_text('{"x": ' + opening * depth + "1" + closing * depth + "}")
        assert "is not JSON" in refusal(path, max_bytes=1 << 20)
    depth = MAX_NESTING - 1
    path.write_text('{"x": ' + opening * depth + "1" + closing * depth + "}")
    assert list(read_json(path)) == ["x"]


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '{"x": [{"a": 1, "b": 2, "a": 3}]}'])
def test_a_key_that_comes_twice_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert "the key 'a' comes twice" in refusal(tmp_path / "config.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a": "\\ud800"}', b'{"a": ' + b"9" * 5000 + b"}", b"[1]"])
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    assert "expected" in refusal(tmp_path / "config.json", max_bytes=10_000)


def test_many_keys_are_read_in_linear_time(tmp_path: Path) -> None:
    """Repeated keys are looked for by counting: a search of the list for each key took minutes for so many."""
    path = tmp_path / "config.json"
    pairs = ", ".join(f'"k{number}": {number}' for number in range(100_000))
    path.write_text(f'{{{pairs}, "k99999": 0}}')
    assert "the key 'k99999' comes twice" in refusal(path, max_bytes=4 << 20)
    path.write_text(f"{{{pairs}}}")
    assert len(read_json(path)) == 100_000


def test_a_text_for_people_is_cut_and_never_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"a\r\nb\xff" + b"c" * 100)
    assert read_head(tmp_path / "README.md", 6) == "a\nb\ufffdc"
    assert read_head(tmp_path / "LICENSE", 5) == ""


def test_text_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text(json.dumps("그림", ensure_ascii=False), encoding="utf-8")
    assert read_text(tmp_path / "merges.txt", 100) == '"그림"'
