"""Which kernels the provider takes, and that `varco inspect --kernels` says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx
import pytest

from tests.provider.conftest import (
    A100,
    FAST,
    H200,
    MODEL,
    SLOW,
    Case,
    Observed,
    params,
    require_provider,
)
from tests.provider.kernel_families import claimed, families
from tests.provider.scenario import LOAD, LONG_PROMPT, PROMPTS
from varco_runtime.backend import MAX_STEP_TOKENS
from varco_runtime.backends.cuda.memory import PREFILL_TOKENS
from varco_runtime.backends.kernels import FP8_ROWS, GEMV_ROWS, _node, kernel_uses
from varco_runtime.bundle.opening import read_manifest

require_provider()

AMPERE_ON = [case for case in FAST if case.capability >= A100]
INTEGERS = [case for case in FAST if case.decoder in ("int8", "int4")]
FP8 = [case for case in FAST if case.decoder == "fp8"]
WITHOUT_FUSED = [case for case in SLOW if case.decoder != case.compute]
WHOLE_VOCABULARY_INT4 = next(case for case in FAST if ("lm_head", "int4") in case.options)
FLASH_KEYS = 128
"""Keys of one block of Flash attention for heads of 128."""
KEYS_OF_A_SPLIT = {
    **{(H200, 40, band): keys for band, keys in {1024: 384, 4096: 1408, 10_240: 3456}.items()},
    **{(H200, 10, band): keys for band, keys in {1024: 128, 4608: 384}.items()},
    **{(A100, 10, band): keys for band, keys in {1024: 128, 4608: 640}.items()},
    **{(H200, 5, band): keys for band, keys in {1024: 128, 4608: 256}.items()},
}
"""Keys that one split reads of a draft's sequence, by GPU, number of heads and band."""
LAUNCHES_PER_LAYER, AROUND_LAYERS = 12, 18
"""Of a step of one token, with a bias as a launch of its own; around the layers, the choice of the token included."""
PROMPT = "prompt of 650"
PRODUCTS = ("cuBLAS", "fpA_intB", "n-bit", "FP8", "unpacking")


def claims(observed: Observed, *networks: str, one_row: bool = False) -> list[str]:
    """What `varco inspect --kernels` announces for networks run one after the other, node by node."""
    manifest = read_manifest(observed.bundle)
    uses = kernel_uses(observed.bundle, manifest, observed.case.capability)
    by_node = {(use.network, use.operator, use.shape): use for use in uses}
    found = []
    for network in networks:
        path = observed.bundle / manifest.components[network].file
        graph = onnx.load(path, load_external_data=False).graph
        dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        for node in graph.node:
            use = by_node[network, node.op_type, _node(node, dims).shape]
            found += claimed(use.one_row if one_row else use.many_rows, use.shape)
    return found


def prompt_claims(observed: Observed, *before: str) -> list[str]:
    """What is announced for a prompt behind other networks. The head, which comes last, takes one row of it."""
    return claims(observed, *before, "decoder")[:-1] + claims(observed, "decoder", one_row=True)[-1:]


def agree(got: list[str], expected: list[str]) -> None:
    """Every launch is of the family that was announced for its node, and there is no other."""
    assert len(got) == len(expected), f"{got}\nand not\n{expected}"
    assert [(one, claim) for one, claim in zip(got, expected, strict=True) if not one.startswith(claim)] == []


def step(observed: Observed, num_tokens: int) -> list[str]:
    """The families of the step of so many tokens, captured at loading."""
    return families(observed.sections[LOAD].captures[num_tokens - 1])


def test_a_step_takes_the_kernels_that_are_announced(observed: Observed) -> None:
    agree(step(observed, 1), claims(observed, "decoder", one_row=True))


def test_a_prompt_takes_the_kernels_that_are_announced(observed: Observed) -> None:
    agree(families(observed.sections[PROMPT].launches), prompt_claims(observed))


