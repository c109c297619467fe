"""A process that is killed when it, or a library in it, opens a file or a socket, or starts a program.

By a filter of system calls (seccomp), which no library can get around. Run as a program: it reads one source of bytes
from standard input, and says on standard output what became of it.

    python -m tests.makers.forbidden_calls ours|plain
"""

from __future__ import annotations

import ctypes
import io
import platform
import struct
import sys

# Its number, and those of open, openat, openat2, socket, connect and execve: <linux/audit.h>, <asm/unistd.h>.
_ARCHITECTURES = {
    "x86_64": (0xC000003E, (2, 257, 437, 41, 42, 59)),
    "aarch64": (0xC00000B7, (56, 437, 198, 203, 221)),
}
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # <linux/prctl.h>
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # <linux/bpf_common.h>: of 32 bits, jump, return a constant
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in `struct seccomp_data`


def is_available() -> bool:
    """Return whether this machine has such filters, and the program knows its calls."""
    return sys.platform == "linux" and platform.machine() in _ARCHITECTURES


def forbid() -> None:
    """Kill this process when it opens anything from now on."""
    architecture, calls = _ARCHITECTURES[platform.machine()]
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    steps += [(_EQUAL, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _KILL)]
    install(steps)


def install(steps: list[tuple[int, int, int, int]]) -> None:
    """Let a filter decide about every system call from now on, of this process and of those that it starts.

    Args:
        steps: Its program: operation, steps to skip where it holds and where not, operand.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    assert libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) == 0, "no filters here"


def main() -> None:
    """Read a video as this project does (`ours`) or as PyAV does by itself (`plain`), and open nothing else."""
    import av

    from tests.makers.videos import drawn_video, video_file
    from varco_runtime import Video
    from varco_runtime.errors import VideoError
    from varco_runtime.video import container

    data = sys.stdin.buffer.read()
    good = video_file(drawn_video(4, 64, 48), "mp4", "mpeg4", "yuv420p")
    container.usable_cores = lambda: 1  # it reads a file of the system
    Video(good).tiles(8)  # what is imported at the first use is imported now
    forbid()
    if sys.argv[1] == "plain":
        try:
            with av.open(io.BytesIO(data)) as opened:
                print(f"opened {opened.format.name}")
        except Exception as error:  # a traceback would open the files it shows
            print(f"{type(error).__name__}: {error}")
        return
    print(len(Video(good).tiles(8).frames), "frames")
    try:
        Video(data).tiles(8)
    except VideoError as error:
        print(error)


if __name__ == "__main__":
    main()
