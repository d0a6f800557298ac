"""Geometry of the patch grid: which cells touch, and which tokens do after merging.

A token covers a set of grid cells; two tokens are adjacent if some cell of one touches some cell of the other.
So adjacency is a pure function of the cell-to-token map, and nothing else has to be carried from layer to layer.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenmerge_bench.paths import path_for

HORIZONTAL = ((0, 1),)
FOUR = ((0, 1), (1, 0))
EIGHT = ((0, 1), (1, -1), (1, 0), (1, 1))
OFFSETS = {4: FOUR, 8: EIGHT}


@lru_cache(maxsize=64)
def cell_edges(grid: tuple[int, int], offsets: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Unordered pairs (a < b) of cells that lie `offsets` apart, row-major indices, shape (E, 2).

    14x14 cells have 364 edges for `FOUR` and 702 for `EIGHT`. There is no wrap-around.
    """
    rows, columns = grid
    pairs = [
        (r * columns + c, (r + dr) * columns + (c + dc))
        for r in range(rows)
        for c in range(columns)
        for dr, dc in offsets
        if 0 <= r + dr < rows and 0 <= c + dc < columns
    ]
    return torch.tensor(pairs, dtype=torch.int64, device=device).reshape(-1, 2)


def all_pairs(n: int, device: torch.device) -> Int[Tensor, "E 2"]:
    """Every unordered pair (a < b) of n tokens: the edges where everything touches."""
    return torch.combinations(torch.arange(n, device=device), 2)


def token_edges(cells: Int[Tensor, "B N0"], edges: Int[Tensor, "E 2"]) -> Int[Tensor, "B E 2"]:
    """The cell edges as token edges, lower token first. Inner edges have equal ends; parallel edges repeat."""
    if path_for(cells.device) == "triton":
        from tokenmerge_bench.kernels import contraction as kernels

        return kernels.token_edges(cells, edges)
    a, b = cells[:, edges].unbind(-1)  # amin over two ends takes ten times as long on the CPU
    return torch.stack([torch.minimum(a, b), torch.maximum(a, b)], dim=-1)


def adjacency(cells: Int[Tensor, "B N0"], edges: Int[Tensor, "E 2"], n: int) -> Bool[Tensor, "B N N"]:
    """Symmetric adjacency of the n tokens, without self-loops."""
    batch = cells.shape[0]
    ends = token_edges(cells, edges)
    touching = torch.zeros(batch, n * n, dtype=torch.bool, device=cells.device)
    touching.scatter_(1, ends[..., 0] * n + ends[..., 1], True)
    touching = touching.reshape(batch, n, n)
    touching = touching | touching.transpose(1, 2)
    return touching & ~torch.eye(n, dtype=torch.bool, device=cells.device)


def key_cells(cells: Int[Tensor, "B N0"], n: int) -> Int[Tensor, "B N"]:
    """The key of each token: the smallest row-major index among its cells."""
    batch, n_cells = cells.shape
    index = torch.arange(n_cells, device=cells.device).expand(batch, n_cells)
    keys = torch.full((batch, n), n_cells, dtype=torch.int64, device=cells.device)
    return keys.scatter_reduce(1, cells, index, "amin")
