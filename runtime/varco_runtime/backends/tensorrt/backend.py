"""The bundle's TensorRT engines on an NVIDIA device, with cuda-python and no torch.

Memory is allocated once. A cache's past and present are bound to one address. Features, image tokens and embeddings
stay on the device, and so do positions and masks, which are copied from a table and a triangle made at loading.
A prompt runs in chunks with the decoder's prefill profile, in exactly its own lengths; an answer runs token by token
as a CUDA graph (`tensorrt_step.py`). Pictures are in `tensorrt_vision.py`.

TensorRT ignores writes outside a cache without a word, so every position is checked here, and every shape against the
memory bound to it. All work is asked for on one stream; the host waits before it reads.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from varco_runtime.backend import GREEDY, Draw, Features, PromptInputs
from varco_runtime.backends.device_picture import DeviceFeatures, DeviceImageTokens
from varco_runtime.backends.prompt_runs import check_length, prompt_runs
from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda
from varco_runtime.backends.tensorrt.engine import Engine, ExecutionContext
from varco_runtime.backends.tensorrt.engine_choice import choose_engines, choose_max_context, choose_slots
from varco_runtime.backends.tensorrt.engine_io import COMPONENTS, engine_io
from varco_runtime.backends.tensorrt.memory import DeviceMemory, device_bytes, sizes_of, slot_bytes
from varco_runtime.backends.tensorrt.step import DECODE, PREFILL, ROWS, DecodeStep, bind_caches
from varco_runtime.backends.tensorrt.step_mask import StepMask
from varco_runtime.backends.tensorrt.vision import TensorRtVision
from varco_runtime.backends.token_checks import check_chosen, check_tokens, not_finite
from varco_runtime.bundle.manifest import cache_names
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import ITEM_BYTES, Array
from varco_runtime.errors import BackendError, BundleError
from varco_runtime.picture.packing import PackingPlan

CHECK_EVERY = 64
"""Greedy steps between two looks at the logits. NaN has no largest entry, so the device's choice does not show it."""
_INT_BYTES = ITEM_BYTES["int64"]


