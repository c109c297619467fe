"""What every backend does: the CPU's and OpenVINO's, and CUDA's and TensorRT's on doubles that compute on the CPU.

Logits are compared with those of one run of the CPU over the whole prompt, answers with those of another model on the
CPU. What only one device has, such as captured graphs, its memory and its libraries, is tested in that device's folder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.doubles.recording_cuda import CudaError, Device
from tests.doubles.recording_onnxruntime import Gpu
from tests.doubles.recording_tensorrt import RTX_VERSION
from tests.makers.constraints import Rule
from tests.makers.drafts import foretell
from tests.makers.inputs import close, text_inputs
from tests.makers.refusals import assert_refused
from tests.runtime.backends.conftest import CUDA_CONTEXT, TENSORRT_CONTEXT
from varco_runtime import Varco, backend
from varco_runtime.backend import MAX_STEP_TOKENS, Features, PromptInputs
from varco_runtime.backends.cpu.backend import CHUNK_TOKENS
from varco_runtime.errors import BackendError, ContextError
from varco_runtime.generation.sampling import Sampler, SamplingSettings
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import PackingPlan, packing_plan
from varco_runtime.picture.tiles import normalize, tile

Array = np.ndarray[Any, Any]

CUDA_FAULT = (
    "Non-zero status code returned while running MatMul node. Name:'node_1' Status Message: /onnxruntime_src/call.cc:"
    "129 std::conditional_t<THRW, void, Status> CudaCall(ERRTYPE, const char*, [with ERRTYPE = cudaError] CUDA failure "
    "700: an illegal memory access was encountered ; GPU=0 ; hostname=box ; file=/onnxruntime_src/cuda_stream.cc ; "
    "line=81 ; expr=cudaStreamSynchronize(stream);"
)
"""One of onnxruntime's own lines, the fault in its midst."""


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A backend under test, which takes a prompt in chunks of 32 positions.

    `load` opens a model on it, with the options of `Varco.load`. `max_context` are the positions of its caches.
    `fail` lets runs on its device fail, or succeed again; `fault` is found in the error that says so.
    """

    load: Callable[..., Varco]
    max_context: int
    provider: str
    description: str
    protocols: frozenset[type]
    fail: Callable[[bool], None]
    fault: str


@pytest.fixture
def cpu_subject(tiny_bundle: Path, cpu: Varco, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr("varco_runtime.backends.cpu.backend.CHUNK_TOKENS", 32)

    def fail(fails: bool) -> None:
        def raise_fault(*_: object) -> None:
            raise RuntimeError("Non-zero status code returned while running MatMul node.\nAnd more.")

        run = raise_fault if fails else run_with_iobinding
        monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", run)

    run_with_iobinding = onnxruntime.InferenceSession.run_with_iobinding
    return Subject(
        load=lambda **options: Varco.load(tiny_bundle, **{"threads": 1, "max_context": CUDA_CONTEXT, **options}),
        max_context=CUDA_CONTEXT,
        provider="cpu (the bundle was exported for the CPU)",
        description=f"onnxruntime {onnxruntime.__version__}, CPU, 1 thread",
        protocols=frozenset(
            {
                backend.BatchingBackend,
                backend.HoldsSlots,
                backend.KeepsPrefixes,
                backend.ReportsProgress,
                backend.ReservesMemory,
                backend.ShowsFeatures,
                backend.StopsRounding,
                backend.VerifyingBackend,
            }
        ),
        fail=fail,
        fault="onnxruntime failed while running the decoder: Non-zero status code",
    )


@pytest.fixture
def cuda_subject(cuda_bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.BATCH_TILES", 3)
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.PREFILL_TOKENS", 32)

    def fail(fails: bool) -> None:
        gpu.fault = lambda call: RuntimeError(CUDA_FAULT) if fails and call == "run" else None

    return Subject(
        load=lambda **options: Varco.load(cuda_bundle, **options),
        max_context=CUDA_CONTEXT,
        provider="cuda (the bundle was exported for CUDA)",
        description="onnxruntime 1.31.1, CUDA, Recording GPU (sm90)",
        protocols=frozenset(
            {
                backend.BatchingBackend,
                backend.CapturesGraphs,
                backend.HoldsSlots,
                backend.ChoosesRows,
                backend.CopiesSlots,
                backend.GreedyBackend,
                backend.GreedyVerifyingBackend,
                backend.HoldsMedia,
                backend.NormalizesPixels,
                backend.SamplingBackend,
                backend.ShowsFeatures,
                backend.VerifyingBackend,
            }
        ),
        fail=fail,
        fault=r"during a run of the decoder: CUDA failure 700: an illegal memory access was encountered\. Start",
    )


@pytest.fixture
def tensorrt_subject(tensorrt_bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Its step attends to a multiple of 16 positions, so that prompts and answers cross from one to the next."""
    monkeypatch.setattr("varco_runtime.backends.tensorrt.step.BUCKET_POSITIONS", 16)

    def fail(fails: bool) -> None:
        device.fault = CudaError.cudaErrorIllegalAddress if fails else None

    return Subject(
        load=lambda **options: Varco.load(tensorrt_bundle, **options),
        max_context=TENSORRT_CONTEXT,
        provider="tensorrt (the bundle was exported for TensorRT, and its engines fit this sm89)",
        description=f"TensorRT for RTX {RTX_VERSION}, Recording GPU (sm89)",
        protocols=frozenset(
            {
                backend.BatchingBackend,
                backend.HoldsSlots,
                backend.ChoosesRows,
                backend.CopiesSlots,
                backend.GreedyBackend,
                backend.HoldsMedia,
                backend.ShowsFeatures,
            }
        ),
        fail=fail,
        fault="cudaErrorIllegalAddress",
    )


