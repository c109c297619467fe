"""Acceptance probes made: drawn pictures, fixed answers, and what the exact model says about them.

The file goes into the bundle beside the graphs, under a name made of its hash, so that a bundle gets other probes by
one atomic exchange of the manifest. `varco_runtime/probes/file.py` holds its schema, `replay.py` there replays it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.probes.checkpoint_facts import checkpoint_facts
from varco_export.probes.formats import LinearFormat
from varco_export.probes.held_formats import coarsest, linear_formats, vision_formats
from varco_export.probes.questions import Drawn, Question, draw_media, encode_answer, questions
from varco_export.probes.reference_pass import HEAD, ROWS, Advance, Logits, ReferencePass, Sequence
from varco_export.progress import SILENT, Progress
from varco_export.writing.hashed_file import HashedFile
from varco_runtime.bundle.manifest import FileFacts, Manifest
from varco_runtime.bundle.opening import Bundle, read_manifest, write_manifest
from varco_runtime.dtypes import Array
from varco_runtime.errors import CheckpointError, ExportError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.media import Medium
from varco_runtime.picture.packing import media_plan, num_medium_tokens, pack
from varco_runtime.picture.tiles import media_tiles, normalize
from varco_runtime.probes.digest import digest, newline_digest
from varco_runtime.probes.file import MAX_BYTES, NUM_TOP, Noise, Probe, ProbePicture, Probes, kept_ids, to_json
from varco_runtime.probes.grade import AS_EXPORTED
from varco_runtime.probes.media import probe_message, shown_media
from varco_runtime.probes.replay import Scored, divergence, logit_error, placeholder_ids
from varco_runtime.prompt.prompter import Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

PROBES_BELOW_PARAMETERS = 10**9
"""Parameters below which `varco export` makes probes unasked: the pass takes a minute there, many for the 14B."""
MAX_ANSWER_TOKENS = 96
"""Longer answers, where the tokenizer knows few words, are cut: what more positions would tell is little."""


def add_probes(
    source: str | Path, target: Path, progress: Progress = SILENT, vision_from: str | None = None
) -> Manifest:
    """Give an existing bundle probes made from its checkpoint; those it had go. The manifest is exchanged whole.

    Args:
        source: The checkpoint that the bundle was exported from: a folder, or a Hugging Face repository id.
        target: The bundle's folder.
        progress: Who is told how far the exact model is.
        vision_from: As in the export, where the language model was quantized apart.

    Returns:
        The bundle's new manifest.

    Raises:
        BundleError: The folder holds no bundle, or a changed one.
        CheckpointError: The checkpoint cannot be read.
        ExportError: Checkpoint and bundle are not of one model, the bundle's context holds no probe, or the bundle was
            changed meanwhile.
    """
    bundle = Bundle.open(target)
    checkpoint = Checkpoint.open(source, vision_source=vision_from)
    _check_same_model(checkpoint, bundle)
    former = bundle.manifest
    bare = {name: facts for name, facts in former.files.items() if name != former.probes}
    manifest = write_probes(checkpoint, target, dataclasses.replace(former, probes=None, files=bare), progress)
    if manifest.probes is None:
        raise ExportError(
            f"{target} holds {former.max_context} tokens, fewer than any probe needs. Export it with a larger "
            "--max-context."
        )
    try:
        bundle.stamps.pop(former.probes or "", None)  # written again where the new ones are the same
        bundle.check_unchanged()
        if read_manifest(target) != former:
            raise ExportError(f"{target} was changed while its probes were made. Make them again.")
        write_manifest(target, manifest)  # in one step, by renaming
    except BaseException:
        if manifest.probes != former.probes:
            (target / manifest.probes).unlink(missing_ok=True)
        raise
    if former.probes not in (None, manifest.probes):
        with suppress(OSError):  # no longer named, so never opened again
            (target / str(former.probes)).unlink()
    return manifest


def write_probes(checkpoint: Checkpoint, folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Write the probes of a bundle whose other files lie in `folder`; returns the manifest that names them.

    The manifest is returned unchanged where the context holds no probe.
    """
    steps = checkpoint.config.vision.num_hidden_layers + checkpoint.config.text.num_hidden_layers + 1
    with progress.component("probes", steps) as advance:
        probes = make_probes(checkpoint, folder, manifest, advance)
    if probes is None:
        return manifest
    content = to_json(probes)
    assert len(content) <= MAX_BYTES, f"Bug: probes of {len(content)} bytes"
    name = f"probes-{hashlib.sha256(content).hexdigest()[:8]}.json"
    facts = _write(folder / name, content)
    return dataclasses.replace(manifest, probes=name, files={**manifest.files, name: facts})


