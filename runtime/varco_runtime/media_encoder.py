"""Media become image tokens on a backend, as few of them as possible and as many at a time as it holds."""

from __future__ import annotations

import time
from collections.abc import Generator, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from varco_runtime.backend import Backend, HoldsMedia, HoldsSlots, KeepsPrefixes, pixel_path
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.generation.prefix_cache import Memory, Span
from varco_runtime.picture.media import Medium
from varco_runtime.picture.packing import largest_picture, media_plan, num_medium_tokens, pooled_side
from varco_runtime.picture.tiles import media_tiles, num_tiles


@dataclass(frozen=True, slots=True)
class Place:
    """A picture, or a part of a video that a device takes at a time, and where its image tokens stand."""

    medium: Medium
    span: Span


class Pace(Protocol):
    """How many tiles run at once, while answers under way wait for them."""

    def num_tiles(self, num_left: int) -> int:
        """Return how many of the tiles that are left to run now."""

    def tiles(self, done: int, num_tiles: int, total: int) -> AbstractContextManager[None]:
        """Return a context in which the next tiles of a medium run, for whoever counts and reports them."""


@dataclass(slots=True)
class VisionTimes:
    """Seconds of a prompt's media: `preprocess_s` to their tiles, `vision_s` from these to image tokens; 0 if known.

    `num_encoded` counts the media that were not known.
    """

    preprocess_s: float = 0.0
    vision_s: float = 0.0
    num_encoded: int = 0


class MediaEncoder:
    """Vision tower, projector and packing for the media of a prompt, with what is known of earlier ones.

    On a backend whose image tokens are arrays of their own, every medium is encoded and kept by itself. A device holds
    one list of media at a time, in buffers of a fixed size.

    Args:
        backend: Runs the networks.
        settings: What the bundle says about pictures.
        memory: What is kept of earlier media.
    """

    def __init__(self, backend: Backend, settings: ImageSettings, memory: Memory) -> None:
        self._backend = backend
        self._settings = settings
        self._memory = memory
        self._max_tiles, self._max_tokens = largest_picture(settings)
        if isinstance(backend, HoldsMedia):
            self._max_tiles, self._max_tokens = backend.max_media
        self._held: tuple[dict[Hashable, int], Any] = ({}, None)
        """On a device: the first row of each medium in its buffer, and the tokens there."""

    @property
    def max_frames(self) -> int:
        """Return how many frames of a video are encoded at a time."""
        by_tokens = (self._max_tokens - 1) // pooled_side(self._settings) ** 2
        return max(1, min(self._max_tiles, by_tokens))

    def groups(self, places: Sequence[Place]) -> list[list[Place]]:
        """Return media in groups that the backend holds at a time, in order.

        One that is too large for it by itself is a group of its own, which the backend refuses.
        """
        if isinstance(self._backend, KeepsPrefixes):
            return [list(places)] if places else []
        groups: list[list[Place]] = []
        tiles = tokens = 0
        for place in places:
            more_tiles, more_tokens = num_tiles(place.medium, self._settings), place.span.end - place.span.start
            if not groups or tiles + more_tiles > self._max_tiles or tokens + more_tokens > self._max_tokens:
                groups.append([])
                tiles = tokens = 0
            groups[-1].append(place)
            tiles, tokens = tiles + more_tiles, tokens + more_tokens
        return groups

    def tokens(self, places: Sequence[Place], times: VisionTimes) -> tuple[Any, dict[Hashable, int]]:
        """Return what `tokens_in_pieces` does, all at once."""
        pieces = self.tokens_in_pieces(places, times, None)
        while True:
            try:
                next(pieces)
            except StopIteration as last:
                found: tuple[Any, dict[Hashable, int]] = last.value
                return found

    def tokens_in_pieces(
        self, places: Sequence[Place], times: VisionTimes, pace: Pace | None
    ) -> Generator[None, None, tuple[Any, dict[Hashable, int]]]:
        """Return the image tokens of a group of media, in the backend's own memory, and the first row of each.

        Yields between pieces, the tiles that `pace` lets run at once.

        Args:
            places: A group of `groups`.
            times: Where to add the seconds that it takes.
            pace: How many tiles run at once, on a backend that takes them in pieces; None for all.
        """
        media = {place.span.key: place.medium for place in places}
        if not isinstance(self._backend, KeepsPrefixes):
            return (yield from self._tokens_on_device(media, times, pace))
        self._memory.make_room(media)
        found = []
        for key, medium in media.items():
            found.append((yield from self._tokens_of(key, medium, times, pace)))
        ends = np.cumsum([len(tokens) for tokens in found])
        rows = {key: int(end) - len(tokens) for key, end, tokens in zip(media, ends, found, strict=True)}
        return (found[0] if len(found) == 1 else np.concatenate(found)), rows

    def _tokens_of(
        self, key: Hashable, medium: Medium, times: VisionTimes, pace: Pace | None
    ) -> Generator[None, None, Any]:
        tokens = self._memory.image_tokens(key)
        if tokens is None:
            tokens = yield from self._encode([medium], times, pace)
            self._memory.keep_image_tokens(key, tokens)
        return tokens

    def _tokens_on_device(
        self, media: dict[Hashable, Medium], times: VisionTimes, pace: Pace | None
    ) -> Generator[None, None, tuple[Any, dict[Hashable, int]]]:
        """Return what the device holds, if that is enough; else encode the whole group."""
        rows, tokens = self._held
        if tokens is None or not media.keys() <= rows.keys():
            self._held = ({}, None)
            tokens = yield from self._encode(list(media.values()), times, pace)
            rows, first = {}, 0
            for key, medium in media.items():
                rows[key] = first
                first += num_medium_tokens(medium, self._settings)
            self._held = rows, tokens
        return tokens, rows

    def _encode(self, media: Sequence[Medium], times: VisionTimes, pace: Pace | None) -> Generator[None, None, Any]:
        started = time.perf_counter()
        prepare, encode = pixel_path(self._backend, self._settings)
        pixels = prepare(media_tiles(media, self._settings))
        tiled = time.perf_counter()
        times.preprocess_s += tiled - started
        parts: list[Any] = []
        done = 0
        while done < len(pixels):
            num_tiles = len(pixels) - done
            if pace is not None and isinstance(self._backend, HoldsSlots):
                yield
                num_tiles = pace.num_tiles(num_tiles)
            started = time.perf_counter()
            with nullcontext() if pace is None else pace.tiles(done, num_tiles, len(pixels)):
                piece = pixels[done : done + num_tiles]
                parts.append(encode(piece) if done == 0 else encode(piece, *self._tiles_before(done)))
            times.vision_s += time.perf_counter() - started
            done += num_tiles
        started = time.perf_counter()
        if isinstance(self._backend, HoldsMedia):  # what came last stands for all
            features = parts[-1]
        else:
            features = parts[0] if len(parts) == 1 else np.concatenate(parts)
        tokens = self._backend.pack(features, media_plan(media, self._settings))
        times.vision_s += time.perf_counter() - started
        times.num_encoded += len(media)
        return tokens

    def _tiles_before(self, num_tiles: int) -> tuple[int, ...]:
        """Return what a device is told of the tiles that it holds already; others give arrays of their own."""
        return (num_tiles,) if isinstance(self._backend, HoldsMedia) else ()
