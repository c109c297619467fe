"""A server's life: start, deaths of its processes, draining, end."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.makers.server import DEMO_BUNDLE, RunningServer, until

ENDLESS = {"ignore_eos": True, "max_tokens": 900}


def gone(*pids: int | None) -> bool:
    """Whether processes have ended; zombies that a container's first process never takes away have."""

    def is_gone(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return all(pid is None or is_gone(pid) for pid in pids)


def test_it_lives_before_the_model_is_there_and_says_what_it_serves() -> None:
    with RunningServer("--slots", "1", "--max-context", "200", wait=False) as server:
        assert server.client.get("/health/live").status_code == 200
        server.until_ready()
        until(lambda: any("event" in line for line in server.events))
        said = "\n".join(server.lines)
        assert "Serving varco-tiny as 'varco': 1 answer at a time, 200 tokens each." in said
        assert "Licence of the weights: apache-2.0" in said
        assert "The context does not hold the largest picture's" in said
        ready = next(line for line in server.events if "event" in line)
        assert (ready["event"], ready["license"]) == ("ready", "apache-2.0")


def test_nothing_is_said_where_the_context_holds_the_largest_picture(server: RunningServer) -> None:
    assert not any("does not hold" in line for line in server.lines)


def test_the_front_holds_no_model(server: RunningServer) -> None:
    maps = Path(f"/proc/{server.pid}/maps")
    if not maps.exists():
        pytest.skip("the system does not tell what a process has loaded")
    loaded = maps.read_text()
    for library in ("onnxruntime", "openvino", "/PIL/", "tokenizers", "llguidance"):
        assert library not in loaded, library
    assert "onnxruntime" in Path(f"/proc/{server.worker_pid}/maps").read_text()
    assert "onnxruntime" not in Path(f"/proc/{server.pictures_pid}/maps").read_text()


def test_killed_processes_come_back_and_only_what_they_did_is_lost() -> None:
    with RunningServer("--slots", "1") as server, ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.chat, "Hi", **ENDLESS)
        until(lambda: server.metric("varco_answers_running") == 1)
        waiting = pool.submit(server.chat, "Hi", max_tokens=2)
        until(lambda: server.metric("varco_answers_waiting") == 1)
        worker, pictures = server.worker_pid, server.pictures_pid
        assert worker is not None
        assert pictures is not None
        os.kill(worker, signal.SIGKILL)
        lost = running.result()
        assert lost.status_code == 503
        assert lost.json()["error"]["code"] == "worker_lost"
        assert int(lost.headers["retry-after"]) >= 1
        assert waiting.result().status_code == 200
        server.until_ready()
        os.kill(pictures, signal.SIGKILL)
        until(lambda: server.pictures_pid not in (None, pictures))
        picture = (Path(__file__).parents[3] / "docs/images/sign.png").read_bytes()
        answer = server.client.post("/v1/ocr", content=picture, headers={"content-type": "image/png"})
        assert answer.status_code == 200
        assert server.stop() == 0


def test_a_stream_that_loses_its_worker_ends_with_an_error_event() -> None:
    with RunningServer("--slots", "1") as server:
        document = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, **ENDLESS}
        with server.client.stream("POST", "/v1/chat/completions", json=document) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
            os.kill(server.worker_pid or 0, signal.SIGKILL)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "worker_lost"


def test_answers_under_way_are_finished_before_the_end() -> None:
    with RunningServer("--slots", "2", "--drain", "60") as server, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(server.chat, f"Hi {number}", ignore_eos=True, max_tokens=200) for number in range(6)]
        until(lambda: server.metric("varco_answers_running") == 2 and server.metric("varco_answers_waiting") == 4)
        children = server.worker_pid, server.pictures_pid
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any("Shutting down" in line for line in server.lines))
        refused = [server.client.get("/health/ready"), server.chat("Hi")]
        for answer in refused:
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
        assert server.client.get("/health/live").status_code == 200
        answers = [one.result() for one in asking]
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [200] * 6
        assert server.process.wait(60) == 0
        assert gone(*children)


def test_a_second_signal_waits_for_nothing() -> None:
    with RunningServer("--slots", "1") as server, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(server.chat, "Hi", **ENDLESS)
        until(lambda: server.metric("varco_answers_running") == 1)
        children = server.worker_pid, server.pictures_pid
        server.process.send_signal(signal.SIGINT)
        until(lambda: any("Shutting down" in line for line in server.lines))
        assert server.stop(signal.SIGTERM) == 1
        assert gone(*children)
        with contextlib.suppress(httpx.HTTPError):  # cut off, which a second signal may do
            assert asking.result().status_code == 503


def test_a_killed_front_leaves_no_process_behind() -> None:
    with RunningServer("--slots", "1") as server:
        children = server.worker_pid, server.pictures_pid
        assert None not in children
        server.process.kill()
        until(lambda: gone(*children))


def test_a_bundle_that_cannot_be_loaded_is_one_line_and_nothing_stays(tmp_path: Path) -> None:
    bundle = shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle")
    (bundle / "tokenizer.json").write_text("{}")
    command = [sys.executable, "-m", "varco_cli.main", "serve", str(bundle), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("varco: ")
    assert "tokenizer.json" in last


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way of limits and namespaces")
def test_a_full_disk_and_no_descriptors_left_are_survived() -> None:
    """What is logged goes nowhere, and connections wait; nothing is started again."""
    with RunningServer("--slots", "1") as server:
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        used = psutil.Process(server.pid).num_fds()
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 3, hard))
        clients = [httpx.Client(base_url=server.url, timeout=0.5) for _ in range(6)]
        results = []
        for client in clients:
            try:
                results.append(client.get("/health/live").status_code)
            except httpx.HTTPError:
                results.append(0)
        assert {0, 200} == set(results)
        for client in clients:
            client.close()
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert server.chat("Hi", max_tokens=2).status_code == 200
        assert server.metric("varco_restarts_total") == 0


def test_it_works_without_any_network_and_asks_for_none() -> None:
    unshare = shutil.which("unshare")
    probe = [unshare or "unshare", "-rn", "sh", "-c", "ip link set lo up 2>/dev/null; exit 0"]
    if unshare is None or subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody make a network namespace")
    script = (
        "import fcntl, socket, struct, sys, json, subprocess\n"
        "s = socket.socket(); r = struct.pack('16sh', b'lo', 1); fcntl.ioctl(s, 0x8914, r)\n"
        "from tests.makers.server import RunningServer\n"
        "server = RunningServer('--slots', '1')\n"
        "answer = server.chat('Hi', max_tokens=2)\n"
        "print(answer.status_code, len(open('/proc/net/route').read().splitlines()))\n"
        "import psutil\n"
        "for pid in (server.pid, server.worker_pid, server.pictures_pid):\n"
        "    for c in psutil.Process(pid).net_connections('inet'):\n"
        "        assert c.laddr.port == int(server.url.rsplit(':', 1)[1]), c\n"
        "print(server.stop())\n"
    )
    ended = subprocess.run(
        [unshare, "-rn", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
    )
    assert ended.stdout.split() == ["200", "1", "0"], ended.stderr[-2000:]


def test_idle_processes_do_not_wake_up(server: RunningServer) -> None:
    """Counted in switches that a process asks for itself: one that polls has hundreds in a second."""
    pids = [server.pid, server.worker_pid, server.pictures_pid]

    def switches() -> int:
        return sum(psutil.Process(pid).num_ctx_switches().voluntary for pid in pids)

    before = switches()
    threading.Event().wait(1.0)
    assert switches() - before < 60
