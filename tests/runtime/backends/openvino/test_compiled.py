"""Compiled decoders in the cache folder: used where they are what they say, made again where not, and bounded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.makers.inputs import text_inputs
from varco_runtime import Varco
from varco_runtime.backends.openvino import compiled
from varco_runtime.dtypes import Array
from varco_runtime.system.cache_folder import drop_oldest, entries_of, num_bytes, set_max_cache_bytes

EXACT: dict[str, Any] = {"precision": "fp32", "threads": 1, "max_context": 128}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, where every decoder is kept."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "MIN_WEIGHT_BYTES", 0)
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each decoder that was asked of the cache folder: whether it had to be compiled."""
    found: list[bool] = []
    load = compiled.CompiledNetwork.load

    def note(self: Any, *arguments: Any) -> Any:
        network = load(self, *arguments)
        found.append(network is None)
        return network

    monkeypatch.setattr(compiled.CompiledNetwork, "load", note)
    return found


def numbers(bundle: Path, **options: Any) -> Array:
    """Logits of a prompt in one pass, then of a step behind half of it: states, rewind and cache."""
    varco = Varco.load(bundle, "openvino", **{**EXACT, **options})
    backend, inputs = varco.backend, text_inputs(varco, 60)
    return np.concatenate([backend.prefill(inputs, 0, 4), backend.prefill(inputs, 40, 4)])


def test_an_entry_that_gives_other_numbers_is_not_kept(
    tiny_bundle: Path, folder: Path, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[Any] = []

    def other_numbers(_: Any, network: Any) -> list[Array]:
        trials.append(network)
        return [np.array([len(trials)])]

    monkeypatch.setattr("varco_runtime.backends.openvino.network.Networks._trial", other_numbers)
    first = numbers(tiny_bundle)
    assert np.array_equal(numbers(tiny_bundle), first)
    assert (made, len(trials)) == ([True, True], 2), "compiled each time, tried once"
    assert not entries_of(folder)


def entry(folder: Path) -> Path:
    (found,) = (folder / "compiled").iterdir()
    return found


def test_a_second_start_compiles_nothing_and_gives_the_same_numbers(
    tiny_bundle: Path, folder: Path, made: list[bool]
) -> None:
    first = numbers(tiny_bundle)
    os.utime(entry(folder), (1000, 1000))
    assert np.array_equal(numbers(tiny_bundle), first)
    assert made == [True, False]
    assert entry(folder).stat().st_mtime > 1000, "it counts as used"
    assert {path.stat().st_mode & 0o777 for path in (entry(folder), *entry(folder).iterdir())} == {0o700, 0o600}


def test_other_settings_have_entries_of_their_own(
    tiny_bundle: Path, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({}, {"precision": "auto"}, {"kv_cache_precision": "u8"}, {"threads": 2}):
        numbers(tiny_bundle, **options)
    monkeypatch.setattr(compiled, "cpu_kind", lambda: "another")
    numbers(tiny_bundle)
    monkeypatch.setattr("openvino.__version__", "2026.9.0-1")
    numbers(tiny_bundle)
    assert made == [True] * 6


def damaged(entry: Path) -> None:
    blob = bytearray((entry / "network.blob").read_bytes())
    blob[len(blob) // 2] ^= 1
    (entry / "network.blob").write_bytes(blob)


def cut(entry: Path) -> None:
    os.truncate(entry / "network.blob", 1000)


def without_hash(entry: Path) -> None:
    (entry / "network.sha256").unlink()


def no_network(entry: Path) -> None:
    """Whole by its hash, and not what OpenVINO writes."""
    import hashlib

    (entry / "network.blob").write_bytes(b"nothing")
    (entry / "network.sha256").write_text(hashlib.sha256(b"nothing").hexdigest())


def writable_by_others(entry: Path) -> None:
    (entry / "network.blob").chmod(0o606)


@pytest.mark.parametrize("change", [damaged, cut, without_hash, no_network, writable_by_others])
def test_what_cannot_be_trusted_is_made_again(
    tiny_bundle: Path, folder: Path, made: list[bool], change: Callable[[Path], None]
) -> None:
    first = numbers(tiny_bundle)
    change(entry(folder))
    for _ in range(2):
        assert np.array_equal(numbers(tiny_bundle), first)
    assert made == [True, True, False]


def test_the_limit_bounds_it(tiny_bundle: Path, folder: Path, made: list[bool]) -> None:
    numbers(tiny_bundle)
    kept = num_bytes(entry(folder))
    assert set_max_cache_bytes(kept + 1000)
    numbers(tiny_bundle, threads=2)
    assert 0 < sum(map(num_bytes, entries_of(folder))) <= kept + 1000
    assert set_max_cache_bytes(0)
    drop_oldest(entries_of(folder), 0)
    numbers(tiny_bundle)
    assert not entries_of(folder)
    assert made == [True] * 3


def test_a_folder_that_others_may_write_is_not_used(tiny_bundle: Path, folder: Path, made: list[bool]) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o777)
    numbers(tiny_bundle)
    assert made == [True]
    assert not list(folder.iterdir())


def test_small_and_large_networks_are_not_kept(
    tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MIN_WEIGHT_BYTES", 1 << 40), ("MAX_WEIGHT_BYTES", 10)):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, name, value)
            numbers(tiny_bundle)
    assert not (folder / "compiled").exists()
