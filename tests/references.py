"""Naive restatements of every method, one image at a time, from the specification's text and nothing else.

No code is shared with `methods/`: plain loops over numpy float64 rows. Tokens are listed in the order of the method,
and a result gives, for each output token, the input tokens it is made of, in the order of output tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]


@dataclass
class Token:
    """A token on the grid: its cells, the input tokens in it, what it holds and what of it is compared."""

    cells: frozenset[int]
    members: list[int]
    value: Row
    compared: Row

    @property
    def key(self) -> int:
        return min(self.cells)


@dataclass
class Result:
    """Tokens that are left, and what happened on the way: pairs as frozensets of cells, and their scores."""

    tokens: list[Token]
    pairs: list[tuple[frozenset[int], frozenset[int]]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def values(self) -> Matrix:
        return np.stack([token.value for token in self.tokens])

    @property
    def sizes(self) -> list[int]:
        return [len(token.cells) for token in self.tokens]

    def labels(self, n: int) -> list[int]:
        owner = {member: m for m, token in enumerate(self.tokens) for member in token.members}
        return [owner[i] for i in range(n)]


def start(cells: Sequence[set[int]], values: Matrix, compared: Matrix | None = None) -> list[Token]:
    compared = values if compared is None else compared
    tokens = [Token(frozenset(s), [i], values[i], compared[i]) for i, s in enumerate(cells)]
    return sorted(tokens, key=lambda token: token.key)


def average(a: Row, b: Row, size_a: int, size_b: int, averaging: str) -> Row:
    if averaging == "plain":
        return (a + b) / 2
    return (size_a * a + size_b * b) / (size_a + size_b)


def join(a: Token, b: Token, averaging: str) -> Token:
    sizes = len(a.cells), len(b.cells)
    return Token(
        a.cells | b.cells,
        a.members + b.members,
        average(a.value, b.value, *sizes, averaging),
        average(a.compared, b.compared, *sizes, averaging),
    )


# --- grid -------------------------------------------------------------------------------------------------------------


def cells_touch(p: int, q: int, columns: int, connectivity: int) -> bool:
    rows_apart, columns_apart = abs(p // columns - q // columns), abs(p % columns - q % columns)
    if connectivity == 8:
        return max(rows_apart, columns_apart) == 1
    return rows_apart + columns_apart == 1


def tokens_touch(a: Token, b: Token, columns: int, connectivity: int) -> bool:
    return any(cells_touch(p, q, columns, connectivity) for p in a.cells for q in b.cells)


def adjacent_pairs(tokens: list[Token], columns: int, connectivity: int) -> list[tuple[int, int]]:
    """Positions (i < j) in the list, which is ordered by key: lexicographic order."""
    n = len(tokens)
    return [
        (i, j) for i in range(n) for j in range(i + 1, n) if tokens_touch(tokens[i], tokens[j], columns, connectivity)
    ]


def all_pairs(tokens: list[Token]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(tokens)) for j in range(i + 1, len(tokens))]


# --- similarities -----------------------------------------------------------------------------------------------------


def cosine(a: Row, b: Row) -> float:
    return float(a @ b) / (max(float(np.linalg.norm(a)), 1e-12) * max(float(np.linalg.norm(b)), 1e-12))


def log_softmax(a: Row) -> Row:
    shifted = a - a.max()
    return np.asarray(shifted - math.log(sum(math.exp(v) for v in shifted)))


def divergence(a: Row, b: Row) -> float:
    log_p, log_q = log_softmax(a), log_softmax(b)
    return float(sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))


SIMILARITIES: dict[str, Callable[[Row, Row], float]] = {
    "cosine": cosine,
    "euclidean": lambda a, b: -math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True))),
    "manhattan": lambda a, b: -sum(abs(p - q) for p, q in zip(a, b, strict=True)),
    "kl": lambda a, b: -(divergence(a, b) + divergence(b, a)) / 2,
    "kl_forward": lambda a, b: -divergence(a, b),
}


# --- DHTM and random merging ------------------------------------------------------------------------------------------


def merge_one(tokens: list[Token], i: int, j: int, averaging: str) -> None:
    tokens[i] = join(tokens[i], tokens[j], averaging)
    del tokens[j]


def greedy(
    tokens: list[Token],
    candidates: Callable[[list[Token]], list[tuple[int, int]]],
    k: int,
    similarity: str,
    averaging: str,
    threshold: float | None = None,
) -> Result:
    """Rescans all candidates, in lexicographic order, before every merge; the first maximum wins."""
    result = Result(list(tokens))
    for _ in range(k):
        pairs = candidates(result.tokens)
        if not pairs:
            break
        scores = [SIMILARITIES[similarity](result.tokens[i].compared, result.tokens[j].compared) for i, j in pairs]
        best = max(range(len(pairs)), key=lambda e: (scores[e], -e))
        if threshold is not None and scores[best] < threshold:
            break
        i, j = pairs[best]
        result.pairs.append((result.tokens[i].cells, result.tokens[j].cells))
        result.scores.append(scores[best])
        merge_one(result.tokens, i, j, averaging)
    return result


def dhtm(
    tokens: list[Token],
    columns: int,
    k: int,
    connectivity: int | str = 8,
    similarity: str = "cosine",
    averaging: str = "size",
    threshold: float | None = None,
) -> Result:
    def candidates(now: list[Token]) -> list[tuple[int, int]]:
        return all_pairs(now) if connectivity == "any" else adjacent_pairs(now, columns, int(connectivity))

    return greedy(tokens, candidates, k, similarity, averaging, threshold)


def random_merging(
    tokens: list[Token],
    columns: int,
    draws: Sequence[tuple[float, float]],
    pair: str = "edge",
    connectivity: int = 8,
    averaging: str = "size",
) -> Result:
    result = Result(list(tokens))
    for u, v in draws:
        now = result.tokens
        pairs = all_pairs(now) if pair == "any" else adjacent_pairs(now, columns, connectivity)
        if pair == "token_neighbor":
            first = min(int(u * len(now)), len(now) - 1)
            neighbours = sorted(({i, j} - {first}).pop() for i, j in pairs if first in (i, j))
            second = neighbours[min(int(v * len(neighbours)), len(neighbours) - 1)]
            i, j = min(first, second), max(first, second)
        else:
            i, j = pairs[min(int(u * len(pairs)), len(pairs) - 1)]
        result.pairs.append((now[i].cells, now[j].cells))
        merge_one(now, i, j, averaging)
    return result


# --- LoTM -------------------------------------------------------------------------------------------------------------


def row_pairs(tokens: list[Token], columns: int, window: str) -> list[tuple[int, int]]:
    """Consecutive tokens of a row; `fixed` only those that start at an even position of the row."""
    pairs = []
    for row in sorted({token.key // columns for token in tokens}):
        inside = [i for i, token in enumerate(tokens) if token.key // columns == row]
        steps = range(0, len(inside) - 1, 2 if window == "fixed" else 1)
        pairs += [(inside[p], inside[p + 1]) for p in steps]
    return pairs


def lotm(
    tokens: list[Token],
    columns: int,
    k: int,
    window: str = "sliding",
    averaging: str = "size",
    iterative: bool = False,
) -> Result:
    """For `wrap`, give the number of all cells as `columns`: one single row."""
    if iterative:
        return greedy(tokens, lambda now: row_pairs(now, columns, "sliding"), k, "cosine", averaging)
    result = Result(list(tokens))
    while k > 0 and (pairs := row_pairs(result.tokens, columns, window)):
        now = result.tokens
        scores = [cosine(now[i].compared, now[j].compared) for i, j in pairs]
        used: set[int] = set()
        accepted = []
        for e in sorted(range(len(pairs)), key=lambda e: (-scores[e], e)):
            if k > 0 and not used & set(pairs[e]):
                used |= set(pairs[e])
                accepted.append(pairs[e])
                k -= 1
        for i, j in sorted(accepted, reverse=True):
            merge_one(now, i, j, averaging)
    return result


# --- ToMe -------------------------------------------------------------------------------------------------------------


@dataclass
class Sequence_:
    """A whole sequence after ToMe: rows, sizes, and the input positions in each output position."""

    x: Matrix
    sizes: list[float]
    members: list[list[int]]


def tome(metric: Matrix, x: Matrix, sizes: Sequence[float], r: int, prefix: int) -> Sequence_:
    """Bipartite soft matching over the whole sequence, prefix tokens (0, 1 or 2) included and protected."""
    length = len(metric)
    r = min(r, (length - prefix) // 2)
    evens, odds = list(range(0, length, 2)), list(range(1, length, 2))
    merged_into: dict[int, int] = {}
    if r > 0:
        proposals = []
        for a in evens:
            free = {b: -math.inf if a < prefix or b < prefix else cosine(metric[a], metric[b]) for b in odds}
            partner = max(odds, key=lambda b: (free[b], -b))
            proposals.append((-free[partner], a, partner))
        merged_into = {a: b for _, a, b in sorted(proposals)[:r]}
    kept = [a for a in evens if a not in merged_into]
    order = [kept[0], odds[0], *kept[1:], *odds[1:]] if prefix == 2 else kept + odds
    members = [[p] + [a for a, b in merged_into.items() if b == p] for p in order]
    totals = [sum(sizes[i] for i in group) for group in members]
    rows = [sum(sizes[i] * x[i] for i in group) / total for group, total in zip(members, totals, strict=True)]
    return Sequence_(np.stack(rows), totals, members)


# --- clustering -------------------------------------------------------------------------------------------------------


def distances(x: Matrix) -> Matrix:
    n = len(x)
    return np.array([[math.sqrt(sum((x[i] - x[j]) ** 2)) for j in range(n)] for i in range(n)])


def first_of_largest(scores: Sequence[float], m: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:m]


def nearest(row: Row, centres: Sequence[int]) -> int:
    return min(range(len(centres)), key=lambda c: (row[centres[c]], c))


@dataclass
class Clusters:
    """Centres in the order of output tokens, and the cluster of each token."""

    centres: list[int]
    labels: list[int]
    density: list[float] = field(default_factory=list)
    delta: list[float] = field(default_factory=list)


def dpc_knn(x: Matrix, k: int, m: int, noise: Sequence[float] | None = None) -> Clusters:
    d = distances(x) / math.sqrt(x.shape[1])
    n = len(x)
    rho = []
    for i in range(n):
        smallest = sorted(d[i])[: min(k, n)]
        rho.append(math.exp(-sum(v * v for v in smallest) / len(smallest)) + (0.0 if noise is None else noise[i]))
    delta = []
    for i in range(n):
        denser = [j for j in range(n) if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        delta.append(float(min(d[i][j] for j in denser) if denser else d.max()))
    centres = first_of_largest([r * s for r, s in zip(rho, delta, strict=True)], m)
    labels = [centres.index(i) if i in centres else nearest(d[i], centres) for i in range(n)]
    return Clusters(centres, labels, rho, delta)


def cluster_means(x: Matrix, labels: Sequence[int], weights: Sequence[float], m: int) -> Matrix:
    out = np.zeros((m, x.shape[1]))
    for cluster in range(m):
        inside = [i for i, label in enumerate(labels) if label == cluster]
        out[cluster] = sum(weights[i] * x[i] for i in inside) / (1e-6 + sum(weights[i] for i in inside))
    return out


def k_medoids(x: Matrix, w: Sequence[float], m: int, iters: int, variant: str = "weighted") -> Clusters:
    d = distances(x)
    n = len(x)
    medoids = first_of_largest(w, m)
    for _ in range(iters):
        labels = [nearest(d[i], medoids) for i in range(n)]
        updated = []
        for cluster in range(m):
            inside = [i for i in range(n) if labels[i] == cluster]
            if not inside:
                updated.append(medoids[cluster] if variant == "weighted" else 0)
            elif variant == "weighted":
                updated.append(min(inside, key=lambda i: (sum(w[j] * d[i][j] for j in inside), i)))
            else:
                updated.append(min(inside, key=lambda i: (w[i] * sum(d[i]), i)))
        medoids = updated
    return Clusters(medoids, [nearest(d[i], medoids) for i in range(n)])


# --- inputs for the comparisons ---------------------------------------------------------------------------------------


def random_rows(kind: str, n: int, width: int, seed: int) -> Matrix:
    """`random`: normal rows; `smooth`: neighbours in the list resemble each other; `tied`: few small integers."""
    rng = np.random.default_rng(seed)
    if kind == "tied":
        return rng.integers(0, 3, (n, width)).astype(np.float64)
    rows = rng.standard_normal((n, width))
    return np.cumsum(rows, axis=0) / 3 if kind == "smooth" else rows


def random_partition(grid: tuple[int, int], merges: int, seed: int, pair: str = "edge") -> list[set[int]]:
    """Cells of the tokens, ordered by key, after some random merges on the grid (`row`: along rows only)."""
    rng = np.random.default_rng(seed)
    n = grid[0] * grid[1]
    tokens = start([{i} for i in range(n)], np.zeros((n, 1)))
    for _ in range(merges):
        pairs = row_pairs(tokens, grid[1], "sliding") if pair == "row" else adjacent_pairs(tokens, grid[1], 4)
        i, j = pairs[rng.integers(len(pairs))]
        merge_one(tokens, i, j, "plain")
    return [set(token.cells) for token in tokens]


def cell_labels(cells: Sequence[set[int]]) -> list[int]:
    owner = {cell: i for i, group in enumerate(cells) for cell in group}
    return [owner[cell] for cell in range(len(owner))]


def rows_of(tensor: Any) -> Iterator[Matrix]:
    """The images of a batch as numpy float64."""
    for image in tensor:
        yield image.detach().double().numpy()
