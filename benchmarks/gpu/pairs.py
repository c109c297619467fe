"""The sixth step: open questions, each decided by two models that differ in one thing.

The models have the 14B's widths and few layers, equal ones: a difference between two is that of so many layers, and
loading one takes seconds. Every figure is the median of a model of its own process. `default` is measured twice, first
and last, and a difference counts that is larger than theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.limits import median_s
from benchmarks.gpu.model import lacking_kernels, model_options
from benchmarks.gpu.process import Tell, attempt
from benchmarks.gpu.stages import PICTURES, STEP_TOKENS, TILE_COUNTS, Setup, draft_name, load_model
from benchmarks.gpu.variants import AGAIN, DEFAULT, VARIANTS, Variant, applied, unknown_entries
from varco_runtime.backend import PromptInputs
from varco_runtime.picture.packing import packing_plan

LEAST_DIFFERENCE = 0.02
"""Of a time: less is no difference, however near two runs of one model are."""


def measure_variant(setup: Setup, variant: Variant, tell: Tell) -> None:
    """Tell the times of one variant: a token, drafts, prompts and ten tiles."""
    if setup.provider == "cuda" and (unknown := unknown_entries(variant)):
        tell(("does_not_apply",), f"this onnxruntime does not know {', '.join(unknown)}")
        return
    if reason := lacking_kernels(setup.provider, str(dict(variant.export).get("vision", ""))):
        tell(("does_not_apply",), reason)
        return
    tell(("layers",), model_options(setup.shape).num_hidden_layers)
    with applied(variant):
        stages, _ = load_model(setup, tell)
        backend, manifest = stages.varco.backend, stages.varco.bundle.manifest

        def prefill(num_tokens: int) -> float:
            ids = np.zeros(min(num_tokens, setup.max_context), np.int64)
            prompt = PromptInputs(ids, manifest.prompt.image_token_id, None)
            return 1e3 * median_s(lambda: backend.prefill(prompt, 0), 3)

        context = setup.contexts[0]
        attempt(tell, ("ms", f"decode at {context}"), lambda: stages.decode(context)["ms"])
        for num_tokens in STEP_TOKENS[1:]:
            for behind in setup.draft_contexts:
                place = ("ms", f"steps of {draft_name(num_tokens, behind)}")
                attempt(tell, place, lambda n=num_tokens, c=behind: stages.verified(n, c)["ms"])  # type: ignore[misc]
        for label, size_hw in PICTURES.items():
            num_tokens = packing_plan(size_hw, manifest.image).num_tokens
            attempt(tell, ("ms", f"prefill of {label}"), lambda n=num_tokens: prefill(n))  # type: ignore[misc]
        tiles = TILE_COUNTS[-1]
        attempt(tell, ("ms", f"vision of {tiles} tiles"), lambda: stages.vision(tiles)["ms"])


def verdicts(pairs: dict[str, Any]) -> Iterator[str]:
    """Yield for each pair which model wins, by which figures, or why nothing can be said."""
    before, after = (pairs.get(one.name, {}).get("ms", {}) for one in (DEFAULT, AGAIN))
    for variant in VARIANTS[1:]:
        found = pairs.get(variant.name)
        if found is None:
            continue
        if reason := found.get("does_not_apply") or found.get("left_out"):
            yield f"{variant.name}: not decided, {reason}"
            continue
        yield f"{variant.name}: {variant.question}? {_verdict(variant, before, after, found.get('ms', {}))}"


def _verdict(variant: Variant, before: dict[str, Any], after: dict[str, Any], times: dict[str, Any]) -> str:
    said = []
    for name in (name for name in before if name.startswith(variant.compared)):
        default, other = before[name], times.get(name)
        if not isinstance(default, float) or not isinstance(other, float):
            continue
        drift = abs(after[name] / default - 1) if isinstance(after.get(name), float) else 0.0
        ratio = other / default
        winner = "no difference"
        if abs(ratio - 1) > max(LEAST_DIFFERENCE, 2 * drift):
            winner = f"{variant.name} wins" if ratio < 1 else "the default wins"
        said.append(f"{name}: {winner}, {other:.3f} ms against {default:.3f} ({ratio - 1:+.1%}, drift {drift:.1%})")
    return "; ".join(said) if said else "not measured"
