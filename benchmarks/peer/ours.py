"""This project's bundles, through the backend that `Varco` uses."""

from __future__ import annotations

import bisect
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer.protocol import Array, Peer, folder_bytes, serve
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.prompt.tokenizer import Tokenizer

THROUGH_VARCO = "+varco"
ON_OPENVINO = "@openvino"
# variant: (checkpoint, arguments of ExportOptions)
BUNDLES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("checkpoint", {"decoder": "fp32"}),
    "int4": ("checkpoint", {"decoder": "int4"}),
    "int4-head4": ("checkpoint", {"decoder": "int4", "lm_head": "int4"}),
    "int4-a8": ("checkpoint", {"decoder": "int4", "activations": "int8"}),
    "int4-a8-head4": ("checkpoint", {"decoder": "int4", "activations": "int8", "lm_head": "int4"}),
    "int4-a8-head4-g128": (
        "checkpoint",
        {"decoder": "int4", "activations": "int8", "lm_head": "int4", "block_size": 128},
    ),
    "vision-fp32": ("vision", {"vision": "fp32"}),
    "vision-int8": ("vision", {"vision": "int8"}),
}


class Ours(Peer):
    """Variants: `BUNDLES`, through the backend; with `@openvino` behind, by that provider; with `+varco` behind, text
    goes through `Varco.ask` instead."""

    packages: tuple[str, ...] = ("onnxruntime", "numpy")

    def prepare(self, material: Path, variant: str) -> None:
        name, provider = _bundle_and_provider(variant)
        # Loaded once, so that no measured process makes the packed weights, and that a missing OpenVINO is told now.
        Varco.load(make_bundle(material, name, *BUNDLES[name]), provider=provider, max_context=64)

    def load(self, material: Path, variant: str, max_context: int, threads: int) -> None:
        name, provider = _bundle_and_provider(variant)
        if provider == "openvino":
            self.packages = ("openvino", "numpy")
        self._folder = material / "ours" / name
        self._varco = Varco.load(self._folder, provider=provider, max_context=max_context, threads=threads)
        self._backend = self._varco.backend
        self._random = np.random.default_rng(1)
        self._is_vision = variant.startswith("vision-")
        self._through_varco = variant.endswith(THROUGH_VARCO)

    @property
    def model_bytes(self) -> int:
        return folder_bytes(self._folder, "vision*" if self._is_vision else "decoder*", "embedding*")

    def text(self, ids: Array, steps: int) -> dict[str, Any]:
        return self._ask(len(ids), steps) if self._through_varco else super().text(ids, steps)

    def _ask(self, context: int, steps: int) -> dict[str, Any]:
        """The whole way of a question without a picture: template, tokenizer, prefill, loop, text.

        The words are new each time, so that nothing is cached; the prompt has about `context` tokens.
        """
        manifest = self._varco.bundle.manifest
        tokenizer = Tokenizer.from_json(self._varco.bundle.text(manifest.tokenizer))
        characters = self._random.choice(list("abcdefghijklmnopqrstuvwxyz"), 8 * context)
        words = ["".join(characters[i : i + 4]) for i in range(0, len(characters), 4)]
        length = bisect.bisect(
            range(len(words)), context - 24, key=lambda n: len(tokenizer.encode_plain(" ".join(words[:n])))
        )
        answer = self._varco.ask(None, " ".join(words[:length]), max_new_tokens=steps + 1, speculate=False)
        if answer.usage.completion_tokens <= steps:
            raise RuntimeError("the random model ended its answer; choose another seed")
        return {
            "prefill_s": answer.timings.prefill_s,
            "step_s": [answer.timings.tpot_s] * steps,
            "tokens": list(answer.token_ids[:steps]),
            "logits": None,
            "context": answer.usage.prompt_tokens,
        }

    def prefill(self, ids: Array) -> Array:
        self._position = len(ids)
        # No id stands for a picture's tokens here.
        self._logits = self._backend.prefill(PromptInputs(ids, -1, None), 0)[-1]
        return self._logits

    def step(self) -> int:
        token = int(self._logits.argmax())
        self._logits = self._backend.decode_step(token, self._position)
        self._position += 1
        return token

    def vision(self, pixel_values: Array) -> Array:
        return np.asarray(self._backend.encode(pixel_values)[0])


def _bundle_and_provider(variant: str) -> tuple[str, str]:
    name = variant.removesuffix(THROUGH_VARCO)
    return name.removesuffix(ON_OPENVINO), "openvino" if name.endswith(ON_OPENVINO) else "cpu"


def make_bundle(material: Path, name: str, checkpoint: str, options: dict[str, str]) -> Path:
    """The bundle `material/ours/name` of `material/checkpoint`, exported again when the exporter has changed."""
    import varco_export
    from varco_export.export import ExportOptions, export  # a measured process does not hold it
    from varco_export.progress import Silent

    digest = hashlib.sha256()
    for path in sorted(Path(varco_export.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    target = material / "ours" / name
    stamp = target.with_name(f"{name}.exporter")  # the sources that made it
    if not (target.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest()):
        settings = ExportOptions(probes=False, overwrite=True, **options)  # type: ignore[arg-type]
        target.parent.mkdir(exist_ok=True)
        export(material / checkpoint, target, settings, Silent())
        stamp.write_text(digest.hexdigest())
    return target


if __name__ == "__main__":
    sys.exit(serve(Ours()))
