"""ToMe: Token Merging. Bolya et al., ICLR 2023, section 3 (bipartite soft matching) and 3.3 (proportional attention).

In each block the tokens are split by the parity of their position; each of one half proposes its most similar
partner in the other half, by the cosine of the attention keys, and the r best proposals are merged. Training-free
or trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import RemovedPerBlock, StagedRemoval
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
def bipartite_soft_matching(metric: Float[Tensor, "B N D"], r: int, prefix: int) -> Int[Tensor, "B N"]:
    """Output token of each patch token after merging the r best proposals.

    Positions count the prefix tokens, which sit in front and are protected: they neither propose nor receive. Set A
    has the even positions, B the odd ones. Output order: the A tokens that stay, ascending, then all of B.

    Args:
        metric: what is compared (mean keys), unnormalised.
        r: tokens to remove, at most floor(N / 2).
        prefix: number of prefix tokens P, which shifts the parity.
    """
    n = metric.shape[1]
    unit = metric.to(torch.promote_types(metric.dtype, torch.float32))
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    in_a, in_b = slice(prefix % 2, None, 2), slice(1 - prefix % 2, None, 2)
    scores = unit[:, in_a] @ unit[:, in_b].transpose(1, 2)
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    a_count, b_count = scores.shape[1:]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(a_count, device=order.device).expand_as(order))
    stays = rank >= r
    labels = torch.empty(metric.shape[:2], dtype=torch.int64, device=metric.device)
    labels[:, in_a] = torch.where(stays, stays.cumsum(1) - 1, a_count - r + partner)
    labels[:, in_b] = a_count - r + torch.arange(b_count, device=labels.device)
    assert n - r == a_count - r + b_count
    return labels


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
        assert tokens.keys is not None
        n = tokens.features.shape[1]
        labels = bipartite_soft_matching(tokens.keys.mean(1), n - n_out, tokens.prefix)
        return HardAssignment(labels, n_out, tokens.sizes)

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """T C for the mean over heads, T D for the norms, |A| |B| D for the scores, r C for the means."""
        tokens, head = n_in + self.prefix, self.head_width
        evens, odds = tokens - tokens // 2, tokens // 2
        return tokens * width + tokens * head + evens * odds * head + (n_in - n_out) * width
