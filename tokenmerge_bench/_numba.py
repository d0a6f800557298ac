"""Compiled code for the CPU: greedy contraction, and sums of merged rows. Imported only where numba is installed.

Every kernel works on a range of images, without the interpreter's lock, and treats an image the same whatever else is
in the batch. `_run` deals the images of a batch out to as many threads as torch uses. They are plain threads and not
numba's own, whose pool must not be used after a fork (as in the workers of a data loader) nor, in one of its flavours,
by two threads at once.

There are no bounds checks: callers hand over what `contraction.py` and `grid.py` make.
"""

from __future__ import annotations

import inspect
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_KINDS = {"cosine": 0, "euclidean": 1, "manhattan": 2, "kl": 3, "kl_forward": 4}
COSINE, EUCLIDEAN, MANHATTAN, KL, KL_FORWARD = _KINDS.values()


def _compiled(function: Any, **options: Any) -> Any:
    """Compiled on the first call, and kept on disk where there is a folder to write to."""
    function = inspect.unwrap(function)  # what the tests' checker of shapes wraps around it cannot be compiled
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(**options)(function)


def _summing(function: Any) -> Any:
    """Compiled with sums in any order, so that they use vector units. The order is fixed once compiled."""
    return _compiled(function, fastmath={"reassoc", "contract", "nsz"})


# --- DHTM -------------------------------------------------------------------------------------------------------------
#
# Edge e has the two ends `ends[2 e]` and `ends[2 e + 1]`, -1 once it is dropped. Each token strings its ends together:
# `first`, `last`, and `after` for the next one. So contraction joins two strings, and all that changes hangs on the
# string of the union. `best` is the best edge of every token, whichever end the token is, and `top` its score. Where
# `stale`, `top` is a bound from before that edge became worse, and is corrected only when the token's turn has come.
#
# Every function does a whole step's work of its kind: a call in an inner loop would cost more than what it does there.


@_summing
def _describe(start: int, stop: int, x: Any, rows: Any, exps: Any, kind: int) -> None:
    """Rows of what is compared, see `contraction.describe`; for the divergences with their exponentials."""
    width = x.shape[1]
    for t in range(start, stop):
        if kind == COSINE:
            square = 0.0  # in float64, so that no feature is too large or too small for it
            for c in range(width):
                square += np.float64(x[t, c]) * np.float64(x[t, c])
            norm = x.dtype.type(max(math.sqrt(square), 1e-12))
            for c in range(width):
                rows[t, c] = x[t, c] / norm
        elif kind in (KL, KL_FORWARD):
            largest = x[t, 0]
            for c in range(width):
                largest = max(largest, x[t, c])
            total = 0.0
            for c in range(width):
                power = math.exp(np.float64(x[t, c]) - np.float64(largest))
                total += power
                exps[t, c] = power
            shift = np.float64(largest) + math.log(total)
            for c in range(width):
                rows[t, c] = np.float64(x[t, c]) - shift
                exps[t, c] = exps[t, c] / total


@_compiled
def _collect(
    start: int, stop: int, turn: int, ends: Any, after: Any, first: Any, last: Any, best: Any, stale: Any, seen: Any,
    found: Any,
) -> int:  # fmt: skip
    """Lists in `found` the edges of tokens start to stop - 1, once each, and returns how many they are.

    Inner edges (with equal ends) and all but the first of parallel ones are dropped. `turn` is different in every call.
    """
    count = 0
    for t in range(start, stop):
        before = -1
        h = first[t]
        while h >= 0:
            other, following = ends[h ^ 1], after[h]
            if other < 0 or other == t or seen[other] == turn + t:
                if other >= 0 and best[other] == h >> 1:
                    stale[other] = True
                ends[h] = ends[h ^ 1] = -1
                if before < 0:
                    first[t] = following
                else:
                    after[before] = following
                if following < 0:
                    last[t] = before
            else:
                seen[other] = turn + t
                before = h
                if not start <= other < t:
                    found[count] = h >> 1
                    count += 1
            h = following
    return count


