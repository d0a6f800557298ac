"""DHTM: the golden cases D1 to D6 of the specification, and a naive reference on random, smooth and tied inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import references as ref
import torch
from torch import Tensor

from tokenmerge_bench.assignment import HardAssignment
from tokenmerge_bench.contraction import contract_most_similar, pair_similarity
from tokenmerge_bench.contraction import describe as described
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.grid import OFFSETS, cell_edges, token_edges
from tokenmerge_bench.methods.dhtm import Dhtm, DhtmOptions
from tokenmerge_bench.paths import path_for, use_path
from tokenmerge_bench.tokens import Tokens

CPU = torch.device("cpu")
COMPILED = pytest.mark.skipif(path_for(CPU) != "numba", reason="numba is not installed")
D1 = [[8, 8], [6, 1], [3, 6], [8, 2], [9, 4], [0, 1]]
D2 = [[5, 6, 1], [5, 1, 4], [3, 3, 2], [3, 0, 0]]


@pytest.fixture(params=["torch", pytest.param("numba", marks=COMPILED)], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on both paths of the CPU."""
    with use_path(request.param):
        yield request.param


def image(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)[None]


def groups(labels: Tensor) -> list[set[int]]:
    return [set((labels == m).nonzero().flatten().tolist()) for m in range(int(labels.max()) + 1)]


def reduce(x: Tensor, grid: tuple[int, int], k: int, cells: Tensor | None = None, **options: Any) -> HardAssignment:
    tokens = Tokens.of(x, grid, cells=cells)
    assignment = Dhtm(DhtmOptions(**options)).assign(tokens, x.shape[1] - k)
    assert isinstance(assignment, HardAssignment)
    return assignment


def check(
    x: Tensor, grid: tuple[int, int], k: int, expected: dict[tuple[int, ...], list[float]], **options: Any
) -> None:
    assignment = reduce(x, grid, k, **options)
    assert groups(assignment.labels[0]) == [set(cells) for cells in expected]
    want = torch.tensor(list(expected.values()), dtype=torch.float64)
    torch.testing.assert_close(assignment.merge(x)[0], want, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, {(0,): [8, 8], (1, 3): [7, 1.5], (2,): [3, 6], (4,): [9, 4], (5,): [0, 1]}),
        (2, {(0,): [8, 8], (1, 3, 4): [8, 2.75], (2,): [3, 6], (5,): [0, 1]}),
        (3, {(0, 1, 3, 4): [8, 5.375], (2,): [3, 6], (5,): [0, 1]}),
        (4, {(0, 1, 3, 4): [8, 5.375], (2, 5): [1.5, 3.5]}),
        (5, {(0, 1, 2, 3, 4, 5): [4.75, 4.4375]}),
    ],
)
def test_d1_a_and_d_plain_average_8_connected(k: int, expected: dict[tuple[int, ...], list[float]]) -> None:
    check(image(D1), (2, 3), k, expected, averaging="plain")


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, {(0,): [8, 8], (1, 3): [7, 1.5], (2,): [3, 6], (4,): [9, 4], (5,): [0, 1]}),
        (2, {(0,): [8, 8], (1, 3, 4): [23 / 3, 7 / 3], (2,): [3, 6], (5,): [0, 1]}),
        (3, {(0,): [8, 8], (1, 3, 4): [7.666667, 2.333333], (2, 5): [1.5, 3.5]}),
    ],
)
def test_d1_b_size_weighted_8_connected(k: int, expected: dict[tuple[int, ...], list[float]]) -> None:
    check(image(D1), (2, 3), k, expected, averaging="size")


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, {(0,): [8, 8], (1,): [6, 1], (2,): [3, 6], (3, 4): [8.5, 3], (5,): [0, 1]}),
        (2, {(0,): [8, 8], (1, 3, 4): [7.25, 2], (2,): [3, 6], (5,): [0, 1]}),
        (3, {(0,): [8, 8], (1, 3, 4): [7.25, 2], (2, 5): [1.5, 3.5]}),
    ],
)
def test_d1_c_plain_4_connected(k: int, expected: dict[tuple[int, ...], list[float]]) -> None:
    check(image(D1), (2, 3), k, expected, averaging="plain", connectivity=4)


