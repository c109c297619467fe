"""The second step: a small model's answer about a picture, on the device and on the CPU, format by format.

The model has the 14B's head group in small, and widths for which every fast kernel is taken. The CPU computes with the
very weights of the bundle: of fp16 and int4 by the bundle itself, of bf16 and FP8, for which it has no kernels, by a
model in fp32 whose weights are rounded beforehand.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from PIL import Image

from benchmarks.gpu.model import lacking_kernels
from benchmarks.gpu.process import Tell
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.checkpoint.expected_shapes import expected_shapes
from varco_export.dialects.fp8 import round_to_fp8
from varco_export.export import ExportOptions, export
from varco_export.progress import Silent
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.errors import BackendError
from varco_runtime.probes.limits import LOGIT_LIMITS

Array = np.ndarray[Any, Any]
MODEL = TinyOptions(
    seed=8,
    hidden_size=640,
    num_attention_heads=5,
    num_key_value_heads=1,
    intermediate_size=320,
    vocab_size=576,
    num_hidden_layers=3,
    vision_hidden_size=144,
    num_vision_heads=2,
    vision_intermediate_size=160,
)
"""The 14B's head group of 5 with heads of 128, heads of 72 in the tower, and sizes that every fast kernel takes: XQA,
Flash, fpA_intB, FP8."""
FORMATS = ("fp16", "int4", "fp8", "bf16")
CLOSE_CALL, LEAST_CLEAR = 3.0, 4
"""Times the largest error of a logit: what two tokens must be apart for one of them alone to be right, and how
many such tokens an answer must have to say anything."""
NEW_TOKENS, MAX_CONTEXT = 32, 1024
QUESTION = "What is this?"
_LINEAR = re.compile(r"language_model\.layers\.\d+\.\w+\.\w+_proj\.weight")


class NumbersError(BackendError):
    """The device computes something else than the CPU."""


def check_tokens(folder: Path, provider: str, decoder: str, tell: Tell) -> None:
    """Tell how far the device's logits and tokens are from the CPU's.

    Raises:
        NumbersError: A logit is further off than rounding explains, or a token differs that is no close call.
    """
    if reason := lacking_kernels(provider, decoder):
        tell(("does_not_apply",), reason)
        return
    folder = folder / f"tokens-{decoder}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        checkpoint = make_tiny(folder / "checkpoint", MODEL)
        bundle = _export(checkpoint, folder / "bundle", device="cuda", decoder=decoder)
        if decoder in ("bf16", "fp8"):
            round_weights(checkpoint, decoder)
            exact = Varco.load(_export(checkpoint, folder / "exact", device="cpu", decoder="fp32"), provider="cpu")
        else:
            exact = Varco.load(bundle, provider="cpu")
        compare(
            Varco.load(bundle, provider=provider), exact, LOGIT_LIMITS["bf16" if decoder == "bf16" else "fp16"], tell
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(device: Varco, exact: Varco, limit: float, tell: Tell) -> None:
    """Answer by both, step by step and with drafts, and score the CPU's answer by both. Raises `NumbersError`."""
    pixels = np.random.default_rng(5).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    answer = exact.ask(picture, QUESTION, max_new_tokens=NEW_TOKENS, speculate=False).token_ids
    rows, wanted = (one.score(picture, QUESTION, answer) for one in (device, exact))
    largest = float(np.abs(wanted).max())
    top = np.sort(wanted, axis=1)[:, -2:]
    error = float(np.abs(rows - wanted).max()) / largest
    clear = top[:, 1] - top[:, 0] > CLOSE_CALL * error * largest
    tell(("tokens",), len(answer))
    tell(("clear",), int(clear.sum()))
    tell(("error",), error)
    if not error < limit or not np.isfinite(rows).all():
        raise NumbersError(f"Logits are off by {error:.3g} of the largest, expected less than {limit:g}.")
    for name, speculate in (("steps", False), ("drafts", True)):
        got = device.ask(picture, QUESTION, max_new_tokens=NEW_TOKENS, speculate=speculate).token_ids
        at = next((at for at, pair in enumerate(zip(got, answer, strict=False)) if pair[0] != pair[1]), len(answer))
        tell(("equal", name), at)
        if at < len(answer) and (clear[at] or at >= len(got)):
            raise NumbersError(f"Token {at} of {len(answer)} differs from the CPU's, by {name}, and is no close call.")
    if int(clear.sum()) < LEAST_CLEAR:
        raise NumbersError(f"{int(clear.sum())} of {len(answer)} tokens are no close calls, expected {LEAST_CLEAR}.")


def round_weights(checkpoint: Path, dtype: str) -> None:
    """Round the weights of a checkpoint in fp32, in place, as an export to `bf16` or `fp8` does."""
    opened = Checkpoint.open(checkpoint)
    for name in expected_shapes(opened.config):
        tensor = opened.tensor(name)
        if dtype == "fp8" and not _LINEAR.fullmatch(name):
            continue
        values = tensor.read()
        stored = np.memmap(tensor.path, np.float32, "r+", tensor.offset, tensor.shape)
        stored[...] = _rounded(values, dtype)
        stored.flush()


def _rounded(values: Array, dtype: str) -> Array:
    if dtype == "bf16":
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)
    scales = np.empty(len(values), np.float32)
    rows = np.concatenate(list(round_to_fp8([values], scales)))
    return np.asarray(rows.astype(np.float32) * scales[:, None])


def _export(checkpoint: Path, bundle: Path, device: str, decoder: str) -> Path:
    options = ExportOptions(device=device, decoder=decoder, max_context=MAX_CONTEXT, probes=False)
    export(checkpoint, bundle, options, Silent())
    return bundle
