"""All decode steps of a bundle on CUDA, each made when it is first taken, and the choices of tokens behind them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from varco_runtime.backend import GREEDY, MAX_STEP_TOKENS, Draw
from varco_runtime.backends.cuda.cache import KeyValueCaches
from varco_runtime.backends.cuda.graphs import Graphs
from varco_runtime.backends.cuda.memory import MAX_FURTHER_GRAPHS
from varco_runtime.backends.cuda.sampling import SamplingStep
from varco_runtime.backends.cuda.session import Buffer, Device, Network
from varco_runtime.backends.cuda.step import DecodeStep, TokenRows
from varco_runtime.backends.prompt_runs import check_length
from varco_runtime.backends.token_checks import check_chosen, check_tokens, not_finite
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.dtypes import Array
from varco_runtime.errors import BackendError

NO_TOKEN = -1
"""The device's choice among logits that are not finite."""


class Steps:
    """The steps, their graphs, and the draws.

    Args:
        device: Where they run.
        decoder: The decoder.
        draw: The draw of tokens.
        manifest: The bundle's.
        caches: The slots.
        image_tokens: The buffer of media, which steps bind and do not read.
        token_rows: Rows of tokens, for a decoder that does not hold them.
        draw_takes_rows: Whether the draw is for several rows; that of earlier exports is for one.
    """

    def __init__(
        self,
        device: Device,
        decoder: Network,
        draw: Network,
        manifest: Manifest,
        caches: KeyValueCaches,
        image_tokens: Buffer,
        token_rows: TokenRows | None,
        draw_takes_rows: bool,
    ) -> None:
        self._device, self._decoder, self._draw, self._manifest = device, decoder, draw, manifest
        self._caches, self._image_tokens, self._token_rows = caches, image_tokens, token_rows
        self._draw_takes_rows = draw_takes_rows
        self.graphs = Graphs(device, MAX_STEP_TOKENS * len(caches.bands) + MAX_FURTHER_GRAPHS)
        self._steps: dict[tuple[int, int], DecodeStep] = {}
        """By numbers of rows and of tokens."""
        self._draws: dict[int, SamplingStep] = {}
        """By number of rows."""
        self.sampling(1)

    def step(self, num_tokens: int, num_rows: int = 1) -> DecodeStep:
        """Return the step of so many tokens in so many rows, made when it is first taken."""
        assert 1 <= num_tokens <= MAX_STEP_TOKENS, f"Bug: a step of {num_tokens} tokens"
        key = num_rows, num_tokens
        if key not in self._steps:
            self._steps[key] = DecodeStep(
                self._device,
                self._decoder,
                self._manifest,
                self._caches,
                self.graphs,
                self._image_tokens,
                self._token_rows,
                num_tokens,
                num_rows,
            )
        return self._steps[key]

    def sampling(self, num_rows: int) -> SamplingStep:
        """Return the draw from the logits of so many rows, made when it is first taken."""
        if num_rows not in self._draws:
            logits = self.step(1, num_rows).logits_buffer
            self._draws[num_rows] = SamplingStep(self._device, self._draw, logits, self._draw_takes_rows)
        return self._draws[num_rows]

    def run(self, token_ids: Sequence[int], position: int, slot: int = 0) -> DecodeStep:
        """Put tokens into a slot from `position` on, and return the step, which tells what comes of it."""
        end = position + len(token_ids)
        check_length(end, self._caches.max_context)
        check_tokens(min(token_ids), max(token_ids), self._manifest.model.vocab_size)
        self._caches.reach(end, position, slot)
        step = self.step(len(token_ids))
        step.run(token_ids, (position,), slot)
        return step

    def run_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> DecodeStep:
        """Put a token into each of the first slots, and return the step, which tells what comes of it."""
        num_rows = len(token_ids)
        assert 1 <= num_rows == len(positions) <= self._caches.num_slots, f"Bug: {num_rows} rows"
        check_length(max(positions) + 1, self._caches.max_context)
        check_tokens(min(token_ids), max(token_ids), self._manifest.model.vocab_size)
        for slot, position in enumerate(positions):
            self._caches.reach(position + 1, position, slot)
        step = self.step(1, num_rows)
        step.run(token_ids, positions)
        return step

    def logits_of_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> Array:
        """See `BatchingBackend.decode_rows`. A slot whose logits are not finite is cleared."""
        logits = self.run_rows(token_ids, positions).logits()
        for slot in np.flatnonzero(~np.isfinite(logits[:, 0])):
            self._caches.clear(int(slot))
        return logits

    def choices_of_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], draws: Sequence[Draw | None]
    ) -> list[int | Array | BackendError]:
        """See `ChoosesRows.decode_chosen_rows`."""
        step = self.run_rows(token_ids, positions)
        if all(draw is None or draw is GREEDY for draw in draws):
            chosen = step.chosen()
        else:
            chosen = self.sampling(len(token_ids)).run([draw or GREEDY for draw in draws])
        logits = step.logits() if None in draws else None
        outcomes: list[int | Array | BackendError] = []
        for slot, (token, draw) in enumerate(zip(chosen, draws, strict=True)):
            try:
                self.checked([token], positions[slot], slot)
                outcomes.append(token if draw is not None or logits is None else logits[slot])
            except BackendError as error:
                outcomes.append(error)
        return outcomes

    def checked(self, tokens: list[int], position: int, slot: int) -> list[int]:
        """Return what the device chose after `position` in a slot, and the positions behind it.

        Raises:
            BackendError: The logits are not finite, or a token does not exist. The slot is cleared of what is not
                finite.
        """
        if NO_TOKEN in tokens:
            self._caches.clear(slot)
            raise not_finite(position + tokens.index(NO_TOKEN), self._manifest.overflow_advice)
        for token in tokens:
            check_chosen(token, self._manifest.model.vocab_size)
        return tokens
