"""Whether an answer is as good when its sums are taken in another order: with drafts, or over a prompt in other parts.

    python -m benchmarks.draft_quality REFERENCE BUNDLE [BUNDLE ...] --out draft_quality.json      # questions in text
    python -m benchmarks.draft_quality REFERENCE BUNDLE [BUNDLE ...] --pictures 100                # drawn pictures

REFERENCE is the bundle in fp32, and every bundle is of the same checkpoint. Two comparisons:

- *By tokens.* The reference's answer is put through each bundle in several ways: a token a step (as without drafts),
  four and nine tokens a step (as with drafts that are all right), and with the prompt in two parts (as after a restored
  prefix, or a further question) or in parts of 16 positions. Of each way: `kl`, the divergence from the reference in
  nats per token, and `top1_agreement`; `kl_more`, by how much its KL is larger than that of a token a step, paired by
  answer; `moved`, how far it is from a token a step itself (KL); `same_bits`, the share of equal rows of logits.
- *By answers.* Each question is asked with drafts and without. `equal_answers` counts those that are the same;
  `nats_per_token` is how unlikely the reference finds what was said, and `nats_more` the paired difference. With
  `--pictures` the questions are those of `training.evaluate`, and its accuracies are given for both.

Errors are standard errors over answers. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.divergence import Array, ByAnswer, distance, divergence, log_softmax
from benchmarks.document import add_out, finish
from benchmarks.machine import describe_machine
from training.evaluate import evaluate
from training.pictures import held_out_seeds
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, VerifyingBackend
from varco_runtime.conversation import user_turn
from varco_runtime.errors import VarcoError
from varco_runtime.media_encoder import VisionTimes

QUESTIONS = (
    "Explain how rain forms.",
    "Write a short story about a fox and a crow.",
    "List ten animals and say one sentence about each.",
    "What is the capital of France and what can one see there?",
    "Give me a recipe for pancakes with exact amounts.",
    "Write a polite letter that asks for a refund of a train ticket.",
    "What is the difference between a virus and a bacterium?",
    "Count from one to thirty in words.",
    "Write a Python function that reverses a list.",
    "Describe the planets of the solar system in order.",
    "What are the benefits of sleep?",
    "Tell me about the history of the printing press.",
)
A_TOKEN_A_STEP = "1 token a step"


@dataclass(frozen=True, slots=True)
class Way:
    """How the tokens of a prompt and its answer go through the decoder: `step` tokens of the answer at once, and the
    prompt in two halves or in parts of `part` positions, if that is not None."""

    name: str
    step: int = 1
    halves: bool = False
    part: int | None = None

    def cuts(self, length: int) -> list[int]:
        """Where parts of the prompt begin, 0 and the end included."""
        if self.halves:
            return [0, length // 2, length]
        return [*range(0, length, self.part or length), length]


WAYS = (
    Way(A_TOKEN_A_STEP),
    Way("4 tokens a step", step=4),
    Way("9 tokens a step", step=9),
    Way("prompt in two parts", halves=True),
    Way("prompt in parts of 16", part=16),
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked."""

    image: Image.Image | None
    prompt: str


@dataclass(frozen=True, slots=True)
class Expected:
    """The reference's answer to a question, and its logits at each position of it."""

    token_ids: tuple[int, ...]
    logits: Array


@dataclass(slots=True)
class Answers:
    """What a bundle said, in the order in which it was asked."""

    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


def logits_of(varco: Varco, question: Question, token_ids: Sequence[int], way: Way) -> Array:
    """Logits `[len(token_ids), vocab]` at each position of a given answer, computed in one of the ways."""
    backend, manifest = varco.backend, varco.bundle.manifest
    assert isinstance(backend, VerifyingBackend), "drafts are for backends that verify several tokens at once"
    session = varco.session
    prompt = session.prompt([user_turn(question.image, question.prompt, manifest)])
    ids = np.array(prompt.ids)
    tokens = session.encoder.tokens(prompt.places, VisionTimes())[0] if prompt.places else None
    session.memory.forget_sequence()  # the cache is about to hold something else
    cuts = way.cuts(len(ids))
    for start, end in itertools.pairwise(cuts):
        rows = backend.prefill(PromptInputs(ids[:end], manifest.prompt.image_token_id, tokens), start)  # type: ignore[attr-defined]
    pieces = [rows.copy()]
    for start in range(0, len(token_ids) - 1, way.step):
        put = token_ids[start : min(start + way.step, len(token_ids) - 1)]
        pieces.append(backend.decode_steps(put, len(ids) + start).copy())
    return np.concatenate(pieces)


