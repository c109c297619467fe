"""The number formats of bundles and devices: how wide an element is, and which types of numpy and ONNX hold it.

numpy has no bf16, fp8 and int4. It holds the bits of those as unsigned integers.

Importing this module does not import numpy: the sizes in a manifest are worked out from the table here, and commands
that only read manifests stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
"""Any numpy array. Docstrings and comments give its shape and its number format."""


class NumberFormat(NamedTuple):
    """One row of `FORMATS`."""

    bits: int
    """Bits of one element; 4 means two elements to a byte, the first in the low nibble."""
    numpy: str
    """numpy's name of the type that holds it: the format itself, or an unsigned integer for its bits."""
    onnx: int
    """Its number in `onnx.TensorProto.DataType`."""
    onnx_name: str
    """What stands in the parentheses of ONNX's `tensor(...)`."""


FORMATS: dict[str, NumberFormat] = {
    "fp64": NumberFormat(64, "float64", 11, "double"),
    "fp32": NumberFormat(32, "float32", 1, "float"),
    "fp16": NumberFormat(16, "float16", 10, "float16"),
    "bf16": NumberFormat(16, "uint16", 16, "bfloat16"),
    "fp8": NumberFormat(8, "uint8", 17, "float8e4m3fn"),
    "int4": NumberFormat(4, "uint8", 22, "int4"),
    "int8": NumberFormat(8, "int8", 3, "int8"),
    "uint8": NumberFormat(8, "uint8", 2, "uint8"),
    "int32": NumberFormat(32, "int32", 6, "int32"),
    "int64": NumberFormat(64, "int64", 7, "int64"),
    "bool": NumberFormat(8, "bool", 9, "bool"),
}
"""The one table of number formats, by the names that manifests, options and reports use."""

ITEM_BYTES = {name: row.bits // 8 for name, row in FORMATS.items() if row.bits >= 8}
"""Bytes of one element."""
STORAGE = {name: row.numpy for name, row in FORMATS.items()}
"""numpy's name of the type that holds a format."""
ONNX_TYPES = {name: row.onnx for name, row in FORMATS.items()}
"""A format's number in `onnx.TensorProto.DataType`."""


_INFINITY = {"bf16": 0x7F80, "fp16": 0x7C00, "fp32": 0x7F800000, "fp8": 0x7F}
"""The bits of infinity: beyond them, the sign aside, is nothing but NaN. FP8 has no infinity; these are its NaN."""
_CHECKED_BYTES = 1 << 20  # at a time, so that the second look at them comes out of the processor's cache


def is_finite(array: Array, dtype: str) -> bool:
    """Return whether contiguous numbers hold neither infinity nor NaN; integers never do.

    Two maxima over the bits as integers: several times as fast as `numpy.isfinite`, and without memory of its own.

    Args:
        array: The numbers, in any type of numpy that holds their bits.
        dtype: Their format.
    """

    if dtype not in _INFINITY:
        return True
    infinity, num_bits = _INFINITY[dtype], FORMATS[dtype].bits
    minus_infinity = infinity | 1 << (num_bits - 1)
    bits = array.reshape(-1).view(f"uint{num_bits}")
    step = _CHECKED_BYTES // bits.itemsize
    for start in range(0, len(bits), step):
        part = bits[start : start + step]
        if part.max() >= minus_infinity or part.view(f"int{num_bits}").max() >= infinity:
            return False
    return True


def to_stored(values: Array, dtype: str) -> Array:
    """Return fp32 values as a device takes them: bf16 as its bits, rounded to nearest even.

    Args:
        values: fp32, of any shape.
        dtype: A format that numpy has, or `bf16`.
    """
    import numpy as np

    if dtype == "bf16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.ascontiguousarray(values, dtype=STORAGE[dtype])


def from_stored(values: Array, dtype: str) -> Array:
    """Return stored values as fp32.

    Args:
        values: What `to_stored` returns for `dtype`.
        dtype: A format that numpy has, or `bf16`.
    """
    import numpy as np

    if dtype == "bf16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)
