"""This project's bundles, through the backend that `Varco` uses."""

from __future__ import annotations

import bisect
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.document import write_json
from benchmarks.peer.protocol import Array, Peer, Question, folder_bytes, serve
from varco_runtime import Varco
from varco_runtime.answer.answer import Answer
from varco_runtime.backend import PromptInputs
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.bench.workload import Workload
from varco_runtime.picture.loading import load_picture
from varco_runtime.prompt.tokenizer import Tokenizer

THROUGH_VARCO = "+varco"
ON_OPENVINO, IN_FP32 = "@openvino", "-fp32"
QUESTION = "question"
PICTURE_WIDTH, PICTURE_HEIGHT = 800, 600
PROMPTS = "Read all of the text in this picture.", "What is the total, and what was bought?"
NEW_TOKENS = 300
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
    "question": (
        "question",
        {"decoder": "int4", "activations": "int8", "lm_head": "int4", "block_size": 128, "vision": "int8"},
    ),
    "vision-fp32": ("vision", {"vision": "fp32"}),
    "vision-int8": ("vision", {"vision": "int8"}),
}


class Ours(Peer):
    """Variants: `BUNDLES`, through the backend; with `@openvino` behind, by that provider, with `@openvino-fp32` in
    exact fp32; with `+varco` behind, text goes through `Varco.ask` instead, as `question` always does."""

    packages: tuple[str, ...] = ("onnxruntime", "numpy")

    def prepare(self, material: Path, variant: str) -> None:
        name, provider, precision = variant_parts(variant)
        # Loaded once, so that no measured process makes the packed weights, and that a missing OpenVINO is told now.
        folder = make_bundle(material, name, *BUNDLES[name])
        is_counted = name != QUESTION or (material / f"{QUESTION}.json").exists()
        varco = Varco.load(folder, provider=provider, precision=precision, max_context=64 if is_counted else None)
        if not is_counted:
            write_json(material / f"{QUESTION}.json", count_question(varco))

    def load(self, material: Path, variant: str, max_context: int, threads: int) -> None:
        name, provider, precision = variant_parts(variant)
        if provider == "openvino":
            self.packages = ("openvino", "numpy")
        self._folder = material / "ours" / name
        self._varco = Varco.load(
            self._folder, provider=provider, precision=precision, max_context=max_context, threads=threads
        )
        self._settings = {"provider": self._varco.provider}
        if provider == "openvino":
            self._settings["precision"] = precision
        if not name.startswith("vision-"):
            cache = OpenVinoSettings(precision=precision).chosen_kv_cache
            self._settings["kv_cache"] = cache if provider == "openvino" else "fp32"
        self._backend = self._varco.backend
        self._random = np.random.default_rng(1)
        self._files = {"vision": ("vision*", "projector*"), QUESTION: ("*.data", "embedding*")}.get(
            name.partition("-")[0], ("decoder*", "embedding*")
        )
        self._through_varco = variant.endswith(THROUGH_VARCO)

    @property
    def model_bytes(self) -> int:
        return folder_bytes(self._folder, *self._files)

    def settings(self) -> dict[str, Any]:
        return self._settings

    def question(self, seed: int, question: Question, vocab_size: int, side: int) -> dict[str, dict[str, float]]:
        """A picture that nobody has seen, and another question about it, both through `Varco.ask`.

        Without drafts: a random model repeats itself, which would flatter them.
        """
        picture = _picture(seed)
        found = {}
        for name, prompt in zip(("first", "second"), PROMPTS, strict=True):
            answer = _answer(self._varco, picture, prompt, question.new_tokens)
            timings = answer.timings
            found[name] = {
                "preprocess_s": timings.preprocess_s,
                "vision_s": timings.vision_s,
                "prefill_s": timings.prefill_s,
                "first_token_s": timings.ttft_s,
                "decode_s": timings.total_s - timings.ttft_s,
                "total_s": timings.total_s,
                "prompt_tokens": answer.usage.prompt_tokens,
                "cached_tokens": answer.usage.cached_tokens,
                "new_tokens": answer.usage.completion_tokens,
            }
        return found

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


def count_question(varco: Varco) -> dict[str, int]:
    """The fields of `Question`, for the peers, of what this project makes of the picture and both prompts."""
    picture = _picture(0)
    work = Workload.of(load_picture(picture), 1, 0, PROMPTS[0], varco.bundle.manifest)
    first, second = (_answer(varco, picture, prompt, 1).usage for prompt in PROMPTS)
    return {
        "tiles": work.num_tiles,
        "positions": first.prompt_tokens,
        "new_positions": second.prompt_tokens - second.cached_tokens,
        "new_tokens": NEW_TOKENS,
    }


def _picture(seed: int) -> Array:
    """Random pixels `[H, W, 3]` uint8: what is in a picture changes no time, but each must be a new one."""
    return np.random.default_rng(seed).integers(0, 256, (PICTURE_HEIGHT, PICTURE_WIDTH, 3), dtype=np.uint8)


def _answer(varco: Varco, picture: Array, prompt: str, new_tokens: int) -> Answer:
    return varco.ask(
        picture, prompt, max_new_tokens=new_tokens, ignore_eos=True, stop_loops=False, speculate=False, temperature=0
    )


def variant_parts(variant: str) -> tuple[str, str, str]:
    """Bundle, provider and OpenVINO's precision."""
    name, at, rest = variant.removesuffix(THROUGH_VARCO).partition(ON_OPENVINO)
    return name, "openvino" if at else "cpu", "fp32" if rest == IN_FP32 else "auto"


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
