"""LoTM: merging of horizontal neighbours. Haroun et al., ICONIP 2024 ("Leveraging local similarity for token merging").

Only pairs of horizontally adjacent tokens are candidates; they are ranked once by cosine similarity and the k best
that do not overlap are merged. The paper's abstract and the DHTM paper are the only sources; the rest is the
specification's reading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.contraction import (
    Averaging,
    Merges,
    contract_most_similar,
    describe,
    gather_rows,
    mean_of_two,
    pair_similarity,
)
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.grid import HORIZONTAL, cell_edges, key_cells, token_edges
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens


@dataclass(frozen=True)
class LotmOptions:
    """Options of LoTM."""

    window: Literal["sliding", "fixed"] = "sliding"
    """Candidates: all consecutive tokens of a row, or only the pairs (0,1), (2,3), ... of each row."""
    averaging: Averaging = "size"
    """Mean over the patches of a merged token, or of the two tokens (`plain`)."""
    position: Literal["mid", "pre", "post"] = "mid"
    """Between attention and MLP, before the block, or after it."""
    prop_attn: bool = True
    """Proportional attention in all blocks after a merge."""
    iterative: bool = False
    """Re-rank after every single merge, as DHTM does, instead of once."""
    wrap: bool = False
    """Ignore row ends: neighbours in the flattened sequence."""


@torch.no_grad()
def merge_in_rows(
    features: Float[Tensor, "B N C"],
    sizes: Float[Tensor, "B N"],
    rows: Int[Tensor, "B N"],
    k: int,
    row_count: int,
    longest_row: int,
    window: Literal["sliding", "fixed"] = "sliding",
    averaging: Averaging = "size",
) -> Merges:
    """Merges k pairs of neighbours in rows, in passes; within a pass a token merges at most once.

    A pass ranks all candidates by (-score, position), goes through them and takes a pair if neither token is taken,
    until k pairs are merged in all. If fewer were found, the merged rows are ranked anew.

    Args:
        features: compared and averaged.
        sizes: patches behind each token.
        rows: row of each token; tokens stand in row-major order.
        k: number of merges, at most N - row_count.
        row_count: number of rows, each of which keeps a token.
        longest_row: no row has more tokens than this.
        window: candidate pairs, see `LotmOptions`.
        averaging: size-weighted or plain mean of two.

    Cost: (N + candidates) C per pass; one pass nearly always suffices.
    """
    x, precise = features, torch.promote_types(features.dtype, torch.float32)
    weights = sizes.to(precise) if averaging == "size" else torch.ones_like(sizes, dtype=precise)
    slots = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    alive = torch.ones_like(slots, dtype=torch.bool)
    remaining = torch.full_like(slots[:, :1], k)
    pairs = [torch.full_like(slots[:, :0], -1)[..., None].expand(-1, -1, 2)]
    passes = _passes(k, x.shape[1] - row_count, window)
    for number in range(passes):
        left, right = _neighbours(alive)
        candidate = alive & (right != slots) & (rows == rows.gather(1, right))
        if window == "fixed":
            candidate &= _position_in_row(alive, rows) % 2 == 0
        scores = _cosines(x, right).masked_fill(~candidate, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        taken = _first(_disjoint(order, candidate, left, right, longest_row), order, remaining)
        remaining = remaining - taken.sum(1, keepdim=True)
        ranked = torch.stack([order, right.gather(1, order)], -1)
        pairs.append(torch.where(taken.gather(1, order)[..., None], ranked, -1))
        if number == passes - 1:
            break  # nobody will compare the merged tokens
        x = x.to(precise)
        union = mean_of_two(x, gather_rows(x, right), weights, weights.gather(1, right))
        x = torch.where(taken[..., None], union, x)
        if averaging == "size":
            weights = torch.where(taken, weights + weights.gather(1, right), weights)
        alive = alive & ~(taken.gather(1, left) & (left != slots))
    steps = torch.cat(pairs, 1)
    done = (steps[..., 0] < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :k]  # without the places that nothing took
    return Merges(steps.gather(1, done[..., None].expand(-1, -1, 2)), sizes, averaging)


def _cosines(x: Float[Tensor, "B N C"], right: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Cosine of every token with the one that `right` names, in float32 or better."""
    if path_for(x.device) == "triton":
        from tokenmerge_bench.kernels.contraction import neighbour_cosines

        scores = neighbour_cosines(x, right)
        if scores is not None:
            return scores
    unit = describe(x.to(torch.promote_types(x.dtype, torch.float32)), "cosine")
    return pair_similarity(unit, gather_rows(unit, right), "cosine")


