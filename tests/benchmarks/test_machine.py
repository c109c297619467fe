"""What a figure needs beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.machine import instruction_sets


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx avx2\n", ["AVX2"]),
        ("flags\t\t: avx2 avx512f avx512_vnni avx512_bf16 amx_tile\n", ["AVX2", "AVX-512", "VNNI", "BF16", "AMX"]),
        ("Features\t: fp asimd\n", []),
    ],
)
def test_instruction_sets_are_read_from_the_first_processor(flags: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nprocessor\t: 1\nflags\t\t: none\n")
    assert instruction_sets(tmp_path / "cpuinfo") == expected


def test_none_are_named_where_they_cannot_be_told(tmp_path: Path) -> None:
    assert instruction_sets(tmp_path / "missing") == []
