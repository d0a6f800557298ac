"""Every Triton kernel against its plain torch twin: on a GPU where there is one, else in Triton's interpreter.

The interpreter needs its variable set before Triton is imported, so without a GPU one test runs this file again in a
process of its own. What only hardware can show (races, matrix units) needs the GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from tokenmerge_bench.assignment import HardAssignment
from tokenmerge_bench.contraction import Merges, contract_most_similar, describe, gather_rows, pair_similarity
from tokenmerge_bench.distances import distances_by_product
from tokenmerge_bench.grid import OFFSETS, all_pairs, cell_edges, token_edges
from tokenmerge_bench.methods.random import Pair, contract_at_random
from tokenmerge_bench.methods.tome import best_partners, merge_best
from tokenmerge_bench.paths import use_path
from tokenmerge_bench.reduced_vit import AttentionTap, Pass, log_sizes, size_bias
from tokenmerge_bench.reducers import Need

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter computes products of bfloat16 wrongly, and slowly.
HALVES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
IMAGES = 2 if INTERPRETED else 4  # it is slow, too, and takes one image after the other
GRID = (3, 4) if INTERPRETED else (4, 5)
N = GRID[0] * GRID[1]
WIDTHS = [(0, 3), (2, 300)] if INTERPRETED else [(0, 3), (1, 24), (2, 300)]
LENGTHS = [(9, 16), (40, 64)] if INTERPRETED else [(9, 16), (40, 64), (70, 32), (97, 64), (129, 128), (197, 64)]
here = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="no CUDA device; run in a process of its own, with the interpreter"
)
# numpy, in which the interpreter computes, warns of what the kernels provide for.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")


@pytest.mark.skipif(DEVICE.type == "cuda" or INTERPRETED, reason="the tests below run in this process")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 70


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def covered(batch: int, grid: tuple[int, int], merges: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells, sizes and edges of tokens that cover several cells, as after an earlier layer."""
    n = grid[0] * grid[1]
    with use_path("torch"):
        ends = token_edges(torch.arange(n).expand(batch, n), cell_edges(grid, OFFSETS[8], torch.device("cpu")))
        draws = torch.rand(batch, merges, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found = contract_at_random(ends, torch.ones(batch, n), draws).assignment(n - merges)
        edges = token_edges(found.labels, cell_edges(grid, OFFSETS[8], torch.device("cpu")))
        sizes = found.merge_sizes(torch.ones(batch, n))
    return found.labels.to(DEVICE), sizes.to(DEVICE), edges.to(DEVICE)


@here
@pytest.mark.parametrize("averaging", ["size", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("merges", [0, 6])
def test_merges_of_the_most_similar(averaging: str, dtype: torch.dtype, merges: int) -> None:
    from tokenmerge_bench.kernels import contraction as kernels

    _, sizes, edges = covered(IMAGES, GRID, merges)
    x = random(IMAGES, N - merges, 24).to(dtype)
    steps = N - 1 - merges
    pairs = kernels.most_similar_pairs(x, sizes, edges, steps, "cosine", averaging)
    with use_path("torch"):
        expected = contract_most_similar(x.double(), sizes.double(), edges, steps, "cosine", averaging)  # type: ignore[arg-type]
        assert pairs is not None
        assert torch.equal(pairs, expected.pairs)
        for done in (0, 1, steps):
            assert torch.equal(kernels.labels_of(pairs, N - merges, done), expected.labels(done))


@here
def test_steps_without_a_pair_are_idle() -> None:
    from tokenmerge_bench.kernels import contraction as kernels

    edges = torch.tensor([[[0, 1], [2, 2], [2, 3]]], device=DEVICE)  # two parts that never touch
    sizes, x = torch.ones(1, 4, device=DEVICE), random(1, 4, 8)
    pairs = kernels.most_similar_pairs(x, sizes, edges, 3, "cosine", "size")
    assert pairs is not None
    assert sorted(pairs[0].tolist()) == [[-1, -1], [0, 1], [2, 3]]
    assert kernels.labels_of(pairs, 4, 3).tolist() == [[0, 0, 1, 1]]


@here
def test_ties_zeros_and_overflow() -> None:
    from tokenmerge_bench.kernels import contraction as kernels

    _, sizes, edges = covered(1, (3, 4), 0)
    for row in ([1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0], [1e30, 1e30], [1e-20, 0.0]):
        x = torch.tensor(row, device=DEVICE).expand(1, 12, 2).contiguous()
        pairs = kernels.most_similar_pairs(x, sizes, edges, 3, "cosine", "size")
        assert pairs is not None
        assert pairs[0].tolist() == [[0, 1], [0, 2], [0, 3]]


@here
def test_what_the_contraction_leaves_to_torch() -> None:
    from tokenmerge_bench.kernels import contraction as kernels

    _, sizes, edges = covered(1, (3, 4), 0)
    x = random(1, 12, 4)
    assert kernels.most_similar_pairs(x, sizes, edges, 2, "euclidean", "size") is None
    assert kernels.most_similar_pairs(x.double(), sizes, edges, 2, "cosine", "size") is None


@here
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("n", "c"), [(5, 3), (17, 40), (70, 64)])
def test_gram_matrix(dtype: torch.dtype, n: int, c: int) -> None:
    from tokenmerge_bench.kernels.contraction import gram_matrix

    x, weights = random(2, n + 1, c).to(dtype)[:, 1:], random(2, n, seed=1).abs()
    found = gram_matrix(x, weights)
    weighted = x.double() * weights.double()[..., None]
    torch.testing.assert_close(found.double(), weighted @ weighted.transpose(1, 2), rtol=5e-6, atol=5e-5)
    if dtype != torch.float32 and not INTERPRETED:  # three terms, or numpy, add up the two sides in another order
        assert torch.equal(found, found.transpose(1, 2))


@here
@pytest.mark.parametrize("pair", ["edge", "token_neighbor", "any"])
@pytest.mark.parametrize("merges", [0, 5])
def test_random_merges(pair: Pair, merges: int) -> None:
    from tokenmerge_bench.kernels.contraction import random_pairs

    _, sizes, edges = covered(IMAGES, GRID, merges)
    n = N - merges
    if pair == "any":
        edges = all_pairs(n, DEVICE).expand(IMAGES, -1, -1)
    draws = torch.rand(IMAGES, n + 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    with use_path("torch"):
        expected = contract_at_random(edges, sizes, draws, pair).pairs
    found = random_pairs(edges, draws, n, pair)
    assert found is not None
    assert torch.equal(found, expected)
    assert found[:, -2:].eq(-1).all()  # nothing is left to merge


@here
def test_token_edges() -> None:
    from tokenmerge_bench.kernels import contraction as kernels

    cells, _, expected = covered(3, (4, 5), 7)
    assert torch.equal(kernels.token_edges(cells, cell_edges((4, 5), OFFSETS[8], DEVICE)), expected)


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_of_neighbours(dtype: torch.dtype) -> None:
    from tokenmerge_bench.kernels.contraction import neighbour_cosines

    x = random(2, 13, 150).to(dtype)
    x[0, 3] = 0
    right = torch.randint(0, 13, (2, 13), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    unit = describe(x.float(), "cosine")
    found = neighbour_cosines(x, right)
    assert found is not None
    torch.testing.assert_close(found, pair_similarity(unit, gather_rows(unit, right), "cosine"), rtol=1e-5, atol=1e-6)
    assert neighbour_cosines(x.double(), right) is None


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("prefix", "c"), WIDTHS)
@pytest.mark.parametrize("weighted", [True, False])
def test_merging_a_sequence(dtype: torch.dtype, prefix: int, c: int, weighted: bool) -> None:
    cells, sizes, _ = covered(IMAGES, (4, 5), 8)
    x = random(IMAGES, prefix + 20, c).to(dtype)
    weights = random(IMAGES, 20, seed=4).abs() + 0.1 if weighted else None
    eps = 1e-6 if weighted else 0.0
    with use_path("torch"):
        plain = HardAssignment(cells, 12, weights, eps)
        expected = plain.merge_sequence(x, x[:, prefix:])
        expected_sizes = plain.merge_sizes(torch.ones(IMAGES, 20, device=DEVICE))
    with use_path("triton"):
        fast = HardAssignment(cells, 12, weights, eps)
        found = fast.merge_sequence(x, x[:, prefix:])
        torch.testing.assert_close(fast.merge(x[:, prefix:]), expected[:, prefix:])
        assert torch.equal(fast.merge_sizes(torch.ones(IMAGES, 20, device=DEVICE)), expected_sizes)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:, :prefix], x[:, :prefix])
    assert torch.equal(expected_sizes, sizes)
    if eps == 0:  # tokens that stay alone keep every bit
        alone = (cells[:, :, None] == cells[:, None, :]).sum(2) == 1
        for image in range(IMAGES):
            kept = cells[image][alone[image]]
            assert torch.equal(found[image, prefix + kept], x[image, prefix:][alone[image]])


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("prefix", "c"), WIDTHS)
@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_of_merging(dtype: torch.dtype, prefix: int, c: int, weighted: bool) -> None:
    cells, sizes, _ = covered(2, (4, 5), 8)
    upstream = random(2, prefix + 12, c, seed=2).to(dtype)
    found = []
    for path in ("torch", "triton"):
        x = random(2, prefix + 20, c).to(dtype).requires_grad_()
        with use_path(path):
            merge = HardAssignment(cells, 12, sizes.gather(1, cells) if weighted else None, 1e-6)
            (merge.merge_sequence(x, x[:, prefix:]) * upstream).sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0])
    assert torch.equal(found[1][:, :prefix], upstream[:, :prefix])


