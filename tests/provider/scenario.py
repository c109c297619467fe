"""Everything a bundle for CUDA is asked for, once, on the stub libraries: a program, for they serve one process.

python -m tests.provider.scenario STUBS BUNDLE     # with VARCO_STUB_LOG and VARCO_STUB_CAPABILITY set

It marks what it does in the log, and prints one JSON object: what cannot be read there.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.provider.stub_libraries import load
from varco_runtime.backend import GREEDY, MAX_STEP_TOKENS, Draw, PromptInputs
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.backends.cuda.cache import BANDS
from varco_runtime.backends.cuda.driver import find_gpu
from varco_runtime.backends.cuda.memory import PREFILL_TOKENS
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import PackingPlan, packing_plan
from varco_runtime.picture.tiles import normalize, tile

LOAD = "load"
DRAFTS = (2, MAX_STEP_TOKENS)
GROWN = BANDS[0] - 4
"""Positions behind which a draft outgrows the first band of the caches."""
LONG_PROMPT = PREFILL_TOKENS + 104
"""Two runs."""
PROMPTS = (1000, 16, 17, 32, 33, 100, 300, 500, 700, 900, PREFILL_TOKENS, 200, LONG_PROMPT, 650)
"""Lengths in an order in which the longest is neither first nor last, and on both sides of what kernels for few rows
take."""
ROWS = (2, 4, 8, 16)
"""Answers that take a step together. The last is the number of slots."""
PICTURES = {"small": (40, 60), "large": (340, 340), "second large": (340, 340)}
"""Height and width: of one batch of tiles, and of several."""
THREADS = ("thread", "other thread")
PENALISED = Draw(1.1, np.array([1, 2]), 0.7, 50, 0.1, 0.0, 0.3)


class Scenario:
    """One loaded bundle and its log."""

    def __init__(self, stubs: Path, bundle: Path) -> None:
        self._runtime = load(stubs)
        self._free_bytes: dict[str, int] = {}
        self._failures: dict[str, str] = {}
        self._mark(LOAD)
        with _optimised_graphs() as operators:
            self._bundle = Bundle.open(bundle)
            self._backend = CudaBackend(self._bundle, slots=ROWS[-1])
        self._mark("")
        self._free_bytes[LOAD] = find_gpu().free_bytes
        self._operators = operators
        self._manifest = self._bundle.manifest

    def run(self) -> dict[str, Any]:
        """Everything, section by section. What fails is noted, and the next section follows."""
        self._decode()
        for time in ("prompt of", "again a prompt of"):
            for length in PROMPTS:
                self._prefill(f"{time} {length}", length)
        self._pictures()
        self._prefill("prompt at a band's end", GROWN)
        draft = [1] * MAX_STEP_TOKENS
        self._section("draft beyond a band", lambda: self._backend.decode_greedy_steps(draft, GROWN))
        self._section("draft in the next band", lambda: self._backend.decode_greedy_steps(draft, GROWN))
        self._prefill("prompt back in the first band", 40, start=20)
        for name in THREADS:
            self._in_a_thread(name)
        self._section("greedy after threads", lambda: self._backend.decode_greedy(5, 63))
        self._several()
        description = self._backend.description
        self._section("closing", self._close)
        return {
            "description": description,
            "failures": self._failures,
            "free_bytes": self._free_bytes,
            "operators": self._operators,
        }

    def _decode(self) -> None:
        """Steps behind a prompt and its continuation."""
        self._prefill("first prompt", 40)
        self._prefill("later prompt", 60, start=40, num_logits=16)
        self._section("greedy", lambda: self._backend.decode_greedy(5, 60))
        self._section("step", lambda: self._backend.decode_step(5, 61))
        self._section("drawn", lambda: self._backend.decode_sampled(3, 62, PENALISED))
        for count in DRAFTS:
            for time in ("first", "again"):
                tokens = [1] * count
                self._section(f"draft of {count}, {time}", lambda t=tokens: self._backend.decode_greedy_steps(t, 63))
        self._section("logits of a draft", lambda: self._backend.decode_steps([1] * MAX_STEP_TOKENS, 80))

    def _several(self) -> None:
        """Steps of several answers, twice each, greedy and drawn; and a prompt in another slot."""
        backend = self._backend
        for count in ROWS:
            rows = [1] * count, [40 + slot for slot in range(count)]
            for time in ("first", "again"):
                draws = [GREEDY] * count
                self._section(f"rows of {count}, {time}", lambda r=rows, d=draws: backend.decode_chosen_rows(*r, d))
        four = [1] * 4, [45] * 4
        for name, draws in (("drawn", [GREEDY, PENALISED, GREEDY, GREEDY]), ("read", [GREEDY, None, GREEDY, GREEDY])):
            for time in ("first", "again"):
                self._section(f"rows {name}, {time}", lambda d=draws: backend.decode_chosen_rows(*four, d))
        backend.select_slot(5)
        self._section("slot copied", lambda: backend.copy_from_slot(0, 30))
        for time in ("first", "again"):
            self._section(f"greedy in another slot, {time}", lambda: backend.decode_greedy(5, 60))
        self._section("slot cleared", lambda: backend._caches.clear(5))
        backend.select_slot(0)

    def _close(self) -> None:
        del self._backend
        gc.collect()

    def _mark(self, name: str) -> None:
        """A section of the log begins; what follows no name belongs to none."""
        self._runtime.stub_mark(name.encode())

    def _section(self, name: str, action: Callable[[], Any]) -> None:
        self._mark(name)
        try:
            action()
        except Exception as error:
            self._failures[name] = f"{type(error).__name__}: {error}"
        self._mark("")
        self._free_bytes[name] = find_gpu().free_bytes

    def _prefill(self, name: str, length: int, start: int = 0, num_logits: int = 1) -> None:
        self._section(name, lambda: self._backend.prefill(self._inputs(length), start, num_logits))

    def _inputs(self, length: int) -> PromptInputs:
        vocab_size = self._manifest.model.vocab_size
        return PromptInputs(np.arange(length, dtype=np.int64) % (vocab_size - 1), vocab_size - 1, None)

    def _pictures(self) -> None:
        for name, (height, width) in PICTURES.items():
            settings, image_token_id = self._manifest.image, self._manifest.model.vocab_size - 1
            picture = load_picture(Image.new("RGB", (width, height)))
            tiles, plan = tile(picture, settings), packing_plan(picture.size_hw, settings)
            ids = np.concatenate([np.arange(5), np.full(plan.num_tokens, image_token_id), np.arange(5)])
            self._picture(name, tiles, normalize(tiles, settings), plan, ids)

    def _picture(self, name: str, tiles: Array, pixel_values: Array, plan: PackingPlan, ids: Array) -> None:
        """One picture as bytes, in a prompt, as `pixel_values`, and looked at between the networks."""
        backend, image_token_id = self._backend, self._manifest.model.vocab_size - 1

        def prompt() -> None:
            tokens = backend.pack(backend.encode_pixels(tiles), plan)
            backend.prefill(PromptInputs(ids, image_token_id, tokens), 0)

        self._section(f"{name} picture", lambda: backend.encode_pixels(tiles))
        self._section(f"prompt with a {name} picture", prompt)
        self._section(f"{name} picture as pixel values", lambda: backend.encode(pixel_values))
        self._section(f"features of a {name} picture", lambda: backend.features(pixel_values, plan))

    def _in_a_thread(self, name: str) -> None:
        """Two questions in a thread of their own, the second as long as the first."""

        def questions() -> None:
            for time in ("first", "second"):
                self._section(f"{name}, {time} question", question)

        def question() -> None:
            self._backend.prefill(self._inputs(50), 0)
            for position in range(50, 53):
                self._backend.decode_greedy(5, position)
            self._backend.decode_greedy_steps([1, 1], 53)
            self._backend.decode_sampled(5, 55, PENALISED)

        thread = threading.Thread(target=questions)
        thread.start()
        thread.join()


@contextlib.contextmanager
def _optimised_graphs() -> Iterator[dict[str, dict[str, int]]]:
    """How often each operator stands in each graph as the provider runs it, filled when the sessions have been made."""
    import onnx
    import onnxruntime

    made, operators = onnxruntime.InferenceSession, {}
    with tempfile.TemporaryDirectory() as folder:

        def session(path: str, options: Any, **others: Any) -> Any:
            target = Path(folder, Path(path).name)
            options.optimized_model_filepath = str(target)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            result = made(path, options, **others)
            graph = onnx.load(target, load_external_data=False).graph
            operators[target.stem] = dict(Counter(node.op_type for node in graph.node))
            return result

        onnxruntime.InferenceSession = session
        try:
            yield operators
        finally:
            onnxruntime.InferenceSession = made


if __name__ == "__main__":
    print(json.dumps(Scenario(Path(sys.argv[1]), Path(sys.argv[2])).run()))