@pytest.fixture
def openvino_subject(tiny_bundle: Path, cpu: Varco, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """In fp32, whose numbers are the CPU's."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setattr("varco_runtime.backends.openvino.backend.CHUNK_TOKENS", 32)
    infer = openvino.InferRequest.infer

    def fail(fails: bool) -> None:
        def raise_fault(*_: object) -> None:
            raise RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:224:\nA state is lost.\n\n")

        monkeypatch.setattr(openvino.InferRequest, "infer", raise_fault if fails else infer)

    exact = {"provider": "openvino", "precision": "fp32", "threads": 1, "max_context": CUDA_CONTEXT}
    return Subject(
        load=lambda **options: Varco.load(tiny_bundle, **{**exact, **options}),
        max_context=CUDA_CONTEXT,
        provider="openvino (as asked)",
        description=(f"OpenVINO {openvino.__version__.partition('-')[0]}, CPU, 1 thread, precision fp32, cache fp32"),
        protocols=frozenset(
            {
                backend.BatchingBackend,
                backend.CopiesSlots,
                backend.HoldsSlots,
                backend.KeepsPrefixes,
                backend.ReportsProgress,
                backend.ReservesMemory,
                backend.ShowsFeatures,
                backend.StopsRounding,
                backend.VerifyingBackend,
            }
        ),
        fail=fail,
        fault=r"OpenVINO failed while running the decoder: A state is lost\. Run: varco doctor",
    )


@pytest.fixture(params=["cpu", "cuda", "tensorrt", "openvino"])
def subject(request: pytest.FixtureRequest) -> Subject:
    subject: Subject = request.getfixturevalue(f"{request.param}_subject")
    return subject


@pytest.fixture
def varco(subject: Subject) -> Varco:
    return subject.load()


on_devices = pytest.mark.parametrize("subject", ["cuda", "tensorrt", "openvino"], indirect=True)
"""For what compares a provider with the CPU's."""
with_choices = pytest.mark.parametrize("subject", ["cuda", "tensorrt"], indirect=True)
"""For what the CPU leaves to the host."""
with_drafts = pytest.mark.parametrize("subject", ["cpu", "cuda", "openvino"], indirect=True)
"""For steps of several tokens, which TensorRT's engines do not take."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and the logits `[n, vocab]` after each of its positions, as one run of the CPU gives them."""

    inputs: PromptInputs
    logits: Array

    def first(self, length: int) -> PromptInputs:
        return dataclasses.replace(self.inputs, ids=self.inputs.ids[:length])


@pytest.fixture(scope="session")
def model(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def text(model: Varco) -> Prompt:
    """100 tokens: three chunks and a part of a fourth."""
    inputs = text_inputs(model, 100)
    assert len(inputs.ids) < CHUNK_TOKENS
    return Prompt(inputs, model.backend.prefill(inputs, 0, num_logits=100).copy())


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A picture on its way to a backend: `pixel_values` `[T, 3, S, S]` and the plan of its image tokens."""

    pixel_values: Array
    plan: PackingPlan

    @classmethod
    def of(cls, image: Image.Image, varco: Varco) -> Picture:
        settings, picture = varco.bundle.manifest.image, load_picture(image)
        return cls(normalize(tile(picture, settings), settings), packing_plan(picture.size_hw, settings))

    def tokens(self, varco: Varco) -> Any:
        return varco.backend.pack(varco.backend.encode(self.pixel_values), self.plan)

    def features(self, varco: Varco) -> Features:
        assert isinstance(varco.backend, backend.ShowsFeatures)
        return varco.backend.features(self.pixel_values, self.plan)


def ask(varco: Varco, image: Image.Image | None, prompt: str, max_new_tokens: int, **options: Any) -> tuple[int, ...]:
    return varco.ask(image, prompt, max_new_tokens=max_new_tokens, **options).token_ids


# --- what it is -------------------------------------------------------------------------------------------------------


def test_it_says_what_it_is_and_why_it_was_taken(subject: Subject, varco: Varco) -> None:
    assert varco.provider == subject.provider
    assert varco.backend.description == subject.description


def test_it_offers_these_protocols_and_no_other(subject: Subject, varco: Varco) -> None:
    every = {kind for kind in vars(backend).values() if getattr(kind, "_is_runtime_protocol", False)}
    assert subject.protocols < every
    for protocol in every:
        assert isinstance(varco.backend, protocol) == (protocol in subject.protocols), protocol


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_chunked_prefill_equals_one_full_pass(varco: Varco, text: Prompt) -> None:
    assert close(varco.backend.prefill(text.inputs, 0), text.logits[-1:])
    assert close(varco.backend.prefill(text.inputs, 40, num_logits=33), text.logits[-33:])
    assert close(varco.backend.prefill(text.inputs, 0, num_logits=100), text.logits)


def test_image_tokens_may_stand_anywhere_in_a_chunk(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    """Between tokens of text, so that chunks begin and end amid the picture."""
    picture, image_token_id = Picture.of(image, varco), varco.bundle.manifest.prompt.image_token_id
    ids = text_inputs(varco, picture.plan.num_tokens + 40).ids
    ids[np.sort(np.random.default_rng(1).permutation(len(ids) - 1)[: picture.plan.num_tokens])] = image_token_id
    got = varco.backend.prefill(PromptInputs(ids, image_token_id, picture.tokens(varco)), 0, num_logits=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("varco_runtime.backends.cpu.backend.CHUNK_TOKENS", len(ids))
        want = cpu.backend.prefill(PromptInputs(ids, image_token_id, picture.tokens(cpu)), 0, num_logits=20)
    assert close(got, want)


def test_a_rewound_cache_forgets_what_came_after(varco: Varco, text: Prompt) -> None:
    varco.backend.prefill(text.first(60), 0)
    other = text_inputs(varco, 60, seed=9).ids
    varco.backend.prefill(dataclasses.replace(text.inputs, ids=np.concatenate([text.inputs.ids[:30], other])), 0)
    assert close(varco.backend.prefill(text.first(60), 30, num_logits=30), text.logits[30:60])


# --- steps ------------------------------------------------------------------------------------------------------------


def test_decode_steps_equal_one_full_pass(varco: Varco, text: Prompt) -> None:
    rows = [varco.backend.prefill(text.first(20), 0)[0].copy()]
    rows += [varco.backend.decode_step(int(text.inputs.ids[at]), at).copy() for at in range(20, 60)]
    assert close(np.stack(rows), text.logits[19:60])


def test_a_step_may_go_back(varco: Varco, cpu: Varco, text: Prompt) -> None:
    varco.backend.prefill(text.first(30), 0)
    ids = text.inputs.ids[:30]
    for token, position in ((5, 30), (6, 31), (7, 32), (9, 31), (3, 20), (4, 21)):
        ids = np.concatenate([ids[:position], [token]])
        want = cpu.backend.prefill(dataclasses.replace(text.inputs, ids=ids), 0)[0]
        assert close(varco.backend.decode_step(token, position), want), position


@with_drafts
@pytest.mark.parametrize("count", [2, 5, MAX_STEP_TOKENS])
def test_a_step_of_several_tokens_equals_one_full_pass(varco: Varco, text: Prompt, count: int) -> None:
    for start in (40, 20, 0):
        tokens, want = text.inputs.ids[start : start + count].tolist(), text.logits[start : start + count]
        if start:
            varco.backend.prefill(text.first(start), 0)
        assert isinstance(varco.backend, backend.VerifyingBackend)
        assert close(varco.backend.decode_steps(tokens, start), want)
        if isinstance(varco.backend, backend.GreedyVerifyingBackend):
            assert varco.backend.decode_greedy_steps(tokens, start) == want.argmax(axis=1).tolist()


@with_choices
def test_a_token_that_the_device_did_not_choose_is_handed_to_it(varco: Varco, cpu: Varco, text: Prompt) -> None:
    for one in (varco, cpu):
        one.backend.prefill(text.first(12), 0)
    assert isinstance(varco.backend, backend.GreedyBackend)
    first = varco.backend.decode_greedy(5, 12)
    other = (first + 1) % 200
    tokens = (5, other, other, first, first)
    expected = [int(np.argmax(cpu.backend.decode_step(token, 12 + i))) for i, token in enumerate(tokens)]
    chosen = [first, varco.backend.decode_greedy(other, 13), int(np.argmax(varco.backend.decode_step(other, 14)))]
    chosen += [int(np.argmax(varco.backend.decode_step(first, 15))), varco.backend.decode_greedy(first, 16)]
    assert chosen == expected


@with_choices
def test_greedy_tokens_do_not_depend_on_who_chooses(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_by_device = ask(varco, None, "Hello", 32)
    monkeypatch.setattr("varco_runtime.generation.sampling.Sampler.is_greedy", False)
    assert ask(varco, None, "Hello", 32) == chosen_by_device


@with_drafts
def test_a_draft_under_a_penalty_is_judged_by_the_host(
    varco: Varco, cpu: Varco, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(cpu, None, "Hello", 32, repetition_penalty=1.3, speculate=False)
    foretell(monkeypatch, expected, (4, 2))
    answer = varco.ask(None, "Hello", max_new_tokens=32, repetition_penalty=1.3)
    assert answer.token_ids == expected
    assert answer.timings.accepted > 5


# --- bounds -----------------------------------------------------------------------------------------------------------


def steps_of(varco: Varco) -> Sequence[Callable[[int, int], object]]:
    """Every way in which a backend puts one token at a position."""
    one, sampler = varco.backend, Sampler(SamplingSettings(temperature=1.0), varco.bundle.manifest.generation)
    steps: list[Callable[[int, int], object]] = [one.decode_step]
    if isinstance(one, backend.VerifyingBackend):
        steps.append(lambda token, position: one.decode_steps([token], position))
    if isinstance(one, backend.GreedyBackend):
        steps.append(one.decode_greedy)
    if isinstance(one, backend.GreedyVerifyingBackend):
        steps.append(lambda token, position: one.decode_greedy_steps([token], position))
    if isinstance(one, backend.SamplingBackend):
        draw = sampler.draw(varco.bundle.manifest.model.vocab_size)
        steps.append(lambda token, position: one.decode_sampled(token, position, draw))
    return steps


def test_no_position_beyond_the_context_reaches_the_device(subject: Subject) -> None:
    varco = subject.load(max_context=64)
    answer = varco.ask(None, "Hello", max_new_tokens=1000)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + len(answer.token_ids) == 64
    for step in steps_of(varco):
        with pytest.raises(ContextError, match="65 positions do not fit the context of 64"):
            step(1, 64)
    with pytest.raises(ContextError, match="100 positions do not fit"):
        varco.backend.prefill(text_inputs(varco, 100), 0)


def test_the_last_position_of_the_caches_can_be_used(subject: Subject, varco: Varco, cpu: Varco) -> None:
    assert varco.backend.max_context == subject.max_context
    inputs = text_inputs(varco, subject.max_context - 2)
    for one in (varco, cpu):
        one.backend.prefill(inputs, 0)
    for position in (subject.max_context - 2, subject.max_context - 1):
        assert close(varco.backend.decode_step(3, position), cpu.backend.decode_step(3, position))


def test_a_picture_beyond_the_context_is_one_clear_line(subject: Subject, image: Image.Image) -> None:
    varco = subject.load(max_context=60)
    with pytest.raises(ContextError, match=r"120 of them the picture's, the context holds 60\b") as caught:
        varco.ask(image, "What is this?")
    assert "\n" not in str(caught.value)
    assert ask(varco, None, "Hello", 3)


# --- answers ----------------------------------------------------------------------------------------------------------


@on_devices
def test_answers_have_the_tokens_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    for picture, prompt in ((image, "What is this?"), (None, "Hello")):
        expected = cpu.ask(picture, prompt, max_new_tokens=64)
        answer = varco.ask(picture, prompt, max_new_tokens=64)
        assert answer.token_ids == expected.token_ids
        assert answer.usage == expected.usage


@on_devices
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "seed": 3},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "top_k": 20, "seed": 1},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 1},
    ],
)
def test_sampling_and_penalties_see_the_logits_of_the_cpu(varco: Varco, cpu: Varco, options: dict[str, Any]) -> None:
    assert ask(varco, None, "Hello", 16, **options) == ask(cpu, None, "Hello", 16, **options)


def forbid_choices(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a device that chooses tokens itself fail where it is asked to."""

    def choose(*_: object) -> None:
        raise AssertionError("the device is asked to choose")

    for name in ("decode_greedy", "decode_greedy_steps", "decode_sampled"):
        if hasattr(varco.backend, name):
            monkeypatch.setattr(varco.backend, name, choose)


@with_choices
@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 1.5}, {"frequency_penalty": 1.5}, {"logit_bias": {5: 100}}, {"top_logprobs": 3},
        {"top_logprobs": 0, "temperature": 1.5, "seed": 3}, {"presence_penalty": 1.5, "temperature": 0.8, "seed": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_device_does_not_know_of_is_chosen_by_the_host(
    varco: Varco, cpu: Varco, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    answer = varco.ask(None, "Hello", max_new_tokens=16, **options)
    expected = cpu.ask(None, "Hello", max_new_tokens=16, speculate=False, **options)
    assert answer.token_ids == expected.token_ids
    assert [score.logprob for score in answer.tokens] == pytest.approx(
        [score.logprob for score in expected.tokens], abs=1e-4
    )
    forbid_choices(varco, monkeypatch)
    assert ask(varco, None, "Hello", 16, **options) == expected.token_ids


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.5, "seed": 3}], ids=str)
def test_a_constraint_gives_the_tokens_of_the_cpu(
    varco: Varco, cpu: Varco, monkeypatch: pytest.MonkeyPatch, sampled: dict[str, Any]
) -> None:
    """With forced tokens as drafts where the device takes several at a step, and without."""
    size = varco.bundle.manifest.model.vocab_size
    forbid_choices(varco, monkeypatch)
    expected = ask(cpu, None, "Hello", 24, constraint=Rule(1).constraint(size), speculate=False, **sampled)
    for speculate in (True, False):
        constraint = Rule(1).constraint(size)
        assert ask(varco, None, "Hello", 24, constraint=constraint, speculate=speculate, **sampled) == expected
        assert tuple(constraint.taken) == expected


