"""Bundles, the stub libraries, and what a scenario on them showed."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import export_bundle
from tests.provider.launch_log import Section, read_log
from tests.provider.stub_libraries import COMPILER, build, have_compiler
from varco_export.options import DEFAULT_MAX_CONTEXT
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.backends.cuda.library import PROVIDER
from varco_runtime.bundle.opening import read_manifest

ROOT = Path(__file__).resolve().parents[2]
NUM_LAYERS = 2
MODEL = TinyOptions(
    seed=3,
    num_hidden_layers=NUM_LAYERS,
    hidden_size=1280,
    num_attention_heads=10,
    num_key_value_heads=2,
    intermediate_size=1536,
    vocab_size=2048,
    num_vision_layers=NUM_LAYERS,
    vision_hidden_size=144,
    num_vision_heads=2,
    vision_intermediate_size=160,
)
"""The 14B's head group of 5, heads of 128 and, in the tower, of 72, which decide on kernels, in narrow networks."""
WHOLE_VOCABULARY = TinyOptions(
    seed=3,
    num_hidden_layers=1,
    hidden_size=640,
    num_attention_heads=5,
    num_key_value_heads=1,
    intermediate_size=320,
    vocab_size=152_064,
    vision_hidden_size=144,
    num_vision_heads=2,
    vision_intermediate_size=160,
    dtype="fp16",
)
"""The 14B's vocabulary, whose size decides on the kernels that choose and draw a token."""
HEADS_OF_14B = TinyOptions(
    seed=3,
    num_hidden_layers=1,
    hidden_size=5120,
    num_attention_heads=40,
    num_key_value_heads=8,
    intermediate_size=320,
    vocab_size=1024,
    num_vision_layers=1,
    vision_hidden_size=144,
    num_vision_heads=2,
    vision_intermediate_size=160,
    dtype="fp16",
)
"""Attention as the 14B has it, on whose number of heads its grid depends."""
QWEN3 = replace(MODEL, text="qwen3", patch_size=16)
"""The same with norms of heads instead of biases, as VARCO-VISION 2.0 of 14B has them."""
QWEN3_PAIRS = replace(QWEN3, hidden_size=512, num_attention_heads=4, head_dim=128, tie_word_embeddings=True)
"""A head group of 2, as the 1.7B has it."""
MAX_CONTEXT = 4608
"""More than a run of a prompt holds."""


@dataclass(frozen=True, slots=True)
class Case:
    """A bundle, by the decoder's precision and the type that everything else computes in, on a GPU."""

    decoder: str
    compute: str
    capability: tuple[int, int]
    model: TinyOptions = MODEL
    options: tuple[tuple[str, object], ...] = ()
    """Others of the export's."""
    note: str = ""

    @property
    def name(self) -> str:
        name = f"{self.decoder}-{self.compute}-sm{self.capability[0]}{self.capability[1]}"
        return f"{name}-{self.note}" if self.note else name


