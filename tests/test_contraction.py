"""Greedy contraction on every path: a float64 restatement, certificates for float32, exact ties, and odd inputs.

A *certificate* replays what a path merged in float64 and asks, at every step, whether the pair it took scores as high
as the best one within what rounding can explain. In float64, and where scores tie exactly, the pairs themselves agree.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tokenmerge_bench import paths
from tokenmerge_bench.contraction import Averaging, Merges, Similarity, contract_most_similar
from tokenmerge_bench.grid import OFFSETS, all_pairs, cell_edges, token_edges
from tokenmerge_bench.methods.random import Pair, contract_at_random
from tokenmerge_bench.paths import use_path
from tokenmerge_bench.randomness import uniforms

Array = npt.NDArray[np.float64]
CPU = torch.device("cpu")
CUDA = pytest.param("triton", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
NUMBA = pytest.param("numba", marks=pytest.mark.skipif(not paths._installed("numba"), reason="numba is not installed"))
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)


@pytest.fixture(params=["torch", NUMBA, CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Runs the test on one path and gives its device."""
    with use_path(request.param):
        yield torch.device("cuda" if request.param == "triton" else "cpu")


# --- the restatement --------------------------------------------------------------------------------------------------


class Replay:
    """The state of a batch of images while pairs are merged: all scores between adjacent tokens, in float64.

    `error` bounds how far the features of a path may be from ours: each merge adds three roundings of unit `u` to the
    weighted mean of the norms of what was merged (`mass`), which may be much longer than the mean itself.
    """

    def __init__(
        self, x: Tensor, sizes: Tensor, edges: Tensor, similarity: Similarity, averaging: str, unit: float = 0
    ) -> None:
        self.x, self.similarity, self.unit = x.double().numpy().copy(), similarity, unit
        self.by_size = averaging == "size"
        batch, n, _ = x.shape
        self.images = np.arange(batch)
        self.weights = sizes.double().numpy().copy() if self.by_size else np.ones((batch, n))
        self.touching = np.zeros((batch, n, n), dtype=bool)
        low, high = edges.numpy()[..., 0], edges.numpy()[..., 1]
        self.touching[self.images[:, None], low, high] = low != high
        self.touching |= self.touching.transpose(0, 2, 1)
        self.mass = np.linalg.norm(self.x, axis=-1)
        self.error = np.zeros((batch, n))
        self.described = describe(self.x, similarity)
        everything = self._similarity(self.described[:, :, None], self.described[:, None])
        self.scores = np.where(np.triu(self.touching), everything, -np.inf)  # [image, low, high]
        self.slack = self._slack(np.zeros_like(self.scores), self.scores)

    def _similarity(self, a: Array, b: Array) -> Array:
        """Similarity of rows; `a` are those of the lower slots."""
        gap = a - b
        if self.similarity == "cosine":
            return np.asarray((a * b).sum(-1))
        if self.similarity == "euclidean":
            return np.asarray(-np.sqrt((gap * gap).sum(-1)))
        if self.similarity == "manhattan":
            return np.asarray(-np.abs(gap).sum(-1))
        if self.similarity == "kl":
            return np.asarray(-((np.exp(a) - np.exp(b)) * gap).sum(-1) / 2)
        return np.asarray(-(np.exp(a) * gap).sum(-1))

    def _slack(self, error: Array, scores: Array) -> Array:
        """How far a path's scores may be from ours where the errors of the two tokens add up to `error`.

        For the cosine these are errors relative to the norms. A sum of C terms is granted 32 roundings.
        """
        if self.similarity == "cosine":
            return np.asarray(error + 32 * self.unit)
        if self.similarity in ("euclidean", "manhattan"):
            factor = self.x.shape[2] ** 0.5 if self.similarity == "manhattan" else 1.0
            return np.asarray(factor * error + 32 * self.unit * np.where(np.isfinite(scores), -scores, 0))
        spread = np.abs(self.described).max(axis=(1, 2)).reshape(-1, *[1] * (scores.ndim - 1))
        return np.asarray((2 * error + 4 * self.unit * (1 + spread)) * (2 + spread))

    def _score(self, i: npt.NDArray[np.int64], active: npt.NDArray[np.bool_]) -> None:
        """Scores token i of each active image with its neighbours."""
        mine, slots = self.described[self.images, i][:, None], np.arange(self.x.shape[1])
        scores = self._similarity(mine, self.described)
        if self.similarity == "kl_forward":
            scores = np.where(slots < i[:, None], self._similarity(self.described, mine), scores)
        scores = np.where(self.touching[self.images, i], scores, -np.inf)
        error = self.error
        if self.similarity == "cosine":
            error = error / np.maximum(np.linalg.norm(self.x, axis=-1), 1e-300)
        slack = self._slack(error + error[self.images, i][:, None], scores)
        low, high = np.minimum(slots, i[:, None])[active], np.maximum(slots, i[:, None])[active]
        images = self.images[active][:, None]
        self.scores[images, low, high] = scores[active]
        self.slack[images, low, high] = slack[active]

    def best(self) -> tuple[Array, npt.NDArray[np.int64]]:
        """The highest score of each image, and the lexicographically smallest pair that has it."""
        batch, n = self.weights.shape
        flat = self.scores.reshape(batch, -1)
        code = flat.argmax(1)
        return flat[self.images, code], np.stack([code // n, code % n], 1)

    def merge(self, pairs: npt.NDArray[np.int64]) -> None:
        """Merges one pair in each image, but for those where it is -1."""
        active = pairs[:, 0] >= 0
        images, i, j = self.images[active], pairs[active, 0], pairs[active, 1]
        w_i, w_j = self.weights[images, i], self.weights[images, j]
        a, b = self.x[images, i], self.x[images, j]
        mixed = (w_i[:, None] * a + w_j[:, None] * b) / (w_i + w_j)[:, None]
        self.x[images, i] = np.where(a == b, a, mixed)
        self.mass[images, i] = (w_i * self.mass[images, i] + w_j * self.mass[images, j]) / (w_i + w_j)
        error = (w_i * self.error[images, i] + w_j * self.error[images, j]) / (w_i + w_j)
        self.error[images, i] = error + 3 * self.unit * self.mass[images, i]
        if self.by_size:
            self.weights[images, i] = w_i + w_j
        union = self.touching[images, i] | self.touching[images, j]
        union[np.arange(len(i)), i] = union[np.arange(len(i)), j] = False
        self.touching[images, j] = self.touching[images, :, j] = False
        self.touching[images, i] = self.touching[images, :, i] = union
        self.scores[images, j] = self.scores[images, :, j] = -np.inf
        self.described[images, i] = describe(self.x[images, i], self.similarity)
        self._score(np.where(active, pairs[:, 0], 0), active)


def describe(x: Array, similarity: Similarity) -> Array:
    if similarity == "cosine":
        return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))
    if similarity in ("kl", "kl_forward"):
        shifted = x - x.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
    return x


