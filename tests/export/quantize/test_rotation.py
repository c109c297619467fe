"""Rotations, and checkpoints that are turned by them: the matrices, what is refused, what massive channels become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("quantising needs the extra 'quantize'", allow_module_level=True)

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize import hadamard
from varco_export.quantize.hadamard import Rotation
from varco_export.quantize.rotated import rotated
from varco_export.reading.shards import read_shards
from varco_runtime.errors import CheckpointError


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 44, 104, 128])
def test_orders_of_both_constructions_are_hadamard_matrices(order: int) -> None:
    matrix = hadamard.hadamard(order)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


def test_orders_that_no_construction_gives_are_none() -> None:
    assert [order for order in (3, 10, 52, 92) if hadamard.hadamard(order) is not None] == []


@pytest.mark.parametrize("width", [64, 192, 576, 896, 3584, 5120])
def test_a_rotation_of_a_real_width_keeps_lengths_and_spreads_one_channel_over_all(width: int) -> None:
    rotation = Rotation(width, 7)
    rows = np.random.default_rng(0).standard_normal((4, width))
    assert np.allclose(rotation.turn(rows) @ rotation.turn(rows).T, rows @ rows.T, rtol=1e-10, atol=1e-8)
    spread = rotation.turn(np.eye(width)[:3])
    assert np.allclose(np.abs(spread), width**-0.5)


def test_a_width_without_a_hadamard_matrix_gets_any_orthogonal_one() -> None:
    turned = Rotation(25 * 4, 0).turn(np.eye(100))
    assert np.allclose(turned @ turned.T, np.eye(100))
    assert np.abs(turned).max() < 0.5


def test_a_seed_makes_the_same_rotation_and_another_one_another() -> None:
    rows = np.eye(48)
    assert np.array_equal(Rotation(48, 1).turn(rows), Rotation(48, 1).turn(rows))
    assert not np.allclose(Rotation(48, 1).turn(rows), Rotation(48, 2).turn(rows))


def test_heads_are_turned_one_by_one() -> None:
    rotation, rows = Rotation(16, 3), np.random.default_rng(1).standard_normal((2, 48))
    parts = np.concatenate([rotation.turn(rows[:, start : start + 16]) for start in (0, 16, 32)], axis=1)
    assert np.allclose(rotation.turn(rows), parts)


def test_a_rotation_for_which_there_is_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hadamard, "machine_memory", lambda: (10_000, 10_000))
    with pytest.raises(CheckpointError, match=r"width of 25 .* needs 0.0 GB, expected at most .* Use --no-rotate"):
        Rotation(100, 0)
    Rotation(5120, 0)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def change(folder: Path, name: str, alter: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """Alter a tensor of a checkpoint in fp32 on disk."""
    for path, entries in read_shards(folder).items():
        for entry in entries:
            if entry.disk_name == name:
                values = np.memmap(path, np.float32, "r+", entry.offset, entry.shape)
                alter(values)
                values.flush()


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "is zero at 5, expected gains other than zero"), (np.nan, "holds NaN or infinity"), (np.inf, "NaN or inf")],
)
def test_a_gain_that_cannot_be_folded_in_is_refused(copy: Callable[..., Path], value: float, message: str) -> None:
    folder = copy()

    def alter(gain: np.ndarray[Any, Any]) -> None:
        gain[5] = value

    change(folder, "language_model.model.layers.1.post_attention_layernorm.weight", alter)
    with pytest.raises(CheckpointError, match=message):
        rotated(Checkpoint.open(folder), 0)


def test_a_tensor_of_unknown_use_is_refused(made: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(made())
    name = "language_model.layers.0.mixer.in_proj.weight"
    tensor = dataclasses.replace(checkpoint.tensors["language_model.layers.0.mlp.up_proj.weight"], name=name)
    with pytest.raises(CheckpointError, match=r"mixer.in_proj.weight is of a kind that is not known to take or give"):
        rotated(dataclasses.replace(checkpoint, tensors=checkpoint.tensors | {name: tensor}), 0)


def test_norms_of_queries_and_keys_stay_as_they_are(made: Callable[..., Path]) -> None:
    """As Qwen3 has them: their axes are those of the heads, which the stream's rotation leaves alone."""
    checkpoint = Checkpoint.open(made())
    gain = checkpoint.tensors["language_model.layers.0.input_layernorm.weight"]
    name = "language_model.layers.0.self_attn.q_norm.weight"
    own = dataclasses.replace(gain, name=name)
    turned = rotated(dataclasses.replace(checkpoint, tensors=checkpoint.tensors | {name: own}), 0)
    assert turned.tensors[name] is own


def test_every_way_of_reading_a_turned_tensor_gives_the_same(made: Callable[..., Path]) -> None:
    checkpoint = rotated(Checkpoint.open(made(dtype="bf16")), 4)
    for name in ("self_attn.q_proj.weight", "self_attn.v_proj.weight", "mlp.down_proj.weight", "self_attn.v_proj.bias"):
        tensor = checkpoint.tensor(f"language_model.layers.0.{name}")
        whole = tensor.read()
        assert np.array_equal(np.concatenate(list(tensor.blocks(256))), whole)
        assert np.array_equal(tensor.rows(3, 9), whole[3:9])
        if whole.ndim == 2:
            assert np.array_equal(tensor.columns(1, 4), whole[:, 1:4])


def test_a_turned_tensor_that_its_type_cannot_hold_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy(dtype="fp16")
    for path, entries in read_shards(folder).items():
        for entry in entries:
            if entry.disk_name == "image_newline":
                np.memmap(path, np.float16, "r+", entry.offset, entry.shape)[:] = 60000
    turned = rotated(Checkpoint.open(folder), 0).tensor("image_newline")
    with pytest.raises(CheckpointError, match=r"image_newline does not fit fp16 once it is rotated"):
        turned.read()
