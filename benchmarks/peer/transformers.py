"""transformers on torch, in fp32 and bf16: the reference implementation, eager but for its attention kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer.protocol import Array, Peer, folder_bytes, serve


class Transformers(Peer):
    """Variants `fp32`, `bf16`, `vision-fp32`, `vision-bf16`."""

    packages = ("transformers", "torch")

    def load(self, material: Path, variant: str, max_context: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch: Any = torch
        kind, _, name = variant.rpartition("-")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        self._dtype = dtype
        self._folder = material / ("vision" if kind == "vision" else "text")
        if kind == "vision":
            from transformers import LlavaOnevisionForConditionalGeneration as Model
        else:
            from transformers import Qwen2ForCausalLM as Model
        self._model: Any = Model.from_pretrained(self._folder, dtype=dtype).eval()

    @property
    def model_bytes(self) -> int:
        return folder_bytes(self._folder, "*.safetensors")

    def prefill(self, ids: Array) -> Array:
        self._past = None
        return self._forward(self._torch.from_numpy(ids)[None])

    def step(self) -> int:
        token = int(self._logits.argmax())
        self._forward(self._torch.tensor([[token]]))
        return token

    def _forward(self, ids: Any) -> Array:
        out = self._model(input_ids=ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past, self._logits = out.past_key_values, out.logits[0, -1]
        row: Array = self._logits.float().numpy()
        return row

    def vision(self, pixel_values: Array) -> Array:
        model = self._model.model
        hidden = model.vision_tower(self._torch.from_numpy(pixel_values).to(self._dtype), output_hidden_states=True)
        features = model.multi_modal_projector(hidden.hidden_states[-1])[0]
        return np.asarray(features.float().numpy())


if __name__ == "__main__":
    sys.exit(serve(Transformers()))