@_summing
def _score(
    found: Any, count: int, rows: Any, exps: Any, ends: Any, scores: Any, best: Any, stale: Any, kind: int
) -> None:
    """Scores the first `count` edges of `found`: `contraction.pair_similarity` of their ends."""
    width = rows.shape[1]
    least = np.finfo(rows.dtype).min
    for number in range(count):
        edge = found[number]
        a, b = ends[2 * edge], ends[2 * edge + 1]
        a, b = min(a, b), max(a, b)
        score = rows.dtype.type(0)
        if kind == COSINE:
            for c in range(width):
                score += rows[a, c] * rows[b, c]
        elif kind == EUCLIDEAN:
            for c in range(width):
                gap = rows[a, c] - rows[b, c]
                score += gap * gap
            score = -math.sqrt(score)
        elif kind == MANHATTAN:
            for c in range(width):
                score -= abs(rows[a, c] - rows[b, c])
        elif kind == KL:
            for c in range(width):
                score -= (exps[a, c] - exps[b, c]) * (rows[a, c] - rows[b, c])
            score /= 2
        else:
            for c in range(width):
                score -= exps[a, c] * (rows[a, c] - rows[b, c])
        score = score if score >= least else least  # NaN, too
        if score < scores[edge]:
            stale[a] |= best[a] == edge
            stale[b] |= best[b] == edge
        scores[edge] = score


@_compiled
def _offer(found: Any, count: int, ends: Any, scores: Any, best: Any, top: Any, stale: Any) -> None:
    """Makes the first `count` edges of `found` the best of their ends if they are: on ties with the lower other end."""
    for number in range(2 * count):
        edge = found[number >> 1]
        h = 2 * edge + (number & 1)
        t, score = ends[h], scores[edge]
        if score > top[t]:
            top[t], best[t], stale[t] = score, edge, False
        elif score == top[t] and not stale[t]:
            rival = best[t]
            if ends[2 * edge] + ends[2 * edge + 1] < ends[2 * rival] + ends[2 * rival + 1]:
                best[t] = edge


@_compiled
def _highest(top: Any) -> int:
    """The first of the highest; -1 if there is none."""
    highest, t = top.dtype.type(-np.inf), -1
    for u in range(len(top)):
        if top[u] > highest:
            highest, t = top[u], u
    return t


@_compiled
def _join(i: int, j: int, x: Any, weights: Any, by_size: bool) -> None:
    """Token i becomes the mean of tokens i and j, see `contraction.mean_of_two`."""
    weight_i, weight_j = weights[i], weights[j]
    for c in range(x.shape[1]):
        a, b = x[i, c], x[j, c]
        x[i, c] = a if a == b else (weight_i * a + weight_j * b) / (weight_i + weight_j)
    if by_size:
        weights[i] = weight_i + weight_j


@_compiled
def _contract(
    pairs: Any, x: Any, rows: Any, exps: Any, weights: Any, ends: Any, after: Any, first: Any, last: Any, best: Any,
    top: Any, stale: Any, seen: Any, found: Any, scores: Any, kind: int, by_size: bool, threshold: float,
) -> None:  # fmt: skip
    """One image of `contraction.contract_most_similar`."""
    n = len(weights)
    none = x.dtype.type(-np.inf)
    turn = 0
    new, new_stop = 0, n  # what is described and scored: all tokens at first, then the union alone
    for step in range(len(pairs)):
        _describe(new, new_stop, x, rows, exps, kind)
        count = _collect(new, new_stop, turn, ends, after, first, last, best, stale, seen, found)
        _score(found, count, rows, exps, ends, scores, best, stale, kind)
        _offer(found, count, ends, scores, best, top, stale)
        turn += n
        t = _highest(top)
        while t >= 0 and stale[t]:
            top[t], best[t], stale[t] = none, -1, False
            count = _collect(t, t + 1, turn, ends, after, first, last, best, stale, seen, found)
            _offer(found, count, ends, scores, best, top, stale)
            turn += n
            t = _highest(top)
        if t < 0 or top[t] < threshold:
            break
        a, b = ends[2 * best[t]], ends[2 * best[t] + 1]
        i, j = min(a, b), max(a, b)
        pairs[step, 0], pairs[step, 1] = i, j
        _join(i, j, x, weights, by_size)
        h = first[j]
        while h >= 0:
            if ends[h] >= 0:
                ends[h] = i
            h = after[h]
        after[last[i]] = first[j]
        last[i] = last[j]
        first[j] = best[i] = best[j] = -1
        top[i] = top[j] = none
        stale[i] = stale[j] = False
        new, new_stop = i, i + 1


