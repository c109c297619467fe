"""What was found, as a table with the limit beside each figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.load.callers import MAX_MORE_TPOT_MS, MAX_MORE_TTFT_MS, MIN_SHARE

Report = dict[str, Any]
Row = tuple[str, str, str]
"""What was measured, what was found, and the limit."""


def faults_of(report: Report) -> list[str]:
    """Return what was wrong, whatever the machine: answers that failed or differ, processes that died, a soak's lines.

    Args:
        report: The parts that were run, by name.
    """
    faults = []
    for kind, row in report.get("alone", {}).items():
        if isinstance(row, dict):
            faults += [f"alone, {kind}: {fault}" for fault in row["faults"]]
    for row in report.get("callers", []):
        faults += _answered(row["server"], f"{row['callers']} callers")
    for kind, row in report.get("kinds", {}).items():
        faults += _answered(row, kind)
    overload = report.get("overload")
    if overload:
        others = {status for status in overload["statuses"] if status not in ("200", "429")}
        faults += [f"overload: {overload['statuses'][status]} answers of status {status}" for status in sorted(others)]
        if overload["answers_afterwards"] != 4:
            faults.append("overload: not every question afterwards was answered")
    for part in ("overload", "half-open"):
        if report.get(part, {}).get("restarts"):
            faults.append(f"{part}: a process was started again")
    if report.get("half-open", {}).get("failed"):
        faults.append(f"half-open: {report['half-open']['failed']} health requests failed")
    if report.get("restarts"):
        faults.append(f"under load {report['restarts']} processes were started again")
    soaked = report.get("soak")
    if soaked:
        faults += [f"soak: {fault}" for fault in soaked["faults"]]
        if not any("grew by" in fault for fault in soaked["control"]["faults"]):
            faults.append("soak: the server that leaks was not found out")
    return faults


def _answered(row: Report, name: str) -> list[str]:
    missing = row["requests"] - row["answers"]
    return (
        [f"{name}: {missing} of {row['requests']} were not answered: {row['statuses']} {row['faults']}"]
        if missing
        else []
    )


def print_report(report: Report) -> None:
    """Print the report's rows, then its faults.

    Args:
        report: The parts that were run, by name.
    """
    rows = [row for part in (_start, _alone, _callers, _kinds, _overload, _soak, _peers) for row in part(report)]
    print("| measured | found | limit |\n|---|---|---|")
    for name, found, limit in rows:
        print(f"| {name} | {found} | {limit} |")
    for fault in report["faults"]:
        print(f"FAULT: {fault}")


def _start(report: Report) -> Iterator[Row]:
    start = report.get("start")
    if not start:
        return
    yield "start to `/health/live`, s", f"{start['live_s']['median']}", f"{start['limit_live_s']}"
    yield "start to `/health/ready`, s", f"{start['ready_s']['median']}", f"{start['limit_ready_s']}: the load and 1"
    yield "idle, share of a core", f"{start['idle']['share']:.2%}", f"{start['idle']['limit']:.0%}"


def _alone(report: Report) -> Iterator[Row]:
    for kind, row in report.get("alone", {}).items():
        if not isinstance(row, dict) or row["faults"]:
            continue
        first = f"{row['engine_ttft_ms']['p50']} + {row['more_ttft_ms']}"
        yield f"one caller, {kind}: first token, ms", first, f"+ {MAX_MORE_TTFT_MS:g}"
        yield f"one caller, {kind}: more per token, ms", f"{row['more_per_token_ms']}", f"{MAX_MORE_TPOT_MS:g}"
        yield f"one caller, {kind}: equal answers", f"{row['equal_answers']} of {row['of']}", "all, without drafts"


def _callers(report: Report) -> Iterator[Row]:
    for row in report.get("callers", []):
        server = row["server"]
        found = f"{server['tokens_per_s']} tokens/s"
        if "engine" in row:
            found += f", {row['share']} of the engine's {row['engine']['tokens_per_s']}"
        found += f"; first token p50 {server['ttft_ms']['p50']}, p99 {server['ttft_ms']['p99']} ms"
        found += f"; gap p99 {server['gap_ms']['p99']} ms" if server["gap_ms"] else ""
        if row["callers"] == 8 and "engine" in row:
            spent = ", ".join(f"{role} {ms}" for role, ms in server["cpu_ms_per_token"].items())
            yield "8 callers: processor per token, ms", f"engine {row['engine']['cpu_ms_per_token']}; {spent}", ""
        yield f"{row['callers']} callers", found, f"{MIN_SHARE}" if row["callers"] == 8 else ""


def _kinds(report: Report) -> Iterator[Row]:
    for kind, row in report.get("kinds", {}).items():
        found = f"{row['answers_per_s']} answers/s, first token p50 {row['ttft_ms']['p50']} ms"
        yield f"8 callers, {kind}", found, ""
    memory = report.get("memory")
    if memory:
        both = memory["front_and_pictures_bytes"] / 1e6
        yield "front and pictures, MB", f"{both:.0f}", f"{memory['limit_front_and_pictures_bytes'] / 1e6:.0f}"
        at_start, texts, pictures = (
            memory[f"{when}_bytes"]["worker"] / 1e6 for when in ("at_start", "after_texts", "after_load")
        )
        limit = f"{memory['limit_worker_bytes'] / 1e6:.0f}: `varco run`, the cache of all slots, 50"
        found = f"{at_start:.0f} at its start, {texts:.0f} after texts, {pictures:.0f} with the pictures it remembers"
        yield "worker, MB", found, limit


def _overload(report: Report) -> Iterator[Row]:
    overload, half_open = report.get("overload"), report.get("half-open")
    if overload and overload["refusal_ms"]:
        found = f"p50 {overload['refusal_ms']['p50']}, p99 {overload['refusal_ms']['p99']}: {overload['statuses']}"
        yield f"429 at {overload['rate_per_s']} requests a second, ms", found, f"{overload['limit_refusal_ms']:g}"
    if half_open:
        found = f"p50 {half_open['health_ms']['p50']}, p99 {half_open['health_ms']['p99']}"
        name = f"`/health` beside {half_open['connections']} half-open connections, ms"
        yield name, found, f"{half_open['limit_health_ms']:g}"


def _soak(report: Report) -> Iterator[Row]:
    soaked = report.get("soak")
    if soaked:
        for name, one in (
            (f"soak of {soaked['seconds'] / 60:g} minutes", soaked),
            ("the leaking one", soaked["control"]),
        ):
            grown = ", ".join(f"{role} {number / 1e6:+.1f}" for role, number in one["growth_bytes"].items())
            yield (
                f"{name}: growth, MB",
                f"{grown} in {one['requests']:,} requests",
                f"{soaked['limit_growth_bytes'] / 1e6:.0f}",
            )


def _peers(report: Report) -> Iterator[Row]:
    peers = report.get("peers", {})
    for name, rows in peers.get("servers", {}).items():
        for row in rows:
            server = row["server"]
            found = f"{server['tokens_per_s']} tokens/s, first token p50 {server['ttft_ms']['p50']} ms"
            yield f"{name}, {row['callers']} callers", found, ""
    if "left_out" in peers:
        yield "llama.cpp's server", f"left out: {peers['left_out']}", ""