def test_a_picture_takes_the_kernels_that_are_announced(observed: Observed) -> None:
    before = ("pixels", "vision", "projector", "packing")
    agree(families(observed.sections["prompt with a small picture"].launches), prompt_claims(observed, *before))


def test_the_draw_multiplies_nothing(observed: Observed) -> None:
    assert families(observed.sections[LOAD].captures[-1]) == []
    assert claims(observed, "sampling", one_row=True) == []


@pytest.mark.parametrize("observed", params(FAST), indirect=True)
def test_the_tower_attends_with_one_kernel_and_without_cudnn(observed: Observed) -> None:
    names = [name for name in families(observed.sections["small picture"].launches) if not name.startswith("cuBLAS")]
    assert (
        names
        == ["Flash" if observed.case.capability >= A100 else "memory-efficient"] * observed.case.model.num_vision_layers
    )


@pytest.mark.parametrize("observed", params(AMPERE_ON), indirect=True)
def test_one_token_attends_with_xqa_for_the_head_group_of_five(observed: Observed) -> None:
    layers = read_manifest(observed.bundle).model.num_layers
    assert [name for name in step(observed, 1) if not name.startswith(PRODUCTS)] == ["XQA of 5"] * layers


def test_drafts_and_prompts_attend_with_the_kernel_of_prompts(observed: Observed) -> None:
    layers = read_manifest(observed.bundle).model.num_layers
    expected = ["Flash" if observed.case.capability >= A100 else "memory-efficient"] * layers
    for num_tokens in range(2, MAX_STEP_TOKENS + 1):
        assert [name for name in step(observed, num_tokens) if not name.startswith(PRODUCTS)] == expected, num_tokens
    for name in ("first prompt", "later prompt", PROMPT):
        found = families(observed.sections[name].launches)
        assert [one for one in found if not one.startswith(PRODUCTS)] == expected, name


