"""The decoder graphs for CUDA and TensorRT with several rows, on ONNX Runtime's CPU provider: a row as it is alone.

The CPU's own graph is tested through its backend (`cpu/test_rows.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.makers.inputs import close
from varco_runtime.bundle.graph_contract import BATCH

Array = np.ndarray[Any, Any]

LENGTHS = (0, 11, 5, 30)
"""Positions behind which each row puts its token."""
TOKENS = (5, 200, 7, 7)


def decoder(bundle: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(bundle / "decoder.onnx"), options, providers=["CPUExecutionProvider"])


def feeds_of(session: Any, context: int, rows: list[int]) -> dict[str, Array]:
    """Everything that a step of these rows reads; the caches are random, and alike whichever rows run."""
    rng = np.random.default_rng(0)
    lengths = np.array([LENGTHS[row] for row in rows])
    total = int(lengths.max()) + 1
    given: dict[str, Array] = {
        "token_ids": np.array([[TOKENS[row]] for row in rows]),
        "image_rows": np.zeros((len(rows), 1), np.int64),
        "is_image": np.zeros((len(rows), 1, 1), bool),
        "logit_positions": np.zeros(1, np.int64),
        "seqlens_k": lengths.astype(np.int32),
        "total_sequence_length": np.array(total, np.int32),
        "position_ids": lengths[:, None],
        "write_indices": lengths,
        "attention_mask": (np.arange(total) <= lengths[:, None])[:, None, None],
    }
    feeds = {}
    for port in session.get_inputs():
        if port.name in given:
            feeds[port.name] = given[port.name]
        elif port.name.startswith("past."):
            _, heads, _, dim = port.shape
            every = rng.standard_normal((len(LENGTHS), heads, context, dim)).astype(np.float32)
            feeds[port.name] = every[rows]
        elif port.name == "inputs_embeds":
            every = rng.standard_normal((len(LENGTHS), 1, port.shape[2])).astype(np.float32)
            feeds[port.name] = every[rows]
        else:
            assert port.name == "image_tokens"
            feeds[port.name] = np.zeros((1, port.shape[1]), np.float32)
    return feeds


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_rows_of_a_step_are_what_they_are_alone(device: str, request: pytest.FixtureRequest) -> None:
    session = decoder(request.getfixturevalue(f"{device}_bundle"))
    caches = [port.shape for port in session.get_inputs() if port.name.startswith("past.")]
    context = caches[0][2] if isinstance(caches[0][2], int) else 64
    assert {shape[0] for shape in caches} == {BATCH}
    names = [port.name for port in session.get_outputs()]
    everyone = list(range(len(LENGTHS)))
    together = dict(zip(names, session.run(None, feeds_of(session, context, everyone)), strict=True))
    assert together["logits"].shape[:2] == together["next_token"].shape == (len(LENGTHS), 1)
    for row in everyone:
        alone = dict(zip(names, session.run(None, feeds_of(session, context, [row])), strict=True))
        for name, values in alone.items():
            if name == "next_token":
                assert values[0, 0] == together[name][row, 0] == together["logits"][row, 0].argmax()
            elif name == "logits":
                assert close(together[name][row], values[0])
            else:
                end = LENGTHS[row] + 1
                assert close(together[name][row, :, :end], values[0, :, :end]), name
