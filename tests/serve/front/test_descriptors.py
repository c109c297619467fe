"""As many connections as there are descriptors for."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="the system has no such limit")

_SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from varco_serve.front.descriptors import connections_allowed
print(connections_allowed({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed", "soft_after"),
    [
        (400, 400, 100, 100, 400),
        (100, 400, 200, 200, 264),
        (100, 200, 1000, 136, 200),
        (50, 50, 1000, 1, 50),
    ],
)
def test_the_limit_is_raised_where_it_can_be_and_kept_to_where_it_cannot(
    soft: int, hard: int, wanted: int, allowed: int, soft_after: int
) -> None:
    script = _SCRIPT.format(soft=soft, hard=hard, wanted=wanted)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(allowed), str(soft_after)]
