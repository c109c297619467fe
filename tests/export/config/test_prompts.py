"""The chat template, the tokenizer and the settings of generation that a bundle takes over from a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.makers.tiny_tokenizer import MARKUP, SPECIAL, tiny_document
from varco_export.config import tokenizer_file
from varco_export.config.prompts import LLAVA_NEXT_IMAGE_ID, QWEN_1_5, PromptAssets, load_prompts
from varco_runtime.errors import CheckpointError
from varco_runtime.prompt.prompter import Message, Placeholder, Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

TEXT_TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
PARTS_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)
HF_TOKENS = (*SPECIAL, *MARKUP, "<image>")
IMAGE = next(t["id"] for t in tiny_document(HF_TOKENS)["added_tokens"] if t["content"] == "<image>")
EOS = next(t["id"] for t in tiny_document(HF_TOKENS)["added_tokens"] if t["content"] == "<|im_end|>")


def write(folder: Path, **files: Any) -> Path:
    """Write files named like `chat_template__json`; text as it is, anything else as JSON."""
    for name, value in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder


def checkpoint(folder: Path, added: tuple[str, ...] = HF_TOKENS, **files: Any) -> Path:
    """A checkpoint's prompt files: tokenizer.json, eos by name, and what the test adds."""
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "chat_template": TEXT_TEMPLATE}
    return write(folder, **{"tokenizer__json": tiny_document(added), "tokenizer_config__json": config} | files)


def in_pieces(folder: Path, **files: Any) -> Path:
    """The same tokenizer as vocab.json, merges.txt and added_tokens.json."""
    document = tiny_document(HF_TOKENS)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    pieces = {
        "vocab__json": document["model"]["vocab"],
        "merges__txt": "\n".join(["#version: 0.2", *merges, ""]),
        "added_tokens__json": {token["content"]: token["id"] for token in document["added_tokens"]},
        "tokenizer_config__json": {"eos_token": "<|im_end|>", "chat_template": TEXT_TEMPLATE},
    }
    return write(folder, **pieces | files)


