"""Random merging: the ablation of DHTM's criterion. Haroun et al., VISAPP 2025, ablation study (Figure 4).

Everything is as in DHTM (adjacency with contraction, averaging, proportional attention) but the pair, which is
drawn at random. Each image has its own random numbers, from (seed, image, block). Report several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.contraction import Averaging, Merges
from tokenmerge_bench.grid import OFFSETS, all_pairs, cell_edges, token_edges
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.randomness import uniforms
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens

Pair = Literal["edge", "token_neighbor", "any"]


@dataclass(frozen=True)
class RandomOptions:
    """Options of random merging."""

    pair: Pair = "edge"
    """Drawn uniformly: an adjacent pair; a token, then one of its neighbours; or any two tokens, adjacent or not."""
    connectivity: Literal[8, 4] = 8
    """Neighbours of a grid cell: with or without the diagonal ones."""
    averaging: Averaging = "size"
    """Mean over the patches of a merged token, or of the two tokens (`plain`)."""
    position: Literal["mid", "pre", "post"] = "mid"
    """Between attention and MLP, before the block, or after it."""
    prop_attn: bool = True
    """Proportional attention in all blocks after a merge."""


@torch.no_grad()
def contract_at_random(
    edges: Int[Tensor, "B E 2"],
    sizes: Float[Tensor, "B N"],
    draws: Float[Tensor, "B steps 2"],
    pair: Pair = "edge",
    averaging: Averaging = "size",
) -> Merges:
    """Merges one random adjacent pair per step in each image.

    Pairs (a < b) are ordered lexicographically; pair number min(floor(u E), E - 1) of the current E is merged, with u
    the first draw of the step. `token_neighbor` uses it for the token and the second draw for the neighbour.

    Args:
        edges: adjacent tokens; pairs with equal ends are ignored and parallel pairs count once.
        sizes: patches behind each token.
        draws: uniform numbers in [0, 1), float64.
        pair: what is drawn; for `any`, `edges` are all pairs.
        averaging: see `Merges`.

    Cost: O(N) per step and image in compiled code, O(N) operations on the batch in plain torch.
    """
    n = sizes.shape[1]
    sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
    path = path_for(edges.device)
    if path == "numba":
        from tokenmerge_bench import _numba

        return Merges(_numba.random_pairs(edges, draws, n, pair), sizes, averaging)
    pairs = None
    if path == "triton":
        from tokenmerge_bench.kernels import contraction as kernels

        pairs = kernels.random_pairs(edges, draws, n, pair)
    if pairs is None:
        pairs = _random_pairs(_touching(edges, n), draws, pair)
    return Merges(pairs, sizes, averaging)


def _random_pairs(
    touching: Bool[Tensor, "B N N"], draws: Float[Tensor, "B steps 2"], pair: Pair
) -> Int[Tensor, "B steps 2"]:
    """The loop in plain torch, each step for all images at once. Writes into `touching`."""
    merged = torch.full(draws.shape, -1, dtype=torch.int64, device=draws.device)
    slots = torch.arange(touching.shape[1], device=touching.device)
    pairs = touching.triu(1).sum(2)  # of each slot with later ones; kept up to date, as recounting costs N^2 a step
    for step in range(draws.shape[1]):
        u, v = draws[:, step, :1], draws[:, step, 1:]
        active = pairs.sum(1, keepdim=True) > 0
        if pair == "token_neighbor":
            first = _pick(touching.any(2), u)
            second = _pick(_row(touching, first), v)
            i, j = torch.minimum(first, second), torch.maximum(first, second)
        else:
            i, j = _pick_edge(touching, pairs, u)
        merged[:, step] = torch.where(active, torch.cat([i, j], 1), -1)
        old_i, old_j = _row(touching, i), _row(touching, j)
        union = (old_i | old_j) & (slots != i) & (slots != j)
        _contract(touching, union, i, j)
        gained = (union & (slots < i)).long() - (old_i & (slots < i)).long() - (old_j & (slots < j)).long()
        pairs = (pairs + gained).scatter(1, j, 0).scatter(1, i, (union & (slots > i)).sum(1, keepdim=True))
    return merged


def _touching(edges: Int[Tensor, "B E 2"], n: int) -> Bool[Tensor, "B N N"]:
    """Symmetric adjacency without self-loops."""
    low, high = edges[..., 0], edges[..., 1]
    touching = torch.zeros(len(edges), n * n, dtype=torch.bool, device=edges.device)
    touching.scatter_(1, low * n + high, True).scatter_(1, high * n + low, True)
    return touching.reshape(-1, n, n) & ~torch.eye(n, dtype=torch.bool, device=edges.device)


def _pick(mask: Bool[Tensor, "B N"], u: Float[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    """Index of the true entry number floor(u * count)."""
    passed = mask.cumsum(1)
    number = _floor_below(u, passed[:, -1:])
    return (passed > number).int().argmax(1, keepdim=True)


def _pick_edge(
    touching: Bool[Tensor, "B N N"], pairs: Int[Tensor, "B N"], u: Float[Tensor, "B 1"]
) -> tuple[Int[Tensor, "B 1"], Int[Tensor, "B 1"]]:
    """Row and column (row < column) of pair number floor(u * count), in row-major order."""
    passed = pairs.cumsum(1)
    number = _floor_below(u, passed[:, -1:])
    i = (passed > number).int().argmax(1, keepdim=True)
    before = passed.gather(1, i) - pairs.gather(1, i)
    later = _row(touching, i) & (torch.arange(touching.shape[1], device=touching.device) > i)
    j = (later.cumsum(1) > number - before).int().argmax(1, keepdim=True)
    return i, j


def _floor_below(u: Float[Tensor, "B 1"], count: Int[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    return torch.minimum((u * count).long(), count - 1)


def _row(matrix: Bool[Tensor, "B N N"], i: Int[Tensor, "B 1"]) -> Bool[Tensor, "B N"]:
    return matrix.gather(1, i[..., None].expand(-1, -1, matrix.shape[2])).squeeze(1)


def _contract(
    touching: Bool[Tensor, "B N N"], union: Bool[Tensor, "B N"], i: Int[Tensor, "B 1"], j: Int[Tensor, "B 1"]
) -> None:
    """In place: slot i gets the neighbours in `union`, slot j none."""
    images = torch.arange(touching.shape[0], device=touching.device)[:, None]
    touching[images, j] = False
    touching[images, :, j] = False
    touching[images, i] = union[:, None]
    touching[images, :, i] = union[:, None]


@reducer("random")
class Random(TokenReducer):
    """Merges neighbours on the grid at random. Options: `RandomOptions`."""

    options_type = RandomOptions
    stochastic = True

    def __init__(self, options: RandomOptions | None = None) -> None:
        super().__init__(options)
        self.site = self.options.position
        self.proportional_attention = self.options.prop_attn

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Draws from (seed, image, block), so that neither batching nor order matters."""
        return self._merges(tokens, n_out).assignment(n_out)

    def assign_each(self, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        """One run for all: what a step draws does not depend on how many follow."""
        merges = self._merges(tokens, min(n_outs))
        return [merges.assignment(n_out) for n_out in n_outs]

    def _merges(self, tokens: Tokens, n_out: int) -> Merges:
        o: RandomOptions = self.options
        n, device = tokens.features.shape[1], tokens.features.device
        steps = n - n_out
        draws = uniforms(tokens.seed, tokens.image_ids, tokens.block, 2 * steps).reshape(len(tokens.features), steps, 2)
        if o.pair == "any":
            edges = all_pairs(n, device).expand(len(tokens.features), -1, -1)
        else:
            edges = token_edges(tokens.cells, cell_edges(tokens.grid, OFFSETS[o.connectivity], device))
        return contract_at_random(edges, tokens.sizes, draws, o.pair, o.averaging)

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """One weighted mean per merge: k C."""
        return (n_in - n_out) * width
