"""Memory of large requests."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

_SCRIPT = """
from varco_serve.front.memory import return_large_blocks

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4 >> 10

if return_large_blocks():
    for _ in range(3):
        body = bytearray()
        while len(body) < 24 << 20:
            body += bytes(1 << 16)
        text = body.decode()
        del body
    before = resident_mib()
    del text
    print(before - resident_mib())
else:
    print("no glibc")
"""


def test_a_large_block_that_is_freed_goes_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    if run.stdout.strip() == "no glibc":
        pytest.skip("the allocator is not glibc's")
    assert int(run.stdout) >= 20
