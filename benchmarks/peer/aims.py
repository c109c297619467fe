"""How far this project is ahead of the best peer, as ratios: what both its CPU providers reach beside the aim.

Its own rows are chosen before anything is measured (`ROWS`), never the luckiest of many. Of the peers it is the
luckiest: whoever is fastest at the one thing, by whatever settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peer.material import Facts

ROWS = {
    "cpu": ("int4-a8-head4-g128", "int8", "question"),
    "openvino": ("int4-a8-head4-g128@openvino", "int8@openvino", "question@openvino"),
}
"""By provider, this project's rows for text, vision and questions."""
MIN_COSINE = 0.9995
CACHE_BYTES = {"fp32": 4, "fp16": 2, "u8": 1}
AIMS = {"prefill": 1.0, "vision": 1.0, "growth": 2.0, "first_token": 0.5, "peak": 1.15}
DECODE_AIMS = 0.74, 0.70
"""At the shortest context and at the others."""
FIRST_TOKEN_AIM_AMX = 0.3


def make_aims(report: dict[str, Any], facts: Facts) -> list[dict[str, Any]]:
    """One entry per aim: `what`, `aim`, the ratio by provider (None where a row is missing), the `best_peer`.

    Args:
        report: Its machine, read bandwidth, contexts, and the rows of text, vision and questions.
        facts: Of the shape, for the cache's size.
    """
    aims = []
    for context in map(str, report["contexts"]):
        aims.append(_over_best(report["text"], 0, _median("prefill_s", context), f"prefill {context}", AIMS["prefill"]))
    precise = [row for row in report["vision"] if (row["cosine"] or 0) >= MIN_COSINE]
    what = f"vision tile at a cosine of {MIN_COSINE} or more"
    aims.append(_over_best(precise, 1, lambda row: float(row["vision_s"]["median"]), what, AIMS["vision"]))
    decode_aims = [DECODE_AIMS[index > 0] for index in range(len(report["contexts"]))]
    for context, aim in zip(map(str, report["contexts"]), decode_aims, strict=True):
        aims.append(_over_best(report["text"], 0, _median("decode_ms", context), f"decode at {context}", aim))
    growths = {name: _growth(_row(report["text"], rows[0]), report, facts) for name, rows in ROWS.items()}
    what = "decode's growth per 1,000 positions over reading the cache's bytes"
    aims.append({"what": what, "aim": AIMS["growth"], "best_peer": None, **growths})
    aims.append(_first_token(report))
    peaks = {name: _peak(_row(report["text"], rows[0]), facts) for name, rows in ROWS.items()}
    aims.append({"what": "peak memory of text over bundle and cache", "aim": AIMS["peak"], "best_peer": None, **peaks})
    return aims


def _over_best(
    rows: list[dict[str, Any]], place: int, value: Callable[[dict[str, Any]], float], what: str, aim: float
) -> dict[str, Any]:
    """This project's values over the least of the peers'."""
    peers = {f"{row['peer']} {row['variant']}": value(row) for row in rows if row["peer"] != "ours"}
    best = min(peers, key=lambda name: peers[name], default=None)
    ratios: dict[str, float | None] = {}
    for name, chosen in ROWS.items():
        row = _row(rows, chosen[place])
        ratios[name] = None if row is None or best is None else round(value(row) / peers[best], 3)
    return {"what": f"{what}, over the best peer", "aim": aim, "best_peer": best, **ratios}


def _first_token(report: dict[str, Any]) -> dict[str, Any]:
    """OpenVINO's over the provider's that there was before it."""
    times = {
        name: row["first"]["first_token_s"]["median"]
        for name, chosen in ROWS.items()
        if (row := _row(report["question"]["rows"], chosen[2])) is not None
    }
    ratio = round(times["openvino"] / times["cpu"], 3) if len(times) == len(ROWS) else None
    aim = FIRST_TOKEN_AIM_AMX if "AMX" in report["machine"]["instructions"] else AIMS["first_token"]
    what = "first token of a first picture question, over the provider cpu"
    return {"what": what, "aim": aim, "best_peer": None, "cpu": 1.0 if "cpu" in times else None, "openvino": ratio}


def _growth(row: dict[str, Any] | None, report: dict[str, Any], facts: Facts) -> float | None:
    first, last = min(report["contexts"]), max(report["contexts"])
    if row is None or first == last:
        return None
    grown_s = (row["decode_ms"][str(last)]["median"] - row["decode_ms"][str(first)]["median"]) / 1e3
    num_bytes = (last - first) * facts.kv_values_per_token * CACHE_BYTES[row["settings"]["kv_cache"]]
    return round(grown_s / (num_bytes / report["read_bytes_per_s"]["median"]), 2)


def _peak(row: dict[str, Any] | None, facts: Facts) -> float | None:
    if row is None:
        return None
    cache = row["max_context"] * facts.kv_values_per_token * CACHE_BYTES[row["settings"]["kv_cache"]]
    return round(row["peak_rss_bytes"] / (row["model_bytes"] + cache), 3)


def _median(measure: str, context: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: float(row[measure][context]["median"])


def _row(rows: list[dict[str, Any]], variant: str) -> dict[str, Any] | None:
    return next((row for row in rows if row["peer"] == "ours" and row["variant"] == variant), None)


def print_aims(aims: list[dict[str, Any]]) -> None:
    """The table of ratios; an empty cell where a row did not run."""
    print("\n| ratio of medians | aim | " + " | ".join(f"provider {name}" for name in ROWS) + " | best peer |")
    print("|---|---|" + "---|" * (len(ROWS) + 1))
    for one in aims:
        cells = ["" if one[name] is None else f"{one[name]:.2f}" for name in ROWS]
        print(f"| {one['what']} | <= {one['aim']:.2f} | {' | '.join(cells)} | {one['best_peer'] or ''} |")
