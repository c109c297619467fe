"""A bundle for the CPU on OpenVINO.

Keys and values are states of a request, of which each slot has one: a run appends its rows to them. Going back means
reading the states, cutting them and setting them again, which the plugin does at the speed of memory. Answers step one
after the other.

A run without anything before it attends by the plugin's kernel for prompts; behind a past it attends row by row, far
slower. So a prompt is run in one piece, and from its beginning where the greater part of it
is new and text comes first: what all questions begin with is not worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.backends.host import HostBackend
from varco_runtime.backends.openvino.attention import BEAM_INPUT, state_names
from varco_runtime.backends.openvino.network import Networks, reason_of
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.backends.prompt_runs import check_length
from varco_runtime.backends.slots import host_slots
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.errors import BackendError

CHUNK_TOKENS = 4096
"""Prompt positions per run: their activations bound the memory, and a second run attends slowly."""


class OpenVinoBackend(HostBackend):
    """One loaded bundle. See `Backend` for the methods.

    Args:
        bundle: A checked bundle for the CPU.
        max_context: The most positions.
        threads: Processor threads, by default all.
        settings: Device and number formats.
        slots: How many answers at once, or `auto`.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: The device is not there, or OpenVINO cannot run the bundle's networks.
        UsageError: More slots were asked for than the memory holds.
    """

    def __init__(
        self,
        bundle: Bundle,
        max_context: int,
        threads: int | None = None,
        settings: OpenVinoSettings | None = None,
        slots: int | str = 1,
    ) -> None:
        self.slots = host_slots(bundle.manifest, max_context, slots, takes_rows=True)  # a request each: of any export
        self._slot = 0
        self._settings = settings or OpenVinoSettings()
        check_networks(bundle)
        super().__init__(bundle, max_context, threads)
        self._load()

    def _load(self) -> None:
        """Compile the networks as the settings say."""
        self._networks = Networks(self._bundle, self._settings, self._threads)
        self._vision = self._networks.plain("vision")
        self._projector = self._networks.plain("projector")
        decoder = self._networks.decoder()
        self._requests: list[Any] = [decoder.create_infer_request() for _ in range(self.slots.number)]
        self._inputs = {name for port in self._decoder.model_inputs for name in port.get_names()}
        self._lengths = [0] * self.slots.number
        """Positions that the states of each slot hold."""

    def stop_rounding(self) -> bool:
        """Compile the networks once more, in fp32; one set at a time."""
        if (self._settings.precision, self._settings.chosen_kv_cache) == ("fp32", "fp32"):
            return False
        self._settings = replace(self._settings, precision="fp32", kv_cache="auto")
        self._vision = self._projector = None
        self._requests = []
        self._load()
        return True

    @property
    def description(self) -> str:
        settings = self._settings
        where = self._threads_text if settings.chosen_device == "CPU" else ""
        parts = f"OpenVINO {self._networks.version}", settings.chosen_device, where, f"precision {settings.precision}"
        return ", ".join(part for part in (*parts, f"cache {settings.chosen_kv_cache}") if part)

    # -- slots ------------------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        return self.slots.number

    def select_slot(self, slot: int) -> None:
        assert 0 <= slot < self.slots.number, f"Bug: slot {slot} of {self.slots.number}"
        self._slot = slot

    @property
    def _decoder(self) -> Any:
        return self._requests[self._slot]

    @property
    def _length(self) -> int:
        return self._lengths[self._slot]

    @_length.setter
    def _length(self, length: int) -> None:
        self._lengths[self._slot] = length

    def _run_vision_tower(self, tile: Array) -> Array:
        return self._run(self._vision, tile.astype(self._vision_type, copy=False))

    def _project(self, patches: Array) -> Array:
        return self._run(self._projector, patches)

    def _run(self, network: Any, values: Array) -> Array:
        try:
            output: Array = network([values])[0].copy()
        except Exception as error:  # openvino raises RuntimeError and its own
            raise BackendError(
                f"OpenVINO failed while running a network: {reason_of(error)}. Run: varco doctor"
            ) from None
        return output

    # -- prompts ------------------------------------------------------------------------------------------------------

    def prefill(self, inputs: PromptInputs, start: int, num_logits: int = 1) -> Array:
        if 2 * start < len(inputs.ids) and self._is_text(inputs, start):
            start = 0
        return self._prefill(inputs, start, num_logits, CHUNK_TOKENS)

    @staticmethod
    def _is_text(inputs: PromptInputs, end: int) -> bool:
        """Return whether tokens alone stand before `end`: rows of media that are in the cache need not be there."""
        return bool((inputs.rows(0, end) < 0).all() and (inputs.ids[:end] != inputs.image_token_id).all())

    # -- steps --------------------------------------------------------------------------------------------------------

    def decode_step(self, token_id: int, position: int) -> Array:
        row: Array = self.decode_steps((token_id,), position)[0]
        return row

    def decode_steps(self, token_ids: Sequence[int], position: int) -> Array:
        num_tokens = len(token_ids)
        assert 1 <= num_tokens <= MAX_STEP_TOKENS, f"Bug: a step of {num_tokens} tokens"
        check_length(position + num_tokens, self._max_context)
        return self._run_decoder(self._embedding.rows(np.array(token_ids))[None], position, num_tokens)

    def _run_decoder(self, embeds: Array, position: int, num_logits: int) -> Array:
        """Append rows from `position` on and return the last `num_logits` logits, `[num_logits, vocab]` fp32."""
        end = position + embeds.shape[1]
        feeds = {
            "inputs_embeds": embeds.astype(self._decoder_type, copy=False),
            "total_sequence_length": np.array(end, np.int32),
            "num_logits": np.array([num_logits], np.int64),
            BEAM_INPUT: np.zeros(1, np.int32),
        }
        try:
            self._rewind(position)
            self._decoder.infer({name: value for name, value in feeds.items() if name in self._inputs})
            logits: Array = self._decoder.get_tensor("logits").data[0].copy()
        except Exception as error:  # openvino raises RuntimeError and its own; some states may have grown, some not
            self._restore(position)
            raise BackendError(
                f"OpenVINO failed while running the decoder: {reason_of(error)}. Run: varco doctor"
            ) from None
        self._length = end
        return logits

    # -- states -------------------------------------------------------------------------------------------------------

    def copy_prefix(self, num_positions: int) -> Array:
        """`[2 * layers, key/value heads, num_positions, head_dim]`, key and value of each layer in turn."""
        assert num_positions <= self._length, f"Bug: a copy of {num_positions} positions of {self._length}"
        return np.stack([state.state.data[0, :, :num_positions] for state in self._states()])

    def restore_prefix(self, prefix: Array) -> None:
        for state, kept in zip(self._states(), prefix, strict=True):
            state.state = self._networks.tensor(np.ascontiguousarray(kept[None]))
        self._length = prefix.shape[2]

    def _rewind(self, position: int) -> None:
        """Forget what stands from `position` on."""
        assert position <= self._length, f"Bug: position {position} follows {self._length} positions"
        if position == 0:
            self._forget()
        elif position < self._length:
            self.restore_prefix(self.copy_prefix(position))

    def _restore(self, position: int) -> None:
        """Bring all states back to the positions that they had before a failed run."""
        try:
            self.restore_prefix(self.copy_prefix(position))
        except Exception:  # whatever is wrong with the device: the run's own error is told
            self._forget()

    def _forget(self) -> None:
        self._decoder.reset_state()
        self._length = 0

    def _states(self) -> list[Any]:
        """Return the states in the order of `cache_names`; OpenVINO lists them in an order of its own."""
        by_name = {state.name: state for state in self._decoder.query_state()}
        return [by_name[name] for name in state_names(self._model.num_layers)]


def check_networks(bundle: Bundle) -> None:
    """Check that OpenVINO runs a bundle's networks.

    Raises:
        BackendError: It does not: it is for a GPU, or keeps its cache in int8.
    """
    manifest = bundle.manifest
    if manifest.device != "cpu":
        raise BackendError(
            f"OpenVINO runs bundles for the CPU, this one was exported for {manifest.device}. Make another with: varco "
            "export CHECKPOINT BUNDLE --device cpu"
        )
    if manifest.kv_format != manifest.decoder.compute:
        raise BackendError(
            f"OpenVINO rounds a cache itself (kv_cache_precision='u8'), this bundle's is in {manifest.kv_format}. Load "
            "the bundle with provider='cpu', or make another with a plain cache: varco export CHECKPOINT BUNDLE"
        )
