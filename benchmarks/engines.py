"""What a TensorRT engine of the 14B's decoder takes to build: bytes, memory and time, per layer and as a whole.

    python -m benchmarks.engines                           # slices of one and two layers in int4, fp16 and fp8
    python -m benchmarks.engines --decoder int4 --whole    # all 48 layers, where there is room

Makes a sparse checkpoint of the real shape, writes the decoder's graph, builds its engine for `--sm` with TensorRT for
RTX (no GPU needed), and removes all three. Each step runs in a process of its own. A few random numbers stand at the
head of every weight, for TensorRT stores equal weights once; the rest is zeros, which do not compress here. With
`--whole` the graph's large weights are holes of a sparse file as well.

Peak memory is what the build process owned (RssAnon). The graph's weights are mapped besides: pages that the system
may drop. The ceiling of both size and memory is one copy of the weights. What a layer costs is the difference of the
two slices, and the whole decoder is reckoned from it, unless it is built. Times are of the CPU, since other programs
run beside. Prints a table, ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.document import add_out, finish

MAX_CONTEXT = 10_240
KV_BYTES_PER_TOKEN_AND_LAYER = 2 * 8 * 128 * 2  # keys and values of eight heads of 128 in two bytes
POKED_BYTES = 128
HOLLOW_BYTES = 1 << 20


def main() -> int:
    options = _parser().parse_args()
    if options.child:
        print(json.dumps({"export": _export, "build": _build}[options.child](options)))
        return 0
    from varco_export.engines.builder import Builder

    Builder.load(is_target_named=True)  # where it is missing, nobody waits for a graph first
    options.folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "benchmark": "engines",
        "shape": options.shape,
        "sm": options.sm,
        "max_context": MAX_CONTEXT,
        "python": platform.python_version(),
        "slices": [],
    }
    for decoder in options.decoder:
        for num_layers in (options.whole_layers,) if options.whole else (1, 2):
            folder = Path(tempfile.mkdtemp(prefix="engines-", dir=options.folder))
            try:
                found = _measure(folder, decoder, num_layers, options)
            finally:
                shutil.rmtree(folder)
            report["slices"].append(found)
            _print_slice(found)
    if not options.whole:
        report["whole"] = [_whole(decoder, report["slices"], options.whole_layers) for decoder in options.decoder]
        for found in report["whole"]:
            _print_whole(found)
    finish(report, options.out)
    return 0


def _measure(folder: Path, decoder: str, num_layers: int, options: argparse.Namespace) -> dict[str, Any]:
    make = [sys.executable, "-m", "varco_export.tiny", str(folder / "checkpoint"), "--shape", options.shape]
    make += ["--layers", str(num_layers), "--dtype", "fp16", "--sparse"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    _poke(folder / "checkpoint" / "model.safetensors")
    exported = _child("export", folder, decoder, options)
    (folder / "checkpoint" / "model.safetensors").unlink()
    return {"decoder": decoder, "num_layers": num_layers} | exported | _child("build", folder, decoder, options)


def _poke(path: Path) -> None:
    """Make every tensor different from every other."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for index, tensor in enumerate(header.values()):
            if "data_offsets" in tensor:
                file.seek(8 + size + tensor["data_offsets"][0])
                # fp16 around one: no infinities
                values = bytes(byte & 0x3B if place % 2 else byte for place, byte in enumerate(os.urandom(POKED_BYTES)))
                end = tensor["data_offsets"][1] - tensor["data_offsets"][0]
                file.write((index.to_bytes(2, "little") + values)[:end])