T4, A100, H200, B200 = (7, 5), (8, 0), (9, 0), (10, 0)
FAST = (
    *(
        Case(decoder, compute, capability)
        for capability in (A100, H200)
        for compute in ("fp16", "bf16")
        for decoder in (compute, "int8", "int4", "fp8")
    ),
    Case("fp16", "fp16", T4),
    Case("int4", "fp16", T4),
    Case("fp16", "fp16", H200, WHOLE_VOCABULARY, note="whole-vocabulary"),
    Case("int4", "fp16", H200, WHOLE_VOCABULARY, (("lm_head", "int4"),), "whole-vocabulary"),
    Case("int4", "bf16", H200, MODEL, (("embedding", "host"),), "rows-from-host"),
    Case("int4", "fp16", H200, QWEN3, note="qwen3"),
    Case("int4", "fp16", H200, HEADS_OF_14B, (("max_context", DEFAULT_MAX_CONTEXT),), "14b-heads"),
)
"""What the 14B is exported to, on GPUs with every kernel and on one with fewer."""
SLOW = (
    Case("int4", "bf16", H200, MODEL, (("block_size", 64),), "blocks-of-64"),
    Case("int8", "fp16", A100, MODEL, (("block_size", 64),), "blocks-of-64"),
    *(Case("fp16", "fp16", capability, TinyOptions(seed=3), note="narrow-heads") for capability in (T4, H200)),
)
"""What misses a fast kernel, by its settings or its shape."""
CASES = (*FAST, *SLOW)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a scenario asked of CUDA by section, and what it said of itself."""

    case: Case
    bundle: Path
    sections: dict[str, Section]
    description: str
    failures: dict[str, str]
    free_bytes: dict[str, int]
    operators: dict[str, dict[str, int]]

    @property
    def bands(self) -> list[int]:
        """The bands of the caches, in the order in which loading captures their steps."""
        longest = read_manifest(self.bundle).max_context
        return [longest, *(band for band in (4096, 1024) if 2 * band <= longest)]

    def matching(self, prefix: str) -> dict[str, Section]:
        """The sections whose names begin so. There is at least one."""
        found = {name: section for name, section in self.sections.items() if name.startswith(prefix)}
        assert found, f"no section begins with {prefix!r}"
        return found


def params(cases: Iterable[Case]) -> list[Any]:
    """Cases for the fixture `observed`. Tests of a case stay in one process, which runs its scenario once."""
    return [pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(case.name)) for case in cases]


def why_not() -> str | None:
    """Why the provider cannot be tested here, if so."""
    try:
        import onnxruntime
    except ImportError:
        return "no onnxruntime-gpu here; make test-provider brings it"
    if PROVIDER not in onnxruntime.get_available_providers():
        return "the onnxruntime here is the build without CUDA; make test-provider runs these beside it"
    if not have_compiler():
        return f"no {COMPILER} to compile the stub libraries with"
    return None


def require_provider() -> None:
    """Skip a module, one line for its hundreds of tests, where the provider or a compiler is missing."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled stub libraries. A fixture skips as well: a run of skipped modules alone would fail."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("stubs")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """The bundle of a case."""

    @functools.cache
    def checkpoint(model: TinyOptions) -> Path:
        return make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", model)

    @functools.cache
    def bundle(model: TinyOptions, decoder: str, compute: str, more: tuple[tuple[str, object], ...]) -> Path:
        options = {"decoder": decoder, "vision": compute, "max_context": MAX_CONTEXT, **dict(more)}
        return export_bundle(checkpoint(model), tmp_path_factory.mktemp("bundle") / "bundle", device="cuda", **options)

    return lambda case: bundle(case.model, case.decoder, case.compute, case.options)


@pytest.fixture(scope="session")
def run_scenario(
    stubs: Path, exported: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[subprocess.CompletedProcess[str], Path]]:
    """A scenario's process, when it has ended, and its log."""

    def run(case: Case, module: str = "scenario") -> tuple[subprocess.CompletedProcess[str], Path]:
        log = tmp_path_factory.mktemp("log") / "log"
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "runtime", ROOT / "export"))),
            "VARCO_STUB_LOG": str(log),
            "VARCO_STUB_CAPABILITY": "{}{}".format(*case.capability),
        }
        command = [sys.executable, "-m", f"tests.provider.{module}", str(stubs), str(exported(case))]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True), log

    return run


@pytest.fixture(scope="session")
def observe(
    run_scenario: Callable[..., tuple[subprocess.CompletedProcess[str], Path]], exported: Callable[[Case], Path]
) -> Callable[[Case], Observed]:
    """What a case's scenario showed, run once in each process of the tests."""

    @functools.cache
    def run(case: Case) -> Observed:
        done, log = run_scenario(case)
        assert done.returncode == 0, done.stderr
        return Observed(case, exported(case), read_log(log), **json.loads(done.stdout))

    return run


@pytest.fixture(params=params(CASES))
def observed(request: pytest.FixtureRequest, observe: Callable[[Case], Observed]) -> Observed:
    """One case's, for each of them; tests of some cases parametrize it anew."""
    return observe(request.param)
