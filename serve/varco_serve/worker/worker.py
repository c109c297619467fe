"""The worker's life: load the model, then answer until the front hangs up."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from functools import partial
from typing import Any

from varco_runtime import Varco
from varco_runtime.errors import UsageError, VarcoError
from varco_serve import wire
from varco_serve.codec import ask_of, event_header, facts_header
from varco_serve.messages import Ask, Event
from varco_serve.worker.answering import Answering
from varco_serve.worker.facts import facts_of
from varco_serve.worker.forms import Forms
from varco_serve.worker.tally import Tally


class Worker:
    """Answers what comes over a socket: each question on a thread of its own.

    Args:
        connection: The worker's end.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._answerings: dict[int, Answering] = {}
        self._changing = threading.Lock()

    def run(self) -> None:
        """Load what the first frame names, then answer. Ends the process when the front hangs up."""
        try:
            header, _ = wire.receive(self._connection)
            varco = self._loaded(header)
            if varco is not None:
                self._serve(varco)
        except wire.WireError:
            pass
        sys.stderr.flush()
        os._exit(0)  # answers under way have no reader any more

    def _loaded(self, header: dict[str, Any]) -> Varco | None:
        """Load the model and tell its facts, or why there is none."""
        try:
            varco = Varco.load(**header["load"])
        except (VarcoError, MemoryError) as error:
            status = 2 if isinstance(error, UsageError) else 1
            message = str(error) or "There is not enough memory. Close programs or lower --max-context."
            self._send({"kind": "refused", "message": message, "status": status})
            return None
        self._send(facts_header(facts_of(varco)))
        return varco

    def _serve(self, varco: Varco) -> None:
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
            threading.Thread(target=self._answer, args=(id_, answering, ask), daemon=True).start()
            del body, ask

    def _answer(self, id_: int, answering: Answering, ask: Ask) -> None:
        try:
            answering.run(ask)
        except wire.WireError:
            pass  # the front is gone, which `run` sees too
        except Exception:  # a fault of ours: the process is not to be trusted further
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        finally:
            with self._changing:
                self._answerings.pop(id_, None)

    def _tell(self, id_: int, tally: Tally, event: Event) -> None:
        self._send({"id": id_, **event_header(event), **tally.after(event)})

    def _send(self, header: dict[str, Any]) -> None:
        with self._sending:
            wire.send(self._connection, header)
