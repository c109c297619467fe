"""A bundle for CUDA on ONNX Runtime, with no torch and no cuda-python.

Weights, caches and features are on the device from loading on; nothing is copied between steps. A prompt runs in
chunks of its own length, an answer token by token as a CUDA graph (`step.py`), both in one session, so the weights
are there once. Pictures are in `cuda_vision.py`. Where the GPU is missing, a bundle in fp16 runs on the CPU through the
same code, slowly: onnxruntime converts around every operator that has no fp16 kernel there.

**No line of this has run on a GPU.** What the tests show is said in docs/data-centre-gpus.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from varco_runtime.backend import GREEDY, MAX_STEP_TOKENS, Draw, Features, PromptInputs
from varco_runtime.backends.cuda.cache import KeyValueCaches
from varco_runtime.backends.cuda.driver import GpuFacts, find_gpu
from varco_runtime.backends.cuda.library import check_capability, libraries_missing, load_onnxruntime, runs_on_cuda
from varco_runtime.backends.cuda.memory import (
    NUM_LOGITS,
    buffer_shapes,
    buffer_sizes,
    check_memory,
    gpu_slots,
    shortage,
    sizes_of,
)
from varco_runtime.backends.cuda.session import ARENA, Device, Network
from varco_runtime.backends.cuda.step import TokenRows
from varco_runtime.backends.cuda.steps import Steps
from varco_runtime.backends.cuda.threads import DEVICE_LOCK, DeviceThreads, on_device_thread
from varco_runtime.backends.cuda.vision import CudaVision
from varco_runtime.backends.device_picture import DeviceFeatures, DeviceImageTokens, Sizes
from varco_runtime.backends.embedding import EmbeddingTable
from varco_runtime.backends.prompt_runs import check_length, prompt_runs
from varco_runtime.backends.slots import host_slots, slot_of_earlier_export
from varco_runtime.backends.token_checks import check_tokens
from varco_runtime.bundle.graph_contract import BATCH, check_graph_contract, decoder_rows, graph_contract
from varco_runtime.bundle.graph_nodes import takes_rows
from varco_runtime.bundle.manifest import Embedding, Manifest
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array, to_stored
from varco_runtime.errors import BackendError, ShortageError
from varco_runtime.picture.packing import PackingPlan
from varco_runtime.system.libraries import import_onnxruntime
from varco_runtime.system.processor import usable_cores

CAPTURED = ("decoder", "sampling")
"""The networks whose runs can be replayed; prompts, in the decoder's session, ask for no graph."""
PROFILED_ROWS = (*range(1, MAX_STEP_TOKENS + 1), NUM_LOGITS)
"""Numbers of rows for which every fused product of integers seeks its best form when the session is made: those of
steps, and what the head sees at most. Larger numbers, rounded up to powers of two, a product seeks when they first
come: `_warm_up` lets the layers see them, and the head, which would need gigabytes of scratch for them, never does."""


