"""A chat template's tree, rewritten so that whatever can loop, grow or take time asks the budget first."""

from __future__ import annotations

from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

MAX_NODES = 10_000
"""Parts of a template's tree. To compile it takes time with the square of them at worst (every `if` copies the names
that were set before it), some two seconds for so many; real templates have hundreds, the longest some 5,000."""


class Meter(NodeTransformer):
    """Put the budget's checks around whatever can loop, grow or take time and is neither a filter nor a test.

    Raises `SecurityError` for a template of more than `MAX_NODES`, or of parts that are not offered.
    """

    def __init__(self) -> None:
        self._num_nodes = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise SecurityError(f"a template of more than {MAX_NODES:,} parts")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's names are jinja2's
        if node.recursive:
            raise SecurityError("recursive loops are not offered")
        self.generic_visit(node)
        node.iter = _filtered(cast("nodes.Expr", node.iter), "_each")
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_guard")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_guard")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Literal(self, node: nodes.Literal) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered(node, "_guard")

    visit_List = visit_Tuple = visit_Dict = visit_Literal  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_guard") if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_Include(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        raise SecurityError("includes, imports and inheritance are not offered")

    visit_Import = visit_FromImport = visit_Extends = visit_Block = visit_Include  # noqa: N815


def _filtered(node: nodes.Expr | None, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node is not None else 1)