def make_probes(checkpoint: Checkpoint, folder: Path, manifest: Manifest, advance: Advance) -> Probes | None:
    """Draw, ask and answer; None where the context holds no probe. `folder` holds the bundle's other files."""
    tokenizer = Tokenizer.from_json((folder / manifest.tokenizer).read_text(encoding="utf-8"))
    template = (folder / manifest.chat_template).read_text(encoding="utf-8")
    prompter = Prompter(template, manifest.prompt, tokenizer, manifest.media_facts)
    drawn = draw_media(manifest.image.tile_px, manifest.media_facts)
    shown = [shown_media(load_picture(one.image), one.shows, one.count, manifest.image) for one in drawn]
    asked = []
    for question in questions(drawn):
        media = () if question.picture is None else shown[question.picture]
        counts = [num_medium_tokens(medium, manifest.image) for medium in media]
        prompt_ids = prompter.encode_media([probe_message(question.prompt, media)], counts).ids
        answer_ids = [*encode_answer(question.answer, tokenizer), manifest.generation.eos_token_ids[0]]
        ids = np.array(prompt_ids + answer_ids[:MAX_ANSWER_TOKENS], np.int32)
        if len(ids) <= manifest.max_context:
            asked.append((question, ids, len(ids) - len(prompt_ids)))
    if not asked:
        return None

    seen = vision_formats(folder, manifest)
    formats = linear_formats(checkpoint, folder / manifest.decoder.file)
    if manifest.embedding is not None and manifest.embedding.head_rows is not None:
        formats[ROWS] = dataclasses.replace(formats[HEAD], activations="float")
    reference = ReferencePass(checkpoint, seen | formats)
    with np.errstate(all="ignore"):  # what comes out is checked
        pictures, tokens = _encode_pictures(reference, drawn, shown, manifest, advance)
        sequences = [_sequence(question, ids, num_answer, tokens, manifest) for question, ids, num_answer in asked]
        heads = _other_heads(formats.get(HEAD), manifest.decoder.compute)
        logits = reference.logits(sequences, manifest.prompt.image_token_id, advance, heads)
    for one, streams in zip(drawn, tokens, strict=True):
        _check_finite(f"makes of the picture {one.name!r}", *streams.values())
    for (question, _, _), answer in zip(asked, logits, strict=True):
        _check_finite(f"answers {question.prompt[:60]!r} with", answer.exact, answer.built, answer.noisy)
    probes = tuple(_probe(question, ids, one) for (question, ids, _), one in zip(asked, logits, strict=True))
    return Probes(
        vision=coarsest(seen.values(), manifest.vision.compute),
        decoder=coarsest(formats.values(), manifest.decoder.compute),
        noise=_noise(probes, logits),
        facts=checkpoint_facts(checkpoint, folder, manifest),
        divergences=_divergences(probes, logits),
        pictures=tuple(pictures),
        probes=probes,
    )


def _sequence(
    question: Question, ids: Array, num_answer: int, tokens: list[dict[str, Array]], manifest: Manifest
) -> Sequence:
    """Return all but the last token of a probe, after which nothing is asked, with the rows of what it shows."""
    if question.picture is None:
        return Sequence(ids[:-1], None, num_answer)
    mine = tokens[question.picture]
    return Sequence(_one_placeholder(ids[:-1], manifest), mine["exact"], num_answer, mine.get("built"))


def _one_placeholder(ids: Array, manifest: Manifest) -> Array:
    """Return ids in which the image token stands for videos too, as the reference takes them."""
    return np.where(np.isin(ids, placeholder_ids(manifest)), np.int32(manifest.prompt.image_token_id), ids)


def _encode_pictures(
    reference: ReferencePass,
    drawn: list[Drawn],
    shown: list[tuple[Medium, ...]],
    manifest: Manifest,
    advance: Advance,
) -> tuple[list[ProbePicture], list[dict[str, Array]]]:
    """Digests of what a bundle's networks should make of each picture, and its image tokens. All tiles go together."""
    tiles = [normalize(media_tiles(media, manifest.image), manifest.image) for media in shown]
    patches = reference.patch_features(np.concatenate(tiles), advance)
    features = reference.image_features(patches)
    newline, stream = reference.newline(), "built" if "built" in features else "exact"
    pictures, all_tokens, start = [], [], 0
    for one, media, pixels in zip(drawn, shown, tiles, strict=True):
        mine = slice(start, start + len(pixels))
        start = mine.stop
        plan = media_plan(media, manifest.image)
        tokens = {name: pack(value[mine], newline, plan) for name, value in features.items()}
        png = io.BytesIO()
        one.image.save(png, "PNG", optimize=True)
        given = patches.get(stream, patches["exact"]), features[stream]
        vision, projector = (digest(value[mine].reshape(-1, value.shape[-1])) for value in given)
        own = tokens[stream]
        pictures.append(
            ProbePicture(
                one.name,
                png.getvalue(),
                vision,
                projector,
                digest(own),
                newline_digest(own, plan),
                one.shows,
                one.count,
            )
        )
        all_tokens.append(tokens)
    return pictures, all_tokens


