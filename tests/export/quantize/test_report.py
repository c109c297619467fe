"""What a run says that it kept, calibration that needs no folder, heads, and runs that end anywhere."""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("quantising needs the extra 'quantize'", allow_module_level=True)

import torch

from tests.export.quantize.test_quantize import MARKUP, Quiet, contents, names_and_dtypes, options_for
from varco_cli.main import main
from varco_export.quantize import QuantizeOptions, activations, quantize, shard, work
from varco_export.quantize.drawn import drawn_samples
from varco_export.quantize.head import Divergence
from varco_export.quantize.run import hold_out
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.errors import ExportError, InputError

SMALL = TinyOptions(seed=6, num_hidden_layers=1, num_vision_layers=1, intermediate_size=64)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty texts, of which one is held out."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [{"prompt": f"Question {n}?", "answer": "It is so. " * (n % 5 + 1)} for n in range(20)]
    (folder / "calibration.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(
        tmp_path_factory.mktemp("report") / "tiny", TinyOptions(**{**_fields(SMALL), "tie_word_embeddings": True})
    )


def _fields(options: TinyOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__slots__}


def test_a_run_says_what_it_kept(tied: Path, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", str(tied), str(tmp_path / "out"), "--method", "gptq", "--calibration", str(texts)]
    assert main([*arguments, "--group-size", "32", "--lm-head", "int8", "--asymmetric", "--seed", "5"]) == 0
    out, err = capfd.readouterr()
    assert "of 1 held-out samples" in out
    assert "lm_head" in out
    assert "int8, by GPTQ" in out
    assert "the head was tied to the embedding and becomes one of its own" in err
    report = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert report["rotation_seed"] == 5
    assert report["kl_samples"] == 1
    assert 0 < report["kl_nats_per_token"] < 1
    errors = report["output_error"]
    assert set(errors) == {*report["output_error_by_layer"][0], "lm_head"}
    assert errors["lm_head"] < 1e-4 < errors["mlp.gate_proj"] < 0.1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize(("head", "bits"), [("int4", 4), ("int8", 8)])
def test_a_quantised_head_has_a_group_of_its_own(tied: Path, texts: Path, tmp_path: Path, head: str, bits: int) -> None:
    quantize(tied, tmp_path / "out", options_for(texts, lm_head=head, rotate=False), Quiet())
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_1"]["targets"] == ["re:.*lm_head$"]
    assert config["config_groups"]["group_1"]["weights"]["num_bits"] == bits
    assert not any("lm_head" in name for name in config["ignore"])
    names = names_and_dtypes(tmp_path / "out")
    assert names["language_model.lm_head.weight_packed"] == "I32"
    assert "language_model.lm_head.weight" not in names


@pytest.mark.parametrize("has_folder", [True, False])
def test_fp8_takes_error_feedback_with_a_folder_and_without(
    tied: Path, texts: Path, tmp_path: Path, has_folder: bool
) -> None:
    options = QuantizeOptions("fp8", texts if has_folder else None, max_samples=32)
    quantize(tied, tmp_path / "out", options, Quiet())
    report = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert report["rotation_seed"] is None
    assert report["scales"] == "search"
    assert 0 < report["kl_nats_per_token"] < (0.01 if has_folder else 0.05)
    assert names_and_dtypes(tmp_path / "out")["language_model.model.layers.0.mlp.up_proj.weight"] == "F8_E4M3"


def test_a_run_that_measures_nothing_says_so(tied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = {
        "none": ([], "rotated, not rounded", None),
        "fp8": (["--samples", "0"], "none: rounded to the nearest; without --samples 0", "minmax"),
    }
    for method, (options, words, scales) in said.items():
        assert main(["quantize", str(tied), str(tmp_path / method), "--method", method, *options]) == 0
        assert words in " ".join(capfd.readouterr().out.split())
        assert json.loads((tmp_path / method / "quantization.json").read_text())["scales"] == scales


def test_a_tied_head_stays_tied_where_it_is_neither_rotated_nor_rounded(
    tied: Path, texts: Path, tmp_path: Path
) -> None:
    quantize(tied, tmp_path / "out", options_for(texts, rotate=False), Quiet())
    assert not any("lm_head" in name for name in names_and_dtypes(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_run_that_ends_before_any_file_is_written_continues_to_the_same_bytes(
    tied: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotated, with a head of int4 and a sample held out: every kind of file that a run writes on its way."""
    options = options_for(texts, lm_head="int4")
    real, calls, stop_at = work.durable_file, 0, 0

    @contextmanager
    def counted(path: Path) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise OSError(28, "No space left on device")
        with real(path) as file:
            yield file

    for module in (work, activations, shard):
        monkeypatch.setattr(module, "durable_file", counted)
    quantize(tied, tmp_path / "whole", options, Quiet())
    expected, total = contents(tmp_path / "whole"), calls
    assert total >= 9
    for stop_at in range(1, total + 1):
        out, calls = tmp_path / f"out-{stop_at}", 0
        with pytest.raises(ExportError, match="No space left"):
            quantize(tied, out, options, Quiet())
        assert not out.exists()
        calls = total  # nothing fails any more
        quantize(tied, out, options, Quiet())
        assert contents(out) == expected, f"stopped before file {stop_at}"


# --- calibration ------------------------------------------------------------------------------------------------------


def test_without_a_folder_drawn_pictures_and_texts_are_calibrated_with(tmp_path: Path) -> None:
    progress = Quiet()
    source = make_tiny(tmp_path / "tiny", SMALL)
    quantize(source, tmp_path / "out", QuantizeOptions("gptq", group_size=32, max_samples=32), progress)
    assert "Calibrating with" in progress.notes[0]
    report = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert report["scales"] == "search"
    assert report["calibration_samples"] > 16
    assert report["kl_samples"] == 2


def test_drawn_samples_hold_every_task_both_languages_and_texts_and_are_the_same_again() -> None:
    samples = drawn_samples(MARKUP, 64, 58)
    prompts = " ".join(sample.prompt for sample in samples)
    answers = " ".join(sample.answer or "" for sample in samples)
    assert all(mark in prompts for mark in ("<ocr>", "<gro>", "<obj>"))
    assert all(mark in answers for mark in ("<char>", "<obj>", "<bbox>"))
    assert any("\uac00" <= letter <= "\ud7a3" for letter in answers)
    assert 20 < sum(sample.image is not None for sample in samples) < 44
    again = drawn_samples(MARKUP, 64, 58)
    for one, other in zip(samples, again, strict=True):
        assert (one.prompt, one.answer) == (other.prompt, other.answer)
        assert (one.image is None) == (other.image is None)
        assert one.image is None or np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert not any("<" in sample.prompt for sample in drawn_samples((), 64, 58))


def test_what_is_held_out_is_not_calibrated_with() -> None:
    class Fake:
        def __init__(self, digest: str | None) -> None:
            self.digest = digest

    samples: Any = [Fake(None if n % 2 else str(n // 4)) for n in range(64)]
    kept, held = hold_out(samples)
    assert len(held) == 4
    assert not {one.digest for one in kept} & ({one.digest for one in held} - {None})
    assert hold_out(samples[:15]) == (samples[:15], [])


def test_too_few_tokens_for_the_widest_linear_are_refused(tmp_path: Path) -> None:
    (tmp_path / "calibration.jsonl").write_text('{"prompt": "Hello"}\n')
    source = make_tiny(tmp_path / "tiny", SMALL)
    with pytest.raises(InputError, match=r"has \d+ tokens, expected 64 at least, one for each input of"):
        quantize(source, tmp_path / "out", options_for(tmp_path), Quiet())


def test_divergence_by_blocks_of_words_is_that_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(7, 300, generator=generator) * 9 for _ in range(2))
    ours, theirs = torch.log_softmax(logits.double(), 1), torch.log_softmax(other.double(), 1)
    expected = float((ours.exp() * (ours - theirs)).sum(1).mean())
    divergence = Divergence.of_tokens(7)
    for start in range(0, 300, 128):
        divergence.add(logits[:, start : start + 128], other[:, start : start + 128])
    assert divergence.mean() == pytest.approx(expected, rel=1e-9)
