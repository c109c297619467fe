"""Pixels to what the vision tower sees, as a graph: `varco_runtime.picture.tiles.normalize` on the device.

A pixel of a tile is one byte and a value of `pixel_values` four, so the device is sent a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from varco_export.writing.graph import DTYPES, Graph, Shape
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.picture.tiles import LEVELS, level_tables


def emit_pixels(graph: Graph, settings: ImageSettings, advance: Callable[[], None]) -> None:
    """Emit `tiles` uint8 `[T, 3, S, S]` to `pixel_values` fp32 of the same shape: a look-up, as on the host.

    Args:
        graph: The graph to write.
        settings: The size of a tile, and how its pixels are normalized.
        advance: Called at the end.
    """
    shape: Shape = ["tiles", 3, settings.tile_px, settings.tile_px]
    table = graph.constant("levels", level_tables(settings).reshape(-1))
    offsets = graph.constant("offsets", (np.arange(3, dtype=np.int32) * LEVELS)[:, None, None])
    levels = graph.node("Cast", [graph.input("tiles", "uint8", shape)], to=DTYPES["int32"][0])
    graph.node("Gather", [table, graph.node("Add", [levels, offsets])], output="pixel_values", axis=0)
    graph.output("pixel_values", "fp32", shape)
    advance()
