"""ToMe: Token Merging. Bolya et al., ICLR 2023, section 3 (bipartite soft matching) and 3.3 (proportional attention).

In each block the tokens are split by the parity of their position; each of one half proposes its most similar
partner in the other half, by the cosine of the attention keys, and the r best proposals are merged. Training-free
or trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import RemovedPerBlock, StagedRemoval
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens


@dataclass(frozen=True)
class TomeOptions:
    """Options of ToMe."""

    prop_attn: bool = True
    """Proportional attention: ln(size) is added to the logits of every key token."""
    inflection: float = 0.0
    """Tilt of the schedule in [-1, 1]: -1 removes 2r tokens in the first block and none in the last, 0 always r."""
    staged: bool = False
    """TokenReduction's variant: reduce only at blocks 3, 6, 9 (from 0), by a keep rate; each stage at most halves."""


@torch.no_grad()
def best_partners(metric: Float[Tensor, "B N D"], prefix: int) -> tuple[Float[Tensor, "B A"], Int[Tensor, "B A"]]:
    """Cosine and index of the most similar token of set B for every token of set A; the lowest index on ties.

    Positions count the prefix tokens, which sit in front and are protected: they neither propose nor receive. Set A
    has the even positions, B the odd ones.

    Args:
        metric: what is compared (mean keys), unnormalised.
        prefix: number of prefix tokens P, which shifts the parity.
    """
    unit = metric.to(torch.promote_types(metric.dtype, torch.float32))
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    in_a, in_b = _halves(prefix)
    best, partner = (unit[:, in_a] @ unit[:, in_b].transpose(1, 2)).max(-1)
    return best, partner


@torch.no_grad()
def merge_best(
    best: Float[Tensor, "B A"], partner: Int[Tensor, "B A"], n: int, r: int, prefix: int
) -> Int[Tensor, "B N"]:
    """Output token of each of `n` patch tokens after merging the `r` best proposals, at most floor(N / 2).

    Output order: the A tokens that stay, ascending, then all of B.
    """
    in_a, in_b = _halves(prefix)
    order = best.argsort(dim=-1, descending=True, stable=True)
    a_count, b_count = best.shape[1], n - best.shape[1]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(a_count, device=order.device).expand_as(order))
    stays = rank >= r
    labels = torch.empty((len(best), n), dtype=torch.int64, device=best.device)
    labels[:, in_a] = torch.where(stays, stays.cumsum(1) - 1, a_count - r + partner)
    labels[:, in_b] = a_count - r + torch.arange(b_count, device=labels.device)
    return labels


def bipartite_soft_matching(metric: Float[Tensor, "B N D"], r: int, prefix: int) -> Int[Tensor, "B N"]:
    """Output token of each patch token after merging the r best of the proposals of `best_partners`."""
    return merge_best(*best_partners(metric, prefix), metric.shape[1], r, prefix)


def _halves(prefix: int) -> tuple[slice, slice]:
    """The patch tokens at even and at odd positions of the sequence."""
    return slice(prefix % 2, None, 2), slice(1 - prefix % 2, None, 2)


@reducer("tome")
class Tome(TokenReducer):
    """Merges the best-matching tokens of two halves in every block. Options: `TomeOptions`."""

    options_type = TomeOptions
    needs = frozenset({"keys"})

    def __init__(self, options: TomeOptions | None = None) -> None:
        super().__init__(options)
        o: TomeOptions = self.options
        if not -1 <= o.inflection <= 1:
            raise InputError(f"tome: inflection={o.inflection:g} is out of range; give a number from -1 to 1.")
        if o.staged and o.inflection:
            raise InputError("tome: staged and inflection exclude each other; leave one out.")
        self.layers = (3, 6, 9) if o.staged else "all"
        self.knob = StagedRemoval() if o.staged else RemovedPerBlock(o.inflection)
        self.proportional_attention = o.prop_attn

    def fewest(self, n_in: int, grid: tuple[int, int]) -> int:
        """At most half of the tokens are removed at once."""
        return n_in - n_in // 2

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Matches on the keys averaged over heads; merges by size-weighted mean."""
        return self.assign_each(tokens, [n_out])[0]

    def assign_each(self, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        """One matching serves all numbers of merges."""
        assert tokens.keys is not None
        n, prefix = tokens.features.shape[1], tokens.prefix
        if path_for(tokens.keys.device) == "triton":
            from tokenmerge_bench.kernels import matching

            found = matching.partners(tokens.keys, prefix)
            if found is not None:
                labels = [matching.labels_of(*found, n, n - n_out, prefix) for n_out in n_outs]
                return [HardAssignment(at, n_out, tokens.sizes) for at, n_out in zip(labels, n_outs, strict=True)]
        precise = torch.promote_types(tokens.keys.dtype, torch.float32)
        best, partner = best_partners(tokens.keys.to(precise).mean(1), prefix)
        labels = [merge_best(best, partner, n, n - n_out, prefix) for n_out in n_outs]
        return [HardAssignment(at, n_out, tokens.sizes) for at, n_out in zip(labels, n_outs, strict=True)]

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """T C for the mean over heads, T D for the norms, |A| |B| D for the scores, r C for the means."""
        tokens, head = n_in + self.prefix, self.head_width
        evens, odds = tokens - tokens // 2, tokens // 2
        return tokens * width + tokens * head + evens * odds * head + (n_in - n_out) * width
