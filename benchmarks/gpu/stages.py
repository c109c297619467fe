"""The stages of one loaded bundle: decoding by context, vision, pictures up to the first token, the loop around steps.

Each figure is a median after two runs to warm up, and stands with what limits it: `bytes` that must be read, or
`operations`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu.limits import median_s, prefill_operations, vision_operations
from benchmarks.gpu.memory_use import MemoryUse
from benchmarks.gpu.model import lacking_kernels, make_bundle, model_options, shared_bytes
from benchmarks.gpu.process import Tell, attempt
from varco_runtime import Varco
from varco_runtime.backend import (
    GreedyBackend,
    GreedyVerifyingBackend,
    NormalizesPixels,
    PromptInputs,
    SamplingBackend,
)
from varco_runtime.backends.cuda.memory import needed_bytes, sizes_of
from varco_runtime.generation.sampling import Sampler, SamplingSettings
from varco_runtime.picture.packing import packing_plan

PICTURES = {"2.9k": (480, 640), "7.3k": (1080, 1920)}
"""(height, width) of pictures of 2,929 and 7,269 image tokens in the real geometry."""
TILE_COUNTS = (1, 10)
CONTEXTS = (1024, 4096, 8192)
DRAFT_CONTEXTS = (1024, 3072, 8192)
"""Behind them drafts are verified, whose attention depends on the caches' layout."""
SHORT_CONTEXT = 64
"""Where the caches hold none of the contexts."""
DECODE_STEPS = 32
STEP_TOKENS = (2, 5, 9)
"""Lengths of steps that verify a draft, the shortest behind the first context alone."""
TEXT_BEFORE, TEXT_AFTER = 14, 10
"""Tokens around the picture in the model's own prompt."""
DRAWN = SamplingSettings(temperature=0.7, top_p=0.9, seed=0)


@dataclass(frozen=True, slots=True)
class Setup:
    """One model in one precision on one device. `decoder` is empty where the precision is the peer's own.

    `name` tells its bundle from others of the same precision, `export` holds other options that it is made with.
    """

    folder: Path
    shape: str
    decoder: str
    provider: str
    max_context: int
    name: str = ""
    export: tuple[tuple[str, object], ...] = ()

    @property
    def contexts(self) -> list[int]:
        """Return positions before the tokens whose time is taken."""
        return self._fitting(CONTEXTS)

    @property
    def draft_contexts(self) -> list[int]:
        """Return positions before the drafts whose time is taken."""
        return self._fitting(DRAFT_CONTEXTS)

    def _fitting(self, contexts: tuple[int, ...]) -> list[int]:
        return [one for one in contexts if one + DECODE_STEPS < self.max_context] or [SHORT_CONTEXT]

    def make(self) -> Path:
        """Return the bundle, made unless it is there."""
        return make_bundle(self.folder, self.shape, self.decoder, self.max_context, self.name, **dict(self.export))


def measure_model(setup: Setup, with_kernels: bool, tell: Tell) -> None:
    """Make the bundle unless it is there, load it, and tell every figure; at last, if asked for, its kernels."""
    if reason := lacking_kernels(setup.provider, setup.decoder):
        tell(("does_not_apply",), reason)
        return
    stages, memory = load_model(setup, tell)

    def stage(place: tuple[str, ...], measure: Any, *arguments: Any) -> None:
        attempt(tell, place, lambda: measure(*arguments))
        tell(("peak_memory_bytes",), memory.sample())

    for context in setup.contexts:
        stage(("decode", str(context)), stages.decode, context)
    for num_tokens in STEP_TOKENS:
        for context in setup.draft_contexts[: 1 if num_tokens == STEP_TOKENS[0] else None]:
            stage(("steps", draft_name(num_tokens, context)), stages.verified, num_tokens, context)
    stage(("steps", "drawn"), stages.drawn)
    for count in TILE_COUNTS:
        stage(("vision", str(count)), stages.vision, count)
    for label, size_hw in PICTURES.items():
        stage(("pictures", label), stages.picture, size_hw)
    stage(("loop_overhead_ms",), stages.loop_overhead_ms)
    if with_kernels:  # last of all: CUDA's profiler is in the process from then on
        from benchmarks.gpu.profile import profile_kernels

        profile_kernels(stages, setup, lambda place, figure: tell(("kernels", *place), figure))


def load_model(setup: Setup, tell: Tell) -> tuple[Stages, MemoryUse]:
    """Make a bundle unless it is there, load it, and tell what there is to say of it before anything is timed."""
    started = time.perf_counter()
    bundle = setup.make()
    tell(("make_s",), time.perf_counter() - started)
    memory = MemoryUse(setup.provider)
    varco = Varco.load(bundle, provider=setup.provider)
    manifest = varco.bundle.manifest
    tell(("load_s",), varco.load_s)
    tell(("on",), varco.backend.description)
    tell(("weight_bytes_per_token",), manifest.decoder.weight_bytes)
    tell(("kv_bytes_per_token",), manifest.kv_bytes_per_token)
    needed, _ = needed_bytes(manifest, sizes_of(manifest, varco.backend.max_context))
    tell(("needed_memory_bytes",), needed + shared_bytes(bundle))
    tell(("loaded_memory_bytes",), memory.sample())
    return Stages(varco, setup), memory


def draft_name(num_tokens: int, context: int) -> str:
    """Return what the report calls a step of so many tokens behind so many others."""
    return f"{num_tokens} tokens at {context}"


