"""Random merging: the golden cases R1 and R2, and a naive reference that is given the same random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import references as ref
import torch

from tokenmerge_bench.grid import OFFSETS, cell_edges
from tokenmerge_bench.methods.random import Pair, Random, RandomOptions, contract_at_random
from tokenmerge_bench.paths import path_for, use_path
from tokenmerge_bench.randomness import uniforms
from tokenmerge_bench.tokens import Tokens

CPU = torch.device("cpu")
COMPILED = pytest.mark.skipif(path_for(CPU) != "numba", reason="numba is not installed")
PAIRS: tuple[Pair, ...] = ("edge", "token_neighbor", "any")
D1 = torch.tensor([[8, 8], [6, 1], [3, 6], [8, 2], [9, 4], [0, 1]], dtype=torch.float64)[None]
R1_DRAWS = torch.tensor([[0.5, 0.0], [0.1, 0.0], [0.95, 0.0]], dtype=torch.float64)[None]


@pytest.fixture(params=["torch", pytest.param("numba", marks=COMPILED)], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on both paths of the CPU."""
    with use_path(request.param):
        yield request.param


@pytest.mark.parametrize("connectivity", [8, 4])
@pytest.mark.parametrize(
    ("k", "labels", "rows"),
    [
        (1, [0, 1, 2, 3, 1, 4], [[8, 8], [7.5, 2.5], [3, 6], [8, 2], [0, 1]]),
        (2, [0, 0, 1, 2, 0, 3], [[7.75, 5.25], [3, 6], [8, 2], [0, 1]]),
        (3, [0, 0, 1, 2, 0, 1], [[7.75, 5.25], [1.5, 3.5], [8, 2]]),
    ],
)
def test_r1(connectivity: int, k: int, labels: list[int], rows: list[list[float]]) -> None:
    edges = cell_edges((2, 3), OFFSETS[connectivity], CPU)
    sizes = torch.ones(1, 6, dtype=torch.float64)
    merges = contract_at_random(edges[None], sizes, R1_DRAWS[:, :k], averaging="plain")
    assert merges.labels()[0].tolist() == labels
    merged = merges.assignment(6 - k).merge(D1)[0]
    torch.testing.assert_close(merged, torch.tensor(rows).double(), atol=2e-6, rtol=0)


def test_r1_numbers_of_pairs() -> None:
    for connectivity, counts in ((8, [11, 6, 4]), (4, [7, 6, 4])):
        tokens = ref.start([{i} for i in range(6)], D1[0].numpy())
        for count, (i, j) in zip(counts, [(1, 4), (0, 1), (1, 3)], strict=True):
            assert len(ref.adjacent_pairs(tokens, 3, connectivity)) == count
            ref.merge_one(tokens, i, j, "plain")


def test_r2_both_pairs_of_three_tokens_are_equally_likely() -> None:
    images = 4000
    tokens = Tokens.of(torch.zeros(images, 3, 1), (1, 3), image_ids=torch.arange(images))
    left = (Random().assign(tokens, 2).owner()[:, 1] == 0).double().mean().item()
    assert abs(left - 0.5) < 4 * 0.5 / images**0.5


