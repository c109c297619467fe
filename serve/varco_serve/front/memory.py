"""Memory of large requests goes back to the system when they have ended."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


def return_large_blocks() -> bool:
    """Let the allocator keep no block of a megabyte or more that was freed, and return whether it can be told so.

    glibc takes large blocks from the system and gives them back, but each one that is freed raises its notion of
    large, up to 32 MB: a server that has read a few pictures then keeps the memory of its busiest moment. A threshold
    that is set by hand stays. Other allocators are left as they are.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
    except (AttributeError, OSError, TypeError):
        return False
