"""Make `runtime/varco_runtime/demo_bundle` of `models/varco-tiny`: the bundle that `varco demo` runs.

    python -m tools.demo_bundle [OUT]

int8 throughout, because it has to fit into the package and must run anywhere, with probes, so that `varco verify
--numerics` can be tried on it. An export is reproducible, so a test makes it again and compares every byte; but of the
probes, whose sums differ from processor to processor, which a test runs instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

from varco_export.export import ExportOptions, export
from varco_export.progress import Silent

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "models" / "varco-tiny"
BUNDLE = ROOT / "runtime" / "varco_runtime" / "demo_bundle"
MAX_CONTEXT = 1024
"""The largest picture of this model is 265 tokens."""


def make(out: Path) -> Path:
    """Export the trained checkpoint to the folder `out`, which is replaced if it exists."""
    options = ExportOptions(decoder="int8", vision="int8", max_context=MAX_CONTEXT, probes=True, overwrite=True)
    export(CHECKPOINT, out, options, Silent())
    return out


def main() -> None:
    """Replace the packaged bundle, or write one elsewhere."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLE
    print(make(out))


if __name__ == "__main__":
    main()
