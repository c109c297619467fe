"""Packed weights in the cache folder: the same numbers, checked before use, made again where damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import export_bundle
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.backends.cpu import prepacked
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.system.cache_folder import drop_oldest


@pytest.fixture(scope="module")
def int4_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(
        tiny_checkpoint, tmp_path_factory.mktemp("prepacked") / "bundle", decoder="int4", activations="int8"
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, for networks of any size."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepacked, "MIN_WEIGHT_BYTES", 0)
    return tmp_path / "cache" / "prepacked"


def numbers(bundle: Path) -> np.ndarray:
    varco = Varco.load(bundle, threads=1)
    size = varco.bundle.manifest.image.tile_px
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size))
    features = varco.backend.encode(pixels.astype(np.float32))
    ids = np.arange(40, dtype=np.int64)
    logits = varco.backend.prefill(PromptInputs(ids, 10**6, None), 0, num_logits=5)
    return np.concatenate([features.ravel(), logits.ravel(), varco.backend.decode_step(3, 40)])


def graphs_loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    loaded: list[Path] = []
    new_session = OnnxRuntimeBackend._new_session

    def recording(self: OnnxRuntimeBackend, path: Path, options: Any) -> Any:
        loaded.append(path)
        return new_session(self, path, options)

    monkeypatch.setattr(OnnxRuntimeBackend, "_new_session", recording)
    return loaded


def test_an_entry_gives_the_same_numbers_to_the_bit(
    tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = numbers(tiny_bundle)
    assert len(list(cache.iterdir())) == 3  # vision, projector, decoder, and nothing half made
    loaded = graphs_loaded(monkeypatch)
    assert np.array_equal(numbers(tiny_bundle), first)
    assert all(path.is_relative_to(cache) for path in loaded)
    assert len(loaded) == 3


def test_an_entry_that_gives_other_numbers_is_not_kept(
    tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime 1.31 reads some packed weights from wrong places on some processors; here the places are moved."""
    new_session = OnnxRuntimeBackend._new_session

    def misplacing(self: OnnxRuntimeBackend, path: Path, options: Any) -> Any:
        session = new_session(self, path, options)
        if path.name == "decoder.onnx" and options.optimized_model_filepath:
            data = Path(options.optimized_model_filepath).with_name("graph.onnx.data")
            content = data.read_bytes()
            data.write_bytes(content[64:] + content[:64])
        return session

    monkeypatch.setattr(OnnxRuntimeBackend, "_new_session", misplacing)
    first = numbers(tiny_bundle)
    assert np.isfinite(first).all()
    assert sorted(path.suffix for path in cache.iterdir()) == ["", "", ".unusable"]  # vision, projector; the decoder
    tried: list[Path] = []
    load = prepacked.Prepacked._load
    monkeypatch.setattr(
        prepacked.Prepacked, "_load", lambda self, folder: (tried.append(folder), load(self, folder))[1]
    )
    assert np.array_equal(numbers(tiny_bundle), first)
    assert len(tried) == 2  # the third is not made again


def test_an_entry_is_compared_with_the_graph_before_it_is_kept(
    tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = prepacked.Prepacked._load

    class Wrong:
        def __init__(self, session: Any) -> None:
            self._session = session

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.nextafter(output, np.float32(1e9)) for output in self._session.run(names, feeds)]

    monkeypatch.setattr(prepacked.Prepacked, "_load", lambda self, folder: Wrong(load(self, folder)))
    assert numbers(tiny_bundle).size
    assert {path.suffix for path in cache.iterdir()} == {".unusable"}


@pytest.mark.parametrize("name", ["graph.onnx", "graph.onnx.data", "entry.json"])
def test_a_damaged_entry_is_made_again(
    tiny_bundle: Path, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = numbers(tiny_bundle)
    for path in cache.glob(f"*/{name}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    loaded = graphs_loaded(monkeypatch)
    assert np.array_equal(numbers(tiny_bundle), first)
    tried = [path for path in loaded if path.is_relative_to(cache)]
    assert all(path.parent.name.startswith(".making-") for path in tried)  # made again, none taken from the entries
    loaded.clear()
    assert np.array_equal(numbers(tiny_bundle), first)
    assert all(path.is_relative_to(cache) for path in loaded)


def test_an_entry_belongs_to_weights_version_and_processor(
    int4_bundle: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(bundle: Path, version: str = "1.31.1") -> Path | None:
        opened = Bundle.open(bundle)
        return prepacked.Prepacked.folder_of(opened, opened.manifest.decoder, version)

    here = {folder(int4_bundle), folder(tiny_bundle), folder(int4_bundle, "1.32.0")}
    monkeypatch.setattr(prepacked, "cpu_kind", lambda: "another one")
    assert len({*here, folder(int4_bundle)}) == 4


def test_a_network_too_small_or_too_large_has_no_entry(int4_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(int4_bundle)
    for bound, value in (("MIN_WEIGHT_BYTES", 1 << 40), ("MAX_WEIGHT_BYTES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(prepacked, bound, value)
            assert prepacked.Prepacked.folder_of(opened, opened.manifest.decoder, "1.31.1") is None


def test_a_cache_that_cannot_be_written_is_no_obstacle(int4_bundle: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    assert numbers(int4_bundle).size


def test_a_disk_that_fills_up_leaves_nothing_behind(
    int4_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_session = OnnxRuntimeBackend._new_session

    def full(self: OnnxRuntimeBackend, path: Path, options: Any) -> Any:
        if options.optimized_model_filepath:
            Path(options.optimized_model_filepath).write_bytes(b"half")
            raise RuntimeError("No space left on device")
        return new_session(self, path, options)

    monkeypatch.setattr(OnnxRuntimeBackend, "_new_session", full)
    assert numbers(int4_bundle).size
    assert list(cache.iterdir()) == []


def test_a_disk_without_room_is_not_filled(tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    assert numbers(tiny_bundle).size
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tiny_bundle: Path, cache: Path) -> None:
    for name, age in ((".making-old", 7200), (".making-new", 0)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    assert numbers(tiny_bundle).size
    assert [path.name for path in cache.glob(".making-*")] == [".making-new"]


def test_the_longest_unused_entries_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "graph.onnx.data").write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert drop_oldest(tmp_path.iterdir(), 250) == 100
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle"}
    assert drop_oldest(tmp_path.iterdir(), 0) == 200
    assert not list(tmp_path.iterdir())
