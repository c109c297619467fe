"""Shards -> tensors: what is read, what is left out, and what does not fit the configuration."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.makers.refusals import refusal
from tests.makers.shard_files import add_tensor, change_header
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.checkpoint.provenance import find_license
from varco_runtime.errors import MissingExtraError

EMBEDDING = "language_model.embed_tokens.weight"


def use_all(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {name: checkpoint.tensor(name).read() for name in checkpoint.tensors}
    checkpoint.finish()
    return arrays


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["text_config"].update(changes)
    path.write_text(json.dumps(values))


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "numpy"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16), ("fp32", np.float32)])
def test_tensors_are_read_in_the_dtype_they_are_stored_in(made: Callable[..., Path], dtype: Any, numpy: Any) -> None:
    tensor = Checkpoint.open(made(dtype=dtype)).tensor(EMBEDDING)
    array = tensor.read()
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, (515, 64), array.nbytes)
    assert (array.dtype, array.shape) == (np.dtype(numpy), (515, 64))


def test_every_scheme_and_format_of_one_seed_reads_the_same(made: Callable[..., Path]) -> None:
    expected = use_all(Checkpoint.open(made()))
    for options in ({"names": "new"}, {"num_shards": 4}, {"format": "llava-next"}):
        arrays = use_all(Checkpoint.open(made(**options)))
        assert arrays.keys() == expected.keys()
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected), options


@pytest.mark.parametrize("max_bytes", [1, 256, 1000, 1 << 20])
def test_blocks_are_the_rows_in_order_and_bounded(made: Callable[..., Path], max_bytes: int) -> None:
    for name in (EMBEDDING, "image_newline", "vision_tower.embeddings.patch_embedding.weight"):
        tensor = Checkpoint.open(made()).tensor(name)
        blocks = list(tensor.blocks(max_bytes))
        assert np.array_equal(np.concatenate(blocks), tensor.read())
        assert all(block.nbytes <= max(max_bytes, tensor.nbytes // tensor.num_rows) for block in blocks)


def test_rows_past_the_end_are_a_bug(made: Callable[..., Path]) -> None:
    with pytest.raises(AssertionError, match=r"Bug: rows 0:516 of \(515, 64\)"):
        Checkpoint.open(made()).tensor(EMBEDDING).rows(0, 516)


def test_a_tied_head_is_the_embedding_table(made: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(made(tie_word_embeddings=True))
    assert checkpoint.has("lm_head.weight")
    assert checkpoint.tensor("lm_head.weight") == checkpoint.tensor(EMBEDDING)
    untied = Checkpoint.open(made())
    assert untied.num_parameters - checkpoint.num_parameters == 515 * 64
    assert untied.tensor("lm_head.weight") != untied.tensor(EMBEDDING)


def test_the_extra_vision_layer_is_left_out_in_both_formats(made: Callable[..., Path]) -> None:
    for kind in ("hf", "llava-next"):
        checkpoint = Checkpoint.open(made(format=kind, extra_vision_layer=True))
        assert checkpoint.config.vision.num_hidden_layers == 2
        assert not checkpoint.has("vision_tower.encoder.layers.2.mlp.fc1.weight")
        assert checkpoint.skipped["vision_tower.encoder.layers.2.mlp.fc1.weight"] == "a dropped layer"
        use_all(checkpoint)


def test_a_layer_count_left_out_still_says_which_layers_are_dropped(copy: Callable[..., Path]) -> None:
    folder = copy(num_vision_layers=11, extra_vision_layer=True)
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"]["num_hidden_layers"] = None  # the class default, 12
    (folder / "config.json").write_text(json.dumps(values))
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.config.vision.num_hidden_layers == 11
    assert checkpoint.skipped["vision_tower.encoder.layers.11.mlp.fc1.bias"] == "a dropped layer"


def test_buffers_heads_and_norms_that_nothing_depends_on_are_left_out(copy: Callable[..., Path]) -> None:
    folder = copy()
    extra = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": "computed from rope_theta",
        "vision_tower.vision_model.head.probe": "no pooled vector is used",
        "vision_tower.vision_model.embeddings.position_ids": "a buffer that counts up",
    }

    def change(header: dict[str, Any]) -> None:
        for name in extra:
            add_tensor(header, name, [1, 2], "I64")

    change_header(folder / "model.safetensors", change, bytes(16 * len(extra)))
    assert set(extra.values()) < set(Checkpoint.open(folder).skipped.values())


def test_a_tied_head_that_is_also_on_disk_must_be_the_same(copy: Callable[..., Path]) -> None:
    folder = copy(tie_word_embeddings=True)
    table = Checkpoint.open(folder).tensor(EMBEDDING).read()
    shard = folder / "model.safetensors"
    change_header(shard, lambda header: add_tensor(header, "language_model.lm_head.weight", [515, 64]), table.tobytes())
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.skipped["lm_head.weight"] == "tied to the embedding table"
    assert checkpoint.tensor("lm_head.weight").name == EMBEDDING
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert "lm_head.weight differs from the embedding table" in refusal(lambda: Checkpoint.open(folder))


def test_a_skipped_tensor_need_not_be_used(made: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(made())
    for name in checkpoint.tensors:
        if not name.startswith("vision_tower."):
            checkpoint.tensor(name)
    checkpoint.skip("vision_tower.", "a text model alone is exported")
    checkpoint.finish()


def test_a_tensor_that_was_never_used_is_named(made: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(made())
    for name in checkpoint.tensors.keys() - {"image_newline"}:
        checkpoint.tensor(name)
    assert "image_newline is never used by the export of" in refusal(checkpoint.finish)


def test_provenance_says_where_the_weights_came_from(made: Callable[..., Path]) -> None:
    folder = made(num_shards=4, format="llava-next")
    provenance = Checkpoint.open(folder).provenance
    assert provenance == {
        "source": folder.name,
        "revision": None,
        "format": "llava_next",
        "shards": [{"name": path.name, "size": path.stat().st_size} for path in sorted(folder.glob("*.safetensors"))],
        "license": "apache-2.0",
        "notes": [],
    }
    assert len(provenance["shards"]) == 4


@pytest.mark.parametrize(
    ("files", "source", "licence"),
    [
        ({"README.md": "---\nlicense: cc-by-nc-4.0\ntags:\n- a\n---\n# Title"}, "x", "cc-by-nc-4.0"),
        ({"README.md": "---\r\ntags: [a]\r\nlicense: 'MIT'\r\n---\r\n"}, "x", "mit"),
        ({"README.md": "---\nlicense:\n- apache-2.0\n---\n"}, "x", "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: tongyi-qianwen\n---\n"}, "x", "tongyi-qianwen"),
        ({"README.md": "license: mit"}, "x", "unknown"),
        ({"LICENSE": "   Apache License\n   Version 2.0"}, "x", "apache-2.0"),
        ({"LICENSE-CC-BY-NC-4.0.txt": ""}, "x", "cc-by-nc-4.0"),
        ({"LICENSE": "Attribution-NonCommercial 4.0 International"}, "x", "cc-by-nc-4.0"),
        ({"LICENSE": "All rights reserved"}, "x", "unknown"),
        ({}, "NCSOFT/VARCO-VISION-14B-HF", "cc-by-nc-4.0"),
        ({}, "x", "unknown"),
    ],
)
def test_the_licence_is_found(tmp_path: Path, files: dict[str, str], source: str, licence: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, newline="")
    assert find_license(tmp_path, source) == licence


def test_the_real_folder_has_its_licence(shared: Path) -> None:
    assert find_license(shared / "models" / "varco-vision-14b-hf", "x") == "cc-by-nc-4.0"


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_a_repo_id_is_downloaded_without_pytorch_files(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((repo_id, revision, allow_patterns))
        return str(made())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    provenance = Checkpoint.open("someone/tiny", revision="abc").provenance
    assert (provenance["source"], provenance["revision"]) == ("someone/tiny", made().name)
    assert calls[0][:2] == ("someone/tiny", "abc")
    assert "*.safetensors" in calls[0][2]
    assert not any(pattern.endswith((".bin", ".py")) for pattern in calls[0][2])


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repo_id: str, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    message = refusal(lambda: Checkpoint.open("someone/tiny"))
    assert "could it be downloaded (ConnectionError: no route to host)" in message


def test_a_download_without_huggingface_hub_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"Downloading someone/tiny needs the extra 'export'"):
        Checkpoint.open("someone/tiny")


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", Path("someone/tiny"), "../some where/x"])
def test_a_source_that_is_neither_folder_nor_repo_id_is_refused(source: str | Path) -> None:
    assert "is not a folder, expected a checkpoint's folder or a Hugging Face" in refusal(
        lambda: Checkpoint.open(source)
    )


def test_a_revision_of_a_folder_is_refused(made: Callable[..., Path]) -> None:
    assert "has no revision 'main'" in refusal(lambda: Checkpoint.open(made(), revision="main"))


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    assert "holds neither, expected model.safetensors" in refusal(lambda: Checkpoint.open(tmp_path))
    (tmp_path / "pytorch_model.bin").touch()
    assert "holds only PyTorch .bin files, expected model.safetensors" in refusal(lambda: Checkpoint.open(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), "holds an adapter (adapter_config.json) and no model"),
        (
            ("consolidated.safetensors", "params.json"),
            "holds weights in their trainer's own layout (consolidated.safet",
        ),
        (("consolidated.00.pth",), "holds weights in their trainer's own layout (consolidated.00.pth)"),
        (("model.fp16.safetensors",), "holds a variant of the weights (model.fp16.safetensors)"),
        (("model.fp16-00001-of-00002.safetensors",), "holds a variant of the weights (model.fp16-00001-of-00002"),
        (("model.safetensors.index.fp16.json",), "holds a variant of the weights (model.safetensors.index.fp16.json)"),
        (("model-00001-of-00002.safetensors",), "holds shards (model-00001-of-00002.safetensors) without their index"),
        (("weights.safetensors",), "holds weights.safetensors alone, expected model.safetensors"),
        (("model-q4.gguf",), "holds only weights in GGUF (model-q4.gguf)"),
        (
            ("gptq_model-4bit-128g.safetensors", "gptq_model-8bit--1g.safetensors"),
            "holds gptq_model-4bit-128g and gptq_model-8bit--1g, expected one model",
        ),
    ],
)
def test_a_folder_of_something_else_is_called_what_it_is(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert message in refusal(lambda: Checkpoint.open(tmp_path))


@pytest.mark.parametrize("num_shards", [1, 2])
def test_auto_gptqs_own_file_name_is_found(made: Callable[..., Path], tmp_path: Path, num_shards: int) -> None:
    source = made(num_shards=num_shards)
    for file in source.iterdir():
        name = re.sub(r"^model(?=[.-])", "gptq_model-4bit-128g", file.name)
        content = file.read_text().replace('"model-', '"gptq_model-4bit-128g-') if "index" in name else None
        (tmp_path / name).write_bytes(file.read_bytes() if content is None else content.encode())
    expected, found = (use_all(Checkpoint.open(folder)) for folder in (source, tmp_path))
    assert not list(tmp_path.glob("model*"))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "model-00002-of-00002.safetensors"]
)
def test_a_git_lfs_pointer_is_called_one(copy: Callable[..., Path], name: str) -> None:
    folder = copy(num_shards=1 if name == "model.safetensors" else 2)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert f"{name} is a Git LFS pointer, expected the file" in refusal(lambda: Checkpoint.open(folder))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "model-00002-of-00002.safetensors"]
)
def test_a_link_to_nothing_is_called_one(copy: Callable[..., Path], name: str) -> None:
    folder = copy(num_shards=1 if name == "model.safetensors" else 2)
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0123")
    message = refusal(lambda: Checkpoint.open(folder))
    assert f"{name} is a link to ../../blobs/0123, which is not there" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.lm_head.weight", "begins with 'base_model.model.', as peft names it"),
        ("module.lm_head.weight", "begins with 'module.', as DataParallel names it"),
        ("_orig_mod.lm_head.weight", "begins with '_orig_mod.', as torch.compile names it"),
        ("language_model.model.layers.0.mlp.up_proj.lora_A.default.weight", "is part of an adapter, expected"),
        ("language_model.model.layers.0.mlp.up_proj.base_layer.weight", "is part of an adapter, expected"),
    ],
)
def test_names_of_a_wrapper_or_an_adapter_are_called_so(copy: Callable[..., Path], name: str, message: str) -> None:
    folder = copy()
    change_header(folder / "model.safetensors", lambda header: add_tensor(header, name, [2, 2]), bytes(16))
    assert message in refusal(lambda: Checkpoint.open(folder))


def test_a_bundle_is_not_taken_for_a_checkpoint(tiny_bundle: Path) -> None:
    """Its embedding.bin is no PyTorch file."""
    assert "is a bundle, expected what a bundle is made of" in refusal(lambda: Checkpoint.open(tiny_bundle))


# --- tensors that do not fit the configuration ------------------------------------------------------------------------


def test_a_missing_tensor_is_named(copy: Callable[..., Path]) -> None:
    folder = copy()
    change_config(folder, num_hidden_layers=3)
    message = refusal(lambda: Checkpoint.open(folder))
    assert "language_model.layers.2.input_layernorm.weight and 11 more are missing from the weights" in message


def test_an_untied_checkpoint_without_a_head_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy(tie_word_embeddings=True)
    values = json.loads((folder / "config.json").read_text())
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(values))
    assert "lm_head.weight is missing and tie_word_embeddings is false" in refusal(lambda: Checkpoint.open(folder))


@pytest.mark.parametrize(
    "name", ["language_model.model.layers.2.mlp.up_proj.weight", "adapter.bias", "a\nb", "x" * 500]
)
def test_an_unknown_tensor_is_named_as_it_is_called_on_disk(copy: Callable[..., Path], name: str) -> None:
    folder = copy()
    change_header(folder / "model.safetensors", lambda header: add_tensor(header, name, [1]), bytes(4))
    message = refusal(lambda: Checkpoint.open(folder))
    assert f"{name.replace(chr(10), ' ')[:100]}" in message
    assert " is unknown, expected only the tensors that config.json describes" in message
    assert len(message) < 400


def test_a_vision_layer_beyond_the_dropped_one_is_unknown(copy: Callable[..., Path]) -> None:
    folder = copy(format="llava-next")
    name = "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias"
    change_header(folder / "model.safetensors", lambda header: add_tensor(header, name, [80]), bytes(320))
    assert f"{name} is unknown" in refusal(lambda: Checkpoint.open(folder))


def test_a_wrong_shape_is_named_with_the_expected_one(copy: Callable[..., Path]) -> None:
    folder = copy()
    change_config(folder, intermediate_size=161)
    message = refusal(lambda: Checkpoint.open(folder))
    assert "language_model.model.layers.0.mlp.gate_proj.weight [160, 64], expected [161, 64] by config.json" in message
    assert "(and 5 more)" in message


def test_vocabulary_rows_must_agree_in_the_hf_format(copy: Callable[..., Path]) -> None:
    folder = copy()
    change_config(folder, vocab_size=512)
    message = refusal(lambda: Checkpoint.open(folder))
    assert "language_model.model.embed_tokens.weight [515, 64], expected [512, 64]" in message


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_a_dtype_that_holds_no_plain_weights_is_refused(copy: Callable[..., Path], dtype: str) -> None:
    folder = copy()
    change_header(folder / "model.safetensors", lambda header: header["image_newline"].update(dtype=dtype))
    message = refusal(lambda: Checkpoint.open(folder))
    assert f"image_newline in model.safetensors has dtype {dtype}, expected BF16, F16 or F32" in message


def test_one_tensor_under_two_names_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy()
    change_header(
        folder / "model.safetensors", lambda header: add_tensor(header, "lm_head.weight", [515, 64]), bytes(515 * 256)
    )
    message = refusal(lambda: Checkpoint.open(folder))
    assert "lm_head.weight in model.safetensors" in message
    assert "are the same tensor, expected it once" in message


def test_one_tensor_in_two_shards_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy(num_shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    name = "vision_tower.vision_model.embeddings.patch_embedding.bias"
    change_header(second, lambda header: add_tensor(header, name, [48]), bytes(192))
    message = refusal(lambda: Checkpoint.open(folder))
    assert f"{name} in {second.name} and {name} in model-00001-of-00002.safetensors are the same tensor" in message


def test_a_tensor_that_nothing_has_is_missing(made: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(made())
    assert not checkpoint.has("language_model.layers.9.mlp.up_proj.weight")
    assert "language_model.layers.9.mlp.up_proj.weight is missing" in refusal(
        lambda: checkpoint.tensor("language_model.layers.9.mlp.up_proj.weight")
    )
