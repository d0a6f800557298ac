"""Greedy contraction of a token graph: the loop that DHTM, random merging and iterative LoTM share.

Tokens keep their slot; merging j into i (i < j) gives slot i the union and leaves slot j dead. `Contraction` books
who owns whom and with which share, and turns the result into an assignment. Everything is batched: each step merges
one pair in every image.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import HardAssignment

Similarity = Literal["cosine", "euclidean", "manhattan", "kl", "kl_forward"]
Averaging = Literal["size", "plain"]


class Contraction:
    """Bookkeeping of a sequence of pairwise merges.

    Args:
        sizes: patches behind each token, (B, N).
        averaging: `size`: the merged token is the mean over its patches; `plain`: the mean of the two tokens,
            whatever their sizes.
    """

    def __init__(self, sizes: Float[Tensor, "B N"], averaging: Averaging) -> None:
        batch, n = sizes.shape
        self.averaging = averaging
        self.sizes = sizes.clone()
        self.owner = torch.arange(n, device=sizes.device).repeat(batch, 1)
        # Share of each original token in the token that owns it; sums to one over a merged token.
        self.shares = torch.ones_like(sizes)

    def share(self, i: Int[Tensor, "B K"], j: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The share of slot i in the union of slots i and j."""
        size_i, size_j = self.sizes.gather(1, i), self.sizes.gather(1, j)
        return size_i / (size_i + size_j) if self.averaging == "size" else torch.full_like(size_i, 0.5)

    def merge(
        self, i: Int[Tensor, "B 1"], j: Int[Tensor, "B 1"], active: Bool[Tensor, "B 1"] | None = None
    ) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B 1"]]:
        """Merges slot j into slot i (i < j) and returns the shares of the two in the union.

        Images where `active` is False stay as they are (and get the shares 1 and 0).
        """
        size_i, size_j = self.sizes.gather(1, i), self.sizes.gather(1, j)
        share_i = self.share(i, j)
        share_j = 1 - share_i
        if active is not None:
            i, j = torch.where(active, i, 0), torch.where(active, j, 0)
            share_i, share_j = torch.where(active, share_i, 1), torch.where(active, share_j, 0)
            size_i, size_j = self.sizes.gather(1, i), torch.where(active, size_j, 0)
        in_i = self.owner == i
        in_j = (self.owner == j) & (i != j)
        self.shares = torch.where(in_i, self.shares * share_i, torch.where(in_j, self.shares * share_j, self.shares))
        self.owner = torch.where(in_j, i, self.owner)
        self.sizes = self.sizes.scatter(1, i, size_i + size_j)
        return share_i, share_j

    def absorb(self, into: Int[Tensor, "B N"]) -> None:
        """Merges many disjoint pairs at once: slot s goes to slot into[s], or stays where into[s] == s."""
        slots = torch.arange(into.shape[1], device=into.device)
        moved = into != slots
        touched = torch.zeros_like(into).scatter_add(1, into, moved.long()).bool() | moved
        if self.averaging == "plain":
            self.shares = torch.where(touched.gather(1, self.owner), self.shares / 2, self.shares)
        self.owner = into.gather(1, self.owner)
        self.sizes = torch.zeros_like(self.sizes).scatter_add(1, into, self.sizes)

    def labels(self) -> Int[Tensor, "B N"]:
        """Output token of every input token; output tokens stand in the order of their slots."""
        alive = self.owner == torch.arange(self.owner.shape[1], device=self.owner.device)
        return (alive.cumsum(1) - 1).gather(1, self.owner)

    def assignment(self, n_out: int, sizes: Float[Tensor, "B N"]) -> HardAssignment:
        """The merges as an assignment to `n_out` tokens. `sizes` are those before the first merge."""
        # Size shares are recomputed from the sizes: exact, where a product of quotients is not.
        weights = sizes if self.averaging == "size" else self.shares
        return HardAssignment(self.labels(), n_out, weights)


