"""What it costs to hold an answer to a grammar: a mask per token over a real vocabulary, compiling, memory.

    python -m benchmarks.grammars CHECKPOINT --out grammars.json

CHECKPOINT is a folder in the HF format, of which the tokenizer and the JSON files are read and no weights. Answers that
a good model would give are fed token by token. A token costs what is forced there, the mask where nothing is, and
taking the token. The limit beside them is 100 microseconds a mask; the floor is what a token costs anyway, the argmax
over a row of logits. On a busy machine the median and the nine tenths say more than the largest, which is another
process's turn. Prints a table, ends with one JSON line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.document import add_out, finish
from benchmarks.machine import describe_machine, spread
from varco_export.config.config_reader import read_config
from varco_export.config.prompts import prompts_of
from varco_runtime.prompt.tokenizer import Tokenizer
from varco_serve.grammar.grammars import Grammars

LIMIT_US = 100.0
REPETITIONS = 5
PAGE = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "kind": {"enum": ["receipt", "letter", "sign"]},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
    },
    "required": ["title", "kind", "lines"],
    "additionalProperties": False,
    "$defs": {
        "line": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "price": {"type": "number"}},
            "required": ["text", "price"],
            "additionalProperties": False,
        }
    },
}
PAGE_TEXT = (
    '{"title": "영수증 Receipt 2026", "kind": "receipt", "lines": [{"text": "아메리카노 Ice, large", "price": 4500}, '
    '{"text": "Cheese cake (slice)", "price": 6800.5}, {"text": "봉투 1매", "price": 100}]}'
)
ITEM = "<char>{}</char><bbox>0.{}, 0.{}, 0.{}, 0.{}</bbox>"
OCR_TEXT = "\n".join(
    ITEM.format(word, 101 + 20 * i, 15, 178 + 20 * i, 213)
    for i, word in enumerate(("서울", "종로구", "EXIT", "No.3", "출구", "2,500", "Open", "24h"))
)
GROUND_TEXT = (
    "The picture shows <obj>two cats</obj><bbox>0.016, 0.11, 0.483, 0.981<delim>0.52, 0.043, 0.999, 0.77</bbox> that "
    "lie on <obj>a pink sofa</obj><bbox>0.001, 0.002, 0.998, 0.993</bbox>. 두 마리 모두 자고 있으며, next to them is "
    "<obj>a remote control</obj><bbox>0.06, 0.152, 0.276, 0.245</bbox>."
)
CASES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("JSON schema", {"kind": "json_schema", "schema": PAGE}, PAGE_TEXT),
    ("json_object", {"kind": "json_object"}, PAGE_TEXT),
    ("markup, ocr", {"kind": "markup", "task": "ocr"}, OCR_TEXT),
    ("markup, ground", {"kind": "markup", "task": "ground"}, GROUND_TEXT),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammars", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder with a tokenizer and config.json")
    add_out(parser)
    arguments = parser.parse_args()
    config = read_config(arguments.checkpoint, {})  # a checkpoint of the HF format needs no shapes
    prompts, vocab_size = prompts_of(arguments.checkpoint, config), config.text.vocab_size
    tokenizer = Tokenizer.from_json(prompts.tokenizer_json)
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    grammars = Grammars(tokenizer, prompts.generation.eos_token_ids, vocab_size)
    made = {
        "seconds": round(time.perf_counter() - started, 3),
        "bytes": psutil.Process().memory_info().rss - before,
        "vocab_size": vocab_size,
    }
    rows = [measure(name, grammars, grammar, encoded(tokenizer, text)) for name, grammar, text in CASES]
    logits = np.random.default_rng(0).normal(size=vocab_size).astype(np.float32)
    floor = spread((timed(lambda: np.argmax(logits)) for _ in range(100)), 1)
    show(rows, floor, made)
    report = {
        "machine": describe_machine(),
        "llguidance": metadata.version("llguidance"),
        "grammars": made,
        "answers": rows,
        "argmax_us": floor,
        "limit_us": LIMIT_US,
    }
    finish(report, arguments.out)


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return an answer's tokens, tags as such."""
    ids: list[int] = []
    tags = [tag for tag in tokenizer.added_token_ids if tag in text]
    for tag in tags:
        text = text.replace(tag, f"\0{tag}\0")
    for part in filter(None, text.split("\0")):
        ids += [tokenizer.added_token_ids[part]] if part in tags else tokenizer.encode_plain(part)
    return ids


def measure(name: str, grammars: Grammars, grammar: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Feed an answer, and return microseconds per token by what they went to."""
    compile_us = timed(lambda: grammars.constraint(grammar))
    masks: list[float] = []
    tokens: list[float] = []
    num_forced = 0
    for _ in range(REPETITIONS):
        constraint = grammars.constraint(grammar)
        for id_ in ids:
            forced_us = timed(constraint.forced)
            mask_us = 0.0
            if constraint.forced():
                num_forced += 1
            else:
                mask_us = timed(constraint.allowed)
                masks.append(mask_us)
            tokens.append(forced_us + mask_us + timed(partial(constraint.accept, id_)))
    return {
        "name": name,
        "tokens": len(ids),
        "forced_share": round(num_forced / len(tokens), 3),
        "compile_us": round(compile_us, 1),
        "mask_us": spread(masks, 1) | {"p90": round(float(np.percentile(masks, 90)), 1)},
        "token_us": spread(tokens, 1) | {"p90": round(float(np.percentile(tokens, 90)), 1)},
    }


def timed(call: Any) -> float:
    """Return the microseconds of a call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e6


def show(rows: Sequence[dict[str, Any]], floor: dict[str, float], made: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{made['vocab_size']:,} rows: made in {made['seconds']} s, {made['bytes'] / 1e6:.0f} MB")
    print(f"A mask may take {LIMIT_US:g} us.")
    print(f"{'answer':16} tokens  forced  compile, us  mask, us: median   p90   token, us: median   p90")
    for row in rows:
        mask, token = row["mask_us"], row["token_us"]
        print(
            f"{row['name']:16} {row['tokens']:6} {row['forced_share']:7.0%} {row['compile_us']:12.0f} "
            f"{mask['median']:17.0f} {mask['p90']:5.0f} {token['median']:20.0f} {token['p90']:5.0f}"
        )
    print(f"argmax of a row of logits, which a token costs anyway: {floor['median']:.0f} us")


if __name__ == "__main__":
    main()
