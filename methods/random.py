"""Random merging: the ablation of DHTM's criterion. Haroun et al., VISAPP 2025, ablation study (Figure 4).

Everything is as in DHTM (adjacency with contraction, averaging, proportional attention) but the pair, which is
drawn at random. Each image has its own random numbers, from (seed, image, block). Report several seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.contraction import Averaging, Contraction
from tokenmerge_bench.grid import OFFSETS, adjacency, cell_edges
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
    touching: Bool[Tensor, "B N N"],
    sizes: Float[Tensor, "B N"],
    draws: Float[Tensor, "B steps 2"],
    pair: Pair = "edge",
    averaging: Averaging = "size",
) -> Contraction:
    """Merges one random adjacent pair per step in each image.

    Pairs (a < b) are ordered lexicographically; pair number min(floor(u E), E - 1) of the current E is merged, with u
    the first draw of the step. `token_neighbor` uses it for the token and the second draw for the neighbour.

    Args:
        touching: symmetric adjacency without self-loops.
        sizes: patches behind each token.
        draws: uniform numbers in [0, 1), float64.
        pair: what is drawn; `any` is an adjacency in which everything touches.
        averaging: see `Contraction`.
    """
    book = Contraction(sizes.to(torch.promote_types(sizes.dtype, torch.float32)), averaging)
    touching = touching.clone()
    slots = torch.arange(touching.shape[1], device=touching.device)
    pairs = touching.triu(1).sum(2)  # of each slot with later ones; kept up to date, as recounting costs N^2 a step
    for step in range(draws.shape[1]):
        u, v = draws[:, step, :1], draws[:, step, 1:]
        if pair == "token_neighbor":
            first = _pick(touching.any(2), u)
            second = _pick(_row(touching, first), v)
            i, j = torch.minimum(first, second), torch.maximum(first, second)
        else:
            i, j = _pick_edge(touching, pairs, u)
        book.merge(i, j)
        old_i, old_j = _row(touching, i), _row(touching, j)
        union = (old_i | old_j) & (slots != i) & (slots != j)
        _contract(touching, union, i, j)
        gained = (union & (slots < i)).long() - (old_i & (slots < i)).long() - (old_j & (slots < j)).long()
        pairs = (pairs + gained).scatter(1, j, 0).scatter(1, i, (union & (slots > i)).sum(1, keepdim=True))
    return book


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
        o: RandomOptions = self.options
        n = tokens.features.shape[1]
        steps = n - n_out
        draws = uniforms(tokens.seed, tokens.image_ids, tokens.block, 2 * steps).reshape(-1, steps, 2)
        if o.pair == "any":
            everything = ~torch.eye(n, dtype=torch.bool, device=tokens.features.device)
            touching = everything.expand(len(draws), n, n)
        else:
            edges = cell_edges(tokens.grid, OFFSETS[o.connectivity], tokens.features.device)
            touching = adjacency(tokens.cells, edges, n)
        return contract_at_random(touching, tokens.sizes, draws, o.pair, o.averaging).assignment(n_out, tokens.sizes)

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """One weighted mean per merge: k C."""
        return (n_in - n_out) * width
