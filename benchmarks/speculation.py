"""What drafts save on OCR-like answers: tokens per second with and without, alternating, and how many answers agree.

    python -m benchmarks.speculation                     # the demo bundle reads held-out pictures
    python -m benchmarks.speculation BUNDLE --replay     # any bundle, made to say the true words and boxes of pages

A model with random weights says nothing like OCR, so `--replay` puts the tokens of a page's true answer (three
decimals, in reading order) in place of its choices: every step computes what it would, and only the choice is replaced.
The limit is the number of steps, as if a step of several tokens cost no more than one of one. Whether answers that
differ are as good is what `draft_quality.py` measures. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.document import add_out, finish
from benchmarks.machine import describe_machine
from training.pictures import draw, held_out_seeds
from varco_cli.commands.demo import BUNDLE
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs, VerifyingBackend
from varco_runtime.generation.loop import Decoding, generate_tokens
from varco_runtime.generation.speculation import Chances, Drafter, StepCosts

PROMPT_TOKENS = 512
MAX_NEW_TOKENS = 160


@dataclass(slots=True)
class Totals:
    """What all answers took; `equal_answers` of `answers` are those of the other way."""

    answers: int = 0
    equal_answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0

    def report(self) -> dict[str, float]:
        return {
            "answers": self.answers,
            "equal_answers": self.equal_answers,
            "tokens": self.tokens,
            "tokens_per_second": round(self.tokens / self.seconds, 2),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "acceptance": round(self.accepted / self.drafted, 4) if self.drafted else 0.0,
            "tokens_per_step": round(self.tokens / (self.tokens - self.accepted), 3),
        }


def answers(varco: Varco, num_pictures: int) -> dict[bool, Totals]:
    """Real answers to `<ocr>`, each asked with and without drafts, in changing order."""
    totals = {True: Totals(), False: Totals()}
    for index, seed in enumerate(held_out_seeds(num_pictures)):
        image = draw(seed).image
        texts = {}
        for speculate in (True, False) if index % 2 else (False, True):
            answer = varco.ask(image, "<ocr>", max_new_tokens=MAX_NEW_TOKENS, speculate=speculate)
            texts[speculate] = answer.text.encode()
            total, steps = totals[speculate], len(answer.token_ids) - 1
            total.tokens += steps
            total.seconds += answer.timings.tpot_s * steps
            total.drafted += answer.timings.drafted
            total.accepted += answer.timings.accepted
        for total in totals.values():
            total.answers += 1
            total.equal_answers += texts[True] == texts[False]
    return totals


class Replay:
    """Chooses the tokens of a script, whatever the logits say."""

    is_greedy = False

    def __init__(self, script: list[int]) -> None:
        self._tokens = iter(script)

    def next(self, logits: np.ndarray[Any, Any]) -> int:
        return next(self._tokens)


def page_answer(seed: int) -> str:
    """The true answer to `<ocr>` about a page of up to sixteen words, as VARCO writes it."""
    words = draw(seed, content="page").words
    return "\n".join(
        f"<char>{word.text}</char><bbox>{', '.join(f'{side:.3f}' for side in word.box)}</bbox>" for word in words
    )


def replays(varco: Varco, num_pages: int) -> dict[bool, Totals]:
    """Pages put in the decoder's mouth after a prompt of random tokens, with and without drafts."""
    assert isinstance(varco.backend, VerifyingBackend), "drafts are for backends that verify several tokens at once"
    totals = {True: Totals(), False: Totals()}
    chances, costs = Chances(), StepCosts()
    tokenizer, prompt = varco.session.tokenizer, varco.bundle.manifest.prompt
    ids = np.random.default_rng(0).integers(0, 256, PROMPT_TOKENS)
    logits = varco.backend.prefill(PromptInputs(ids, prompt.image_token_id, None), 0)[-1]  # type: ignore[attr-defined]
    for index, seed in enumerate(held_out_seeds(num_pages)):
        script = encode(varco, page_answer(seed))
        for speculate in (True, False) if index % 2 else (False, True):
            # Without a drafter the loop takes plain steps.
            drafter = Drafter(tokenizer, (), chances, costs) if speculate else None
            put: list[int] = []
            started = time.perf_counter()
            decoding = Decoding(
                varco.backend,  # type: ignore[arg-type]
                logits,
                PROMPT_TOKENS,
                Replay([*script, script[-1]]),  # type: ignore[arg-type]
                (),
                len(script),
                put.append,
                drafter,
            )
            told = list(generate_tokens(decoding))
            total = totals[speculate]
            total.seconds += time.perf_counter() - started
            assert told == script, f"Bug: page {seed} was not told as it is"
            total.answers += 1
            total.equal_answers += 1
            total.tokens += len(told) - 1
            if drafter is not None:
                total.drafted += drafter.drafted
                total.accepted += drafter.accepted
    return totals


def encode(varco: Varco, text: str) -> list[int]:
    """Markup tags as their own tokens, what lies between as plain text."""
    tokenizer = varco.session.tokenizer
    ids: list[int] = []
    plain = ""
    while text:
        tag = next((tag for tag in tokenizer.added_token_ids if text.startswith(tag)), None)
        if tag is None:
            plain, text = plain + text[0], text[1:]
            continue
        ids += [*tokenizer.encode_plain(plain), tokenizer.added_token_ids[tag]]
        plain, text = "", text[len(tag) :]
    return [*ids, *tokenizer.encode_plain(plain)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=BUNDLE)
    parser.add_argument("--replay", action="store_true", help="put true answers in place of the model's choices")
    parser.add_argument("--pictures", type=int, default=60)
    add_out(parser)
    options = parser.parse_args(arguments)
    if options.pictures < 1:
        parser.error(f"--pictures {options.pictures} is too few, expected at least 1")
    varco = Varco.load(options.bundle, max_context=None if options.bundle == BUNDLE else 2048)
    run = replays if options.replay else answers
    run(varco, 2)  # warm up
    varco.session.chances, varco.session.costs = Chances(), StepCosts()
    totals = run(varco, options.pictures)
    figures = {
        "bundle": options.bundle.name,
        "decoder": varco.bundle.manifest.decoder.precision,
        "replay": options.replay,
        "pictures": options.pictures,
        "with_drafts": totals[True].report(),
        "without": totals[False].report(),
        "times_faster": round(
            totals[True].report()["tokens_per_second"] / totals[False].report()["tokens_per_second"], 3
        ),
        "limit_times": totals[True].report()["tokens_per_step"],
        "machine": describe_machine(),
    }
    for name in ("without", "with_drafts"):
        row = figures[name]
        print(
            f"{name:12} {row['tokens_per_second']:8.1f} tokens/s, {row['accepted']} of {row['drafted']} guesses right"
        )
    same = f"{totals[True].equal_answers} of {totals[True].answers} answers equal"
    print(f"{figures['times_faster']:.2f} times as fast, limit {figures['limit_times']:.2f}; {same}")
    finish(figures, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