def load(folder: Path, family: Any = "hf", **options: Any) -> PromptAssets:
    return load_prompts(folder, **{"family": family, "image_token_id": IMAGE, "eos_token_id": (EOS,)} | options)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def test_a_complete_tokenizer_json_stays_as_it_is(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    assert load(tmp_path).tokenizer_json == (tmp_path / "tokenizer.json").read_text(encoding="utf-8")


def test_a_tokenizer_in_pieces_has_the_added_tokens_and_ids_of_the_whole_one(tmp_path: Path) -> None:
    whole = Tokenizer.from_json(json.dumps(tiny_document(HF_TOKENS)))
    built = Tokenizer.from_json(load(in_pieces(tmp_path)).tokenizer_json)
    assert built.added_token_ids == whole.added_token_ids
    assert built.encode_plain("Describe 그림.") == whole.encode_plain("Describe 그림.")


def test_a_merge_of_hash_signs_is_no_comment(tmp_path: Path) -> None:
    vocab = tiny_document(())["model"]["vocab"]
    vocab |= {"##": len(vocab)}
    in_pieces(tmp_path, vocab__json=vocab, merges__txt="#version: 0.2\r\n# #\r\n", added_tokens__json={"<image>": 999})
    tokenizer = Tokenizer.from_json(load(tmp_path, image_token_id=999).tokenizer_json)
    assert tokenizer.encode_plain("##") == [vocab["##"]]


def test_added_tokens_of_the_tokenizer_config_are_put_in(tmp_path: Path) -> None:
    decoder = {"990": {"content": "<new>", "lstrip": True, "special": True}}
    config = {"added_tokens_decoder": decoder, "chat_template": TEXT_TEMPLATE}
    checkpoint(tmp_path, tokenizer_config__json=config)
    token = Tokenizer.from_json(load(tmp_path).tokenizer_json).added_tokens["<new>"]
    assert (token.id, token.lstrip) == (990, True)


def test_a_special_token_known_by_name_takes_the_next_id(tmp_path: Path) -> None:
    config = {"extra_special_tokens": ["<late>", {"content": "<later>"}], "chat_template": TEXT_TEMPLATE}
    checkpoint(tmp_path, tokenizer_config__json=config)
    added = Tokenizer.from_json(load(tmp_path).tokenizer_json).added_token_ids
    assert (added["<late>"], added["<later>"]) == (IMAGE + 1, IMAGE + 2)


def test_ten_thousand_special_tokens_are_given_ids_in_linear_time(tmp_path: Path) -> None:
    """The next free id is counted: a search of all ids for each token took minutes for so many."""
    names = [f"<n{number}>" for number in range(10_000)]
    checkpoint(tmp_path, tokenizer_config__json={"extra_special_tokens": names, "chat_template": TEXT_TEMPLATE})
    added = Tokenizer.from_json(load(tmp_path).tokenizer_json).added_token_ids
    assert [added[name] for name in names] == list(range(IMAGE + 1, IMAGE + 10_001))


# --- template ---------------------------------------------------------------------------------------------------------


def test_the_processors_template_wins_over_the_tokenizers(tmp_path: Path) -> None:
    checkpoint(tmp_path, chat_template__json={"chat_template": PARTS_TEMPLATE}, chat_template__jinja="other")
    assets = load(tmp_path)
    assert (assets.chat_template, assets.prompt.content_format) == (PARTS_TEMPLATE, "parts")


def test_a_template_in_the_processors_config_wins_over_all(tmp_path: Path) -> None:
    write(tmp_path, chat_template__json={"chat_template": "x"})
    checkpoint(tmp_path, processor_config__json={"chat_template": PARTS_TEMPLATE})
    assert load(tmp_path).chat_template == PARTS_TEMPLATE


def test_a_template_file_wins_over_the_tokenizers_template(tmp_path: Path) -> None:
    assert load(checkpoint(tmp_path, chat_template__jinja=PARTS_TEMPLATE)).chat_template == PARTS_TEMPLATE


def test_the_tokenizers_template_takes_its_content_as_a_string(tmp_path: Path) -> None:
    assets = load(checkpoint(tmp_path))
    assert (assets.chat_template, assets.prompt.content_format) == (TEXT_TEMPLATE, "string")


def test_of_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEXT_TEMPLATE}]
    assert load(checkpoint(tmp_path, tokenizer_config__json={"chat_template": named})).chat_template == TEXT_TEMPLATE


def test_varco_in_llava_next_format_uses_its_tokenizers_template(tmp_path: Path) -> None:
    assets = load(checkpoint(tmp_path, (*SPECIAL, *MARKUP)), "llava_next", image_token_id=None)
    assert assets.chat_template == TEXT_TEMPLATE
    assert assets.prompt.markup_tokens == MARKUP


def test_other_llava_next_checkpoints_use_qwen_1_5_whatever_their_tokenizer_brings(tmp_path: Path) -> None:
    assets = load(checkpoint(tmp_path, SPECIAL), "llava_next", image_token_id=None)
    assert assets.chat_template == QWEN_1_5
    assert assets.prompt.markup_tokens == ()


def test_qwen_1_5_writes_llava_nexts_conversation(tmp_path: Path) -> None:
    assets = load(checkpoint(tmp_path, SPECIAL), "llava_next", image_token_id=None)
    tokenizer = Tokenizer.from_json(assets.tokenizer_json)
    messages = [Message("user", (Placeholder.IMAGE, "Hi")), Message("assistant", "Yes"), Message("user", "So?")]
    ids = Prompter(assets.chat_template, assets.prompt, tokenizer).encode(messages, 1)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(LLAVA_NEXT_IMAGE_ID) == 1


def test_special_tokens_that_a_template_asks_for_by_name_are_written_into_it(tmp_path: Path) -> None:
    template = TEXT_TEMPLATE + "{{ eos_token }}{% generation %}{% endgeneration %}"
    assets = load(checkpoint(tmp_path, chat_template__jinja=template))
    tokenizer = Tokenizer.from_json(assets.tokenizer_json)
    ids = Prompter(assets.chat_template, assets.prompt, tokenizer).encode([Message("user", "x")], 0)
    assert tokenizer.decode(ids).endswith("<|im_end|>\n<|im_end|>")


