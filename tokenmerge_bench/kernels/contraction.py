"""Greedy contraction on the GPU: one program per image, whose steps never leave it.

The cosine needs no features after the start: with x the sum of a token's patches, the scalar products of all pairs are
the Gram matrix X X^T, and the row of a union is the sum of two rows. Sums, and not means, because the cosine does not
depend on the scale, and sums of small integers are exact, so exact ties stay ties. The score is cos |cos|, which orders
pairs as the cosine does and needs no root. Other similarities are not linear in this way; they are left to torch.

A program holds the edges of its image in registers (702 for 14x14 cells) and its Gram matrix in global memory, where a
step reads two rows and writes one row and one column.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_MOST_EDGES = 16384  # 16 registers a thread for each of three values, with 1024 threads


@triton.jit
@no_type_check
def _gram_kernel(
    x, weights, gram, n, c, x_image, x_token, PRECISION: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):
    """gram[i, j] = weights[i] weights[j] (x_i . x_j), products of all digits of x and sums in float32."""
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, CHUNK)
    x += image * x_image
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, c, CHUNK):
        inside = start + channels < c
        left = tl.load(
            x + rows[:, None] * x_token + (start + channels)[None, :],
            mask=(rows < n)[:, None] & inside[None, :],
            other=0.0,
        )
        right = tl.load(
            x + columns[None, :] * x_token + (start + channels)[:, None],
            mask=(columns < n)[None, :] & inside[:, None],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    w_rows = tl.load(weights + image * n + rows, mask=rows < n, other=0.0)
    w_columns = tl.load(weights + image * n + columns, mask=columns < n, other=0.0)
    total = total * (w_rows[:, None] * w_columns[None, :])  # in this order the matrix is symmetric to the bit
    at = gram + image * n * n + rows[:, None] * n + columns[None, :]
    tl.store(at, total, mask=(rows < n)[:, None] & (columns < n)[None, :])


@triton.jit
@no_type_check
def _score(product, square_a, square_b):
    """cos |cos|; 0 with a zero vector, and the least finite number where features overflowed."""
    score = product * tl.abs(product) / (square_a * square_b)
    score = tl.where(square_a == 0, 0.0, tl.where(square_b == 0, 0.0, score))
    score = tl.where(score != score, -3.4028234663852886e38, score)
    return score + 0.0  # -0 becomes 0, which it ties with


@triton.jit
@no_type_check
def _contract_kernel(
    gram, edges, pairs, n, n_edges, steps, half: tl.constexpr, TOKENS: tl.constexpr, EDGES: tl.constexpr
):
    """`steps` times: the best edge, lowest (low, high) on ties; its ends become one token. `half` halves the sum."""
    image = tl.program_id(0).to(tl.int64)
    gram += image * n * n
    edges += image * n_edges * 2
    pairs += image * steps * 2
    slots = tl.arange(0, TOKENS)
    is_token = slots < n
    numbers = tl.arange(0, EDGES)
    is_edge = numbers < n_edges
    low = tl.load(edges + 2 * numbers, mask=is_edge, other=0).to(tl.int32)
    high = tl.load(edges + 2 * numbers + 1, mask=is_edge, other=0).to(tl.int32)
    # Scores are quotients, so a power of two that keeps their parts in range changes nothing.
    largest = tl.max(tl.load(gram + slots * (n + 1), mask=is_token, other=0.0))
    scale = tl.exp2(-tl.floor(tl.log2(tl.where((largest > 0) & (largest < float("inf")), largest, 1.0))))
    open_ = is_edge & (low != high)
    square_low = tl.load(gram + low * (n + 1), mask=open_, other=0.0) * scale
    square_high = tl.load(gram + high * (n + 1), mask=open_, other=0.0) * scale
    product = tl.load(gram + low * n + high, mask=open_, other=0.0) * scale
    scores = tl.where(open_, _score(product, square_low, square_high), float("-inf"))
    for step in range(steps):
        # The bits of a float32, made monotone, and the code that orders pairs by (low, high).
        bits = scores.to(tl.int32, bitcast=True)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        code = (low << 16) | high
        best = tl.max(bits)
        winner = tl.min(tl.where(bits == best, code, 0x7FFFFFFF))
        found = best > -2139095041  # the bits of -inf
        i = tl.where(found, winner >> 16, -1)
        j = tl.where(found, winner & 0xFFFF, -1)
        tl.store(pairs + 2 * step, i.to(tl.int64))
        tl.store(pairs + 2 * step + 1, j.to(tl.int64))
        low = tl.where(found & (low == j), i, low)
        high = tl.where(found & (high == j), i, high)
        low, high = tl.minimum(low, high), tl.maximum(low, high)
        open_ = is_edge & (low != high)
        touches = open_ & found & ((low == i) | (high == i))
        other = low + high - i
        # What the step before has stored is visible to all threads only after this barrier, ...
        tl.debug_barrier()
        moved = is_token & found
        row = tl.load(gram + i * n + slots, mask=moved, other=0.0) + tl.load(
            gram + j * n + slots, mask=moved, other=0.0
        )
        square = (
            tl.load(gram + i * (n + 1), mask=found, other=0.0)
            + 2 * tl.load(gram + i * n + j, mask=found, other=0.0)
            + tl.load(gram + j * (n + 1), mask=found, other=0.0)
        )
        near = tl.load(gram + i * n + other, mask=touches, other=0.0) + tl.load(
            gram + j * n + other, mask=touches, other=0.0
        )
        square_other = tl.load(gram + other * (n + 1), mask=touches, other=0.0)
        if half:
            row, near, square = row * 0.5, near * 0.5, square * 0.25
        # ... and nobody may write before all have read.
        tl.debug_barrier()
        row = tl.where(slots == i, square, row)
        tl.store(gram + i * n + slots, row, mask=moved)
        tl.store(gram + slots * n + i, row, mask=moved & (slots != i))
        rescored = _score(near * scale, square * scale, square_other * scale)
        scores = tl.where(touches, rescored, tl.where(open_, scores, float("-inf")))


def most_similar_pairs(
    features: Float[Tensor, "B N C"],
    sizes: Float[Tensor, "B N"],
    edges: Int[Tensor, "B E 2"],
    steps: int,
    similarity: str,
    averaging: str,
) -> Int[Tensor, "B K 2"] | None:
    """The pairs of slots that `contraction.contract_most_similar` merges, step by step, low slot first.

    None where this kernel does not apply: another similarity than the cosine, float64, or too many edges.
    -1 stands where an image had no pair left.
    """
    batch, n, _ = features.shape
    if similarity != "cosine" or features.dtype == torch.float64 or edges.shape[1] > _MOST_EDGES or n >= 1 << 15:
        return None
    if edges.shape[1] == 0:
        return torch.full((batch, steps, 2), -1, dtype=torch.int64, device=features.device)
    pairs = torch.empty((batch, steps, 2), dtype=torch.int64, device=features.device)
    if batch == 0 or steps == 0:
        return pairs
    weights = sizes.float() if averaging == "size" else torch.ones_like(sizes, dtype=torch.float32)
    gram = gram_matrix(features, weights)
    edges = edges.contiguous()
    n_edges = edges.shape[1]
    tokens, lanes = triton.next_power_of_2(n), triton.next_power_of_2(n_edges)
    warps = min(32, max(4, lanes // 64))
    _contract_kernel[(batch,)](
        gram, edges, pairs, n, n_edges, steps, averaging == "plain", TOKENS=tokens, EDGES=lanes, num_warps=warps
    )
    return pairs


def gram_matrix(x: Float[Tensor, "B N C"], weights: Float[Tensor, "B N"]) -> Float[Tensor, "B N N"]:
    """Scalar products of weighted tokens in float32; 2 N^2 C operations an image, on matrix units.

    Half precisions multiply exactly; float32 is split in three terms (tf32x3), as one TF32 product has 10 bits, which
    do not rank neighbours.
    """
    batch, n, c = x.shape
    if x.stride(2) != 1:
        x = x.contiguous()
    gram = torch.empty((batch, n, n), dtype=torch.float32, device=x.device)
    if x.dtype == torch.float32:
        precision, block, chunk, warps = "tf32x3", 64, 32, 4
    else:
        precision, block, chunk, warps = "ieee", 128, 64, 8
    block, chunk = min(block, max(16, triton.next_power_of_2(n))), min(chunk, max(16, triton.next_power_of_2(c)))
    blocks = triton.cdiv(n, block)
    _gram_kernel[(batch, blocks, blocks)](
        x, weights.float().contiguous(), gram, n, c, x.stride(0), x.stride(1),
        PRECISION=precision, BLOCK=block, CHUNK=chunk, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return gram


@triton.jit
@no_type_check
def _edges_kernel(cells, cell_edges, edges, n_cells, n_edges, BLOCK: tl.constexpr):
    """Ends of every cell edge as tokens, the lower one first."""
    image = tl.program_id(0).to(tl.int64)
    numbers = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = numbers < n_edges
    a = tl.load(cells + image * n_cells + tl.load(cell_edges + 2 * numbers, mask=inside, other=0), mask=inside)
    b = tl.load(cells + image * n_cells + tl.load(cell_edges + 2 * numbers + 1, mask=inside, other=0), mask=inside)
    edges += image * n_edges * 2
    tl.store(edges + 2 * numbers, tl.minimum(a, b), mask=inside)
    tl.store(edges + 2 * numbers + 1, tl.maximum(a, b), mask=inside)


def token_edges(cells: Int[Tensor, "B N0"], cell_edges: Int[Tensor, "E 2"]) -> Int[Tensor, "B E 2"]:
    """See `grid.token_edges`, of which this is the one-kernel form."""
    batch, n_cells = cells.shape
    edges = torch.empty((batch, len(cell_edges), 2), dtype=cells.dtype, device=cells.device)
    if edges.numel():
        grid = (batch, triton.cdiv(len(cell_edges), 1024))
        _edges_kernel[grid](cells.contiguous(), cell_edges, edges, n_cells, len(cell_edges), BLOCK=1024)
    return edges


@triton.jit
@no_type_check
def _neighbour_kernel(x, right, scores, n, c, x_image, x_token, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Cosine of every token with the token that `right` names, in float32."""
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, CHUNK)
    real = rows < n
    other = tl.load(right + image * n + rows, mask=real, other=0)
    x += image * x_image
    product = tl.zeros((ROWS, CHUNK), tl.float32)
    square_a = tl.zeros((ROWS, CHUNK), tl.float32)
    square_b = tl.zeros((ROWS, CHUNK), tl.float32)
    for start in range(0, c, CHUNK):
        mask = real[:, None] & (start + channels < c)[None, :]
        a = tl.load(x + rows[:, None] * x_token + (start + channels)[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x + other[:, None] * x_token + (start + channels)[None, :], mask=mask, other=0.0).to(tl.float32)
        product += a * b
        square_a += a * a
        square_b += b * b
    norm_a = tl.maximum(tl.sqrt_rn(tl.sum(square_a, 1)), 1e-12)
    norm_b = tl.maximum(tl.sqrt_rn(tl.sum(square_b, 1)), 1e-12)
    tl.store(scores + image * n + rows, tl.sum(product, 1) / (norm_a * norm_b), mask=real)


def neighbour_cosines(x: Float[Tensor, "B N C"], right: Int[Tensor, "B N"]) -> Float[Tensor, "B N"] | None:
    """Cosine of token n with token right[n], in float32, from one reading of the features. None for float64."""
    batch, n, c = x.shape
    if x.dtype == torch.float64:
        return None
    if x.stride(2) != 1:
        x = x.contiguous()
    scores = torch.empty((batch, n), dtype=torch.float32, device=x.device)
    if batch:
        _neighbour_kernel[(batch, triton.cdiv(n, 8))](
            x, right.contiguous(), scores, n, c, x.stride(0), x.stride(1), ROWS=8, CHUNK=128, num_warps=4
        )
    return scores


@triton.jit
@no_type_check
def _nth_true(mask, number):
    """Index of the true entry number `number` (from 0)."""
    return tl.argmax((tl.cumsum(mask.to(tl.int32), 0) > number).to(tl.int32), 0).to(tl.int32)


@triton.jit
@no_type_check
def _random_kernel(
    touching, edges, draws, pairs, n, n_edges, steps, by_token: tl.constexpr, TOKENS: tl.constexpr, CHUNK: tl.constexpr
):
    """`steps` times: a random edge, or a random token and a random neighbour; the two become one token."""
    image = tl.program_id(0).to(tl.int64)
    touching += image * n * n
    edges += image * n_edges * 2
    draws += image * steps * 2
    pairs += image * steps * 2
    slots = tl.arange(0, TOKENS)
    is_token = slots < n
    yes = tl.full((TOKENS,), 1, tl.int8)
    for start in range(0, n_edges, TOKENS):
        numbers = start + slots
        low = tl.load(edges + 2 * numbers, mask=numbers < n_edges, other=0)
        high = tl.load(edges + 2 * numbers + 1, mask=numbers < n_edges, other=0)
        tl.store(touching + low * n + high, yes, mask=low != high)
        tl.store(touching + high * n + low, yes, mask=low != high)
    tl.debug_barrier()
    # Edges from each slot to later ones; all edges of each slot where tokens are drawn first.
    counts = tl.zeros((TOKENS, CHUNK), tl.int32)
    for start in range(0, n, CHUNK):
        others = start + tl.arange(0, CHUNK)
        inside = is_token[:, None] & (others < n)[None, :]
        if not by_token:
            inside &= others[None, :] > slots[:, None]
        counts += tl.load(touching + slots[:, None] * n + others[None, :], mask=inside, other=0).to(tl.int32)
    degree = tl.sum(counts, 1)
    for step in range(steps):
        u = tl.load(draws + 2 * step)
        v = tl.load(draws + 2 * step + 1)
        tl.debug_barrier()  # the rows that the step before has stored
        if by_token:
            alive = degree > 0
            count = tl.sum(alive.to(tl.int32))
            first = _nth_true(alive, tl.minimum((u * count).to(tl.int32), count - 1))
            row = tl.load(touching + first * n + slots, mask=is_token, other=0) != 0
            neighbours = tl.sum(row.to(tl.int32))
            second = _nth_true(row, tl.minimum((v * neighbours).to(tl.int32), neighbours - 1))
            i, j = tl.minimum(first, second), tl.maximum(first, second)
        else:
            passed = tl.cumsum(degree, 0)
            count = tl.sum(degree)
            number = tl.minimum((u * count).to(tl.int32), count - 1)
            i = tl.argmax((passed > number).to(tl.int32), 0).to(tl.int32)
            before = tl.sum(tl.where(slots < i, degree, 0))
            later = (tl.load(touching + i * n + slots, mask=is_token, other=0) != 0) & (slots > i)
            j = _nth_true(later, number - before)
        found = count > 0
        tl.store(pairs + 2 * step, tl.where(found, i, -1).to(tl.int64))
        tl.store(pairs + 2 * step + 1, tl.where(found, j, -1).to(tl.int64))
        row_i = tl.load(touching + i * n + slots, mask=is_token, other=0) != 0
        row_j = tl.load(touching + j * n + slots, mask=is_token, other=0) != 0
        union = (row_i | row_j) & (slots != i) & (slots != j)
        tl.debug_barrier()  # nobody may write before all have read
        value = union.to(tl.int8)  # false at i and j, so that stores that overlap agree
        nothing = tl.zeros_like(value)
        tl.store(touching + i * n + slots, value, mask=is_token)
        tl.store(touching + slots * n + i, value, mask=is_token)
        tl.store(touching + j * n + slots, nothing, mask=is_token)
        tl.store(touching + slots * n + j, nothing, mask=is_token)
        if by_token:
            counted_i, counted_j, counted_union = row_i, row_j, union
            own = tl.sum(union.to(tl.int32))
        else:  # an edge counts at its lower slot
            counted_i, counted_j, counted_union = row_i & (slots < i), row_j & (slots < j), union & (slots < i)
            own = tl.sum((union & (slots > i)).to(tl.int32))
        degree += counted_union.to(tl.int32) - counted_i.to(tl.int32) - counted_j.to(tl.int32)
        degree = tl.where(slots == i, own, tl.where(slots == j, 0, degree))


def random_pairs(
    edges: Int[Tensor, "B E 2"], draws: Float[Tensor, "B K 2"], n: int, pair: str
) -> Int[Tensor, "B K 2"] | None:
    """The pairs of slots that `contract_at_random` merges, step by step, low slot first. None if N is too large.

    -1 stands where an image had no pair left.
    """
    batch, steps, _ = draws.shape
    if n > 4096:
        return None
    pairs = torch.empty((batch, steps, 2), dtype=torch.int64, device=edges.device)
    if batch and steps:
        touching = torch.zeros((batch, n, n), dtype=torch.int8, device=edges.device)
        _random_kernel[(batch,)](
            touching, edges.contiguous(), draws.contiguous(), pairs, n, edges.shape[1], steps,
            pair == "token_neighbor", TOKENS=triton.next_power_of_2(n), CHUNK=16, num_warps=8,
        )  # fmt: skip
    return pairs


@triton.jit
@no_type_check
def _labels_kernel(pairs, labels, n, steps, total_steps, TOKENS: tl.constexpr):
    """Replays the first `steps` merges and numbers the slots that are left."""
    image = tl.program_id(0).to(tl.int64)
    pairs += image * total_steps * 2
    slots = tl.arange(0, TOKENS)
    owner = slots
    for step in range(steps):
        i = tl.load(pairs + 2 * step).to(tl.int32)
        j = tl.load(pairs + 2 * step + 1).to(tl.int32)
        owner = tl.where((owner == j) & (j >= 0), i, owner)
    alive = (owner == slots) & (slots < n)
    rank = tl.cumsum(alive.to(tl.int32), 0) - 1
    # Through memory, because a lane needs the rank of another one.
    tl.store(labels + image * n + slots, rank.to(tl.int64), mask=slots < n)
    tl.debug_barrier()
    own = tl.load(labels + image * n + owner, mask=slots < n, other=0)
    tl.debug_barrier()
    tl.store(labels + image * n + slots, own, mask=slots < n)


def labels_of(pairs: Int[Tensor, "B K 2"], n: int, steps: int) -> Int[Tensor, "B N"]:
    """Output token of each of `n` slots after the first `steps` merges; output tokens in the order of their slots."""
    labels = torch.empty((len(pairs), n), dtype=torch.int64, device=pairs.device)
    if len(pairs):
        pairs = pairs.contiguous()
        _labels_kernel[(len(pairs),)](pairs, labels, n, steps, pairs.shape[1], TOKENS=triton.next_power_of_2(n))
    return labels
