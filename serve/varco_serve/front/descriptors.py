"""File descriptors: each connection takes one, and where none is left nobody is let in, not even to ask for health."""

from __future__ import annotations

import contextlib

RESERVED = 64
"""Descriptors for everything else: the other processes, logs, libraries."""


def connections_allowed(wanted: int) -> int:
    """Return how many connections this process can hold, once it has asked for as many descriptors as it needs.

    The usual limit of 1024 is there for programs that use `select`; the system lets a process raise it by itself.

    Args:
        wanted: How many it would like to hold.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - RESERVED))
