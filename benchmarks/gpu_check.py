"""One command at a GPU: is every number right, how fast is it beside the device's limits, and what follows.

    python -m benchmarks.gpu_check --out DIR                                     # everything, 8 minutes
    python -m benchmarks.gpu_check --out DIR --provider-archive provider.tar.xz  # onnxruntime-gpu in an archive
    python -m benchmarks.gpu_check --out DIR --steps pairs small                 # some steps, added to what is there
    python -m benchmarks.gpu_check --out DIR --shape tiny --provider cpu         # tries the script itself

It runs from a checkout of which nothing is installed, beside onnxruntime-gpu, torch, transformers and pytest. Steps, in
this order:

    environment    versions, `varco doctor`, the device, and whether CUDA's libraries load
    tokens         a small bundle's answer equals the CPU's, in fp16, int4, FP8 and bf16
    tests          tests/gpu
    products       single products at the 14B's widths against fp64
    int4           the 14B: limits of the device, decoding, drafts, prefill, vision, loop, memory, kernels
    rows           the 14B in int4, several answers at once: steps of 1 to 16 rows, gaps while pictures arrive
    pairs          open questions, each by two models of the 14B's widths that differ in one thing
    precisions     the 14B in FP8 and bf16
    transformers   the same shape by transformers, at one context
    small          the 0.5B shape in int4
    operators      asked for alone: the time of every operator of the 14B, with the bytes that it reads

The first four decide: where one fails nothing is measured after it. Each part of a step runs in a process of its own,
each step has a time limit, and none begins after `--budget-s`. `DIR/gpu_check.json` is written whole after every
figure; the same command goes on where it ended, and measures nothing again without `--again`. Weights are random, so
of the large models only times count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "cli", ROOT / "export", ROOT / "runtime")]

from benchmarks.gpu.names import BUDGET_S, DEFAULT_STEPS, MAX_CONTEXT, STEPS  # noqa: E402 - the checkout is on the path now
from varco_runtime.errors import VarcoError  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run the steps and return the exit status: 1 where nothing could begin, or a step that decides failed."""
    options = _parser().parse_args(arguments)
    options.max_context = MAX_CONTEXT[options.shape]
    try:
        return _run(options)
    except VarcoError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}. Choose another --out or --folder.", file=sys.stderr)
    return 1


def _run(options: argparse.Namespace) -> int:
    from benchmarks.gpu.archive import unpack
    from benchmarks.gpu.refusals import refuse, refuse_missing_packages, refuse_provider

    refuse_missing_packages(options)
    refuse(options)
    if options.provider_archive is not None:
        unpack(options.provider_archive, options.folder / "provider")
    refuse_provider(options.provider)
    from benchmarks.gpu.run import Run  # which imports what was found to be there

    run = Run(options)
    passed = run.all()
    print("\n".join(run.lines()))
    return 0 if passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Check and measure the CUDA path on this GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report, made if need be")
    parser.add_argument("--shape", default="14b", choices=("14b", "tiny"), help="tiny tries the script itself")
    parser.add_argument("--provider", default="cuda", choices=("cuda", "cpu"), help="cpu tries the script itself")
    parser.add_argument("--steps", nargs="+", default=list(DEFAULT_STEPS), choices=STEPS)
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="no step goes on beyond this many seconds")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "varco-gpu-check",
        help="where models are made, and removed after their step",
    )
    parser.add_argument("--provider-archive", type=Path, help="an archive of packages, first of all on the path")
    parser.add_argument("--again", action="store_true", help="measure what is in the report already")
    parser.add_argument("--keep", action="store_true", help="leave the models for the next run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
