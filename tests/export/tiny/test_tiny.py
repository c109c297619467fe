"""The maker of tiny checkpoints: what it writes, from Python and from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.makers.steps import count_steps
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.model_config import ModelConfig
from varco_export.tiny import SHAPES, TinyOptions, make_tiny, token_ids
from varco_export.tiny.command import main
from varco_runtime.errors import UsageError

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "odd sizes": {
        "num_hidden_layers": 3,
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 601,
    },
    "new names": {"names": "new", "dtype": "bf16"},
    "extra vision layer": {"extra_vision_layer": True},
    "plain anyres": {"max_grid_tiles": None, "max_grid": (2, 3)},
    "sharded": {"num_shards": 3, "dtype": "fp16"},
    "llava-next": {"format": "llava-next"},
    "llava-next, odd": {"format": "llava-next", "extra_vision_layer": True, "num_shards": 2, "max_grid": (1, 4)},
}


def read(config: ModelConfig) -> ModelConfig:
    return replace(config, raw={})


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_what_is_made_is_what_was_asked_for(tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = TinyOptions(**options)
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "tiny", wanted))
    assert read(checkpoint.config) == wanted.to_config()
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {wanted.dtype}
    assert len(checkpoint.provenance["shards"]) == wanted.num_shards
    assert checkpoint.provenance["license"] == "apache-2.0"


def test_a_seed_makes_the_same_files_again_and_another_makes_others(tmp_path: Path) -> None:
    first, again, other = (make_tiny(tmp_path / str(n), TinyOptions(seed=seed)) for n, seed in enumerate((1, 1, 2)))
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
        assert (path.read_bytes() == (other / path.name).read_bytes()) is (path.suffix != ".safetensors"), path.name


def test_weights_are_finite_and_keep_their_scale_in_fp16(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "tiny", TinyOptions(dtype="fp16")))
    for name in checkpoint.tensors:
        array = checkpoint.tensor(name).read().astype(np.float32)
        assert np.isfinite(array).all(), name
        assert array.std() > 1e-3, name


def test_a_small_one_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    """Hundreds of tests make one: a megabyte of weights, and steps that take 0.1 s where nothing else runs."""
    make_tiny(tmp_path / "warm")
    assert count_steps(lambda: make_tiny(tmp_path / "tiny")) < 1_000_000
    assert sum(path.stat().st_size for path in (tmp_path / "tiny").iterdir()) < 1_500_000


def test_the_tokenizer_knows_bytes_words_and_markup(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(make_tiny(tmp_path / "tiny") / "tokenizer.json"))
    ids = token_ids()
    assert tokenizer.get_vocab() == ids
    text = "<|im_start|>user\n<image>\n<gro>Describe 고양이 \u00e9 ✓ 12<obj>물건</obj><bbox>0.1, 0.2</bbox><|im_end|>\n"
    encoded = tokenizer.encode(text).ids
    assert tokenizer.decode(encoded, skip_special_tokens=False) == text
    assert [ids[token] for token in ("<|im_start|>", "user")] == encoded[:2]
    assert {ids[token] for token in ("<image>", "<gro>", "<obj>", "</obj>", "<bbox>", "</bbox>")} < set(encoded)
    assert len(tokenizer.encode("고양이").ids) == 1
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids
    assert ids["<image>"] == max(ids.values()) == len(ids) - 1


def test_llava_next_has_no_image_token_and_the_same_other_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(
        str(make_tiny(tmp_path / "tiny", TinyOptions(format="llava-next")) / "tokenizer.json")
    )
    ids = token_ids()
    assert tokenizer.get_vocab() == {token: number for token, number in ids.items() if token != "<image>"}


def test_tokenizer_files_replace_tokenizer_json(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny", TinyOptions(tokenizer_files=True))
    assert not (folder / "tokenizer.json").exists()
    vocab, added = (json.loads((folder / name).read_text()) for name in ("vocab.json", "added_tokens.json"))
    assert vocab | added == token_ids()
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    assert all("".join(line.split(" ")) in vocab for line in merges)
    assert len(vocab) == 256 + len(merges)


def test_a_sparse_14b_takes_no_disk_and_has_the_published_size(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "14b", TinyOptions(sparse=True, dtype="fp16", num_shards=7, **SHAPES["14b"]))
    shards = sorted(folder.glob("*.safetensors"))
    assert sum(path.stat().st_blocks * 512 for path in shards) < 4 << 20
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 30_391_954_496
    assert len(index["weight_map"]) == 1005
    checkpoint = Checkpoint.open(folder)
    assert not next(checkpoint.tensor("lm_head.weight").blocks(1 << 20)).any()


@pytest.mark.parametrize(
    ("shape", "parameters", "tower"), [("2.0-14b", 15_198_214_048, 421), ("2.0-1.7b", 2_124_913_568, 421)]
)
def test_the_shapes_of_varco_vision_2_have_the_known_number_of_parameters(
    tmp_path: Path, shape: str, parameters: int, tower: int
) -> None:
    """Counted by hand from the configurations of their bases, with the norm behind the tower, which is skipped."""
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "made", TinyOptions(sparse=True, dtype="fp16", **SHAPES[shape])))
    names = [name for name in (*checkpoint.tensors, *checkpoint.skipped) if name.startswith("vision_tower.")]
    assert (len(names), checkpoint.config.image.patches_per_tile) == (tower, 576)
    assert sum(name.startswith("vision_tower.post_layernorm.") for name in names) == 2
    assert checkpoint.num_parameters == parameters - 2 * 1152
    text = checkpoint.config.text
    assert (text.qk_norm, text.qkv_bias, text.head_dim) == (True, False, 128)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_real_shape_opens_in_its_formats(tmp_path: Path, shape: str) -> None:
    for kind in ("hf", "llava-next") if "text" not in SHAPES[shape] else ("hf",):
        options: Any = {"sparse": True, "format": kind, "dtype": "bf16", **SHAPES[shape]}
        checkpoint = Checkpoint.open(make_tiny(tmp_path / kind, TinyOptions(**options)))
        assert checkpoint.config.text.tie_word_embeddings is (shape in ("0.5b", "2.0-1.7b"))
        assert checkpoint.config.text.head_dim in (64, 128)


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists, expected a new folder"):
        make_tiny(tmp_path)
    assert not any(tmp_path.iterdir())


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varco_export.tiny.maker.write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        make_tiny(tmp_path / "tiny")
    assert not any(tmp_path.iterdir())
    assert main([str(tmp_path / "tiny")]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 65}, "--hidden by --heads is 65 / 4, expected no remainder"),
        ({"num_key_value_heads": 3}, "--heads by --kv-heads is 4 / 3"),
        ({"num_key_value_heads": 0}, "--heads by --kv-heads is 4 / 0"),
        ({"num_vision_heads": 5}, "--vision-hidden by --vision-heads is 48 / 5"),
        ({"hidden_size": 12}, "--hidden by --heads is odd"),
        ({"vocab_size": 100}, f"--vocab is 100, expected {len(token_ids())} or more"),
        ({"patch_size": 60}, r"--patch-size is 60, expected at most --image-size \(58\)"),
        ({"num_hidden_layers": 0}, "--layers is 0, expected 1 or more"),
        ({"max_grid_tiles": 0}, "--max-grid-tiles is 0, expected 1 or more"),
    ],
)
def test_sizes_that_make_no_model_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_tiny(tmp_path / "tiny", TinyOptions(**options))


def test_the_command_line_sets_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "--seed 3 --layers 1 --hidden 48 --heads 3 --kv-heads 1 --intermediate 64 --vocab 520 --tied --vision-layers 1 "
        "--vision-hidden 24 --vision-heads 2 --vision-intermediate 40 --image-size 30 --patch-size 10 --grid 2x3 "
        "--max-grid-tiles 4 --dtype bf16 --format llava-next --extra-vision-layer --shards 2 --tokenizer-files --sparse"
    )
    assert main([str(tmp_path / "tiny"), *line.split()]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "tiny")
    wanted = TinyOptions(
        num_hidden_layers=1, hidden_size=48, num_attention_heads=3, num_key_value_heads=1, intermediate_size=64,
        vocab_size=520, tie_word_embeddings=True, num_vision_layers=1, vision_hidden_size=24, num_vision_heads=2,
        vision_intermediate_size=40, image_size=30, patch_size=10, max_grid=(2, 3), max_grid_tiles=4,
        format="llava-next",
    )  # fmt: skip
    assert read(Checkpoint.open(tmp_path / "tiny").config) == wanted.to_config()


def test_a_wrong_command_line_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "tiny"), "--vocab", "1"]) == 2
    assert "--vocab is 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "tiny"), "--grid", "0x2"])
    assert caught.value.code == 2
    assert "'0x2' is not ROWSxCOLUMNS" in capsys.readouterr().err


def test_no_torch_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from varco_export.tiny.command import main\n"
        "from varco_export.checkpoint.checkpoint import Checkpoint\n"
        f"main([{str(tmp_path / 'tiny')!r}]); Checkpoint.open({str(tmp_path / 'tiny')!r})\n"
        "print(sorted({'torch', 'transformers', 'safetensors', 'huggingface_hub', 'onnx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
