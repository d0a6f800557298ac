"""Distances between all tokens of an image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def pairwise_distances(x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N N"]:
    """Euclidean distances in float32 or better; exactly zero on the diagonal and between equal tokens."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # The matrix-product form of cdist loses digits for close tokens, which is where clustering decides.
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
