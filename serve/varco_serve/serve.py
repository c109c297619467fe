"""A server from its start to its end: the front in this process, the others under their supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable

from varco_runtime.errors import BackendError, UsageError, VarcoError
from varco_serve.front.app import Front, create_app
from varco_serve.front.journal import log_to_stderr, write_event
from varco_serve.front.memory import return_large_blocks
from varco_serve.front.server import HttpServer
from varco_serve.messages import Facts
from varco_serve.settings import LOCALHOST, ServeSettings
from varco_serve.supervisor.supervisor import EndedError, Supervisor

_BACKLOG = 2048


def serve(settings: ServeSettings, say: Callable[[str], None]) -> int:
    """Serve a bundle until a signal ends it.

    Args:
        settings: What was asked for.
        say: Takes lines for people: where it listens, and what it can do.

    Returns:
        The exit status: 0 after SIGTERM or ctrl-C, 1 where answers were lost by a second one.

    Raises:
        VarcoError: The bundle cannot be loaded, the address cannot be had, or the worker died too often.
    """
    log_to_stderr()
    return_large_blocks()
    with _listening(settings) as listening:
        return asyncio.run(_Server(settings, listening, say).run())


def _listening(settings: ServeSettings) -> socket.socket:
    """Return a bound socket.

    Raises:
        UsageError: The address cannot be had.
    """
    try:
        host = "127.0.0.1" if settings.host == LOCALHOST else settings.host
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV  # nobody is asked for a name
        family, _, _, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=flags)[0]
        # Its protocol is named: else asyncio leaves Nagle on, and first tokens wait 40 ms for an acknowledgement.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise UsageError(f"--host {settings.host} is no address of this machine: {error.strerror}.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"--host {settings.host} is no address of this machine. Give one that it has, 0.0.0.0 or :: for all."
            ) from None
        raise UsageError(
            f"Port {settings.port} of {settings.host} cannot be had: {error.strerror}. Choose another --port."
        ) from None
    return listening


class _Server:
    def __init__(self, settings: ServeSettings, listening: socket.socket, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._listening = listening
        self._say = say
        self._signals = 0
        self._signalled = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        supervisor = Supervisor(self._settings, write_event)
        app = create_app(self._settings, supervisor)
        http = HttpServer(app)
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(http.serve_on(self._listening)),
            asyncio.create_task(supervisor.run()),
        ]
        said = asyncio.create_task(self._say_what_is_served(supervisor))
        stopping = asyncio.create_task(self._until_stopped(supervisor, app))
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():  # neither ends by itself but for a reason
                    task.result()
            return await stopping
        except EndedError as error:
            raise _as_error(error) from None
        finally:
            for unneeded in (said, stopping, tasks[1]):
                unneeded.cancel()
            http.stop()
            await asyncio.gather(said, stopping, *tasks, return_exceptions=True)

    async def _say_what_is_served(self, supervisor: Supervisor) -> None:
        host, port = self._listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self._tell(f"Listening on http://{shown}:{port}, loading {self._settings.bundle} ...")
        await supervisor.until_ready()
        facts = supervisor.facts
        assert facts is not None, "Bug: ready without facts"
        for line in start_lines(facts, self._settings):
            self._tell(line)
        write_event("ready", license=facts.details.get("license"), slots=facts.slots, max_context=facts.max_context)

    def _tell(self, line: str) -> None:
        """Say a line. On a full disk, or where nobody reads any more, it is lost, and no answer with it."""
        with contextlib.suppress(OSError):
            self._say(line)

    def _on_signal(self) -> None:
        self._signals += 1
        self._signalled.set()

    async def _until_stopped(self, supervisor: Supervisor, app: Front) -> int:
        """Wait for a signal, then for the answers under way; return the exit status."""
        await self._signalled.wait()
        supervisor.drain()
        self._tell(f"Shutting down: answers under way have {self._settings.drain_s:g} s.")
        write_event("draining", running=app.num_running)
        idle = asyncio.create_task(app.until_idle())
        again = asyncio.create_task(self._until_again())
        try:
            await asyncio.wait([idle, again], timeout=self._settings.drain_s, return_when=asyncio.FIRST_COMPLETED)
            return 0 if idle.done() or not again.done() else 1
        finally:
            for task in (idle, again):
                task.cancel()
            await asyncio.gather(idle, again, return_exceptions=True)

    async def _until_again(self) -> None:
        while self._signals < 2:
            self._signalled.clear()
            await self._signalled.wait()


def start_lines(facts: Facts, settings: ServeSettings) -> list[str]:
    """Return what is said once the model is there, a line each."""
    details = facts.details
    number = "1 answer at a time" if facts.slots == 1 else f"{facts.slots} answers at once"
    lines = [
        f"Serving {details['model']} as {settings.model_name!r}: {number}, "
        f"{facts.max_context} tokens each. Runs on {details['provider']}.",
        f"Licence of the weights: {details['license']}.",
    ]
    if not details["largest_picture_fits"]:
        fitting = details["largest_fitting_picture"]
        what = (
            "no grid of tiles fits, only pictures of one tile"
            if fitting is None
            else f"{fitting['width']} x {fitting['height']} pixels ({fitting['tokens']} tokens) still fit"
        )
        lines.append(f"The context does not hold the largest picture's {facts.largest_picture_tokens} tokens: {what}.")
    return lines


def _as_error(ended: EndedError) -> VarcoError:
    return UsageError(str(ended)) if ended.status == 2 else BackendError(str(ended))
