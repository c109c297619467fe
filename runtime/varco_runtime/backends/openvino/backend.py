"""A bundle for the CPU on OpenVINO.

Keys and values lie in pages, and a run is told which pages its sequences have and how far they are filled. So going
back costs nothing, a chunk of a prompt behind others runs as fast as one without, and a step of several answers is one
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.backends.host import HostBackend
from varco_runtime.backends.openvino.network import Networks, reason_of
from varco_runtime.backends.openvino.pages import PageLayout, Rows
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.backends.prompt_runs import check_length
from varco_runtime.backends.slots import host_slots
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.errors import BackendError, VarcoError

CHUNK_TOKENS = 512
"""Prompt positions per run: as fast as a prompt in one piece, and 4,096 of them in one take 480 MB more at 0.5B."""


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
        self._asked_slots = slots
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
        self._layout = PageLayout(decoder)
        # Of any export: slots are this runtime's pages, not the graph's.
        self.slots = host_slots(
            self._bundle.manifest, self._max_context, self._asked_slots, True, self._layout.bytes_per_position
        )
        self._decoder, self._pages = self._networks.request(decoder, self._layout, self.slots.number, self._max_context)

    def stop_rounding(self) -> bool:
        """Compile the networks once more, in fp32; one set at a time."""
        settings = self._settings
        if (settings.precision, settings.chosen_kv_cache) == ("fp32", "fp32"):
            return False
        self._asked_slots = self.slots.number
        self._settings = replace(settings, precision="fp32", kv_cache="auto")
        del self._vision, self._projector, self._decoder, self._pages
        try:
            self._load()
        except VarcoError:
            self._settings = settings  # which it could load before
            self._load()
            raise
        return True

    @property
    def description(self) -> str:
        settings = self._settings
        where = self._threads_text if settings.chosen_device == "CPU" else ""
        parts = f"OpenVINO {self._networks.version}", settings.chosen_device, where, f"precision {settings.precision}"
        return ", ".join(part for part in (*parts, f"cache {self._layout.format}") if part)

    # -- slots ------------------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        return self.slots.number

    def select_slot(self, slot: int) -> None:
        assert 0 <= slot < self.slots.number, f"Bug: slot {slot} of {self.slots.number}"
        self._slot = slot

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
        return self._prefill(inputs, start, num_logits, CHUNK_TOKENS)

    # -- steps --------------------------------------------------------------------------------------------------------

    def decode_step(self, token_id: int, position: int) -> Array:
        row: Array = self.decode_steps((token_id,), position)[0]
        return row

    def decode_steps(self, token_ids: Sequence[int], position: int) -> Array:
        num_tokens = len(token_ids)
        assert 1 <= num_tokens <= MAX_STEP_TOKENS, f"Bug: a step of {num_tokens} tokens"
        check_length(position + num_tokens, self._max_context)
        return self._run_decoder(self._embedding.rows(np.array(token_ids))[None], position, num_tokens)

    def decode_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> Array:
        num_rows = len(token_ids)
        assert 1 <= num_rows == len(positions) <= self.num_slots, f"Bug: {num_rows} rows of {self.num_slots} slots"
        check_length(max(positions) + 1, self._max_context)
        rows = [Rows(slot, position, 1) for slot, position in enumerate(positions)]
        return self._run_rows(self._embedding.rows(np.array(token_ids))[None], rows, num_rows)

    def _run_decoder(self, embeds: Array, position: int, num_logits: int) -> Array:
        return self._run_rows(embeds, [Rows(self._slot, position, embeds.shape[1])], num_logits)

    def _run_rows(self, embeds: Array, sequences: Sequence[Rows], num_logits: int) -> Array:
        """Run the rows `[1, n, D]` of some sequences, one behind the other; return the last logits."""
        feeds = self._pages.feeds(sequences) | {
            "inputs_embeds": embeds.astype(self._decoder_type, copy=False),
            "num_logits": np.array([num_logits], np.int64),
        }
        try:
            self._decoder.infer(feeds)
            logits: Array = self._decoder.get_tensor("logits").data[0].copy()
        except Exception as error:  # openvino raises RuntimeError and its own
            raise BackendError(
                f"OpenVINO failed while running the decoder: {reason_of(error)}. Run: varco doctor"
            ) from None
        return logits

    # -- keys and values ----------------------------------------------------------------------------------------------

    @property
    def prefix_bytes_per_position(self) -> int:
        return self._layout.bytes_per_position

    def copy_prefix(self, num_positions: int) -> Array:
        return self._pages.copy(self._slot, num_positions)

    def restore_prefix(self, prefix: Array) -> None:
        self._pages.restore(self._slot, prefix)

    def copy_from_slot(self, slot: int, num_positions: int) -> None:
        self._pages.copy_between(slot, self._slot, num_positions)

    def reserve_memory(self) -> None:
        self._pages.reserve()


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