def expect(reference: Varco, questions: Sequence[Question], max_new_tokens: int) -> list[Expected]:
    """What the reference says to each question."""
    expected = []
    for question in questions:
        answer = reference.ask(question.image, question.prompt, max_new_tokens=max_new_tokens, speculate=False)
        logits = reference.score(question.image, question.prompt, answer.token_ids)
        expected.append(Expected(answer.token_ids, logits))
    return expected


def by_tokens(varco: Varco, questions: Sequence[Question], expected: Sequence[Expected]) -> dict[str, Any]:
    """Every way's distance from the reference, and from a token a step."""
    distances: dict[str, list[tuple[Array, Array]]] = {way.name: [] for way in WAYS}
    moved: dict[str, list[tuple[Array, Array]]] = {way.name: [] for way in WAYS}
    same_bits: dict[str, list[float]] = {way.name: [] for way in WAYS}
    for question, answer in zip(questions, expected, strict=True):
        plain = logits_of(varco, question, answer.token_ids, WAYS[0])
        for way in WAYS:
            logits = plain if way is WAYS[0] else logits_of(varco, question, answer.token_ids, way)
            distances[way.name].append(divergence(answer.logits, logits))
            moved[way.name].append(divergence(plain, logits))
            same_bits[way.name].append(float((plain == logits).all(axis=1).mean()))
    _, base = distance(distances[A_TOKEN_A_STEP])
    report: dict[str, Any] = {}
    for name, pairs in distances.items():
        figures, kl_by_answer = distance(pairs)
        more, error = kl_by_answer.gain(base)
        report[name] = figures | {
            "kl_more": more,
            "kl_more_error": error,
            "moved": distance(moved[name])[0]["kl"],
            "same_bits": float(np.mean(same_bits[name])),
        }
    return report


def nats(reference: Varco, questions: Sequence[Question], answers: Answers) -> ByAnswer:
    """How unlikely the reference finds each answer, token by token."""
    sums = []
    for question, token_ids in zip(questions, answers.token_ids, strict=True):
        rows = log_softmax(reference.score(question.image, question.prompt, token_ids))
        sums.append(-float(rows[np.arange(len(token_ids)), list(token_ids)].sum()))
    return ByAnswer(np.array(sums), np.array([len(token_ids) for token_ids in answers.token_ids], np.float64))


def by_answers(reference: Varco, varco: Varco, questions: Sequence[Question], max_new_tokens: int) -> dict[str, Any]:
    """What is said with drafts and without, and how likely the reference finds it."""
    said = {True: Answers(), False: Answers()}
    for index, question in enumerate(questions):
        for speculate in (True, False) if index % 2 else (False, True):
            varco.session.memory.forget_sequence()  # so that both begin alike
            answer = varco.ask(question.image, question.prompt, max_new_tokens=max_new_tokens, speculate=speculate)
            said[speculate].token_ids.append(answer.token_ids)
            said[speculate].drafted += answer.timings.drafted
            said[speculate].accepted += answer.timings.accepted
    pairs = zip(said[True].token_ids, said[False].token_ids, strict=True)
    found = {speculate: nats(reference, questions, answers) for speculate, answers in said.items()}
    each = {speculate: one.kl / one.num_tokens for speculate, one in found.items()}
    more = each[True] - each[False]
    return {
        "answers": len(questions),
        "equal_answers": sum(with_drafts == without for with_drafts, without in pairs),
        "drafted": said[True].drafted,
        "accepted": said[True].accepted,
        "nats_per_token_with_drafts": float(each[True].mean()),
        "nats_per_token_without": float(each[False].mean()),
        "nats_more": float(more.mean()),
        "nats_more_error": float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else float("nan"),
    }


