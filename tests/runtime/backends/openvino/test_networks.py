"""What OpenVINO makes of a bundle's networks: fused attention, packed integers, the types asked for."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint
from tests.makers.inputs import close, noise_picture, text_inputs
from varco_runtime import Varco
from varco_runtime.backend import BatchingBackend, CopiesSlots, KeepsPrefixes, VerifyingBackend
from varco_runtime.backends.openvino.network import Networks
from varco_runtime.backends.openvino.runtime_model import runtime_layers
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import UsageError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.tiles import normalize, tile

EXACT = OpenVinoSettings(precision="fp32")


@pytest.fixture(scope="session")
def int4_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("openvino") / "int4", decoder="int4")


def layers(compiled: Any) -> collections.Counter[str]:
    """How many nodes of each kind the plugin runs."""
    infos = (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
    return collections.Counter(str(info["layerType"].astype(str)) for info in infos)


def test_every_layer_attends_in_one_node_over_pages(tiny_bundle: Path, int4_bundle: Path) -> None:
    for folder in (tiny_bundle, int4_bundle):
        bundle = Bundle.open(folder)
        num_layers = bundle.manifest.model.num_layers
        found = layers(Networks(bundle, EXACT, 1).decoder())
        assert found["PagedAttention"] == num_layers
        assert found["RoPE"] == 2 * num_layers
        assert found["RMS"] == 2 * num_layers + 1
        assert found["Softmax"] == found["MatMul"] == 0, "attention fell apart into its products"
        assert found["Concat"] == 0, "a cache is copied"
        # Queries, keys and values, o, gate, up, down; in fp32 gate and up come as one. And the head.
        assert found["FullyConnected"] == (4 if folder == tiny_bundle else 5) * num_layers + 1


def test_integer_weights_stay_packed(int4_bundle: Path) -> None:
    compiled = Networks(Bundle.open(int4_bundle), EXACT, 1).decoder()
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    products = [info for info in infos if info["layerType"].astype(str) == "FullyConnected"]
    assert products
    assert {info["runtimePrecision"].astype(str) for info in products} == {"u4"}


def test_a_wider_group_of_heads_and_none_attend_alike(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from varco_export.tiny import TinyOptions, make_tiny

    make_tiny(tmp_path / "checkpoint", TinyOptions(seed=3, num_key_value_heads=4))
    folder = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    ours, cpu = (Varco.load(folder, provider, threads=1, **exact(provider)) for provider in ("openvino", "cpu"))
    inputs = text_inputs(cpu, 20)
    assert close(ours.backend.prefill(inputs, 0, 20), cpu.backend.prefill(inputs, 0, 20))


def exact(provider: str) -> dict[str, Any]:
    return {"precision": "fp32"} if provider == "openvino" else {}


def test_features_in_the_fast_type_are_near_the_exact_ones(tiny_bundle: Path) -> None:
    """Which type that is depends on the processor; bf16 is the coarsest."""
    fast = Varco.load(tiny_bundle, "openvino", threads=1)
    cpu = Varco.load(tiny_bundle, "cpu", threads=1)
    settings = cpu.bundle.manifest.image
    pixels = normalize(tile(load_picture(noise_picture()), settings), settings)
    a, b = (np.asarray(one.backend.encode(pixels)).ravel() for one in (fast, cpu))
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.9995


@pytest.mark.parametrize("kv_cache", ["u8", "fp16", "fp32"])
def test_a_coarser_cache_is_off_by_what_it_rounds(tiny_bundle: Path, kv_cache: str) -> None:
    ours = Varco.load(tiny_bundle, "openvino", threads=1, precision="fp32", kv_cache_precision=kv_cache)
    cpu = Varco.load(tiny_bundle, "cpu", threads=1)
    inputs = text_inputs(cpu, 30)
    want = cpu.backend.prefill(inputs, 0, 10)
    ours.backend.prefill(type(inputs)(inputs.ids[:20], inputs.image_token_id, None), 0)
    got = np.stack([ours.backend.decode_step(int(inputs.ids[at]), at) for at in range(20, 30)])
    error = float(np.abs(got - want).max() / np.abs(want).max())
    assert error < {"u8": 5e-2, "fp16": 5e-3, "fp32": 2e-5}[kv_cache]
    assert f"cache {kv_cache}" in ours.backend.description  # in fp32, where fp16 is not kept as bf16


@pytest.mark.parametrize("kv_cache", ["u8", "fp16", "fp32"])
def test_rows_of_several_slots_are_those_of_each_alone(tiny_bundle: Path, kv_cache: str) -> None:
    """At both ends of a page, within one and behind many; slots hold what was copied from others and restored."""
    varco = Varco.load(tiny_bundle, "openvino", threads=1, precision="fp32", kv_cache_precision=kv_cache, slots=4)
    backend = varco.backend
    assert isinstance(backend, BatchingBackend)
    assert isinstance(backend, KeepsPrefixes)
    assert isinstance(backend, CopiesSlots)
    inputs = text_inputs(varco, 130)
    backend.prefill(inputs, 0)
    kept = backend.copy_prefix(130)
    assert kept.nbytes >= 130 * backend.prefix_bytes_per_position > 0
    backend.select_slot(2)
    backend.restore_prefix(kept)
    for slot in (1, 3):
        backend.select_slot(slot)
        backend.copy_from_slot(slot - 1, 130)
    positions = (31, 32, 57, 129)
    tokens = [int(inputs.ids[position]) for position in positions]
    alone = []
    for slot, (token, position) in enumerate(zip(tokens, positions, strict=True)):
        backend.select_slot(slot)
        alone.append(backend.decode_step(token, position).copy())
    assert close(backend.decode_rows(tokens, positions), np.stack(alone))


def test_a_rounded_cache_does_not_decay_with_steps_back(tiny_bundle: Path) -> None:
    """Wrong guesses and questions behind one prefix write into a page over and over."""
    varco = Varco.load(tiny_bundle, "openvino", threads=1, precision="fp32", kv_cache_precision="u8")
    inputs = text_inputs(varco, 60)
    want = varco.backend.prefill(inputs, 0).copy()
    backend = varco.backend
    assert isinstance(backend, VerifyingBackend)
    for index in range(100):
        backend.decode_steps((5 + index, 300, 7, 9), 50)
    assert np.array_equal(backend.prefill(inputs, 50), want)


def test_slots_are_counted_by_what_openvino_keeps(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    per_slot = Bundle.open(tiny_bundle).manifest.kv_bytes_per_token * 256
    monkeypatch.setattr("varco_runtime.backends.slots.machine_memory", lambda: (None, 2 * per_slot))
    load = {"threads": 1, "max_context": 256, "precision": "fp32"}
    assert Varco.load(tiny_bundle, "openvino", slots=3, kv_cache_precision="u8", **load).slots == 3  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="slots=3 needs"):
        Varco.load(tiny_bundle, "openvino", slots=3, **load)  # type: ignore[arg-type]


def test_the_integers_are_not_copied(int4_bundle: Path) -> None:
    """The constants are bytes of the mapped file, which OpenVINO's own translation would copy."""
    networks = Networks(Bundle.open(int4_bundle), EXACT, 1)
    networks.decoder()
    views = [held for held in networks._products._held if isinstance(held, np.ndarray) and held.size > 1]
    assert len(views) > 4
    assert not any(view.flags.owndata or view.flags.writeable for view in views)


