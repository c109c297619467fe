"""The pictures and videos that a command line names, checked before anything is loaded."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from varco_runtime.errors import UsageError

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Media:
    """The pictures and videos of a question, and how videos are looked at.

    Args:
        images: Picture files, `-` for standard input.
        videos: Video files and folders of frames.
        frames: The most frames of a video; None for the default.
        fps: Frames for each second of a video, or None.
        decode_limit_s: Seconds that reading a video may take; None for the default.
        by_options: Whether options named them.
    """

    images: tuple[str, ...] = ()
    videos: tuple[Path, ...] = ()
    frames: int | None = None
    fps: float | None = None
    decode_limit_s: float | None = None
    by_options: bool = False

    def with_arguments(self, first: str | None, second: str | None, no_image: bool) -> tuple[Media, str | None]:
        """Return the media and the prompt, once the arguments behind BUNDLE are known.

        Raises:
            UsageError: Arguments and options name pictures both, or videos are tuned that are not there.
        """
        for name, value in (("--frames", self.frames), ("--fps", self.fps), ("--decode-limit", self.decode_limit_s)):
            if value is not None and not self.videos:
                raise UsageError(f"{name} says how a video is looked at, got none. Add --video FILE.")
        option = "--image" if self.images else "--video"
        if no_image and (self.images or self.videos):
            raise UsageError(f"--no-image asks without a picture, got {option} as well. Leave one out.")
        if no_image:
            option = "--no-image"
        elif not (self.images or self.videos):
            return replace(self, images=() if first is None else (first,)), second
        if second is not None:
            if no_image:
                raise UsageError(
                    "--no-image takes a prompt only, got a second argument. Put the prompt in quotes, or leave out "
                    "--no-image."
                )
            raise UsageError(
                f"With {option} the one argument behind BUNDLE is the prompt, got two. Put the prompt in quotes, or "
                "name every picture by --image."
            )
        return replace(self, by_options=not no_image), first

    def check(self, task: str, no_image: bool) -> None:
        """Check that there is what the task looks at, and that standard input holds a picture.

        Raises:
            UsageError: It does not.
        """
        if not (self.images or self.videos or no_image):
            expected = "IMAGE --task ocr" if task == "ocr" else "IMAGE PROMPT, or --no-image and a prompt."
            raise UsageError(f"No picture was given. Expected: varco run BUNDLE {expected}")
        # None: whoever started the command closed it.
        if STDIN in self.images and (sys.stdin is None or sys.stdin.isatty()):
            got = "none is open" if sys.stdin is None else "got a terminal"
            raise UsageError(f"- reads a picture from standard input, {got}. Expected: varco run BUNDLE - < IMAGE")
        if self.images.count(STDIN) > 1:
            raise UsageError("- reads one picture from standard input, got it twice. Name the others' files.")

    @property
    def no_single_picture(self) -> str:
        """Return what is there instead of one picture, for people; empty where there is one."""
        if len(self.images) == 1:
            return ""
        if self.images:
            return f"{len(self.images)} pictures"
        return "a video" if self.videos else "--no-image"

    @property
    def name(self) -> str:
        """Return what documents call the picture; empty where there is not one."""
        if len(self.images) != 1:
            return ""
        return "standard input" if self.images[0] == STDIN else os.path.basename(self.images[0])

    def load(self, bundle: Path) -> list[Any]:
        """Return pictures, then videos, opened.

        Args:
            bundle: What will be asked, whose tiles the frames of videos are scaled to.

        Raises:
            ImageError: A picture or a video cannot be opened.
            BundleError: The bundle cannot be read.
        """
        from varco_runtime.bundle.opening import read_manifest
        from varco_runtime.picture.loading import load_picture

        loaded: list[Any] = [load_picture(sys.stdin.buffer if image == STDIN else image) for image in self.images]
        if not self.videos:
            return loaded
        from varco_runtime.video.video import Video

        given = {"frames": self.frames, "fps": self.fps, "decode_limit_s": self.decode_limit_s}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        facts = read_manifest(bundle)
        if facts.media_facts.video_token is None:
            return [*loaded, *(Video(path, **options) for path in self.videos)]  # refused, without being decoded
        videos = [Video(path, **options) for path in self.videos]
        for video in videos:
            video.tiles(facts.image.tile_px)
        return [*loaded, *videos]