class TensorRtBackend:
    """One loaded bundle. See `Backend` for the methods. `close` frees the device; so does losing the last reference.

    Raises `BackendError`, `BundleError`, `UsageError` or `MissingExtraError`: one line that says what is missing or
    does not match.
    """

    def __init__(self, bundle: Bundle, max_context: int | None = None, slots: int | str = 1) -> None:
        self._manifest = bundle.manifest
        self._cuda = Cuda()
        self._finalizer = weakref.finalize(self, self._cuda.close)
        try:
            self._load(bundle, max_context, slots)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the device's memory. The backend is of no use afterwards; a second call does nothing."""
        self._finalizer()

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def max_media(self) -> tuple[int, int]:
        return self._vision.max_media

    @property
    def target(self) -> str:
        """The kind of device: `sm89`."""
        return self._cuda.target

    @property
    def description(self) -> str:
        graph = "" if self._step(1).can_capture else ", decode step without a CUDA graph"
        return f"{self._library.product} {self._library.version}, {self._cuda.name} ({self._cuda.target}){graph}"

    # -- loading ------------------------------------------------------------------------------------------------------

    def _load(self, bundle: Bundle, max_context: int | None, slots: int | str) -> None:
        """Everything is compared before the next thing is loaded: manifest, device, library, memory, engines."""
        cuda, manifest = self._cuda, self._manifest
        self._library, chosen = choose_engines(manifest, cuda)
        cuda.at_close(self._library.release)
        self._max_context = choose_max_context(max_context, chosen)
        self.slots = choose_slots(slots, chosen, cuda, device_bytes(cuda, manifest, chosen))
        self._sizes = sizes_of(manifest, chosen, self.slots.number)
        memory = DeviceMemory(cuda, manifest, chosen, self._sizes)
        memory.check()
        expected = engine_io(manifest, self._sizes.max_context, chosen["decoder"].num_slots)
        engines = {}
        for name in COMPONENTS:
            file = chosen[name].file
            engines[name] = self._library.load(cuda, bundle.path(file), chosen[name], manifest.files[file].sha256)
            engines[name].check(expected[name])
        self._check_reach(engines)
        self._buffers, scratch = memory.allocate(max(engine.scratch_bytes() for engine in engines.values()))
        cuda.at_close(self._library.release)  # again: before the memory that contexts use is freed
        self._prepare(engines, scratch)

    def _check_reach(self, engines: dict[str, Engine]) -> None:
        """The profiles must reach as far as the manifest says, by which the buffers are sized."""
        sizes = self._sizes
        several = [
            ("decoder", "inputs_embeds", 0, ROWS, sizes.slots),
            ("decoder", "attention_mask", 3, ROWS, sizes.max_context),
        ]
        for component, tensor, axis, profile, needed in (
            *(several if sizes.slots > 1 else ()),
            ("vision", "pixel_values", 0, PREFILL, sizes.batch_tiles),
            ("projector", "patch_features", 0, PREFILL, sizes.batch_tiles),
            ("packing", "image_features", 0, PREFILL, sizes.picture_tiles),
            ("embedding", "token_ids", 1, PREFILL, sizes.prefill_tokens),
            ("decoder", "inputs_embeds", 1, PREFILL, sizes.prefill_tokens),
            ("decoder", "attention_mask", 3, PREFILL, sizes.max_context),
            ("decoder", "logit_positions", 0, PREFILL, sizes.num_logits),
            ("decoder", "attention_mask", 3, DECODE, sizes.max_context),
        ):
            engine = engines[component]
            reach = engine.longest(tensor, axis, profile) if profile < engine.num_profiles else 0
            if reach < needed:
                raise BundleError(
                    f"{engine.file} takes at most {reach} along axis {axis} of {tensor} in profile {profile}, expected "
                    f"{needed}. Build the engines again with: varco engines BUNDLE"
                )

    def _prepare(self, engines: dict[str, Engine], scratch: Buffer) -> None:
        """Contexts, addresses, zeroed caches, tables."""
        cuda, manifest, buffers, sizes = self._cuda, self._manifest, self._buffers, self._sizes
        self._vision = TensorRtVision(cuda, manifest, sizes, engines, buffers, scratch)
        self._engines, self._scratch = engines, scratch
        self._masks = {1: StepMask(cuda, buffers["step_mask"])}
        if sizes.slots > 1:
            self._masks[sizes.slots] = StepMask(cuda, buffers["rows_mask"], sizes.slots)
        self._steps: dict[int, DecodeStep] = {}
        """By number of rows."""
        self._step(1)
        self._embedding = ExecutionContext(engines["embedding"], scratch, PREFILL)
        for name in ("token_ids", "inputs_embeds"):
            self._embedding.bind(name, buffers[name])
        self._decoder = ExecutionContext(engines["decoder"], scratch, PREFILL)
        inputs = ("inputs_embeds", "position_ids", "write_indices", "attention_mask", "logit_positions")
        for name in (*inputs, "logits", "next_token"):
            self._decoder.bind(name, buffers[name])
        bind_caches(self._decoder, manifest, buffers)
        self._decoder.shape_of_rows("write_indices", 1)

        self._caches = [buffers[f"cache.{name}"] for name in cache_names(manifest.model.num_layers)]
        for cache in self._caches:
            cuda.fill(cache, 0)
        cuda.upload(buffers["positions"], np.arange(sizes.max_context, dtype=np.int64))
        cuda.upload(buffers["triangle"], np.tri(sizes.prefill_tokens, dtype=np.bool_))
        rows = max(sizes.num_logits, sizes.slots)
        self._logits = cuda.pinned((rows, manifest.model.vocab_size), np.float32)
        self._slot = 0
        self._lengths = [0] * sizes.slots  # of each slot, positions that may hold keys and values; zeros follow
        self._num_row_steps = 0

    # -- pictures -----------------------------------------------------------------------------------------------------

    def encode(self, pixel_values: Array, first: int = 0) -> DeviceFeatures:
        return self._vision.encode(pixel_values, first)

    def pack(self, features: DeviceFeatures, plan: PackingPlan) -> DeviceImageTokens:
        return self._vision.pack(features, plan)

    def features(self, pixel_values: Array, plan: PackingPlan) -> Features:
        return self._vision.features(pixel_values, plan)

    # -- prefill ------------------------------------------------------------------------------------------------------

    def prefill(self, inputs: PromptInputs, start: int, num_logits: int = 1) -> Array:
        total = len(inputs.ids)
        check_length(total, self._max_context)
        self._rewind(start)
        rows = []
        for run in prompt_runs(total, start, num_logits, self._sizes.prefill_tokens, self._sizes.num_logits):
            self._embed(inputs, run.start, run.end)
            self._prefill_chunk(run.start, run.end, run.num_logits)
            if run.num_wanted:
                rows.append(self._read_logits(run.num_wanted).copy())
        return np.concatenate(rows)

    def _embed(self, inputs: PromptInputs, start: int, end: int) -> None:
        """Embeddings of the positions `start` .. `end`: all looked up, then media's rows copied over their spans."""
        media_rows = inputs.rows(start, end)
        token_ids = np.where(media_rows >= 0, 0, inputs.ids[start:end]).astype(np.int64)
        self._check_tokens(int(token_ids.min()), int(token_ids.max()))
        self._cuda.upload(self._buffers["token_ids"], token_ids)
        self._embedding.shape("token_ids", 1, end - start)
        self._embedding.run()
        if inputs.image_tokens is None:
            return
        assert self._vision.holds(inputs.image_tokens), "Bug: image tokens of earlier media"
        num_rows = inputs.image_tokens.num_tokens
        assert media_rows.max() < num_rows, f"Bug: row {media_rows.max()} of {num_rows} image tokens"
        row_bytes = self._manifest.model.hidden_size * ITEM_BYTES[self._manifest.decoder.compute]
        for first, last in _runs(media_rows):
            num_bytes = (last - first) * row_bytes
            target = self._buffers["inputs_embeds"].part(first * row_bytes, num_bytes)
            row = int(media_rows[first])
            self._cuda.copy(target, inputs.image_tokens.rows.part(row * row_bytes, num_bytes))

    def _prefill_chunk(self, start: int, end: int, num_logits: int) -> None:
        """One run of the prefill profile over the positions `start` .. `end`, with the last `num_logits` logits."""
        cuda, buffers, length = self._cuda, self._buffers, end - start
        self._lengths[self._slot] = end  # from here on the caches may hold something up to there, whatever happens
        cuda.copy(buffers["position_ids"], self._positions(start, length))
        cuda.copy(buffers["write_indices"], self._positions(start, 1))
        cuda.copy(buffers["logit_positions"], self._positions(length - num_logits, num_logits))
        # The mask [length, end] shows all that stood before the chunk, and the chunk itself as a triangle.
        mask, pitch = buffers["attention_mask"].part(0, length * end), self._sizes.prefill_tokens
        cuda.fill_rows(mask, end, 1, start, length)
        cuda.copy_rows(mask.part(start, length * end - start), end, buffers["triangle"], pitch, length, length)
        self._decoder.shape("inputs_embeds", 1, length, self._manifest.model.hidden_size)
        self._decoder.shape("position_ids", 1, length)
        self._decoder.shape("attention_mask", 1, 1, length, end)
        self._decoder.shape("logit_positions", num_logits)
        self._decoder.run()

    def _positions(self, first: int, count: int) -> Buffer:
        """The numbers `first` .. `first + count - 1` on the device."""
        return self._buffers["positions"].part(first * _INT_BYTES, count * _INT_BYTES)

    # -- decode -------------------------------------------------------------------------------------------------------

    def decode_step(self, token_id: int, position: int) -> Array:
        self._run_step(token_id, position)
        row: Array = self._read_logits(1)[0]
        return row

    def decode_greedy(self, token_id: int, position: int) -> int:
        self._run_step(token_id, position)
        token = self._step(1).chosen()[0]
        if position % CHECK_EVERY == 0 and not np.isfinite(self._read_logits(1)).all():
            raise not_finite(position, self._manifest.overflow_advice)
        check_chosen(token, self._manifest.model.vocab_size)
        return token

    def _run_step(self, token_id: int, position: int) -> None:
        check_length(position + 1, self._max_context)
        self._check_tokens(token_id, token_id)
        self._rewind(position)
        self._lengths[self._slot] = position + 1
        self._step(1).run([token_id], [position], self._slot)

    def _step(self, num_rows: int) -> DecodeStep:
        """The step of so many rows, made when it is first taken."""
        if num_rows not in self._steps:
            mask = self._masks[1 if num_rows == 1 else self._sizes.slots]
            self._steps[num_rows] = DecodeStep(
                self._cuda, self._manifest, self._engines, self._buffers, self._scratch, mask, num_rows
            )
        return self._steps[num_rows]

    # -- several answers ----------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        return self._sizes.slots

    def select_slot(self, slot: int) -> None:
        assert 0 <= slot < self._sizes.slots, f"Bug: slot {slot} of {self._sizes.slots}"
        if slot != self._slot:
            bind_caches(self._decoder, self._manifest, self._buffers, slot)
            self._slot = slot

    def num_rows(self, least: int) -> int:
        """A power of two, since each number has a context and a graph of its own, or all slots."""
        return min(1 << (least - 1).bit_length(), self._sizes.slots)

    def decode_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> Array:
        self._run_rows(token_ids, positions)
        return self._read_logits(len(token_ids))

    def decode_chosen_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], draws: Sequence[Draw | None]
    ) -> list[int | Array | BackendError]:
        """The device takes greedy choices alone; the logits of all other rows come to the host."""
        num_rows = len(token_ids)
        self._run_rows(token_ids, positions)
        is_greedy = [draw is GREEDY for draw in draws]
        chosen = self._step(num_rows).chosen()
        self._num_row_steps += 1
        logits = None
        if not all(is_greedy) or self._num_row_steps % CHECK_EVERY == 0:
            logits = self._read_logits(num_rows)
        outcomes: list[int | Array | BackendError] = []
        for slot, (token, position) in enumerate(zip(chosen, positions, strict=True)):
            try:
                if logits is not None and not np.isfinite(logits[slot]).all():
                    self._clear(slot, 0)
                    raise not_finite(position, self._manifest.overflow_advice)
                check_chosen(token, self._manifest.model.vocab_size)
                outcomes.append(token if is_greedy[slot] or logits is None else logits[slot])
            except BackendError as error:
                outcomes.append(error)
        return outcomes

    def _run_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        num_rows = len(token_ids)
        assert 1 < num_rows == len(positions) <= self._sizes.slots, f"Bug: {num_rows} rows of {self._sizes.slots}"
        check_length(max(positions) + 1, self._max_context)
        self._check_tokens(min(token_ids), max(token_ids))
        for slot, position in enumerate(positions):
            assert position <= self._lengths[slot], f"Bug: position {position} follows {self._lengths[slot]} in {slot}"
            self._clear(slot, position + 1)  # an idle row writes where it did before: nothing is to do
            self._lengths[slot] = position + 1
        self._step(num_rows).run(token_ids, positions)

    def copy_from_slot(self, slot: int, num_positions: int) -> None:
        self._clear(self._slot, 0)
        model, num_bytes = self._manifest.model, slot_bytes(self._manifest, self._sizes.max_context)
        pitch = num_bytes // model.num_key_value_heads
        for cache in self._caches:
            source, target = (cache.part(at * num_bytes, num_bytes) for at in (slot, self._slot))
            width = num_positions * pitch // self._sizes.max_context
            self._cuda.copy_rows(target, pitch, source, pitch, width, model.num_key_value_heads)
        self._lengths[self._slot] = num_positions

    # -- both ---------------------------------------------------------------------------------------------------------

    def _rewind(self, position: int) -> None:
        """Forget what stands from `position` on. It is zeroed, because the step reads there, if with no weight."""
        length = self._lengths[self._slot]
        assert position <= length, f"Bug: position {position} follows {length} positions"
        self._clear(self._slot, position)

    def _clear(self, slot: int, position: int) -> None:
        """Zero what stands in a slot from `position` on, if anything does."""
        stale = self._lengths[slot] - position
        if stale <= 0:
            return
        model, num_bytes = self._manifest.model, slot_bytes(self._manifest, self._sizes.max_context)
        row_bytes = model.head_dim * ITEM_BYTES[self._manifest.decoder.compute]
        pitch = self._sizes.max_context * row_bytes  # [KV, max_context, head_dim]: from one head to the next
        for cache in self._caches:
            tail = cache.part(slot * num_bytes + position * row_bytes, num_bytes - position * row_bytes)
            self._cuda.fill_rows(tail, pitch, 0, stale * row_bytes, model.num_key_value_heads)
        self._lengths[slot] = position

    @property
    def _length(self) -> int:
        return self._lengths[self._slot]

    def _read_logits(self, count: int) -> Array:
        """The first `count` rows of the last run's logits, valid until the next call."""
        rows: Array = self._logits[:count]
        self._cuda.download(rows, self._buffers["logits"])
        self._cuda.synchronize()
        return rows

    def _check_tokens(self, least: int, greatest: int) -> None:
        check_tokens(least, greatest, self._manifest.model.vocab_size)


def _runs(rows: Array) -> list[tuple[int, int]]:
    """First and last + 1 of every stretch of positions whose rows follow each other; -1 is no row."""
    is_row = rows >= 0
    continues = np.zeros(len(rows), np.bool_)
    continues[1:] = is_row[:-1] & (rows[1:] == rows[:-1] + 1)
    firsts = np.flatnonzero(is_row & ~continues)
    lasts = np.flatnonzero(is_row & ~np.append(continues[1:], False))
    return [(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
