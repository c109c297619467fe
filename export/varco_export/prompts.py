"""How a checkpoint wants to be asked: tokenizer, chat template, prompt and generation settings, from its small files.

**Tokenizer.** `tokenizer.json` as it is; else one built from vocab.json and merges.txt as transformers'
`models/qwen2/tokenization_qwen2.py` builds it. Added tokens that only tokenizer_config.json knows (or, without
`added_tokens_decoder` there, added_tokens.json and special_tokens_map.json) are put in, as transformers does.

**Chat template.** transformers' format: the processor's template (processor_config.json, chat_template.json,
chat_template.jinja, in this order) before the tokenizer's (tokenizer_config.json). LLaVA-NeXT's format: VARCO, known
by the markup tokens in its tokenizer, is documented with the tokenizer's template; all others with LLaVA-NeXT's
`qwen_1_5` conversation, even when the tokenizer, being Qwen's, brings a template of its own. What form of content a
template takes is found by rendering: a list of parts if the picture and the text come out, else one string.

**Generation.** generation_config.json's end tokens and repetition penalty; sampling settings are kept as suggestions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta

from varco_runtime.errors import BundleError, CheckpointError, PromptError
from varco_runtime.settings import GenerationSettings, PromptSettings
from varco_runtime.template import ChatTemplate
from varco_runtime.tokenizer import Tokenizer

MARKUP_TOKENS = ("<gro>", "<ocr>", "<char>", "</char>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>")
IMAGE_TOKEN = "<image>"
LLAVA_NEXT_IMAGE_ID = -200  # LLaVA-NeXT's IMAGE_TOKEN_INDEX: no row of the table, replaced before the decoder sees it
MAX_TOKENIZER_BYTES = 64 << 20
MAX_SETTINGS_BYTES = 4 << 20

# LLaVA-NeXT, llava/conversation.py: conv_qwen, style CHATML.
QWEN_1_5 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# transformers, models/qwen2/tokenization_qwen2.py
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class PromptAssets:
    """What goes into the bundle: two files' texts and two settings."""

    tokenizer_json: str
    chat_template: str
    prompt: PromptSettings
    generation: GenerationSettings


def load_prompts(
    folder: Path,
    *,
    family: Literal["hf", "llava_next"],
    image_token_id: int | None,
    eos_token_id: int | tuple[int, ...] | None,
    vocab_size: int | None = None,
) -> PromptAssets:
    """Read a checkpoint's prompt files. `image_token_id` and `eos_token_id` are those of config.json.

    `vocab_size` is the number of rows of the embedding table; with it, ids beyond it are refused.
    Raises `CheckpointError` for files that are missing, malformed or contradict each other.
    """
    config = _read_json(folder / "tokenizer_config.json", required=False)
    named = _named_tokens(folder, config)
    tokenizer_json = _tokenizer_json(folder, config, named)
    try:
        tokenizer = Tokenizer.from_json(tokenizer_json)
    except BundleError as error:
        raise CheckpointError(f"The tokenizer of {folder.name} cannot be used: {error}") from None
    if vocab_size is not None and tokenizer.size > vocab_size:
        raise CheckpointError(
            f"The tokenizer has ids up to {tokenizer.size - 1}, expected less than the {vocab_size} rows of the "
            "embedding table. Take tokenizer and weights from the same repository."
        )
    chat_template = _chat_template(folder, family, config, tokenizer)
    image_token = _image_token(folder, config)
    prompt = PromptSettings(
        image_token=image_token,
        image_token_id=_image_token_id(family, image_token, image_token_id, tokenizer),
        content_format=_content_format(chat_template, image_token),
        markup_tokens=tuple(token for token in MARKUP_TOKENS if token in tokenizer.added_tokens),
    )
    generation = _generation(folder, family, eos_token_id, named, tokenizer)
    return PromptAssets(tokenizer_json, _with_variables(chat_template, named), prompt, generation)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def _tokenizer_json(folder: Path, config: dict[str, Any], named: dict[str, str]) -> str:
    """The text of the tokenizer, as found if nothing has to be added to it."""
    path = folder / "tokenizer.json"
    text = _read_text(path, MAX_TOKENIZER_BYTES) if path.exists() else None
    document = _parse(path, text) if text is not None else _build(folder, config)
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not all(type(id_) is int for id_ in vocab.values()):
        raise CheckpointError(f"{path} holds no vocabulary, expected a byte-level BPE. Copy it again.")
    added = _AddedTokens(vocab)
    entries = document.get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        added.add("tokenizer.json", entry, entry.get("id") if isinstance(entry, dict) else None)
    num_found = len(added.entries)
    for source, entry, id_ in _other_added_tokens(folder, config, set(named.values())):
        added.add(source, entry, id_)
    for content in named.values():
        added.add_named(content)
    if text is not None and len(added.entries) == num_found:
        return text
    document["added_tokens"] = sorted(added.entries.values(), key=lambda entry: int(entry["id"]))
    return json.dumps(document, ensure_ascii=False)


