"""Greedy contraction of a token graph: the loop that DHTM, random merging and LoTM share.

Tokens keep their slot; merging j into i (i < j) gives slot i the union and leaves slot j dead. What was merged, step by
step, is data: a `Merges`, of which any prefix is an assignment, so one run serves every number of merges.

`contract_most_similar` has three paths (`paths.py`): the batched loop in plain torch below, which is the definition;
compiled code for the CPU (`_numba.py`); and kernels for the GPU (`kernels/contraction.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import HardAssignment
from tokenmerge_bench.paths import path_for

Similarity = Literal["cosine", "euclidean", "manhattan", "kl", "kl_forward"]
Averaging = Literal["size", "plain"]


class Merges:
    """A sequence of pairwise merges in each image.

    Args:
        pairs: the two slots merged at each step, the lower one first, which then holds the union; (-1, -1) where an
            image did nothing, (B, K, 2), int64.
        sizes: patches behind each token before the first merge, (B, N).
        averaging: `size`: the merged token is the mean over its patches; `plain`: the mean of the two tokens,
            whatever their sizes.
    """

    def __init__(self, pairs: Int[Tensor, "B K 2"], sizes: Float[Tensor, "B N"], averaging: Averaging) -> None:
        self.pairs, self.sizes, self.averaging = pairs, sizes, averaging

    def labels(self, steps: int | None = None) -> Int[Tensor, "B N"]:
        """Output token of every input token after the first `steps` merges (default: all), in the order of slots.

        Cost: O(N log K), without a loop over the steps.
        """
        steps = self.pairs.shape[1] if steps is None else steps
        batch, n = self.sizes.shape
        if path_for(self.pairs.device) == "triton":
            from tokenmerge_bench.kernels.contraction import labels_of

            return labels_of(self.pairs, n, steps)
        low, high = self._ends(steps)
        slots = torch.arange(n + 1, device=low.device).repeat(batch, 1)  # idle steps write to slot n, which is no token
        owner = slots.scatter(1, high, low)
        for _ in range(max(int(steps) - 1, 0).bit_length()):  # a chain of k merges is followed in log2(k) jumps
            owner = owner.gather(1, owner)
        owner, slots = owner[:, :n], slots[:, :n]
        return ((owner == slots).cumsum(1) - 1).gather(1, owner)

    def shares(self, steps: int | None = None) -> Float[Tensor, "B N"]:
        """Share of every token in its output token, were each merge the plain mean of two: 1/2 per merge it is in."""
        steps = self.pairs.shape[1] if steps is None else steps
        low, high = self._ends(steps)
        shares = torch.ones_like(torch.nn.functional.pad(self.sizes, (0, 1)))
        # Backwards: the two ends of a merge have half the share that their union has in what it is merged into later.
        for step in reversed(range(steps)):
            i, j = low[:, step : step + 1], high[:, step : step + 1]
            half = shares.gather(1, i) / 2
            shares.scatter_(1, i, half).scatter_(1, j, half)
        return shares[:, :-1]

    def assignment(self, n_out: int) -> HardAssignment:
        """The first merges, as many as leave `n_out` tokens. None of them may be idle."""
        steps = self.sizes.shape[1] - n_out
        weights = self.sizes if self.averaging == "size" else self.shares(steps)
        return HardAssignment(self.labels(steps), n_out, weights)

    def _ends(self, steps: int) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B K"]]:
        """Lower and higher slot of each step; slot N, which is no token, where an image is idle."""
        ends = self.pairs[:, :steps]
        ends = torch.where(ends < 0, self.sizes.shape[1], ends)
        return ends[..., 0], ends[..., 1]


@torch.no_grad()
def contract_most_similar(
    features: Float[Tensor, "B N C"],
    sizes: Float[Tensor, "B N"],
    edges: Int[Tensor, "B E 2"],
    steps: int,
    similarity: Similarity = "cosine",
    averaging: Averaging = "size",
    threshold: float | None = None,
) -> Merges:
    """Merges, `steps` times in each image, the two adjacent tokens that are most similar (DHTM, Algorithm 1).

    After a merge the union of the two replaces them, its neighbours are those of both, and its similarities are
    computed anew from its mean feature, so a token may be merged again. Exact ties go to the lexicographically
    smallest pair. All paths do the same but for ties that rounding decides.

    Args:
        features: compared features; averaged along with the tokens.
        sizes: patches behind each token.
        edges: adjacent tokens, lower slot first; pairs with equal ends are ignored and parallel pairs allowed.
        steps: number of merges; an image where no pair is left stops early.
        similarity: see `pair_similarity`.
        averaging: see `Merges`.
        threshold: merge only while the best similarity is at least this.

    Cost: (N + E) C for the first scores. A step then scores the new token with its neighbours, O(degree C), in compiled
    code; with all N tokens, O(N C), in plain torch.
    """
    sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
    path, pairs = path_for(features.device), None
    if path == "numba":
        from tokenmerge_bench import _numba

        pairs = _numba.most_similar_pairs(features, sizes, edges, steps, similarity, averaging, threshold)
    elif path == "triton" and threshold is None:
        from tokenmerge_bench.kernels import contraction as kernels

        pairs = kernels.most_similar_pairs(features, sizes, edges, steps, similarity, averaging)
    if pairs is None:
        pairs = _most_similar_pairs(features, sizes, edges, steps, similarity, averaging, threshold)
    return Merges(pairs, sizes, averaging)


def _most_similar_pairs(
    features: Float[Tensor, "B N C"],
    sizes: Float[Tensor, "B N"],
    edges: Int[Tensor, "B E 2"],
    steps: int,
    similarity: Similarity,
    averaging: Averaging,
    threshold: float | None,
) -> Int[Tensor, "B K 2"]:
    """The loop in plain torch, each step for all images at once."""
    batch, n, _ = features.shape
    pairs = edges.new_full((batch, steps, 2), -1)
    if edges.shape[1] == 0:
        return pairs
    x = features.to(torch.promote_types(features.dtype, torch.float32), copy=True)  # written in place below
    weights = sizes.clone() if averaging == "size" else torch.ones_like(sizes)
    described = describe(x, similarity)
    low, high = edges[..., 0], edges[..., 1]
    scores = _finite(pair_similarity(gather_rows(described, low), gather_rows(described, high), similarity))
    scores = scores.masked_fill(low == high, -torch.inf)
    least = -torch.inf if threshold is None else threshold
    for step in range(steps):
        best = scores.amax(1, keepdim=True)
        # Among the best, the pair with the smallest (low, high): the tie rule.
        code = torch.where(scores == best, low * n + high, n * n).amin(1, keepdim=True)
        active = (best > -torch.inf) & (best >= least)
        pairs[:, step] = torch.where(active, torch.cat([code // n, code % n], 1), -1)
        # An idle image merges slot 0 with itself, of weight 0, which changes nothing.
        i, j = torch.where(active, code // n, 0), torch.where(active, code % n, 0)
        weight_i, weight_j = weights.gather(1, i), torch.where(active, weights.gather(1, j), 0)
        union = mean_of_two(gather_rows(x, i), gather_rows(x, j), weight_i, weight_j)
        if averaging == "size":
            weights.scatter_(1, i, weight_i + weight_j)
        new = describe(union, similarity)
        x.scatter_(1, i[..., None].expand_as(union), union)
        described.scatter_(1, i[..., None].expand_as(new), new)
        low, high = torch.where(low == j, i, low), torch.where(high == j, i, high)
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        touched = ((low == i) | (high == i)) & active
        other = torch.where(touched, low + high - i, 0)
        # The divergence is directed in `kl_forward`: from the lower slot to the higher one.
        from_new = to_new = pair_similarity(new, described, similarity)
        if similarity == "kl_forward":
            to_new = pair_similarity(described, new.expand_as(described), similarity)
        rescored = torch.where(low == i, from_new.gather(1, other), to_new.gather(1, other))
        scores = torch.where(touched, _finite(rescored), scores).masked_fill(low == high, -torch.inf)
    return pairs


def _finite(scores: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """NaN and -inf, from features that overflowed, become the least score, so that the image's labels stay valid."""
    least = torch.finfo(scores.dtype).min
    return scores.nan_to_num(nan=least, posinf=torch.inf, neginf=least)


def mean_of_two(
    a: Float[Tensor, "B K C"], b: Float[Tensor, "B K C"], weight_a: Float[Tensor, "B K"], weight_b: Float[Tensor, "B K"]
) -> Float[Tensor, "B K C"]:
    """Weighted mean of rows; symmetric and, where the two are equal, exact, so that exact ties stay ties."""
    weight_a, weight_b = weight_a.to(a.dtype)[..., None], weight_b.to(a.dtype)[..., None]
    return torch.where(a == b, a, (weight_a * a + weight_b * b) / (weight_a + weight_b))


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
