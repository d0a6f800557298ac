"""Merging by a hard assignment on the GPU: one kernel sorts the tokens by label, one adds up the members of each.

No atomics: members are added in ascending order, so sums are the same in every run and whatever else is in the batch.
The second kernel reads and writes every row of features once, prefix tokens included, and so does that of gradients.
"""

from typing import Any, cast, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

MOST_TOKENS = 4096
"""One program sorts the tokens of an image, which must be fewer than this."""


@triton.jit
@no_type_check
def _members_kernel(labels, sizes, order, starts, sums, n, m, TOKENS: tl.constexpr, CHUNK: tl.constexpr):
    """Counting sort of the tokens by label, stable, and sums of `sizes` by label."""
    image = tl.program_id(0).to(tl.int64)
    labels += image * n
    sizes += image * n
    slots = tl.arange(0, TOKENS)  # input tokens, and output tokens
    here = slots < n
    label = tl.load(labels + slots, mask=here, other=0x7FFFFFFF).to(tl.int32)
    # Counts stay two-dimensional until the end: one reduction each, not one for every chunk.
    before = tl.zeros((TOKENS, CHUNK), tl.int32)  # tokens of a smaller label, or of the same and a smaller index
    start = tl.zeros((TOKENS, CHUNK), tl.int32)  # tokens of a smaller label than the output's
    total = tl.zeros((TOKENS, CHUNK), sums.dtype.element_ty)
    for first in range(0, n, CHUNK):
        others = first + tl.arange(0, CHUNK)
        theirs = tl.load(labels + others, mask=others < n, other=0x7FFFFFFF).to(tl.int32)
        size = tl.load(sizes + others, mask=others < n, other=0.0).to(sums.dtype.element_ty)
        smaller = theirs[None, :] < label[:, None]
        earlier = (theirs[None, :] == label[:, None]) & (others[None, :] < slots[:, None])
        before += (smaller | earlier).to(tl.int32)
        start += (theirs[None, :] < slots[:, None]).to(tl.int32)
        total += tl.where(theirs[None, :] == slots[:, None], size[None, :], 0.0)
    tl.store(order + image * n + tl.sum(before, 1), slots, mask=here)
    tl.store(starts + image * (m + 1) + slots, tl.sum(start, 1), mask=slots <= m)
    tl.store(sums + image * m + slots, tl.sum(total, 1), mask=slots < m)


