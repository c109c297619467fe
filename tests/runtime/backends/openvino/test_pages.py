"""Pages in a GPU's memory, on a double with the methods of OpenVINO's remote tensors and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from varco_runtime.backends.openvino.pages import PageLayout, Pages, Rows
from varco_runtime.dtypes import Array

SLOTS, CONTEXT = 3, 70
KEYS, VALUES = [2, 8, 16], [2, 16, 8]
"""Pages of 16 positions, keys by channel, as on a GPU."""


class RemoteTensor:
    """A tensor that the host does not see."""

    def __init__(self, source: Any, begin: list[int] | None = None, end: list[int] | None = None) -> None:
        import openvino

        inner = source._inner if isinstance(source, RemoteTensor) else source
        self._inner = inner if begin is None else openvino.Tensor(inner, begin, end)

    def get_shape(self) -> Any:
        return self._inner.get_shape()

    def get_byte_size(self) -> int:
        return int(self._inner.get_byte_size())

    def copy_to(self, target: Any) -> None:
        self._inner.copy_to(target._inner if isinstance(target, RemoteTensor) else target)


class Context:
    """The context of a device: it gives tensors."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def create_tensor(self, dtype: Any, shape: Any, properties: dict[str, Any]) -> RemoteTensor:
        import openvino

        self.made.append(openvino.Tensor(dtype, shape))
        self.made[-1].data[:] = 0
        return RemoteTensor(self.made[-1])


def decoder(openvino: Any) -> Any:
    """A compiled model whose inputs are the pages of one layer and something else."""
    ops = openvino.opset13
    ports = []
    for name, page in (("past.0.key", KEYS), ("past.0.value", VALUES)):
        ports.append(ops.parameter([-1, *page], np.float16, name))
        ports[-1].output(0).get_tensor().set_names({name})
    other = ops.parameter([1, -1, 4], np.float32, "inputs_embeds")
    other.output(0).get_tensor().set_names({"inputs_embeds"})
    model = openvino.Model([ops.relu(port) for port in [*ports, other]], [*ports, other])
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f16"})


@pytest.fixture
def pages(openvino: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Pages, Context, PageLayout]:
    layout, context = PageLayout(decoder(openvino)), Context()
    copy_to = openvino.Tensor.copy_to

    def copied(self: Any, target: Any) -> None:
        copy_to(self, target._inner if isinstance(target, RemoteTensor) else target)

    monkeypatch.setattr(openvino.Tensor, "copy_to", copied)
    return Pages(openvino, layout, context, SLOTS, CONTEXT), context, layout


def test_a_page_is_as_long_as_its_values(pages: tuple[Pages, Context, PageLayout]) -> None:
    _, context, layout = pages
    assert (layout.positions, layout.num_bytes, layout.format) == (16, 2 * 2 * 16 * 8 * 2, "fp16")
    assert layout.bytes_per_position == 2 * 2 * 8 * 2
    assert [tuple(tensor.shape) for tensor in context.made] == [(15, *KEYS), (15, *VALUES)]


def test_whole_pages_go_to_the_host_and_back(pages: tuple[Pages, Context, PageLayout]) -> None:
    held, context, _ = pages
    rng = np.random.default_rng(0)
    for tensor in context.made:
        tensor.data[:] = rng.standard_normal(tensor.shape)
    before = [np.array(tensor.data) for tensor in context.made]
    kept = held.copy(1, 33)
    held.restore(2, kept)
    held.copy_between(1, 0, 16)
    for tensor, was in zip(context.made, before, strict=True):
        assert np.array_equal(tensor.data[10:13], was[5:8])
        assert np.array_equal(tensor.data[13:], was[13:])
        assert np.array_equal(tensor.data[0], was[5])
        assert np.array_equal(tensor.data[1:10], was[1:10])
    with pytest.raises(AssertionError, match="Bug: a copy of 6 pages, a slot has 5"):
        held.restore(2, np.zeros(2 * len(kept), np.uint8))


def test_a_run_is_told_where_its_sequences_stand(pages: tuple[Pages, Context, PageLayout]) -> None:
    feeds = pages[0].feeds([Rows(2, 15, 2), Rows(0, 16, 1)])
    expected: dict[str, Array] = {
        "position_ids": np.array([15, 16, 16]),
        "past_lens": np.array([15, 16]),
        "subsequence_begins": np.array([0, 2, 3]),
        "block_indices": np.array([10, 11, 0, 1]),
        "block_indices_begins": np.array([0, 2, 4]),
        "max_context_len": np.array(17),
    }
    assert feeds.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(feeds[name], value), name
