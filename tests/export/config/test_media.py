"""What a checkpoint takes beside one picture, found in its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import export_bundle
from varco_export.tiny import TinyOptions, make_tiny, token_ids
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.bundle.settings import MediaSettings
from varco_runtime.errors import CheckpointError


def taken(folder: Path, target: Path) -> MediaSettings:
    found = read_manifest(export_bundle(folder, target)).media
    assert found is not None
    return found


def changed(tmp_path: Path, format_: Any, file: str = "config.json", **values: Any) -> Path:
    """A checkpoint for several pictures and videos with other values in one of its files."""
    folder = make_tiny(tmp_path / "tiny", TinyOptions(video=True, format=format_))
    document = json.loads((folder / file).read_text())
    document.update(values)
    (folder / file).write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))
    return folder


@pytest.mark.parametrize("format_", ["hf", "llava-next"])
def test_a_model_for_several_takes_pictures_and_videos(format_: Any, tmp_path: Path) -> None:
    folder = changed(tmp_path, format_)
    video = ("<video>", token_ids(video=True)["<video>"]) if format_ == "hf" else ("<image>", -200)
    assert taken(folder, tmp_path / "bundle") == MediaSettings(None, *video, None)


@pytest.mark.parametrize("format_", ["hf", "llava-next"])
def test_markup_tokens_over_qwen2_mean_one_picture_and_no_video(format_: Any, tmp_path: Path) -> None:
    options = TinyOptions(format=format_)
    found = taken(make_tiny(tmp_path / "tiny", options), tmp_path / "bundle")
    assert (found.max_images, found.video_token, found.video_token_id) == (1, None, None)
    assert found.no_video == (
        f"its tokenizer has no id for <video>, and its config.json says {token_ids()['[UNK]']}"
        if format_ == "hf"
        else "VARCO-VISION v1 was trained on single pictures"
    )


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "its mm_newline_position is 'grid', LLaVA-Video's packing, which is not implemented": (
        "llava-next",
        {"mm_newline_position": "grid"},
    ),
    "its mm_newline_position is 'no_token', LLaVA-Video's packing, which is not implemented": (
        "llava-next",
        {"mm_newline_position": "no_token"},
    ),
    "its mm_spatial_pool_mode is 'average', expected 'bilinear'": ("llava-next", {"mm_spatial_pool_mode": "average"}),
    "and its config.json says 7": ("hf", {"video_token_index": 7}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_why_there_is_no_video_is_told(reason: str, tmp_path: Path) -> None:
    format_, values = REFUSED[reason]
    found = taken(changed(tmp_path, format_, **values), tmp_path / "bundle")
    assert found.no_video is not None
    assert reason in found.no_video
    assert (found.max_images, found.video_token) == (None, None)  # several pictures all the same


def test_a_template_without_videos_takes_none(tmp_path: Path) -> None:
    single = make_tiny(tmp_path / "single", TinyOptions())
    template = json.loads((single / "chat_template.json").read_text())["chat_template"]
    folder = changed(tmp_path, "hf", "chat_template.json", chat_template=template)
    found = taken(folder, tmp_path / "bundle")
    assert found == MediaSettings(None, None, None, "its chat template writes no placeholder for a video")


def test_llava_next_interleave_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mm_patch_merge_type is 'flat'.*LLaVA-NeXT-Interleave"):
        export_bundle(changed(tmp_path, "llava-next", mm_patch_merge_type="flat"), tmp_path / "bundle")


def test_the_settings_survive_the_manifest(tmp_path: Path) -> None:
    manifest = read_manifest(export_bundle(changed(tmp_path, "hf"), tmp_path / "bundle"))
    assert manifest.media == manifest.media_facts
    assert dataclasses.replace(manifest, media=None).media_facts.max_images == 1
