"""onnxruntime-genai: the Qwen2 checkpoint through its model builder, in int4, its head cut to the last token."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer.protocol import Array, Peer, folder_bytes, serve

# variant: arguments of the model builder. Its int4 has blocks of 32, int8 activations and a head of int4.
BUILDS: dict[str, tuple[str, ...]] = {
    "int4": ("-p", "int4", "--extra_options", "prune_lm_head=true"),
    "fp32": ("-p", "fp32", "--extra_options", "prune_lm_head=true"),
}


class OnnxRuntimeGenai(Peer):
    """Variant `int4`; `fp32` to check the model against the reference."""

    packages = ("onnxruntime-genai", "onnxruntime")

    def prepare(self, material: Path, variant: str) -> None:
        target = _folder(material, variant)
        if target.exists():
            return
        partial = target.with_name(f"{variant}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(material / "text")]
        builder += ["-o", str(partial), "-e", "cpu", "-c", str(partial / "cache"), *BUILDS[variant]]
        subprocess.run(builder, check=True)
        partial.rename(target)

    def load(self, material: Path, variant: str, max_context: int, threads: int) -> None:
        import onnxruntime_genai

        self._lib: Any = onnxruntime_genai
        self._folder = _folder(material, variant)
        self._max_context = max_context
        config = onnxruntime_genai.Config(str(self._folder))
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)
        self._generator: Any = None

    @property
    def model_bytes(self) -> int:
        return folder_bytes(self._folder, "model.onnx*")

    def prefill(self, ids: Array) -> Array:
        self._generator = None  # its cache, before the next one's is taken
        params = self._lib.GeneratorParams(self._model)
        params.set_search_options(max_length=self._max_context, do_sample=False)
        self._generator = self._lib.Generator(self._model, params)
        self._generator.append_tokens(ids.astype(np.int32)[None])
        logits: Array = self._generator.get_logits().reshape(-1)
        self._generator.generate_next_token()  # only chooses: the logits are there
        return logits

    def step(self) -> int:
        token = int(self._generator.get_next_tokens()[0])
        if self._generator.is_done():
            raise RuntimeError("the random model ended its answer; choose another seed")
        self._generator.generate_next_token()
        return token


def _folder(material: Path, variant: str) -> Path:
    return material / "onnxruntime_genai" / variant


if __name__ == "__main__":
    sys.exit(serve(OnnxRuntimeGenai()))