def test_a_llava_next_tokenizer_with_an_image_token_keeps_its_id(tmp_path: Path) -> None:
    assets = load(checkpoint(tmp_path, (*SPECIAL, "<image>")), "llava_next", image_token_id=None)
    assert assets.prompt.image_token_id == IMAGE - len(MARKUP)


# --- generation -------------------------------------------------------------------------------------------------------


def test_the_generation_config_gives_end_tokens_penalty_and_suggestions(tmp_path: Path) -> None:
    config = {"eos_token_id": [7, 5], "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20, "top_p": None}
    generation = load(checkpoint(tmp_path, generation_config__json=config)).generation
    assert (generation.eos_token_ids, generation.repetition_penalty) == ((7, 5), 1.05)
    assert generation.suggested == (("temperature", 0.7), ("top_k", 20.0))


def test_without_a_generation_config_the_end_token_is_the_configs(tmp_path: Path) -> None:
    assert load(checkpoint(tmp_path), eos_token_id=3).generation.eos_token_ids == (3,)


def test_without_any_end_token_id_it_is_the_tokenizers(tmp_path: Path) -> None:
    assert load(checkpoint(tmp_path), eos_token_id=()).generation.eos_token_ids == (EOS,)


NOT_APPLIED = {"no_repeat_ngram_size": 3, "suppress_tokens": [1, 2], "num_beams": 4, "sequence_bias": [[[5], -1.0]]}


def test_generation_settings_that_are_not_applied_are_named(tmp_path: Path) -> None:
    neutral = {"num_beam_groups": 1, "encoder_repetition_penalty": 1.0, "bad_words_ids": None, "min_length": 0}
    config = NOT_APPLIED | neutral | {"eos_token_id": 7, "begin_suppress_tokens": [], "top_k": 50}
    assert load(checkpoint(tmp_path, generation_config__json=config)).notes == (
        "generation_config.json asks for no_repeat_ngram_size 3, num_beams 4, sequence_bias [[[5], -1.0]], "
        "suppress_tokens [1, 2], not applied here: transformers' answers may differ.",
    )


def test_settings_that_change_nothing_are_not_mentioned(tmp_path: Path) -> None:
    config = {"eos_token_id": 7, "num_beams": 1, "no_repeat_ngram_size": 0, "guidance_scale": 1.0, "do_sample": True}
    assert load(checkpoint(tmp_path, generation_config__json=config)).notes == ()


def test_without_a_generation_config_the_penalty_is_that_of_the_config(tmp_path: Path) -> None:
    inner = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "temperature": 0.7}
    assets = load(checkpoint(tmp_path, config__json={"text_config": inner}))
    assert (assets.generation.repetition_penalty, assets.generation.suggested) == (1.3, ())
    assert assets.notes[0].startswith("config.json asks for no_repeat_ngram_size 2, not applied here")
    outer = {"text_config": inner, "repetition_penalty": 1.1, "no_repeat_ngram_size": None}
    assert load(checkpoint(tmp_path, config__json=outer)).generation.repetition_penalty == 1.1


def test_beside_a_generation_config_the_configs_penalty_does_not_count(tmp_path: Path) -> None:
    config = {"repetition_penalty": 1.3, "num_beams": 2}
    assets = load(checkpoint(tmp_path, config__json=config, generation_config__json={"eos_token_id": 7}))
    assert (assets.generation.repetition_penalty, assets.notes) == (1.0, ())


