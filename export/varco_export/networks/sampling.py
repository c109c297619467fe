"""The draw of the next token, as a graph for a device that holds the logits: `generation/sampling.py` in operators.

Sums and maxima come from CumSum and TopK: the CUDA provider's reductions need cuDNN, which a bundle does without. Its
CumSum adds up everything before each element anew, so sums run in two steps, within blocks and over blocks, which are
some square root of the vocabulary long. No operator takes its indices to the device when it runs (GatherND does, from
memory of the host that a replayed graph would find gone), so every gather is along one axis.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from varco_export.dialects.largest import block_width, infinite_for_nan, infinity, largest
from varco_export.writing.graph import DTYPES, Graph
from varco_runtime.bundle.graph_contract import BATCH

SETTINGS = ("penalty", "temperature", "first", "cut", "min_p", "place")
"""The order of the input `settings` `[6]`; see `varco_runtime.backend.Draw`. `first` is the place of the least score
that top-k keeps, in ascending order: the vocabulary's size less k."""


def emit_sampling(graph: Graph, vocab_size: int, advance: Callable[[], None]) -> None:
    """Emit `logits` `[rows, 1, vocab]`, `seen` bool `[rows, vocab]` and `settings` fp64 `[rows, 6]` to `next_token`
    `[rows, 1]`: a draw for each row.

    The token is -1 where a logit of its row is NaN or the greatest is infinite. Scores are fp32 and sums fp64, as on
    the host.

    Args:
        graph: The graph to write.
        vocab_size: The number of logits.
        advance: Called at the end.
    """
    _Sampling(graph, vocab_size).emit()
    advance()


