"""A checkpoint's generation_config.json: what ends an answer, the repetition penalty, and what is not applied, by name.

Without that file transformers takes the same keys from config.json, and from its text_config where they are not set
there (`GenerationConfig.from_model_config`). Sampling settings are kept as suggestions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from varco_export.reading.json_file import is_there, read_json
from varco_export.reading.quoting import show
from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.errors import CheckpointError

_FILE = "generation_config.json"

_NOT_APPLIED: dict[str, object] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": 0,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "watermarking_config": None,
}
"""What changes transformers' greedy answers and is not implemented, each with the value that changes nothing."""


def read_generation(
    folder: Path, eos_token_id: int | tuple[int, ...] | None, *, penalise_prompt: bool
) -> tuple[GenerationSettings, tuple[str, ...]]:
    """Return the settings of a checkpoint's answers, and a sentence about those that are not applied.

    Args:
        folder: The checkpoint's folder.
        eos_token_id: What ends an answer where generation_config.json does not say.
        penalise_prompt: Whether the repetition penalty counts the prompt's ids too.

    Raises:
        CheckpointError: An end token or the penalty is missing or malformed.
    """
    config, source = _stated(folder)
    eos: Any = config.get("eos_token_id") if source == _FILE else None
    if eos is None:
        eos = eos_token_id
    ids = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if not ids or not all(type(id_) is int and id_ >= 0 for id_ in ids):
        raise CheckpointError(
            f"{_FILE} has the eos_token_id {show(eos)}, expected a token id or a list of them. "
            "Correct it there or in config.json."
        )
    penalty = config.get("repetition_penalty")
    penalty = 1.0 if penalty is None else penalty
    if not _is_number(penalty) or penalty <= 0:
        raise CheckpointError(
            f"{source} has the repetition_penalty {show(penalty)}, expected a number above 0. Correct it there."
        )
    suggested = tuple(
        (name, float(config[name]))
        for name in ("temperature", "top_k", "top_p", "min_p")
        if source == _FILE and _is_number(config.get(name))
    )
    return GenerationSettings(ids, float(penalty), penalise_prompt, suggested), _not_applied(config, source)


def _stated(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the keys of generation, and the file that they stand in."""
    if is_there(folder / _FILE):
        return read_json(folder / _FILE), _FILE
    outer = read_json(folder / "config.json", required=False)
    inner = outer.get("text_config")
    values = dict(inner) if isinstance(inner, dict) else {}
    return values | {key: value for key, value in outer.items() if value is not None}, "config.json"


def _not_applied(config: dict[str, Any], source: str) -> tuple[str, ...]:
    asked = [
        f"{key} {show(config[key])}"
        for key, neutral in _NOT_APPLIED.items()
        if config.get(key) not in (None, neutral, [], {})
    ]
    if not asked:
        return ()
    return (f"{source} asks for {', '.join(asked)}, not applied here: transformers' answers may differ.",)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9
