"""How a checkpoint wants to be asked: tokenizer, chat template, prompt and generation settings, from its small files.

**Tokenizer.** See `tokenizer_file.py`.

**Chat template.** transformers' format: the processor's template (processor_config.json, chat_template.json,
chat_template.jinja, in this order) before the tokenizer's (tokenizer_config.json). LLaVA-NeXT's format: VARCO, known
by the markup tokens in its tokenizer, is documented with the tokenizer's template; all others with LLaVA-NeXT's
`qwen_1_5` conversation, even when the tokenizer, being Qwen's, brings a template of its own. What form of content a
template takes is found by rendering: a list of parts if the picture and the text come out, else one string.

**Generation.** See `generation_file.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varco_export.config.generation_file import read_generation
from varco_export.config.media import find_media
from varco_export.config.model_config import ModelConfig
from varco_export.config.tokenizer_file import make_tokenizer_json, named_tokens
from varco_export.reading.json_file import MAX_SETTINGS_BYTES, is_there, read_json, read_text
from varco_runtime.bundle.settings import NO_MEDIA_FACTS, GenerationSettings, MediaSettings, PromptSettings
from varco_runtime.errors import BundleError, CheckpointError, PromptError
from varco_runtime.markup.regions import MARKUP_TOKENS
from varco_runtime.prompt.chat_template import ChatTemplate
from varco_runtime.prompt.tokenizer import Tokenizer

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
    """The part of a bundle that says how it is asked.

    Args:
        tokenizer_json: The text of tokenizer.json.
        chat_template: The text of the chat template.
        prompt: How pictures and markup stand in a prompt.
        generation: What ends an answer, and how it is drawn.
        media: What it takes beside one picture.
        notes: What the checkpoint asks for and is not applied, a sentence each.
    """

    tokenizer_json: str
    chat_template: str
    prompt: PromptSettings
    generation: GenerationSettings
    media: MediaSettings = NO_MEDIA_FACTS
    notes: tuple[str, ...] = ()


def prompts_of(folder: Path, config: ModelConfig) -> PromptAssets:
    """Read the prompt files of a checkpoint whose configuration is known. Raises what `load_prompts` does."""
    return load_prompts(
        folder,
        family=config.family,
        image_token_id=config.image_token_id,
        eos_token_id=config.eos_token_id,
        vocab_size=config.text.vocab_size,
        raw=config.raw,
    )


def load_prompts(
    folder: Path,
    *,
    family: Literal["hf", "llava_next"],
    image_token_id: int | None,
    eos_token_id: int | tuple[int, ...] | None,
    vocab_size: int | None = None,
    raw: Mapping[str, Any] | None = None,
) -> PromptAssets:
    """Read a checkpoint's prompt files.

    Args:
        folder: The checkpoint.
        family: Whose format it has.
        image_token_id: The id that config.json names.
        eos_token_id: The id or ids that config.json names.
        vocab_size: Rows of the embedding table; with it, ids beyond it are refused.
        raw: config.json; with it, what the checkpoint takes beside one picture is found.

    Raises:
        CheckpointError: A file is missing, malformed, or contradicts another.
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
    template = _parsed(chat_template)
    chat_template = _settings(template.asked_names(), named) + chat_template
    image_token = _image_token(folder, config)
    prompt = PromptSettings(
        image_token=image_token,
        image_token_id=_image_token_id(family, image_token, image_token_id, tokenizer),
        content_format=_content_format(_parsed(chat_template), image_token),
        markup_tokens=tuple(token for token in MARKUP_TOKENS if token in tokenizer.added_tokens),
    )
    if eos_token_id is None or eos_token_id == ():
        eos_token_id = tokenizer.added_token_ids.get(named.get("eos_token", ""))
    generation, notes = read_generation(folder, eos_token_id, penalise_prompt=family == "hf")
    media = NO_MEDIA_FACTS
    if raw is not None:
        media = find_media(folder, family, raw, prompt, _parsed(chat_template), tokenizer)
    return PromptAssets(tokenizer_json, chat_template, prompt, generation, media, notes)


# --- prompt -----------------------------------------------------------------------------------------------------------


def _chat_template(folder: Path, family: str, config: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Return the template that the family is documented with."""
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
        default = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = default[-1].get("template") if default else None
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


def _content_format(template: ChatTemplate, image_token: str) -> str:
    """Return the form of a message's content that makes both the picture and the text come out, each once."""
    question = "question 5a3d81"  # words that no template holds
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    problem = "the picture or the text is left out"
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


def _parsed(chat_template: str) -> ChatTemplate:
    try:
        return ChatTemplate(chat_template)
    except BundleError as error:
        raise CheckpointError(str(error)) from None


def _settings(names: Iterable[str], named: dict[str, str]) -> str:
    """Return lines that set the special tokens among `names`, which transformers passes in."""
    return "".join(f"{{% set {name} = {_literal(named[name])} %}}\n" for name in sorted(named.keys() & names))


def _literal(text: str) -> str:
    """Return a text as Jinja reads it, in JSON's escapes, or Python's for a character that JSON would write as two."""
    return '"' + "".join(json.dumps(c)[1:-1] if c <= "\uffff" else f"\\U{ord(c):08x}" for c in text) + '"'


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