def _child(step: str, folder: Path, decoder: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.engines",
        "--child",
        step,
        "--folder",
        str(folder),
        "--decoder",
        decoder,
    ]
    command += ["--sm", str(options.sm), *(["--whole"] if options.whole else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _export(options: argparse.Namespace) -> dict[str, Any]:
    """The decoder's graph alone."""
    import numpy as np

    from varco_export.checkpoint.checkpoint import Checkpoint
    from varco_export.dialects.tensorrt import OPSET, TensorRtDialect
    from varco_export.networks.decoder import emit_decoder
    from varco_export.precision import gpu_precisions
    from varco_export.writing.graph import DTYPES, Graph

    started = time.perf_counter()

    class HollowGraph(Graph):
        """Large weights as holes in the data file, for a whole network: rounding 14 billion zeros takes an hour."""

        def weight(self, name: str, dtype: str, shape: Any, blocks: Any) -> str:
            num_bytes = math.prod(shape) * DTYPES[dtype][1].itemsize // (2 if dtype == "int4" else 1)
            if name.endswith(".scales"):
                return super().weight(name, dtype, shape, [np.full(shape, 2**-10)])
            if num_bytes < HOLLOW_BYTES:
                return super().weight(name, dtype, shape, blocks)
            super().weight(name, "uint8", (POKED_BYTES,), [np.frombuffer(os.urandom(POKED_BYTES), np.uint8) & 0x3B])
            tensor = self._initializers[name]
            tensor.data_type = DTYPES[dtype][0]
            tensor.dims[:] = shape
            tensor.external_data[2].value = str(num_bytes)
            self._data._file.seek(num_bytes - POKED_BYTES, os.SEEK_CUR)
            self._data.size += num_bytes - POKED_BYTES
            self.weight_bytes += num_bytes - POKED_BYTES
            return name

    checkpoint = Checkpoint.open(options.folder / "checkpoint")
    precision, _ = gpu_precisions("tensorrt", options.decoder[0], "auto", 128, "auto", "fp16", None)
    kind = HollowGraph if options.whole else Graph
    with kind("decoder", options.folder, OPSET) as graph:
        emit_decoder(checkpoint, TensorRtDialect(graph, precision), MAX_CONTEXT, lambda: None)
        graph.save()
    os.truncate(graph.data_path, graph._data.size)  # where the last weight is a hole
    return {
        "precision": precision.describe(),
        "weight_bytes": graph.weight_bytes,
        "export_s": round(time.perf_counter() - started, 1),
    }


def _build(options: argparse.Namespace) -> dict[str, Any]:
    """The engine, with the profiles of `varco engines`."""
    import onnx

    from varco_export.engines.build import MAX_LOGITS, PREFILL_TOKENS, longest_step
    from varco_export.engines.builder import Builder
    from varco_runtime.bundle.tensor import Tensor

    names = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.INT64: "int64", onnx.TensorProto.BOOL: "bool"}
    names[onnx.TensorProto.FLOAT] = "fp32"
    graph = onnx.load(options.folder / "decoder.onnx", load_external_data=False).graph
    tensors = {
        value.name: Tensor(
            names[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            is_input,
        )
        for values, is_input in ((graph.input, True), (graph.output, False))
        for value in values
    }
    context, one = (1, MAX_CONTEXT // 2, MAX_CONTEXT), (1, 1, 1)
    profiles = [
        {"sequence": (1, PREFILL_TOKENS, PREFILL_TOKENS), "total": context, "num_logits": (1, 1, MAX_LOGITS)},
        {"sequence": (1, 1, longest_step(options.decoder[0])), "total": context, "num_logits": one},
    ]
    builder = Builder.load(is_target_named=True)
    log, target = options.folder / "build.log", options.folder / "decoder.engine"
    layers = builder.check(options.folder / "decoder.onnx", tensors, options.sm, log)
    before_s = time.process_time()
    built = builder.build(options.folder / "decoder.onnx", tensors, profiles, options.sm, target, log, lambda *_: None)
    return {
        "builder": f"{builder.product} {builder.version}",
        "engine_bytes": built.facts.size,
        "peak_own_bytes": built.peak_bytes,
        "peak_mapped_bytes": built.mapped_bytes,
        "build_s": round(built.seconds, 1),
        "build_cpu_s": round(time.process_time() - before_s, 1),
        "native_layers": {
            kind: layers[kind] for kind in ("KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "ATTENTION_INPUT", "DEQUANTIZE")
        },
    }


def _whole(decoder: str, slices: list[dict[str, Any]], num_layers: int) -> dict[str, Any]:
    """The whole decoder, reckoned from what the second layer added."""
    one, two = (next(s for s in slices if (s["decoder"], s["num_layers"]) == (decoder, count)) for count in (1, 2))
    keys = ("weight_bytes", "engine_bytes", "peak_own_bytes", "peak_mapped_bytes", "build_cpu_s")
    per_layer = {key: round(two[key] - one[key], 1) for key in keys}
    whole = {key: round(one[key] + (num_layers - 1) * per_layer[key], 1) for key in keys}
    cache = KV_BYTES_PER_TOKEN_AND_LAYER * num_layers * MAX_CONTEXT
    return {"decoder": decoder, "num_layers": num_layers, "per_layer": per_layer, "whole": whole, "cache_bytes": cache}


def _print_slice(found: dict[str, Any]) -> None:
    gb = {key: found[key] / 1e9 for key in ("weight_bytes", "engine_bytes", "peak_own_bytes", "peak_mapped_bytes")}
    print(
        f"{found['decoder']}, {found['num_layers']} layers: weights {gb['weight_bytes']:.2f} GB, engine "
        f"{gb['engine_bytes']:.2f} GB, peak memory {gb['peak_own_bytes']:.2f} GB and {gb['peak_mapped_bytes']:.2f} GB "
        f"mapped, exported in {found['export_s']:.0f} s, built in {found['build_s']:.0f} s "
        f"({found['build_cpu_s']:.0f} s of CPU, {found['builder']})",
        flush=True,
    )


def _print_whole(found: dict[str, Any]) -> None:
    layer, whole = found["per_layer"], found["whole"]
    print(
        f"{found['decoder']}: a layer adds {layer['engine_bytes'] / 1e6:.0f} MB of engine, "
        f"{layer['peak_own_bytes'] / 1e6:.0f} MB of peak memory and {layer['build_cpu_s']:.1f} s of CPU. "
        f"All {found['num_layers']}: engine {whole['engine_bytes'] / 1e9:.1f} GB, built with "
        f"{whole['peak_own_bytes'] / 1e9:.1f} GB of memory in {whole['build_cpu_s']:.0f} s of CPU; caches for "
        f"{MAX_CONTEXT:,} tokens {found['cache_bytes'] / 1e9:.1f} GB"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", default="14b")
    parser.add_argument("--decoder", nargs="+", default=["int4", "fp16", "fp8"])
    parser.add_argument("--sm", type=int, default=89)
    parser.add_argument("--whole", action="store_true", help="build all layers instead of slices")
    parser.add_argument("--whole-layers", type=int, default=48)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    add_out(parser)
    parser.add_argument("--child", choices=("export", "build"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
