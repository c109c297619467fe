"""One caller and many: the server beside the engine alone, in turns, so that a slow moment falls on both."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

import psutil

from benchmarks.load.client import Client, Outcome
from benchmarks.load.engine import ask, ask_from_threads
from benchmarks.load.figures import percentiles, summary
from benchmarks.load.loops import CHAT, closed_loop
from benchmarks.load.questions import KINDS, Questions
from benchmarks.load.server import Server
from varco_runtime import Varco

MAX_MORE_TTFT_MS = 10.0
MAX_MORE_TPOT_MS = 1.0
MIN_SHARE = 0.95
"""Of the engine's tokens a second, with eight callers."""


def one_caller(server: Server, varco: Varco, rounds: int, tokens: int, seed: int) -> dict[str, Any]:
    """Ask the engine and the server the same questions, one after the other, and compare medians.

    Args:
        server: A server with a bundle.
        varco: The same bundle in this process.
        rounds: Questions of each kind.
        tokens: Tokens of each answer.
        seed: What the questions are drawn from.
    """
    found: dict[str, Any] = {"limit_more_ttft_ms": MAX_MORE_TTFT_MS, "limit_more_tpot_ms": MAX_MORE_TPOT_MS}
    for kind in KINDS:
        pairs = asyncio.run(_pairs(server, varco, Questions(kind, seed, tokens), rounds))
        engine, served = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        faults = [one.fault or str(one.status) for one in served if not one.is_answer]
        row: dict[str, Any] = {"equal_answers": sum(a.text == b.text for a, b in pairs), "of": rounds, "faults": faults}
        if not faults:
            for name, outcomes in (("engine", engine), ("server", served)):
                row[f"{name}_ttft_ms"] = percentiles([one.ttft_s for one in outcomes])
                row[f"{name}_total_ms"] = percentiles([one.total_s for one in outcomes])
            more = [1e3 * (b.ttft_s - a.ttft_s) for a, b in pairs]
            row["more_ttft_ms"] = round(statistics.median(more), 2)
            per_token = [1e3 * (b.total_s - a.total_s) / b.num_tokens for a, b in pairs]
            row["more_per_token_ms"] = round(statistics.median(per_token), 3)
        found[kind] = row
    return found


async def _pairs(server: Server, varco: Varco, questions: Questions, rounds: int) -> list[tuple[Outcome, Outcome]]:
    client = Client(server.host, server.port)
    await client.get("/health/live")  # connects
    pairs = []
    for number in range(rounds + 1):
        question = questions.next()
        body = question.body()
        pair = ask(varco, question), await client.post(CHAT, body)
        if number:  # the first one warms up
            pairs.append(pair)
    client.close()
    return pairs


def many_callers(
    server: Server, varco: Varco | None, callers: list[int], requests: int, tokens: int, seed: int, rounds: int
) -> list[dict[str, Any]]:
    """Let more and more callers ask texts, of the engine and of the server in turns.

    Args:
        server: A server with a bundle.
        varco: The same bundle in this process; None to measure the server alone.
        callers: Numbers of callers.
        requests: Requests of each caller and round.
        tokens: Tokens of each answer.
        seed: What the questions are drawn from.
        rounds: How often each of the two is measured; figures are of the median round by tokens a second.
    """
    rows = []
    for number in callers:
        served, alone = [], []
        for round_ in range(rounds):
            questions = Questions("text", seed + round_, tokens)
            if varco is not None:
                before = _own_cpu_s()
                alone.append(summary(ask_from_threads(varco, questions.next, number, number * requests)))
                alone[-1]["cpu_ms_per_token"] = _per_token(_own_cpu_s() - before, alone[-1])
            served.append(serve_callers(server, Questions("text", seed + 100 + round_, tokens), number, requests))
        row: dict[str, Any] = {"callers": number, "server": _median_round(served)}
        if alone:
            row["engine"] = _median_round(alone)
            pairs = zip(served, alone, strict=True)
            row["share"] = round(statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs), 3)
        rows.append(row)
    return rows


def serve_callers(server: Server, questions: Questions, callers: int, requests: int) -> dict[str, Any]:
    """Return what callers of a server find in one closed loop.

    Args:
        server: A server with a bundle.
        questions: Where they take their questions from.
        callers: How many there are.
        requests: Requests of each.
    """
    before, own_s = server.cpu_s(), _own_cpu_s()
    loop = closed_loop(server.host, server.port, lambda: questions.next().body(), callers, callers * requests)
    found = summary(asyncio.run(loop))
    after = {**server.cpu_s(), "client": _own_cpu_s()}
    spent = {role: seconds - {**before, "client": own_s}.get(role, seconds) for role, seconds in after.items()}
    found["cpu_ms_per_token"] = {role: _per_token(seconds, found) for role, seconds in spent.items()}
    return found


def kinds_of_questions(server: Server, requests: int, callers: int, tokens: int, seed: int) -> dict[str, Any]:
    """Return what the server gives for each kind of question, with the same number of callers."""
    return {kind: serve_callers(server, Questions(kind, seed, tokens), callers, requests) for kind in KINDS}


def _own_cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _per_token(seconds: float, found: dict[str, Any]) -> float | None:
    """Return milliseconds of a processor per token of the answers; other programs on the machine hardly change it."""
    tokens = found["tokens_per_s"] * found["wall_s"]
    return round(1e3 * seconds / tokens, 4) if tokens else None


def _median_round(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return sorted(rounds, key=lambda one: one["tokens_per_s"])[len(rounds) // 2]