def test_d1_c_size_weighted_4_connected() -> None:
    expected = {(0,): [8.0, 8.0], (1, 3, 4): [7.666667, 2.333333], (2, 5): [1.5, 3.5]}
    check(image(D1), (2, 3), 3, expected, averaging="size", connectivity=4)


@pytest.mark.parametrize(
    ("similarity", "pair", "merged", "feature"),
    [
        ("euclidean", {1, 3}, (1, 3, 4), [8, 2.75]),
        ("manhattan", {1, 3}, (1, 3, 4), [8, 2.75]),
        ("kl", {1, 4}, (1, 3, 4), [7.75, 2.25]),
    ],
)
def test_d1_e_other_similarities(
    similarity: str, pair: set[int], merged: tuple[int, ...], feature: list[float]
) -> None:
    assert pair in groups(reduce(image(D1), (2, 3), 1, averaging="plain", similarity=similarity).labels[0])
    expected = {(0,): [8.0, 8.0], merged: feature, (2,): [3.0, 6.0], (5,): [0.0, 1.0]}
    check(image(D1), (2, 3), 2, expected, averaging="plain", similarity=similarity)


def contract(x: Tensor, grid: tuple[int, int], steps: int, connectivity: int = 8, **options: Any) -> list[set[int]]:
    cells = torch.arange(x.shape[1]).expand(x.shape[:2])
    edges = token_edges(cells, cell_edges(grid, OFFSETS[connectivity], CPU))
    sizes = torch.ones(x.shape[:2], dtype=x.dtype)
    return groups(contract_most_similar(x, sizes, edges, steps, **options).labels()[0])


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0.99, [{0}, {1, 3}, {2}, {4}, {5}]),
        (0.95, [{0}, {1, 3, 4}, {2}, {5}]),
        (0.9, [{0}, {1, 3, 4}, {2}, {5}]),
        (1.0, [{0}, {1}, {2}, {3}, {4}, {5}]),
    ],
)
def test_d1_f_threshold(tau: float, expected: list[set[int]]) -> None:
    assert contract(image(D1), (2, 3), 5, averaging="plain", threshold=tau) == expected


@pytest.mark.parametrize(
    ("connectivity", "averaging", "scores"),
    [
        (8, "plain", [0.996815, 0.978625, 0.898568, 0.894427, 0.839570]),
        (8, "size", [0.996815, 0.978625, 0.894427]),
        (4, "plain", [0.985030, 0.984875, 0.894427]),
    ],
)
def test_d1_scores_of_the_merges(connectivity: int, averaging: str, scores: list[float]) -> None:
    # A merge of score s happens under a threshold just below s and not under one just above it.
    for merges, score in enumerate(scores, start=1):
        for tau, left in ((score - 1e-6, 6 - merges), (score + 1e-6, 7 - merges)):
            assert len(contract(image(D1), (2, 3), 5, connectivity, averaging=averaging, threshold=tau)) == left


@pytest.mark.parametrize(
    ("similarity", "scores"),
    [("euclidean", [-2.236068, -3.201562]), ("manhattan", [-3, -4.5]), ("kl", [0, -0.002110])],
)
def test_d1_e_scores_of_the_merges(similarity: str, scores: list[float]) -> None:
    for merges, score in enumerate(scores, start=1):
        for tau, left in ((score - 1e-6, 6 - merges), (score + 1e-6, 7 - merges)):
            found = contract(image(D1), (2, 3), 5, averaging="plain", similarity=similarity, threshold=tau)
            assert len(found) == left


def scores_between(x: Tensor, similarity: Any, pairs: list[tuple[int, int]]) -> Tensor:
    rows = described(x, similarity)
    low, high = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
    return pair_similarity(rows[:, low], rows[:, high], similarity)[0]