@torch.no_grad()
def contract_most_similar(
    features: Float[Tensor, "B N C"],
    sizes: Float[Tensor, "B N"],
    edges: Int[Tensor, "B E 2"],
    steps: int,
    similarity: Similarity = "cosine",
    averaging: Averaging = "size",
    threshold: float | None = None,
) -> Contraction:
    """Merges, `steps` times in each image, the two adjacent tokens that are most similar (DHTM, Algorithm 1).

    After a merge the union of the two replaces them, its neighbours are those of both, and its similarities are
    computed anew from its mean feature, so a token may be merged again. Exact ties go to the lexicographically
    smallest pair.

    Args:
        features: compared features; averaged along with the tokens.
        sizes: patches behind each token.
        edges: adjacent tokens, lower slot first; pairs with equal ends are ignored and parallel pairs allowed.
        steps: number of merges; an image where no pair is left stops early.
        similarity: see `pair_similarity`.
        averaging: see `Contraction`.
        threshold: merge only while the best similarity is at least this.

    Cost: one similarity of the new token with all N tokens per step, O(N C), and O(E) comparisons.
    """
    book = Contraction(sizes.to(torch.promote_types(sizes.dtype, torch.float32)), averaging)
    x = features.to(torch.promote_types(features.dtype, torch.float32), copy=True)  # written in place below
    described = describe(x, similarity)
    low, high = edges[..., 0], edges[..., 1]
    n = x.shape[1]
    scores = _no_nan(pair_similarity(gather_rows(described, low), gather_rows(described, high), similarity))
    scores = scores.masked_fill(low == high, -torch.inf)
    least = -torch.inf if threshold is None else threshold
    for _ in range(steps):
        best = scores.amax(1, keepdim=True)
        # Among the best, the pair with the smallest (low, high): the tie rule.
        code = torch.where(scores == best, low * n + high, n * n).amin(1, keepdim=True)
        active = (best > -torch.inf) & (best >= least)
        i, j = code // n, code % n
        share_i, share_j = book.merge(i, j, active)
        mean = share_i[..., None] * gather_rows(x, i) + share_j[..., None] * gather_rows(x, j)
        x = _put(x, i, mean, active)
        new = describe(mean, similarity)
        described = _put(described, i, new, active)
        low, high = _redirect(low, high, i, j, active)
        other = low + high - i
        is_new = ((low == i) | (high == i)) & active
        other = torch.where(is_new, other, 0)
        # The divergence is directed in `kl_forward`: from the lower slot to the higher one.
        from_new = pair_similarity(new, described, similarity)
        to_new = from_new
        if similarity == "kl_forward":
            to_new = pair_similarity(described, new.expand_as(described), similarity)
        rescored = torch.where(low == i, from_new.gather(1, other), to_new.gather(1, other))
        scores = torch.where(is_new, _no_nan(rescored), scores).masked_fill(low == high, -torch.inf)
    return book


def _no_nan(scores: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """NaN, from features that overflowed, becomes the least score, so that the image's labels stay valid."""
    return scores.masked_fill(scores.isnan(), torch.finfo(scores.dtype).min)


def describe(x: Float[Tensor, "B N C"], similarity: Similarity) -> Float[Tensor, "B N C"]:
    """What a similarity compares: unit vectors for the cosine, log-probabilities for the divergences."""
    if similarity == "cosine":
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / norm.clamp_min(1e-12)
    if similarity in ("kl", "kl_forward"):
        return x.log_softmax(-1)
    return x


def pair_similarity(
    a: Float[Tensor, "B X C"], b: Float[Tensor, "B Y C"], similarity: Similarity
) -> Float[Tensor, "B Y"]:
    """Similarity of described features, larger is more similar (DHTM paper, section on similarity measures).

    cosine; `euclidean` and `manhattan`: negative distance; `kl`: minus half the symmetric divergence of the softmax
    over channels; `kl_forward`: minus KL(a || b). One summation serves all callers, so equal pairs get equal scores.
    """
    if similarity == "cosine":
        return (a * b).sum(-1)
    if similarity == "euclidean":
        distance = (a - b).square().sum(-1).sqrt()
    elif similarity == "manhattan":
        distance = (a - b).abs().sum(-1)
    elif similarity == "kl":
        distance = ((a.exp() - b.exp()) * (a - b)).sum(-1) / 2
    else:
        distance = (a.exp() * (a - b)).sum(-1)
    return torch.neg(distance)


def gather_rows(x: Float[Tensor, "B N C"], index: Int[Tensor, "B K"]) -> Float[Tensor, "B K C"]:
    """Rows of x by index, image by image."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _put(
    x: Float[Tensor, "B N C"], i: Int[Tensor, "B 1"], row: Float[Tensor, "B 1 C"], active: Bool[Tensor, "B 1"]
) -> Float[Tensor, "B N C"]:
    """x with row i replaced, in the images where `active`."""
    i = torch.where(active, i, 0)
    row = torch.where(active[..., None], row, gather_rows(x, i))
    return x.scatter_(1, i[..., None].expand(-1, -1, x.shape[-1]), row)


def _redirect(
    low: Int[Tensor, "B E"],
    high: Int[Tensor, "B E"],
    i: Int[Tensor, "B 1"],
    j: Int[Tensor, "B 1"],
    active: Bool[Tensor, "B 1"],
) -> tuple[Int[Tensor, "B E"], Int[Tensor, "B E"]]:
    """Edge ends after contracting j into i, lower first."""
    low = torch.where((low == j) & active, i, low)
    high = torch.where((high == j) & active, i, high)
    return torch.minimum(low, high), torch.maximum(low, high)
