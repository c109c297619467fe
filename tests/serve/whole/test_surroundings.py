"""A server where it did not expect to be: in a container, in an odd folder, without network, beside a wrong clock."""

from __future__ import annotations

import ast
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.makers import no_connections
from tests.makers.server import RunningServer, until

ROOT = Path(__file__).resolve().parents[3]
PICTURE = ROOT / "docs/images/sign.png"
NO_CONNECTIONS = (sys.executable, "-m", "tests.makers.no_connections")
FIRST_PROCESS = ("unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")


def answers(server: RunningServer) -> None:
    """Check that it does what it is for, in all of its processes, and lost none."""
    answer = server.client.post("/v1/ocr", content=PICTURE.read_bytes(), headers={"content-type": "image/png"})
    assert answer.status_code == 200
    assert server.chat("Hi", max_tokens=3, response_format={"type": "json_object"}).status_code == 200
    assert server.client.get("/v1/metadata").status_code == 200
    assert server.metric("varco_restarts_total") == 0


@pytest.mark.skipif(not no_connections.is_available(), reason="filters of system calls are Linux's, by processor")
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("s = socket.socket(); s.settimeout(1); s.connect_ex(('127.0.0.1', 9))", -signal.SIGSYS),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", -signal.SIGSYS),
        ("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", -signal.SIGSYS),
        ("socket.getaddrinfo('varco.example', 80)", -signal.SIGSYS),
        ("a, b = socket.socketpair(); a.send(b'x'); b.recv(1)", 0),
        ("socket.create_server(('127.0.0.1', 0))", 0),
    ],
)
def test_the_filter_finds_what_it_is_for(code: str, status: int) -> None:
    ended = subprocess.run([*NO_CONNECTIONS, sys.executable, "-c", f"import socket; {code}"], cwd=ROOT)
    assert ended.returncode == status


@pytest.mark.skipif(not no_connections.is_available(), reason="filters of system calls are Linux's, by processor")
def test_no_process_of_it_ever_asks_for_a_connection() -> None:
    with RunningServer("--slots", "1", command=NO_CONNECTIONS) as server:
        answers(server)
        assert server.stop() == 0


def test_it_may_be_the_first_process_of_a_container() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([*FIRST_PROCESS, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody make namespaces of processes")
    with RunningServer("--slots", "1", command=FIRST_PROCESS) as server:
        answers(server)


def test_files_of_the_folder_that_it_is_started_in_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` puts that folder first; it may be one that anybody writes to."""
    for name in ("numpy", "json", "PIL", "varco_serve", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with RunningServer("--slots", "1") as server:
        answers(server)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_log_that_cannot_be_written_costs_no_answer() -> None:
    """Its reader ends after a line, as a disk may be full: what is said then is an error of the system."""
    command = ("bash", "-c", 'exec "$@" 2> >(head -n 1 >&2)', "bash")
    with RunningServer("--slots", "1", command=command) as server, ThreadPoolExecutor(1) as pool:
        answers(server)
        asking = pool.submit(server.chat, "Hi", ignore_eos=True, max_tokens=400)
        until(lambda: server.metric("varco_answers_running") == 1)
        assert server.stop() == 0
        assert asking.result().status_code == 200
        assert len(server.lines) == 1


def test_the_front_knows_neither_the_engine_nor_what_reads_pictures() -> None:
    code = "import sys, varco_serve.options, varco_serve.serve; print(*{name.split('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "uvicorn" in names
    assert not {"onnxruntime", "openvino", "tensorrt", "numpy", "PIL", "tokenizers", "llguidance", "jinja2"} & {*names}


def test_the_time_of_day_is_for_people_alone() -> None:
    """Nothing waits, ends or is measured by it, so that setting it back changes nothing."""
    found = set()
    for path in (ROOT / "serve/varco_serve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.gmtime"):
                    found.add((path.name, name))
    # OpenAI's field `created`, and the log's first field.
    assert found == {
        ("app.py", "time.time"),
        ("chat_route.py", "time.time"),
        ("journal.py", "time.gmtime"),
    }