@here
def test_gradients_of_weights_take_the_torch_path() -> None:
    cells, _, _ = covered(2, (4, 5), 8)
    x, weights = random(2, 20, 4), (random(2, 20, seed=1).abs() + 1).requires_grad_()
    with use_path("triton"):
        HardAssignment(cells, 12, weights).merge_sequence(x, x).square().sum().backward()
    assert weights.grad is not None
    assert weights.grad.abs().sum() > 0


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("n", [2, 7, 33])
def test_bipartite_matching(dtype: torch.dtype, prefix: int, n: int) -> None:
    from tokenmerge_bench.kernels import matching

    keys = random(IMAGES, 2, n + 1, 24).to(dtype)[:, :, 1:]
    found = matching.partners(keys, prefix)
    best, partner = best_partners(keys.float().mean(1), prefix)
    assert found is not None
    torch.testing.assert_close(found[0], best, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1].long(), partner)
    for r in (0, 1, n // 2):
        expected = merge_best(found[0], partner, n, r, prefix)
        assert torch.equal(matching.labels_of(*found, n, r, prefix), expected)


@here
def test_matching_of_ties_and_overflow() -> None:
    from tokenmerge_bench.kernels import matching

    for value in (1.0, 0.0, float("nan"), float("inf")):
        keys = torch.full((1, 1, 9, 16), value, device=DEVICE)
        found = matching.partners(keys, 1)
        assert found is not None
        assert found[1].eq(0).all()
        assert matching.labels_of(*found, 9, 2, 1).tolist() == [[2, 2, 3, 2, 4, 0, 5, 1, 6]]


@here
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("t", "width"), LENGTHS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_proportional_attention(dtype: torch.dtype, t: int, width: int, prefix: int) -> None:
    from tokenmerge_bench.kernels.attention import SizeBias

    q, k, v = random(2, t, 3, 2, width).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    sizes = (random(2, t - prefix, seed=5).abs() * 9).ceil()
    bias: Any = SizeBias(sizes)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    mask = F.pad(sizes.double().log(), (prefix, 0))[:, None, None, :]
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(dtype))
    error, usual = (found.double() - exact).norm() / exact.norm(), (masked.double() - exact).norm() / exact.norm()
    assert error < max(2 * usual, {torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype])
    assert found.transpose(1, 2).is_contiguous()  # what the projection reads


