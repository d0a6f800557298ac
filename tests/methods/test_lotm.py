"""LoTM: the golden cases L1 to L3, and a naive reference on random, smooth and tied inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import references as ref
import torch
from torch import Tensor

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.methods.lotm import Lotm, LotmOptions
from tokenmerge_bench.paths import use_path
from tokenmerge_bench.tokens import Tokens

L1 = [[1, 0], [4, 1], [3, 1], [0, 2], [1, 3], [1, 5], [5, 5], [2, 0]]


def reduce(rows: Sequence[Sequence[float]], grid: tuple[int, int], k: int, **options: Any) -> Tensor:
    x = torch.tensor(rows, dtype=torch.float64)[None]
    return Lotm(LotmOptions(**options)).assign(Tokens.of(x, grid), len(rows) - k).merge(x)[0]


@pytest.mark.parametrize(
    ("window", "k", "rows"),
    [
        ("sliding", 1, [[1, 0], [3.5, 1], [0, 2], [1, 3], [1, 5], [5, 5], [2, 0]]),
        ("sliding", 2, [[1, 0], [3.5, 1], [0, 2], [1, 4], [5, 5], [2, 0]]),
        ("sliding", 3, [[1, 0], [3.5, 1], [0, 2], [1, 4], [3.5, 2.5]]),
        ("fixed", 1, [[1, 0], [4, 1], [3, 1], [0, 2], [1, 4], [5, 5], [2, 0]]),
        ("fixed", 2, [[2.5, 0.5], [3, 1], [0, 2], [1, 4], [5, 5], [2, 0]]),
        ("fixed", 3, [[2.5, 0.5], [3, 1], [0, 2], [1, 4], [3.5, 2.5]]),
    ],
)
@pytest.mark.parametrize("averaging", ["size", "plain"])
def test_l1(window: str, k: int, rows: list[list[float]], averaging: str) -> None:
    found = reduce(L1, (2, 4), k, window=window, averaging=averaging)
    torch.testing.assert_close(found, torch.tensor(rows).double(), atol=2e-6, rtol=0)


def test_l1_scores_rank_the_candidates() -> None:
    printed = {
        (1, 2): 0.997054,
        (4, 5): 0.992278,
        (0, 1): 0.970143,
        (5, 6): 0.832050,
        (6, 7): 0.707107,
        (2, 3): 0.316228,
    }
    rows = np.array(L1, dtype=np.float64)
    for (i, j), score in printed.items():
        assert ref.cosine(rows[i], rows[j]) == pytest.approx(score, abs=1e-6)
    assert ref.row_pairs(ref.start([{i} for i in range(8)], rows), 4, "sliding") == sorted(printed)


@pytest.mark.parametrize(
    ("k", "averaging", "rows"),
    [
        (1, "plain", [[1, 0], [1.5, 1]]),
        (2, "plain", [[1.25, 0.5]]),
        (2, "size", [[1.333333, 0.666667]]),
    ],
)
def test_l2_a_second_pass_ranks_the_merged_rows_anew(k: int, averaging: str, rows: list[list[float]]) -> None:
    found = reduce([[1, 0], [2, 1], [1, 1]], (1, 3), k, averaging=averaging)
    torch.testing.assert_close(found, torch.tensor(rows).double(), atol=2e-6, rtol=0)


def test_l3_rows_do_not_wrap() -> None:
    rows = [[1, 0], [1, 1], [1, 1], [0, 1]]
    assert reduce(rows, (2, 2), 1).tolist() == [[1, 0.5], [1, 1], [0, 1]]
    assert reduce(rows, (2, 2), 1, wrap=True).tolist() == [[1, 0], [1, 1], [0, 1]]


def compare(kind: str, grid: tuple[int, int], merged: int, k: int, seed: int, options: dict[str, Any]) -> None:
    wrap = options.get("wrap", False)
    shape = (1, grid[0] * grid[1]) if wrap else grid
    histories = [ref.random_partition(shape, merged, seed + i, "row") for i in range(3)]
    n = len(histories[0])
    x = np.stack([ref.random_rows(kind, n, 2, seed + 5 * i) for i in range(3)])
    if kind == "tied":
        x = np.eye(3)[x[:, :, 0].astype(int)]
    tokens = Tokens.of(torch.from_numpy(x), grid, cells=torch.tensor([ref.cell_labels(h) for h in histories]))
    assignment: Assignment = Lotm(LotmOptions(**options)).assign(tokens, n - k)
    out = assignment.merge(torch.from_numpy(x)).numpy()
    rest = {name: value for name, value in options.items() if name != "wrap"}
    for i, history in enumerate(histories):
        expected = ref.lotm(ref.start(history, x[i]), shape[1], k, **rest)
        assert assignment.owner()[i].tolist() == expected.labels(n)
        np.testing.assert_allclose(out[i], expected.values, atol=1e-12)


CASES = [((4, 5), 0), ((2, 9), 6), ((7, 3), 4), ((1, 12), 3), ((5, 1), 0)]
KINDS: list[dict[str, Any]] = [
    {},
    {"window": "fixed"},
    {"averaging": "plain"},
    {"window": "fixed", "averaging": "plain"},
    {"wrap": True},
    {"wrap": True, "window": "fixed"},
    {"iterative": True},
    {"iterative": True, "averaging": "plain"},
    {"iterative": True, "wrap": True},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_equals_the_naive_reference(kind: str, options: dict[str, Any]) -> None:
    for seed, (grid, merged) in enumerate(CASES):
        rows = 1 if options.get("wrap") else grid[0]
        most = grid[0] * grid[1] - merged - rows
        for k in sorted({0, min(1, most), most // 3, (2 * most) // 3, most}):
            compare(kind, grid, merged, k, seed, options)


@pytest.mark.parametrize("options", [{}, {"window": "fixed"}, {"wrap": True}, {"averaging": "plain"}], ids=str)
def test_equals_the_naive_reference_where_many_scores_tie(options: dict[str, Any]) -> None:
    # Unit vectors of three axes, and few enough merges for one pass: every score is exactly 0 or 1.
    for seed in range(4):
        compare("tied", (4, 6), 0, 6, seed, options)


@pytest.mark.parametrize("averaging", ["size", "plain"])
def test_fixed_windows_are_formed_anew_on_merged_rows(averaging: str) -> None:
    # Windows (0,1) and (2,3) first; then the two merged tokens are a window, though none of its cells were.
    found = reduce([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], (1, 4), 3, window="fixed", averaging=averaging)
    torch.testing.assert_close(found, torch.tensor([[0.525, 0.525]]).double())


def test_every_row_keeps_a_token_unless_rows_are_joined() -> None:
    assert Lotm().fewest(40, (5, 8)) == 5
    assert Lotm(LotmOptions(wrap=True)).fewest(40, (5, 8)) == 1
    strongest = reduce(L1, (2, 4), 6)
    assert strongest.shape == (2, 2)


def test_more_merges_than_the_rows_have_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="7 merges were asked for, but rows have only 6"):
        reduce(L1, (2, 4), 7)


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="lotm: iterative"):
        Lotm(LotmOptions(iterative=True, window="fixed"))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_one_run_serves_all_numbers_of_tokens(options: dict[str, Any]) -> None:
    x = torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(0))
    tokens, method = Tokens.of(x, (5, 6)), Lotm(LotmOptions(**options))
    n_outs = [20, 30, 29, 8, 5, 20]  # from one pass to several
    for n_out, shared in zip(n_outs, method.assign_each(tokens, n_outs), strict=True):
        alone = method.assign(tokens, n_out)
        assert torch.equal(shared.owner(), alone.owner())
        assert torch.equal(shared.merge(x), alone.merge(x))


@pytest.mark.parametrize("averaging", ["size", "plain"])
def test_iterative_merging_is_the_same_in_plain_torch(averaging: Any) -> None:
    x = torch.randn(4, 30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    method = Lotm(LotmOptions(iterative=True, averaging=averaging))
    found = method.assign(Tokens.of(x, (5, 6)), 9)
    with use_path("torch"):
        assert torch.equal(method.assign(Tokens.of(x, (5, 6)), 9).owner(), found.owner())
