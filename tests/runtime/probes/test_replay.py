"""Acceptance probes: good bundles pass at every precision, bundles broken in one place fail, on any kind of backend."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import export_bundle
from tests.makers import broken
from tests.makers.exported_weights import export_exactly
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint
from tests.makers.probes import PRECISIONS, checks_of, divergence_of, failed
from varco_export.probes.make import add_probes
from varco_export.progress import Silent
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.backend import PromptInputs
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle.opening import Bundle, read_manifest
from varco_runtime.errors import BundleError
from varco_runtime.probes.digest import digest, digest_error
from varco_runtime.probes.file import Noise, to_json
from varco_runtime.probes.grade import advice, grade_of
from varco_runtime.probes.limits import LOGIT_LIMITS
from varco_runtime.probes.replay import Limits, read_probes, replay

QUICK = ("fp16", "int4", "fast")
PARTS = ["prompts", "settings", "vision", "projector", "image tokens", "newlines"]
DECODER = [f"decoder, {what}" for what in ("text", "pictures", "single steps")]


# --- what they prove --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_good_bundle_passes(probed: Callable[[str], Path], precision: str) -> None:
    checks = checks_of(probed(precision))
    assert not failed(checks), checks
    rounded = {"vision-int8": ["vision"], "fast": ["vision", "decoder"]}.get(precision)
    rounded = rounded or (["decoder"] if precision.endswith("-int8") else [])
    found = [check.component for check in checks]
    assert found == [*PARTS, *DECODER, *(f"{part}, inputs rounded" for part in rounded), "answers", "answers"]


@pytest.mark.parametrize("fault", broken.FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize(
    "precision", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in PRECISIONS]
)
def test_a_broken_bundle_fails_where_it_is_broken(
    probed: Callable[[str], Path], tmp_path: Path, precision: str, fault: Callable[[Path], None]
) -> None:
    if precision.startswith("fp") and fault in broken.OF_INTEGERS:
        pytest.skip("floats have no scales and no zero points")
    if precision == "fp16" and fault in broken.SUBTLE:
        pytest.skip("fp16 itself does more")
    checks = checks_of(broken.broken(probed(precision), tmp_path / "broken", fault))
    assert broken.FAULTS[fault] in failed(checks), f"{fault.__name__} passes: {checks}"


def test_rotary_tables_one_position_on_are_harmless(probed: Callable[[str], Path], tmp_path: Path) -> None:
    """Attention sees how far positions are apart, and never where they are."""
    assert not failed(checks_of(broken.broken(probed("fp32"), tmp_path / "broken", broken.turned_one_on)))


def test_a_fault_of_the_decoder_is_not_blamed_on_the_picture(probed: Callable[[str], Path], tmp_path: Path) -> None:
    target = broken.broken(probed("int4"), tmp_path / "broken", broken.transposed_projection)
    assert {"vision", "projector", "image tokens", "newlines"}.isdisjoint(failed(checks_of(target)))


@pytest.mark.parametrize("precision", ["int4", "fast"])
@pytest.mark.parametrize("seed", [12, pytest.param(13, marks=pytest.mark.full)])
def test_faults_are_found_in_models_that_amplify_noise_too(tmp_path: Path, seed: int, precision: str) -> None:
    """Default `Scales`, deeper: int4 is too coarse for such a model, and the bundle is as good as it can be."""
    wild = TinyOptions(seed=seed, image_size=58, num_hidden_layers=6)
    options = PRECISIONS[precision]
    good = export_bundle(make_tiny(tmp_path / "wild", wild), tmp_path / "good", probes=True, **options)
    checks = checks_of(good)
    assert not failed(checks), checks
    assert grade_of(divergence_of(checks)) == "coarse"
    for fault in (*broken.OF_INTEGERS, broken.scaled_norm, broken.turned_faster, broken.other_gelu):
        target = broken.broken(good, tmp_path / fault.__name__, fault)
        assert broken.FAULTS[fault] in failed(checks_of(target)), fault.__name__


def test_what_differs_from_the_checkpoint_is_named(probed: Callable[[str], Path], tmp_path: Path) -> None:
    checks = checks_of(broken.broken(probed("fp32"), tmp_path / "broken", broken.other_end_ids))
    (detail,) = (detail for check in checks for detail in check.details)
    assert re.fullmatch(r"generation.eos_token_ids: the bundle has \[7\], its checkpoint \[\d+\]", detail)


def test_a_kernel_that_rounds_wrongly_is_found_beside_one_that_does_not_round(
    probed: Callable[[str], Path],
) -> None:
    class Wrong(OnnxRuntimeBackend):
        """Wrong only as long as it rounds inputs, by half of the logits' spread."""

        rounds = True

        def stop_rounding(self) -> bool:
            self.rounds = False
            return super().stop_rounding()

        def prefill(self, *inputs: Any) -> Any:
            logits = super().prefill(*inputs)
            return np.roll(logits, 1, axis=1) / 2 + logits / 2 if self.rounds else logits

    bundle = Bundle.open(probed("fast"))
    probes = read_probes(bundle)
    assert failed(replay(bundle, probes, Wrong(bundle, probes.max_tokens, threads=1))) == ["decoder, inputs rounded"]


