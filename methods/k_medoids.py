"""K-Medoids token pooling. Marin et al. ("Token Pooling in Vision Transformers"), WACV 2023, section 3.3.

As a reducer for plain ViTs it is defined by Haurum et al., "Which Tokens to Use?", ICCV-W 2023. Clusters are
refined from the most attended tokens; each cluster is replaced by its medoid, which is a selection of tokens, not a
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.distances import pairwise_distances
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import KeepRate
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens


@dataclass(frozen=True)
class KMedoidsOptions:
    """Options of K-Medoids."""

    variant: Literal["weighted", "tokenreduction"] = "weighted"
    """The textbook weighted medoid, or TokenReduction's code, whose update prefers tokens of low attention."""
    iters: int = 3
    """Rounds of assigning tokens and moving medoids."""
    weights: Literal["all", "cls"] = "all"
    """A token's weight: attention it receives from all queries, or from the first prefix token (CLS) alone."""


@torch.no_grad()
def weighted_medoids(
    distance: Float[Tensor, "B N N"],
    weights: Float[Tensor, "B N"],
    m: int,
    iters: int,
    variant: Literal["weighted", "tokenreduction"] = "weighted",
) -> tuple[Int[Tensor, "B m"], Int[Tensor, "B N"]]:
    """Medoid tokens and the cluster of each token. Clusters start at, and keep the order of, the m heaviest tokens.

    Each round assigns tokens to the nearest medoid (ties: lower cluster) and then moves all medoids at once:
    `weighted` to the member of least sum over members j of w_j D_ij, leaving an empty cluster's medoid;
    `tokenreduction` to the member of least w_i times the sum of D_ij over *all* tokens, sending an empty cluster to
    token 0.
    """
    n = distance.shape[1]
    medoids = weights.argsort(dim=1, descending=True, stable=True)[:, :m]
    labels = _nearest(distance, medoids)
    for _ in range(iters):
        if variant == "weighted":
            together = labels[:, :, None] == labels[:, None, :]
            cost = (distance * together * weights[:, None, :]).sum(2)
            if_empty = medoids
        else:
            cost = weights * distance.sum(2)
            if_empty = torch.zeros_like(medoids)
        best = _first_of_least(cost, labels, m)
        medoids = torch.where(best < n, best, if_empty)
        labels = _nearest(distance, medoids)
    return medoids, labels


def _nearest(distance: Float[Tensor, "B N N"], medoids: Int[Tensor, "B m"]) -> Int[Tensor, "B N"]:
    columns = medoids[:, None, :].expand(-1, distance.shape[1], -1)
    return distance.gather(2, columns).argmin(2)


def _first_of_least(cost: Float[Tensor, "B N"], labels: Int[Tensor, "B N"], m: int) -> Int[Tensor, "B m"]:
    """Lowest index among the members of least cost, per cluster; N where a cluster is empty."""
    batch, n = cost.shape
    least = torch.full((batch, m), torch.inf, dtype=cost.dtype, device=cost.device)
    least = least.scatter_reduce(1, labels, cost, "amin")
    index = torch.arange(n, device=cost.device).expand(batch, n)
    index = torch.where(cost == least.gather(1, labels), index, n)
    return torch.full((batch, m), n, device=cost.device).scatter_reduce(1, labels, index, "amin")


@reducer("k_medoids")
class KMedoids(TokenReducer):
    """Keeps the medoids of attention-weighted clusters. Options: `KMedoidsOptions`."""

    options_type = KMedoidsOptions
    site = "pre"
    layers = (3, 6, 9)
    knob = KeepRate()

    def __init__(self, options: KMedoidsOptions | None = None) -> None:
        super().__init__(options)
        self.needs = frozenset({"received" if self.options.weights == "all" else "attention"})
        if self.options.iters < 0:
            raise InputError(f"k_medoids: iters={self.options.iters} is negative; give 0 or more.")

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Clusters the block input by unscaled distances; before the first block all tokens weigh the same."""
        return self.assign_each(tokens, [n_out])[0]

    def assign_each(self, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        """Distances and weights serve all numbers of clusters."""
        o: KMedoidsOptions = self.options
        distance, weights = pairwise_distances(tokens.features), received_attention(tokens, o.weights)
        found = [weighted_medoids(distance, weights, n_out, o.iters, o.variant) for n_out in n_outs]
        return [
            HardAssignment(labels, n_out, picks=medoids) for (medoids, labels), n_out in zip(found, n_outs, strict=True)
        ]

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """N^2 C for distances, then per round N M for assigning and N^2 (`tokenreduction`: M N^2) for the sums."""
        o: KMedoidsOptions = self.options
        sums = n_in**2 * (n_out if o.variant == "tokenreduction" else 1)
        return n_in**2 * width + o.iters * (n_in * n_out + sums)


def received_attention(tokens: Tokens, queries: Literal["all", "cls"]) -> Float[Tensor, "B N"]:
    """Attention that each patch token received in the previous block, summed over heads and queries (CLS: mean)."""
    if queries == "all":
        return torch.ones_like(tokens.sizes) if tokens.received is None else tokens.received
    if tokens.attention is None:
        return torch.ones_like(tokens.sizes)
    if tokens.prefix == 0:
        raise InputError("k_medoids: weights=cls needs a class token, which this model lacks; use weights=all.")
    from_cls = tokens.attention[:, :, 0, tokens.prefix :]
    return from_cls.to(torch.promote_types(from_cls.dtype, torch.float32)).mean(1)
