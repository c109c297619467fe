"""What a bundle says about pictures, prompts, answers and norms, held against what its checkpoint said.

No question would show a wrong end token, a tile grid that is missing, or the row of a token that no probe names. The
exporter writes down what it read in the checkpoint (`varco_export/probes/checkpoint_facts.py`), and here is what the
bundle has under the same names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from varco_runtime.bundle.graph_nodes import epsilons
from varco_runtime.bundle.opening import Bundle
from varco_runtime.bundle.settings import GenerationSettings, ImageSettings, MediaSettings, PromptSettings
from varco_runtime.errors import BundleError

MAX_SHOWN_CHARS = 60


_CHOSEN = frozenset({"ocr_long_side_px"})
"""Settings that whoever exports chooses: no checkpoint says anything of them."""


def settings_facts(
    image: ImageSettings, prompt: PromptSettings, generation: GenerationSettings, media: MediaSettings
) -> dict[str, Any]:
    """Return every setting of a checkpoint by a name such as `generation.eos_token_ids`, its value as JSON has it."""
    facts = {}
    groups: dict[str, ImageSettings | PromptSettings | GenerationSettings | MediaSettings]
    groups = {"image": image, "prompt": prompt, "generation": generation, "media": media}
    for group, settings in groups.items():
        for field in dataclasses.fields(settings):
            if field.name in _CHOSEN:
                continue
            facts[f"{group}.{field.name}"] = json.loads(json.dumps(getattr(settings, field.name)))
    return facts


def text_facts(tokenizer_json: str, chat_template: str) -> dict[str, str]:
    """Return digests of a tokenizer's tokens, ids and merges, whatever their spelling in JSON, and of a template."""
    document = json.loads(tokenizer_json)
    model = document["model"]
    added = sorted((entry["id"], entry["content"]) for entry in document.get("added_tokens") or [])
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges") or []]
    tokens = json.dumps([sorted(model["vocab"].items()), merges, added])
    texts = {"tokenizer": tokens, "chat_template": chat_template}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Return the facts of a bundle whose files have been checked. Raises `BundleError` for a graph that is none."""
    manifest = bundle.manifest
    facts = settings_facts(manifest.image, manifest.prompt, manifest.generation, manifest.media_facts)
    facts |= text_facts(bundle.text(manifest.tokenizer), bundle.text(manifest.chat_template))
    if manifest.embedding is not None:
        facts["embedding"] = manifest.files[manifest.embedding.file].sha256
    for component in (manifest.vision, manifest.decoder):
        try:
            found = epsilons(bundle.path(component.file).read_bytes())
        except ValueError as error:
            raise BundleError(f"{component.file} is no ONNX graph ({error}). Export the bundle again.") from None
        facts[f"{component.file}: epsilon"] = sorted(found)
    return facts


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> tuple[str, ...]:
    """Return a line for each fact in which a bundle, `found`, differs from its checkpoint, `recorded`."""
    return tuple(
        f"{name}: the bundle has {_shown(found.get(name))}, its checkpoint {_shown(value)}"
        for name, value in recorded.items()
        if found.get(name) != value
    )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."
