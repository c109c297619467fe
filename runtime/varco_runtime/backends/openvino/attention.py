"""The decoder's attention as OpenVINO runs it over pages: GroupQueryAttention as its PagedAttention.

OpenVINO translates ONNX Runtime's GroupQueryAttention to pieces that its plugin does not put together again. So the
node is translated here to the operator by which OpenVINO's own server attends (`PagedAttentionExtension`). Keys and
values lie in pages of a few positions, which belong to the caller: a run is told where each sequence's pages are and
how many positions they hold. Rows of several sequences stand behind each other in one run.

The operator is not part of an operator set of OpenVINO and has no promise to stay as it is: its inputs are those of
2026.4, which is why `pyproject.toml` bounds the version. Rotary positions become one node too, where the halves come
from `VariadicSplit`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varco_runtime.backends.openvino.nodes import ints, scalar
from varco_runtime.bundle.manifest import ModelFacts, cache_names

PAST_LENGTHS = "past_lens"
"""Positions that each sequence has before the run, int32 `[sequences]`."""
LONGEST = "max_context_len"
"""Positions of the longest sequence after the run, int32 `[]`."""
ROW_STARTS, PAGES, PAGE_STARTS = "subsequence_begins", "block_indices", "block_indices_begins"
"""Where each sequence's rows and pages begin, int32 `[sequences + 1]`, and the pages of all, int32 `[pages]`."""
POSITIONS = "position_ids"
"""The position of each row, int64 `[rows]`."""
_RENAMED = {"seqlens_k": PAST_LENGTHS, "total_sequence_length": LONGEST}
"""Inputs of a bundle's graph, which have the types and dimensions of these two."""
_ADDED = {6: ROW_STARTS, 7: PAGES, 8: PAGE_STARTS}
"""Inputs of the operator that a bundle's graph has not."""
_QUERY, _KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _LENGTHS, _TOTAL, _COS, _SIN = range(9)
"""Inputs of GroupQueryAttention. Where queries, keys and values come as one, that is the first, and two are empty."""


