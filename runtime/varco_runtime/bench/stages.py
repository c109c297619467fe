"""Runs a question stage by stage and as a user would, within a budget of time.

The user's way comes first and once: `Varco.ask` with a stopwatch at the backend gives the time to the first token,
the time per token, and what the loop costs beyond the backend. Then the backend is driven directly, over and over.
Neither stops at an end token, which random weights may say at any time: both decode a fixed number of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from varco_runtime.backend import Backend, GreedyBackend, HoldsMedia, PromptInputs, pixel_path
from varco_runtime.bench.networks import time_projector
from varco_runtime.bench.samples import Samples
from varco_runtime.bench.stopwatch import Budget, Call, Clock, watch
from varco_runtime.bench.workload import Workload
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.errors import ContextError
from varco_runtime.system.memory import peak_memory_bytes
from varco_runtime.varco import Varco

WARM_UP_PROMPT, WARM_UP_SYSTEM = "Hello", "Warm up."
"""Another system message than the question's, so that the question finds next to nothing of it in the cache."""
MIN_NEW_TOKENS = 8
MIN_STEPS = 4
_ASK_SHARE = 0.45
"""The share of the time left for the question as a user asks it: at least one repetition of the same follows."""
_VISION_SHARE, _PREFILL_SHARE, _DECODE_SHARE = 0.2, 0.4, 0.2
"""Shares of the time left, where only parts of the question are measured."""
CHUNK_TOKENS = 512
"""The longest chunk of a prompt that is measured in part: what the CPU's backend takes at once."""
_FIRST_CHUNK_TOKENS, _LEAST_CHUNK_TOKENS = 64, 8
_PROJECTOR_RUNS = 3
_DEVICE_NOTE = "Projector and packing are part of vision: the device is given all three at once and timed at their end."

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure at most.

    Args:
        repetitions: How often.
        new_tokens: Tokens of an answer.
        device: `cpu`, or where the networks run while the host goes on.
        threads: Threads of the networks.
    """

    repetitions: int
    new_tokens: int
    device: str
    threads: int

    @property
    def is_on_host(self) -> bool:
        """Return whether a call of the backend ends when its networks have run."""
        return self.device == "cpu"


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What the warm-up took, in seconds.

    Args:
        tile_s: One tile.
        token_s: One token of the prompt.
        step_s: One decode step.
        ids: The warm-up's prompt, `[n]` int64.
    """

    tile_s: float
    token_s: float
    step_s: float
    ids: Array

    def of(self, tiles: int, tokens: int, steps: int) -> float:
        """Return roughly the seconds that a question takes."""
        return tiles * self.tile_s + tokens * self.token_s + steps * self.step_s


def measure(varco: Varco, work: Workload, plan: Plan, budget: Budget, progress: Progress) -> Samples:
    """Measure a model on a question.

    Args:
        varco: The model. It has answered no question before, and is not to be asked afterwards.
        work: The question.
        plan: What to measure at most.
        budget: The time that it may take.
        progress: Told what happens, a sentence each.

    Raises:
        ContextError: The question and its answer do not fit the context.
        VarcoError: As `Varco.ask` raises it.
    """
    samples = Samples(
        load_s=varco.load_s,
        new_tokens=plan.new_tokens,
        num_tiles=work.num_tiles,
        kv_bytes_per_token=varco.kv_bytes_per_token,
    )
    varco.session.bundle = endless(varco.bundle)
    progress("Warming up.")
    tile = work.pixel_values()[:1].copy()
    samples.image_tokens = work.plan().num_tokens
    asked = varco.stream(work.asked, work.prompt, untrained=True, long_side=0)  # nothing runs before it is read
    samples.prompt_tokens = asked.num_prompt_tokens
    _check_room(varco.backend, samples)
    _check_one_run(varco.backend, samples)
    costs = _warm_up(varco, tile, budget.clock)
    if _fits(samples, costs, budget):
        progress("Asking the question as a user would.")
        inputs = _ask(varco, work, samples, budget.clock)
        _repeat(varco.backend, work, samples, inputs, plan, budget, progress)
    else:
        progress("Measuring parts of the question: the whole takes longer than the time given.")
        _measure_parts(varco, work, plan, samples, costs, budget)
    samples.host_peak_bytes = peak_memory_bytes()  # before the projector is loaded a second time
    if not plan.is_on_host:
        samples.notes.append(_DEVICE_NOTE)
    else:
        samples.projector_tile_s = time_projector(
            varco.bundle, varco.backend, tile, plan.threads, _PROJECTOR_RUNS, budget.clock
        )
    return samples


def endless(bundle: Bundle) -> Bundle:
    """Return the bundle without end tokens."""
    manifest = bundle.manifest
    generation = dataclasses.replace(manifest.generation, eos_token_ids=())
    return dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, generation=generation))


# --- how long it will take --------------------------------------------------------------------------------------------


