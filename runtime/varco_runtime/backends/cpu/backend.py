"""The bundle on ONNX Runtime's CPU provider.

Keys and values live in buffers allocated once, `[slots, num_key_value_heads, max_context, head_dim]`; every step binds
them as past and as present, so nothing is copied. What runs for one sequence binds the view of its slot; a step of
several answers binds the first slots together. Decode steps reuse their bindings, with fixed buffers for embeddings,
lengths and logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.backends.cpu.prepacked import Prepacked
from varco_runtime.backends.host import HostBackend, take_memory
from varco_runtime.backends.prompt_runs import check_length
from varco_runtime.backends.slots import host_slots
from varco_runtime.bundle.graph_contract import BATCH, SILENT, check_graph_contract, decoder_rows, graph_contract
from varco_runtime.bundle.graph_nodes import unrounded
from varco_runtime.bundle.manifest import Component, cache_names
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import STORAGE, Array
from varco_runtime.errors import BackendError, first_line
from varco_runtime.system.libraries import import_onnxruntime
from varco_runtime.system.processor import overflows_in_pairs

CHUNK_TOKENS = 512
"""Prompt positions per run. Bounds memory: onnxruntime's GroupQueryAttention works in blocks, so that what a run
needs grows with the chunk and not with the context; 512 rows keep the matrix products busy."""


_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where the weights lie of a graph that is handed over as bytes."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A decode step of fixed shape: `embeds` `[rows, n, D]`, `logits` `[rows, n, vocab]` and their binding."""

    embeds: Array
    logits: Array
    binding: Any


