"""compressed-tensors checkpoints, as llm-compressor writes them.

`pack-quantized`, integers of 4 or 8 bits, packed into 32-bit words from the lowest bits up:

    weight_packed [N, ceil(K * bits / 32)] int32   values + 2^(bits-1)
    weight_scale  [N, groups]
    weight_zero_point [ceil(N * bits / 32), groups] int32   packed along N; only where not symmetric
    weight_shape  [2]
    weight_g_idx  [K]   older releases with actorder `group`; -1 throughout where there is no order

`float-quantized`, FP8:

    weight [N, K] float8 E4M3,  weight_scale [1], [N] or [N, 1],  input_scale [1] where activations are static

Sources: compressed_tensors 0.19 `compressors/pack_quantized`, `compressors/naive_quantized` and
`quantization/lifecycle/forward_helpers.py`; the order of input features: 0.9, `quantization/lifecycle/forward.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from varco_export.quantized import integers
from varco_export.quantized.act_order import sorted_by_group
from varco_export.quantized.compressed_config import CompressedConfig, CompressedScheme, SchemeOfLinear
from varco_export.quantized.entries import QuantizedEntries
from varco_export.quantized.weights import BLOCK_BYTES, Fp8Weight, IntegerWeight, QuantizedWeight
from varco_export.reading.tensor import FLOAT_DTYPES, Tensor
from varco_runtime.dtypes import Array
from varco_runtime.errors import CheckpointError

_ADVICE = "Compare config.json with the original repository, or copy the shards again."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedWeight(IntegerWeight):
    """One linear of a `pack-quantized` checkpoint."""

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def _stored_blocks(self) -> Iterator[Array]:
        for words in self.packed.blocks(BLOCK_BYTES):  # [n, words]
            yield words.view(np.uint8)

    def _stored_scales(self) -> Array:
        return np.broadcast_to(self.scale.read().reshape(-1, self.scale.shape[-1]), (self.shape[0], self.num_groups))

    def _stored_zeros(self) -> Array | None:
        if self.zero_point is None:
            return None
        words = np.ascontiguousarray(self.zero_point.read().T)  # [groups, words]
        return integers.unpack(words.view(np.uint8), self.bits, self.shape[0]).T


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """A compressed-tensors checkpoint's quantized linears."""

    config: CompressedConfig

    method = "compressed-tensors"

    def take(self, entries: QuantizedEntries) -> dict[str, QuantizedWeight]:
        """Return every quantized linear by its canonical name; its tensors are taken out of `entries`."""
        config, weights = self.config, dict[str, QuantizedWeight]()
        schemes = SchemeOfLinear(config, entries.match(config.expressions, config.where))
        for name in entries.linears_with("weight_packed"):
            scheme = schemes.quantized(name, entries.disk_name(name, "weight_packed"), "int")
            weights[name] = _packed(scheme, entries, name)
        for name in entries.linears_with("weight_scale"):  # those left over
            scheme = schemes.quantized(name, entries.disk_name(name, "weight_scale"), "float")
            weights[name] = _fp8(scheme, entries, name)
        for name in entries.plain_linears():
            schemes.check_plain(name, entries.disk_name(name, "weight"))
        return weights


def _packed(scheme: CompressedScheme, entries: QuantizedEntries, name: str) -> IntegerWeight:
    num_rows, width = entries.shape(name)
    bits = scheme.bits
    group_size = scheme.group_size or width
    num_groups = -(-width // group_size)
    advice = f"quantization_config says {bits} bits, {scheme.describe()}. {_ADVICE}"
    scales = {"tensor": (1,), "channel": (num_rows, 1)}.get(scheme.strategy, (num_rows, num_groups))
    zero_point = None
    if scheme.symmetric:
        entries.drop_zeros(name, "weight_zero_point")
    else:
        words = -(-num_rows * bits // 32)
        zero_point = entries.take(name, "weight_zero_point", (words, num_groups), ("int32",), advice)
    shape = entries.take(name, "weight_shape", (2,), ("int32", "int64"), advice).read()
    if tuple(shape) != (num_rows, width):
        raise CheckpointError(
            f"{name}.weight_shape says {[int(size) for size in shape]}, expected {[num_rows, width]}. {_ADVICE}"
        )
    g_idx = entries.find(name, "weight_g_idx", (width,), ("int32", "int64"), advice)
    return PackedWeight(
        name=name,
        shape=(num_rows, width),
        bits=bits,
        group_size=group_size,
        packed=entries.take(name, "weight_packed", (num_rows, -(-width * bits // 32)), ("int32",), advice),
        scale=entries.take(name, "weight_scale", scales, FLOAT_DTYPES, advice),
        zero_point=zero_point,
        order=None if g_idx is None or bool((g_idx.read() == -1).all()) else sorted_by_group(g_idx, group_size),
    )


def _fp8(scheme: CompressedScheme, entries: QuantizedEntries, name: str) -> Fp8Weight:
    num_rows, width = entries.shape(name)
    advice = f"quantization_config says FP8, {scheme.describe()}. {_ADVICE}"
    # Releases differ in whether a scale for all has a dimension, and one per row a second.
    allowed: list[tuple[int, ...]] = [(), (1,)] if scheme.strategy == "tensor" else [(num_rows, 1), (num_rows,)]
    found = entries.entry(name, "weight_scale").shape
    values = entries.take(name, "weight", (num_rows, width), ("fp8",), advice)
    scale = entries.take(name, "weight_scale", found if found in allowed else allowed[-1], FLOAT_DTYPES, advice)
    for part in ("weight_zero_point", "input_zero_point"):
        entries.drop_zeros(name, part)
    input_scale = None
    if scheme.activations == "tensor":
        static = entries.entry(name, "input_scale").shape if entries.has(name, "input_scale") else (1,)
        tensor = entries.take(name, "input_scale", static if static == () else (1,), FLOAT_DTYPES, advice)
        input_scale = float(tensor.read().astype(np.float32).reshape(-1)[0])
        if not 0 < input_scale < np.inf:
            raise CheckpointError(f"{name}.input_scale is {input_scale}, expected a positive number. {_ADVICE}")
    return Fp8Weight(name, values, scale, scheme.activations, input_scale)