@triton.jit
@no_type_check
def _merge_kernel(
    x, weights, order, starts, out, prefix, n, m, c, eps, x_image, x_token,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of the new sequence: prefix tokens are copied, the others are weighted means of their members.

    Weights are normalised first: s / s is 1, so a token that stays alone keeps its features to the last bit.
    """
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = channels < c
    x += image * x_image
    weights += image * n
    order += image * n
    is_prefix = rows < prefix
    is_mean = (rows >= prefix) & (rows < prefix + m)
    bounds = starts + image * (m + 1) + rows - prefix
    first = tl.load(bounds, mask=is_mean, other=0)
    count = tl.load(bounds + 1, mask=is_mean, other=0) - first
    most = tl.max(count)
    precise = weights.dtype.element_ty
    total = tl.zeros((ROWS,), precise)
    for number in range(most):
        member = tl.load(order + first + number, mask=number < count, other=0)
        total += tl.load(weights + member, mask=number < count, other=0.0)
    total = tl.where(count > 0, total + eps, 1.0)
    at_prefix = x + rows[:, None] * x_token + channels[None, :]
    mean = tl.load(at_prefix, mask=is_prefix[:, None] & inside[None, :], other=0.0).to(precise)
    for number in range(most):
        member = tl.load(order + first + number, mask=number < count, other=0)
        share = tl.load(weights + member, mask=number < count, other=0.0)
        share = tl.div_rn(share, total) if precise == tl.float32 else share / total
        values = tl.load(
            x + (prefix + member)[:, None] * x_token + channels[None, :],
            mask=(number < count)[:, None] & inside[None, :],
            other=0.0,
        ).to(precise)
        mean += share[:, None] * values
    at = out + image * (prefix + m) * c + rows[:, None] * c + channels[None, :]
    tl.store(at, mean.to(out.dtype.element_ty), mask=(is_prefix | is_mean)[:, None] & inside[None, :])


@triton.jit
@no_type_check
def _gradient_kernel(
    upstream, weights, labels, sums, out, prefix, n, m, c, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Gradients of ROWS tokens of the old sequence: of the token that each became, times its share in it."""
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    is_prefix = rows < prefix
    is_member = (rows >= prefix) & (rows < prefix + n)
    member = image * n + rows - prefix
    label = tl.load(labels + member, mask=is_member, other=0).to(tl.int32)
    weight = tl.load(weights + member, mask=is_member, other=1.0)
    total = tl.load(sums + image * m + label, mask=is_member, other=1.0)
    precise = weights.dtype.element_ty
    total = total.to(precise) + eps
    share = tl.div_rn(weight, total) if precise == tl.float32 else weight / total
    share = tl.where(is_member, share, 1.0)
    became = tl.where(is_prefix, rows, prefix + label)
    inside = (is_prefix | is_member)[:, None] & (channels < c)[None, :]
    at = image * (prefix + m) * c + became[:, None] * c + channels[None, :]
    values = tl.load(upstream + at, mask=inside, other=0.0).to(precise)
    at = image * (prefix + n) * c + rows[:, None] * c + channels[None, :]
    tl.store(out + at, (share[:, None] * values).to(out.dtype.element_ty), mask=inside)


def members(
    labels: Int[Tensor, "B N"], sizes: Float[Tensor, "B N"], m: int
) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B bounds"], Float[Tensor, "B M"]]:
    """Tokens sorted by label, where the tokens of each label begin, and the sums of `sizes` by label.

    O(N^2) comparisons an image, which has fewer than `MOST_TOKENS` tokens.
    """
    batch, n = labels.shape
    order = torch.empty((batch, n), dtype=torch.int32, device=labels.device)
    starts = torch.empty((batch, m + 1), dtype=torch.int32, device=labels.device)
    sums = torch.empty((batch, m), dtype=sizes.dtype, device=labels.device)
    if batch:
        tokens = triton.next_power_of_2(n + 1)
        _members_kernel[(batch,)](
            labels.contiguous(), sizes.contiguous(), order, starts, sums, n, m,
            TOKENS=tokens, CHUNK=8, num_warps=4 if tokens <= 512 else 16,
        )  # fmt: skip
    return order, starts, sums


def merge(
    x: Float[Tensor, "B T C"],
    weights: Float[Tensor, "B N"],
    order: Int[Tensor, "B N"],
    starts: Int[Tensor, "B bounds"],
    eps: float = 0.0,
) -> Float[Tensor, "B S C"]:
    """Weighted means by label behind copies of the P = T - N prefix tokens, S = P + M. See `members`.

    Sums run in the precision of `weights` (float32 or float64); `eps` is added to each sum of weights.
    """
    batch, length, c = x.shape
    n, m = weights.shape[1], starts.shape[1] - 1
    prefix = length - n
    if x.stride(2) != 1:
        x = x.contiguous()
    out = torch.empty((batch, prefix + m, c), dtype=x.dtype, device=x.device)
    if batch:
        grid, tile = _tiles(out)
        _merge_kernel[grid](
            x, weights.contiguous(), order, starts, out, prefix, n, m, c, eps, x.stride(0), x.stride(1), **tile
        )
    return out


def _tiles(out: Float[Tensor, "B L C"]) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Programs that write a sequence, and how much of it each writes."""
    batch, length, c = out.shape
    width, rows = min(256, triton.next_power_of_2(c)), 4
    grid = batch, triton.cdiv(length, rows), triton.cdiv(c, width)
    return grid, {"ROWS": rows, "WIDTH": width, "num_warps": 1}


class _WithGradients(torch.autograd.Function):
    """`merge` with gradients of x, which have none in turn; the weights have none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, labels: Tensor, order: Tensor, starts: Tensor, sums: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(weights, labels, sums)
        ctx.eps = eps
        return merge(x, weights, order, starts, eps)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        weights, labels, sums = ctx.saved_tensors
        grad = upstream[0].contiguous()
        batch, length, c = grad.shape
        n, m = labels.shape[1], sums.shape[1]
        prefix = length - m
        out = torch.empty((batch, prefix + n, c), dtype=grad.dtype, device=grad.device)
        if batch:
            grid, tile = _tiles(out)
            _gradient_kernel[grid](
                grad, weights.contiguous(), labels.contiguous(), sums, out, prefix, n, m, c, ctx.eps, **tile
            )
        return out, None, None, None, None, None, None


def differentiable_merge(
    x: Float[Tensor, "B T C"],
    weights: Float[Tensor, "B N"],
    labels: Int[Tensor, "B N"],
    sorted_tokens: tuple[Int[Tensor, "B N"], Int[Tensor, "B bounds"], Float[Tensor, "B M"]],
    eps: float = 0.0,
) -> Float[Tensor, "B S C"]:
    """See `merge`; gradients flow to `x`. `sorted_tokens` are what `members` gives for the labels and the weights.

    Gradients are as precise as the sums there, which are float32 where the weights were, whatever `x` is.
    """
    order, starts, sums = sorted_tokens
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, _WithGradients.apply(x, weights, labels, order, starts, sums, eps))
    return merge(x, weights, order, starts, eps)
