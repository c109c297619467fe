"""OpenVINO: text through OpenVINO GenAI's pipeline, vision through OpenVINO itself, weights compressed by nncf."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer.protocol import Array, Peer, folder_bytes, serve, tile_pixels

# variant: arguments of optimum-intel's exporter. The head, which is the embedding table, becomes int8 per channel.
TEXTS: dict[str, tuple[str, ...]] = {
    "int4": ("--weight-format", "int4", "--sym", "--ratio", "1.0", "--group-size", "128"),
    "fp32": ("--weight-format", "fp32"),
}
VISIONS = ("vision-bf16", "vision-int8-weights", "vision-int8")
NUM_CALIBRATION_TILES = 8


class OpenVino(Peer):
    """Variants: `TEXTS` (`fp32` to check the model against the reference) and `VISIONS`.

    Numbers between layers are what OpenVINO chooses for the processor: bf16 where it has instructions for it, rounded
    to int8 before compressed weights, the cache int8. `vision-int8` has weights and activations in int8, with ranges
    found on random tiles.
    """

    packages = ("openvino", "openvino-genai", "optimum-intel", "nncf")

    def prepare(self, material: Path, variant: str) -> None:
        name = "vision" if variant in VISIONS else variant
        target, partial = material / "openvino" / name, material / "openvino" / f"{name}.partial"
        if target.exists():
            return
        shutil.rmtree(partial, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        if variant in VISIONS:
            _write_vision(material / "vision", partial)
        else:
            source = material / "text"
            command = [Path(sys.executable).parent / "optimum-cli", "export", "openvino", "--model", source]
            arguments = _group_size(source, TEXTS[variant])
            subprocess.run([*command, "--task", "text-generation-with-past", *arguments, partial], check=True)
        partial.rename(target)

    def load(self, material: Path, variant: str, max_context: int, threads: int) -> None:
        self._threads, self._max_context = threads, max_context
        self._folder = material / "openvino"
        self._file = variant
        if variant in VISIONS:
            import openvino

            path = self._folder / "vision" / f"{variant}.xml"
            core = openvino.Core()
            config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
            self._vision: Any = core.compile_model(core.read_model(path), "CPU", config)
            return
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # the rounds repeat their prompts
        scheduler.max_num_batched_tokens = max_context  # as the pipeline does by default: prefill in one piece
        self._lib: Any = openvino_genai
        config = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"} if variant == "fp32" else {}
        self._pipeline = openvino_genai.LLMPipeline(
            str(self._folder / variant), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads, **config
        )

    @property
    def model_bytes(self) -> int:
        if self._file in VISIONS:
            return folder_bytes(self._folder / "vision", f"{self._file}.bin")
        return folder_bytes(self._folder / self._file, "openvino_model.bin")

    def text(self, ids: Array, steps: int) -> dict[str, Any]:
        """The pipeline's own clocks: its logits stay inside."""
        import openvino

        settings = self._lib.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = steps + 1, True, False
        rows = ids[None]
        inputs = self._lib.TokenizedInputs(openvino.Tensor(rows), openvino.Tensor(np.ones_like(rows)))
        result = self._pipeline.generate(inputs, settings)
        raw = result.perf_metrics.raw_metrics
        return {
            "prefill_s": raw.m_times_to_first_token[0] / 1e6,
            "step_s": [duration / 1e6 for duration in raw.m_durations],
            "tokens": [int(token) for token in result.tokens[0][:steps]],
            "logits": None,
        }

    def vision(self, pixel_values: Array) -> Array:
        return np.asarray(self._vision([pixel_values])[0][0])


def _group_size(source: Path, arguments: tuple[str, ...]) -> list[str]:
    """The arguments, with groups of 32 where 128 divides no row (the `tiny` shape)."""
    hidden = json.loads((source / "config.json").read_text())["hidden_size"]
    return ["32" if argument == "128" and hidden % 128 else argument for argument in arguments]


def _write_vision(source: Path, target: Path) -> None:
    """Tower and projector of one tile, with plain weights, int8 weights, and int8 weights and activations."""
    import nncf
    import openvino
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    class Tower(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = (
                LlavaOnevisionForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval().model
            )

        def forward(self, pixel_values: Any) -> Any:
            hidden = self.model.vision_tower(pixel_values, output_hidden_states=True)
            return self.model.multi_modal_projector(hidden.hidden_states[-1])

    tower = Tower()
    side = tower.model.config.vision_config.image_size
    tiles = [tile_pixels(1000 + seed, side) for seed in range(NUM_CALIBRATION_TILES)]
    with torch.no_grad():
        model = openvino.convert_model(tower, example_input=torch.from_numpy(tiles[0]), input=[1, 3, side, side])
    target.mkdir()
    openvino.save_model(model, target / "vision-bf16.xml")
    calibration = nncf.Dataset(tiles)
    quantised = nncf.quantize(
        model, calibration, subset_size=NUM_CALIBRATION_TILES, model_type=nncf.ModelType.TRANSFORMER
    )
    openvino.save_model(quantised, target / "vision-int8.xml")
    openvino.save_model(nncf.compress_weights(model), target / "vision-int8-weights.xml")


if __name__ == "__main__":
    sys.exit(serve(OpenVino()))
