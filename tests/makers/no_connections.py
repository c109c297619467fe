"""Runs a command that is killed, as is every process that it starts, when it asks for a network connection.

By a filter of system calls, which no library can get around: no `connect`, no datagram sockets, nothing sent to an
address. A socket that listens, and pairs of sockets, are allowed.

    python -m tests.makers.no_connections COMMAND ...
"""

from __future__ import annotations

import os
import platform
import sys

from tests.makers.forbidden_calls import install

# Its number, and those of socket, connect and sendto: <linux/audit.h>, <asm/unistd.h>.
_ARCHITECTURES = {"x86_64": (0xC000003E, 41, 42, 44), "aarch64": (0xC00000B7, 198, 203, 206)}
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # <linux/bpf_common.h>
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in `struct seccomp_data`, whose arguments are of 8 bytes
_INET, _INET6, _STREAM = 2, 10, 1  # <bits/socket.h>


def forbid() -> None:
    """Kill this process, and those that it starts, when it asks for a connection from now on."""
    architecture, socket, connect, sendto = _ARCHITECTURES[platform.machine()]
    kill, allow = 16, 17
    steps = [
        (_LOAD, _ARCHITECTURE),
        (_EQUAL, architecture, 2, kill),
        (_LOAD, _NUMBER),
        (_EQUAL, connect, kill, 4),
        (_EQUAL, sendto, 6, 5),
        (_EQUAL, socket, 10, allow),
        (_LOAD, _ARGUMENTS + 8 * 4),  # the address: none
        (_EQUAL, 0, 8, kill),
        (_LOAD, _ARGUMENTS + 8 * 4 + 4),
        (_EQUAL, 0, allow, kill),
        (_LOAD, _ARGUMENTS),  # the family
        (_EQUAL, _INET, 13, 12),
        (_EQUAL, _INET6, 13, allow),
        (_LOAD, _ARGUMENTS + 8),  # the type
        (_AND, 0xF),
        (_EQUAL, _STREAM, allow, kill),
        (_RETURN, _KILL),
        (_RETURN, _ALLOW),
    ]
    relative = []
    for place, (operation, operand, *targets) in enumerate(steps):
        skipped = [target - place - 1 for target in targets] or [0, 0]
        relative.append((operation, skipped[0], skipped[1], operand))
    install(relative)


def is_available() -> bool:
    """Return whether this machine has such filters, and lets a process have one."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    child = os.fork()
    if child == 0:
        try:
            forbid()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])
