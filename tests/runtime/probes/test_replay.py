"""Acceptance probes: good bundles pass at every precision, bundles broken in one place fail, and nothing is left half.

Random weights with the default `Scales` amplify a rounding error several times per layer, which no trained model does:
int4 is too coarse for them. The checkpoints here have gentler ones, each layer adding half of what flows into it.
Errors separate good from broken with either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import export_bundle
from tests.makers import broken
from tests.makers.exported_weights import export_exactly
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint
from varco_cli.main import main
from varco_export import export as export_module
from varco_export.probes import make as probes_module
from varco_export.probes.make import add_probes
from varco_export.probes.questions import draw_pictures
from varco_export.progress import Silent
from varco_export.tiny import Scales, TinyOptions, make_tiny
from varco_runtime.backend import PromptInputs
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.bundle.opening import Bundle, read_manifest, write_manifest
from varco_runtime.errors import BundleError, CheckpointError, ExportError
from varco_runtime.picture.packing import packing_plan
from varco_runtime.probes.digest import digest, digest_error
from varco_runtime.probes.file import Noise, to_json
from varco_runtime.probes.grade import advice, grade_of
from varco_runtime.probes.limits import LOGIT_LIMITS
from varco_runtime.probes.replay import Check, Limits, read_probes, replay

GENTLE = Scales(query_key=1.0, attention=0.5, mlp=0.5, logits=2.0)
OPTIONS = TinyOptions(seed=11, image_size=114, scales=GENTLE)
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"decoder": "fp32"},
    "fp16": {"decoder": "fp16", "vision": "fp16"},
    "int8": {"decoder": "int8"},
    "int8-int8": {"decoder": "int8", "activations": "int8"},
    "int4": {"decoder": "int4"},
    "int4-int8": {"decoder": "int4", "activations": "int8"},
    "int4-head": {"decoder": "int4", "lm_head": "int4"},
    "vision-int8": {"decoder": "int8", "vision": "int8"},
    "fast": {"decoder": "int4", "activations": "int8", "block_size": 128, "lm_head": "int4", "vision": "int8"},
}
QUICK = ("fp16", "int4", "fast")
PARTS = ["prompts", "settings", "vision", "projector", "image tokens", "newlines"]
DECODER = [f"decoder, {what}" for what in ("text", "pictures", "single steps")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("probes") / "checkpoint", OPTIONS)


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a precision, with probes, exported once."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(precision: str) -> Path:
        target = folder / precision
        return target if target.exists() else export_bundle(checkpoint, target, probes=True, **PRECISIONS[precision])

    return bundle


def checks_of(folder: Path) -> list[Check]:
    bundle = Bundle.open(folder)
    probes = read_probes(bundle)
    return replay(bundle, probes, OnnxRuntimeBackend(bundle, probes.max_tokens, threads=1))


def divergence_of(checks: list[Check]) -> float:
    return next(check.error for check in checks if check.measure.startswith("KL"))


def failed(checks: list[Check]) -> list[str]:
    return [check.component for check in checks if not check.passed]


# --- what they prove --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_good_bundle_passes(bundles: Callable[[str], Path], precision: str) -> None:
    checks = checks_of(bundles(precision))
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
    bundles: Callable[[str], Path], tmp_path: Path, precision: str, fault: Callable[[Path], None]
) -> None:
    if precision.startswith("fp") and fault in broken.OF_INTEGERS:
        pytest.skip("floats have no scales and no zero points")
    if precision == "fp16" and fault in broken.SUBTLE:
        pytest.skip("fp16 itself does more")
    checks = checks_of(broken.broken(bundles(precision), tmp_path / "broken", fault))
    assert broken.FAULTS[fault] in failed(checks), f"{fault.__name__} passes: {checks}"


def test_rotary_tables_one_position_on_are_harmless(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """Attention sees how far positions are apart, and never where they are."""
    assert not failed(checks_of(broken.broken(bundles("fp32"), tmp_path / "broken", broken.turned_one_on)))


def test_a_fault_of_the_decoder_is_not_blamed_on_the_picture(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    target = broken.broken(bundles("int4"), tmp_path / "broken", broken.transposed_projection)
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


def test_what_differs_from_the_checkpoint_is_named(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    checks = checks_of(broken.broken(bundles("fp32"), tmp_path / "broken", broken.other_end_ids))
    (detail,) = (detail for check in checks for detail in check.details)
    assert re.fullmatch(r"generation.eos_token_ids: the bundle has \[7\], its checkpoint \[\d+\]", detail)


def test_a_kernel_that_rounds_wrongly_is_found_beside_one_that_does_not_round(bundles: Callable[[str], Path]) -> None:
    class Wrong(OnnxRuntimeBackend):
        """Wrong only as long as it rounds inputs, by half of the logits' spread."""

        rounds = True

        def stop_rounding(self) -> bool:
            self.rounds = False
            return super().stop_rounding()

        def prefill(self, *inputs: Any) -> Any:
            logits = super().prefill(*inputs)
            return np.roll(logits, 1, axis=1) / 2 + logits / 2 if self.rounds else logits

    bundle = Bundle.open(bundles("fast"))
    probes = read_probes(bundle)
    assert failed(replay(bundle, probes, Wrong(bundle, probes.max_tokens, threads=1))) == ["decoder, inputs rounded"]