@pytest.mark.parametrize("observed", params(AMPERE_ON), indirect=True)
def test_a_draft_shares_the_keys_of_its_band_out_among_its_splits(observed: Observed) -> None:
    """By the grid and what its splits share: the caches' length, and not the sequence's."""
    load, model = observed.sections[LOAD], read_manifest(observed.bundle).model
    keys: dict[int, set[int]] = {}
    for number, band in enumerate(observed.bands):
        for num_tokens in range(2, MAX_STEP_TOKENS + 1):
            capture = number * MAX_STEP_TOKENS + num_tokens - 1
            assert load.shared_keys[capture] == [band] * model.num_layers, (band, num_tokens)
            grids = {one.sizes for one in load.captures[capture] if "flash_fwd_splitkv_kernel" in one.name}
            ((_, num_splits, heads),) = grids
            assert heads == model.num_attention_heads
            keys.setdefault(band, set()).add(-(-band // FLASH_KEYS // num_splits) * FLASH_KEYS)
    assert keys == {band: {KEYS_OF_A_SPLIT[observed.case.capability, heads, band]} for band in observed.bands}


@pytest.mark.parametrize("observed", params(INTEGERS), indirect=True)
def test_every_product_of_integers_takes_the_fused_kernel(observed: Observed) -> None:
    """In steps, drafts and prompts alike: only a head of floats goes to cuBLAS. And each is launched once: which of its
    forms is best has been sought at loading."""
    num_products = observed.operators["decoder"]["MatMulNBits"]
    num_heads = observed.operators["decoder"].get("FusedMatMul", 0)
    steps = {f"step of {n}": (step(observed, n), 1) for n in range(1, MAX_STEP_TOKENS + 1)}
    prompts = {
        f"prompt of {length}": (families(observed.sections[f"prompt of {length}"].launches), runs)
        for length, runs in [*((length, 1) for length in PROMPTS if length != LONG_PROMPT), (LONG_PROMPT, 2)]
    }
    for name, (found, runs) in (steps | prompts).items():
        products = Counter(one.split()[0] for one in found if one.startswith(PRODUCTS))
        assert products == Counter(fpA_intB=runs * num_products, cuBLAS=runs * num_heads), name


@pytest.mark.parametrize("observed", params(INTEGERS), indirect=True)
def test_a_step_of_any_length_multiplies_integers_row_by_row(observed: Observed) -> None:
    """By the GEMV, which reads a weight once: the profiler takes it below 16 rows, and 9 are not rounded up to 16."""
    num_products = observed.operators["decoder"]["MatMulNBits"]
    for num_tokens in range(1, MAX_STEP_TOKENS + 1):
        assert step(observed, num_tokens).count("fpA_intB GEMV") == num_products, num_tokens


def test_a_head_of_integers_is_profiled_for_the_rows_that_it_sees(observe: Callable[[Case], Observed]) -> None:
    """For a run of a prompt it would take scratch for as many rows of logits, which it never gives."""
    observed = observe(WHOLE_VOCABULARY_INT4)
    vocab_size = read_manifest(observed.bundle).model.vocab_size
    largest = max(one.num_bytes for one in observed.sections[LOAD].allocations if one.place == "device")
    assert largest < PREFILL_TOKENS * vocab_size * 2 / 4


@pytest.mark.parametrize("observed", params(case for case in AMPERE_ON if case.model == MODEL), indirect=True)
def test_a_layer_of_a_step_is_so_many_launches(observed: Observed) -> None:
    """What a step of one token launches between the norms of two layers: four products and gate and up apart, the
    bias where the product does not add it, three for attention, one for the gate and two for sums and norms."""
    launches = observed.sections[LOAD].captures[0]
    norms = [place for place, launch in enumerate(launches) if "SkipLayerNorm" in launch.name]
    assert len(norms) == 2 * MODEL.num_hidden_layers
    per_layer = norms[3] - norms[1]
    names = [launch.name for launch in launches[norms[1] + 1 : norms[3] + 1]]
    adds_bias = observed.case.decoder == "fp8"
    assert per_layer == LAUNCHES_PER_LAYER - adds_bias, names
    assert sum("GatedRMSNorm" in name for name in names) == 1
    assert not any("Split" in name for name in names if "::flash::" not in name)
    if observed.case.note != "rows-from-host":
        assert len(launches) == per_layer * MODEL.num_hidden_layers + AROUND_LAYERS


@pytest.mark.parametrize("observed", params(FP8), indirect=True)
def test_fp8_products_take_their_own_kernel_up_to_its_number_of_rows(observed: Observed) -> None:
    num_products = observed.operators["decoder"]["MatMulBlockQuantizedFp8Weight"]
    for num_tokens in range(1, MAX_STEP_TOKENS + 1):
        assert step(observed, num_tokens).count("FP8 GEMV on tensor cores") == num_products
    at, beyond = (families(observed.sections[f"prompt of {rows}"].launches) for rows in (FP8_ROWS, FP8_ROWS + 1))
    assert at.count("FP8 GEMV on tensor cores") == num_products
    assert "unpacking" not in at
    assert beyond.count("unpacking") == num_products


@pytest.mark.parametrize("observed", params(WITHOUT_FUSED), indirect=True)
def test_integers_without_the_fused_kernel_are_unpacked_from_the_announced_number_of_rows_on(
    observed: Observed,
) -> None:
    num_products, most = observed.operators["decoder"]["MatMulNBits"], GEMV_ROWS[int(observed.case.decoder[3:])]
    runs = {rows: step(observed, rows) for rows in range(1, MAX_STEP_TOKENS + 1)}
    runs |= {rows: families(observed.sections[f"prompt of {rows}"].launches) for rows in (16, 17)}
    assert {rows: found.count("n-bit GEMV") for rows, found in runs.items()} == {
        rows: num_products if rows <= most else 0 for rows in runs
    }
    assert {rows: found.count("unpacking") for rows, found in runs.items()} == {
        rows: 0 if rows <= most else num_products for rows in runs
    }
