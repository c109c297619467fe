"""An ONNX graph while it is written: nodes stay in memory, weights stream into the external data file.

Nothing here knows a network. `Graph.weight` takes blocks of rows, writes them to `<name>.onnx.data` as they come and
keeps only name, type, shape, offset and length, so that a graph of any size is written in the memory of one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from varco_export.writing.hashed_file import HashedFile
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.dtypes import FORMATS, Array, is_finite
from varco_runtime.errors import ExportError

MICROSOFT = "com.microsoft"
OPSET = 23
"""RMSNormalization came with opset 23. A dialect that needs newer operators asks for a newer one."""
IR_VERSIONS = {23: 11, 24: 12}
ALIGNMENT = 4096
"""Every tensor starts on a page of the data file, so that a runtime can map it."""

_OWN_TYPES = {"bf16": ml_dtypes.bfloat16, "fp8": ml_dtypes.float8_e4m3fn, "int8": np.uint8}
"""Types that blocks of weights come in where the runtime's differ: values of bf16 and fp8, and for int8 bytes in two's
complement. int4 comes packed, two to a byte, the first in the low nibble."""
DTYPES: dict[str, tuple[int, np.dtype[Any]]] = {
    name: (row.onnx, np.dtype(_OWN_TYPES.get(name, row.numpy))) for name, row in FORMATS.items()
}
"""Our names of element types: the ONNX type and the numpy type."""

Shape = Sequence[int | str]


class Graph:
    """One ONNX graph in the making. A context manager: leaving it closes the data file.

    Args:
        name: The graph's, and of its files without their endings.
        folder: Where they are written.
        opset: The version of ONNX's operators.
    """

    def __init__(self, name: str, folder: Path, opset: int = OPSET) -> None:
        self.name = name
        self.opset = opset
        self.path = folder / f"{name}.onnx"
        self.data_path = folder / f"{name}.onnx.data"
        self._data = HashedFile(self.data_path)
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._num_values: dict[str, int] = {}
        self.weight_bytes = 0

    def __enter__(self) -> Graph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.__exit__(kind, error, trace)

    def input(self, name: str, dtype: str, shape: Shape) -> str:
        """Declare an input and return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, DTYPES[dtype][0], list(shape)))
        return name

    def output(self, name: str, dtype: str, shape: Shape) -> str:
        """Declare an output, which some node makes, and return its name."""
        self._outputs.append(helper.make_tensor_value_info(name, DTYPES[dtype][0], list(shape)))
        return name

    def node(
        self, op_type: str, inputs: Sequence[str], output: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Append a node with one output and return the output's name (made up unless given)."""
        return self.multi_node(op_type, inputs, [output or self._value(op_type)], domain, **attributes)[0]

    def multi_node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Append a node with the named outputs; an empty name stands for an optional output that is left out."""
        node = helper.make_node(
            op_type, list(inputs), list(outputs), name=f"node_{len(self._nodes)}_{op_type}", domain=domain
        )
        # make_node drops an attribute that is None, but would sort nothing: sorted here, so that files are
        # reproducible.
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        self._nodes.append(node)
        return outputs

    def rename(self, old: str, new: str) -> str:
        """Give a value that some node makes another name, which no value has yet."""
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
        return new

    def value(self, hint: str) -> str:
        """Return a fresh value name."""
        return self._value(hint)

    def _value(self, hint: str) -> str:
        count = self._num_values[hint] = self._num_values.get(hint, -1) + 1
        return f"{hint}_{count}"

    def constant(self, name: str, array: Array) -> str:
        """Return a small constant inside the graph file. The same name gives the same constant again."""
        if name not in self._initializers:
            assert array.nbytes <= 4096, f"Bug: {name} of {array.nbytes} bytes belongs into the data file"
            tensor = helper.make_tensor(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.tobytes(), raw=True
            )
            self._initializers[name] = tensor
        return name

    def ints(self, *values: int) -> str:
        """Return an int64 vector constant, shared by all who need the same numbers."""
        return self.constant("ints_" + "_".join(str(v) for v in values), np.array(values, dtype=np.int64))

    def weight(self, name: str, dtype: str, shape: Sequence[int], blocks: Iterable[Array]) -> str:
        """Stream a weight to the data file and return its name.

        Args:
            name: Its name in the graph.
            dtype: Its number format, of `DTYPES`.
            shape: Its shape.
            blocks: Its rows along the first dimension, in order, in any type that `dtype` can hold.

        Raises:
            ExportError: A number is beyond the type's range (fp16 ends at 65,504), or the disk refuses.
        """
        assert name not in self._initializers, f"Bug: weight {name} is written twice"
        onnx_type, numpy_type = DTYPES[dtype]
        offset = self._data.size + self._data.write(bytes(-self._data.size % ALIGNMENT))
        written = 0
        for block in blocks:
            with np.errstate(over="ignore"):  # said below, by name
                array = np.ascontiguousarray(block, dtype=numpy_type)
            narrowed = dtype == "fp16" or (dtype == "bf16" and block.dtype != numpy_type)
            if narrowed and not is_finite(array, dtype):
                raise _out_of_range(name, dtype)
            written += self._data.write(array.view(np.uint8).reshape(-1).data)
        expected = int(np.prod(shape, dtype=np.int64)) * numpy_type.itemsize // (2 if dtype == "int4" else 1)
        assert written == expected, f"Bug: {name} wrote {written} bytes, its shape {tuple(shape)} needs {expected}"
        tensor = TensorProto(name=name, data_type=onnx_type, dims=list(shape), data_location=TensorProto.EXTERNAL)
        for key, text in (("location", self.data_path.name), ("offset", str(offset)), ("length", str(written))):
            tensor.external_data.add(key=key, value=text)
        self._initializers[name] = tensor
        self.weight_bytes += written
        return name

    def has_weight(self, name: str) -> bool:
        """Return whether a weight or constant of that name is there."""
        return name in self._initializers

    def weight_offset(self, name: str) -> int:
        """Return where a weight begins in the data file, in bytes."""
        return next(int(entry.value) for entry in self._initializers[name].external_data if entry.key == "offset")

    def save(self) -> dict[str, FileFacts]:
        """Write the graph file; its weights are in the data file already. Returns the facts of both files by name."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        ir_version = IR_VERSIONS[self.opset]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="varco-edge")
        with HashedFile(self.path) as file:
            file.write(model.SerializeToString(deterministic=True))
        self._data.close()
        return {self.path.name: file.facts(), self.data_path.name: self._data.facts()}


def _out_of_range(name: str, dtype: str) -> ExportError:
    largest = {"fp16": "65,504", "bf16": "3.39e38"}[dtype]
    return ExportError(
        f"{name} holds a number beyond {largest}, the largest of {dtype}, expected none. Export it in a type of a "
        "wider range, with --decoder or --vision: fp32 on a CPU, bf16 on a GPU."
    )