def _passes(k: int, candidates: int, window: Literal["sliding", "fixed"]) -> int:
    """Passes that suffice for k merges whatever the data: a pass merges at least 1/3 (1/2) of the candidates."""
    if k > candidates:
        raise ValueError(f"{k} merges were asked for, but rows have only {candidates} pairs of neighbours")
    passes = 0
    while k > 0:
        least = -(-candidates // (3 if window == "sliding" else 2))
        k, candidates, passes = k - least, candidates - least, passes + 1
    return passes


def _neighbours(alive: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"]]:
    """Previous and next alive slot of every alive slot; the slot itself where there is none."""
    n = alive.shape[1]
    slots = torch.arange(n, device=alive.device).expand(alive.shape)
    last_alive = torch.where(alive, slots, -1).cummax(1).values
    next_alive = torch.where(alive, slots, n).flip(1).cummin(1).values.flip(1)
    left = torch.cat([torch.full_like(slots[:, :1], -1), last_alive[:, :-1]], 1)
    right = torch.cat([next_alive[:, 1:], torch.full_like(slots[:, :1], n)], 1)
    return torch.where((left >= 0) & alive, left, slots), torch.where((right < n) & alive, right, slots)


def _position_in_row(alive: Bool[Tensor, "B N"], rows: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """0 for the first alive slot of each row, 1 for the next, ..."""
    number = alive.cumsum(1) - alive.long()
    starts = torch.cat([torch.ones_like(alive[:, :1]), rows[:, 1:] != rows[:, :-1]], 1)
    return number - torch.where(starts, number, 0).cummax(1).values


def _disjoint(
    order: Int[Tensor, "B N"],
    candidate: Bool[Tensor, "B N"],
    left: Int[Tensor, "B N"],
    right: Int[Tensor, "B N"],
    longest_row: int,
) -> Bool[Tensor, "B N"]:
    """Greedy selection of non-overlapping pairs (slot, right of slot) in the given order.

    A pair that ranks before both pairs it overlaps is in the greedy selection; taking all such pairs at once and
    dropping what they block gives the greedy selection itself. A row needs at most half as many rounds as it has
    tokens.
    """
    n = order.shape[1]
    slots = torch.arange(n, device=order.device).expand(order.shape)
    rank = torch.empty_like(order).scatter_(1, order, slots)
    open_ = candidate
    taken = torch.zeros_like(candidate)
    for _ in range((longest_row + 1) // 2):
        waiting = torch.where(open_, rank, n)
        best_left = torch.where(left == slots, n, waiting.gather(1, left))
        best_right = torch.where(right == slots, n, waiting.gather(1, right))
        win = open_ & (rank < best_left) & (rank < best_right)
        taken = taken | win
        open_ = open_ & ~(win | win.gather(1, left) | win.gather(1, right))
    return taken


def _first(taken: Bool[Tensor, "B N"], order: Int[Tensor, "B N"], count: Int[Tensor, "B 1"]) -> Bool[Tensor, "B N"]:
    """The first `count` of the taken slots in the given order."""
    ranked = taken.gather(1, order)
    return torch.zeros_like(taken).scatter(1, order, ranked & (ranked.cumsum(1) <= count))


@reducer("lotm")
class Lotm(TokenReducer):
    """Merges horizontal neighbours, ranked once. Options: `LotmOptions`."""

    options_type = LotmOptions

    def __init__(self, options: LotmOptions | None = None) -> None:
        super().__init__(options)
        o: LotmOptions = self.options
        if o.iterative and o.window == "fixed":
            raise InputError("lotm: iterative has no fixed windows; leave out iterative or window=fixed.")
        self.site = o.position
        self.proportional_attention = o.prop_attn

    def fewest(self, n_in: int, grid: tuple[int, int]) -> int:
        """Every row keeps a token, unless the rows are joined."""
        return 1 if self.options.wrap else min(n_in, grid[0])

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """A token is a run of cells in a row, so its row is that of its first cell."""
        return self._merges(tokens, n_out).assignment(n_out)

    def assign_each(self, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        """One run for all: passes go through the pairs in the same order, however many are wanted."""
        merges = self._merges(tokens, min(n_outs))
        return [merges.assignment(n_out) for n_out in n_outs]

    def _merges(self, tokens: Tokens, n_out: int) -> Merges:
        o: LotmOptions = self.options
        n, (height, width) = tokens.features.shape[1], tokens.grid
        if o.iterative:
            grid = (1, height * width) if o.wrap else tokens.grid
            ends = token_edges(tokens.cells, cell_edges(grid, HORIZONTAL, tokens.features.device))
            return contract_most_similar(tokens.features, tokens.sizes, ends, n - n_out, "cosine", o.averaging)
        keys = key_cells(tokens.cells, n)
        rows = torch.zeros_like(keys) if o.wrap else keys // width
        row_count, longest = (1, height * width) if o.wrap else (height, width)
        return merge_in_rows(tokens.features, tokens.sizes, rows, n - n_out, row_count, longest, o.window, o.averaging)

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """(N + E) C for norms and scores plus k C for the means; E = N - sqrt(N) candidates, 182 for 14x14."""
        return round((n_in + n_in - math.sqrt(n_in) + n_in - n_out) * width)