@pytest.mark.parametrize(("family", "penalised"), [("hf", True), ("llava_next", False)])
def test_only_transformers_format_penalises_the_prompt(tmp_path: Path, family: str, penalised: bool) -> None:
    assert load(checkpoint(tmp_path), family).generation.penalise_prompt is penalised


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no tokenizer": ("neither tokenizer.json nor vocab.json and merges.txt", lambda p: write(p)),
    "no merges": ("nor merges.txt", lambda p: write(p, vocab__json={})),
    "other class": ("names the class 'T5'", lambda p: in_pieces(p, tokenizer_config__json={"tokenizer_class": "T5"})),
    "bad merge": ("merges.txt line 2 is 'a'", lambda p: in_pieces(p, merges__txt="#version\na\n")),
    "unknown merge": ("line 1 is 'q zzz'", lambda p: in_pieces(p, merges__txt="q zzz\n")),
    "not a bpe": ("holds no vocabulary", lambda p: checkpoint(p, tokenizer__json={"model": None})),
    "not byte-level": ("cannot be used", lambda p: checkpoint(p, tokenizer__json={"model": {"vocab": {"a": 0}}})),
    "not json": ("is not JSON", lambda p: checkpoint(p, tokenizer_config__json="{")),
    "surrogate": ("surrogates not allowed", lambda p: checkpoint(p, tokenizer_config__json={"eos_token": "\ud800"})),
    "key twice": ("the key 'a' comes twice", lambda p: checkpoint(p, tokenizer_config__json='{"a": 1, "a": 2}')),
    "no object": ("holds '\\[\\]', expected a JSON object", lambda p: checkpoint(p, generation_config__json=[])),
    "unreadable": ("cannot be read", lambda p: (checkpoint(p) / "processor_config.json").mkdir()),
    "decoder": (
        "as added_tokens_decoder",
        lambda p: checkpoint(p, tokenizer_config__json={"added_tokens_decoder": [1]}),
    ),
    "entry": (
        "expected a text and a token id",
        lambda p: checkpoint(p, tokenizer_config__json={"added_tokens_decoder": {"x": {"content": "<x>"}}}),
    ),
    "two ids": ("'<image>' the id 5, expected id", lambda p: checkpoint(p, added_tokens__json={"<image>": 5})),
    "id taken": ("expected an id that is not", lambda p: checkpoint(p, added_tokens__json={"<x>": 5})),
    "no template": ("has no chat template", lambda p: checkpoint(p, tokenizer_config__json={})),
    "no default": (
        "has no chat template",
        lambda p: checkpoint(p, tokenizer_config__json={"chat_template": [{"name": "rag", "template": "x"}]}),
    ),
    "name that is no text": (
        "has no chat template",
        lambda p: checkpoint(p, tokenizer_config__json={"chat_template": [{"name": [], "template": "x"}, {}]}),
    ),
    "long token": (
        "an added token of 257 characters",
        lambda p: checkpoint(p, tokenizer_config__json={"extra_special_tokens": ["<" * 257]}),
    ),
    "bad template": ("cannot be used", lambda p: checkpoint(p, chat_template__jinja="{% if %}")),
    "no picture": ("renders no prompt with a picture", lambda p: checkpoint(p, chat_template__jinja="x")),
    "image id": (
        "image token '<img>' the id",
        lambda p: checkpoint(p, processor_config__json={"image_token": "<img>"}),
    ),
    "eos": ("the eos_token_id 'x'", lambda p: checkpoint(p, generation_config__json={"eos_token_id": "x"})),
    "penalty": ("repetition_penalty 0", lambda p: checkpoint(p, generation_config__json={"repetition_penalty": 0})),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_missing_malformed_or_contradictory_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    message, spoil = REFUSED[name]
    spoil(tmp_path)
    if name == "image id":  # its template must still show the placeholder
        write(tmp_path, chat_template__jinja=PARTS_TEMPLATE.replace("<image>", "<img>"))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
        "chat_template.jinja", "processor_config.json", "generation_config.json",
    ],
)  # fmt: skip
def test_no_file_of_a_checkpoint_is_waited_for(name: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        load(tmp_path)


def test_an_id_beyond_the_embedding_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"ids up to {IMAGE}, expected less than the {IMAGE} rows"):
        load(checkpoint(tmp_path), vocab_size=IMAGE)


def test_qwen_1_5_needs_the_tokens_of_its_turns(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no token <\|im_start\|>"):
        load(checkpoint(tmp_path, ("<|endoftext|>",), tokenizer_config__json={}), "llava_next", image_token_id=None)


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "MAX_TOKENIZER_BYTES", 10)
    with pytest.raises(CheckpointError, match="more than 10 bytes"):
        load(checkpoint(tmp_path))
