"""What the translators of OpenVINO's graphs share."""

from __future__ import annotations

from typing import Any

import numpy as np


def ints(*values: int) -> Any:
    """Return a constant of integers `[n]`, int64."""
    from openvino import opset13

    return opset13.constant(np.array(values, np.int64))


def scalar(value: int) -> Any:
    """Return a constant `[]`, int64."""
    from openvino import opset13

    return opset13.constant(np.array(value, np.int64))


def consumers_of(node: Any) -> list[Any]:
    """Return the nodes that take a node's first output."""
    return [port.get_node() for port in node.output(0).get_target_inputs()]
