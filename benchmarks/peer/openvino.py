"""OpenVINO: text through OpenVINO GenAI's pipeline, vision through OpenVINO itself, weights compressed by nncf."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer.protocol import Array, Peer, Question, folder_bytes, prompt_ids, serve, tile_pixels

# variant: arguments of optimum-intel's exporter. The head, which is the embedding table, becomes int8 per channel.
TEXTS: dict[str, tuple[str, ...]] = {
    "int4": ("--weight-format", "int4", "--sym", "--ratio", "1.0", "--group-size", "128"),
    "fp32": ("--weight-format", "fp32"),
}
# variant: OpenVINO's properties beside its defaults. Behind `+dyn128`: int8 inputs with a scale per 128, as the weights
# have, in place of OpenVINO's 32 or what the file says.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
WIDE_GROUPS = "+dyn128"
QUESTION = "question"
VISIONS = ("vision-bf16", "vision-int8-weights", "vision-int8")
NUM_CALIBRATION_TILES = 8


class OpenVino(Peer):
    """Variants: `TEXTS` (`fp32` to check the model against the reference), `VISIONS`, `question`, which has int4 text
    and an int8 tower; text also with `+dyn128` behind.

    Numbers between layers are what OpenVINO chooses for the processor: bf16 where it has instructions for it, rounded
    to int8 before compressed weights, the cache int8. `vision-int8` has weights and activations in int8, with ranges
    found on random tiles.
    """

    packages = ("openvino", "openvino-genai", "optimum-intel", "nncf")

    def prepare(self, material: Path, variant: str) -> None:
        variant = variant.removesuffix(WIDE_GROUPS)
        if variant == QUESTION:
            self.prepare(material, "int4")
            variant = "vision-int8"
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
        self._file = variant.removesuffix(WIDE_GROUPS)
        self._properties: dict[str, Any] = {}
        if self._file == QUESTION:
            self._load_vision("vision-int8")
            self._file = "int4"
            self._load_text(variant, has_prefixes=True)
        elif self._file in VISIONS:
            self._load_vision(self._file)
        else:
            self._load_text(variant, has_prefixes=False)  # the rounds repeat their prompts

    def _load_vision(self, name: str) -> None:
        import openvino

        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": self._threads, "PERFORMANCE_HINT": "LATENCY"}
        model = core.read_model(self._folder / "vision" / f"{name}.xml")
        self._vision: Any = core.compile_model(model, "CPU", config)

    def _load_text(self, variant: str, has_prefixes: bool) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = has_prefixes
        scheduler.max_num_batched_tokens = self._max_context  # as the pipeline does by default: prefill in one piece
        self._lib: Any = openvino_genai
        self._properties = dict(EXACT) if variant == "fp32" else {}
        if variant.endswith(WIDE_GROUPS):
            self._properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128
        self._pipeline = openvino_genai.LLMPipeline(
            str(self._folder / self._file),
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=self._threads,
            **self._properties,
        )

    @property
    def model_bytes(self) -> int:
        if self._file in VISIONS:
            return folder_bytes(self._folder / "vision", f"{self._file}.bin")
        return folder_bytes(self._folder / self._file, "openvino_model.bin")

    def settings(self) -> dict[str, Any]:
        """What OpenVINO says of the same file compiled with the same properties: GenAI does not show its own."""
        import openvino

        core = openvino.Core()
        folder = self._folder / ("vision" if self._file in VISIONS else self._file)
        name = self._file if self._file in VISIONS else "openvino_model"
        compiled = core.compile_model(core.read_model(folder / f"{name}.xml"), "CPU", self._properties)
        names = ["INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
        if self._file not in VISIONS:
            names.append("KV_CACHE_PRECISION")
        return {name: _plain(compiled.get_property(name)) for name in names}

    def question(self, seed: int, question: Question, vocab_size: int, side: int) -> dict[str, dict[str, float]]:
        """A sum of parts that ran one after the other: the tower on each tile, GenAI's text of as many positions.

        The second time is the best that a program around them could reach: the picture is not encoded again, and the
        pipeline keeps the prefix.
        """
        first_ids = prompt_ids(seed, question.positions, vocab_size)
        new_ids = prompt_ids(seed, question.new_positions, vocab_size)
        started = time.perf_counter()
        for tile in range(question.tiles):
            self.vision(tile_pixels(1000 * seed + tile, side))
        vision_s = time.perf_counter() - started
        second_ids = np.concatenate([first_ids[: question.positions - len(new_ids)], new_ids])
        return {
            "first": self._ask(vision_s, first_ids, question.new_tokens),
            "second": self._ask(0.0, second_ids, question.new_tokens),
        }

    def _ask(self, vision_s: float, ids: Array, new_tokens: int) -> dict[str, float]:
        done = self.text(ids, new_tokens - 1)
        prefill_s, decode_s = done["prefill_s"], sum(done["step_s"])
        return {
            "vision_s": vision_s,
            "prefill_s": prefill_s,
            "first_token_s": vision_s + prefill_s,
            "decode_s": decode_s,
            "total_s": vision_s + prefill_s + decode_s,
        }

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


def _plain(value: Any) -> Any:
    """A property as JSON has it; a type by its name."""
    if isinstance(value, int | str):
        return value
    return value.get_type_name() if hasattr(value, "get_type_name") else str(value)


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
