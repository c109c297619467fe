"""What most tests share: tiny checkpoints, their bundles, and a cache folder of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Matrix products of tiny models take several times as long on several threads as on one. Before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from tests.makers.probes import OPTIONS, PRECISIONS
from tests.makers.smollm import make_smollm
from varco_export.export import ExportOptions, export
from varco_export.progress import Silent
from varco_export.tiny import TinyOptions, make_tiny

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Reference material that lies beside the project where it is developed; its tests skip elsewhere."""


def pytest_configure() -> None:
    """What a shell starts in the background ignores the interrupt key, and so would everything that tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def export_bundle(checkpoint: Path, target: Path, **options: object) -> Path:
    """Export quietly, without probes unless asked for, and return the bundle's folder."""
    export(checkpoint, target, ExportOptions(**{"probes": False, **options}), Silent())  # type: ignore[arg-type]
    return target


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or write the user's cache."""
    before = os.environ.get("VARCO_EDGE_CACHE")
    os.environ["VARCO_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["VARCO_EDGE_CACHE"]
    else:
        os.environ["VARCO_EDGE_CACHE"] = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material."""
    if not SHARED.is_dir():
        pytest.skip("the reference material (../shared) is not here")
    return SHARED


@pytest.fixture(scope="session")
def smollm_checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real language weights, 135 million of them, behind a random tower: HF format, fp32, for tests marked `full`."""
    return make_smollm(tmp_path_factory.mktemp("smollm"), shared / "tools")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, four heads over two, untied, HF format, fp32."""
    return make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", TinyOptions(seed=1))


@pytest.fixture(scope="session")
def media_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for several pictures and videos, as llava-hf's."""
    return make_tiny(tmp_path_factory.mktemp("media") / "tiny", TinyOptions(seed=1, video=True))


@pytest.fixture(scope="session")
def media_bundle(media_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`media_checkpoint` for the CPU."""
    return export_bundle(media_checkpoint, tmp_path_factory.mktemp("media") / "bundle", max_context=512)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` exported in fp32."""
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def probe_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that int4 is fine enough for, unlike `tiny_checkpoint`: see `tests.makers.probes`."""
    return make_tiny(tmp_path_factory.mktemp("probes") / "checkpoint", OPTIONS)


@pytest.fixture(scope="session")
def probed(probe_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the bundle of `probe_checkpoint` in a precision, with probes, exported once."""
    folder = tmp_path_factory.mktemp("probed")

    def bundle(precision: str) -> Path:
        target = folder / precision
        return (
            target if target.exists() else export_bundle(probe_checkpoint, target, probes=True, **PRECISIONS[precision])
        )

    return bundle