@here
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("t", "width"), LENGTHS)
@pytest.mark.parametrize("prefix", [0, 1])
def test_gradients_of_proportional_attention(dtype: torch.dtype, t: int, width: int, prefix: int) -> None:
    from tokenmerge_bench.kernels.attention import SizeBias

    given = random(2, t, 3, 2, width).to(dtype).permute(2, 0, 3, 1, 4)
    sizes = (random(2, t - prefix, seed=5).abs() * 9).ceil()
    mask = F.pad(sizes.double().log(), (prefix, 0))[:, None, None, :]
    upstream = random(2, 2, t, width, seed=3).double()

    def run(given: Tensor, bias: Any) -> list[Tensor]:
        inputs = [x.detach().clone().requires_grad_() for x in given]
        out = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], bias)
        (out.double() * upstream).sum().backward()
        return [out, *(cast(Tensor, x.grad) for x in inputs)]

    exact, masked, found = run(given.double(), mask), run(given, mask.to(dtype)), run(given, SizeBias(sizes))
    for right, usual, ours in zip(exact, masked, found, strict=True):
        error, allowed = (ours.double() - right).norm() / right.norm(), (usual.double() - right).norm() / right.norm()
        assert error < max(2 * allowed, {torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype])


@here
def test_a_size_bias_in_float32_is_a_mask() -> None:
    from tokenmerge_bench.kernels.attention import SizeBias

    attention, x = Attention(32, num_heads=2, qkv_bias=True).eval().to(DEVICE), random(2, 10, 32)
    sizes = (random(2, 9, seed=5).abs() * 9).ceil()
    mask = F.pad(sizes.log(), (1, 0))[:, None, None, :]
    torch.testing.assert_close(attention(x, attn_mask=SizeBias(sizes)), attention(x, attn_mask=mask))
    with pytest.raises(TypeError, match="only as attn_mask"):
        torch.softmax(SizeBias(sizes), 0)  # type: ignore[arg-type]