def test_d1_initial_scores() -> None:
    printed = {
        (0, 1): 0.813733, (0, 3): 0.857493, (0, 4): 0.933346, (1, 2): 0.588172, (1, 3): 0.996815, (1, 4): 0.968147,
        (1, 5): 0.164399, (2, 4): 0.771930, (2, 5): 0.894427, (3, 4): 0.985030, (4, 5): 0.406138,
    }  # fmt: skip
    assert sorted(map(tuple, cell_edges((2, 3), OFFSETS[8], CPU).tolist())) == sorted(printed)
    found = scores_between(image(D1), "cosine", list(printed))
    torch.testing.assert_close(found, torch.tensor(list(printed.values())).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("similarity", "pair", "score"),
    [
        ("cosine", (0, 2), 0.947678),
        ("euclidean", (1, 2), -3.464102),
        ("manhattan", (2, 3), -5.0),
        ("kl", (1, 3), -0.236142),
        ("kl_forward", (0, 2), -0.256589),
    ],
)
def test_d2_five_measures_choose_their_pair(similarity: str, pair: tuple[int, int], score: float) -> None:
    assert set(pair) in groups(reduce(image(D2), (2, 2), 1, similarity=similarity).labels[0])
    assert scores_between(image(D2), similarity, [pair]).item() == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("similarity", "printed"),
    [
        ("kl", [-2.176385, -0.378269, -1.384582, -0.818212, -0.236142, -0.675644]),
        ("kl_forward", [-2.631058, -0.256589, -1.681746, -0.482581, -0.285923, -0.810609]),
    ],
)
def test_d2_divergences_of_all_pairs(similarity: str, printed: list[float]) -> None:
    found = scores_between(image(D2), similarity, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    torch.testing.assert_close(found, torch.tensor(printed).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("averaging", "row"), [("plain", [2, 3.05]), ("size", [2, 3.033333])])
def test_d4_adjacency_persists_through_cells_of_earlier_merges(averaging: str, row: list[float]) -> None:
    x = image([[1, 0], [0, 1], [-1, 0], [2, 3], [2, 3.1]])
    cells = torch.tensor([[0, 1, 2, 3, 3, 4]])
    assignment = reduce(x, (2, 3), 1, cells=cells, connectivity=4, averaging=averaging)
    assert groups(assignment.labels[0]) == [{0}, {1}, {2}, {3, 4}]
    torch.testing.assert_close(assignment.merge(x)[0, 3], torch.tensor(row).double(), atol=2e-6, rtol=0)
    assert scores_between(x, "cosine", [(3, 4)]).item() == pytest.approx(0.999887, abs=1e-6)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("averaging", ["plain", "size"])
def test_d5_ties_go_to_the_lexicographically_smallest_pair(connectivity: int, averaging: str) -> None:
    x = image([[1, 2]] * 6)
    check(
        x, (2, 3), 3, {(0, 1, 2, 3): [1, 2], (4,): [1, 2], (5,): [1, 2]}, connectivity=connectivity, averaging=averaging
    )


def test_d6_scores_can_rise_after_a_merge() -> None:
    x = image([[0, 1], [1, 1], [1, 5]])
    check(x, (1, 3), 1, {(0,): [0, 1], (1, 2): [1, 3]}, averaging="plain")
    check(x, (1, 3), 2, {(0, 1, 2): [0.5, 2]}, averaging="plain")
    assert contract(x, (1, 3), 2, averaging="plain", threshold=0.83) == [{0, 1, 2}]
    assert contract(x, (1, 3), 2, averaging="plain", threshold=0.9) == [{0}, {1}, {2}]
    found = scores_between(torch.cat([x, image([[1, 3]])], 1), "cosine", [(0, 1), (1, 2), (0, 3)])
    torch.testing.assert_close(found, torch.tensor([0.707107, 0.832050, 0.948683]).double(), atol=1e-6, rtol=0)


GRIDS = [((4, 4), 0), ((3, 5), 4), ((1, 8), 2), ((6, 2), 3), ((3, 4), 0)]


def compare(kind: str, grid: tuple[int, int], merged: int, share: float, seed: int, **options: Any) -> None:
    """Two images with different histories in one batch, against the reference on each alone."""
    histories = [ref.random_partition(grid, merged, seed + i) for i in range(2)]
    x = np.stack([ref.random_rows(kind, len(h), 3, seed + 7 * i) for i, h in enumerate(histories)])
    k = int(share * (x.shape[1] - 1))
    cells = torch.tensor([ref.cell_labels(h) for h in histories])
    assignment = reduce(torch.from_numpy(x), grid, k, cells=cells, **options)
    out = assignment.merge(torch.from_numpy(x)).numpy()
    for i, history in enumerate(histories):
        expected = ref.dhtm(ref.start(history, x[i]), grid[1], k, **options)
        assert assignment.labels[i].tolist() == expected.labels(x.shape[1])
        np.testing.assert_allclose(out[i], expected.values, atol=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "manhattan", "kl", "kl_forward"])
