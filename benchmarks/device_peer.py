"""transformers on the same device and shape: random weights, sdpa attention, a dynamic and a compiled static cache."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

NEW_TOKENS = 33


def measure_transformers(checkpoint: Path, dtype: str, device: str, contexts: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds per token by cache and context, or `left_out` with the reason."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            return {"left_out": f"{name} is not installed"}
    import torch
    import transformers

    if device == "cuda" and not torch.cuda.is_available():
        return {"left_out": f"torch {torch.__version__} sees no GPU"}
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    with torch.device(device):
        model = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=torch_dtype, attn_implementation="sdpa"
        ).eval()
    model.generation_config.eos_token_id = None  # an answer has the length that is asked for
    found: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "dtype": dtype,
        "attention": "sdpa",
        "ms_per_token": {},
    }
    for cache in ("dynamic", "static"):
        if cache == "static" and device != "cuda":
            found["ms_per_token"][cache] = {"left_out": "compiled on a GPU alone"}
            continue
        found["ms_per_token"][cache] = {
            str(context): _ms_per_token(torch, model, device, context, cache) for context in contexts
        }
    if device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _ms_per_token(torch: Any, model: Any, device: str, context: int, cache: str) -> float:
    """What each further token costs: a long answer less a short one, both after a warm-up."""
    ids = torch.randint(0, 200, (1, context), device=device)
    options = {"do_sample": False, "use_cache": True, "pad_token_id": 0}
    if cache == "static":
        options["cache_implementation"] = "static"  # generate compiles the step

    def seconds(new_tokens: int) -> float:
        _wait(torch, device)
        started = time.perf_counter()
        with torch.no_grad():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                **options,
            )
        _wait(torch, device)
        return time.perf_counter() - started

    seconds(NEW_TOKENS)  # the compilation, and every allocation
    return float(1e3 * (seconds(NEW_TOKENS) - seconds(1)) / (NEW_TOKENS - 1))


def _wait(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
