"""The exact model of the acceptance probes against transformers: two programs that share no line with each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.makers.probes import OPTIONS, checks_of, divergence_of, failed
from tests.reference.oracle import Oracle, photo, relative_error, user_message
from tests.reference.test_parity import CHECKPOINTS as PARITY_CHECKPOINTS
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.probes import make as probes_module
from varco_export.probes.make import add_probes
from varco_export.probes.reference_pass import ReferencePass, Sequence
from varco_export.progress import Silent
from varco_export.reading.names import disk_name
from varco_export.tiny import make_tiny
from varco_runtime.bundle.opening import Bundle
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import pack, packing_plan
from varco_runtime.picture.tiles import normalize, tile
from varco_runtime.probes.grade import grade_of
from varco_runtime.probes.replay import read_probes

torch = pytest.importorskip("torch", reason="the reference needs torch")

CHECKPOINTS = {
    name: PARITY_CHECKPOINTS[name] for name in ("plain", "odd", "tied", "qwen3-tied", "qwen3-wide-heads")
} | {"real-geometry": replace(PARITY_CHECKPOINTS["real-geometry"], max_grid=(2, 2))}
LIMIT = 1e-4


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_reference_pass_equals_transformers(tmp_path: Path, name: str) -> None:
    options = CHECKPOINTS[name]
    folder = make_tiny(tmp_path / "checkpoint", options)
    oracle, image = Oracle(folder), photo(200, 90)
    greedy = oracle.greedy(user_message("What is this?", image=True), image, 16)

    checkpoint = Checkpoint.open(folder)
    settings, picture = checkpoint.config.image, load_picture(image)
    reference = ReferencePass(checkpoint, {})
    patches = reference.patch_features(normalize(tile(picture, settings), settings), lambda: None)
    assert relative_error(patches["exact"], oracle.patch_features(image)) < LIMIT
    features = reference.image_features(patches)["exact"]
    tokens = pack(features, reference.newline(), packing_plan(picture.size_hw, settings))
    assert relative_error(tokens, oracle.image_tokens(image)) < LIMIT

    image_token_id = oracle.model.config.image_token_id
    ids = np.array(greedy.prompt_ids + greedy.token_ids[:-1])
    with_picture = Sequence(ids, tokens, len(greedy.token_ids))
    short = Sequence(ids[-9:], None, 2)  # a second sequence must not see the first
    first, second = reference.logits([with_picture, short], image_token_id, lambda: None)
    assert relative_error(first.exact, greedy.logits) < LIMIT
    with torch.no_grad():
        alone = oracle.model(input_ids=torch.tensor(ids[None, -9:])).logits[0, -2:].numpy()
    assert relative_error(second.exact, alone) < LIMIT
    assert first.built is None
    assert first.noisy is None


def largest_inputs(checkpoint: Path, folder: Path) -> dict[str, float]:
    """The largest input of each of the decoder's linears over the probes, by its name on disk: a calibration."""
    largest: dict[str, float] = {}

    class Watching(ReferencePass):
        def _linears(self, streams: dict[str, Any], linear: str, others: Any = None) -> dict[str, Any]:
            name = disk_name(f"{linear}.weight", "hf_old").removesuffix(".weight")
            largest[name] = max(largest.get(name, 0.0), float(np.abs(streams["exact"]).max()))
            return super()._linears(streams, linear, others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes_module, "ReferencePass", Watching)
        export_bundle(checkpoint, folder, probes=True)
    return largest


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_fixed_input_scales_pass_and_what_they_cut_off_is_no_noise(tmp_path: Path, part: float) -> None:
    """`part`: of the largest input, what the scales can hold. At a half much is cut off, on every device alike."""
    pytest.importorskip("compressed_tensors", reason="the packer is compressed-tensors")
    from tests.makers.compressed_packer import CompressedPacking, compress_checkpoint

    source = make_tiny(tmp_path / "checkpoint", OPTIONS)
    scales = {name: part * most / 448 for name, most in largest_inputs(source, tmp_path / "plain").items()}
    fp8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
    compress_checkpoint(source, tmp_path / "fp8", CompressedPacking(fp8, fp8, input_scales=scales))
    bundle = export_bundle(tmp_path / "fp8", tmp_path / "bundle", probes=True)
    checks = checks_of(bundle)
    assert not [name for name in failed(checks) if name.startswith("decoder")], checks
    probes = read_probes(Bundle.open(bundle))
    cut = max(float(np.abs(probe.built - probe.exact).max()) for probe in probes.probes)
    if part == 1:
        assert not failed(checks), checks
        assert cut < 1e-3  # what quantised weights make of inputs may lie a little above
    else:
        assert cut > 1e-2

    eighths = CompressedPacking(fp8, fp8, input_scales={name: scale / 8 for name, scale in scales.items()})
    compress_checkpoint(source, tmp_path / "fp8-eighths", eighths)
    other = export_bundle(tmp_path / "fp8-eighths", tmp_path / "other")
    add_probes(tmp_path / "fp8", other, Silent())
    assert "decoder, text" in failed(checks_of(other))


@pytest.mark.parametrize("inputs", ["token", "none"])
def test_an_fp8_bundle_passes_and_one_of_other_scales_fails(tmp_path: Path, inputs: str) -> None:
    pytest.importorskip("compressed_tensors", reason="the packer is compressed-tensors")
    from tests.makers.compressed_packer import CompressedPacking, compress_checkpoint

    source = make_tiny(tmp_path / "checkpoint", OPTIONS)
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    activations = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    packing = CompressedPacking(weights, activations if inputs == "token" else None)
    compress_checkpoint(source, tmp_path / "fp8", packing)
    good = export_bundle(tmp_path / "fp8", tmp_path / "good", probes=True)
    assert not failed(checks_of(good)), checks_of(good)

    compress_checkpoint(make_tiny(tmp_path / "other", replace(OPTIONS, seed=12)), tmp_path / "fp8-other", packing)
    bad = export_bundle(tmp_path / "fp8-other", tmp_path / "bad")
    add_probes(tmp_path / "fp8", bad, Silent())
    assert "decoder, text" in failed(checks_of(bad))
    assert grade_of(divergence_of(checks_of(bad))) == "coarse"