class OnnxRuntimeBackend(HostBackend):
    """One loaded bundle. See `Backend` and `BatchingBackend` for the methods. Raises `BackendError`."""

    def __init__(self, bundle: Bundle, max_context: int, threads: int | None = None, slots: int | str = 1) -> None:
        self._ort: Any = import_onnxruntime("Running a bundle on the CPU")
        super().__init__(bundle, max_context, threads)
        self._vision = self._session(bundle, "vision")
        self._projector = self._session(bundle, "projector")
        self._decoder = self._session(bundle, "decoder")
        self.slots = host_slots(bundle.manifest, max_context, slots, decoder_rows(self._decoder) == BATCH)
        self._num_slots = self.slots.number
        self._allocate()

    @property
    def description(self) -> str:
        return f"onnxruntime {self._ort.__version__}, CPU, {self._threads_text}"

    def _session(self, bundle: Bundle, name: str) -> Any:
        """A network by its name, with the inputs and outputs that the manifest lets expect."""
        component = bundle.manifest.components[name]
        session = self._load(bundle, component)
        check_graph_contract(
            session, bundle.path(component.file), graph_contract(bundle.manifest, decoder_rows(session))[name]
        )
        return session

    def _load(self, bundle: Bundle, component: Component) -> Any:
        path: Path = bundle.path(component.file)
        try:
            folder = Prepacked.folder_of(bundle, component, self._ort.__version__)
            if folder is None:
                return self._new_session(path, self._new_options())
            return Prepacked(
                self._ort, self._new_options, self._new_session, _trials, folder, bundle.check_unchanged
            ).session(path)
        except Exception as error:  # onnxruntime raises its own types, which share no base
            raise BackendError(_load_failure(path, error)) from None

    def _new_options(self) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = SILENT
        if overflows_in_pairs():
            options.add_session_config_entry("session.x64quantprecision", "1")
        return options

    def _new_session(self, path: Path, options: Any) -> Any:
        return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def stop_rounding(self) -> bool:
        """Load the networks that round the inputs of their linears once more, so that they do not; one at a time."""
        manifest = self._bundle.manifest
        stopped = False
        for name, component in (
            ("_vision", manifest.vision),
            ("_projector", manifest.projector),
            ("_decoder", manifest.decoder),
        ):
            path: Path = self._bundle.path(component.file)
            try:
                graph = unrounded(path.read_bytes())
                if graph is None:
                    continue
                setattr(self, name, None)
                self._steps.clear()  # they are bound to the session that goes
                self._row_steps.clear()
                options = self._new_options()
                options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
                setattr(self, name, self._ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]))
            except Exception as error:  # onnxruntime raises its own types, which share no base
                raise BackendError(_load_failure(path, error)) from None
            stopped = True
        return stopped

    def _allocate(self) -> None:
        model, dtype = self._model, np.dtype(STORAGE[self._bundle.manifest.kv_format])
        shape = (self._num_slots, model.num_key_value_heads, self._max_context, model.head_dim)
        value = self._ort.OrtValue.ortvalue_from_numpy
        # np.zeros maps its pages when they are first written: a short context costs no memory for a long one.
        self._cache_arrays = {name: np.zeros(shape, dtype=dtype) for name in cache_names(model.num_layers)}
        self._slot = 0
        self._slot_caches = [self._cache_values(slot, slot + 1) for slot in range(self._num_slots)]
        self._seqlens_k = np.zeros(1, dtype=np.int32)
        self._total_length = np.zeros((), dtype=np.int32)
        self._num_logits = np.ones(1, dtype=np.int64)
        self._fixed = {
            "seqlens_k": value(self._seqlens_k),
            "total_sequence_length": value(self._total_length),
            "num_logits": value(self._num_logits),
        }
        self._steps: dict[tuple[int, int], _Step] = {}
        """Of one sequence, by slot and number of tokens."""
        self._row_steps: dict[int, tuple[_Step, Array]] = {}
        """Of several, by number of rows, each with its `seqlens_k`."""

    def reserve_memory(self) -> None:
        """Take the memory of all slots from the system: each page of the caches is written, as it is."""
        for array in self._cache_arrays.values():
            take_memory(array)

    def _cache_values(self, first: int, end: int) -> dict[str, Any]:
        """Return the caches of slots `first` .. `end` - 1, by name: views, not copies."""
        value = self._ort.OrtValue.ortvalue_from_numpy
        return {name: value(array[first:end]) for name, array in self._cache_arrays.items()}

    def _step(self, num_tokens: int) -> _Step:
        """The step of so many tokens, made when it is first taken."""
        step = self._steps.get((self._slot, num_tokens))
        if step is None:
            shared = next((step for (_, count), step in self._steps.items() if count == num_tokens), None)
            if shared is None:
                embeds = np.zeros((1, num_tokens, self._model.hidden_size), dtype=self._decoder_type)
                logits = np.zeros((1, num_tokens, self._model.vocab_size), dtype=np.float32)
            else:  # another slot's, of which one alone runs at a time
                embeds, logits = shared.embeds, shared.logits
            step = self._steps[self._slot, num_tokens] = _Step(embeds, logits, self._bound(embeds, logits))
        return step

    def _row_step(self, num_rows: int) -> tuple[_Step, Array]:
        """The step of one token in each of the first slots, and its `seqlens_k` `[rows]`."""
        found = self._row_steps.get(num_rows)
        if found is None:
            embeds = np.zeros((num_rows, 1, self._model.hidden_size), dtype=self._decoder_type)
            logits = np.zeros((num_rows, 1, self._model.vocab_size), dtype=np.float32)
            lengths = np.zeros(num_rows, dtype=np.int32)
            fixed = self._fixed | {"seqlens_k": self._ort.OrtValue.ortvalue_from_numpy(lengths)}
            binding = self._bound(embeds, logits, self._cache_values(0, num_rows), fixed)
            found = self._row_steps[num_rows] = _Step(embeds, logits, binding), lengths
        return found

    def _bound(
        self, embeds: Array, logits: Array, caches: dict[str, Any] | None = None, fixed: dict[str, Any] | None = None
    ) -> Any:
        """A binding of a run; of the selected slot unless other caches and lengths are given."""
        value = self._ort.OrtValue.ortvalue_from_numpy
        binding = self._binding(caches or self._slot_caches[self._slot], fixed or self._fixed)
        binding.bind_ortvalue_input("inputs_embeds", value(embeds))
        binding.bind_ortvalue_output("logits", value(logits))
        return binding

    def _binding(self, caches: dict[str, Any], fixed: dict[str, Any]) -> Any:
        """A binding of caches and lengths."""
        binding = self._decoder.io_binding()
        for name, cache in caches.items():
            binding.bind_ortvalue_input(f"past.{name}", cache)
            binding.bind_ortvalue_output(f"present.{name}", cache)
        for name, buffer in fixed.items():
            binding.bind_ortvalue_input(name, buffer)
        return binding

    def _run_vision_tower(self, tile: Array) -> Array:
        return self._run(self._vision, {"pixel_values": tile.astype(self._vision_type, copy=False)})

    def _project(self, patches: Array) -> Array:
        return self._run(self._projector, {"patch_features": patches})

    def _run(self, session: Any, feeds: dict[str, Array]) -> Array:
        try:
            output: Array = session.run(None, feeds)[0]
        except Exception as error:
            raise BackendError(
                f"onnxruntime failed while running a network: {first_line(error)}. Run: varco doctor"
            ) from None
        return output

    def prefill(self, inputs: PromptInputs, start: int, num_logits: int = 1) -> Array:
        return self._prefill(inputs, start, num_logits, CHUNK_TOKENS)

    def _run_decoder(self, embeds: Array, position: int, num_logits: int) -> Array:
        length = embeds.shape[1]
        self._set_lengths(position + length)
        self._num_logits[0] = num_logits
        logits = np.empty((1, num_logits, self._model.vocab_size), dtype=np.float32)
        self._run_bound(self._bound(embeds, logits))
        rows: Array = logits[0]
        return rows

    def decode_step(self, token_id: int, position: int) -> Array:
        row: Array = self.decode_steps((token_id,), position)[0]
        return row

    def decode_steps(self, token_ids: Sequence[int], position: int) -> Array:
        num_tokens = len(token_ids)
        assert 1 <= num_tokens <= MAX_STEP_TOKENS, f"Bug: a step of {num_tokens} tokens"
        check_length(position + num_tokens, self._max_context)
        step = self._step(num_tokens)
        step.embeds[0] = self._embedding.rows(np.array(token_ids))
        self._set_lengths(position + num_tokens)
        self._num_logits[0] = num_tokens
        self._run_bound(step.binding)
        rows: Array = step.logits[0]
        return rows

    @property
    def num_slots(self) -> int:
        return self._num_slots

    def select_slot(self, slot: int) -> None:
        assert 0 <= slot < self._num_slots, f"Bug: slot {slot} of {self._num_slots}"
        self._slot = slot

    def decode_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> Array:
        num_rows = len(token_ids)
        assert 1 <= num_rows == len(positions) <= self._num_slots, f"Bug: {num_rows} rows of {self._num_slots} slots"
        total = max(positions) + 1
        check_length(total, self._max_context)
        step, lengths = self._row_step(num_rows)
        step.embeds[:, 0] = self._embedding.rows(np.array(token_ids))
        lengths[:] = positions
        self._total_length[...] = total
        self._num_logits[0] = 1
        self._run_bound(step.binding)
        rows: Array = step.logits[:, 0]
        return rows

    def copy_prefix(self, num_positions: int) -> Array:
        """`[2 * layers, key/value heads, num_positions, head_dim]`, key and value of each layer in turn."""
        return np.stack([cache[self._slot, :, :num_positions] for cache in self._cache_arrays.values()])

    def restore_prefix(self, prefix: Array) -> None:
        for cache, kept in zip(self._cache_arrays.values(), prefix, strict=True):
            cache[self._slot, :, : prefix.shape[2]] = kept

    def _run_bound(self, binding: Any) -> None:
        try:
            self._decoder.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(
                f"onnxruntime failed while running the decoder: {first_line(error)}. Run: varco doctor"
            ) from None

    def _set_lengths(self, total: int) -> None:
        self._seqlens_k[0] = total - 1
        self._total_length[...] = total


def _load_failure(path: Path, error: Exception) -> str:
    return f"onnxruntime could not load {path}: {first_line(error)}. Run: varco doctor"


def _trials(session: Any) -> list[dict[str, Array]]:
    """Inputs for a network of a bundle, whichever it is: a decoder reads one position and several, others all rows."""
    inputs = {value.name: value for value in session.get_inputs()}
    rng = np.random.default_rng(0)
    trials = []
    for length in (1, 6) if "inputs_embeds" in inputs else (1,):
        given = {"seqlens_k": [length - 1], "total_sequence_length": length, "num_logits": [1]}
        lengths = {"sequence": length, BATCH: 1}
        feeds = {}
        for name, value in inputs.items():
            shape = [dim if isinstance(dim, int) else lengths.get(dim, 8) for dim in value.shape]
            if name in given:
                feeds[name] = np.array(given[name], dtype=np.int64 if value.type == "tensor(int64)" else np.int32)
            elif name in ("pixel_values", "patch_features"):
                feeds[name] = rng.standard_normal([1, *shape[1:]])
            else:
                feeds[name] = rng.standard_normal(shape)
        floats = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        trials.append({name: feeds[name].astype(floats.get(inputs[name].type, feeds[name].dtype)) for name in feeds})
    return trials