@pytest.mark.parametrize("precision", ["int8-int8", "fast"])
def test_a_backend_that_cannot_stop_rounding_is_judged_by_its_noise(
    probed: Callable[[str], Path], tmp_path: Path, precision: str
) -> None:
    """As engines and FP8 on a GPU are: with less to see, and good bundles pass all the same."""

    class Rounding(OnnxRuntimeBackend):
        def stop_rounding(self) -> bool:
            return False

    def judge(folder: Path) -> list[str]:
        bundle = Bundle.open(folder)
        probes = read_probes(bundle)
        return failed(replay(bundle, probes, Rounding(bundle, probes.max_tokens, threads=1)))

    assert not judge(probed(precision))
    target = broken.broken(probed(precision), tmp_path / "broken", broken.transposed_projection)
    assert "decoder, text" in judge(target)


def test_a_gpu_is_left_its_own_rounding(probed: Callable[[str], Path]) -> None:
    """TF32, fp16 and bf16 are as coarse as ever there, and coarser in a model that amplifies."""
    bundle = Bundle.open(probed("fp32"))
    probes = read_probes(bundle)
    wild = dataclasses.replace(probes, noise=Noise(0, 0, 1e-4, 1e-4))
    for compute, limit in LOGIT_LIMITS.items():
        manifest = bundle.manifest
        decoder = dataclasses.replace(manifest.decoder, compute=compute)
        gpu: Any = SimpleNamespace(manifest=dataclasses.replace(manifest, device="cuda", decoder=decoder))
        assert Limits(gpu, probes, rounds=True).text == limit
        assert Limits(gpu, wild, rounds=True).text > limit


@pytest.mark.parametrize(("precision", "rounds"), [("int4", False), ("int4-int8", True), ("fast", True)])
def test_a_backend_stops_rounding_where_it_does(probed: Callable[[str], Path], precision: str, rounds: bool) -> None:
    bundle = Bundle.open(probed(precision))
    backend = OnnxRuntimeBackend(bundle, 64, threads=1)
    prompt = PromptInputs(np.arange(40), -1, None)
    before, step = backend.prefill(prompt, 0, 4).copy(), backend.decode_step(3, 40).copy()
    assert backend.stop_rounding() is rounds
    after = backend.prefill(prompt, 0, 4)
    assert np.array_equal(before, after) is not rounds
    assert np.array_equal(step, backend.decode_step(3, 40)) is not rounds
    np.testing.assert_allclose(after, before, atol=0.1 * before.std())


def test_another_tokenizer_is_noticed(probed: Callable[[str], Path], tmp_path: Path) -> None:
    def another_greeting(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>system"))

    assert "prompts" in failed(checks_of(broken.broken(probed("fp32"), tmp_path / "broken", another_greeting)))


def test_a_digest_measures_the_relative_error() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 64)) + 30 * (np.arange(64) == 7)  # a channel of large constant value
    for size in (1e-4, 1e-2):
        noisy = features + size * rng.normal(size=features.shape)
        assert 0.6 * size < digest_error(digest(noisy), digest(features)) < 3 * size
    shifted = features + 0.5
    assert digest_error(digest(shifted), digest(features)) > 0.05
    assert digest_error(digest(features[::-1]), digest(features)) > 0.5
    assert digest_error(digest(features), digest(features)) == 0


@pytest.mark.parametrize("group", range(3))
def test_nan_in_any_group_of_a_digest_is_no_pass(group: int) -> None:
    expected = digest(np.random.default_rng(0).normal(size=(50, 64)))
    got = expected.copy()
    got[group, 0] = np.nan
    assert np.isnan(digest_error(got, expected))


def test_nan_in_a_later_picture_is_no_pass(probed: Callable[[str], Path]) -> None:
    class Failing(OnnxRuntimeBackend):
        num_seen = 0

        def features(self, pixel_values: Any, plan: Any) -> Any:
            self.num_seen += 1
            seen = super().features(pixel_values, plan)
            return (
                seen if self.num_seen == 1 else dataclasses.replace(seen, patch_features=seen.patch_features * np.nan)
            )

    bundle = Bundle.open(probed("fp32"))
    probes = read_probes(bundle)
    probes = dataclasses.replace(probes, pictures=probes.pictures * 2)
    assert failed(replay(bundle, probes, Failing(bundle, probes.max_tokens, threads=1))) == ["vision"]


