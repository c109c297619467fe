"""`varco verify --numerics`, `inspect` and `probe` on bundles with probes, without, and with damaged ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import export_bundle
from tests.makers import broken
from tests.makers.probes import PRECISIONS
from varco_cli.main import main
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.bundle.opening import read_manifest, write_manifest


def test_verify_numerics_prints_a_table_and_passes(
    probed: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(probed("int4")), "--numerics", "--threads", "1"]) == 0
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


def test_verify_numerics_ends_with_one_line_and_status_1_on_a_fail(
    probed: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = broken.broken(probed("int4"), tmp_path / "broken", broken.skipped_newline)
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


def test_inspect_names_the_probes(probed: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(probed("int4"))]) == 0
    out = capsys.readouterr().out
    assert re.search(r"acceptance probes +2 \(chat, ground\), [\d.]+ kB; varco verify --numerics asks them", out)
    assert "Checked here: manifest, tokenizer and probes;" in out
    assert main(["inspect", str(probed("int4")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["derived"]["probe_tasks"] == ["chat", "ground"]


def test_inspect_says_that_there_are_no_probes(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    assert re.search("acceptance probes +none; varco probe CHECKPOINT BUNDLE puts some in", out)
    assert "Checked here: manifest and tokenizer;" in out


@pytest.mark.parametrize(("content", "message"), [(b"{", "has 1 bytes, expected"), (None, "no file of probes")])
def test_inspect_refuses_damaged_probes_in_one_line(
    probed: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    message: str,
) -> None:
    """Damage that the hash tells of, and nonsense that was hashed."""
    target = Path(shutil.copytree(probed("int4"), tmp_path / "damaged"))
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


def test_the_probe_command_adds_probes(
    probe_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = export_bundle(probe_checkpoint, tmp_path / "bundle")
    assert main(["probe", str(probe_checkpoint), str(target)]) == 0
    assert "holds probes" in capsys.readouterr().err
    assert main(["verify", str(target), "--numerics", "--threads", "1"]) == 0