@pytest.mark.parametrize("precision", ["int8-int8", "fast"])
def test_a_backend_that_cannot_stop_rounding_is_judged_by_its_noise(
    bundles: Callable[[str], Path], tmp_path: Path, precision: str
) -> None:
    """As engines and FP8 on a GPU are: with less to see, and good bundles pass all the same."""

    class Rounding(OnnxRuntimeBackend):
        def stop_rounding(self) -> bool:
            return False

    def judge(folder: Path) -> list[str]:
        bundle = Bundle.open(folder)
        probes = read_probes(bundle)
        return failed(replay(bundle, probes, Rounding(bundle, probes.max_tokens, threads=1)))

    assert not judge(bundles(precision))
    target = broken.broken(bundles(precision), tmp_path / "broken", broken.transposed_projection)
    assert "decoder, text" in judge(target)


def test_a_gpu_is_left_its_own_rounding(bundles: Callable[[str], Path]) -> None:
    """TF32, fp16 and bf16 are as coarse as ever there, and coarser in a model that amplifies."""
    bundle = Bundle.open(bundles("fp32"))
    probes = read_probes(bundle)
    wild = dataclasses.replace(probes, noise=Noise(0, 0, 1e-4, 1e-4))
    for compute, limit in LOGIT_LIMITS.items():
        manifest = bundle.manifest
        decoder = dataclasses.replace(manifest.decoder, compute=compute)
        gpu: Any = SimpleNamespace(manifest=dataclasses.replace(manifest, device="cuda", decoder=decoder))
        assert Limits(gpu, probes, rounds=True).text == limit
        assert Limits(gpu, wild, rounds=True).text > limit


@pytest.mark.parametrize(("precision", "rounds"), [("int4", False), ("int4-int8", True), ("fast", True)])
def test_a_backend_stops_rounding_where_it_does(bundles: Callable[[str], Path], precision: str, rounds: bool) -> None:
    bundle = Bundle.open(bundles(precision))
    backend = OnnxRuntimeBackend(bundle, 64, threads=1)
    prompt = PromptInputs(np.arange(40), -1, None)
    before, step = backend.prefill(prompt, 0, 4).copy(), backend.decode_step(3, 40).copy()
    assert backend.stop_rounding() is rounds
    after = backend.prefill(prompt, 0, 4)
    assert np.array_equal(before, after) is not rounds
    assert np.array_equal(step, backend.decode_step(3, 40)) is not rounds
    np.testing.assert_allclose(after, before, atol=0.1 * before.std())


