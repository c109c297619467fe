"""How a checkpoint wants to be asked: tokenizer, chat template, prompt and generation settings, from its small files.

**Tokenizer.** See `tokenizer_file.py`.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta

from varco_export.small_files import MAX_SETTINGS_BYTES, is_there, read_json, read_text
from varco_export.tokenizer_file import make_tokenizer_json, named_tokens
from varco_runtime.errors import BundleError, CheckpointError, PromptError
from varco_runtime.markup import MARKUP_TOKENS
from varco_runtime.settings import GenerationSettings, PromptSettings
from varco_runtime.template import ChatTemplate
from varco_runtime.tokenizer import Tokenizer

IMAGE_TOKEN = "<image>"
LLAVA_NEXT_IMAGE_ID = -200  # LLaVA-NeXT's IMAGE_TOKEN_INDEX: no row of the table, replaced before the decoder sees it

# LLaVA-NeXT, llava/conversation.py: conv_qwen, style CHATML.
QWEN_1_5 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


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
    config = read_json(folder / "tokenizer_config.json", required=False)
    named = named_tokens(folder, config)
    tokenizer_json = make_tokenizer_json(folder, config, named)
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


# --- prompt -----------------------------------------------------------------------------------------------------------


def _chat_template(folder: Path, family: str, config: dict[str, Any], tokenizer: Tokenizer) -> str:
    """The template that the family is documented with."""
    path = folder / "chat_template.jinja"
    own = read_text(path, MAX_SETTINGS_BYTES) if is_there(path) else None
    if family == "hf":
        processor = read_json(folder / "processor_config.json", required=False).get("chat_template")
        legacy = read_json(folder / "chat_template.json", required=False).get("chat_template")
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
        read_json(folder / "processor_config.json", required=False).get("image_token"),
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
    config = read_json(folder / "generation_config.json", required=False)
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
