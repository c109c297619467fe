"""What `benchmarks.peers` found: a JSON document, and tables in Markdown."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, spread
from benchmarks.peer.aims import make_aims, print_aims
from benchmarks.peer.contest import Contestant
from benchmarks.peer.material import Facts
from benchmarks.peer.ours import PICTURE_HEIGHT, PICTURE_WIDTH, THROUGH_VARCO


def make_report(
    options: argparse.Namespace,
    facts: Facts,
    contestants: list[Contestant],
    towers: list[Contestant],
    askers: list[Contestant],
    bandwidth: list[float],
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """Everything that was found, ready to print and to plot."""
    rate = spread(bandwidth, 0)
    reference = next((one for one in contestants if one.variant == "fp32"), None)
    tower = next((one for one in towers if one.variant == "vision-fp32"), None)
    report: dict[str, Any] = {
        "benchmark": "peers",
        "machine": describe_machine(),
        "shape": facts.shape,
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": options.steps,
        "contexts": options.contexts,
        "read_bytes_per_s": rate,
        "limit_decode_ms": {
            str(context): round(1e3 * facts.int4_bytes(context + options.steps // 2) / rate["median"], 6)
            for context in options.contexts
        },
        "text": [
            {
                "peer": one.peer,
                "variant": one.variant,
                "decode_ms": {str(context): spread(values) for context, values in one.decode_ms.items()},
                "prefill_s": {str(context): spread(values) for context, values in one.prefill_s.items()},
                "agreement": None
                if reference is None or one.variant.endswith(THROUGH_VARCO)  # a prompt of its own
                else agreement(one, reference, options.contexts[0]),
                **_facts_of(one),
            }
            for one in contestants
        ],
        "vision": [
            {
                "peer": one.peer,
                "variant": one.variant.removeprefix("vision-"),
                "vision_s": spread(one.vision_s),
                "cosine": None if tower is None else _cosine(one.answers[0]["features"], tower.answers[0]["features"]),
                **_facts_of(one),
            }
            for one in towers
        ],
        "question": {"rows": [{"peer": one.peer, "variant": one.variant, **_question(one)} for one in askers]},
        "left_out": left_out,
    }
    report["aims"] = make_aims(report, facts)
    return report


def _question(one: Contestant) -> dict[str, Any]:
    """Medians of every part, first and second time."""
    times = {
        name: {part: spread(round_[name][part] for round_ in one.questions) for part in one.questions[0][name]}
        for name in ("first", "second")
    }
    return {**times, "is_sum": one.peer != "ours", **_facts_of(one)}


def _facts_of(one: Contestant) -> dict[str, Any]:
    return {
        "peak_rss_bytes": one.about["peak_rss_bytes"],
        "model_bytes": one.loaded["model_bytes"],
        "load_s": round(one.loaded["load_s"], 3),
        "versions": one.about["versions"],
        "settings": one.about["settings"],
        "max_context": one.loaded["max_context"],
    }


def agreement(one: Contestant, reference: Contestant, context: int) -> dict[str, Any]:
    """How far a peer's answer is the fp32 one's, to the same prompt. With random weights rounding to int4 changes every
    token after a few layers, so this tells little of a peer: that they run one network is what `--check` shows.

    `logits_cosine`: of the last prompt token's logits, None where a library does not show them. `same_tokens`: greedy
    tokens before the first that differs.
    """
    answer, other = one.answers[context], reference.answers[context]
    same = [a == b for a, b in zip(answer["tokens"], other["tokens"], strict=True)]
    cosine = _cosine(answer["logits"], other["logits"]) if answer["logits"] is not None else None
    return {"logits_cosine": cosine, "same_tokens": same.index(False) if False in same else len(same)}


def _cosine(a: list[float], b: list[float]) -> float:
    x, y = np.array(a), np.array(b)
    return round(float(x @ y / np.sqrt((x @ x) * (y @ y))), 6)


def print_report(report: dict[str, Any]) -> None:
    """Tables for people, in Markdown."""
    contexts = [str(context) for context in report["contexts"]]
    rate = report["read_bytes_per_s"]
    machine = report["machine"]
    print(f"{machine['processor']} ({', '.join(machine['instructions'])}), load {machine['load_average']};")
    print(f"{report['shape']} shape, {report['threads']} threads, {report['rounds']} rounds, {report['steps']} steps;")
    print(f"memory read at {rate['median'] / 1e9:.1f} GB/s ({rate['min'] / 1e9:.1f} to {rate['max'] / 1e9:.1f}).\n")
    heads = [f"decode ms/token at {c}" for c in contexts] + [f"prefill {c}, s" for c in contexts]
    print("| | " + " | ".join([*heads, "peak RSS, MiB"]) + " |")
    print("|---|" + "---|" * (2 * len(contexts) + 1))
    limits = [f"{report['limit_decode_ms'][context]:.2f}" for context in contexts]
    print("| limit | " + " | ".join(limits + [""] * (len(contexts) + 1)) + " |")
    for row in report["text"]:
        cells = [_cell(row["decode_ms"][context], 2) for context in contexts]
        cells += [_cell(row["prefill_s"][context], 2) for context in contexts]
        cells.append(f"{row['peak_rss_bytes'] / 2**20:.0f}")
        print(f"| {row['peer']} {row['variant']} | " + " | ".join(cells) + " |")
    print_settings(report["text"])
    if report["vision"]:
        print("\n| vision, one tile | s | peak RSS, MiB | cosine |\n|---|---|---|---|")
    for row in report["vision"]:
        cosine = "" if row["cosine"] is None else f"{row['cosine']:.5f}"
        cells = [_cell(row["vision_s"], 3), f"{row['peak_rss_bytes'] / 2**20:.0f}", cosine]
        print(f"| {row['peer']} {row['variant']} | " + " | ".join(cells) + " |")
    print_settings(report["vision"])
    print_question(report["question"])
    print_aims(report["aims"])
    for one in report["left_out"]:
        print(f"\nLeft out: {one['peer']} {one['variant']}: {one['reason']}")
    print()


def print_settings(rows: list[dict[str, Any]]) -> None:
    """What ran, one line for all rows with the same settings."""
    names: dict[str, list[str]] = {}
    for row in rows:
        told = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        if told:
            names.setdefault(told, []).append(f"{row['peer']} {row['variant']}")
    for number, (told, who) in enumerate(names.items()):
        print("\n" * (not number) + f"- {', '.join(who)}: {told}.")


def print_question(question: dict[str, Any]) -> None:
    """The table of whole questions, first and second time."""
    if not question["rows"]:
        return
    sizes = question["sizes"]
    print(f"\nA question about a picture of {PICTURE_WIDTH} x {PICTURE_HEIGHT}: {sizes['tiles']} tiles,")
    print(f"{sizes['positions']:,} positions, an answer of {sizes['new_tokens']} tokens; then another about the same")
    print(f"picture ({sizes['new_positions']} new positions). Seconds, without drafts. A sum is of parts that ran one")
    print("after the other; the second time it takes the picture's features and the prefix as kept.\n")
    parts = {"vision_s": "vision", "prefill_s": "prefill", "first_token_s": "first token", "decode_s": "decode"}
    parts["total_s"] = "whole"
    print("| | " + " | ".join(parts.values()) + " | peak RSS, MiB |\n|---|" + "---|" * (len(parts) + 1))
    for name in ("first", "second"):
        for row in question["rows"]:
            cells = [_cell(row[name][part], 2) for part in parts] + [f"{row['peak_rss_bytes'] / 2**20:.0f}"]
            who = f"{row['peer']} {row['variant']}{' (a sum)' if row['is_sum'] else ''}, {name}"
            print(f"| {who} | " + " | ".join(cells) + " |")
    print_settings(question["rows"])


def _cell(values: dict[str, float], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"