class CudaBackend:
    """One loaded bundle. See `Backend` for the methods. Raises `BackendError` or `MissingExtraError`: one line.

    `place` is `cuda`, or `cpu` for a bundle of which `cpu_lacks` nothing.
    """

    def __init__(
        self,
        bundle: Bundle,
        max_context: int | None = None,
        place: str = "cuda",
        threads: int | None = None,
        slots: int | str = 1,
    ) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._gpu: GpuFacts | None = None
        self._max_context = max_context or manifest.max_context
        self._slot = 0
        has_rows = slots == 1 or takes_rows(bundle.path(manifest.decoder.file).read_bytes())
        self._threads = threads or usable_cores()
        self.device_threads = DeviceThreads()
        missing: list[str] = []
        if place == "cuda":
            self._gpu = find_gpu()
            check_capability(self._gpu, manifest)
            self._ort, missing = load_onnxruntime()
            one = sizes_of(manifest, self._max_context)
            spare = ARENA.spare_bytes(buffer_sizes(manifest, one))
            check_memory(manifest, one, self._gpu, spare)
            self.slots = (
                gpu_slots(manifest, one, self._gpu, spare, slots) if has_rows else slot_of_earlier_export(slots)
            )
        else:
            self._ort = _host_onnxruntime()
            self.slots = host_slots(manifest, self._max_context, slots, has_rows)
        self._sizes = sizes_of(manifest, self._max_context, self.slots.number)
        # No method of this object, which would make a cycle: losing the backend gives its memory back at once.
        out_of_memory = partial(_shortage, manifest, self._sizes, self._gpu)
        self._device = Device(self._ort, place, self._threads, out_of_memory)
        with DEVICE_LOCK:
            self._load(bundle, missing)

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def max_media(self) -> tuple[int, int]:
        return self._sizes.picture_tiles, self._sizes.image_tokens

    @property
    def description(self) -> str:
        if self._gpu is None:
            threads = f"{self._threads} thread{'s' if self._threads > 1 else ''}"
            return f"onnxruntime {self._ort.__version__}, CPU, {threads}, a bundle made for CUDA"
        return f"onnxruntime {self._ort.__version__}, CUDA, {self._gpu.name} ({self._gpu.target})"

    @property
    def graphs_line(self) -> str:
        graphs = self._steps.graphs
        return f"{graphs.count} of at most {graphs.most} decode steps are captured as graphs"

    # -- loading ------------------------------------------------------------------------------------------------------

    def _load(self, bundle: Bundle, missing: list[str]) -> None:
        device, manifest = self._device, self._manifest
        networks = {name: Network(device, name, self._session(bundle, name, missing)) for name in manifest.components}
        shapes = buffer_shapes(manifest, self._sizes)
        self._buffers = {name: device.buffer(*shapes[name]) for name in shapes if name != "cache"}
        self._caches = KeyValueCaches(device, manifest, self._max_context, self._sizes.slots)
        self._token_rows = None if manifest.embedding is None else _token_rows(bundle, manifest.embedding)
        self._decoder = networks["decoder"]
        self._vision = CudaVision(device, manifest, self._sizes, networks, self._buffers)
        self._steps = Steps(
            device,
            networks["decoder"],
            networks["sampling"],
            manifest,
            self._caches,
            self._buffers["image_tokens"],
            self._token_rows,
            self._draw_takes_rows,
        )
        if self._gpu is not None:
            self._warm_up()

    def _warm_up(self) -> None:
        """Run everything once, before the first question: what is missing or does not fit shows now.

        The largest picture and runs of prompts, the longest first, come before the captures: memory is taken once in
        its greatest sizes, and kernels are chosen for every length that a run can have. What this leaves in the caches
        is finite, and overwritten before it is seen.
        """
        for num_tokens in range(1, MAX_STEP_TOKENS + 1):
            self._steps.step(num_tokens)  # its buffers, which would else take the place that a prompt's inputs leave
        self._vision.warm_up()
        for num_rows in warm_up_rows(self._sizes.prefill_tokens):
            prompt = PromptInputs(np.zeros(num_rows, np.int64), self._manifest.prompt.image_token_id, None)
            self.prefill(prompt, 0, min(num_rows, self._sizes.num_logits))
        for band in reversed(self._caches.bands):  # and so ends in the smallest
            self._caches.lay_out(band, 0)
            for num_tokens in range(1, MAX_STEP_TOKENS + 1):
                self._steps.run((0,) * num_tokens, 0)
        self._steps.sampling(1).run([GREEDY])

    def _session(self, bundle: Bundle, name: str, missing: list[str]) -> Any:
        """Open one network. Without CUDA's libraries it would run on the CPU unasked, or fail for lack of a kernel."""
        path, compute = bundle.path(self._manifest.components[name].file), self._manifest.decoder.compute
        try:
            session = self._device.session(path, _provider_options(name), _session_entries(compute))
        except ShortageError:
            raise
        except BackendError:
            if missing:
                raise libraries_missing(missing) from None
            raise
        if self._gpu is not None and not runs_on_cuda(session):
            raise libraries_missing(missing)
        rows = BATCH if self._sizes.slots > 1 else decoder_rows(session)
        check_graph_contract(session, path, graph_contract(self._manifest, rows)[name])
        if name == "sampling":
            self._draw_takes_rows = rows == BATCH
        return session

    # -- pictures -----------------------------------------------------------------------------------------------------

    @on_device_thread
    def encode(self, pixel_values: Array, first: int = 0) -> DeviceFeatures:
        return self._vision.encode(pixel_values, first)

    @on_device_thread
    def encode_pixels(self, tiles: Array, first: int = 0) -> DeviceFeatures:
        return self._vision.encode_pixels(tiles, first)

    @on_device_thread
    def pack(self, features: DeviceFeatures, plan: PackingPlan) -> DeviceImageTokens:
        return self._vision.pack(features, plan)

    @on_device_thread
    def features(self, pixel_values: Array, plan: PackingPlan) -> Features:
        return self._vision.features(pixel_values, plan)

    # -- prefill ------------------------------------------------------------------------------------------------------

    @on_device_thread
    def prefill(self, inputs: PromptInputs, start: int, num_logits: int = 1) -> Array:
        total = len(inputs.ids)
        check_length(total, self._max_context)
        self._caches.lay_out(total, start, self._slot)
        rows = []
        for run in prompt_runs(total, start, num_logits, self._sizes.prefill_tokens, self._sizes.num_logits):
            logits = self._prefill_chunk(inputs, run.start, run.end, run.num_logits, read=run.num_wanted > 0)
            if logits is not None:
                rows.append(logits)
        return self._watched(np.concatenate(rows))

    def _prefill_chunk(self, inputs: PromptInputs, start: int, end: int, num_logits: int, read: bool) -> Array | None:
        """Run over the positions `start` .. `end`; the last `num_logits` logits `[num_logits, vocab]` if `read`."""
        upload, tokens, logits = self._device.upload, self._buffers["image_tokens"], self._buffers["logits"]
        binding = self._decoder.binding()
        arrays = self._token_inputs(inputs, start, end)
        if self._token_rows is not None:
            rows = self._token_rows(arrays.pop("token_ids"))
            binding.value_as("inputs_embeds", upload(rows), self._manifest.decoder.compute)
        for name, array in arrays.items():
            binding.value(name, upload(array))
        num_rows = 1 if inputs.image_tokens is None else inputs.image_tokens.num_tokens
        binding.input("image_tokens", tokens, (num_rows, tokens.shape[1]))
        binding.value("seqlens_k", upload(np.array([end - 1], np.int32)))
        # In the host's memory on every device: the provider reads it there.
        total = np.array(end, np.int32)
        binding.value("total_sequence_length", self._ort.OrtValue.ortvalue_from_numpy(total))
        length = end - start
        binding.value("logit_positions", upload(np.arange(length - num_logits, length, dtype=np.int64)))
        self._caches.bind(binding, self._slot)
        vocab_size = self._manifest.model.vocab_size
        if num_logits == 1:  # without the other rows, which would come to the host too
            row = binding.host_output("logits", "fp32", (1, 1, vocab_size))
            self._decoder.run(binding)
            return row[0] if read else None
        binding.output("logits", logits, (1, num_logits, vocab_size))
        self._decoder.run(binding)
        found: Array = logits.read().reshape(-1)[: num_logits * vocab_size].reshape(num_logits, vocab_size)
        return found

    def _token_inputs(self, inputs: PromptInputs, start: int, end: int) -> dict[str, Array]:
        """Return which token or which row of the media stands at each position."""
        rows = inputs.rows(start, end)
        is_image = rows >= 0
        token_ids = np.where(is_image, 0, inputs.ids[start:end]).astype(np.int64)
        check_tokens(int(token_ids.min()), int(token_ids.max()), self._manifest.model.vocab_size)
        image_rows = np.where(is_image, rows, 0).astype(np.int64)
        if inputs.image_tokens is None:
            is_image, image_rows = np.zeros_like(is_image), np.zeros_like(image_rows)
        else:
            assert self._vision.holds(inputs.image_tokens), "Bug: image tokens of earlier media"
            num_rows = inputs.image_tokens.num_tokens
            assert image_rows.max() < num_rows, f"Bug: row {image_rows.max()} of {num_rows} image tokens"
        return {"token_ids": token_ids[None], "image_rows": image_rows[None], "is_image": is_image[None, :, None]}

    # -- decode -------------------------------------------------------------------------------------------------------

    def decode_step(self, token_id: int, position: int) -> Array:
        row: Array = self.decode_steps((token_id,), position)[0]
        return row

    @on_device_thread
    def decode_steps(self, token_ids: Sequence[int], position: int) -> Array:
        return self._watched(self._steps.run(token_ids, position, self._slot).logits())

    def decode_greedy(self, token_id: int, position: int) -> int:
        return self.decode_greedy_steps((token_id,), position)[0]

    @on_device_thread
    def decode_greedy_steps(self, token_ids: Sequence[int], position: int) -> list[int]:
        step = self._steps.run(token_ids, position, self._slot)
        return self._steps.checked(step.chosen(), position, self._slot)

    @on_device_thread
    def decode_sampled(self, token_id: int, position: int, draw: Draw) -> int:
        self._steps.run((token_id,), position, self._slot)
        return self._steps.checked(self._steps.sampling(1).run([draw]), position, self._slot)[0]

    # -- several answers ----------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        return self._sizes.slots

    def select_slot(self, slot: int) -> None:
        assert 0 <= slot < self._sizes.slots, f"Bug: slot {slot} of {self._sizes.slots}"
        self._slot = slot

    def num_rows(self, least: int) -> int:
        """A power of two, since each number has a graph of its own, or all slots."""
        return min(1 << (least - 1).bit_length(), self._sizes.slots)

    @on_device_thread
    def decode_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> Array:
        return self._steps.logits_of_rows(token_ids, positions)

    @on_device_thread
    def decode_chosen_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], draws: Sequence[Draw | None]
    ) -> list[int | Array | BackendError]:
        return self._steps.choices_of_rows(token_ids, positions, draws)

    @on_device_thread
    def copy_from_slot(self, slot: int, num_positions: int) -> None:
        self._caches.copy(slot, self._slot, num_positions)

    def _watched(self, logits: Array) -> Array:
        """Return the logits as they are. Where they are not finite, so are the caches, which are then cleared.

        One logit of a row tells: a NaN on the way to the head reaches all of them.
        """
        if not np.isfinite(logits[..., 0]).all():
            self._caches.clear(self._slot)
        return logits