@_compiled
def _most_similar_pairs(
    start: int,
    stop: int,
    features: Any,
    image_stride: int,
    token_stride: int,
    sizes: Any,
    edges: Any,
    edges_stride: int,
    n_edges: int,
    pairs: Any,
    width: int,
    kind: int,
    by_size: bool,
    threshold: float,
) -> None:
    """Images start to stop - 1 of `contraction.contract_most_similar`."""
    n = sizes.shape[1]
    x = np.empty((n, width), features.dtype)
    rows = np.empty_like(x) if kind in (COSINE, KL, KL_FORWARD) else x
    exps = np.empty_like(x) if kind in (KL, KL_FORWARD) else x
    weights, top = np.ones(n, features.dtype), np.empty(n, features.dtype)
    ends, after = np.empty(2 * n_edges, np.int32), np.empty(2 * n_edges, np.int32)
    found, scores = np.empty(n_edges, np.int32), np.empty(n_edges, features.dtype)
    first, last, best = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    stale, seen = np.empty(n, np.bool_), np.empty(n, np.int64)
    for image in range(start, stop):
        for t in range(n):
            at = image * image_stride + t * token_stride
            for c in range(width):
                x[t, c] = features[at + c]
            if by_size:
                weights[t] = sizes[image, t]
        first[:], best[:], seen[:] = -1, -1, -1
        top[:], stale[:] = -np.inf, False
        for h in range(2 * n_edges - 1, -1, -1):
            t = edges[image * edges_stride + h]
            ends[h] = t
            after[h] = first[t]
            if first[t] < 0:
                last[t] = h
            first[t] = h
        scores[:] = -np.inf
        _contract(
            pairs[image], x, rows, exps, weights, ends, after, first, last, best, top, stale, seen, found, scores,
            kind, by_size, threshold,
        )  # fmt: skip


def most_similar_pairs(
    features: Float[Tensor, "B N C"],
    sizes: Float[Tensor, "B N"],
    edges: Int[Tensor, "B E 2"],
    steps: int,
    similarity: str,
    averaging: str,
    threshold: float | None,
) -> Int[Tensor, "B K 2"]:
    """The pairs that `contraction.contract_most_similar` merges.

    Sums are in float32, or float64 where features are. Cost: (N + E) C at first; then per step (degree + 2) C and O(N),
    degree being the number of neighbours of the new token.
    """
    features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    batch, _, width = features.shape
    pairs = torch.full((batch, steps, 2), -1, dtype=torch.int64)
    if steps == 0:
        return pairs
    flat_features, image_stride, token_stride = _flat(features)
    flat_edges, edges_stride, _ = _flat(edges)
    _run(
        batch,
        _most_similar_pairs,
        flat_features,
        image_stride,
        token_stride,
        sizes.detach().to(features.dtype).contiguous().numpy(),
        flat_edges,
        edges_stride,
        edges.shape[1],
        pairs.numpy(),
        width,
        _KINDS[similarity],
        averaging == "size",
        flat_features.dtype.type(-math.inf if threshold is None else threshold),
    )
    return pairs


# --- random merging ---------------------------------------------------------------------------------------------------


@_compiled
def _random_pairs(
    start: int, stop: int, edges: Any, edges_stride: int, n_edges: int, draws: Any, pairs: Any, n: int, by_token: bool
) -> None:
    """Images start to stop - 1 of `methods.random.contract_at_random`."""
    touching = np.empty((n, n), np.bool_)
    degree = np.empty(n, np.int64)  # neighbours of each token; without `by_token`, those with a higher index alone
    for image in range(start, stop):
        touching[:] = False
        for e in range(n_edges):
            at = image * edges_stride + 2 * e
            a, b = edges[at], edges[at + 1]
            if a != b:
                touching[a, b] = touching[b, a] = True
        for t in range(n):
            degree[t] = 0
            for u in range(0 if by_token else t + 1, n):
                degree[t] += touching[t, u]
        for step in range(draws.shape[1]):
            count = 0
            for t in range(n):
                count += min(degree[t], 1) if by_token else degree[t]
            if count == 0:
                break
            number = min(int(draws[image, step, 0] * count), count - 1)
            i = 0
            while True:
                here = min(degree[i], 1) if by_token else degree[i]
                if number < here:
                    break
                number -= here
                i += 1
            j = 0 if by_token else i + 1
            if by_token:
                number = min(int(draws[image, step, 1] * degree[i]), degree[i] - 1)
            while True:
                if touching[i, j]:
                    if number == 0:
                        break
                    number -= 1
                j += 1
            i, j = min(i, j), max(i, j)
            pairs[image, step, 0] = i
            pairs[image, step, 1] = j
            degree[i] = degree[j] = 0
            for u in range(n):
                if u in (i, j):
                    continue
                with_i, with_j = touching[i, u], touching[j, u]
                union = with_i or with_j
                if by_token or u < i:
                    degree[u] += np.int64(union) - with_i - with_j
                elif u < j:
                    degree[u] -= with_j
                if by_token or u > i:
                    degree[i] += union
                touching[i, u] = touching[u, i] = union
                touching[j, u] = touching[u, j] = False
            touching[i, j] = touching[j, i] = False


