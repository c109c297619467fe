"""One table of weight names: canonical names on the left, the four spellings found on disk on the right.

Canonical names are the module names of transformers 5 without the leading `model.`. Sources of the other three:
LLaVA-NeXT's own modules, transformers up to 4.51 (also what 5.x writes back), and the modules of transformers 4.57.
Only the part in front of a tensor is spelled differently; what follows (`layers.0.mlp.up_proj.weight`) never is.
"""

from __future__ import annotations

from typing import Literal, get_args

Scheme = Literal["llava_next", "hf_old", "hf_4_57", "hf_5"]

# fmt: off
PREFIXES: dict[str, dict[Scheme, str]] = {
    "language_model.": {
        "llava_next": "model.",
        "hf_old": "language_model.model.",
        "hf_4_57": "model.language_model.",
        "hf_5": "model.language_model.",
    },
    "lm_head.": {
        "llava_next": "lm_head.",
        "hf_old": "language_model.lm_head.",
        "hf_4_57": "lm_head.",
        "hf_5": "lm_head.",
    },
    "image_newline": {
        "llava_next": "model.image_newline",
        "hf_old": "image_newline",
        "hf_4_57": "model.image_newline",
        "hf_5": "model.image_newline",
    },
    "multi_modal_projector.linear_1.": {
        "llava_next": "model.mm_projector.0.",
        "hf_old": "multi_modal_projector.linear_1.",
        "hf_4_57": "model.multi_modal_projector.linear_1.",
        "hf_5": "model.multi_modal_projector.linear_1.",
    },
    "multi_modal_projector.linear_2.": {
        "llava_next": "model.mm_projector.2.",
        "hf_old": "multi_modal_projector.linear_2.",
        "hf_4_57": "model.multi_modal_projector.linear_2.",
        "hf_5": "model.multi_modal_projector.linear_2.",
    },
    "vision_tower.": {
        "llava_next": "model.vision_tower.vision_tower.vision_model.",
        "hf_old": "vision_tower.vision_model.",
        "hf_4_57": "model.vision_tower.vision_model.",
        "hf_5": "model.vision_tower.",
    },
}
# fmt: on

# The longest spelling that fits is the right one: `model.` (LLaVA-NeXT's language model) begins all the others.
_BY_DISK_PREFIX = sorted(
    {(disk, canonical) for canonical, spellings in PREFIXES.items() for disk in spellings.values()},
    key=lambda pair: (-len(pair[0]), pair[0]),
)


def canonical_name(disk_name: str) -> str | None:
    """Return the canonical name of a tensor by its name on disk, or None where no scheme has such a name."""
    for disk, canonical in _BY_DISK_PREFIX:
        if disk_name.startswith(disk) and (disk.endswith(".") or disk_name == disk):
            return canonical + disk_name[len(disk) :]
    return None


def disk_name(canonical: str, scheme: Scheme) -> str:
    """Return a canonical name in the spelling of `scheme`.

    `lm_head.weight` is `language_model.lm_head.weight` in `hf_old`.
    """
    for prefix, spellings in PREFIXES.items():
        if canonical.startswith(prefix):
            return spellings[scheme] + canonical[len(prefix) :]
    raise AssertionError(f"Bug: {canonical!r} is not a canonical name")


def spellings(linear: str) -> list[str]:
    """Return what any program might call a module, `linear` being its canonical name: that and each scheme's."""
    return [linear, *(disk_name(f"{linear}.", scheme).removesuffix(".") for scheme in get_args(Scheme))]