def warm_up_rows(prefill_tokens: int) -> list[int]:
    """Return lengths of runs, the longest first, for which kernels are chosen: one for each power of two."""
    powers = [1 << bits for bits in range(1, prefill_tokens.bit_length()) if 1 << bits < prefill_tokens]
    return [prefill_tokens, *(rows for rows in reversed(powers) if rows > NUM_LOGITS)]


def _token_rows(bundle: Bundle, facts: Embedding) -> TokenRows:
    """Return rows of tokens `[..., width]` in the compute type, for a decoder that does not hold them."""
    table, compute = EmbeddingTable(bundle.path(facts.file), facts), bundle.manifest.decoder.compute
    return lambda token_ids: to_stored(table.rows(token_ids), compute)


def _shortage(manifest: Manifest, sizes: Sizes, gpu: GpuFacts | None, during: str) -> ShortageError:
    """Return what to say where memory ran out: with what was free before the loading, and what is free now."""
    if gpu is None:
        return ShortageError(f"The machine ran out of memory during {during}. Load with a lower max_context.")
    try:
        free_now = find_gpu().free_bytes
    except BackendError:  # a device in trouble; the shortage is the news
        free_now = None
    return shortage(manifest, sizes, gpu, during, free_now)


def _provider_options(name: str) -> dict[str, str]:
    """Return the CUDA provider's options.

    Without cuDNN a bundle runs alike whether that is installed or not, and no plan is built for each new length of a
    prompt.
    """
    return {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "enable_cudnn": "0",
        "enable_cuda_graph": "1" if name in CAPTURED else "0",
    }


def _session_entries(compute: str) -> dict[str, str]:
    """Return the session's settings."""
    return {
        "ep.cuda.fpa_intb_gemm": "0" if compute == "fp32" else "1",
        "ep.cuda.fpa_intb_profile_m": ",".join(map(str, PROFILED_ROWS)),
        # Weights outside the arena: a repacked weight's first copy is then given back.
        "session.use_device_allocator_for_initializers": "1",
    }


def _host_onnxruntime() -> Any:
    return import_onnxruntime("Running a bundle on the CPU")