class _Sampling:
    """The draws in one graph, over `[rows, vocab]`."""

    def __init__(self, graph: Graph, vocab_size: int) -> None:
        self.graph = graph
        self.vocab_size = vocab_size
        self.width = block_width(vocab_size)

    def emit(self) -> None:
        graph, node = self.graph, self.graph.node
        logits = graph.input("logits", "fp32", [BATCH, 1, self.vocab_size])
        seen = graph.input("seen", "bool", [BATCH, self.vocab_size])
        settings = graph.input("settings", "fp64", [BATCH, len(SETTINGS)])
        values = {name: node("Gather", [settings, graph.ints(at)], axis=1) for at, name in enumerate(SETTINGS)}
        # [rows, 1] each

        scores = self._penalized(
            node("Reshape", [logits, graph.ints(-1, self.vocab_size)]), seen, self._cast(values["penalty"], "fp32")
        )
        scaled = node("Div", [scores, self._cast(values["temperature"], "fp32")])
        # Ascending, and equals by their ids, as a stable sort on the host leaves them.
        ascending, ids = self._sorted(scaled)
        masses = self._masses(ascending, values)
        weights = node("ScatterElements", [masses, ids, masses], axis=1)  # by id: every element is written
        best = node("GatherElements", [scores, self._last(ids)], axis=1)
        self._token(weights, values["place"], best)
        graph.output("next_token", "int64", [BATCH, 1])

    def _penalized(self, x: str, seen: str, penalty: str) -> str:
        """Return the logits after the repetition penalty, NaN as plus infinity."""
        node, zero = self.graph.node, self._scalar("zero", 0, np.float32)
        smaller = node("Where", [node("Less", [x, zero]), node("Mul", [x, penalty]), node("Div", [x, penalty])])
        x = node("Where", [seen, smaller, x])
        return infinite_for_nan(self.graph, x, np.float32)

    def _masses(self, ascending: str, values: dict[str, str]) -> str:
        """Return probabilities, each times one number, of what top-k, top-p and min-p leave; 0 elsewhere. fp64."""
        node, zero = self.graph.node, self._scalar("zero", 0, np.float32)
        least = node("GatherElements", [ascending, self._cast(values["first"], "int64")], axis=1)
        powers = node("Exp", [node("Sub", [ascending, self._last(ascending)])])  # the greatest is 1
        powers = node("Where", [node("GreaterOrEqual", [ascending, least]), powers, zero])
        masses = self._cast(powers, "fp64")
        sums = self._running_sums(masses)
        removed = node("Mul", [self._last(sums), values["cut"]])
        kept = node("Greater", [sums, removed])
        kept = node("And", [kept, node("GreaterOrEqual", [powers, self._cast(values["min_p"], "fp32")])])
        return node("Where", [kept, masses, self._scalar("zero_mass", 0, np.float64)])

    def _token(self, weights: str, place: str, best: str) -> None:
        """Make `next_token`: the first id at which the sum of the weights so far is beyond `place` of the whole.

        It is -1 where `best`, the largest score, is infinite or NaN.
        """
        graph, node, num_blocks = self.graph, self.graph.node, self.vocab_size // self.width
        within, before = self._block_sums(weights)
        upto = node("Add", [before, self._last(within, axis=2)])  # [rows, blocks, 1]
        upto = node("Reshape", [upto, graph.ints(-1, num_blocks)])
        target = node("Mul", [self._last(upto), place])  # [rows, 1]
        block = self._first(node("Greater", [upto, target]))  # [rows, 1]
        at = node("Reshape", [block, graph.ints(-1, 1, 1)])
        in_block = node("Add", [at, graph.constant("columns", np.zeros((1, 1, self.width), np.int64))])
        sums = node(
            "Add",
            [
                node("GatherElements", [before, at], axis=1),
                node("GatherElements", [within, in_block], axis=1),
            ],
        )  # [rows, 1, width]
        sums = node("Reshape", [sums, graph.ints(-1, self.width)])
        column = self._first(node("Greater", [sums, target]))
        token = node("Add", [node("Mul", [block, graph.ints(self.width)]), column])
        below = node("Less", [best, infinity(self.graph, np.float32)])
        above = node("Greater", [best, self._scalar("minus_infinity", -np.inf, np.float32)])
        node("Where", [node("And", [below, above]), token, graph.ints(-1)], output="next_token")

    # -- sums and searches ------------------------------------------------------------------------------------------

    def _running_sums(self, x: str) -> str:
        """Return the sum of everything in its row up to each element `[rows, vocab]`."""
        sums = self.graph.node("Add", list(self._block_sums(x)))
        return self.graph.node("Reshape", [sums, self.graph.ints(-1, self.vocab_size)])

    def _block_sums(self, x: str) -> tuple[str, str]:
        """Return x in blocks: running sums within each `[rows, blocks, width]`, and the sum of all before it
        `[rows, blocks, 1]`."""
        graph, node = self.graph, self.graph.node
        blocks = node("Reshape", [x, graph.ints(-1, self.vocab_size // self.width, self.width)])
        axes = {axis: graph.constant(f"axis_{axis}", np.array(axis, np.int64)) for axis in (1, 2)}
        within = node("CumSum", [blocks, axes[2]])
        before = node("CumSum", [self._last(within, axis=2), axes[1]], exclusive=1)
        return within, before

    def _last(self, x: str, axis: int = 1) -> str:
        """Return the last element along an axis, which stays, of length 1."""
        return self.graph.node("Gather", [x, self.graph.ints(-1)], axis=axis)

    def _sorted(self, x: str) -> tuple[str, str]:
        """Return each row of x in ascending order, and the place of each element in it."""
        values, places = self.graph.value("ascending"), self.graph.value("ids")
        count = self.graph.ints(self.vocab_size)
        self.graph.multi_node("TopK", [x, count], [values, places], axis=-1, largest=0, sorted=1)
        return values, places

    def _first(self, truths: str) -> str:
        """Return where the first truth stands in each row of `[rows, n]`: of equals, TopK takes the first."""
        return largest(self.graph, self._cast(truths, "fp32"))[1]

    def _cast(self, x: str, dtype: str) -> str:
        return self.graph.node("Cast", [x], to=DTYPES[dtype][0])

    def _scalar(self, name: str, value: float, dtype: type[np.floating]) -> str:
        return self.graph.constant(name, np.array(value, dtype))
