"""What the picture process may take and do, and that it holds even where a decoder is taken over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.robust.picture_process import PictureProcess
from tests.makers.picture_files import encoded
from varco_serve import wire
from varco_serve.pictures.confinement import MEMORY_BYTES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are read where Linux shows them")

SMALL = encoded(Image.new("RGB", (4, 3)))
CHANGED = (
    "import sys; from varco_serve.pictures import confinement, process; {change}; sys.exit(process.main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def process() -> Iterator[PictureProcess]:
    with PictureProcess() as process:
        assert process.ask(SMALL)[0] == {"width": 4, "height": 3, "is_animated": False}
        yield process


def confined(program: str) -> str:
    """Return what a program prints that confines itself first."""
    begin = "import os, socket, sys; from varco_serve.pictures.confinement import *; confine()\n"
    done = subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, check=False)
    return done.stdout


def test_the_system_holds_the_limits(process: PictureProcess) -> None:
    lines = Path(f"/proc/{process.process.pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    for name in ("Max core file size", "Max file size", "Max open files", "Max processes"):
        assert limits[name] == ["0", "0"], name
    assert limits["Max address space"] == [str(MEMORY_BYTES)] * 2
    assert 20 < int(limits["Max cpu time"][0]) < 60


def test_it_can_gain_no_rights_and_ignores_the_signals_of_a_terminal(process: PictureProcess) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    for number in (signal.SIGINT, signal.SIGTERM):
        process.process.send_signal(number)
    assert process.ask(SMALL)[0]["width"] == 4


def test_it_has_one_thread_however_many_cores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "32")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with PictureProcess() as process:
        assert process.ask(SMALL)[0]["width"] == 4
        assert len(list(Path(f"/proc/{process.process.pid}/task").iterdir())) == 1


def test_nothing_of_the_model_is_imported(process: PictureProcess) -> None:
    loaded = Path(f"/proc/{process.process.pid}/maps").read_text()
    assert "_imaging" in loaded
    for name in ("onnxruntime", "tokenizers", "openvino", "llguidance", "pydantic"):
        assert name not in loaded
    program = (
        "import sys, varco_serve.pictures.process\n"
        "heavy = {'onnxruntime', 'tokenizers', 'jinja2', 'asyncio', 'fastapi', 'uvicorn', 'llguidance', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_holds_one_socket_beside_the_standard_streams(process: PictureProcess) -> None:
    held = {path.name: os.readlink(path) for path in Path(f"/proc/{process.process.pid}/fd").iterdir()}
    (more,) = (name for number, name in held.items() if int(number) > 2)
    assert more.startswith("socket:")


def test_no_process_can_be_started() -> None:
    if os.getuid() == 0:
        pytest.skip("the system does not count root's processes")
    assert confined("try:\n    os.fork()\n    print('done')\nexcept OSError:\n    print('refused')") == "refused\n"


@pytest.mark.parametrize(
    "attempt",
    ["open('/proc/self/status')", "socket.socket()", "os.dup(1)", "bytearray(MEMORY_BYTES)", "os.pipe()"],
)
def test_what_decoding_does_not_need_fails(attempt: str) -> None:
    program = f"try:\n    {attempt}\n    print('done')\nexcept (OSError, MemoryError):\n    print('refused')"
    assert confined(program) == "refused\n"


def test_a_picture_that_takes_too_much_memory_is_refused_and_the_process_ends() -> None:
    change = "confinement.MEMORY_BYTES = 250 << 20"
    with PictureProcess(CHANGED.format(change=change)) as process:
        header, _ = process.ask(encoded(Image.new("RGB", (7000, 7000))))
        assert header["code"] == "image_too_large"
        assert header["error"] == "The PNG takes more memory to decode than one picture may. Save it in a smaller size."
        assert process.end() == (1, "")


def test_a_picture_that_takes_too_much_time_is_refused_and_the_process_ends() -> None:
    with PictureProcess(CHANGED.format(change="process.PICTURE_S = 0.02")) as process:
        header, _ = process.ask(encoded(Image.new("RGB", (4000, 4000))))
        assert header["code"] == "image_too_large"
        assert header["error"].startswith("The picture takes longer to decode than one may. ")
        assert process.end() == (1, "")


@pytest.mark.full
def test_a_decoder_that_never_comes_back_is_ended_by_the_system() -> None:
    endless = "import itertools; confinement.GRACE_S = 0; process.PICTURE_S = 1.0; "
    endless += "process.decode = lambda data: sum(itertools.repeat(0))"
    with PictureProcess(CHANGED.format(change=endless)) as process:
        with pytest.raises(wire.WireError):
            process.ask(SMALL)
        assert process.process.wait(60) == -signal.SIGXCPU


def test_it_ends_with_the_process_that_started_it() -> None:
    """The socket's other end is held by this test as well, so that nothing else tells it."""
    program = (
        "import os, socket, subprocess, sys\n"
        "command = [sys.executable, '-m', 'varco_serve.pictures', sys.argv[1]]\n"
        "child = subprocess.Popen(command, pass_fds=[int(sys.argv[1])])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        parent = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        theirs.close()
        wire.send(ours, {"id": 1}, SMALL)
        assert wire.receive(ours)[0]["width"] == 4
        parent.kill()
        parent.communicate()
        with pytest.raises(wire.WireError):
            wire.receive(ours)