@pytest.mark.parametrize("connectivity", [4, 8, "any"])
@pytest.mark.parametrize("averaging", ["size", "plain"])
@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_equals_the_naive_reference(similarity: str, connectivity: int | str, averaging: str, kind: str) -> None:
    for seed, (grid, merged) in enumerate(GRIDS):
        options = {"similarity": similarity, "connectivity": connectivity, "averaging": averaging}
        compare(kind, grid, merged, 0.7 if seed % 2 else 1.0, seed, **options)


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
@pytest.mark.parametrize("connectivity", [4, 8, "any"])
def test_equals_the_naive_reference_where_many_scores_tie(similarity: str, connectivity: int | str) -> None:
    # Small integers and halving keep every score exact, so that ties are ties in both.
    for seed, (grid, merged) in enumerate(GRIDS * 3):
        options = {"similarity": similarity, "connectivity": connectivity, "averaging": "plain"}
        compare("tied", grid, merged, 0.8, seed, **options)


@pytest.mark.parametrize("feature", ["keys", "attn_out"])
@pytest.mark.parametrize("averaging", ["size", "plain"])
def test_a_separate_compared_feature_is_averaged_along(feature: str, averaging: str) -> None:
    grid, k = (3, 4), 8
    history = ref.random_partition(grid, 2, 5)
    x, other = ref.random_rows("random", 10, 6, 1), ref.random_rows("random", 10, 6, 2)
    handed: dict[str, Any] = {"attn_out": torch.from_numpy(other)[None]}
    if feature == "keys":  # the mean over two heads
        offset = torch.from_numpy(ref.random_rows("random", 10, 6, 3))[None]
        handed = {"keys": torch.stack([handed["attn_out"] + offset, handed["attn_out"] - offset], 1)}
    tokens = Tokens.of(torch.from_numpy(x)[None], grid, cells=torch.tensor([ref.cell_labels(history)]), **handed)
    assignment = Dhtm(DhtmOptions(feature=feature, averaging=averaging)).assign(tokens, 10 - k)  # type: ignore[arg-type]
    expected = ref.dhtm(ref.start(history, x, other), grid[1], k, averaging=averaging)
    assert assignment.owner()[0].tolist() == expected.labels(10)
    np.testing.assert_allclose(assignment.merge(torch.from_numpy(x)[None])[0].numpy(), expected.values, atol=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "kl_forward"])
def test_threshold_equals_the_naive_reference_image_by_image(similarity: Any) -> None:
    grid = (4, 4)
    x = np.stack([ref.random_rows("smooth", 16, 3, seed) for seed in range(6)])
    cells = torch.arange(16).expand(6, 16)
    edges = token_edges(cells, cell_edges(grid, OFFSETS[8], CPU))
    first = [ref.dhtm(ref.start([{c} for c in range(16)], rows), 4, 8, similarity=similarity).scores for rows in x]
    tau = sorted(score for scores in first for score in scores)[20] + 1e-9
    merges = contract_most_similar(
        torch.from_numpy(x), torch.ones(6, 16).double(), edges, 12, similarity, threshold=tau
    )
    lengths = set()
    for i, rows in enumerate(x):
        expected = ref.dhtm(ref.start([{c} for c in range(16)], rows), 4, 12, similarity=similarity, threshold=tau)
        assert merges.labels()[i].tolist() == expected.labels(16)
        lengths.add(len(expected.tokens))
    assert len(lengths) > 1  # images of one batch stop at different counts


