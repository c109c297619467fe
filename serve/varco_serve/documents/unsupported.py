"""Fields that would change an answer and that this server does not honour: refused by name, unless they ask for what
happens anyway.

Every other unknown field changes nothing here, and is ignored.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from varco_serve.documents.errors import RequestError
from varco_serve.documents.fields import Fields, shown

_GRAMMARS = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "structural_tag"),
    *("json_schema", "grammar", "regex", "ebnf"),
)
_TOOLS = "This model calls no tools"
_STOP = "Use stop"
_MAX = "Use max_tokens"
_OWN = "The bundle's own template is used"
_PARTS = "Put pictures into messages, as parts of the type image_url"

Unsupported: TypeAlias = dict[str, tuple[tuple[Any, ...], str]]
"""By a field's name: the values that ask for what happens anyway, and what to do instead."""

IN_CHAT: Unsupported = {
    "prompt": (("",), "Use messages"),
    "system": (("",), "Use a message of the role system"),
    "image": ((), _PARTS),
    "box": ((), "Use POST /v1/refer"),
    "strict": ((False,), "Use response_format"),
    "format": ((), "Use response_format, or POST /v1/ocr"),
}
IN_NATIVE: Unsupported = {
    "messages": ((), "Use POST /v1/chat/completions"),
    "n": ((1,), "Ask again for another answer"),
    "stream": ((False,), "Send the header Accept: text/event-stream"),
    "logprobs": ((False,), "Use POST /v1/chat/completions"),
    "top_logprobs": ((0,), "Use POST /v1/chat/completions"),
    "response_format": ((), "Use strict"),
}
_EVERYWHERE: Unsupported = {
    # Prompts.
    "chat_template": ((), _OWN),
    "chat_template_kwargs": (({},), _OWN),
    "add_generation_prompt": ((True,), "An answer is a new turn"),
    "continue_final_message": ((False,), "An answer is a new turn"),
    "add_special_tokens": ((False,), _OWN),
    "truncate_prompt_tokens": ((), "Send fewer messages"),
    "documents": (([],), "Put them into messages"),
    "mm_processor_kwargs": (({},), "Use tiling and long_side"),
    "suffix": (("",), "Use messages"),
    "images": (([],), _PARTS),
    "videos": (([],), _PARTS),
    "web_search_options": ((), "This server opens no connection"),
    # Answers.
    "modalities": ((["text"], []), "Answers are text"),
    "audio": ((), "Answers are text"),
    "prompt_logprobs": ((False,), "logprobs are those of the answer"),
    "n_probs": ((0,), "Use top_logprobs"),
    "return_tokens_as_token_ids": ((False,), "Tokens are texts and bytes"),
    "echo": ((False,), "The prompt is not part of the answer"),
    "best_of": ((1,), "Use n"),
    "use_beam_search": ((False,), "One answer is followed"),
    "num_beams": ((1,), "One answer is followed"),
    "min_tokens": ((0,), "Use ignore_eos with max_tokens"),
    "max_new_tokens": ((), _MAX),
    "n_predict": ((-1,), _MAX),
    "max_length": ((), _MAX),
    "length_penalty": ((1,), "Use frequency_penalty"),
    "include_stop_str_in_output": ((False,), "A stop text is not part of the answer"),
    "stop_token_ids": (([],), _STOP),
    "bad_words": (([],), "Use logit_bias"),
    "allowed_token_ids": ((), "Use logit_bias"),
    "logits_processors": (([],), "Use logit_bias"),
    # Tools: named or demanded; offered ones are ignored.
    "tool_choice": (("none", "auto"), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    # Grammars by other names.
    **dict.fromkeys(_GRAMMARS, ((), "Use response_format")),
    # Ways to draw that the runtime does not know.
    "repeat_penalty": ((1,), "Use repetition_penalty"),
    "typical_p": ((1,), "Use top_p"),
    "tfs_z": ((1,), "Use top_p"),
    "top_a": ((0,), "Use min_p"),
    "top_n_sigma": ((-1,), "Use min_p"),
    "mirostat": ((0,), "Use temperature"),
    "mirostat_mode": ((0,), "Use temperature"),
    "dynatemp_range": ((0,), "Use temperature"),
    "dry_multiplier": ((0,), "Use repetition_penalty"),
    "xtc_probability": ((0,), "Use temperature"),
    "no_repeat_ngram_size": ((0,), "Use repetition_penalty"),
    "samplers": ((), "Leave it out"),
}


def check_unsupported(fields: Fields, here: Unsupported) -> None:
    """Check that a request asks for nothing that would change its answer and is not supported.

    Args:
        fields: The request's. Those that ask for what happens anyway stay unread.
        here: What this route does not support besides.

    Raises:
        RequestError: It does.
    """
    for name, (neutral, instead) in (*here.items(), *_EVERYWHERE.items()):
        value = fields.peek(name)
        is_neutral = any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in neutral)
        if value is None or is_neutral or (name == "tool_choice" and _leaves_choice(value)):
            continue
        path = fields.path(name)
        raise RequestError(
            f"{path} is {shown(value)}, which is not supported. {instead}.", param=path, code="unsupported_parameter"
        )


def _leaves_choice(tool_choice: Any) -> bool:
    """Return whether it is OpenAI's list of tools that may be called and need not be."""
    allowed = tool_choice.get("allowed_tools") if isinstance(tool_choice, dict) else None
    return isinstance(allowed, dict) and allowed.get("mode") == "auto"