def _warm_up(varco: Varco, tile: Array, clock: Clock) -> Costs:
    """Run everything once and a part of it again, which is the one that counts."""
    backend = varco.backend
    with watch(backend, clock) as calls:
        varco.ask(None, WARM_UP_PROMPT, system=WARM_UP_SYSTEM, max_new_tokens=MIN_STEPS)
    prompt, steps = _prompt_and_steps(calls)
    inputs: PromptInputs = prompt.args[0]
    started = clock()
    backend.prefill(inputs, 0)  # the same again: what the cache is known to hold stays true
    token_s = (clock() - started) / len(inputs.ids)
    backend.encode(tile)
    started = clock()
    backend.encode(tile)
    return Costs(clock() - started, token_s, min(call.seconds for call in steps), inputs.ids)


def _prompt_and_steps(calls: Sequence[Call]) -> tuple[Call, Sequence[Call]]:
    """Return the call that took the prompt, and those of the answer."""
    first = next(index for index, call in enumerate(calls) if call.name == "prefill")
    return calls[first], calls[first + 1 :]


def _check_room(backend: Backend, samples: Samples) -> None:
    limit = backend.max_context
    if samples.prompt_tokens + samples.new_tokens > limit:
        raise ContextError(
            f"The question has {samples.prompt_tokens} tokens and its answer {samples.new_tokens}, the context "
            f"holds {limit}. Use a smaller picture, fewer new tokens, or a longer context."
        )


def _check_one_run(backend: Backend, samples: Samples) -> None:
    """Refuse media that a device takes in several runs: the stages are measured for all of them at once."""
    if not isinstance(backend, HoldsMedia):
        return
    max_tiles, max_tokens = backend.max_media
    if samples.num_tiles > max_tiles or samples.image_tokens > max_tokens:
        raise ContextError(
            f"The question makes {samples.num_tiles} tiles and {samples.image_tokens} image tokens, the device holds "
            f"{max_tiles} and {max_tokens} at a time. Measure fewer pictures or frames."
        )


def _fits(samples: Samples, costs: Costs, budget: Budget) -> bool:
    """Return whether the whole question fits, if need be with fewer new tokens, which it then notes."""
    room = _ASK_SHARE * budget.left_s
    prompt_s = costs.of(samples.num_tiles, samples.prompt_tokens, 0)
    wanted = samples.new_tokens
    least = min(MIN_NEW_TOKENS, wanted)
    if prompt_s + least * costs.step_s > room:
        return False
    if prompt_s + wanted * costs.step_s > room:
        samples.new_tokens = max(least, int((room - prompt_s) / costs.step_s))
        samples.notes.append(f"{samples.new_tokens} new tokens instead of {wanted}: {_time_given(budget)}.")
    return True


def _time_given(budget: Budget) -> str:
    return f"more does not fit --seconds {budget.seconds:g}"


# --- the whole question -----------------------------------------------------------------------------------------------


def _ask(varco: Varco, work: Workload, samples: Samples, clock: Clock) -> PromptInputs:
    """Ask the question once as a user does, and return its prompt."""
    with watch(varco.backend, clock) as calls:
        # Without drafts, so that one step is one token and the time between two steps is the loop's.
        samples.answer = varco.ask(
            work.asked,
            work.prompt,
            max_new_tokens=samples.new_tokens,
            speculate=False,
            untrained=True,
            long_side=0,  # the picture is as the model is shown it
            stop_loops=False,
        )
    prompt, steps = _prompt_and_steps(calls)
    samples.loop_s = [later.started - earlier.ended for earlier, later in pairwise(steps)]
    inputs: PromptInputs = prompt.args[0]
    return inputs


def _repeat(
    backend: Backend,
    work: Workload,
    samples: Samples,
    inputs: PromptInputs,
    plan: Plan,
    budget: Budget,
    progress: Progress,
) -> None:
    """Run all stages of the question, up to the planned number of times, at least once."""
    longest = 0.0
    for done in range(plan.repetitions):
        if done and longest > budget.left_s:
            samples.notes.append(f"{done} of {plan.repetitions} repetitions: {_time_given(budget)}.")
            break
        progress(f"Repetition {done + 1} of {plan.repetitions}.")
        started = budget.clock()
        _run_once(backend, work, samples, inputs, plan, budget)
        longest = max(longest, budget.clock() - started)
        samples.repetitions = done + 1


def _run_once(
    backend: Backend, work: Workload, samples: Samples, inputs: PromptInputs, plan: Plan, budget: Budget
) -> None:
    clock = budget.clock
    prepare, encode = pixel_path(backend, work.settings)
    started = clock()
    pixels, packing = prepare(work.tiles()), work.plan()
    prepared = clock()
    features = encode(pixels)
    encoded = clock()
    tokens = backend.pack(features, packing)
    packed = clock()
    logits = backend.prefill(dataclasses.replace(inputs, image_tokens=tokens), 0)
    prefilled = clock()
    samples.preprocess_s.append(prepared - started)
    if plan.is_on_host:
        samples.encode_s.append(encoded - prepared)
        samples.packing_s.append(packed - encoded)
    else:
        samples.encode_s.append(packed - prepared)
    samples.encoded_tiles = len(pixels)
    samples.prefill_s.append(prefilled - packed)
    samples.prefill_tokens = len(inputs.ids)
    token = int(np.argmax(logits[-1]))
    samples.ttft_s.append(clock() - started)
    _decode(backend, samples, token, len(inputs.ids), clock)