@pytest.mark.parametrize("pair", ["edge", "token_neighbor", "any"])
@pytest.mark.parametrize("connectivity", [8, 4])
@pytest.mark.parametrize("averaging", ["size", "plain"])
def test_equals_the_naive_reference(pair: Pair, connectivity: Literal[8, 4], averaging: Any) -> None:
    method = Random(RandomOptions(pair=pair, connectivity=connectivity, averaging=averaging))
    for case, (grid, merged) in enumerate([((4, 4), 0), ((3, 5), 5), ((1, 6), 1), ((5, 2), 2)]):
        histories = [ref.random_partition(grid, merged, 10 * case + i) for i in range(3)]
        n = len(histories[0])
        x = torch.randn(3, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(case))
        cells = torch.tensor([ref.cell_labels(history) for history in histories])
        ids = torch.tensor([5, 0, 77])
        for k in (1, n // 2, n - 1):
            tokens = Tokens.of(x, grid, cells=cells, image_ids=ids, block=4, seed=9)
            assignment = method.assign(tokens, n - k)
            draws = uniforms(9, ids, 4, 2 * k).reshape(3, k, 2).tolist()
            for i, history in enumerate(histories):
                start = ref.start(history, x[i].numpy())
                expected = ref.random_merging(start, grid[1], draws[i], pair, connectivity, averaging)
                assert assignment.owner()[i].tolist() == expected.labels(n)
                np.testing.assert_allclose(assignment.merge(x)[i].numpy(), expected.values, atol=1e-12)


def first_pairs(pair: Pair, images: int) -> dict[tuple[int, ...], float]:
    """Frequency of the first merge on a 1x4 grid."""
    tokens = Tokens.of(torch.zeros(images, 4, 1), (1, 4), image_ids=torch.arange(images))
    labels = Random(RandomOptions(pair=pair)).assign(tokens, 3).owner()
    found: dict[tuple[int, ...], float] = {}
    for row in labels.tolist():
        merged = tuple(i for i in range(4) if row.count(row[i]) == 2)
        found[merged] = found.get(merged, 0) + 1 / images
    return found


@pytest.mark.parametrize(
    ("pair", "probabilities"),
    [
        ("edge", {(0, 1): 1 / 3, (1, 2): 1 / 3, (2, 3): 1 / 3}),
        ("token_neighbor", {(0, 1): 3 / 8, (1, 2): 1 / 4, (2, 3): 3 / 8}),
        ("any", dict.fromkeys([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 1 / 6)),
    ],
)
def test_pairs_are_drawn_with_the_probabilities_of_their_kind(
    pair: Pair, probabilities: dict[tuple[int, int], float]
) -> None:
    found = first_pairs(pair, 3000)
    assert set(found) == set(probabilities)
    for merged, probability in probabilities.items():
        assert abs(found[merged] - probability) < 4 * (probability * (1 - probability) / 3000) ** 0.5


def drawn(seed: int, image_id: int, block: int) -> list[int]:
    tokens = Tokens.of(torch.zeros(1, 36, 1), (6, 6), image_ids=torch.tensor([image_id]), block=block, seed=seed)
    labels: list[int] = Random().assign(tokens, 12).owner()[0].tolist()
    return labels


def test_seed_image_and_block_each_change_the_draw_and_nothing_else_does() -> None:
    assert drawn(0, 3, 6) == drawn(0, 3, 6)
    assert len({tuple(drawn(*where)) for where in [(0, 3, 6), (1, 3, 6), (0, 4, 6), (0, 3, 10)]}) == 4


def test_fewer_merges_are_a_prefix_of_more() -> None:
    ids = torch.tensor([8])
    tokens = Tokens.of(torch.zeros(1, 20, 1), (4, 5), image_ids=ids)
    coarse, fine = (Random().assign(tokens, left).owner()[0].tolist() for left in (5, 12))
    together = {(i, j) for i in range(20) for j in range(20) if fine[i] == fine[j]}
    assert all(coarse[i] == coarse[j] for i, j in together)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("averaging", ["size", "plain"])
def test_one_run_serves_all_numbers_of_tokens(pair: Pair, averaging: Any) -> None:
    x = torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(0))
    tokens = Tokens.of(x, (5, 6), image_ids=torch.tensor([4, 1, 9]), block=3, seed=2)
    method = Random(RandomOptions(pair=pair, averaging=averaging))
    n_outs = [20, 30, 29, 7, 1, 20]
    for n_out, shared in zip(n_outs, method.assign_each(tokens, n_outs), strict=True):
        alone = method.assign(tokens, n_out)
        assert torch.equal(shared.owner(), alone.owner())
        assert torch.equal(shared.merge(x), alone.merge(x))


def test_nothing_is_drawn_where_no_pair_is_left() -> None:
    edges = torch.tensor([[[0, 1], [2, 3]]])
    for pair in PAIRS:
        pairs = contract_at_random(edges, torch.ones(1, 4), torch.full((1, 4, 2), 0.5).double(), pair).pairs
        assert sorted(pairs[0].tolist()) == [[-1, -1], [-1, -1], [0, 1], [2, 3]]