def greedy(
    x: Tensor, sizes: Tensor, edges: Tensor, steps: int, similarity: Similarity, averaging: str, threshold: Any = None
) -> Tensor:
    """The pairs that are merged, in float64."""
    state = Replay(x, sizes, edges, similarity, averaging)
    pairs = np.full((len(x), steps, 2), -1)
    for step in range(steps):
        score, pair = state.best()
        active = (score > -np.inf) & (score >= (-np.inf if threshold is None else threshold))
        pairs[:, step] = np.where(active[:, None], pair, -1)
        state.merge(pairs[:, step])
    return torch.from_numpy(pairs)


def certify(
    pairs: Tensor, x: Tensor, sizes: Tensor, edges: Tensor, similarity: Similarity, averaging: str, unit: float
) -> Array:
    """Asserts that every pair was among the best when it was merged; returns the slack that was granted."""
    state = Replay(x, sizes, edges, similarity, averaging, unit)
    images, slacks = np.arange(len(x)), []
    for step in range(pairs.shape[1]):
        pair = pairs[:, step].numpy()
        assert (pair[:, 0] < pair[:, 1]).all()
        assert state.touching[images, pair[:, 0], pair[:, 1]].all(), "tokens that do not touch were merged"
        taken, slack = (m[images, pair[:, 0], pair[:, 1]] for m in (state.scores, state.slack))
        others = (state.scores - state.slack).reshape(len(x), -1).max(1)
        assert (taken + slack >= others).all(), f"step {step}: {np.max(others - taken - slack)} too low"
        slacks.append(slack)
        state.merge(pair)
    return np.stack(slacks)


