"""`varco quantize`: calibration folders, the resumable loop, what is quantised and what is written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("quantising needs the extra 'quantize'", allow_module_level=True)


from varco_cli.main import main
from varco_export import quantize as package
from varco_export.quantize import QuantizeOptions, quantize
from varco_export.quantize.activations import read_activations, write_activations
from varco_export.quantize.calibration import MAX_LINES_BYTES, read_samples, spread
from varco_export.quantize.layer import LINEARS
from varco_export.reading.shards import read_shards
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.errors import CheckpointError, ExportError, InputError, MissingExtraError, UsageError

MARKUP = ("<gro>", "<ocr>", "<char>", "</char>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>")
pytestmark = pytest.mark.usefixtures("single_threaded")


class Quiet:
    """Progress that is remembered. `kill_after` a number of layers, like kill -9 would."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.notes: list[str] = []
        self._kill_after = kill_after

    @contextlib.contextmanager
    def stage(self, name: str, steps: int, done: int = 0) -> Iterator[Callable[[], None]]:
        def advance() -> None:
            nonlocal done
            done += 1
            if name == "layers" and done == self._kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        yield advance

    def note(self, text: str) -> None:
        self.notes.append(text)


def draw(path: Path, seed: int, width: int = 90, height: int = 60) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(values).resize((width, height)).save(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for seed in range(2):
        draw(folder / f"{seed}.png", seed)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, in bf16, with a layer that never runs."""
    options = TinyOptions(seed=3, num_hidden_layers=3, dtype="bf16", extra_vision_layer=True, intermediate_size=128)
    return make_tiny(tmp_path_factory.mktemp("quantize") / "tiny", options)


def options_for(pictures: Path, **changes: Any) -> QuantizeOptions:
    return QuantizeOptions(**{"method": "gptq", "calibration": pictures, "group_size": 32, **changes})


@pytest.fixture(scope="session")
def quantised(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "out"
    quantize(checkpoint, out, options_for(pictures), Quiet())
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def names_and_dtypes(folder: Path) -> dict[str, str]:
    return {entry.disk_name: entry.dtype for entries in read_shards(folder).values() for entry in entries}


# --- what is quantised ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "last"), [("gptq", "weight_packed"), ("fp8", "weight"), ("rtn", "weight_packed")])
def test_the_linears_of_the_language_model_are_quantised_and_nothing_else_is_touched(
    checkpoint: Path, pictures: Path, tmp_path: Path, method: str, last: str
) -> None:
    out = tmp_path / "out"
    if method == "gptq":
        quantize(checkpoint, out, options_for(pictures, rotate=False), Quiet())
    else:
        own = {"max_samples": 0} if method == "fp8" else {"group_size": 32}
        quantize(checkpoint, out, QuantizeOptions(method, **own), Quiet())
    linears = {f"language_model.model.layers.{index}.{linear}." for index in range(3) for linear in LINEARS}
    before, after = names_and_dtypes(checkpoint), names_and_dtypes(out)
    for linear in linears:
        assert after.pop(linear + last) == ("F8_E4M3" if method == "fp8" else "I32")
        assert after.pop(linear + "weight_scale") == "BF16"
        assert after.pop(linear + "weight_shape", "I64") == "I64"
        del before[linear + "weight"]
    assert after == before
    unquantised = {path.name: entries for path, entries in read_shards(out).items()}
    source = {entry.disk_name: entry for entries in read_shards(checkpoint).values() for entry in entries}
    for entry in (entry for entries in unquantised.values() for entry in entries if entry.disk_name in before):
        theirs = source[entry.disk_name]
        size = 2 * int(np.prod(entry.shape))
        ours_bytes = np.fromfile(entry.path, np.uint8, size, offset=entry.offset)
        assert np.array_equal(ours_bytes, np.fromfile(theirs.path, np.uint8, size, offset=theirs.offset))


def test_a_llava_next_checkpoint_gives_the_same_quantised_weights_under_transformers_names(
    pictures: Path, tmp_path: Path
) -> None:
    outs = []
    for family in ("hf", "llava-next"):
        source = make_tiny(
            tmp_path / family, TinyOptions(seed=4, num_hidden_layers=1, format=family, intermediate_size=64)
        )
        out = tmp_path / f"{family}-out"
        quantize(source, out, options_for(pictures), Quiet())
        outs.append(out)
    hf, converted = outs
    assert names_and_dtypes(converted) == names_and_dtypes(hf)
    shard = "model-00001-of-00003.safetensors"
    assert (converted / shard).read_bytes() == (hf / shard).read_bytes()
    ours, theirs = (json.loads((out / "config.json").read_text()) for out in (converted, hf))
    assert ours["model_type"] == "llava_onevision"
    assert ours["image_token_index"] == theirs["image_token_index"]
    assert ours["quantization_config"] == theirs["quantization_config"]


def test_a_llava_next_tokenizer_without_a_free_row_is_refused(pictures: Path, tmp_path: Path) -> None:
    from varco_export.tiny import token_ids

    source = make_tiny(tmp_path / "tiny", TinyOptions(format="llava-next", vocab_size=len(token_ids())))
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": len(token_ids()) - 1, "content": "<last>"})
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert config["vocab_size"] == len(token_ids())
    with pytest.raises(CheckpointError, match="have none to spare"):
        quantize(source, tmp_path / "out", QuantizeOptions("fp8", max_samples=0), Quiet())


def test_the_small_files_come_along_and_name_the_source(quantised: Path, checkpoint: Path) -> None:
    for name in ("tokenizer.json", "chat_template.json", "preprocessor_config.json", "generation_config.json"):
        assert (quantised / name).read_bytes() == (checkpoint / name).read_bytes()
    config = json.loads((quantised / "config.json").read_text())
    assert config.pop("quantization_config")["format"] == "pack-quantized"
    assert config == json.loads((checkpoint / "config.json").read_text())
    readme = (quantised / "README.md").read_text()
    assert readme.startswith("---\nlicense: apache-2.0\n---\n")
    assert "from `tiny`: GPTQ, 4 bits, groups of 32" in readme
    assert "Calibrated with 6 samples, 2 pictures" in readme


# --- calibration ------------------------------------------------------------------------------------------------------


def test_pictures_change_the_result(checkpoint: Path, quantised: Path, tmp_path: Path) -> None:
    others = tmp_path / "calibration"
    others.mkdir()
    for seed in range(2):
        draw(others / f"{seed}.png", seed + 100)
    quantize(checkpoint, tmp_path / "out", options_for(others), Quiet())
    for number in (1, 2, 3):
        name = f"model-{number:05}-of-00005.safetensors"
        assert (tmp_path / "out" / name).read_bytes() != (quantised / name).read_bytes()


def test_lines_name_pictures_prompts_and_answers(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 0)
    lines = [{"image": "a.png", "prompt": "<ocr>", "answer": "<char>A</char>"}, {"prompt": "hello"}]
    (tmp_path / "calibration.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = read_samples(tmp_path, MARKUP, 10)
    assert (first.image, first.prompt, first.answer) == (tmp_path / "a.png", "<ocr>", "<char>A</char>")
    assert (second.image, second.prompt, second.answer) == (None, "hello", None)


def test_answers_are_calibrated_with_their_markup_as_single_tokens(checkpoint: Path, tmp_path: Path) -> None:
    from varco_export.tiny import token_ids

    answer = "<char>A</char>"
    draw(tmp_path / "a.png", 0, 120, 120)
    (tmp_path / "calibration.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "<ocr>", "answer": answer}))
    from varco_export.quantize.quantizer import _prepare

    (sample,) = _prepare(checkpoint, options_for(tmp_path), Quiet())[1].samples
    ids = token_ids()
    spoken = [ids["<|im_start|>"], *sample.ids[-sample.ids[::-1].index(ids["<|im_start|>"]) :]]
    wanted = [ids["<char>"], ids["A"], ids["</char>"], ids["<|im_end|>"]]
    assert [id_ for id_ in spoken if id_ in wanted] == wanted
    assert sample.ids.count(ids["<image>"]) > 16


def test_without_lines_every_picture_gets_the_prompts_whose_tokens_the_model_knows(pictures: Path) -> None:
    assert len(read_samples(pictures, MARKUP, 100)) == 6
    assert {sample.prompt for sample in read_samples(pictures, (), 100)} == {"Describe this image."}


def test_too_many_samples_are_thinned_out_evenly() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", r"line 2 is \[\], expected an object"),
        ('{"prompt": "a", "picture": "b"}', "line 2 is .* no other keys"),
        ('{"image": "0.png"}', "line 2 has the prompt None, expected a text"),
        ('{"prompt": "a", "answer": 1}', "line 2 has the answer 1"),
        ('{"prompt": "a", "image": 1}', "line 2 has the image 1"),
        ('{"prompt": "a", "image": "../x.png"}', "line 2 has the image '../x.png', expected a path inside"),
        ('{"prompt": "a", "image": "/x.png"}', "line 2 has the image '/x.png', expected a path inside"),
        ('{"prompt": "a", "image": "a\\u0000b"}', "line 2 has the image .* expected a path inside"),
        ('{"prompt": "a", "image": "no.png"}', "line 2: .*no.png"),
        ('{"prompt": "a", "image": "bad.png"}', "line 2: .*bad.png"),
        ('{"prompt": "\\ud800"}', "line 2: "),
    ],
)
def test_a_bad_line_is_named(checkpoint: Path, tmp_path: Path, line: str, message: str) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "calibration.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        quantize(checkpoint, tmp_path / "out", options_for(folder), Quiet())
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration"]


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_samples(tmp_path / "no", MARKUP, 1)
    with pytest.raises(InputError, match="holds no pictures"):
        read_samples(tmp_path, MARKUP, 1)
    lines = tmp_path / "calibration.jsonl"
    lines.write_text("\n")
    with pytest.raises(InputError, match="has no lines"):
        read_samples(tmp_path, MARKUP, 1)
    lines.write_bytes(b"\xff")
    with pytest.raises(InputError, match="expected UTF-8"):
        read_samples(tmp_path, MARKUP, 1)
    with lines.open("wb") as file:
        file.truncate(MAX_LINES_BYTES + 1)
    with pytest.raises(InputError, match="expected at most"):
        read_samples(tmp_path, MARKUP, 1)


def test_a_sample_longer_than_the_context_is_refused(pictures: Path, tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "tiny", TinyOptions(max_position_embeddings=40))
    with pytest.raises(InputError, match=r"0\.png has \d+ tokens, expected at most 40"):
        quantize(source, tmp_path / "out", options_for(pictures), Quiet())


# --- the loop ---------------------------------------------------------------------------------------------------------

# A process is slow to start, so this one also shows that llm-compressor and what it brings are not needed.
_KILLED = """
import sys
from pathlib import Path
sys.modules |= dict.fromkeys(("llmcompressor", "accelerate", "datasets", "auto_round"))  # importing them fails
import torch
from tests.export.quantize.test_quantize import Quiet, options_for
from varco_export.quantize import quantize
torch.set_num_threads(1)
quantize(sys.argv[1], Path(sys.argv[2]), options_for(Path(sys.argv[3])), Quiet(int(sys.argv[4])))
"""


def test_a_killed_run_continues_to_the_same_bytes(
    checkpoint: Path, pictures: Path, quantised: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = tmp_path / ".out.varco-quantize"
    arguments = [sys.executable, "-c", _KILLED, str(checkpoint), str(out), str(pictures), "2"]
    killed = subprocess.run(arguments, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    assert len(list((work / "checkpoint").iterdir())) == 2
    progress = Quiet()
    quantize(checkpoint, out, options_for(pictures), progress)
    assert "Continuing an earlier run: 2 of 3 layers are finished." in progress.notes
    assert contents(out) == contents(quantised)
    assert not work.exists()


@pytest.mark.parametrize("stage", ["write_activations", "write_shard"])
def test_a_run_that_fails_anywhere_in_a_layer_continues_to_the_same_bytes(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from varco_export.quantize import layers

    options = options_for(pictures, compensate=False)
    quantize(checkpoint, tmp_path / "expected", options, Quiet())
    calls = 0
    real = getattr(layers, stage)

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(layers, stage, failing)
    with pytest.raises(ExportError, match=r"No space left on device.*run the same command again"):
        quantize(checkpoint, tmp_path / "out", options, Quiet())
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    quantize(checkpoint, tmp_path / "out", options, Quiet())
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_linear_that_was_only_rounded_is_told_at_once(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that continues cannot know."""
    from varco_export.quantize import compensated

    real = compensated.measured_of
    monkeypatch.setattr(compensated, "measured_of", lambda *given: dataclasses.replace(real(*given), factors=()))
    real_write, progress = compensated.write_shard, Quiet()

    def failing(path: Path, *arguments: Any) -> None:
        if progress.notes[-1].startswith("note: language_model.layers.1."):
            raise OSError(28, "No space left on device")
        real_write(path, *arguments)

    monkeypatch.setattr(compensated, "write_shard", failing)
    with pytest.raises(ExportError):
        quantize(checkpoint, tmp_path / "out", options_for(pictures), progress)
    notes = [note for note in progress.notes if "was rounded to the nearest" in note]
    assert len(notes) == 2 * len(LINEARS)
    assert all("more calibration samples may avoid that" in note for note in notes)


def test_an_unfinished_run_of_other_settings_is_not_continued(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from varco_export.quantize import compensated

    def failing(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compensated, "write_shard", failing)
    out = tmp_path / "out"
    with pytest.raises(ExportError):
        quantize(checkpoint, out, options_for(pictures), Quiet())
    with pytest.raises(ExportError, match=r"unfinished run with another bits, group size. Run the same command"):
        quantize(checkpoint, out, options_for(pictures, bits=8, group_size=64), Quiet())
    others = shutil.copytree(pictures, tmp_path / "others")
    draw(others / "2.png", 2)
    with pytest.raises(ExportError, match="unfinished run with another calibration"):
        quantize(checkpoint, out, options_for(others), Quiet())


def test_two_runs_do_not_fill_one_folder(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    class Second(Quiet):
        def note(self, text: str) -> None:
            if text == "inside":
                with pytest.raises(ExportError, match="is being made by another run"):
                    quantize(checkpoint, tmp_path / "out", QuantizeOptions("fp8", max_samples=0), Quiet())

        @contextlib.contextmanager
        def stage(self, name: str, steps: int, done: int = 0) -> Iterator[Callable[[], None]]:
            self.note("inside")
            yield lambda: None

    quantize(checkpoint, tmp_path / "out", QuantizeOptions("fp8", max_samples=0), Second())
    leftover = tmp_path / ".out.varco-quantize"
    leftover.mkdir()  # what a kill right after the last rename leaves
    with pytest.raises(ExportError, match="exists already"):
        quantize(checkpoint, tmp_path / "out", QuantizeOptions("fp8", max_samples=0), Quiet())
    assert not leftover.exists()


def test_an_existing_target_is_refused_before_pictures_are_read(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    class Silent(Quiet):
        def note(self, text: str) -> None:
            pytest.fail(f"it went on: {text}")

    with pytest.raises(ExportError, match="exists already"):
        quantize(checkpoint, tmp_path, QuantizeOptions("gptq", pictures, group_size=32), Silent())


def test_every_file_is_on_the_disk_before_the_result_appears(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may keep the rename and lose what was not synced."""
    synced: dict[int, bytes] = {}
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        synced[path.stat().st_ino] = path.read_bytes() if path.is_file() else b""

    def rename(self: Path, target: Path) -> Path:
        if self.is_dir():
            files = {path.name: path for path in self.iterdir()}
            assert {"config.json", "model.safetensors.index.json", "tokenizer.json", "README.md"} <= files.keys()
            for path in files.values():
                assert synced.get(path.stat().st_ino) == path.read_bytes(), f"{path.name} is not on the disk"
            assert self.stat().st_ino in synced
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    quantize(checkpoint, tmp_path / "out", QuantizeOptions("rtn", group_size=32), Quiet())
    assert (tmp_path / "out" / "config.json").is_file()


def test_activations_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "activations.bin"
    samples = [np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)]
    write_activations(path, samples)
    assert all(map(np.array_equal, read_activations(path, [2, 1], 3), samples))
    with pytest.raises(ExportError, match="has 36 bytes, expected 48"):
        next(read_activations(path, [2, 2], 3))


# --- quality ----------------------------------------------------------------------------------------------------------


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (QuantizeOptions("awq"), "--method awq is unknown. Expected one of: gptq, fp8, none."),
        (QuantizeOptions("none", Path("x")), "measures nothing, got --calibration x"),
        (QuantizeOptions("none", rotate=False), "would copy the checkpoint"),
        (QuantizeOptions("gptq", rotate=False, seed=3), "--seed 3 is the rotation's, and nothing is rotated"),
        (QuantizeOptions("none", max_samples=3), "--method none takes no samples, got --samples 3"),
        (QuantizeOptions("fp8", Path("x"), max_samples=0), "--samples 0 measures nothing, got --calibration x"),
        (QuantizeOptions("fp8", max_samples=-1), "--samples -1 is out of range"),
        (QuantizeOptions("none", bits=4), "rounds nothing. Leave --bits"),
        (QuantizeOptions("fp8", scales="minmax"), "Leave --scales and --asymmetric out"),
        (QuantizeOptions("fp8", lm_head="int4"), "keeps a plain head"),
        (QuantizeOptions("rtn", scales="search"), "searches nothing"),
        (QuantizeOptions("gptq", scales="mse"), "--scales mse is unknown. Expected one of: search, minmax."),
        (QuantizeOptions("gptq", lm_head="fp8"), "--lm-head fp8 is unknown. Expected one of: plain, int4, int8."),
        (QuantizeOptions("gptq", seed=-1), "--seed -1 is out of range"),
        (QuantizeOptions("fp8", bits=8), "has 8 bits and a scale per row"),
        (QuantizeOptions("gptq", Path("x"), bits=3), "--bits 3 is unknown. Expected one of: 4, 8."),
        (QuantizeOptions("gptq", Path("x"), group_size=48), "--group-size 48 is unknown"),
        (QuantizeOptions("gptq", Path("x"), max_samples=0), "--samples 0 is out of range"),
        (QuantizeOptions("fp8", device="tpu"), "--device tpu is unknown"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: QuantizeOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.check()


def test_a_group_size_that_does_not_divide_the_columns_is_refused_with_those_that_do(
    pictures: Path, tmp_path: Path
) -> None:
    source = make_tiny(tmp_path / "tiny", TinyOptions())
    with pytest.raises(UsageError, match=r"128 does not divide the 64 columns of self_attn.q_proj.weight. .*of: 32\."):
        quantize(source, tmp_path / "out", options_for(pictures, group_size=None), Quiet())


def test_a_quantised_checkpoint_is_not_quantised_again(quantised: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantis"):
        quantize(quantised, tmp_path / "out", options_for(pictures), Quiet())


def test_missing_libraries_are_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: None if name == "compressed_tensors" else object())
    with pytest.raises(MissingExtraError, match=r"Quantising needs the extra 'quantize'"):
        quantize(checkpoint, tmp_path / "out", QuantizeOptions("fp8", max_samples=0), Quiet())


def test_the_command_says_what_it_made_and_ends_in_one_line_otherwise(
    checkpoint: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(checkpoint), str(tmp_path / "out"), "--method"]
    assert main([*arguments, "gptq"]) == 2
    assert "128 does not divide" in capfd.readouterr().err
    assert main([*arguments, "gptq", "--calibration", str(pictures), "--group-size", "32", "--bits", "8"]) == 0
    out, err = capfd.readouterr()
    assert "is ready: " in out
    assert "8 bits, a scale per 32 weights" in out
    assert "layers: 3 of 3" in err
    assert main([*arguments, "fp8"]) == 1
    assert capfd.readouterr().err.count("\n") == 1
