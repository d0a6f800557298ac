"""ToMe's bipartite matching on the GPU: best partners in one kernel, ranks and labels in another."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
@no_type_check
def _metric_kernel(
    keys, metric, heads, n, k_image, k_head, k_token, d: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Unit vectors of the keys summed over heads, in float32; the mean's factor 1/H cancels."""
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    mask = (rows < n)[:, None] & (columns < d)[None, :]
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for head in range(heads):
        at = keys + image * k_image + head * k_head + rows[:, None] * k_token + columns[None, :]
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(total * total, 1))
    unit = total / tl.maximum(norm, 1e-12)[:, None]
    tl.store(metric + image * n * WIDTH + rows[:, None] * WIDTH + columns[None, :], unit, mask=(rows < n)[:, None])


@triton.jit
@no_type_check
def _partner_kernel(
    metric, best, partner, n, a_count, b_count, a_first, b_first,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The most similar token of set B for a block of tokens of set A, lowest index on ties."""
    image = tl.program_id(0).to(tl.int64)
    metric += image * n * WIDTH
    columns = tl.arange(0, WIDTH)
    lanes = tl.arange(0, BLOCK)
    proposers = tl.program_id(1) * BLOCK + lanes
    mine = tl.load(
        metric + (a_first + 2 * proposers)[:, None] * WIDTH + columns[None, :],
        mask=(proposers < a_count)[:, None],
        other=0.0,
    )
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    who = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, b_count, BLOCK):
        others = first + lanes
        theirs = tl.load(
            metric + (b_first + 2 * others)[None, :] * WIDTH + columns[:, None],
            mask=(others < b_count)[None, :],
            other=0.0,
        )
        scores = tl.dot(mine, theirs, input_precision="ieee")
        scores = tl.where(scores != scores, -3.4028234663852886e38, scores)  # of keys that overflowed
        scores = tl.where((others < b_count)[None, :], scores, float("-inf"))
        highest = tl.max(scores, 1)
        lowest_index = tl.min(tl.where(scores == highest[:, None], others[None, :], 0x7FFFFFFF), 1)
        better = highest > top  # strictly: an earlier block keeps a tie
        top = tl.where(better, highest, top)
        who = tl.where(better, lowest_index, who)
    tl.store(best + image * a_count + proposers, top, mask=proposers < a_count)
    tl.store(partner + image * a_count + proposers, who, mask=proposers < a_count)


@triton.jit
@no_type_check
def _label_kernel(
    best, partner, labels, n, a_count, b_count, a_first, b_first, r, TOKENS: tl.constexpr, CHUNK: tl.constexpr
):
    """The r best proposals are merged; who stays is numbered first, in order, then all of set B."""
    image = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, TOKENS)
    mine = tl.load(best + image * a_count + slots, mask=slots < a_count, other=float("-inf"))
    rank = tl.zeros((TOKENS, CHUNK), tl.int32)
    for first in range(0, a_count, CHUNK):
        others = first + tl.arange(0, CHUNK)
        theirs = tl.load(best + image * a_count + others, mask=others < a_count, other=float("-inf"))
        ahead = (theirs[None, :] > mine[:, None]) | (
            (theirs[None, :] == mine[:, None]) & (others[None, :] < slots[:, None])
        )
        rank += (ahead & (others < a_count)[None, :]).to(tl.int32)
    stays = (tl.sum(rank, 1) >= r) & (slots < a_count)
    number = tl.cumsum(stays.to(tl.int32), 0) - 1
    who = tl.load(partner + image * a_count + slots, mask=slots < a_count, other=0)
    label = tl.where(stays, number, a_count - r + who)
    tl.store(labels + image * n + a_first + 2 * slots, label.to(tl.int64), mask=slots < a_count)
    tl.store(labels + image * n + b_first + 2 * slots, (a_count - r + slots).to(tl.int64), mask=slots < b_count)


def partners(keys: Float[Tensor, "B H N D"], prefix: int) -> tuple[Float[Tensor, "B A"], Int[Tensor, "B A"]] | None:
    """Score and index of the best partner of every token of set A. None for float64, which the kernel would round."""
    if keys.dtype == torch.float64:
        return None
    batch, heads, n, d = keys.shape
    a_first, b_first = prefix % 2, 1 - prefix % 2
    a_count, b_count = len(range(a_first, n, 2)), len(range(b_first, n, 2))
    best = torch.empty((batch, a_count), dtype=torch.float32, device=keys.device)
    partner = torch.empty((batch, a_count), dtype=torch.int32, device=keys.device)
    if batch and a_count:
        if keys.stride(3) != 1:
            keys = keys.contiguous()
        width = max(16, triton.next_power_of_2(d))
        metric = torch.empty((batch, n, width), dtype=torch.float32, device=keys.device)
        rows = 16
        _metric_kernel[(batch, triton.cdiv(n, rows))](
            keys, metric, heads, n, *keys.stride()[:3], d=d, WIDTH=width, ROWS=rows, num_warps=4
        )
        block = 16 if n < 64 else 32 if width > 64 else 64
        _partner_kernel[(batch, triton.cdiv(a_count, block))](
            metric, best, partner, n, a_count, b_count, a_first, b_first, WIDTH=width, BLOCK=block, num_warps=4
        )
    return best, partner


def labels_of(
    best: Float[Tensor, "B A"], partner: Int[Tensor, "B A"], n: int, r: int, prefix: int
) -> Int[Tensor, "B N"]:
    """Output token of each patch token after merging the r best proposals."""
    batch, a_count = best.shape
    labels = torch.empty((batch, n), dtype=torch.int64, device=best.device)
    if batch:
        _label_kernel[(batch,)](
            best, partner, labels, n, a_count, n - a_count, prefix % 2, 1 - prefix % 2, r,
            TOKENS=triton.next_power_of_2(max(a_count, n - a_count)), CHUNK=16, num_warps=4,
        )  # fmt: skip
    return labels
