"""Assignments against dense matrices: merging, sizes, spreading back, composing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenmerge_bench.assignment import Assignment, HardAssignment, SoftAssignment

B, C = 2, 3
SEEDS = st.integers(0, 2**31)
COUNTS = st.integers(1, 9)
Kind = str
KINDS = st.sampled_from(["hard", "picks", "soft"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def onto(n: int, m: int, g: torch.Generator) -> Tensor:
    """Labels of n tokens in which every one of m outputs occurs."""
    rows = []
    for _ in range(B):
        labels = torch.cat([torch.arange(m), torch.randint(m, (n - m,), generator=g)])
        rows.append(labels[torch.randperm(n, generator=g)])
    return torch.stack(rows)


def draw(kind: Kind, n: int, m: int, seed: int, dtype: torch.dtype = torch.float64) -> Assignment:
    g = generator(seed)
    if kind == "soft":
        return SoftAssignment(torch.rand(B, m, n, generator=g, dtype=dtype) + 0.01)
    labels = onto(n, m, g)
    if kind == "picks":
        first = [[row.tolist().index(label) for label in range(m)] for row in labels]
        return HardAssignment(labels, m, picks=torch.tensor(first))
    return HardAssignment(labels, m, torch.rand(B, n, generator=g, dtype=dtype) + 0.1)


def features(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, n, C, generator=generator(seed + 1), dtype=dtype)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-6, rtol=1e-6)


def counts(a: int, b: int) -> tuple[int, int]:
    return max(a, b), min(a, b)


@given(KINDS, COUNTS, COUNTS, SEEDS)
@settings(deadline=None, max_examples=60)
def test_merge_is_the_product_with_the_matrix(kind: Kind, a: int, b: int, seed: int) -> None:
    n, m = counts(a, b)
    assignment, x = draw(kind, n, m, seed), features(n, seed)
    assert (assignment.n_in, assignment.n_out) == (n, m)
    assert assignment.matrix().shape == (B, m, n)
    close(assignment.merge(x), assignment.matrix().double() @ x)


@given(COUNTS, COUNTS, SEEDS)
@settings(deadline=None, max_examples=60)
def test_hard_matrix_holds_the_normalised_weights_of_the_members(a: int, b: int, seed: int) -> None:
    n, m = counts(a, b)
    g = generator(seed)
    labels, weights = onto(n, m, g), torch.rand(B, n, generator=g, dtype=torch.float64) + 0.1
    matrix = HardAssignment(labels, m, weights).matrix()
    for image in range(B):
        for output in range(m):
            inside = labels[image] == output
            expected = torch.where(inside, weights[image], 0.0) / weights[image][inside].sum()
            close(matrix[image, output], expected)


@given(COUNTS, COUNTS, SEEDS, st.sampled_from([1e-6, 0.5]))
@settings(deadline=None, max_examples=30)
def test_eps_shrinks_every_output(a: int, b: int, seed: int, eps: float) -> None:
    n, m = counts(a, b)
    labels = onto(n, m, generator(seed))
    weights = torch.rand(B, n, generator=generator(seed), dtype=torch.float64) + 0.1
    total = HardAssignment(labels, m, weights).merge_sizes(weights)
    shrunk = HardAssignment(labels, m, weights, eps=eps).matrix().sum(2)
    close(shrunk, total / (total + eps))


@given(KINDS, COUNTS, COUNTS, SEEDS)
@settings(deadline=None, max_examples=60)
def test_sizes_are_conserved(kind: Kind, a: int, b: int, seed: int) -> None:
    n, m = counts(a, b)
    sizes = torch.randint(1, 9, (B, n), generator=generator(seed)).double()
    out = draw(kind, n, m, seed).merge_sizes(sizes)
    assert out.shape == (B, m)
    close(out.sum(1), sizes.sum(1))
    assert (out > 0).all()


@given(KINDS, COUNTS, COUNTS, SEEDS)
@settings(deadline=None, max_examples=60)
def test_unmerging_spreads_by_the_columns_of_the_matrix(kind: Kind, a: int, b: int, seed: int) -> None:
    n, m = counts(a, b)
    assignment, y = draw(kind, n, m, seed), features(m, seed)
    if kind == "soft":
        columns = assignment.matrix() / assignment.matrix().sum(1, keepdim=True)
    else:
        columns = torch.nn.functional.one_hot(assignment.owner(), m).double().transpose(1, 2)
    close(assignment.unmerge(y), columns.transpose(1, 2) @ y)


@given(KINDS, COUNTS, COUNTS, SEEDS)
@settings(deadline=None, max_examples=40)
def test_merging_what_was_unmerged_gives_it_back(kind: Kind, a: int, b: int, seed: int) -> None:
    n, m = counts(a, b)
    assignment, y = draw(kind, n, m, seed), features(m, seed)
    if kind != "soft":
        close(assignment.merge(assignment.unmerge(y)), y)


@given(KINDS, COUNTS, COUNTS, SEEDS)
@settings(deadline=None, max_examples=40)
def test_owner_is_the_output_of_largest_weight(kind: Kind, a: int, b: int, seed: int) -> None:
    n, m = counts(a, b)
    assignment = draw(kind, n, m, seed)
    owner = assignment.owner()
    assert owner.shape == (B, n)
    if kind != "picks":
        assert torch.equal(owner, assignment.matrix().argmax(1))


def test_owner_of_a_tie_is_the_lowest_output() -> None:
    assert SoftAssignment(torch.ones(1, 3, 4)).owner().tolist() == [[0, 0, 0, 0]]


@given(KINDS, KINDS, st.tuples(COUNTS, COUNTS, COUNTS), SEEDS)
@settings(deadline=None, max_examples=120)
def test_composing_is_the_product_of_the_matrices(first: Kind, then: Kind, n: tuple[int, int, int], seed: int) -> None:
    n0, n1, n2 = sorted(n, reverse=True)
    one, two = draw(first, n0, n1, seed), draw(then, n1, n2, seed + 5)
    both, x = one.compose(two), features(n0, seed)
    assert isinstance(both, SoftAssignment if "soft" in (first, then) else HardAssignment)
    assert (both.n_in, both.n_out) == (n0, n2)
    close(both.matrix(), two.matrix().double() @ one.matrix().double())
    close(both.merge(x), two.merge(one.merge(x)))
    sizes = torch.ones(B, n0, dtype=torch.float64)
    if (first, then) != ("picks", "soft"):  # what was not picked has no column left in the product
        close(both.merge_sizes(sizes).sum(1), sizes.sum(1))
    if isinstance(both, HardAssignment):
        assert torch.equal(both.owner(), two.owner().gather(1, one.owner()))
        assert torch.equal(both.merge_sizes(sizes), two.merge_sizes(one.merge_sizes(sizes)))
        assert torch.equal(both.unmerge(features(n2, seed)), one.unmerge(two.unmerge(features(n2, seed))))


@pytest.mark.parametrize("kinds", ["hhh", "hsh", "shs", "phs"])
def test_composing_is_associative(kinds: str) -> None:
    names = {"h": "hard", "s": "soft", "p": "picks"}
    a, b, c = (draw(names[kind], n, m, n) for kind, n, m in zip(kinds, (9, 6, 4), (6, 4, 2), strict=True))
    close(a.compose(b).compose(c).matrix(), a.compose(b.compose(c)).matrix())


@pytest.mark.parametrize("soft_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hard_dtype", [torch.float32, torch.float64])
def test_precisions_may_be_mixed(soft_dtype: torch.dtype, hard_dtype: torch.dtype) -> None:
    hard, soft = draw("hard", 6, 4, 0, hard_dtype), draw("soft", 4, 2, 1, soft_dtype)
    assert hard.compose(soft).matrix().shape == (B, 2, 6)
    assert draw("soft", 8, 6, 2, soft_dtype).compose(hard).matrix().shape == (B, 4, 8)


@pytest.mark.parametrize("first", ["hard", "picks", "soft"])
@pytest.mark.parametrize("later", ["hard", "picks", "soft"])
def test_counts_that_do_not_fit_cannot_be_composed(first: Kind, later: Kind) -> None:
    with pytest.raises(ValueError, match="4 tokens come out, 5 are expected"):
        draw(first, 6, 4, 0).compose(draw(later, 5, 2, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_identity_changes_no_bit(dtype: torch.dtype) -> None:
    x = features(7, 0).to(dtype)
    identity = HardAssignment.identity(B, 7)
    assert torch.equal(identity.merge(x), x)
    assert torch.equal(identity.unmerge(x), x)
    assert torch.equal(identity.merge_sizes(x[..., 0]), x[..., 0])
    assert identity.owner().tolist() == [list(range(7))] * B
    later = draw("hard", 7, 3, 1)
    close(identity.compose(later).matrix(), later.matrix())


@given(COUNTS, COUNTS, SEEDS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(deadline=None, max_examples=60)
def test_tokens_that_stay_alone_keep_every_bit(a: int, b: int, seed: int, dtype: torch.dtype) -> None:
    n, m = counts(a, b)
    labels = onto(n, m, generator(seed))
    sizes = torch.randint(1, 197, (B, n), generator=generator(seed)).float()
    x = (100 * features(n, seed)).to(dtype)
    merged = HardAssignment(labels, m, sizes).merge(x)
    assert merged.dtype == dtype
    for image in range(B):
        for i in range(n):
            if (labels[image] == labels[image, i]).sum() == 1:
                assert torch.equal(merged[image, labels[image, i]], x[image, i])


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_sums_run_in_float32_for_half_precision(kind: Kind) -> None:
    # 2048 + 1 is 2048 in float16 and 256 + 1 is 256 in bfloat16: a running sum in either would stop growing.
    n = 4096
    if kind == "hard":
        labels = torch.zeros(1, n, dtype=torch.int64)
        assignments: list[Assignment] = [
            HardAssignment(labels, 1, torch.ones(1, n, dtype=dtype)) for dtype in (torch.float16, torch.bfloat16)
        ]
    else:
        assignments = [SoftAssignment(torch.full((1, 1, n), 1 / n))] * 2
    for assignment, dtype in zip(assignments, (torch.float16, torch.bfloat16), strict=True):
        assert assignment.merge(torch.full((1, n, 1), 3.0, dtype=dtype)).item() == 3.0


def test_gradients_are_shared_out_by_weight() -> None:
    x = torch.zeros(1, 3, 1, requires_grad=True)
    HardAssignment(torch.tensor([[0, 0, 1]]), 2, torch.tensor([[1.0, 3.0, 7.0]])).merge(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25, 0.75, 1.0]