def _other_heads(own: LinearFormat | None, compute: str) -> dict[str, LinearFormat]:
    """What the last layer could be instead, by the option of the export that makes it so."""
    if own is None or not own.rounds_weight:
        return {}
    finer = {} if own.kind != "int4" else {"--lm-head int8": dataclasses.replace(own, kind="int8")}
    return {**finer, f"--lm-head {compute}": LinearFormat()}


def _probe(question: Question, ids: Array, logits: Logits) -> Probe:
    """What is kept of the logits `[num_answer, vocab]`."""
    num_answer, vocab_size = logits.exact.shape
    # Stable, so that equal logits come in the same order everywhere.
    top_ids = np.argsort(-logits.exact, axis=1, kind="stable")[:, :NUM_TOP].astype(np.int32)
    kept = kept_ids(top_ids, vocab_size)
    exact = np.take_along_axis(logits.exact, kept, axis=1)
    wide = np.float64(logits.exact)
    peak = wide.max(axis=1)
    log_sum_exp = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))
    return Probe(
        question.task,
        question.picture,
        question.prompt,
        question.answer,
        ids,
        num_answer,
        top_ids,
        exact=exact,
        built=exact if logits.built is None else np.take_along_axis(logits.built, kept, axis=1),
        log_sum_exp=log_sum_exp.astype(np.float32),
        spread=wide.std(axis=1).astype(np.float32),
    )


def _check_finite(does: str, *values: Array | None) -> None:
    """Refuse a model that gives no numbers: weights may be finite, and what they make of an input not."""
    if not all(np.isfinite(one).all() for one in values if one is not None):
        raise CheckpointError(
            f"The model {does} NaN or infinity, computed in fp32 from its own finite weights, expected numbers. "
            "Compare the checkpoint's files with the original repository."
        )


def _noise(probes: tuple[Probe, ...], logits: list[Logits]) -> Noise:
    """How far rounding moves this model's logits, as `varco_runtime.probes.replay` counts errors."""

    def error(stream: str, pictures: bool) -> float:
        pairs = [
            Scored(probe, getattr(one, stream))
            for probe, one in zip(probes, logits, strict=True)
            if (probe.picture is not None) is pictures and getattr(one, stream) is not None
        ]
        found = logit_error(pairs) if pairs else 0.0
        return found if math.isfinite(found) else 0.0  # logits that are all alike have no spread

    return Noise(
        text=error("noisy", False),
        pictures=error("noisy", True),
        text_arithmetic=error("disturbed", False),
        pictures_arithmetic=error("disturbed", True),
    )


def _divergences(probes: tuple[Probe, ...], logits: list[Logits]) -> dict[str, float]:
    """KL divergence from full precision, of the bundle as it is and with one option of the export changed."""
    found: dict[str, list[Scored]] = {}
    for probe, one in zip(probes, logits, strict=True):
        built = one.exact if one.built is None else one.built
        found.setdefault(AS_EXPORTED, []).append(Scored(probe, built if one.noisy is None else one.noisy))
        if one.noisy is not None:
            found.setdefault("--activations float", []).append(Scored(probe, built))
        for name, other in one.others.items():
            found.setdefault(name, []).append(Scored(probe, other))
    return {name: divergence(scored) for name, scored in found.items()}


def _check_same_model(checkpoint: Checkpoint, bundle: Bundle) -> None:
    model, text, vision = bundle.manifest.model, checkpoint.config.text, checkpoint.config.vision
    for what, got, expected in (
        ("hidden_size", text.hidden_size, model.hidden_size),
        ("num_layers", text.num_hidden_layers, model.num_layers),
        ("num_attention_heads", text.num_attention_heads, model.num_attention_heads),
        ("num_key_value_heads", text.num_key_value_heads, model.num_key_value_heads),
        ("vocab_size", text.vocab_size, model.vocab_size),
        ("vision_layers", vision.num_hidden_layers, model.vision_layers),
        ("vision_hidden_size", vision.hidden_size, model.vision_hidden_size),
    ):
        if got != expected:
            raise ExportError(
                f"{checkpoint.folder.name} has {what} {got}, the bundle {bundle.folder} has {expected}. Give the "
                "checkpoint that the bundle was exported from."
            )


def _write(path: Path, content: bytes) -> FileFacts:
    """A file beside which a former one of the same name, and so of the same content, may lie."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with HashedFile(temporary) as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return file.facts()
