"""What `varco quantize` takes, by the width of a model: processor seconds and peak memory of a decoder layer.

    python -m benchmarks.quantize_cost --hidden 5120 --mlp 13824 --kv 1024 --tokens 16384

Makes a checkpoint of one random layer of these widths and quantizes it in a process of its own, calibrated with texts
alone; `--method none` beside it only rotates and copies. Processor seconds hardly depend on what else the machine does.
Give `--tokens` two values to tell what grows with the tokens from what does not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import add_out, finish
from benchmarks.machine import describe_machine
from varco_export.tiny import TinyOptions, make_tiny

NUM_LAYERS = 1
_RUN = """
import sys, torch
from pathlib import Path
from varco_export.quantize import QuantizeOptions, quantize
from varco_export.progress import SILENT
torch.set_num_threads(int(sys.argv[4]))
method, folder = sys.argv[3], Path(sys.argv[2])
quantize(sys.argv[1], folder / "out", QuantizeOptions(method, folder / "texts" if method == "gptq" else None), SILENT)
"""


def measure(given: argparse.Namespace, num_tokens: int) -> dict[str, Any]:
    """Return processor seconds and peak memory of both methods."""
    found: dict[str, Any] = {"tokens": num_tokens}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = TinyOptions(
            num_hidden_layers=NUM_LAYERS,
            num_vision_layers=1,
            hidden_size=given.hidden,
            intermediate_size=given.mlp,
            num_attention_heads=given.hidden // 128,
            num_key_value_heads=given.kv // 128,
            max_position_embeddings=1 << 15,
            dtype="bf16",
        )
        make_tiny(folder / "checkpoint", options)
        (folder / "texts").mkdir()
        line = json.dumps({"prompt": "a b c d e f g h " * 64, "answer": "i j k l m n o p " * 64})
        (folder / "texts" / "calibration.jsonl").write_text("\n".join([line] * (num_tokens // 2048)))
        for method in ("none", "gptq"):
            arguments = [str(folder / "checkpoint"), name, method, str(given.threads)]
            child = subprocess.Popen([sys.executable, "-c", _RUN, *arguments])
            _, status, usage = _wait(child)
            assert status == 0, f"quantize ended with {status}"
            (folder / "out").rename(folder / f"out-{method}")
            found[method] = {
                "user_s": usage.ru_utime,
                "system_s": usage.ru_stime,
                "peak_bytes": usage.ru_maxrss * 1024,
            }
            if method == "gptq":
                report = json.loads((folder / "out-gptq" / "quantization.json").read_text())
                found["calibration_tokens"] = report["calibration_tokens"]
    return found


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, int, resource.struct_rusage]:
    return os.wait4(child.pid, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Processor seconds and peak memory of varco quantize, a layer.")
    parser.add_argument("--hidden", type=int, default=5120)
    parser.add_argument("--mlp", type=int, default=13824)
    parser.add_argument("--kv", type=int, default=1024)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384])
    parser.add_argument("--threads", type=int, default=2)
    add_out(parser)
    given = parser.parse_args(arguments)
    shape = {name: getattr(given, name) for name in ("hidden", "mlp", "kv", "threads")}
    runs = [measure(given, number) for number in given.tokens]
    finish({"machine": describe_machine(), **shape, "num_layers": NUM_LAYERS, "runs": runs}, given.out)


if __name__ == "__main__":
    main()