def test_a_second_question_encodes_no_tile_and_rewinds_the_cache(
    varco: Varco, cpu: Varco, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = varco.ask(image, "What is this?", max_new_tokens=8)

    def encode(tiles: Array) -> Any:
        raise AssertionError(f"{len(tiles)} tiles are encoded again")

    with monkeypatch.context() as patch:
        for name in ("encode", "encode_pixels"):
            patch.setattr(type(varco.backend), name, lambda self, tiles: encode(tiles), raising=False)
        second = varco.ask(image, "And what colour is it?", max_new_tokens=16)
    assert second.usage.cached_tokens > second.usage.image_tokens == first.usage.image_tokens > 0
    assert second.token_ids == ask(cpu, image, "And what colour is it?", 16)


def test_another_picture_replaces_the_first(varco: Varco, subject: Subject, image: Image.Image) -> None:
    """One of the same size too, which has the same image tokens' ids."""
    negative = Image.eval(image, lambda value: 255 - value)
    answers = [ask(varco, picture, "<ocr>", 8) for picture in (image, negative, negative.resize((60, 200)), image)]
    assert len(set(answers)) == 3
    for picture, answer in zip((negative, negative.resize((60, 200)), image), answers[1:], strict=True):
        assert ask(subject.load(), picture, "<ocr>", 8) == answer


@on_devices
def test_features_are_those_of_the_cpu(varco: Varco, cpu: Varco, image: Image.Image) -> None:
    got, want = (Picture.of(image, one).features(one) for one in (varco, cpu))
    for name in ("patch_features", "image_features", "image_tokens"):
        assert close(getattr(got, name), getattr(want, name)), name


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_cancelled_answer_leaves_the_model_usable(varco: Varco, cpu: Varco) -> None:
    stream = varco.stream(None, "Hello", max_new_tokens=50)
    next(iter(stream))
    stream.cancel()
    assert stream.run().finish_reason == "cancelled"
    assert ask(varco, None, "Hello", 8) == ask(cpu, None, "Hello", 8)


def test_a_fault_of_the_device_is_one_clear_line_and_the_model_stays_usable(
    subject: Subject, varco: Varco, cpu: Varco
) -> None:
    expected = ask(cpu, None, "Hello", 4)
    subject.fail(True)
    with pytest.raises(BackendError, match=subject.fault) as caught:
        varco.ask(None, "Hello", max_new_tokens=4)
    assert "\n" not in str(caught.value)
    subject.fail(False)
    assert ask(varco, None, "Hello", 4) == expected


@pytest.mark.parametrize(
    ("made_for", "asked_for", "message"),
    [
        ("cpu", "cuda", r"exported for the CPU, got the provider 'cuda'\..*--device cuda"),
        ("cpu", "tensorrt", r"exported for the CPU, got the provider 'tensorrt'\..*--device tensorrt"),
        ("cuda", "tensorrt", r"exported for CUDA, got the provider 'tensorrt'\..*--device tensorrt"),
        ("cuda", "openvino", r"exported for CUDA, got the provider 'openvino', which runs bundles for the CPU\..*cpu"),
        ("tensorrt", "openvino", r"exported for TensorRT, got the provider 'openvino'.*--device cpu"),
        ("tensorrt", "cpu", r"exported for TensorRT, got the provider 'cpu'\..*--device cpu"),
        ("tensorrt", "cuda", r"exported for TensorRT, got the provider 'cuda'\..*--device cuda"),
    ],
)
def test_a_provider_that_the_bundle_was_not_exported_for_is_refused(
    tiny_bundle: Path,
    cuda_bundle: Path,
    tensorrt_bundle: Path,
    gpu: Gpu,
    device: Device,
    made_for: str,
    asked_for: str,
    message: str,
) -> None:
    bundle = {"cpu": tiny_bundle, "cuda": cuda_bundle, "tensorrt": tensorrt_bundle}[made_for]
    assert_refused(bundle, BackendError, message, provider=asked_for)
    assert not gpu.asked
    device.assert_all_is_freed()


@pytest.mark.parametrize("subject", ["cpu", "cuda", "tensorrt"], indirect=True)
def test_a_provider_may_be_asked_for_by_its_name(subject: Subject) -> None:
    name = subject.provider.partition(" ")[0]
    expected = re.sub("the bundle was exported for (the CPU|CUDA|TensorRT)", "as asked", subject.provider)
    assert subject.load(provider=name).provider == expected != subject.provider