class PagedAttention:
    """Translator of the GroupQueryAttention nodes of one decoder.

    Args:
        model: The shape of the decoder.
    """

    def __init__(self, model: ModelFacts) -> None:
        from openvino import opset13

        self._ops: Any = opset13
        self._model = model
        self._heads, self._kv_heads = model.num_attention_heads, model.num_key_value_heads
        self._head_dim = model.head_dim
        self._layers: list[Any] = []
        """The operator of each layer."""
        self._tables: tuple[Any, Any] | None = None
        """Rows of cosines and sines `[1, 1, rows, D / 2]`, which all layers share."""
        self._positions: Any = None

    def extension(self) -> Any:
        """Return what a `Core` is told so that it translates the nodes by this object."""
        from openvino.frontend.onnx import ConversionExtension

        return ConversionExtension("GroupQueryAttention", "com.microsoft", self.translate)

    def translate(self, node: Any) -> list[Any]:
        """Return attention `[1, rows, heads * D]` of one node, and its present keys and values, which are its past."""
        ops = self._ops
        if self._tables is None:
            self._positions = ops.convert(node.get_input(_LENGTHS), "i64")  # until `take_pages` gives it the positions
            self._tables = self._rows_of(node.get_input(_COS)), self._rows_of(node.get_input(_SIN))
        q, k, v = self._parts(node)
        rows = [self._rotated(q), self._rotated(k), v]
        caches = [node.get_input(_PAST_KEY), node.get_input(_PAST_VALUE)]
        lengths, longest = node.get_input(_LENGTHS), node.get_input(_TOTAL)
        # Three of the four stand in for inputs that the graph gets in `take_pages`.
        seen = self._attention([*map(self._flat, rows), *caches, *[lengths] * 4], longest)
        merged = ops.reshape(seen.output(0), ints(1, -1, self._heads * self._head_dim), special_zero=False)
        present = [ops.concat([cache], 2).output(0) for cache in caches]
        return [merged.output(0), *present]

    def take_pages(self, decoder: Any) -> None:
        """Give a decoder that was read with this translator the inputs of paged attention, and pages for its caches.

        Args:
            decoder: The `openvino.Model`. Its outputs but the logits go: a run writes into its inputs' pages.
        """
        from openvino import PartialShape, Type

        for result in list(decoder.get_results()):
            if "logits" not in result.input_value(0).get_names():
                decoder.remove_result(result)
        by_name = {name: port.get_node() for port in decoder.inputs for name in port.get_names()}
        for name in cache_names(self._model.num_layers):
            pages = by_name[f"past.{name}"]
            pages.set_element_type(Type.dynamic)  # the device's plugin says which, and in which shape
            pages.set_partial_shape(PartialShape([-1] * 4))
        for name, new_name in _RENAMED.items():
            by_name[name].output(0).get_tensor().set_names({new_name})
        added = {name: self._input(name, np.int32) for name in _ADDED.values()}
        for layer in self._layers:
            for index, name in _ADDED.items():
                layer.input(index).replace_source_output(added[name].output(0))
        positions = self._input(POSITIONS, np.int64)
        self._positions.input(0).replace_source_output(positions.output(0))
        decoder.add_parameters([*added.values(), positions])
        self._layers, self._tables, self._positions = [], None, None  # they would hold all weights as they were read
        decoder.validate_nodes_and_infer_types()

    def _attention(self, rows_caches_and_lengths: list[Any], longest: Any) -> Any:
        """Return the operator of one layer.

        Args:
            rows_caches_and_lengths: Queries, keys and values `[rows, heads * D]`, the caches of both, and four inputs
                that say whose the rows and pages are.
            longest: Positions of the longest sequence after the run.
        """
        from openvino.op import _PagedAttentionExtension

        dtype = rows_caches_and_lengths[0].get_element_type().to_dtype()
        scale = self._ops.constant(np.array(self._head_dim**-0.5, dtype)).output(0)
        number = self._empty(np.int32, ())
        no_floats, no_numbers = self._empty(dtype, (0,)), self._empty(np.int32, (0,))
        inputs = [
            *rows_caches_and_lengths,
            scale,
            *(number, no_floats),  # no window that slides; no slopes of ALiBi
            longest,
            *(no_numbers, no_numbers, no_numbers, no_floats),  # no scores given out; no rotation of what is kept
            *(no_floats, number, number),  # no XAttention
            self._empty(dtype, (0, 0, 0, 0)),  # no sinks
            *(number, no_numbers, no_numbers, no_numbers),  # no eviction
            no_numbers,  # no types of tokens
            *(self._empty(np.uint8, (0,)), no_numbers),  # no bias between rows
        ]
        layer = _PagedAttentionExtension(inputs)
        facts = layer.get_rt_info()
        facts["num_k_heads"] = facts["num_v_heads"] = self._kv_heads
        facts["k_head_size"] = facts["v_head_size"] = self._head_dim
        self._layers.append(layer)
        return layer

    def _parts(self, node: Any) -> list[Any]:
        """Return queries, keys and values `[1, heads, rows, D]` of a node that has them as one, or each by itself."""
        counts = [self._heads, self._kv_heads, self._kv_heads]
        first = node.get_input(_QUERY)
        width = first.get_partial_shape()[-1]
        if width.is_static and width.get_length() == self._heads * self._head_dim:
            inputs = [first, node.get_input(_KEY), node.get_input(_VALUE)]
            return [self._by_heads(x, count).output(0) for x, count in zip(inputs, counts, strict=True)]
        split = self._ops.variadic_split(self._by_heads(first, sum(counts)), scalar(1), ints(*counts))
        return list(split.outputs())

    def _by_heads(self, x: Any, count: int) -> Any:
        """Return x `[1, rows, heads * D]` as `[1, heads, rows, D]`."""
        split = self._ops.reshape(x, ints(0, 0, count, self._head_dim), special_zero=True)
        return self._ops.transpose(split, ints(0, 2, 1, 3))

    def _rows_of(self, table: Any) -> Any:
        return self._ops.unsqueeze(self._ops.gather(table, self._positions, scalar(0)), ints(0, 1))

    def _rotated(self, x: Any) -> Any:
        """Return x `[1, heads, rows, D]` with its first half and its second half turned by each position's angles."""
        assert self._tables is not None, "Bug: no rotary tables"
        ops, half, (cos, sin) = self._ops, self._head_dim // 2, self._tables
        halves = ops.variadic_split(x, scalar(3), ints(half, half))
        first, second = halves.output(0), halves.output(1)
        turned = [
            ops.subtract(ops.multiply(first, cos), ops.multiply(second, sin)),
            ops.add(ops.multiply(second, cos), ops.multiply(first, sin)),
        ]
        return ops.concat(turned, -1).output(0)

    def _flat(self, x: Any) -> Any:
        """Return x `[1, heads, rows, D]` as `[rows, heads * D]`."""
        width = x.get_partial_shape()[1].get_length() * self._head_dim
        rows = self._ops.transpose(x, ints(0, 2, 1, 3))
        return self._ops.reshape(rows, ints(-1, width), special_zero=False).output(0)

    def _input(self, name: str, dtype: type) -> Any:
        parameter = self._ops.parameter([-1], dtype, name)
        parameter.output(0).get_tensor().set_names({name})
        return parameter

    def _empty(self, dtype: Any, shape: tuple[int, ...]) -> Any:
        """Return nothing, or a zero: how the operator is told to leave something out."""
        return self._ops.constant(np.zeros(shape, dtype)).output(0)
