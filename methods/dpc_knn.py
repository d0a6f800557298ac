"""DPC-KNN: density-peak clustering with k nearest neighbours. Zeng et al. (TCFormer), CVPR 2022, section 3.2.

As a reducer for plain ViTs it is defined by Haurum et al., "Which Tokens to Use?", ICCV-W 2023. Cluster centres are
tokens of high density that are far from any denser token; every token joins its nearest centre; a cluster becomes
the mean of its members. Off the shelf the members weigh the same; trained, a linear layer learns their weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.distances import pairwise_distances
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import KeepRate
from tokenmerge_bench.precise import linear
from tokenmerge_bench.randomness import uniforms
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens


@dataclass(frozen=True)
class DpcKnnOptions:
    """Options of DPC-KNN."""

    k: int = 5
    """Neighbours in the density estimate, the token itself included."""
    learned_weights: bool = False
    """Weigh the members of a cluster by exp(a.x + b) with learned a, b; needs training."""
    noise: float = 0.0
    """Width of uniform noise added to the densities, 1e-6 in the reference code; 0 breaks ties by index."""


@torch.no_grad()
def rank_centres(
    distance: Float[Tensor, "B N N"], k: int, noise: Float[Tensor, "B N"] | None = None
) -> Int[Tensor, "B N"]:
    """All tokens, the best cluster centre first.

    A token's density is rho = exp(-mean of its k smallest squared distances); its separation delta is the distance
    to the nearest denser token (ties: lower index is denser; the densest gets the largest distance of the image).
    Tokens are ranked by rho delta, in logarithms so that rho cannot underflow.

    Args:
        distance: token distances divided by sqrt(C).
        k: neighbours, self included; at most N are used.
        noise: added to rho before ranking, as the reference code does.
    """
    n = distance.shape[1]
    spread = distance.topk(min(k, n), dim=2, largest=False).values.square().mean(2)
    if noise is not None:
        spread = -((-spread).exp() + noise).log()
    index = torch.arange(n, device=distance.device)
    tied_before = (spread[:, None, :] == spread[:, :, None]) & (index < index[:, None])
    denser = (spread[:, None, :] < spread[:, :, None]) | tied_before
    farthest = distance.flatten(1).amax(1)[:, None]
    nearest_denser = distance.masked_fill(~denser, torch.inf).amin(2)
    # Only the densest token has none denser.
    delta = torch.where(nearest_denser.isinf(), farthest, nearest_denser)
    return (delta.log() - spread).argsort(dim=1, descending=True, stable=True)


@torch.no_grad()
def join(distance: Float[Tensor, "B N N"], centres: Int[Tensor, "B m"]) -> Int[Tensor, "B N"]:
    """The cluster of each token: the nearest centre, the first of equally near ones; centres join themselves."""
    batch, n, _ = distance.shape
    m = centres.shape[1]
    labels = distance.gather(2, centres[:, None, :].expand(batch, n, m)).argmin(2)
    return labels.scatter(1, centres, torch.arange(m, device=labels.device).expand(batch, m))


def density_peaks(
    distance: Float[Tensor, "B N N"], k: int, m: int, noise: Float[Tensor, "B N"] | None = None
) -> tuple[Int[Tensor, "B m"], Int[Tensor, "B N"]]:
    """The m best cluster centres, best first, and the cluster of each token; see `rank_centres` and `join`."""
    centres = rank_centres(distance, k, noise)[:, :m]
    return centres, join(distance, centres)


@reducer("dpc_knn")
class DpcKnn(TokenReducer):
    """Averages tokens around density peaks. Options: `DpcKnnOptions`."""

    options_type = DpcKnnOptions
    site = "pre"
    layers = (3, 6, 9)
    knob = KeepRate()

    def __init__(self, options: DpcKnnOptions | None = None) -> None:
        super().__init__(options)
        o: DpcKnnOptions = self.options
        if o.k < 1:
            raise InputError(f"dpc_knn: k={o.k} neighbours is too few; give 1 or more.")
        if not 0 <= o.noise < math.inf:
            raise InputError(f"dpc_knn: noise={o.noise:g} is no width; give 0 or a small positive width such as 1e-6.")
        self.learned = o.learned_weights
        self.stochastic = o.noise > 0

    def build(self, n_in: int, n_out: int, width: int) -> None:
        """The linear layer of the member weights, initialised as in the reference (weights start near 1)."""
        if self.learned:
            self.score = nn.Linear(width, 1)
            nn.init.trunc_normal_(self.score.weight, std=0.02)
            nn.init.zeros_(self.score.bias)

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Clusters the block input; gradients reach only the member weights."""
        return self.assign_each(tokens, [n_out])[0]

    def assign_each(self, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        """One ranking of the tokens as centres serves all numbers of clusters."""
        o: DpcKnnOptions = self.options
        x = tokens.features.to(torch.promote_types(tokens.features.dtype, torch.float32))
        noise = None
        if o.noise:
            noise = o.noise * uniforms(tokens.seed, tokens.image_ids, tokens.block, x.shape[1]).to(x.dtype)
        with torch.no_grad():
            distance = pairwise_distances(x) / math.sqrt(x.shape[2])
        ranking = rank_centres(distance, o.k, noise)
        weights = self._weights(x) if self.learned else torch.ones_like(x[..., 0])
        return [HardAssignment(join(distance, ranking[:, :m]), m, weights, eps=1e-6) for m in n_outs]

    def _weights(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N"]:
        return linear(self.score, x).squeeze(-1).exp()

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """N^2 C for distances, N k + N^2 for densities and separations, N C for the means (N C for the scores)."""
        o: DpcKnnOptions = self.options
        means = n_in * width * (2 if self.learned else 1)
        return n_in**2 * width + n_in * o.k + n_in**2 + means
