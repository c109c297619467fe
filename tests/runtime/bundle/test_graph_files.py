"""Which files a graph reads, whatever message of it names them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from tests.makers.manifests import forge, set_at
from varco_cli.main import main
from varco_runtime.bundle import opening as bundle_module
from varco_runtime.bundle.graph_files import MAX_DEPTH, external_files
from varco_runtime.bundle.opening import Bundle
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import BundleError


def tensor(location: str, name: str = "w") -> TensorProto:
    found = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        found.external_data.add(key=key, value=value)
    return found


def sparse(location: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor(location), indices=tensor(f"{location}-indices"), dims=[1])


def graph(**given: object) -> onnx.GraphProto:
    found = onnx.GraphProto(name="graph")
    for name, value in given.items():
        getattr(found, name).extend(value)
    return found


def with_attribute(**given: object) -> onnx.GraphProto:
    attribute = onnx.AttributeProto(name="value")
    for name, value in given.items():
        field = getattr(attribute, name)
        field.extend(value) if isinstance(value, list) else field.CopyFrom(value)
    node = onnx.NodeProto(op_type="Constant")
    node.attribute.append(attribute)
    return graph(node=[node])


def model(**given: object) -> bytes:
    found = onnx.ModelProto()
    for name, value in given.items():
        field = getattr(found, name)
        field.extend(value) if isinstance(value, list) else field.CopyFrom(value)
    return found.SerializeToString()


PLACES: dict[str, bytes] = {
    "an initializer": model(graph=graph(initializer=[tensor("x")])),
    "a sparse initializer": model(graph=graph(sparse_initializer=[sparse("x")])),
    "an attribute": model(graph=with_attribute(t=tensor("x"))),
    "a list of an attribute": model(graph=with_attribute(tensors=[tensor("x")])),
    "a sparse attribute": model(graph=with_attribute(sparse_tensor=sparse("x"))),
    "sparse attributes": model(graph=with_attribute(sparse_tensors=[sparse("x")])),
    "a graph in an attribute": model(graph=with_attribute(g=graph(initializer=[tensor("x")]))),
    "graphs in an attribute": model(graph=with_attribute(graphs=[with_attribute(t=tensor("x"))])),
    "a function": model(functions=[onnx.FunctionProto(node=with_attribute(t=tensor("x")).node)]),
    "training": model(training_info=[onnx.TrainingInfoProto(algorithm=graph(initializer=[tensor("x")]))]),
    "a second graph": model(graph=graph()) + model(graph=graph(initializer=[tensor("x")])),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_name_is_found_in(place: str) -> None:
    assert external_files(PLACES[place]) in ({"x"}, {"x", "x-indices"})


def test_every_value_of_a_repeated_field_counts() -> None:
    """The last one wins in onnxruntime; which that is need not be known here."""
    entry = b"\x12\x01a" + b"\x0a\x08location" + b"\x12\x01b"
    raw = b"\x6a" + bytes([len(entry)]) + entry
    nested = b"\x2a" + bytes([len(raw)]) + raw
    assert external_files(b"\x3a" + bytes([len(nested)]) + nested) == {"a", "b"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x3a\x7flocation",  # a field that ends beyond its message
        b"\x3a",  # no length
        b"\x80" * 12,  # a number without an end
        b"\x3b\x00",  # a group
        b"\xba\x80\x80\x80\x10\x00",  # field 7 for a reader that keeps 32 bits
        b"\x39\x00",  # eight bytes, of which one is there
    ],
)
def test_what_is_no_protocol_buffer_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        external_files(raw)


def test_graphs_nested_without_end_are_refused() -> None:
    inner = graph(initializer=[tensor("x")])
    for _ in range(MAX_DEPTH):
        inner = with_attribute(g=inner)
    with pytest.raises(ValueError, match="nested deeper"):
        external_files(model(graph=inner))


def change_decoder(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the decoder as somebody would who recomputes the hashes."""
    path = folder / "decoder.onnx"
    found = onnx.load(path, load_external_data=False)
    change(found)
    content = found.SerializeToString()
    path.write_bytes(content)
    forge(folder, set_at("files/decoder.onnx", {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize("name", ["unlisted.data", "./decoder.onnx.data", "../bundle/decoder.onnx.data", "", "\x1b[2J"])
def test_a_graph_that_reads_what_the_manifest_does_not_list_is_refused(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    """onnxruntime would read any file of the folder, a hard link to one elsewhere too."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    os.link(bundle / "decoder.onnx.data", bundle / "unlisted.data")

    def redirect(found: onnx.ModelProto) -> None:
        first = next(one for one in found.graph.initializer if one.external_data)
        next(entry for entry in first.external_data if entry.key == "location").value = name

    change_decoder(bundle, redirect)
    with pytest.raises(
        BundleError, match=r"decoder\.onnx reads the file .*, which the manifest does not list"
    ) as caught:
        Bundle.open(bundle)
    assert "\x1b" not in str(caught.value)
    assert main(["verify", str(bundle)]) == 1


def test_a_graph_that_is_none_is_refused_before_a_library_sees_it(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    document = json.loads((bundle / MANIFEST).read_bytes())
    forge(bundle, set_at("decoder", {**document["decoder"], "file": "tokenizer.json"}))
    with pytest.raises(BundleError, match=r"tokenizer\.json is no ONNX graph"):
        Bundle.open(bundle)


def test_a_graph_far_larger_than_any_is_refused_unparsed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_GRAPH_BYTES", 1000)
    with pytest.raises(BundleError, match=r"bytes, expected at most 1000 of a graph without its weights"):
        Bundle.open(tiny_bundle)


def test_a_network_in_a_folder_of_its_own_reads_the_files_of_that_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "text").mkdir()
    document = json.loads((bundle / MANIFEST).read_bytes())
    for name in ("decoder.onnx", "decoder.onnx.data"):
        (bundle / name).rename(bundle / "text" / name)
        document["files"][f"text/{name}"] = document["files"].pop(name)
    document["decoder"] |= {"file": "text/decoder.onnx", "data": "text/decoder.onnx.data"}
    forge(bundle, lambda former: (former.clear(), former.update(document)))
    Bundle.open(bundle)


def test_the_names_of_a_bundles_graphs_are_their_data_files(tiny_bundle: Path) -> None:
    for name in ("vision", "projector", "decoder"):
        assert external_files((tiny_bundle / f"{name}.onnx").read_bytes()) == {f"{name}.onnx.data"}