def _build(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` from vocab.json and merges.txt, as transformers' Qwen2Tokenizer."""
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder} holds neither tokenizer.json nor {' and '.join(missing)}, expected a tokenizer. "
            "Copy its files from the repository."
        )
    name = config.get("tokenizer_class", "Qwen2Tokenizer")
    if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise CheckpointError(
            f"tokenizer_config.json names the class {name!r} and there is no tokenizer.json, expected Qwen2Tokenizer. "
            "Save the tokenizer as tokenizer.json with transformers."
        )
    vocab = _read_json(folder / "vocab.json", max_bytes=MAX_TOKENIZER_BYTES)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN_WORDS}, "behavior": "Isolated", "invert": False},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": bool(config.get("add_prefix_space")),
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(folder / "merges.txt", vocab),
        },
    }


def _merges(path: Path, vocab: dict[str, Any]) -> list[str]:
    """The merges in order. A line `#version` is no merge; `# #` is one."""
    merges: list[str] = []
    for number, line in enumerate(_read_text(path, MAX_TOKENIZER_BYTES).split("\n"), 1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocab.keys():
            raise CheckpointError(
                f"{path} line {number} is {line[:80]!r}, expected two vocabulary entries that make a third. "
                "Take merges.txt and vocab.json from the same repository."
            )
        merges.append(line)
    return merges


class _AddedTokens:
    """The added tokens so far; a content keeps its id and an id its content."""

    def __init__(self, vocab: dict[str, Any]) -> None:
        self._vocab = vocab
        self._contents = {id_: content for content, id_ in vocab.items()}
        self.entries: dict[str, dict[str, Any]] = {}

    def add(self, source: str, entry: Any, id_: Any) -> None:
        """Take an entry; the first source's flags stay. Raises `CheckpointError` when it contradicts another."""
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or type(id_) is not int or id_ < 0:
            raise CheckpointError(
                f"{source} holds the added token {str(entry)[:80]!r} with id {id_!r}, expected a text and a token id. "
                "Copy the file again."
            )
        known = self._id(content)
        if known not in (None, id_) or self._contents.get(id_, content) != content:
            raise CheckpointError(
                f"{source} gives the added token {content!r} the id {id_}, expected "
                f"{f'id {known}' if known is not None else f'an id that is not {self._contents[id_]!r}'} as elsewhere. "
                "Take all tokenizer files from the same repository."
            )
        self._contents[id_] = content
        flags = {flag: bool(entry.get(flag)) for flag in _FLAGS}
        self.entries.setdefault(content, {"id": id_, "content": content, **flags})

    def add_named(self, content: str) -> None:
        """A special token that is known by name only: an entry of the vocabulary, or the next free id."""
        if content not in self.entries:
            known = self._id(content)
            id_ = max(self._contents, default=-1) + 1 if known is None else known
            self.add("special_tokens_map.json", {"content": content, "special": True}, id_)

    def _id(self, content: str) -> Any:
        return self.entries[content]["id"] if content in self.entries else self._vocab.get(content)


def _other_added_tokens(
    folder: Path, config: dict[str, Any], special: set[str]
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Added tokens outside tokenizer.json, each with its file's name and id."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, dict):
        raise CheckpointError(
            f"tokenizer_config.json holds {str(decoder)[:80]!r} as added_tokens_decoder, expected an object. "
            "Copy the file again."
        )
    if decoder:
        for id_, entry in decoder.items():
            yield "tokenizer_config.json", entry, int(id_) if re.fullmatch("[0-9]{1,9}", id_) else id_
        return
    added = _read_json(folder / "added_tokens.json", required=False)
    for content, id_ in sorted(added.items(), key=lambda item: item[1] if type(item[1]) is int else -1):
        is_special = content in special
        yield "added_tokens.json", {"content": content, "normalized": not is_special, "special": is_special}, id_


def _named_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name (`eos_token`, ...), then the additional ones, in the order transformers adds them."""
    values = dict(config)
    if not config.get("added_tokens_decoder"):
        values |= _read_json(folder / "special_tokens_map.json", required=False)
    if str(config.get("tokenizer_class", "Qwen2")).startswith("Qwen2"):
        values = {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | values
    found: dict[str, Any] = {name: values.get(name) for name in _NAMED}
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    own = {name: value for name, value in values.items() if name.endswith("_token") and name not in found}
    found |= {name: value for name, value in own.items() if isinstance(value, str | dict)}
    tokens = extra if isinstance(extra, list) else []
    found |= extra if isinstance(extra, dict) else {f"extra_{number}": token for number, token in enumerate(tokens)}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str) and content}


# --- prompt -----------------------------------------------------------------------------------------------------------


def _chat_template(folder: Path, family: str, config: dict[str, Any], tokenizer: Tokenizer) -> str:
    """The template that the family is documented with."""
    path = folder / "chat_template.jinja"
    own = _read_text(path, MAX_SETTINGS_BYTES) if path.exists() else None
    if family == "hf":
        processor = _read_json(folder / "processor_config.json", required=False).get("chat_template")
        legacy = _read_json(folder / "chat_template.json", required=False).get("chat_template")
        sources: list[Any] = [processor, legacy, own, config.get("chat_template")]
    elif any(token in tokenizer.added_tokens for token in MARKUP_TOKENS):
        sources = [own, config.get("chat_template"), QWEN_1_5]
    else:
        sources = [QWEN_1_5]
    found = next((source for source in sources if source), None)
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str):
        raise CheckpointError(
            f"{folder} has no chat template, expected one in chat_template.json, chat_template.jinja or "
            "tokenizer_config.json. Copy these files from the repository."
        )
    missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.added_tokens]
    if found is QWEN_1_5 and missing:
        raise CheckpointError(
            f"The tokenizer has no token {missing[0]}, expected it for the qwen_1_5 prompt of LLaVA-NeXT. "
            "Copy the tokenizer's files from the repository."
        )
    return found


def _content_format(chat_template: str, image_token: str) -> str:
    """The form of a message's content that makes both the picture and the text come out, each once."""
    question = "question 5a3d81"  # words that no template holds
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    problem = "the picture or the text is left out"
    try:
        template = ChatTemplate(chat_template)
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    for content_format, content in (("parts", parts), ("string", f"{image_token}\n{question}")):
        try:
            text = template.render([{"role": "user", "content": content}], add_generation_prompt=True)
        except PromptError as error:
            problem = str(error)
            continue
        if text.count(image_token) == 1 and text.count(question) == 1:
            return content_format
    raise CheckpointError(
        f"The chat template renders no prompt with a picture: {problem} Expected {image_token} and the question. "
        "Take the chat template from the checkpoint's repository."
    )


def _with_variables(chat_template: str, named: dict[str, str]) -> str:
    """The template with the special tokens that it asks for by name, which transformers passes in."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", chat_template)
    asked = jinja2.meta.find_undeclared_variables(environment.parse(plain))
    lines = [f"{{% set {name} = {json.dumps(named[name])} %}}\n" for name in sorted(asked & named.keys())]
    return "".join(lines) + chat_template


def _image_token(folder: Path, config: dict[str, Any]) -> str:
    extra = config.get("extra_special_tokens")
    found = [
        config.get("image_token"),
        extra.get("image_token") if isinstance(extra, dict) else None,
        _read_json(folder / "processor_config.json", required=False).get("image_token"),
    ]
    return next((token for token in found if isinstance(token, str) and token), IMAGE_TOKEN)


def _image_token_id(family: str, image_token: str, configured: int | None, tokenizer: Tokenizer) -> int:
    found = tokenizer.added_token_ids.get(image_token)
    if family == "llava_next":
        return LLAVA_NEXT_IMAGE_ID if found is None else found
    if found is None or found != configured:
        raise CheckpointError(
            f"config.json gives the image token {image_token!r} the id {configured}, the tokenizer {found}, expected "
            "the same. Take config.json and the tokenizer from the same repository."
        )
    return found


# --- generation -------------------------------------------------------------------------------------------------------


def _generation(
    folder: Path,
    family: str,
    eos_token_id: int | tuple[int, ...] | None,
    named: dict[str, str],
    tokenizer: Tokenizer,
) -> GenerationSettings:
    config = _read_json(folder / "generation_config.json", required=False)
    eos: Any = config.get("eos_token_id")
    if eos is None:
        eos = eos_token_id
    if eos is None or eos == ():
        eos = tokenizer.added_token_ids.get(named.get("eos_token", ""))
    ids = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if not ids or not all(type(id_) is int and id_ >= 0 for id_ in ids):
        raise CheckpointError(
            f"generation_config.json has the eos_token_id {eos!r}, expected a token id or a list of them. "
            "Correct it there or in config.json."
        )
    penalty = config.get("repetition_penalty")
    penalty = 1.0 if penalty is None else penalty
    if not _is_number(penalty) or penalty <= 0:
        raise CheckpointError(
            f"generation_config.json has the repetition_penalty {penalty!r}, expected a number above 0. "
            "Correct it there."
        )
    suggested = tuple(
        (name, float(config[name]))
        for name in ("temperature", "top_k", "top_p", "min_p")
        if _is_number(config.get(name))
    )
    return GenerationSettings(ids, float(penalty), penalise_prompt=family == "hf", suggested=suggested)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


# --- files ------------------------------------------------------------------------------------------------------------


def _read_json(path: Path, required: bool = True, max_bytes: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """The JSON object in a file; an empty one when it may be missing and is."""
    if not required and not path.exists():
        return {}
    return _parse(path, _read_text(path, max_bytes))


def _parse(path: Path, text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key comes twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if "\\ud" in text.lower():  # halves of surrogate pairs; a ValueError when one stands alone
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}), expected a JSON object. Copy it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {str(value)[:80]!r}, expected a JSON object. Copy it again.")
    return value


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CheckpointError(f"{path} has more than {max_bytes:,} bytes, expected at most so many. Copy it again.")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}), expected UTF-8 text. Copy it again.") from None