@pytest.mark.parametrize("options", [{"decoder": "int8"}, {"decoder": "int4", "block_size": 128}], ids=str)
def test_integers_of_other_widths_give_the_logits_of_the_cpu(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """int8 stands in two halves of 4 bits with zero points; 128 does not divide this model's widths."""
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", **options)
    ours, cpu = (Varco.load(folder, provider, threads=1, **exact(provider)) for provider in ("openvino", "cpu"))
    inputs = text_inputs(cpu, 20)
    assert close(ours.backend.prefill(inputs, 0, 20), cpu.backend.prefill(inputs, 0, 20))


def test_weights_in_blocks_that_do_not_divide_them_stay_packed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", decoder="int4", block_size=128)
    found = runtime_layers(Bundle.open(folder), EXACT, 1)
    products = [layer for layer in found if layer.network == "decoder" and layer.operator == "FullyConnected"]
    assert {layer.precision for layer in products} == {"u4"}


@pytest.mark.parametrize(("activations", "group"), [("float", None), ("int8", 32)])
def test_inputs_are_rounded_by_the_blocks_of_a_bundle_that_rounds_them(
    tiny_checkpoint: Path, tmp_path: Path, activations: str, group: int | None
) -> None:
    networks = Networks(
        Bundle.open(export_bundle(tiny_checkpoint, tmp_path / "bundle", decoder="int4", activations=activations)),
        OpenVinoSettings(),
        1,
    )
    networks.decoder()
    assert networks._products.rounded_inputs == group


@pytest.mark.parametrize("sym", [True, False], ids=["symmetric", "zero points"])
def test_gptq_answers_are_those_of_the_cpu(
    sym: bool, tmp_path: Path, tiny_checkpoint: Path, image: Image.Image
) -> None:
    """With act-order, whose inputs are gathered."""
    pack_checkpoint(tiny_checkpoint, tmp_path / "gptq", GptqPacking(act_order=True, sym=sym))
    folder = export_bundle(tmp_path / "gptq", tmp_path / "bundle")
    ours, cpu = (Varco.load(folder, provider, threads=1, **exact(provider)) for provider in ("openvino", "cpu"))
    for picture, prompt in ((image, "What is this?"), (None, "Hello")):
        expected = cpu.ask(picture, prompt, max_new_tokens=32).token_ids
        assert ours.ask(picture, prompt, max_new_tokens=32).token_ids == expected
