"""Sinkhorn tokenizer. Haurum et al., "Multi-scale hybrid vision transformer and Sinkhorn tokenizer for sewer defect
classification", Automation in Construction, 2022.

As a reducer for plain ViTs it is defined by Haurum et al., "Which Tokens to Use?", ICCV-W 2023. Tokens are shared out
among M learned centres by entropic optimal transport of their cosines, solved by a few Sinkhorn iterations. It must be
trained, for one number of outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenmerge_bench.assignment import Assignment, SoftAssignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import KeepRate
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens

SHORTEST = 1e-12
"""Vectors are divided by their length, or by this where they are shorter."""

SMALLEST_EPS = 0.05
"""Exponentials of cosines over this are within exp(-20) and exp(20), and the vectors that balance them too: far from
where float32 ends."""


@dataclass(frozen=True)
class SinkhornOptions:
    """Options of the Sinkhorn tokenizer."""

    eps: float = 1.0
    """Entropic regularisation: the smaller, the nearer to one centre per token (0.25 in the paper's own command)."""
    iters: int = 3
    """Sinkhorn iterations, each over the centres and then over the tokens (5 in the paper's own command)."""
    values: Literal["unit", "raw"] = "unit"
    """Outputs are sums of the tokens at unit length, as in the code, or weighted means of the tokens as they are."""


def log_transport(scores: Float[Tensor, "B M N"], eps: float, iters: int) -> Float[Tensor, "B M N"]:
    """ln W of the weights W that Sinkhorn's iterations give: the columns of W sum to 1, its rows nearly to N / M.

    With Z = scores / eps, u of the rows and v of the columns: u = ln mu - logsumexp_n(Z + v), then
    v = ln nu - logsumexp_m(Z + u), `iters` times; W = (M + N) exp(Z + u + v). The marginals mu = nu = 1 / (M + N) only
    shift u against v and cancel in W, so that they do not appear. Differentiable through all iterations.
    """
    z = scores / eps
    columns = torch.zeros_like(z[:, :1])
    for _ in range(iters):
        rows = -(z + columns).logsumexp(2, keepdim=True)
        columns = -(z + rows).logsumexp(1, keepdim=True)
    return z + rows + columns


def transport(scores: Float[Tensor, "B M N"], eps: float, iters: int) -> Float[Tensor, "B M N"]:
    """exp(`log_transport`), for scores of at most 1 and `eps` of at least `SMALLEST_EPS`: W = a K b, K = exp(Z).

    Here an iteration is two products of K with a vector, a = N / M / (K b) and b = 1 / (K^T a), where with logarithms
    it is some ten passes over matrices. The factor N / M cancels in W; without it a and b would leave float32 after
    some tens of iterations. Once differentiable.
    """
    with torch.autocast(scores.device.type, enabled=False):
        weights: Tensor = _Transport.apply(scores, eps, iters)
    return weights


class _Transport(torch.autograd.Function):
    """`transport` with the gradients of all iterations from one matrix product.

    With u = ln a, v = ln b and g the gradients that reach them, an iteration adds -K (a (b g_v)^T) to the gradient of Z
    and -a K (b g_v) to g_u, and then -K (c b^T) to that of Z and, as g_v, -b K^T c to the iteration before, whose b
    these two are of; c = g_u / (K b). Each is K times the outer product of two vectors, which one product sums.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, eps: float, iters: int) -> Tensor:
        kernel = (scores / eps).exp_()
        rows, columns = [], [kernel.new_ones(len(kernel), kernel.shape[2], 1)]
        share = kernel.shape[2] / kernel.shape[1]
        for _ in range(iters):
            rows.append((kernel @ columns[-1]).reciprocal_().mul_(share))
            columns.append((kernel.mT @ rows[-1]).reciprocal_())
        weights = kernel * rows[-1] * columns[-1].mT
        ctx.save_for_backward(kernel, weights, *rows, *columns)
        ctx.eps = eps
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        kernel, weights, *vectors = ctx.saved_tensors
        iters, share = len(vectors) // 2, kernel.shape[2] / kernel.shape[1]
        rows, columns = vectors[:iters], vectors[iters:]
        of_z = gradient * weights
        of_u, of_v = of_z.sum(2, keepdim=True), of_z.sum(1).unsqueeze(2)
        left, right = [], []
        for row, before, after in zip(reversed(rows), reversed(columns[:-1]), reversed(columns[1:]), strict=True):
            scaled = of_v * after
            left.append(row)
            right.append(scaled)
            of_u = of_u - row * (kernel @ scaled)
            scaled = of_u * row / share
            left.append(scaled)
            right.append(before)
            of_u, of_v = torch.zeros_like(of_u), -before * (kernel.mT @ scaled)
        of_z = of_z - kernel * (torch.cat(left, 2) @ torch.cat(right, 2).mT)
        return of_z / ctx.eps, None, None


@torch.no_grad()
def unit_rows(centres: Float[Tensor, "M C"]) -> Float[Tensor, "M C"]:
    """The rows at unit length, in their own dtype; rows that are so up to rounding stay what they are, bit for bit."""
    precise = centres.to(torch.promote_types(centres.dtype, torch.float32))
    length = precise.norm(dim=1, keepdim=True)
    # Of rounding the stored numbers, and of computing the length twice.
    slack = torch.finfo(centres.dtype).eps + 8 * torch.finfo(precise.dtype).eps
    scaled = (precise / length.clamp_min(SHORTEST)).to(centres.dtype)
    return torch.where((length - 1).abs() <= slack, centres, scaled)


@reducer("sinkhorn")
class Sinkhorn(TokenReducer):
    """Shares tokens out among learned centres by optimal transport. Options: `SinkhornOptions`."""

    options_type = SinkhornOptions
    site = "pre"
    layers = (3, 6, 9)
    knob = KeepRate()
    learned = True

    def __init__(self, options: SinkhornOptions | None = None) -> None:
        super().__init__(options)
        o: SinkhornOptions = self.options
        if not 0 < o.eps < math.inf:
            raise InputError(f"sinkhorn: eps={o.eps:g} is no regularisation; give a positive number such as 1 or 0.25.")
        if o.iters < 1:
            raise InputError(f"sinkhorn: iters={o.iters} leaves the weights unbalanced; give 1 or more.")

    def build(self, n_in: int, n_out: int, width: int) -> None:
        """The centres, standard normal; the first `assign` brings them to unit length."""
        self.centres = nn.Parameter(torch.randn(n_out, width))

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Weights from the cosines of centres and tokens of the block input, which gradients reach.

        The parameter is left with its rows at unit length, in training and in evaluation. Once they are, that changes
        nothing, so that passes may share the module; no gradient flows through it.

        Raises:
            ValueError: if it was built for another number of output tokens.
        """
        if n_out != len(self.centres):
            raise ValueError(f"sinkhorn was built to leave {len(self.centres)} tokens and cannot leave {n_out}")
        o: SinkhornOptions = self.options
        x = tokens.features.to(torch.promote_types(tokens.features.dtype, torch.float32))
        scores = self._unit_centres(x.dtype) @ _unit(x).transpose(1, 2)
        if o.eps < SMALLEST_EPS:
            logs = log_transport(scores, o.eps, o.iters)
            return SoftAssignment(logs.exp() if o.values == "unit" else logs.softmax(2))
        weights = transport(scores, o.eps, o.iters)
        return SoftAssignment(weights if o.values == "unit" else weights / weights.sum(2, keepdim=True))

    def _unit_centres(self, dtype: torch.dtype) -> Float[Tensor, "M C"]:
        with torch.no_grad():
            self.centres.copy_(unit_rows(self.centres))
        # A copy: the graph of this pass must survive the next pass, which writes to the parameter again.
        return self.centres.to(dtype, copy=True)

    def values(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The tokens at unit length; as they are for `values=raw`."""
        if self.options.values == "raw":
            return features
        return _unit(features.to(torch.promote_types(features.dtype, torch.float32))).to(features.dtype)

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """N C for the lengths, 2 N M C for scores and sums, 2 N M per iteration; exponentials apart."""
        o: SinkhornOptions = self.options
        return n_in * width + 2 * n_in * n_out * width + o.iters * 2 * n_in * n_out


def _unit(x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    return F.normalize(x, dim=-1, eps=SHORTEST)
