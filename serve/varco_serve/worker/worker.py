"""The worker's life: load the model, then answer until the front hangs up."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from varco_runtime import Varco
from varco_runtime.backend import ReservesMemory
from varco_runtime.errors import UsageError, VarcoError
from varco_serve import wire
from varco_serve.codec import ask_of, event_header, facts_header
from varco_serve.messages import Ask, Done, Event, Failed
from varco_serve.worker.answering import Answering
from varco_serve.worker.facts import facts_of
from varco_serve.worker.forms import Forms
from varco_serve.worker.tally import Tally


class Worker:
    """Answers what comes over a socket: each question on a thread of its own.

    Args:
        connection: The worker's end.
        leave: Ends the process with a status, whatever its threads are doing.
    """

    def __init__(self, connection: socket.socket, leave: Callable[[int], None] = os._exit) -> None:
        self._connection = connection
        self._leave = leave
        self._sending = threading.Lock()
        self._answerings: dict[int, Answering] = {}
        self._changing = threading.Lock()

    def run(self) -> None:
        """Load what the first frame names, then answer. Ends the process when the front hangs up."""
        try:
            header, _ = wire.receive(self._connection)
            varco = self._loaded(header)
            if varco is not None:
                self.serve(varco)
        except wire.WireError:
            pass
        sys.stderr.flush()
        self._leave(0)  # answers under way have no reader any more

    def _loaded(self, header: dict[str, Any]) -> Varco | None:
        """Load the model and tell its facts, or why there is none."""
        try:
            varco = Varco.load(**header["load"])
            if isinstance(varco.backend, ReservesMemory):
                varco.backend.reserve_memory()
        except (VarcoError, MemoryError) as error:
            status = 2 if isinstance(error, UsageError) else 1
            message = str(error) or "There is not enough memory. Close programs or lower --max-context."
            self._send({"kind": "refused", "message": message, "status": status})
            return None
        self._send(facts_header(facts_of(varco)))
        return varco

    def serve(self, varco: Varco) -> None:
        """Answer with a model until the front hangs up.

        Raises:
            WireError: It has.
        """
        tally, forms = Tally(varco), Forms(varco)
        while True:
            header, body = wire.receive(self._connection)
            id_ = header["id"]
            if header["kind"] == "cancel":
                with self._changing:
                    answering = self._answerings.get(id_)
                if answering is not None:
                    answering.cancel()
                continue
            ask = ask_of(header, memoryview(body))
            answering = Answering(varco, forms, partial(self._tell, id_, tally))
            with self._changing:
                self._answerings[id_] = answering
            work = threading.Thread(target=self._answer, args=(id_, answering, ask, varco), daemon=True)
            try:
                work.start()
            except RuntimeError:  # the system has no threads left
                message = "The server has no room for a further answer at the moment. Ask again."
                self._tell(id_, tally, Failed(503, message, "no_threads", None, 1.0))
            del body, ask

    def _answer(self, id_: int, answering: Answering, ask: Ask, varco: Varco) -> None:
        try:
            if not answering.run(ask):
                self._check(varco)
        except wire.WireError:
            pass  # the front is gone, which `run` sees too

    def _check(self, varco: Varco) -> None:
        """Ask for one token after an answer that failed, and end the process if that fails too: it is started anew.

        What is broken may be the answer's own, a NaN in its logits for example, or a device that never answers again.
        """
        try:
            varco.ask(None, "Hi", max_new_tokens=1)
        except Exception as error:
            print(f"The model fails at every question: {type(error).__name__}", file=sys.stderr, flush=True)
            self._leave(1)

    def _tell(self, id_: int, tally: Tally, event: Event) -> None:
        header = {"id": id_, **event_header(event)}
        if isinstance(event, Done | Failed):
            with self._changing:
                answering = self._answerings.pop(id_, None)
            if answering is not None:  # else its end was told before, and could not be sent
                header["counts"] = tally.counts(answering.num_pictures, answering.num_encoded)
        self._send(header)

    def _send(self, header: dict[str, Any]) -> None:
        with self._sending:
            wire.send(self._connection, header)
