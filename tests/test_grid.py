"""Geometry of the grid: edge counts, adjacency of merged tokens by brute force, and golden case D3."""

from __future__ import annotations

import pytest
import references as ref
import torch
from sklearn.feature_extraction.image import grid_to_graph

from tokenmerge_bench.grid import EIGHT, FOUR, HORIZONTAL, OFFSETS, adjacency, cell_edges, key_cells, token_edges

CPU = torch.device("cpu")
GRIDS = [(14, 14), (1, 1), (1, 7), (6, 1), (3, 5), (2, 2)]


@pytest.mark.parametrize("grid", GRIDS)
def test_numbers_of_edges(grid: tuple[int, int]) -> None:
    h, w = grid
    straight, diagonal = h * (w - 1) + w * (h - 1), 2 * (h - 1) * (w - 1)
    assert cell_edges(grid, FOUR, CPU).shape == (straight, 2)
    assert cell_edges(grid, EIGHT, CPU).shape == (straight + diagonal, 2)
    assert cell_edges(grid, HORIZONTAL, CPU).shape == (h * (w - 1), 2)


def test_deit_has_364_and_702_edges_and_182_horizontal_ones() -> None:
    assert [len(cell_edges((14, 14), offsets, CPU)) for offsets in (FOUR, EIGHT, HORIZONTAL)] == [364, 702, 182]


def test_four_neighbours_are_those_of_scikit_learn() -> None:
    graph = grid_to_graph(14, 14).tocoo()
    theirs = {(int(a), int(b)) for a, b in zip(graph.row, graph.col, strict=True) if a < b}
    assert {(a, b) for a, b in cell_edges((14, 14), FOUR, CPU).tolist()} == theirs


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_edges_are_the_touching_pairs(grid: tuple[int, int], connectivity: int) -> None:
    n = grid[0] * grid[1]
    expected = [(a, b) for a in range(n) for b in range(a + 1, n) if ref.cells_touch(a, b, grid[1], connectivity)]
    assert sorted(map(tuple, cell_edges(grid, OFFSETS[connectivity], CPU).tolist())) == expected


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 8), (6, 2)])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_adjacency_of_merged_tokens_by_brute_force(grid: tuple[int, int], connectivity: int) -> None:
    histories = [ref.random_partition(grid, grid[0] * grid[1] // 2, seed) for seed in range(5)]
    cells = torch.tensor([ref.cell_labels(history) for history in histories])
    n = len(histories[0])
    edges = cell_edges(grid, OFFSETS[connectivity], CPU)
    touching = adjacency(cells, edges, n)
    for i, history in enumerate(histories):
        expected = torch.zeros(n, n, dtype=torch.bool)
        for a in range(n):
            for b in range(n):
                pairs = [(p, q) for p in history[a] for q in history[b]]
                expected[a, b] = a != b and any(ref.cells_touch(p, q, grid[1], connectivity) for p, q in pairs)
        assert torch.equal(touching[i], expected)
        listed = {(a, b) for a, b in token_edges(cells, edges)[i].tolist() if a != b}
        assert listed == {(a, b) for a, b in expected.nonzero().tolist() if a < b}


def neighbours(groups: list[set[int]], connectivity: int) -> dict[int, list[int]]:
    """Keys of the neighbours of each token of a 3x3 grid, by its key."""
    cells = torch.tensor([ref.cell_labels(groups)])
    touching = adjacency(cells, cell_edges((3, 3), OFFSETS[connectivity], CPU), len(groups))[0]
    keys = [min(group) for group in groups]
    return {key: [keys[j] for j in touching[i].nonzero().flatten().tolist()] for i, key in enumerate(keys)}


def test_d3_after_two_contractions() -> None:
    groups = [{0, 1}, {2}, {3, 4}, {5}, {6}, {7}, {8}]
    eight, four = neighbours(groups, 8), neighbours(groups, 4)
    assert eight[0] == [2, 3, 5]
    assert eight[3] == [0, 2, 5, 6, 7, 8]
    assert eight[2] == [0, 3, 5]
    assert eight[6] == [3, 7]
    assert eight[8] == [3, 5, 7]
    assert four[0] == [2, 3]
    assert four[3] == [0, 5, 6, 7]
    assert four[2] == [0, 5]


def test_d3_after_contracting_three_cells() -> None:
    groups = [{0, 1, 4}, {2}, {3}, {5}, {6}, {7}, {8}]
    eight, four = neighbours(groups, 8), neighbours(groups, 4)
    assert eight[0] == [2, 3, 5, 6, 7, 8]
    assert eight[3] == [0, 6, 7]
    assert four[0] == [2, 3, 5, 7]
    assert four[6] == [3, 7]


def test_key_is_the_smallest_cell() -> None:
    cells = torch.tensor([[2, 0, 0, 1, 2, 1], [0, 1, 2, 0, 1, 2]])
    assert key_cells(cells, 3).tolist() == [[1, 3, 0], [0, 1, 2]]
