"""OpenVINO, where it is installed."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="openvino is not installed")