class Stages:
    """One loaded model, whose stages can be timed in any order."""

    def __init__(self, varco: Varco, setup: Setup) -> None:
        self.varco = varco
        self._setup = setup
        self._options = model_options(setup.shape)
        self._rng = np.random.default_rng(0)

    def decode(self, context: int) -> dict[str, Any]:
        """A greedy token behind `context` others. What the cache holds does not change the time."""
        position = iter(range(context, context + DECODE_STEPS))
        seconds = median_s(lambda: self.step(next(position)), DECODE_STEPS - 2)
        manifest = self.varco.bundle.manifest
        num_bytes = manifest.decoder.weight_bytes + context * manifest.kv_bytes_per_token
        return {"ms": 1e3 * seconds, "bytes": num_bytes}

    def step(self, position: int) -> int:
        """One greedy step."""
        backend = self.varco.backend
        assert isinstance(backend, GreedyBackend)
        return backend.decode_greedy(1, position)

    def verified(self, num_tokens: int, context: int) -> dict[str, Any]:
        """A step of one token and a draft, behind so many others: what drafts must save to pay."""
        backend = self.varco.backend
        assert isinstance(backend, GreedyVerifyingBackend)
        return {"ms": 1e3 * median_s(lambda: backend.decode_greedy_steps([1] * num_tokens, context), DECODE_STEPS - 2)}

    def drawn(self) -> dict[str, Any]:
        """A token drawn by temperature and top-p, behind the first context."""
        backend, manifest = self.varco.backend, self.varco.bundle.manifest
        assert isinstance(backend, SamplingBackend)
        sampler, vocab_size = Sampler(DRAWN, manifest.generation), manifest.model.vocab_size
        context = self._setup.contexts[0]
        seconds = median_s(lambda: backend.decode_sampled(1, context, sampler.draw(vocab_size)), DECODE_STEPS - 2)
        return {"ms": 1e3 * seconds}

    def vision(self, num_tiles: int) -> dict[str, Any]:
        """Tower and projector, tiles in the host's memory as bytes."""
        tiles, backend = self.tiles(num_tiles), self.varco.backend
        assert isinstance(backend, NormalizesPixels)
        ms = 1e3 * median_s(lambda: backend.encode_pixels(tiles), 5)
        operations = vision_operations(self._options, num_tiles)
        return {"ms": ms, "ms_per_tile": ms / num_tiles, "operations": operations}

    def picture(self, size_hw: tuple[int, int]) -> dict[str, Any]:
        """A picture's stages, their sum, and the wait of a caller: from the call to the first token."""
        manifest, backend = self.varco.bundle.manifest, self.varco.backend
        plan = packing_plan(size_hw, manifest.image)
        ids = prompt_ids(plan.num_tokens, manifest.prompt.image_token_id)
        if len(ids) + DECODE_STEPS > self._setup.max_context:
            return {"does_not_apply": f"{plan.num_tokens} image tokens do not fit --max-context"}
        assert isinstance(backend, NormalizesPixels)
        tiles = self.tiles(plan.newline_row // manifest.image.patches_per_tile)

        def first_token() -> tuple[float, float, float]:
            started = time.perf_counter()
            features = backend.encode_pixels(tiles)
            seen = time.perf_counter()
            tokens = backend.pack(features, plan)
            packed = time.perf_counter()
            backend.prefill(PromptInputs(ids, manifest.prompt.image_token_id, tokens), 0)
            return seen - started, packed - seen, time.perf_counter() - packed

        first_token()  # warm
        vision, packing, prefill = (
            1e3 * statistics.median(part) for part in zip(*(first_token() for _ in range(3)), strict=True)
        )
        return {
            "image_tokens": plan.num_tokens,
            "tiles": len(tiles),
            "vision_ms": vision,
            "packing_ms": packing,
            "prefill": {"ms": prefill, "operations": prefill_operations(self._options, len(ids))},
            "first_token_ms": vision + packing + prefill,
            "ttft_ms": 1e3 * statistics.median(self._ttft_s(size_hw) for _ in range(3)),
        }

    def _ttft_s(self, size_hw: tuple[int, int]) -> float:
        """With the picture's way to tiles and the prompt's to tokens; each picture a new one, none is remembered."""
        picture = Image.fromarray(self._rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8))
        return self.varco.ask(picture, "Describe this image.", max_new_tokens=1).timings.ttft_s

    def loop_overhead_ms(self) -> float | dict[str, str]:
        """What a token of an answer costs beyond the step: text, regions, bookkeeping. Without drafts."""
        answer = self.varco.ask(None, "Hello", max_new_tokens=DECODE_STEPS, speculate=False)
        if answer.usage.completion_tokens < 2:
            return {"does_not_apply": "the random model ended its answer at once"}
        positions = iter(range(answer.usage.prompt_tokens, answer.usage.prompt_tokens + DECODE_STEPS))
        step_s = median_s(lambda: self.step(next(positions)), DECODE_STEPS - 2)
        return 1e3 * (answer.timings.tpot_s - step_s)

    def tiles(self, count: int) -> Any:
        """Random tiles `[count, 3, S, S]` uint8."""
        side = self.varco.bundle.manifest.image.tile_px
        return self._rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def prompt_ids(num_image_tokens: int, image_token_id: int) -> Any:
    """A question about a picture, `[n]` int64."""
    return np.concatenate([np.arange(TEXT_BEFORE), np.full(num_image_tokens, image_token_id), np.arange(TEXT_AFTER)])
