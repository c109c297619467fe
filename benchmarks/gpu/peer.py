"""transformers on the same device and shape: random weights, sdpa attention, a dynamic and a compiled static cache.

Behind one context, as a compilation takes longest; it, the pictures and their prompts are those of `stages.py`.
Whatever fails, by a lack of memory or in the compiler, is left out with its reason, and the rest goes on.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.limits import median_s
from benchmarks.gpu.memory_use import MemoryUse
from benchmarks.gpu.model import make_checkpoint, model_options
from benchmarks.gpu.process import Tell, attempt
from benchmarks.gpu.stages import DECODE_STEPS, PICTURES, TILE_COUNTS, Setup, prompt_ids
from varco_runtime.picture.packing import packing_plan

CACHES = ("dynamic", "static")


def measure_transformers(setup: Setup, dtype: str, former: dict[str, Any], budget_s: float, tell: Tell) -> None:
    """Tell every figure that `former` lacks; none is begun later than `budget_s` from now."""
    ends = time.monotonic() + budget_s
    lacking = missing_package()
    if lacking is not None:
        tell(("left_out",), lacking)
        return
    memory = MemoryUse(setup.provider)
    try:
        peer = Peer(setup, dtype, make_checkpoint(setup.folder, setup.shape))
    except NoDeviceError as error:
        tell(("left_out",), str(error))
        return
    for name, value in peer.about.items():
        tell((name,), value)

    def stage(place: tuple[str, ...], measure: Callable[..., Any], *arguments: Any) -> None:
        if figure_at(former, place) is not None:
            return
        if time.monotonic() > ends:
            tell(place, {"left_out": "the time for all steps was spent; the same command goes on here"})
            return
        attempt(tell, place, lambda: measure(*arguments))
        tell(("peak_memory_bytes",), max(memory.sample() or 0, former.get("peak_memory_bytes", 0)))
        peer.give_back()

    context, (label, size_hw) = setup.contexts[0], next(iter(PICTURES.items()))
    stage(("decode", "dynamic", str(context)), peer.decode, context, "dynamic")
    stage(("vision", str(TILE_COUNTS[-1])), peer.vision, TILE_COUNTS[-1])
    stage(("pictures", label), peer.picture, size_hw)
    stage(("decode", "static", str(context)), peer.decode, context, "static")  # last, as compiling takes longest


class NoDeviceError(Exception):
    """torch is there and cannot use the device."""


def missing_package() -> str | None:
    """In a few words what is not installed."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    return None


def figure_at(figures: dict[str, Any], place: tuple[str, ...]) -> Any | None:
    """What was measured there; None where nothing was, or it was left out."""
    found: Any = figures
    for name in place:
        found = found.get(name) if isinstance(found, dict) else None
    return None if isinstance(found, dict) and "left_out" in found else found


class Peer:
    """transformers' model with random weights. Raises `NoDeviceError` where torch sees no GPU."""

    def __init__(self, setup: Setup, dtype: str, checkpoint: Path) -> None:
        import torch
        import transformers

        if setup.provider == "cuda" and not torch.cuda.is_available():
            raise NoDeviceError(f"torch {torch.__version__} sees no GPU")
        self._torch, self._setup = torch, setup
        self._options = model_options(setup.shape).to_config()
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
        started = time.perf_counter()
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        with torch.device(setup.provider):
            self._model = transformers.AutoModelForImageTextToText.from_config(
                config, dtype=self._dtype, attn_implementation="sdpa"
            ).eval()
        self._model.generation_config.eos_token_id = None  # an answer has the length that is asked for
        self.about = {
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "dtype": dtype,
            "attention": "sdpa",
            "load_s": time.perf_counter() - started,
        }

    def decode(self, context: int, cache: str) -> dict[str, Any]:
        """A token behind a prompt of `context` tokens, and the wait for the first one."""
        torch = self._torch
        options: dict[str, Any] = {}
        if cache == "static":
            options["cache_implementation"] = "static"  # with which generate compiles the step on a GPU
        ids = torch.randint(0, 200, (1, context), device=self._setup.provider)
        graphs_before = self._num_graphs()
        self._generate(ids, DECODE_STEPS, options)  # the compilation, and every allocation
        times = _TokenTimes()
        self._generate(ids, DECODE_STEPS, options | {"streamer": times})
        return {
            "ms": 1e3 * times.median_s(),
            "first_token_ms": 1e3 * self._first_token_s(ids, options),
            "compiled": self._num_graphs() > graphs_before,
        }

    def vision(self, num_tiles: int) -> dict[str, Any]:
        """Tower and projector, tiles in the host's memory."""
        inner = self._model.model
        pixels = self._tiles(num_tiles)

        def encode() -> None:
            with self._torch.no_grad():
                seen = inner.vision_tower(pixels.to(self._setup.provider, self._dtype), output_hidden_states=True)
                inner.multi_modal_projector(seen.hidden_states[-1])
            self._wait()

        ms = 1e3 * median_s(encode, 5)
        return {"ms": ms, "ms_per_tile": ms / num_tiles}

    def picture(self, size_hw: tuple[int, int]) -> dict[str, Any]:
        """Tiles and ids to the first token: vision, packing and prefill in one."""
        torch, image = self._torch, self._options.image
        plan = packing_plan(size_hw, image)
        assert self._options.image_token_id is not None, "Bug: a checkpoint of the other format"
        ids = prompt_ids(plan.num_tokens, self._options.image_token_id)
        if len(ids) + DECODE_STEPS > self._setup.max_context:
            return {"does_not_apply": f"{plan.num_tokens} image tokens do not fit --max-context"}
        pixels = self._tiles(plan.newline_row // image.patches_per_tile)
        given = {"pixel_values": pixels[None].to(self._dtype), "image_sizes": torch.tensor([size_hw])}
        given = {name: value.to(self._setup.provider) for name, value in given.items()}
        ids_there = torch.from_numpy(ids)[None].to(self._setup.provider)
        return {
            "image_tokens": plan.num_tokens,
            "tiles": len(pixels),
            "first_token_ms": 1e3 * self._first_token_s(ids_there, given),
        }

    def _first_token_s(self, ids: Any, options: dict[str, Any]) -> float:
        return median_s(lambda: self._generate(ids, 1, options), 3, warm=1)

    def _generate(self, ids: Any, new_tokens: int, options: dict[str, Any]) -> None:
        with self._torch.no_grad():
            self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                **options,
            )
        self._wait()

    def give_back(self) -> None:
        """Free what torch keeps for later, so that one variant's memory is not another's lack."""
        gc.collect()
        if self._setup.provider == "cuda":
            self._torch.cuda.empty_cache()

    def _num_graphs(self) -> int:
        """Graphs that torch has compiled up to now, which it does on a GPU alone here."""
        if self._setup.provider == "cpu":
            return 0
        return int(importlib.import_module("torch._dynamo.utils").counters["stats"]["unique_graphs"])

    def _tiles(self, count: int) -> Any:
        side = self._options.image.tile_px
        return self._torch.rand((count, 3, side, side)) * 2 - 1

    def _wait(self) -> None:
        if self._setup.provider == "cuda":
            self._torch.cuda.synchronize()


class _TokenTimes:
    """What generate calls a streamer: told of the prompt, then of each token once it is on the host."""

    def __init__(self) -> None:
        self._at: list[float] = []

    def put(self, value: Any) -> None:
        self._at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""

    def median_s(self) -> float:
        """Seconds between two tokens. The first of them waits for the prompt."""
        tokens = self._at[2:]
        return statistics.median(after - before for before, after in itertools.pairwise(tokens))