@here
def test_other_arguments_of_attention_are_not_ignored() -> None:
    from tokenmerge_bench.kernels.attention import SizeBias

    q, k, v = random(2, 10, 3, 2, 16).half().permute(2, 0, 3, 1, 4).unbind(0)
    bias: Any = SizeBias((random(2, 9, seed=5).abs() * 9).ceil())
    mask = F.pad(bias.sizes.log().half(), (1, 0))[:, None, None, :]
    settings: list[dict[str, Any]] = [{"scale": 0.5}, {"dropout_p": 0.5}]
    for given in settings:
        results = []
        for bias_or_mask in (mask, bias):
            torch.manual_seed(0)  # of dropout
            results.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias_or_mask, **given))
            torch.manual_seed(0)
            results.append(F.scaled_dot_product_attention(q, k, v, bias_or_mask, **given))
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])


@here
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"attention"}), frozenset({"received"})])
def test_attention_that_is_not_fused_gets_a_mask(needs: frozenset[Need]) -> None:
    attention, x = Attention(32, num_heads=2, qkv_bias=True).eval().to(DEVICE), random(2, 10, 32)
    tapped = AttentionTap(attention, needs).attention
    carried = Pass(torch.zeros(2, dtype=torch.int64), (random(2, 9, seed=5).abs() * 9).ceil(), proportional=True)
    expected = attention(x, attn_mask=log_sizes(carried, x))
    with use_path("triton"):
        torch.testing.assert_close(tapped(x, attn_mask=size_bias(carried, x, tapped)), expected)


@here
@pytest.mark.parametrize("t", [9, 40] if INTERPRETED else [9, 40, 70, 197])
def test_received_attention(t: int) -> None:
    from tokenmerge_bench.kernels.attention import received_attention

    q, k, _ = random(2, t, 3, 2, 32).half().permute(2, 0, 3, 1, 4).unbind(0)
    logits = q.double() @ k.double().transpose(2, 3) / 32**0.5
    found = received_attention(q, k, logits.logsumexp(-1).float())
    torch.testing.assert_close(found.double(), logits.softmax(-1).sum((1, 2)), rtol=1e-3, atol=1e-3)


@here
def test_received_attention_beside_gradients() -> None:
    from tokenmerge_bench.kernels.attention import Receiver

    given = random(2, 40, 3, 2, 32).half().permute(2, 0, 3, 1, 4)
    receiver: Any = Receiver()
    results = []
    for bias in (None, receiver):
        inputs = [x.detach().clone().requires_grad_() for x in given]
        out = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], bias)
        out.float().square().sum().backward()
        results.append([out, *(cast(Tensor, x.grad) for x in inputs)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-2)
    logits = given[0].double() @ given[1].double().transpose(2, 3) / 32**0.5
    torch.testing.assert_close(receiver.received.double(), logits.softmax(-1).sum((1, 2)), rtol=1e-3, atol=1e-3)
    assert not receiver.received.requires_grad


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_by_product(dtype: torch.dtype) -> None:
    x = random(2, 30, 40).to(dtype) + 10
    x[:, 3] = x[:, 7]
    with use_path("triton"):
        found = distances_by_product(x)
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if INTERPRETED:  # numpy sums products of equal rows in another order
        found[:, 3, 7], found[:, 7, 3] = 0, 0
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert found[:, 3, 7].eq(0).all()
    assert found.diagonal(dim1=1, dim2=2).eq(0).all()


@here
def test_labels_on_the_kernel_path_are_those_of_torch() -> None:
    _, sizes, edges = covered(3, (4, 5), 0)
    x = random(3, 20, 8)
    with use_path("torch"):
        pairs = contract_most_similar(x, sizes, edges, 12).pairs
        expected = Merges(pairs, sizes, "plain").assignment(10).merge(x)
    with use_path("triton"):
        torch.testing.assert_close(Merges(pairs, sizes, "plain").assignment(10).merge(x), expected)