def test_merging_does_not_write_into_its_input() -> None:
    for dtype in (torch.float32, torch.float64):
        for similarity in ("cosine", "euclidean"):
            x = torch.randn(2, 12, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
            before = x.clone()
            reduce(x, (3, 4), 9, similarity=similarity)
            assert torch.equal(x, before)


def test_size_weighted_sum_of_features_is_conserved() -> None:
    grid = (4, 5)
    history = ref.random_partition(grid, 5, 3)
    x = torch.from_numpy(ref.random_rows("random", 15, 4, 0))[None]
    tokens = Tokens.of(x, grid, cells=torch.tensor([ref.cell_labels(history)]))
    assignment = Dhtm().assign(tokens, 4)
    before = (tokens.sizes[..., None] * x).sum(1)
    after = (assignment.merge_sizes(tokens.sizes)[..., None] * assignment.merge(x)).sum(1)
    torch.testing.assert_close(after, before)


def test_flipping_or_transposing_the_grid_flips_the_result() -> None:
    rows, columns, k = 3, 5, 9
    x = torch.from_numpy(ref.random_rows("random", 15, 4, 11))[None]
    plane = torch.arange(15).reshape(rows, columns)
    straight = {frozenset(group) for group in groups(reduce(x, (rows, columns), k).labels[0])}
    for turned in (plane.flip(0), plane.flip(1), plane.T):
        order = turned.reshape(-1)
        labels = reduce(x[:, order], (turned.shape[0], turned.shape[1]), k).labels[0]
        found = {frozenset(order[list(group)].tolist()) for group in groups(labels)}
        assert found == straight


def test_no_merge_is_the_identity_to_the_last_bit() -> None:
    x = torch.randn(2, 6, 3)
    assert torch.equal(reduce(x, (2, 3), 0).merge(x), x)


def test_a_zero_vector_is_similar_to_nothing() -> None:
    x = image([[0, 0], [1, 0], [-1, 0.1]])
    assert scores_between(x, "cosine", [(0, 1)]).item() == 0
    assert groups(reduce(x, (1, 3), 1).labels[0]) == [{0, 1}, {2}]


def test_kl_ignores_a_constant_added_to_all_channels() -> None:
    x = torch.from_numpy(ref.random_rows("random", 12, 4, 2))[None]
    shifted = x + torch.arange(12).double()[None, :, None]
    for similarity in ("kl", "kl_forward"):
        plain, moved = (reduce(rows, (3, 4), 1, similarity=similarity) for rows in (x, shifted))
        assert torch.equal(plain.labels, moved.labels)


@pytest.mark.parametrize("feature", ["keys", "attn_out"])
def test_features_of_attention_do_not_exist_before_the_block(feature: Any) -> None:
    with pytest.raises(InputError, match=f"feature={feature}.*position=mid"):
        Dhtm(DhtmOptions(feature=feature, position="pre"))


@pytest.mark.parametrize("steps", [5, 6, 9])
def test_d1_d_more_merges_than_there_are_pairs_leave_one_token(steps: int) -> None:
    assert contract(image(D1), (2, 3), steps, averaging="plain") == [set(range(6))]


@pytest.mark.parametrize(("tau", "left"), [(-3.0, 5), (-4.5, 4)])
def test_a_score_equal_to_the_threshold_merges(tau: float, left: int) -> None:
    # Manhattan distances of whole numbers are exact: the merges of D1 score -3 and -4.5.
    assert len(contract(image(D1), (2, 3), 5, averaging="plain", similarity="manhattan", threshold=tau)) == left


def test_macs_without_spatial_constraint_count_every_pair() -> None:
    """Norms and 196 * 195 / 2 scores; then for each of 3 merges its mean, its norm and scores with 194, 193, 192."""
    reducer = Dhtm(DhtmOptions(connectivity="any"))
    pairs = 196 * 195 // 2
    assert reducer.macs(196, 193, 10) == 10 * (196 + pairs + 3 * (1 + 1) + 194 + 193 + 192)


@pytest.mark.parametrize("options", [{}, {"averaging": "plain", "connectivity": 4}, {"connectivity": "any"}], ids=str)
def test_one_run_serves_all_numbers_of_tokens(options: dict[str, Any]) -> None:
    x = torch.randn(3, 30, 8, generator=torch.Generator().manual_seed(0))
    tokens, method = Tokens.of(x, (5, 6)), Dhtm(DhtmOptions(**options))
    n_outs = [20, 30, 29, 7, 1, 20]
    for n_out, shared in zip(n_outs, method.assign_each(tokens, n_outs), strict=True):
        alone = method.assign(tokens, n_out)
        assert isinstance(alone, HardAssignment)
        assert isinstance(shared, HardAssignment)
        assert shared.n_out == n_out
        assert torch.equal(shared.labels, alone.labels)
        assert torch.equal(shared.merge(x), alone.merge(x))


def test_few_merges_are_a_prefix_of_many() -> None:
    x = torch.randn(4, 196, 12, generator=torch.Generator().manual_seed(1))
    edges = cell_edges((14, 14), OFFSETS[8], CPU).expand(4, -1, -1)
    few, many = (contract_most_similar(x, torch.ones(4, 196), edges, k).pairs for k in (10, 56))
    assert torch.equal(few, many[:, :10])