def _decode(
    backend: Backend, samples: Samples, token: int, position: int, clock: Clock, until: float | None = None
) -> None:
    """Decode `samples.new_tokens` tokens greedily, or until the clock says `until`; `MIN_STEPS` in any case."""
    choose = _greedy_step(backend)
    times = [clock()]
    for step in range(samples.new_tokens):
        token = choose(token, position + step)
        times.append(clock())
        if until is not None and step + 1 >= MIN_STEPS and times[-1] > until:
            break
    steps = len(times) - 1
    samples.itl_s += [later - earlier for earlier, later in pairwise(times)]
    samples.tpot_s.append((times[-1] - times[0]) / steps)
    samples.context_tokens = position + (steps + 1) / 2  # of the step in the middle, its own token included


def _greedy_step(backend: Backend) -> Callable[[int, int], int]:
    if isinstance(backend, GreedyBackend):
        return backend.decode_greedy
    return lambda token, position: int(np.argmax(backend.decode_step(token, position)))


# --- parts of it, where the whole takes too long ----------------------------------------------------------------------


def _measure_parts(varco: Varco, work: Workload, plan: Plan, samples: Samples, costs: Costs, budget: Budget) -> None:
    """Run some tiles, a chunk at either end of a prompt of text, and some steps, once each: the rest is reckoned."""
    backend, clock, left_s = varco.backend, budget.clock, budget.left_s
    whole_s = costs.of(samples.num_tiles, samples.prompt_tokens, 0)
    samples.notes.append(
        f"The first token would take about {whole_s:,.1f} s, so the question was measured in part, once, and the rest "
        f"reckoned, which ~ marks: {_time_given(budget)}."
    )
    prepare, encode = pixel_path(backend, work.settings)
    started = clock()
    pixels = prepare(work.tiles())
    prepared = clock()
    num_tiles = _part(samples.num_tiles, _VISION_SHARE * left_s, costs.tile_s, 1)
    features = encode(pixels[:num_tiles])
    encoded = clock()
    samples.preprocess_s.append(prepared - started)
    samples.encode_s.append(encoded - prepared)
    samples.encoded_tiles = num_tiles
    if num_tiles == samples.num_tiles:
        backend.pack(features, work.plan())
        samples.packing_s.append(clock() - encoded)
    else:
        samples.notes.append(
            f"Vision: {num_tiles} of {samples.num_tiles} tiles. Packing, which needs all of them, is left out."
        )
    ids = np.resize(costs.ids, samples.prompt_tokens)
    prompt = PromptInputs(ids, varco.bundle.manifest.prompt.image_token_id, None)
    token, position = _prefill_parts(backend, prompt, plan, samples, costs, clock, _PREFILL_SHARE * left_s)
    _decode(backend, samples, token, position, clock, clock() + _DECODE_SHARE * left_s)
    samples.repetitions = 1


def _prefill_parts(
    backend: Backend, prompt: PromptInputs, plan: Plan, samples: Samples, costs: Costs, clock: Clock, seconds: float
) -> tuple[int, int]:
    """Prefill as much of the prompt as fits `seconds`, in equal chunks at its beginning and end. Return the likeliest
    next token and its position.

    The last chunk attends to positions that nothing was written to, which costs the same. A device may hold anything
    there, even what is no number: it gets the beginning alone.
    """
    total = len(prompt.ids)

    def timed(start: int, end: int) -> tuple[float, Array]:
        before = clock()
        logits = backend.prefill(dataclasses.replace(prompt, ids=prompt.ids[:end]), start)
        return clock() - before, logits

    # A few tokens at a time are slower than many, so chunks grow as long as two more of twice the size would fit. Those
    # at the end cost most.
    most = min(CHUNK_TOKENS, max(1, total // 2)) if plan.is_on_host else total
    count = min(_FIRST_CHUNK_TOKENS, most, max(_LEAST_CHUNK_TOKENS, int(seconds / 2 / costs.token_s)))
    while True:
        last_s, logits = timed(total - count, total) if plan.is_on_host else timed(0, count)
        seconds -= last_s
        if count == most or 4 * last_s > seconds:
            break
        count = min(2 * count, most)
    if count < total and last_s * total / count <= seconds:
        count = total
        last_s, logits = timed(0, total)
    where, position = f"the first {count:,} of {total:,}", count
    samples.prefill_s, samples.prefill_tokens = [last_s], count
    if plan.is_on_host and count < total:
        where, position = f"a chunk of {count:,} at its beginning and one at its end, of {total:,}", total
        samples.prefill_s, samples.prefill_tokens = [timed(0, count)[0] + last_s], 2 * count
    if samples.is_prefill_part:
        samples.notes.append(f"Prefill: {where} tokens; decoding follows position {position:,}.")
    return int(np.argmax(logits[-1])), position


def _part(whole: int, seconds: float, each_s: float, least: int) -> int:
    """Return how many of `whole` things fit `seconds`, at least `least`."""
    return whole if whole * each_s <= seconds else min(whole, max(least, int(seconds / each_s)))
