"""Names of ignored fields, fit for the header `varco-ignored`: they are a caller's."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_NAMES = 32
MAX_NAME_CHARS = 64
_NOT_IN_NAME = re.compile(r"[^!#-+\--:<-~]")  # ASCII that is seen, without quotes, commas and semicolons


def named(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once, without what a header cannot hold; at most `MAX_NAMES`.

    Args:
        names: Any texts.
    """
    found: dict[str, None] = {}
    for name in names:
        found[_NOT_IN_NAME.sub("?", name[:MAX_NAME_CHARS]) or "?"] = None
        if len(found) == MAX_NAMES:
            break
    return tuple(found)
