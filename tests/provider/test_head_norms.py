"""Norms of the heads of q and k, as Qwen3 has them: in the attention's own node, beside nodes of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from tests.provider.conftest import A100, H200, QWEN3, QWEN3_PAIRS, T4, Case, Observed, require_provider
from tests.provider.kernel_families import families
from tests.provider.scenario import LOAD
from varco_export.dialects.cuda import CudaDialect
from varco_export.dialects.dialect import HeadNorms
from varco_export.options import DIALECTS
from varco_export.reading.tensor import Tensor
from varco_runtime.backend import MAX_STEP_TOKENS

require_provider()

CASES = {
    "XQA of 5": Case("int4", "fp16", H200, QWEN3, note="qwen3"),
    "XQA of 2": Case("int4", "bf16", A100, QWEN3_PAIRS, note="qwen3-pairs"),
    "memory-efficient": Case("fp16", "fp16", T4, QWEN3, note="qwen3"),
}
"""By the kernel that attends for one token."""
LAUNCHES_APART = 3
"""What nodes of their own launch in a layer: a Split and two norms."""


class SeparateNorms(CudaDialect):
    """Norms as nodes of their own, in the form that onnxruntime does not fuse into the attention."""

    def cached_attention(self, qkv: str, layer: int, norms: HeadNorms | None = None) -> str:
        assert norms is not None
        q, k, v = self._split_heads(qkv)
        query, key = (self._normalized(x, weight, norms.epsilon) for x, weight in ((q, norms.query), (k, norms.key)))
        return self._attend([query, key, v], layer)

    def _normalized(self, x: str, weight: Tensor, epsilon: float) -> str:
        heads = self.graph.node("Reshape", [x, self.graph.ints(0, 0, -1, self._heads.head_dim)])
        return self.graph.node("Reshape", [self.rms_norm(heads, weight, epsilon), self.graph.ints(0, 0, -1)])


@pytest.fixture(params=CASES)
def kernel(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def both(
    kernel: str, observe: Callable[[Case], Observed], exported: Callable[[Case], Path]
) -> tuple[Observed, Observed]:
    """A case, and the same with norms as nodes of their own."""
    case = CASES[kernel]
    apart = replace(case, options=(("probes", False),), note=f"{case.note}-apart")  # a bundle beside the other
    with mock.patch.dict(DIALECTS, {"cuda": (SeparateNorms, DIALECTS["cuda"][1])}):
        exported(apart)
    return observe(case), observe(apart)


def test_norms_in_the_attention_leave_its_kernel_as_it_is(kernel: str, both: tuple[Observed, Observed]) -> None:
    for observed in both:
        assert observed.failures == {}
        assert families(observed.sections[LOAD].captures[0]).count(kernel) == QWEN3.num_hidden_layers
    own, apart = (
        [families(capture) for capture in observed.sections[LOAD].captures[:MAX_STEP_TOKENS]] for observed in both
    )
    assert own == apart
    prompts = [families(observed.sections["prompt of 650"].launches) for observed in both]
    assert prompts[0] == prompts[1]


def test_norms_in_the_attention_launch_nothing(both: tuple[Observed, Observed]) -> None:
    own, apart = (observed.sections[LOAD].captures[:MAX_STEP_TOKENS] for observed in both)
    saved = LAUNCHES_APART * QWEN3.num_hidden_layers
    assert [len(two) - len(one) for one, two in zip(own, apart, strict=True)] == [saved] * MAX_STEP_TOKENS