def test_another_tokenizer_is_noticed(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    def another_greeting(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>system"))

    assert "prompts" in failed(checks_of(broken.broken(bundles("fp32"), tmp_path / "broken", another_greeting)))


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


def test_nan_in_a_later_picture_is_no_pass(bundles: Callable[[str], Path]) -> None:
    class Failing(OnnxRuntimeBackend):
        num_seen = 0

        def features(self, pixel_values: Any, plan: Any) -> Any:
            self.num_seen += 1
            seen = super().features(pixel_values, plan)
            return (
                seen if self.num_seen == 1 else dataclasses.replace(seen, patch_features=seen.patch_features * np.nan)
            )

    bundle = Bundle.open(bundles("fp32"))
    probes = read_probes(bundle)
    probes = dataclasses.replace(probes, pictures=probes.pictures * 2)
    assert failed(replay(bundle, probes, Failing(bundle, probes.max_tokens, threads=1))) == ["vision"]


# --- how they get into a bundle ---------------------------------------------------------------------------------------


def test_probes_are_small_and_the_same_from_both_commands(
    bundles: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    exported = bundles("int4")
    bare = export_bundle(checkpoint, tmp_path / "bare", decoder="int4")
    assert read_manifest(bare).probes is None
    manifest = add_probes(checkpoint, bare, Silent())
    assert read_manifest(bare) == read_manifest(exported) == manifest
    assert manifest.files[str(manifest.probes)].size < 1_000_000


def test_probes_are_replaced_whole(bundles: Callable[[str], Path], checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(bundles("fp32"), target)
    before = read_manifest(target)
    other = make_tiny(tmp_path / "other", TinyOptions(seed=12, image_size=114, scales=GENTLE))
    after = add_probes(other, target, Silent())
    assert after.probes != before.probes
    assert {path.name for path in target.iterdir()} == {*after.files, "bundle.json"}
    # Those of another model fit the shapes, and fail.
    assert "vision" in failed(checks_of(target))
    assert add_probes(checkpoint, target, Silent()) == before


def test_a_bundle_stays_as_it_was_when_probes_cannot_be_added(
    bundles: Callable[[str], Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = export_bundle(checkpoint, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(probes_module, "write_manifest", full)
    with pytest.raises(OSError, match="no space"):
        add_probes(checkpoint, target, Silent())
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_the_same_probes_can_be_added_again(checkpoint: Path, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(bundles("fp32"), tmp_path / "bundle"))
    assert add_probes(checkpoint, target, Silent()) == read_manifest(bundles("fp32"))


@pytest.mark.parametrize("exchanges", ["manifest", "graph"])
def test_a_bundle_that_changes_while_its_probes_are_made_stays_as_it_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: str
) -> None:
    target = export_bundle(checkpoint, tmp_path / "bundle")
    make = probes_module.write_probes

    def exchanging(*given: Any) -> Any:
        made = make(*given)
        if exchanges == "manifest":
            write_manifest(target, dataclasses.replace(read_manifest(target), license="another"))
        else:
            shutil.copy(target / "vision.onnx", tmp_path / "copy")
            (tmp_path / "copy").replace(target / "vision.onnx")
        return made

    monkeypatch.setattr(probes_module, "write_probes", exchanging)
    with pytest.raises((ExportError, BundleError), match=r"was changed while|was exchanged"):
        add_probes(checkpoint, target, Silent())
    assert read_manifest(target).probes is None
    assert not list(target.glob("probes-*"))


def test_a_checkpoint_of_another_shape_is_refused(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", TinyOptions(num_hidden_layers=3))
    with pytest.raises(ExportError, match=r"has num_layers 3, the bundle .* has 2"):
        add_probes(other, bundles("fp32"), Silent())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "language_model.model.norm.weight",
            "The model answers .* with NaN or infinity, computed in fp32 from its own",
        ),
        (
            "multi_modal_projector.linear_1.weight",
            "The model makes of the picture .* NaN or infinity, computed in fp32",
        ),
    ],
)
def test_probes_of_a_model_whose_answers_are_no_numbers_are_not_written(
    tmp_path: Path, name: str, message: str
) -> None:
    """Finite weights whose sums are not."""
    folder = make_tiny(tmp_path / "checkpoint", OPTIONS)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][...] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        export_bundle(folder, tmp_path / "bundle", probes=True)
    assert not (tmp_path / "bundle").exists()


def test_small_models_get_probes_unasked_and_large_ones_do_not(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_manifest(export_bundle(checkpoint, tmp_path / "small", probes=None)).probes is not None
    monkeypatch.setattr(export_module, "PROBES_BELOW_PARAMETERS", 1000)
    assert read_manifest(export_bundle(checkpoint, tmp_path / "large", probes=None)).probes is None


def test_an_export_says_that_it_computes_probes_before_it_does(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "bundle")]) == 0
    err = capsys.readouterr().err
    assert err.index("probes: the exact model answers questions, in fp32") < err.index("probes exported in")


def test_the_probes_of_a_full_size_model_are_few_tokens() -> None:
    """Image tokens are what probes cost most of their time on: 729 of the whole picture and 605 of its grid."""
    settings = TinyOptions(image_size=384, max_grid=(6, 6)).to_config().image
    tokens = [packing_plan(one.image.size[::-1], settings).num_tokens for one in draw_pictures(settings.tile_px)]
    assert tokens == [729 + 11 * 55]


def test_logits_that_are_all_alike_have_probes_too(tmp_path: Path) -> None:
    flat = make_tiny(tmp_path / "flat", TinyOptions(sparse=True))
    target = export_bundle(flat, tmp_path / "bundle", probes=True, **PRECISIONS["fast"])
    assert read_probes(Bundle.open(target)).noise == Noise(0, 0, 0, 0)


def test_probes_that_do_not_fit_the_context_are_left_out(checkpoint: Path, tmp_path: Path) -> None:
    short = export_bundle(checkpoint, tmp_path / "short", probes=True, max_context=200)
    probes = read_probes(Bundle.open(short)).probes
    assert len(probes) == 1
    assert not failed(checks_of(short))
    none = export_bundle(checkpoint, tmp_path / "none", probes=True, max_context=16)
    assert read_manifest(none).probes is None
    with pytest.raises(ExportError, match="holds 16 tokens, fewer than any probe needs"):
        add_probes(checkpoint, none, Silent())


# --- the command ------------------------------------------------------------------------------------------------------


def test_verify_numerics_prints_a_table_and_passes(
    bundles: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundles("int4")), "--numerics", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search("ok +decoder, text", out)
    assert re.search("good +answers +KL to full precision, nats", out)
    assert "FAIL" not in out


def test_verify_numerics_grades_a_coarse_format_and_says_what_is_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = make_tiny(tmp_path / "wild", TinyOptions(seed=12, image_size=58))
    target = export_bundle(wild, tmp_path / "bundle", probes=True, **PRECISIONS["fast"])
    assert main(["verify", str(target), "--numerics", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert re.search("coarse +answers +KL", out)
    assert "note: int4 (blocks of 128, int8 activations) is too coarse for this model: KL " in err
    assert main(["verify", str(target), "--numerics", "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["grade"] == "coarse"
    assert "too coarse" in document["advice"]


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


def test_verify_numerics_ends_with_one_line_and_status_1_on_a_fail(
    bundles: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = broken.broken(bundles("int4"), tmp_path / "broken", broken.skipped_newline)
    assert main(["verify", str(target), "--numerics", "--threads", "1"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL   newlines" in out
    detail, failure = err.splitlines()
    assert detail.startswith("embedding: the bundle has ")
    assert "fails 5 of 11 checks, first settings: other than the checkpoint's 1, expected at most 0" in failure
    assert main(["verify", str(target), "--numerics", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [row["component"] for row in document["numerics"] if not row["ok"]][1:3] == ["image tokens", "newlines"]


def test_inspect_names_the_probes(bundles: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundles("int4"))]) == 0
    out = capsys.readouterr().out
    assert re.search(r"acceptance probes +2 \(chat, ground\), [\d.]+ kB; varco verify --numerics asks them", out)
    assert "Checked here: manifest, tokenizer and probes;" in out
    assert main(["inspect", str(bundles("int4")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["derived"]["probe_tasks"] == ["chat", "ground"]


def test_inspect_says_that_there_are_no_probes(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    assert re.search("acceptance probes +none; varco probe CHECKPOINT BUNDLE puts some in", out)
    assert "Checked here: manifest and tokenizer;" in out


@pytest.mark.parametrize(("content", "message"), [(b"{", "has 1 bytes, expected"), (None, "no file of probes")])
def test_inspect_refuses_damaged_probes_in_one_line(
    bundles: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    message: str,
) -> None:
    """Damage that the hash tells of, and nonsense that was hashed."""
    target = Path(shutil.copytree(bundles("int4"), tmp_path / "damaged"))
    manifest = read_manifest(target)
    name = str(manifest.probes)
    (target / name).write_bytes(b"[]" if content is None else content)
    if content is None:
        facts = FileFacts(2, hashlib.sha256(b"[]").hexdigest())
        write_manifest(target, dataclasses.replace(manifest, files=manifest.files | {name: facts}))
    assert main(["inspect", str(target)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_verify_numerics_without_probes_is_one_line_and_status_1(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tiny_bundle), "--numerics"]) == 1
    assert "holds no acceptance probes. Add them with: varco probe CHECKPOINT" in capsys.readouterr().err


def test_provider_without_numerics_is_wrong_usage(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_bundle), "--provider", "cpu"]) == 2
    assert "Add --numerics" in capsys.readouterr().err


def test_the_probe_command_adds_probes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = export_bundle(checkpoint, tmp_path / "bundle")
    assert main(["probe", str(checkpoint), str(target)]) == 0
    assert "holds probes" in capsys.readouterr().err
    assert main(["verify", str(target), "--numerics", "--threads", "1"]) == 0


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
    bundles: Callable[[str], Path], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    def malform(folder: Path) -> None:
        path = folder / str(read_manifest(folder).probes)
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    target = broken.broken(bundles("fp32"), tmp_path / "broken", malform)
    with pytest.raises(
        BundleError, match=r"probes-\w+.json is not a file of probes \(.*Export the bundle again"
    ) as caught:
        read_probes(Bundle.open(target))
    assert "\n" not in str(caught.value)


# --- files of former versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fast"])
def test_a_probes_file_of_version_1_still_works(bundles: Callable[[str], Path], tmp_path: Path, precision: str) -> None:
    """It has one number of noise, and what the exact networks make of the pictures."""
    exact = read_probes(Bundle.open(bundles("fp32"))).pictures

    def write_version_1(folder: Path) -> None:
        path = folder / str(read_manifest(folder).probes)
        probes = dataclasses.replace(read_probes(Bundle.open(folder)), pictures=exact)
        document = json.loads(to_json(probes))
        for name in ("facts", "divergences"):
            del document[name]
        path.write_text(json.dumps(document | {"version": 1, "noise": document["noise"]["text"]}))

    former = broken.broken(bundles(precision), tmp_path / "former", write_version_1)
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
def test_a_gptq_bundle_passes(checkpoint: Path, tmp_path: Path, packing: GptqPacking, activations: str) -> None:
    pack_checkpoint(checkpoint, tmp_path / "gptq", packing)
    make = export_exactly if activations == "float" else export_bundle  # which rounds the head
    checks = checks_of(make(tmp_path / "gptq", tmp_path / "bundle", probes=True, activations=activations))
    assert not failed(checks), checks
    # The reference has the same weights: nothing is lost against full precision.
    assert activations == "int8" or divergence_of(checks) < 1e-9


def test_zero_points_read_by_the_wrong_convention_fail(checkpoint: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    pack_checkpoint(checkpoint, right, GptqPacking(sym=False, version=1))
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
