"""The model as the front sees it: a worker that is started, watched and started again, with a queue in front of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from varco_serve.codec import ask_header, event_of, facts_of
from varco_serve.messages import Ask, Done, Event, Facts, Failed, Pixels, Stats
from varco_serve.settings import ServeSettings
from varco_serve.supervisor.deaths import Deaths
from varco_serve.supervisor.picture_service import PictureService
from varco_serve.supervisor.process import Process
from varco_serve.supervisor.queue import Entry, Queue
from varco_serve.wire import TooLargeError, WireError

_HUNG_S = 300.0
"""How long an answer that was cancelled may keep its slot. One step of the largest model on a CPU takes a minute."""
_RESTART_S = 5.0
"""What callers are told to wait while the worker starts again."""


class EndedError(Exception):
    """The server cannot go on.

    Args:
        message: One line for whoever started it.
        status: What the process is to end with.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class RefusedError(EndedError):
    """The worker says that it cannot load the model."""


class Supervisor:
    """Starts the worker and the picture process, and answers through them: a `messages.Model`.

    Args:
        settings: The server's options.
        log: Takes the name of an event and what is said of it.
    """

    def __init__(self, settings: ServeSettings, log: Callable[..., None]) -> None:
        self._settings = settings
        self._log = log
        self._queue = Queue(settings.max_queue)
        self._worker: Process | None = None
        self._pictures = PictureService(log)
        self._facts: Facts | None = None
        self._stats = Stats()
        self._restarts = 0
        self._is_ready = False
        self._is_draining = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- messages.Model ---------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts | None:
        return self._facts

    @property
    def not_ready(self) -> str | None:
        if self._is_draining:
            return "draining"
        if self._is_ready:
            return None
        return "loading" if self._facts is None else "restarting"

    @property
    def stats(self) -> Stats:
        running, waiting = len(self._queue.running), len(self._queue.waiting)
        restarts = self._restarts + self._pictures.restarts
        return replace(self._stats, running=running, waiting=waiting, restarts=restarts)

    @property
    def worker_pid(self) -> int | None:
        """Return the worker's process number, None while there is none."""
        return None if self._worker is None else self._worker.pid

    async def decode(self, data: bytes) -> Pixels | Failed:
        """Return a picture file's pixels, or why there are none."""
        return await self._pictures.decode(data)

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """Yield the events of one answer; see `messages.Model`."""
        refused = self._refusal()
        if refused is not None:
            yield refused
            return
        entry = self._queue.add(ask)
        del ask
        self._dispatch()
        try:
            is_waiting = True
            while True:
                event = await self._next(entry, is_waiting)
                is_waiting = False
                yield event
                if isinstance(event, Done | Failed):
                    return
        finally:
            self._leave(entry)

    def _refusal(self) -> Failed | None:
        # Not while draining: the front lets in no new requests, and those that it has let in are to be answered.
        if self._facts is None:
            return Failed(503, "The model is being loaded. Ask again in a moment.", "loading", None, _RESTART_S)
        if self._queue.is_full:
            message = f"{len(self._queue.waiting)} questions are waiting, which is all that may. Ask again later."
            return Failed(429, message, "queue_full", None, 1.0)
        return None

    async def _next(self, entry: Entry, is_waiting: bool) -> Event:
        """Return an entry's next event. The first one must come before the queue's timeout."""
        if not is_waiting:
            return await entry.events.get()
        timeout_s = self._settings.queue_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await entry.events.get()
        except TimeoutError:
            message = f"The question waited {timeout_s:g} s for its turn, which is the longest. Ask again later."
            return Failed(503, message, "queue_timeout", None, 10.0)

    def _leave(self, entry: Entry) -> None:
        """Let go of an entry whose caller has gone, or has had everything."""
        if entry in self._queue.waiting:
            self._queue.waiting.remove(entry)
        elif entry.id in self._queue.running and self._worker is not None:
            # Now, not in the task: by then the answer may have ended, and nobody would stop the clock.
            hung = asyncio.get_running_loop().call_later(_HUNG_S, self._kill_hung, self._worker)
            entry.on_end = hung.cancel
            self._start(self._cancel(self._worker, entry))

    # -- the worker -------------------------------------------------------------------------------------------------

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _dispatch(self) -> None:
        """Give waiting asks to the worker as long as it has free slots."""
        worker = self._worker
        while worker is not None and self._is_ready and (entry := self._queue.next()) is not None:
            self._start(self._send(worker, entry))

    async def _send(self, worker: Process, entry: Entry) -> None:
        assert entry.ask is not None, "Bug: an ask was sent twice"
        header, pixels = ask_header(entry.ask)
        entry.ask = None
        try:
            await worker.send({"kind": "ask", "id": entry.id, **header}, *pixels)
        except TooLargeError:
            message = "The question has more text or pictures than any context holds. Ask less at a time."
            self._tell(entry, Failed(400, message, "context_length_exceeded", "messages"))
        except WireError:
            pass  # `run` sees that the worker has died

    async def _cancel(self, worker: Process, entry: Entry) -> None:
        """Tell the worker that nobody wants an answer any more."""
        with contextlib.suppress(WireError):
            await worker.send({"kind": "cancel", "id": entry.id})

    def _kill_hung(self, worker: Process) -> None:
        self._log("worker_hangs", seconds=_HUNG_S)
        worker.kill()

    async def run(self) -> None:
        """Keep the worker and the picture process alive until cancelled.

        Raises:
            EndedError: The model cannot be loaded, or the worker died too often.
        """
        deaths = Deaths()
        self._start(self._pictures.run())
        try:
            while True:
                try:
                    status: int | str = await self._live()
                except OSError as error:  # no descriptors, no processes
                    status = error.strerror or "cannot be started"
                wait_s = deaths.count()
                self._log("worker_died", status=status, again_in_s=wait_s)
                if wait_s is None:
                    raise EndedError("The worker died five times within ten minutes. See the lines above.", 1)
                self._lose(self._queue.lost(), "The server lost this answer and is starting again. Ask again.")
                self._restarts += 1
                await asyncio.sleep(wait_s)
        finally:
            message = "The server ended before the answer. Ask another one, or again in a while."
            code = "draining" if self._is_draining else "worker_lost"
            self._lose([*self._queue.lost(), *self._queue.waiting], message, code)
            await self.end()

    def _lose(self, entries: list[Entry], message: str, code: str = "worker_lost") -> None:
        """Tell callers that there will be no answer."""
        for entry in entries:
            entry.on_end()
            entry.events.put_nowait(Failed(503, message, code, None, _RESTART_S))

    async def _live(self) -> int:
        """Start a worker, pass on what it says, and return its status when it has ended."""
        worker = self._worker = await Process.start("varco_serve.worker", lambda line: self._log("worker", line=line))
        try:
            await worker.send({"kind": "load", "load": self._load_options()})
            while True:
                header, _ = await worker.receive()
                self._take(header)
        except WireError:
            pass
        except RefusedError as refused:
            if self._facts is None:
                raise EndedError(refused.message, refused.status) from None
            self._log("worker_refused", line=refused.message)  # it could be loaded before, and may be again
        finally:
            self._is_ready = False
            self._worker = None
            self._stats = replace(self._stats, kv_tokens=0, kept_bytes=0)
            status = await worker.end()
        return status

    def _take(self, header: dict[str, Any]) -> None:
        """Take a frame of the worker's."""
        if header["kind"] == "facts":
            self._facts = facts_of(header)
            self._queue.slots = self._facts.slots
            self._is_ready = True
            self._changed.set()
            self._dispatch()
            return
        if header["kind"] == "refused":
            raise RefusedError(header["message"], header["status"])
        entry = self._queue.running.get(header.pop("id"))
        if counts := header.pop("counts", None):
            self._count(**counts)
        if entry is not None:
            self._tell(entry, event_of(header))

    def _tell(self, entry: Entry, event: Event) -> None:
        """Tell a caller an event. The last one frees the slot."""
        if isinstance(event, Done | Failed) and self._queue.running.pop(entry.id, None) is not None:
            entry.on_end()
            self._dispatch()
        entry.events.put_nowait(event)

    def _count(self, picture_hits: int, picture_misses: int, **now: int) -> None:
        """Take what the worker holds now, and add to the sums, which outlive it, what came since it last said so."""
        hits, misses = self._stats.picture_hits + picture_hits, self._stats.picture_misses + picture_misses
        self._stats = replace(self._stats, picture_hits=hits, picture_misses=misses, **now)

    def _load_options(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "bundle": str(settings.bundle),
            "provider": settings.provider,
            "max_context": settings.max_context,
            "threads": settings.threads,
            "slots": settings.slots,
            "max_stall_ms": settings.max_stall_ms,
            "openvino_device": settings.openvino_device,
            "precision": settings.precision,
            "kv_cache_precision": settings.kv_cache_precision,
        }

    async def until_ready(self) -> None:
        """Wait until the model has been loaded for the first time."""
        await self._changed.wait()

    def drain(self) -> None:
        """Take no new asks. Those that are under way, and those that wait, go on."""
        self._is_draining = True

    async def end(self) -> None:
        """End the child processes."""
        for task in list(self._tasks):
            task.cancel()
        if self._worker is not None:
            await self._worker.end()
        await self._pictures.end()
