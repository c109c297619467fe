"""The front's side: pictures one after the other, and what happens when their process ends, lies or hangs."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image

from benchmarks.robust.picture_process import PictureProcess
from tests.makers.picture_files import encoded
from varco_runtime.picture.loading import load_picture
from varco_serve import wire
from varco_serve.messages import Failed, Pixels
from varco_serve.pictures.decoder import Connection, PictureDecoder

FILES = [encoded(Image.new("RGB", (width, 5), (width, 0, 9))) for width in range(3, 11)]
Reply = Callable[[dict[str, Any], bytes], Awaitable[tuple[dict[str, Any], bytes] | None]]


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await test

    asyncio.run(bounded())


@asynccontextmanager
async def started(decoder: PictureDecoder) -> AsyncIterator[PictureProcess]:
    """A real process, attached."""
    with PictureProcess() as process:
        reader, writer = await asyncio.open_unix_connection(sock=process.connection)
        decoder.attach(Connection(reader, writer, process.process.kill))
        yield process
        writer.close()


@asynccontextmanager
async def played(decoder: PictureDecoder, reply: Reply) -> AsyncIterator[list[str]]:
    """A process that this test plays: `reply` says what it answers, None nothing. Yields a list of its deaths."""
    ours, theirs = socket.socketpair()
    deaths: list[str] = []
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    their_reader, their_writer = await asyncio.open_unix_connection(sock=theirs)

    async def play() -> None:
        while True:
            try:
                answer = await reply(*await wire.receive_async(their_reader))
                if answer is not None:
                    await wire.send_async(their_writer, *answer)
            except wire.WireError:
                return

    player = asyncio.create_task(play())
    decoder.attach(Connection(reader, writer, lambda: deaths.append("killed")))
    yield deaths
    player.cancel()
    await asyncio.gather(player, return_exceptions=True)
    for one in (writer, their_writer):
        one.close()


def test_pictures_come_back_to_whom_they_belong() -> None:
    async def test() -> None:
        decoder = PictureDecoder()
        async with started(decoder):
            found = await asyncio.gather(*map(decoder.decode, [*FILES, b"none"]))
        for data, pixels in zip(FILES, found, strict=False):
            picture = load_picture(data)
            assert pixels == Pixels(picture.width, picture.height, picture.image.tobytes(), False)
        refusal = found[-1]
        assert isinstance(refusal, Failed)
        assert (refusal.status, refusal.code, refusal.retry_after_s) == (400, "invalid_image_format", None)

    run(test())


def test_a_killed_process_costs_one_picture_and_the_others_wait_for_the_next_process() -> None:
    async def test() -> None:
        decoder = PictureDecoder()
        async with started(decoder) as process:
            assert isinstance(await decoder.decode(FILES[0]), Pixels)
            process.process.kill()
            process.process.wait()
            waiting = [asyncio.create_task(decoder.decode(data)) for data in FILES]
            failed = await waiting[0]
            assert isinstance(failed, Failed)
            assert (failed.status, failed.retry_after_s) == (503, 1.0)
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting[1:])
        async with started(decoder):
            assert all(isinstance(pixels, Pixels) for pixels in await asyncio.gather(*waiting[1:]))

    run(test())


def test_a_process_that_ended_while_idle_costs_none_once_it_is_detached() -> None:
    async def test() -> None:
        decoder = PictureDecoder()
        ours, theirs = socket.socketpair()
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        gone = Connection(reader, writer, lambda: None)
        decoder.attach(gone)
        decoder.detach(gone)
        writer.close()
        waiting = asyncio.create_task(decoder.decode(FILES[0]))
        async with started(decoder):
            decoder.detach(gone)  # another has taken its place
            assert isinstance(await waiting, Pixels)

    run(test())


def test_without_a_process_a_picture_fails_after_a_while() -> None:
    async def test() -> None:
        failed = await PictureDecoder(start_s=0).decode(FILES[0])
        assert isinstance(failed, Failed)
        assert (failed.status, failed.retry_after_s) == (503, 5.0)

    run(test())


def test_a_process_that_never_answers_is_killed() -> None:
    async def test() -> None:
        async def nothing(header: dict[str, Any], body: bytes) -> None:
            return None

        decoder = PictureDecoder(deadline_s=0.05)
        async with played(decoder, nothing) as deaths:
            failed = await decoder.decode(FILES[0])
            assert isinstance(failed, Failed)
            assert failed.status == 503
            assert "was not decoded within 0.05 s" in failed.message
            assert deaths == ["killed"]

    run(test())


@pytest.mark.parametrize(
    "header",
    [
        {"id": 2, "width": 1, "height": 1, "is_animated": False},
        {"width": 1, "height": 1, "is_animated": False},
        {"id": 1, "width": 1, "height": 2, "is_animated": False},
        {"id": 1, "width": -1, "height": -1, "is_animated": False},
        {"id": 1, "width": True, "height": 1, "is_animated": False},
        {"id": 1, "width": 1.0, "height": 1, "is_animated": False},
        {"id": 1, "width": 1, "height": 1, "is_animated": 0},
        {"id": 1, "width": 1 << 40, "height": 1, "is_animated": False},
        {"id": 1, "error": "two\nlines"},
        {"id": 1, "error": "x" * 501},
        {"id": 1, "error": ""},
        {"id": 1, "error": ["a list"]},
        {"id": 1, "error": "a line", "code": 3},
    ],
)
def test_a_process_that_answers_what_it_may_not_is_killed(header: dict[str, Any]) -> None:
    async def test() -> None:
        async def lie(_: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
            return header, b"rgb"

        decoder = PictureDecoder()
        async with played(decoder, lie) as deaths:
            failed = await decoder.decode(FILES[0])
            assert isinstance(failed, Failed)
            assert failed.status == 503
            assert deaths == ["killed"]

    run(test())


def test_a_cancelled_caller_takes_its_answer_from_nobody_else() -> None:
    async def test() -> None:
        has_begun, may_answer = asyncio.Event(), asyncio.Event()
        seen: list[bytes] = []

        async def slow(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
            seen.append(body)
            has_begun.set()
            await may_answer.wait()
            return {**header, "width": 1, "height": 1, "is_animated": False}, body[:3]

        decoder = PictureDecoder()
        async with played(decoder, slow) as deaths:
            first, waiting, last = (asyncio.create_task(decoder.decode(data)) for data in (b"one", b"two", b"six"))
            await has_begun.wait()
            first.cancel()
            waiting.cancel()
            await asyncio.gather(first, waiting, return_exceptions=True)
            may_answer.set()
            assert await last == Pixels(1, 1, b"six")
            assert seen == [b"one", b"six"], "one that waits and is cancelled is never sent"
            assert deaths == []

    run(test())


def test_pixels_that_are_alive_are_counted_and_bounded() -> None:
    async def test() -> None:
        decoder = PictureDecoder(max_held_bytes=3 * 5 * (3 + 4))
        async with started(decoder):
            held = [await decoder.decode(FILES[0]), await decoder.decode(FILES[1])]
            assert decoder.held_bytes == 3 * 5 * (3 + 4)
            refused = await decoder.decode(FILES[2])
            assert isinstance(refused, Failed)
            assert (refused.status, refused.retry_after_s) == (429, 5.0)
            del held[0]
            gc.collect()
            assert decoder.held_bytes == 3 * 5 * 4
            assert isinstance(await decoder.decode(FILES[0]), Pixels)

    run(test())