def random_pairs(edges: Int[Tensor, "B E 2"], draws: Float[Tensor, "B K 2"], n: int, pair: str) -> Int[Tensor, "B K 2"]:
    """The pairs that `methods.random.contract_at_random` merges. Cost: O(N) per step."""
    pairs = torch.full(draws.shape, -1, dtype=torch.int64)
    flat_edges, edges_stride, _ = _flat(edges)
    by_token = pair == "token_neighbor"
    _run(
        len(draws),
        _random_pairs,
        flat_edges,
        edges_stride,
        edges.shape[1],
        draws.contiguous().numpy(),
        pairs.numpy(),
        n,
        by_token,
    )
    return pairs


# --- merging ----------------------------------------------------------------------------------------------------------


@_compiled
def _merge_rows(
    start: int,
    stop: int,
    features: Any,
    image_stride: int,
    token_stride: int,
    labels: Any,
    coefficients: Any,
    out: Any,
    n_out: int,
) -> None:
    """Images start to stop - 1 of `merge_rows`."""
    prefix, width = out.shape[1] - n_out, out.shape[2]
    empty = np.empty(n_out, np.bool_)
    for image in range(start, stop):
        for t in range(prefix):
            at = image * image_stride + t * token_stride
            for c in range(width):
                out[image, t, c] = features[at + c]
        empty[:] = True
        for t in range(labels.shape[1]):
            label, coefficient = labels[image, t], coefficients[image, t]
            at = image * image_stride + (prefix + t) * token_stride
            if empty[label]:  # not added to 0, which would turn -0 into 0
                empty[label] = False
                for c in range(width):
                    out[image, prefix + label, c] = coefficient * features[at + c]
            else:
                for c in range(width):
                    out[image, prefix + label, c] += coefficient * features[at + c]
        for m in range(n_out):
            if empty[m]:
                out[image, prefix + m] = 0


def merge_rows(
    x: Float[Tensor, "B T C"], labels: Int[Tensor, "B N"], coefficients: Float[Tensor, "B N"], n_out: int
) -> Float[Tensor, "B S C"]:
    """Weighted sums of the tokens of equal label, added in ascending order; in float32, or float64 where one is.

    Labels are those of the last N tokens; what stands before them is copied in front, S = T - N + n_out. A token alone
    with coefficient 1 keeps its features bit for bit. Reads and writes every row once.
    """
    precise = torch.promote_types(torch.promote_types(x.dtype, coefficients.dtype), torch.float32)
    batch, length, width = x.shape
    out = torch.empty((batch, length - labels.shape[1] + n_out, width), dtype=precise)
    flat, image_stride, token_stride = _flat(x.detach().to(precise))
    _run(
        batch,
        _merge_rows,
        flat,
        image_stride,
        token_stride,
        labels.contiguous().numpy(),
        coefficients.detach().to(precise).contiguous().numpy(),
        out.numpy(),
        n_out,
    )
    return out.to(x.dtype)


# --- running ----------------------------------------------------------------------------------------------------------


def _flat(x: Tensor) -> tuple[Any, int, int]:
    """The memory of (B, R, C) from the first value to the last, and the strides of images and rows in it.

    Slices of a longer sequence and expanded batches are not copied: a kernel finds row r of image b at
    b * image stride + r * row stride.
    """
    if x.numel() == 0 or x.stride(2) != 1:
        x = x.contiguous()
    image, row, _ = x.stride()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.as_strided((span,), (1,)).numpy(), image, row


def _run(images: int, kernel: Any, *arguments: Any) -> None:
    """Calls kernel(start, stop, *arguments) on pieces of the batch, from as many threads as torch uses."""
    threads = min(torch.get_num_threads(), images)
    if threads <= 1:
        kernel(0, images, *arguments)
        return
    piece = -(-images // (4 * threads))  # several per thread: whoever is done takes the next
    pieces = deque(range(0, images, piece))

    def work() -> None:
        while True:
            try:
                start = pieces.popleft()
            except IndexError:
                return
            kernel(start, min(start + piece, images), *arguments)

    others = [_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        if not other.cancel():  # one that has not begun by now is not needed
            other.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; a fork does not inherit them."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"tokenmerge-{process}")