def accuracies(varco: Varco, num_pictures: int, max_new_tokens: int) -> tuple[dict[str, Any], list[Question]]:
    """`training.evaluate` with drafts and without, and the questions that it asked."""
    asked: list[Question] = []
    report = {}
    for speculate in (False, True):
        asked.clear()

        def answer(image: Image.Image, prompt: str, speculate: bool = speculate) -> str:
            asked.append(Question(image, prompt))
            return varco.ask(image, prompt, max_new_tokens=max_new_tokens, speculate=speculate).text

        figures = evaluate(answer, held_out_seeds(num_pictures)).report()
        report["with_drafts" if speculate else "without"] = {
            name: value for name, value in figures.items() if not name.startswith("by_")
        }
    return report, asked


def measure(
    reference: Path, bundles: Sequence[Path], num_pictures: int, num_questions: int, max_new_tokens: int
) -> dict[str, Any]:
    """All figures, by the bundles' names. With pictures, both comparisons take the first `num_questions` asked."""
    exact = Varco.load(reference)
    report: dict[str, Any] = {}
    expected: list[Expected] = []
    for bundle in bundles:
        varco = Varco.load(bundle)
        figures: dict[str, Any] = {"decoder": varco.bundle.manifest.decoder.precision}
        questions = [Question(None, prompt) for prompt in QUESTIONS]
        if num_pictures:
            figures["accuracies"], questions = accuracies(varco, num_pictures, max_new_tokens)
        questions = questions[:num_questions]
        expected = expected or expect(exact, questions, max_new_tokens)  # every bundle is asked the same
        figures["by_tokens"] = by_tokens(varco, questions, expected)
        figures["by_answers"] = by_answers(exact, varco, questions, max_new_tokens)
        report[bundle.name] = figures
        print(table(bundle.name, figures), flush=True)
    return report


def table(name: str, figures: dict[str, Any]) -> str:
    """One bundle's figures for people."""
    lines = [f"{name}: {figures['decoder']}"]
    for way, row in figures["by_tokens"].items():
        more = f"{row['kl_more']:+.1e} ± {row['kl_more_error']:.1e}"
        lines.append(
            f"  {way:24} KL {row['kl']:.5f}  more {more}  top-1 {row['top1_agreement']:.2%}  moved {row['moved']:.1e}"
            f"  same bits {row['same_bits']:.1%}"
        )
    answers = figures["by_answers"]
    lines.append(
        f"  {answers['equal_answers']} of {answers['answers']} answers equal, {answers['accepted']} of "
        f"{answers['drafted']} guesses right; nats per token {answers['nats_per_token_with_drafts']:.4f} with drafts, "
        f"{answers['nats_per_token_without']:.4f} without, {answers['nats_more']:+.4f} ± "
        f"{answers['nats_more_error']:.4f}"
    )
    for kind, row in figures.get("accuracies", {}).items():
        lines.append(
            f"  {kind:12} words {row['word_accuracy']:.2%} ± {row['word_accuracy_error']:.2%}, "
            f"CER {row['character_error_rate']:.2%}, IoU {row['mean_iou']:.4f}, "
            f"grounding {row['grounding_accuracy']:.1%}, referring {row['referring_accuracy']:.1%}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write the JSON document where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="the bundle in fp32")
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles of the same checkpoint")
    parser.add_argument("--pictures", type=int, default=0, help="held-out pictures to draw; 0: questions in text")
    parser.add_argument("--questions", type=int, default=10**6, help="most questions of the two comparisons")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    add_out(parser)
    options = parser.parse_args(arguments)
    try:
        results = measure(
            options.reference, options.bundles, options.pictures, options.questions, options.max_new_tokens
        )
    except VarcoError as error:
        raise SystemExit(f"error: {error}") from None
    figures = {
        "reference": options.reference.name,
        "max_new_tokens": options.max_new_tokens,
        "pictures": options.pictures,
        "bundles": results,
        "machine": describe_machine(),
    }
    finish(figures, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