# --- inputs -----------------------------------------------------------------------------------------------------------

Kind = Literal["random", "smooth", "tied", "duplicates", "offset", "mirrored"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GRIDS = [((1, 9), 2), ((9, 1), 0), ((2, 2), 0), ((3, 4), 3), ((5, 5), 0), ((4, 6), 9)]
"""Grids, and how many merges have happened in earlier layers."""


def rows(kind: Kind, grid: tuple[int, int], width: int, seed: int) -> Tensor:
    """Features of the cells of one image, (N0, width), representable in float32."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*grid, width, generator=g)
    if kind == "smooth":
        x = x.cumsum(0).cumsum(1) / 4
    elif kind == "tied":
        x = torch.randint(0, 3, (*grid, width), generator=g).float()
    elif kind == "duplicates":
        x = x.reshape(-1, width)[torch.randint(0, 4, (grid[0] * grid[1],), generator=g)]
        x[torch.rand(len(x), generator=g) < 0.1] = 0
    elif kind == "offset":  # as in a transformer: channels with a large mean, small differences between tokens
        x = x * 0.05 + 3 * torch.randn(width, generator=g)
    elif kind == "mirrored":
        x = torch.minimum(x, x.flip(1))
    return x.reshape(-1, width)


def state(
    grid: tuple[int, int], merged: int, kinds: list[Kind], connectivity: int | str, seed: int, width: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, sizes and edges of a batch whose images have merged different tokens in earlier layers."""
    images, n0 = len(kinds), grid[0] * grid[1]
    cells = torch.arange(n0).expand(images, n0)
    ones = torch.ones(images, n0)
    with use_path("torch"):
        edges = token_edges(cells, cell_edges(grid, OFFSETS[4], CPU))
        draws = uniforms(seed, torch.arange(images), 0, 2 * merged).reshape(images, merged, 2)
        source = contract_at_random(edges, ones, draws).assignment(n0 - merged)
        x = source.merge(torch.stack([rows(kind, grid, width, seed + 31 * i) for i, kind in enumerate(kinds)]))
        if connectivity == "any":
            edges = all_pairs(n0 - merged, CPU).expand(images, -1, -1)
        else:
            edges = token_edges(source.labels, cell_edges(grid, OFFSETS[int(connectivity)], CPU))
        return x, source.merge_sizes(ones), edges


def pairs_of(device: torch.device, x: Tensor, sizes: Tensor, edges: Tensor, *arguments: Any, **named: Any) -> Tensor:
    x, sizes, edges = (t.to(device) for t in (x, sizes, edges))
    return contract_most_similar(x, sizes, edges, *arguments, **named).pairs.cpu()


# --- the same merges on every path ------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("averaging", ["size", "plain"])
@pytest.mark.parametrize("connectivity", [4, 8, "any"])
def test_every_merge_in_float32_has_a_certificate(
    similarity: Similarity, averaging: Any, connectivity: int | str, device: torch.device
) -> None:
    unit = torch.finfo(torch.float32).eps / 2
    for seed, (grid, merged) in enumerate(GRIDS):
        x, sizes, edges = state(grid, merged, [*KINDS] * 4, connectivity, seed)
        pairs = pairs_of(device, x, sizes, edges, x.shape[1] - 1, similarity, averaging)
        slack = certify(pairs, x, sizes, edges, similarity, averaging, unit)
        if similarity == "cosine":
            assert np.median(slack) < 4e-6


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("averaging", ["size", "plain"])
@pytest.mark.parametrize("connectivity", [4, 8, "any"])
def test_merges_in_float64_are_those_of_the_restatement(
    similarity: Similarity, averaging: Any, connectivity: int | str, device: torch.device
) -> None:
    kinds: list[Kind] = ["random", "smooth", "offset"] * 7
    for seed, (grid, merged) in enumerate(GRIDS):
        x, sizes, edges = state(grid, merged, kinds, connectivity, seed)
        steps = x.shape[1] - 1
        pairs = pairs_of(device, x.double(), sizes.double(), edges, steps, similarity, averaging)
        assert torch.equal(pairs, greedy(x, sizes, edges, steps, similarity, averaging))


@pytest.mark.parametrize("connectivity", [4, 8, "any"])
@pytest.mark.parametrize("kind", ["random", "smooth", "offset"])
def test_images_of_usual_size(kind: Kind, connectivity: int | str, device: torch.device) -> None:
    x, sizes, edges = state((14, 14), 40, [kind] * 2, connectivity, 3, width=192)
    unit = torch.finfo(torch.float32).eps / 2
    slack = certify(pairs_of(device, x, sizes, edges, 60), x, sizes, edges, "cosine", "size", unit)
    assert slack.max() < 4e-5


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_thresholds(similarity: Similarity, connectivity: int, device: torch.device) -> None:
    for seed, (grid, merged) in enumerate(GRIDS[2:]):
        x, sizes, edges = state(grid, merged, ["random", "smooth"] * 6, connectivity, seed)
        middle = float(np.median(Replay(x, sizes, edges, similarity, "size").best()[0]))
        pairs = pairs_of(device, x.double(), sizes.double(), edges, 9, similarity, threshold=middle + 1e-9)
        assert torch.equal(pairs, greedy(x, sizes, edges, 9, similarity, "size", middle + 1e-9))
        assert 0 < (pairs[:, 0, 0] < 0).sum() < len(x)  # some images stop at once and others do not


@pytest.mark.parametrize("pair", get_args(Pair))
def test_random_pairs_are_the_same(pair: Pair, device: torch.device) -> None:
    for seed, (grid, merged) in enumerate([*GRIDS, ((14, 14), 60)]):
        connectivity = "any" if pair == "any" else 8
        _, sizes, edges = state(grid, merged, ["random"] * 40, connectivity, seed)
        steps = sizes.shape[1] - 1
        draws = uniforms(seed, torch.arange(40), 0, 2 * steps).reshape(40, steps, 2)
        draws[0], draws[1] = 0, 1 - 2.0**-53
        found = contract_at_random(edges.to(device), sizes.to(device), draws.to(device), pair).pairs.cpu()
        with use_path("torch"):
            assert torch.equal(found, contract_at_random(edges, sizes, draws, pair).pairs)


# --- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
@pytest.mark.parametrize("connectivity", [4, 8, "any"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_of_small_integers(
    similarity: Similarity, connectivity: int | str, dtype: torch.dtype, device: torch.device
) -> None:
    # Halving keeps every feature and squared distance exact for a few merges, so ties are ties in any precision.
    for seed, (grid, _) in enumerate(GRIDS):
        x, sizes, edges = state(grid, 0, ["tied"] * 24, connectivity, seed, width=3)
        steps = min(6, x.shape[1] - 1)
        pairs = pairs_of(device, x.to(dtype), sizes, edges, steps, similarity, "plain")
        assert torch.equal(pairs, greedy(x, sizes, edges, steps, similarity, "plain"))


def tied_images(grid: tuple[int, int]) -> Tensor:
    """Constant images, two-coloured ones and stripes: scores tie whatever is computed."""
    r, c = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    patterns = [r * 0, (r + c) % 2, r % 2, c % 2, (r // 2 + c // 2) % 2, (c > grid[1] // 2).long()]
    colours = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]), torch.tensor([[0.3, -1.7, 2.9, 0], [0.3, -1.7, 2.9, 0]])
    return torch.stack([colour[pattern.reshape(-1)] for pattern in patterns for colour in colours])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("averaging", ["size", "plain"])
@pytest.mark.parametrize("connectivity", [4, 8, "any"])
def test_ties_of_equal_tokens(
    similarity: Similarity, averaging: Any, connectivity: int | str, device: torch.device
) -> None:
    for grid in [(1, 9), (4, 4), (3, 5)]:
        x = tied_images(grid)
        _, sizes, edges = state(grid, 0, ["random"] * len(x), connectivity, 0)
        # So few merges that no two tokens come to be equal but for rounding.
        steps = grid[0] * grid[1] // 4
        for dtype in (torch.float32, torch.float64):
            pairs = pairs_of(device, x.to(dtype), sizes, edges, steps, similarity, averaging)
            assert torch.equal(pairs, greedy(x, sizes, edges, steps, similarity, averaging))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_ties_of_mirrored_images(similarity: Similarity, connectivity: int, device: torch.device) -> None:
    for seed, grid in enumerate([(2, 7), (4, 5), (5, 5)]):  # odd widths: no two neighbours are equal
        x, sizes, edges = state(grid, 0, ["mirrored"] * 12, connectivity, seed)
        steps = x.shape[1] // 2
        pairs = pairs_of(device, x.double(), sizes, edges, steps, similarity)
        assert torch.equal(pairs, greedy(x, sizes, edges, steps, similarity, "size"))


# --- odd inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e19, 1e30, 3e38, torch.inf, torch.nan])
def test_whatever_an_image_holds_it_gets_valid_labels(
    similarity: Similarity, value: float, device: torch.device
) -> None:
    grid, steps = (4, 5), 12
    x, sizes, edges = state(grid, 0, ["random"] * 5, 8, 0)
    clean = pairs_of(device, x, sizes, edges, steps, similarity)
    spoilt = x.clone()
    spoilt[1] = value
    spoilt[2, ::3] = value
    spoilt[3] *= value
    pairs = pairs_of(device, spoilt, sizes, edges, steps, similarity)
    assert torch.equal(pairs[[0, 4]], clean[[0, 4]])
    for labels in Merges(pairs.to(device), sizes.to(device), "size").labels():
        assert labels.unique().tolist() == list(range(20 - steps))


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1e5, 1e15])
def test_the_cosine_does_not_depend_on_the_scale(scale: float, device: torch.device) -> None:
    x, sizes, edges = state((5, 5), 0, ["random", "smooth"] * 3, 8, 1)
    assert torch.equal(pairs_of(device, x * scale, sizes, edges, 20), pairs_of(device, x, sizes, edges, 20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", ["torch", NUMBA])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype, path: Any) -> None:
    x, sizes, edges = state((5, 5), 0, ["random", "smooth"] * 3, 8, 1)
    with use_path(path):
        half, full = (pairs_of(CPU, rows, sizes, edges, 20) for rows in (x.to(dtype), x.to(dtype).float()))
    assert torch.equal(half, full)


def test_nothing_to_merge(device: torch.device) -> None:
    x, sizes, edges = state((1, 1), 0, ["random"] * 2, 8, 0)
    assert pairs_of(device, x, sizes, edges, 2).tolist() == [[[-1, -1]] * 2] * 2
    x, sizes, edges = state((2, 2), 0, ["random"] * 2, 8, 0)
    assert pairs_of(device, x, sizes, edges, 0).shape == (2, 0, 2)
    more = pairs_of(device, x, sizes, edges, 5)
    assert (more[:, :3] >= 0).all()
    assert (more[:, 3:] == -1).all()
    assert pairs_of(device, x[:0], sizes[:0], edges[:0], 2).shape == (0, 2, 2)


def test_tokens_that_stand_apart_are_never_merged(device: torch.device) -> None:
    edges = torch.tensor([[[0, 1], [2, 3], [1, 1], [0, 1]]])
    pairs = pairs_of(device, torch.randn(1, 4, 3), torch.ones(1, 4), edges, 3)
    assert sorted(pairs[0].tolist()) == [[-1, -1], [0, 1], [2, 3]]


# --- independence -----------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("path", ["torch", NUMBA])
def test_merges_depend_on_the_image_alone(path: Any) -> None:
    x, sizes, edges = state((6, 6), 4, ["random", "smooth", "tied", "offset"] * 5, 8, 2)
    with use_path(path):
        together = pairs_of(CPU, x, sizes, edges, 25)
        assert torch.equal(pairs_of(CPU, x.flip(0), sizes.flip(0), edges.flip(0), 25).flip(0), together)
        for i in range(0, 20, 7):
            assert torch.equal(pairs_of(CPU, x[i : i + 1], sizes[i : i + 1], edges[i : i + 1], 25)[0], together[i])
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(pairs_of(CPU, x, sizes, edges, 25), together)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("path", [NUMBA])
def test_threads_and_forks_may_contract_at_the_same_time(path: Any) -> None:
    x, sizes, edges = state((6, 6), 0, ["random"] * 16, 8, 2)
    torch.set_num_threads(2)

    def run(_: int = 0) -> Tensor:
        with use_path(path):
            return pairs_of(CPU, x, sizes, edges, 25)

    expected = run()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(run, range(12)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks in a process with threads
        child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(run(), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("path", ["torch", NUMBA])
def test_slices_and_gradients_are_fine(path: Any) -> None:
    x, sizes, edges = state((4, 4), 0, ["random"] * 3, 8, 0)
    sequence = torch.cat([torch.zeros(3, 2, 6), x], 1).requires_grad_()
    channels_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    with use_path(path):
        expected = pairs_of(CPU, x, sizes, edges, 9)
        assert torch.equal(pairs_of(CPU, sequence[:, 2:], sizes, edges, 9), expected)
        assert torch.equal(pairs_of(CPU, channels_first, sizes, edges, 9), expected)


# --- merges as data ---------------------------------------------------------------------------------------------------


def test_any_prefix_is_an_assignment(device: torch.device) -> None:
    x, sizes, edges = state((4, 5), 4, ["random", "smooth"] * 3, 8, 5)
    n = x.shape[1]
    x, sizes, edges = (t.to(device) for t in (x, sizes, edges))
    averagings: tuple[Averaging, ...] = get_args(Averaging)
    for averaging in averagings:
        merges = contract_most_similar(x, sizes, edges, n - 1, averaging=averaging)
        for n_out in range(1, n + 1):
            assignment = merges.assignment(n_out)
            for image in range(len(x)):
                owner, share = list(range(n)), [1.0] * n
                for i, j in merges.pairs[image, : n - n_out].tolist():
                    share = [s / 2 if o in (i, j) else s for s, o in zip(share, owner, strict=True)]
                    owner = [i if o == j else o for o in owner]
                alive = sorted(set(owner))
                assert assignment.labels[image].tolist() == [alive.index(o) for o in owner]
                if averaging == "plain":
                    assert merges.shares(n - n_out)[image].tolist() == share
                    torch.testing.assert_close(assignment.coefficients[image].cpu(), torch.tensor(share))


def test_idle_steps_change_nothing(device: torch.device) -> None:
    pairs = torch.tensor([[[1, 3], [-1, -1], [0, 1], [-1, -1]], [[-1, -1]] * 4], device=device)
    merges = Merges(pairs, torch.ones(2, 5, device=device), "plain")
    assert merges.labels().tolist() == [[0, 0, 1, 0, 2], [0, 1, 2, 3, 4]]
    assert merges.shares().tolist() == [[0.5, 0.25, 1, 0.25, 1], [1] * 5]
    assert merges.labels(1).tolist() == [[0, 1, 2, 1, 3], [0, 1, 2, 3, 4]]
    assert merges.labels(0).tolist() == [[0, 1, 2, 3, 4]] * 2


# --- compiled merging -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not paths._installed("numba"), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compiled_sums_of_rows(dtype: torch.dtype) -> None:
    from tokenmerge_bench._numba import merge_rows

    x = torch.randn(5, 13, 7, generator=torch.Generator().manual_seed(0))
    x[0, 3], x[1, 5] = -0.0, torch.nan
    labels = torch.randint(0, 6, (5, 10), generator=torch.Generator().manual_seed(1))
    labels[:, 0] = 7  # alone, and no token has the label 6
    weights = torch.rand(5, 10, generator=torch.Generator().manual_seed(2)).masked_fill(labels == 7, 1)
    sequence = x.to(dtype)
    features = sequence[:, 3:]
    found = merge_rows(features, labels, weights, 8)
    precise = torch.promote_types(dtype, torch.float32)
    expected = torch.zeros(5, 8, 7, dtype=precise)
    for t in range(10):  # in ascending order
        rows = weights[:, t, None].to(precise) * features[:, t].to(precise)
        expected[torch.arange(5), labels[:, t]] += rows
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[:, 7].signbit(), features[:, 0].signbit())
    assert (found[:, 6] == 0).all()
    with_prefix = merge_rows(sequence, labels, weights, 8)
    torch.testing.assert_close(with_prefix, torch.cat([sequence[:, :3], found], 1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not paths._installed("numba"), reason="numba is not installed")
def test_code_is_compiled_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    from tokenmerge_bench import _numba

    real = numba.njit
    real(lambda a: a)(2)  # numba imports parts of itself, which it caches, when it compiles for the first time

    def njit(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert _numba._compiled(lambda a: a + 1)(2) == 3
