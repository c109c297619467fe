"""Bundles as earlier exports wrote them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import onnx

from tests.makers.manifests import forge, set_at
from varco_runtime.bundle.graph_contract import BATCH


def without_rows(bundle: Path, folder: Path) -> Path:
    """Copy a bundle to `folder`, its decoder for one sequence alone, as it was before there were slots."""
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    for port in (*model.graph.input, *model.graph.output):
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = 1
    content = model.SerializeToString()
    (folder / "decoder.onnx").write_bytes(content)
    forge(folder, set_at("files/decoder.onnx", {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}))
    return folder