def test_advice_names_only_what_helps() -> None:
    manifest: Any = SimpleNamespace(decoder=SimpleNamespace(precision="int4 (blocks of 32)"))
    assert advice(manifest, 0.01, {}) is None
    tried = {"as exported": 0.45, "--lm-head int8": 0.04, "--activations float": 0.44, "--lm-head fp32": 0.03}
    assert advice(manifest, 0.45, tried) == (
        "int4 (blocks of 32) is too coarse for this model: KL 0.45 nats to full precision. "
        "--lm-head fp32 gives 0.03 or --lm-head int8 gives 0.04."
    )
    less = "A finer --decoder, a smaller --block-size or a checkpoint of varco quantize loses less"
    fair = "int4 (blocks of 32) is fair for this model: KL 0.05 nats to full precision."
    assert advice(manifest, 0.05, {}) == f"{fair} {less}."
    tried = {"as exported": 0.05, "--lm-head int8": 0.045}
    assert advice(manifest, 0.05, tried) == f"{fair} {less} (--lm-head int8 still gives 0.045)."


# --- files that are not to be trusted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(version=3),
        lambda document: document.update(facts=[]),
        lambda document: document.update(facts={str(number): 0 for number in range(65)}),
        lambda document: document.update(divergences={"as exported": "much"}),
        lambda document: document["noise"].pop("text"),
        lambda document: document["noise"].update(pictures=-1),
        lambda document: document.pop("noise"),
        lambda document: document.update(noise="much"),
        lambda document: document.update(noise=float("nan")),
        lambda document: document.update(probes=[]),
        lambda document: document.update(vision="fp9"),
        lambda document: document["probes"][0].update(picture=7),
        lambda document: document["probes"][0].update(num_answer=1),
        lambda document: document["probes"][0].update(ids="AAAA"),
        lambda document: document["probes"][0].update(exact=document["probes"][0]["spread"]),
        lambda document: document["probes"][0].update(top_ids="////" * 5000),
        lambda document: document["pictures"][0].update(png="%"),
        lambda document: document.update(pictures=document["pictures"] * 9),
        lambda document: document.clear(),
    ],
)
def test_a_malformed_probes_file_is_one_clear_line(
    probed: Callable[[str], Path], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    def malform(folder: Path) -> None:
        path = folder / str(read_manifest(folder).probes)
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    target = broken.broken(probed("fp32"), tmp_path / "broken", malform)
    with pytest.raises(
        BundleError, match=r"probes-\w+.json is not a file of probes \(.*Export the bundle again"
    ) as caught:
        read_probes(Bundle.open(target))
    assert "\n" not in str(caught.value)


# --- files of former versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fast"])
def test_a_probes_file_of_version_1_still_works(probed: Callable[[str], Path], tmp_path: Path, precision: str) -> None:
    """It has one number of noise, and what the exact networks make of the pictures."""
    exact = read_probes(Bundle.open(probed("fp32"))).pictures

    def write_version_1(folder: Path) -> None:
        path = folder / str(read_manifest(folder).probes)
        probes = dataclasses.replace(read_probes(Bundle.open(folder)), pictures=exact)
        document = json.loads(to_json(probes))
        for name in ("facts", "divergences"):
            del document[name]
        path.write_text(json.dumps(document | {"version": 1, "noise": document["noise"]["text"]}))

    former = broken.broken(probed(precision), tmp_path / "former", write_version_1)
    checks = checks_of(former)
    assert not failed(checks), checks
    assert "settings" not in {check.component for check in checks}
    assert "decoder, text" in failed(checks_of(broken.broken(former, tmp_path / "bad", broken.transposed_projection)))


# --- checkpoints that are quantised already ---------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize(
    "packing",
    [GptqPacking(), GptqPacking(sym=False, act_order=True), GptqPacking(bits=8, sym=False, version=2)],
    ids=["plain", "act-order", "int8-v2"],
)
def test_a_gptq_bundle_passes(probe_checkpoint: Path, tmp_path: Path, packing: GptqPacking, activations: str) -> None:
    pack_checkpoint(probe_checkpoint, tmp_path / "gptq", packing)
    make = export_exactly if activations == "float" else export_bundle  # which rounds the head
    checks = checks_of(make(tmp_path / "gptq", tmp_path / "bundle", probes=True, activations=activations))
    assert not failed(checks), checks
    # The reference has the same weights: nothing is lost against full precision.
    assert activations == "int8" or divergence_of(checks) < 1e-9


def test_zero_points_read_by_the_wrong_convention_fail(probe_checkpoint: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    pack_checkpoint(probe_checkpoint, right, GptqPacking(sym=False, version=1))
    shutil.copytree(right, wrong)
    for name in ("config.json", "quantize_config.json"):
        if (wrong / name).exists():
            text = (wrong / name).read_text()
            (wrong / name).write_text(
                text.replace('"gptq"', '"gptq_v2"').replace('quant_method": "gptq_v2"', 'quant_method": "gptq"')
            )
    bundle = export_bundle(wrong, tmp_path / "bundle")
    add_probes(right, bundle, Silent())
    assert "decoder, text" in failed(checks_of(bundle))
