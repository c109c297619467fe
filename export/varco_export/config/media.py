"""What a checkpoint takes beside one picture: how many pictures it was trained for, and whether videos.

No file says either outright. VARCO-VISION v1 is known by its markup tokens over Qwen2, and its card says single image;
its config.json still names a video token, whose id is another token's. So videos are found by rendering one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varco_export.reading.json_file import read_json
from varco_export.reading.quoting import show
from varco_runtime.bundle.settings import MediaSettings, PromptSettings
from varco_runtime.errors import PromptError
from varco_runtime.prompt.chat_template import ChatTemplate
from varco_runtime.prompt.tokenizer import Tokenizer

VIDEO_TOKEN = "<video>"
DEFAULT_VIDEO_TOKEN_INDEX = 151647
"""That of transformers' LlavaOnevisionConfig, where config.json has none."""


def find_media(
    folder: Path,
    family: str,
    raw: Mapping[str, Any],
    prompt: PromptSettings,
    template: ChatTemplate,
    tokenizer: Tokenizer,
) -> MediaSettings:
    """Return what a checkpoint takes beside one picture.

    Args:
        folder: The checkpoint.
        family: `hf` or `llava_next`.
        raw: Its config.json.
        prompt: How it is asked about one picture.
        template: Its chat template.
        tokenizer: Its tokenizer.
    """
    token: str
    token_id: int | None
    is_varco_v1 = bool(prompt.markup_tokens) and _is_qwen2(family, raw)
    if family == "llava_next":
        token, token_id = prompt.image_token, prompt.image_token_id
        no_video = "VARCO-VISION v1 was trained on single pictures" if is_varco_v1 else _no_pooling(raw)
    else:
        token, token_id = _video_token(folder), _configured_id(raw)
        no_video = _no_placeholder(token, token_id, prompt, template, tokenizer)
    max_images = 1 if is_varco_v1 and no_video else None
    return MediaSettings(max_images, None, None, no_video) if no_video else MediaSettings(None, token, token_id, None)


def _is_qwen2(family: str, raw: Mapping[str, Any]) -> bool:
    text = raw.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else raw.get("model_type")
    return "qwen3" not in str(kind).lower() if family == "llava_next" else kind in ("qwen2", None)


def _no_pooling(raw: Mapping[str, Any]) -> str | None:
    """Return why LLaVA-NeXT's pooling of frames is another one than is implemented, or None."""
    position, mode = raw.get("mm_newline_position"), raw.get("mm_spatial_pool_mode")
    if position in ("grid", "frame", "no_token"):
        return f"its mm_newline_position is {show(position)}, LLaVA-Video's packing, which is not implemented"
    if position != "one_token":
        return f"its mm_newline_position is {show(position)}, expected 'one_token'"
    if mode != "bilinear":
        return f"its mm_spatial_pool_mode is {show(mode)}, expected 'bilinear'"
    return None


def _video_token(folder: Path) -> str:
    found = read_json(folder / "processor_config.json", required=False).get("video_token")
    return found if isinstance(found, str) and found else VIDEO_TOKEN


def _configured_id(raw: Mapping[str, Any]) -> int | None:
    found = raw.get("video_token_index", raw.get("video_token_id", DEFAULT_VIDEO_TOKEN_INDEX))
    return found if type(found) is int else None


def _no_placeholder(
    token: str, token_id: int | None, prompt: PromptSettings, template: ChatTemplate, tokenizer: Tokenizer
) -> str | None:
    """Return why no prompt with a video can be written, or None."""
    known = tokenizer.added_token_ids.get(token)
    if known is None or known != token_id:
        got = "no id" if known is None else f"the id {known}"
        return f"its tokenizer has {got} for {token}, and its config.json says {token_id}"
    question = "question 5a3d81"  # words that no template holds
    parts: Any = [{"type": "video"}, {"type": "text", "text": question}]
    content = parts if prompt.content_format == "parts" else f"{token}\n{question}"
    try:
        text = template.render([{"role": "user", "content": content}], add_generation_prompt=True)
    except PromptError:
        return "its chat template refuses a video"
    if (text.count(token), text.count(question), text.count(prompt.image_token)) != (1, 1, 0):
        return "its chat template writes no placeholder for a video"
    return None
