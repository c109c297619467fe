"""The end of a server while it loads, and of answers that do not end in time."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil

from tests.makers.server import RunningServer, until

ENDLESS = {"ignore_eos": True, "max_tokens": 900}


def test_a_signal_while_the_model_is_loaded_ends_it_at_once() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with RunningServer("--slots", "1", wait=False) as server:
            children = psutil.Process(server.pid).children()
            assert server.stop(number) == 0
            psutil.wait_procs(children, 60)
            assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_answers_that_the_time_does_not_suffice_for_are_told_so() -> None:
    """Nobody waits for an answer that never comes: it ends with an error, the streamed one with an event."""
    with RunningServer("--slots", "2", "--drain", "0") as server, ThreadPoolExecutor(2) as pool:

        def streamed() -> str:
            document = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, **ENDLESS}
            with server.client.stream("POST", "/v1/chat/completions", json=document) as answer:
                return [line for line in answer.iter_lines() if line][-1]

        whole, stream = pool.submit(server.chat, "Hi", **ENDLESS), pool.submit(streamed)
        until(lambda: server.metric("varco_answers_running") == 2)
        assert server.stop() == 0
        assert whole.result().status_code == 503
        assert "retry-after" in whole.result().headers
        assert json.loads(stream.result().removeprefix("data: "))["error"]["code"] == "draining"


def test_a_request_that_takes_too_long_gives_its_slot_back() -> None:
    with RunningServer("--slots", "1", "--request-timeout", "0.2") as server:
        late = server.chat("Hi", **ENDLESS)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")
        until(lambda: server.metric("varco_answers_running") == 0)
        assert server.metric("varco_restarts_total") == 0
