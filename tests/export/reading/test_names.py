"""The name table: every scheme, both ways, and the real checkpoint's index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from varco_export.checkpoint.expected_shapes import expected_shapes
from varco_export.config.config_reader import read_config
from varco_export.reading.names import PREFIXES, Scheme, canonical_name, disk_name
from varco_export.tiny import TinyOptions

REAL = Path("models", "varco-vision-14b-hf")


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_every_scheme_spells_every_tensor_and_reads_it_back(scheme: Scheme) -> None:
    names = [*expected_shapes(TinyOptions().to_config()), "vision_tower.post_layernorm.weight"]
    spelled = [disk_name(name, scheme) for name in names]
    assert len(set(spelled)) == len(names)
    assert [canonical_name(name) for name in spelled] == names


def test_every_prefix_has_all_schemes() -> None:
    assert all(spellings.keys() == set(get_args(Scheme)) for spellings in PREFIXES.values())


@pytest.mark.parametrize(
    ("on_disk", "canonical"),
    [
        ("model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
        ("language_model.model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"),
        ("model.image_newline", "image_newline"),
        ("model.vision_tower.vision_tower.vision_model.head.probe", "vision_tower.head.probe"),
        ("model.vision_tower.vision_model.head.probe", "vision_tower.head.probe"),
        ("model.vision_tower.head.probe", "vision_tower.head.probe"),
    ],
)
def test_a_name_of_each_scheme_becomes_canonical(on_disk: str, canonical: str) -> None:
    assert canonical_name(on_disk) == canonical


@pytest.mark.parametrize("name", ["image_newlines", "transformer.wte.weight", "", "mm_projector.0.weight"])
def test_a_name_of_no_scheme_is_unknown(name: str) -> None:
    assert canonical_name(name) is None


def test_a_canonical_name_of_no_prefix_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="Bug: 'wte' is not a canonical name"):
        disk_name("wte", "hf_5")


def test_the_table_covers_every_tensor_of_the_real_index_exactly_once(shared: Path) -> None:
    index = json.loads((shared / REAL / "model.safetensors.index.json").read_text())["weight_map"]
    found = [canonical_name(name) for name in index]
    unused = {f"vision_tower.post_layernorm.{part}" for part in ("weight", "bias")}
    assert len(found) == len(set(found)) == 1005
    assert set(found) - unused == expected_shapes(read_config(shared / REAL, {})).keys()
