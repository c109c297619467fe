"""Everything at once for a long time: memory, files and answers stay as they are. And a leak that must be seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.load.client import Client, Outcome
from benchmarks.load.loops import CHAT
from benchmarks.load.questions import Question, Questions
from benchmarks.load.server import VARCO, Server

CALLERS = 8
POOL = 48
"""Pictures: more than are repeated by one caller, and few enough that the worker's memory of them fills early on."""
WARM_UP = 0.25
"""The share of the samples that is left out at the beginning."""
MAX_GROWTH_BYTES = 50_000_000
MAX_MORE_DESCRIPTORS = 16
SAMPLE_S = 2.0
LEAKING = f"""
from varco_serve.pictures.decoder import PictureDecoder
kept, decode = [], PictureDecoder.decode
async def leaking(self, data):
    kept.append(bytearray(data) + bytearray(4 << 20))
    return await decode(self, data)
PictureDecoder.decode = leaking
{VARCO}
"""
"""The control: a server whose front keeps something of every picture. `varco serve` itself has nothing of the kind."""

MIX = {
    "streamed": 30,
    "whole": 20,
    "picture": 20,
    "ocr": 5,
    "cancelled": 10,
    "no JSON": 3,
    "no picture": 5,
    "unknown model": 2,
    "not found": 2,
    "models": 3,
}
"""How often each kind of request is made, of a hundred."""
EXPECTED = {"no JSON": 400, "no picture": 400, "unknown model": 404, "not found": 404}


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes held at one moment.

    Args:
        at_s: Seconds since the begin.
        resident_bytes: By the role of a process.
        descriptors: Open file descriptors, by the role of a process.
    """

    at_s: float
    resident_bytes: dict[str, int]
    descriptors: dict[str, int]


def soak(bundle: Path, log: Path, options: list[str], minutes: float, tokens: int, seed: int) -> dict[str, Any]:
    """Soak a server, then the control that leaks, for a tenth of the time; the first must pass and the second fail.

    Args:
        bundle: The bundle's folder.
        log: The file that takes what the servers print.
        options: Options of `varco serve`.
        minutes: How long.
        tokens: Tokens of each answer.
        seed: What the requests are drawn from.
    """
    with Server(bundle, log, *options) as server:
        found = soaked(server, 60 * minutes, tokens, seed)
    with Server(bundle, log.with_name("leaking.log"), *options, program=LEAKING) as server:
        control = soaked(server, max(30.0, 6 * minutes), tokens, seed)
    return {**found, "control": {name: control[name] for name in ("seconds", "requests", "growth_bytes", "faults")}}


def soaked(server: Server, seconds: float, tokens: int, seed: int) -> dict[str, Any]:
    """Send requests of all kinds for so long, and return how many of each, and what was wrong.

    Args:
        server: A server with a bundle.
        seconds: How long.
        tokens: Tokens of each answer.
        seed: What the requests are drawn from.
    """
    server.wait_for("/health/ready")
    counts, faults, samples = asyncio.run(_soak(server, seconds, tokens, seed))
    growth = growth_bytes(samples)
    all_faults = [f"{fault}: {count} times" for fault, count in faults.most_common(10)] + complaints(samples)
    if server.restarts():
        all_faults.append(f"{server.restarts()} restarts")
    return {
        "seconds": seconds,
        "requests": sum(counts.values()),
        "kinds": dict(counts),
        "samples": len(samples),
        "growth_bytes": growth,
        "limit_growth_bytes": MAX_GROWTH_BYTES,
        "first": samples[0].resident_bytes if samples else {},
        "last": samples[-1].resident_bytes if samples else {},
        "series": [[round(one.at_s, 1), one.resident_bytes] for one in samples[:: max(1, len(samples) // 120)]],
        "faults": all_faults,
    }


def growth_bytes(samples: Sequence[Sample]) -> dict[str, int]:
    """Return by how much each process grew after the warm-up: the median of the last fifth less that of the first."""
    kept = samples[int(WARM_UP * len(samples)) :]
    part = max(1, len(kept) // 5)

    def median(some: Sequence[Sample], role: str) -> float:
        return statistics.median(one.resident_bytes[role] for one in some if role in one.resident_bytes)

    roles = set(kept[0].resident_bytes) & set(kept[-1].resident_bytes) if kept else set()
    return {role: int(median(kept[-part:], role) - median(kept[:part], role)) for role in sorted(roles)}


def complaints(samples: Sequence[Sample]) -> list[str]:
    """Return what samples say against a server, a line each."""
    if len(samples) < 8:
        return [f"only {len(samples)} samples, expected at least 8: soak for longer"]
    lines = [
        f"the {role} grew by {grown / 1e6:.1f} MB, expected at most {MAX_GROWTH_BYTES / 1e6:.0f}"
        for role, grown in growth_bytes(samples).items()
        if grown > MAX_GROWTH_BYTES
    ]
    kept = samples[int(WARM_UP * len(samples)) :]
    for role, number in kept[-1].descriptors.items():
        more = number - kept[0].descriptors.get(role, number)
        if more > MAX_MORE_DESCRIPTORS:
            lines.append(f"the {role} has {more} more open files than after the warm-up")
    return lines


async def _soak(
    server: Server, seconds: float, tokens: int, seed: int
) -> tuple[Counter[str], Counter[str], list[Sample]]:
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    samples: list[Sample] = []
    begun_s = time.perf_counter()
    pool = Questions("new picture", seed, tokens)
    pictures = [pool.next() for _ in range(POOL)]

    async def call(number: int) -> None:
        random = np.random.default_rng([seed, number])
        texts = Questions("text", seed + 1000 + number, tokens)
        client = Client(server.host, server.port)
        names, weights = list(MIX), np.array(list(MIX.values())) / sum(MIX.values())
        while time.perf_counter() - begun_s < seconds:
            kind = str(random.choice(names, p=weights))
            picture = pictures[int(random.integers(POOL))].picture
            outcome = await _send(client, kind, texts.next(), picture, random)
            counts[kind] += 1
            if outcome is not None and (outcome.fault or outcome.status != EXPECTED.get(kind, 200)):
                faults[f"{kind}: {outcome.status} {outcome.fault or ''}".strip()] += 1
        client.close()

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            samples.append(await asyncio.to_thread(_sample, server, time.perf_counter() - begun_s))

    sampling = asyncio.create_task(sample())
    await asyncio.gather(*(call(number) for number in range(CALLERS)))
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    return counts, faults, samples


async def _send(
    client: Client, kind: str, question: Question, picture: bytes | None, random: np.random.Generator
) -> Outcome | None:
    """Make one request of a kind; None for one whose answer nobody waited for."""
    shown = Question(question.prompt, picture, question.max_tokens)
    assert picture is not None
    if kind == "models":
        return await client.get("/v1/models")
    if kind == "not found":
        return await client.get("/v1/nothing")
    if kind == "ocr":
        return await client.post("/v1/ocr", picture, "image/png")
    if kind == "no JSON":
        return await client.post(CHAT, b'{"messages": [')
    if kind == "no picture":
        return await client.post(CHAT, Question("?", picture[: len(picture) // 2], 8).body())
    if kind == "unknown model":
        return await client.post(CHAT, json.dumps({**json.loads(question.body()), "model": "another"}).encode())
    if kind == "cancelled":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(float(random.uniform(0.001, 0.2))):
                await client.post(CHAT, shown.body(is_streamed=bool(random.integers(2))))
        client.close()
        return None
    asked = shown if kind == "picture" else question
    return await client.post(CHAT, asked.body(is_streamed=kind != "whole"))


def _sample(server: Server, at_s: float) -> Sample:
    descriptors = {}
    for role, process in server.processes().items():
        with contextlib.suppress(psutil.Error):
            descriptors[role] = int(process.num_fds())
    return Sample(at_s, server.resident_bytes(), descriptors)
