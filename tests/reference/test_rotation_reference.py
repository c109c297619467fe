"""A rotated checkpoint is the same model: against transformers on the original, and through the exporter."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("quantising needs the extra 'quantize'", allow_module_level=True)

from safetensors import safe_open

from tests.reference.oracle import Oracle, photo, relative_error, user_message
from varco_export.export import ExportOptions, export
from varco_export.quantize import QuantizeOptions, quantize
from varco_export.quantize.hadamard import Rotation
from varco_export.tiny import Scales, TinyOptions, make_tiny
from varco_runtime import Varco

PROMPT = "What is in the picture?"
GENTLE = Scales(query_key=1.2, attention=1.0, mlp=1.0)
"""Random layers with the usual scales amplify a rounding error; these keep 64 choices clear of ties."""


def wide(hidden_size: int, num_heads: int, num_groups: int) -> dict[str, Any]:
    """Two thin layers of a real width."""
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_groups,
        "intermediate_size": 32,
        "num_vision_layers": 1,
    }


SMALL: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied, names of transformers 5": {"tie_word_embeddings": True, "names": "new"},
    "LLaVA-NeXT": {"format": "llava-next"},
    "LLaVA-NeXT, tied": {"format": "llava-next", "tie_word_embeddings": True},
    "one head for all": {"num_key_value_heads": 1},
    "no Hadamard matrix": wide(944, 59, 1),
    "Qwen3, heads of another size": {"text": "qwen3", "head_dim": 32},
}
LARGE: dict[str, dict[str, Any]] = {
    "896": wide(896, 14, 2),
    "3584": wide(3584, 28, 4),
    "5120": wide(5120, 40, 8),
}


class Silent:
    """Progress that nobody sees."""

    def __init__(self) -> None:
        from varco_export.progress import SILENT

        self.stage, self.notes = SILENT.stage, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)


def tensors(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize(
    "case", [*SMALL, "896", *(pytest.param(name, marks=pytest.mark.full) for name in ("3584", "5120"))]
)
def test_a_rotated_checkpoint_is_the_same_model(tmp_path: Path, case: str) -> None:
    """Packed image tokens, first logits and 64 greedy tokens, in transformers and here, in fp32."""
    options = TinyOptions(**{"seed": 8, "scales": GENTLE, "num_key_value_heads": 2, **(SMALL | LARGE)[case]})
    source = make_tiny(tmp_path / "source", options)
    quantize(source, tmp_path / "rotated", QuantizeOptions("none", seed=3), Silent())
    plain = source
    if options.format == "llava-next":  # which transformers cannot load: the same weights in its own format
        named = {name: getattr(options, name) for name in options.__slots__}
        plain = make_tiny(tmp_path / "plain", TinyOptions(**{**named, "format": "hf"}))
    before, after = Oracle(plain), Oracle(tmp_path / "rotated")
    image, rotation = photo(90, 120, 4), Rotation(options.hidden_size, 3)
    assert relative_error(after.image_tokens(image), rotation.turn(before.image_tokens(image))) < 1e-4
    expected = before.greedy(user_message(PROMPT, True), image, 64)
    got = after.greedy(user_message(PROMPT, True), image, 64)
    assert expected.smallest_margin > 1e-3, "the choices of this model are too close to compare tokens; another seed"
    assert relative_error(got.logits[0], expected.logits[0]) < 1e-4
    assert got.token_ids == expected.token_ids
    export(tmp_path / "rotated", tmp_path / "bundle", ExportOptions(decoder="fp32", vision="fp32", probes=False))
    answer = Varco.load(tmp_path / "bundle", threads=1).ask(image, PROMPT, max_new_tokens=64)
    stopped = expected.token_ids[:-1] if answer.finish_reason == "stop" else expected.token_ids
    assert list(answer.token_ids) in (expected.token_ids, stopped)


def test_the_tower_is_untouched_and_all_gains_are_one(tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "source", TinyOptions(seed=2, dtype="bf16", num_hidden_layers=1))
    quantize(source, tmp_path / "rotated", QuantizeOptions("none"), Silent())
    from varco_export.checkpoint.checkpoint import Checkpoint

    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "rotated")
    for name, tensor in after.tensors.items():
        theirs = before.tensor(name)
        assert tensor.dtype == theirs.dtype
        same = np.array_equal(tensor.read(), theirs.read())
        untouched = name.startswith(("vision_tower.", "multi_modal_projector.linear_1.")) or name.endswith(
            ("q_proj.bias", "k_proj.bias")
        )
        assert same == untouched, name
        if name.startswith("language_model.") and "norm" in name:
            assert (tensor.read() == 1).all()
