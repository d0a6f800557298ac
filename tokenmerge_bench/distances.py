"""Distances between all tokens of an image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tokenmerge_bench.paths import path_for


@torch.no_grad()
def pairwise_distances(x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N N"]:
    """Euclidean distances in float32 or better; exactly zero on the diagonal and between equal tokens.

    The CPU takes differences. On CUDA that is 10 times slower than the product |a|^2 + |b|^2 - 2 a.b, whose error is a
    few 1e-7 of the squared distances between tokens on average if the mean of the tokens is taken away first.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.device.type != "cuda":
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances_by_product(x)


def distances_by_product(x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N N"]:
    """Distances by a matrix product, 2 N^2 C operations an image: of kernels in float32, or of torch in float64."""
    centred = x - x.mean(1, keepdim=True)
    if x.dtype == torch.float32 and path_for(x.device) == "triton":
        from tokenmerge_bench.kernels.contraction import gram_matrix

        product = gram_matrix(centred, torch.ones_like(x[..., 0]))
    else:
        product = centred.double() @ centred.double().transpose(1, 2)
    squares = product.diagonal(dim1=1, dim2=2)
    squared = torch.add(squares[:, :, None], product, alpha=-2).add_(squares[:, None, :])
    # Products of equal tokens are equal, so that nothing is left of their distance.
    return squared.clamp_min_(0).sqrt_().to(x.dtype)
