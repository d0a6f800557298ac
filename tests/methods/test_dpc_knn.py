"""DPC-KNN: the golden cases P1 and P2, and a naive reference on random, smooth and tied inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import references as ref
import torch
from torch import Tensor

from tokenmerge_bench.assignment import HardAssignment
from tokenmerge_bench.distances import pairwise_distances
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.methods.dpc_knn import DpcKnn, DpcKnnOptions, density_peaks
from tokenmerge_bench.randomness import uniforms
from tokenmerge_bench.tokens import Tokens

P1 = torch.tensor([[0], [1], [3], [10], [12], [11.5]], dtype=torch.float64)[None]
P2 = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [2, 0, 2, 0], [8, 8, 8, 8], [9, 9, 7, 7]], dtype=torch.float64)[None]


def peaks(x: Tensor, k: int, m: int) -> tuple[list[int], list[int]]:
    centres, labels = density_peaks(pairwise_distances(x) / math.sqrt(x.shape[2]), k, m)
    return centres[0].tolist(), labels[0].tolist()


@pytest.mark.parametrize(
    ("m", "weights", "centres", "labels", "means"),
    [
        (2, [1, 1, 1, 1, 1, 1], [5, 1], [1, 1, 1, 0, 0, 0], [11.166663, 1.333333]),
        (2, [1, 2, 1, 1, 3, 1], [5, 1], [1, 1, 1, 0, 0, 0], [11.499998, 1.25]),
        (3, [1, 1, 1, 1, 1, 1], [5, 1, 3], [1, 1, 1, 2, 0, 0], [11.749994, 1.333333, 9.99999]),
        (3, [1, 2, 1, 1, 3, 1], [5, 1, 3], [1, 1, 1, 2, 0, 0], [11.874997, 1.25, 9.99999]),
    ],
)
def test_p1(m: int, weights: list[float], centres: list[int], labels: list[int], means: list[float]) -> None:
    assert peaks(P1, 3, m) == (centres, labels)
    assignment = HardAssignment(torch.tensor([labels]), m, torch.tensor([weights], dtype=torch.float64), eps=1e-6)
    assert assignment.merge(P1).flatten().tolist() == pytest.approx(means, abs=2e-6)
    if weights == [1] * 6:
        through = DpcKnn(DpcKnnOptions(k=3)).assign(Tokens.of(P1, (2, 3)), m)
        assert through.merge(P1).flatten().tolist() == pytest.approx(means, abs=2e-6)


def test_p1_all_six_centres_come_in_the_order_of_their_scores() -> None:
    assert peaks(P1, 3, 6)[0] == [5, 1, 3, 4, 0, 2]


def test_p1_densities_separations_and_scores_of_the_reference() -> None:
    found = ref.dpc_knn(P1[0].numpy(), 3, 2)
    assert found.density == pytest.approx([0.035674, 0.188876, 0.013124, 0.124514, 0.242521, 0.434598], abs=1e-6)
    assert found.delta == [1, 10.5, 2, 1.5, 0.5, 12]
    scores = [rho * delta for rho, delta in zip(found.density, found.delta, strict=True)]
    assert scores == pytest.approx([0.035674, 1.983194, 0.026247, 0.186772, 0.121261, 5.215179], abs=2e-6)


def test_p2_ties_of_density_go_to_the_lower_index() -> None:
    assert peaks(P2, 2, 2) == ([0, 3], [0, 0, 0, 1, 1])
    merged = DpcKnn(DpcKnnOptions(k=2)).assign(Tokens.of(P2, (1, 5)), 2).merge(P2)[0]
    want = [[1, 0.333333, 1, 0.333333], [8.499996, 8.499996, 7.499996, 7.499996]]
    torch.testing.assert_close(merged, torch.tensor(want).double(), atol=2e-6, rtol=0)
    found = ref.dpc_knn(P2[0].numpy(), 2, 2)
    assert found.density == pytest.approx([0.606531] * 5, abs=1e-6)
    assert found.delta == pytest.approx([8.062258, 1, 1, 7, 1], abs=1e-6)


@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_equals_the_naive_reference(kind: str, k: int) -> None:
    for seed, n in enumerate([3, 9, 16, 21]):
        x = np.stack([ref.random_rows(kind, n, 3, 10 * seed + i) for i in range(3)])
        for m in sorted({1, n // 3, n // 2, n}):
            tokens = Tokens.of(torch.from_numpy(x), (1, n))
            assignment = DpcKnn(DpcKnnOptions(k=k)).assign(tokens, m)
            for i in range(3):
                expected = ref.dpc_knn(x[i], k, m)
                assert assignment.owner()[i].tolist() == expected.labels
                means = ref.cluster_means(x[i], expected.labels, [1.0] * n, m)
                np.testing.assert_allclose(assignment.merge(tokens.features)[i].numpy(), means, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_equals_the_naive_reference_where_many_scores_tie(k: int) -> None:
    # Whole numbers on a line: distances, their squares and the means over k are exact in both.
    rng = np.random.default_rng(k)
    for n in (4, 9, 15):
        x = rng.integers(0, 6, (4, n, 1)).astype(np.float64)
        distance = pairwise_distances(torch.from_numpy(x))
        for m in range(1, n + 1):
            centres, labels = density_peaks(distance, k, m)
            for i in range(4):
                expected = ref.dpc_knn(x[i], k, m)
                assert centres[i].tolist() == expected.centres
                assert labels[i].tolist() == expected.labels


def test_ranking_survives_densities_that_underflow_in_float32() -> None:
    x = ref.random_rows("random", 12, 8, 3) * 10
    rho = np.array(ref.dpc_knn(x, 5, 4).density)
    assert (rho.astype(np.float32) == 0).any()
    found = DpcKnn().assign(Tokens.of(torch.from_numpy(x).float()[None], (3, 4)), 4)
    assert found.owner()[0].tolist() == ref.dpc_knn(x, 5, 4).labels


def test_noise_is_added_to_the_density_and_drawn_per_image() -> None:
    x = np.stack([ref.random_rows("smooth", 15, 2, seed) for seed in range(4)])
    ids = torch.tensor([4, 0, 9, 2])
    tokens = Tokens.of(torch.from_numpy(x), (3, 5), image_ids=ids, block=6, seed=1)
    noisy = DpcKnn(DpcKnnOptions(noise=0.5)).assign(tokens, 5)
    noise = 0.5 * uniforms(1, ids, 6, 15)
    for i in range(4):
        assert noisy.owner()[i].tolist() == ref.dpc_knn(x[i], 5, 5, noise[i].tolist()).labels
    assert not torch.equal(noisy.owner(), DpcKnn().assign(tokens, 5).owner())


def test_learned_weights_weigh_the_means_and_get_gradients() -> None:
    torch.manual_seed(0)
    x = torch.from_numpy(ref.random_rows("random", 12, 4, 1)).float()[None]
    method = DpcKnn(DpcKnnOptions(learned_weights=True))
    method.build(12, 4, 4)
    with torch.no_grad():
        method.score.weight.normal_()
        method.score.bias.fill_(0.3)
    assignment = method.assign(Tokens.of(x, (3, 4)), 4)
    labels = ref.dpc_knn(x[0].double().numpy(), 5, 4).labels
    a, b = method.score.weight[0].detach().double(), method.score.bias.detach().double()
    weights = [math.exp(float(row.double() @ a + b)) for row in x[0]]
    expected = ref.cluster_means(x[0].double().numpy(), labels, weights, 4)
    merged = assignment.merge(x)
    np.testing.assert_allclose(merged[0].detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    merged.square().sum().backward()
    gradient = method.score.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_learned_weights_start_near_one() -> None:
    torch.manual_seed(0)
    method = DpcKnn(DpcKnnOptions(learned_weights=True))
    method.build(196, 98, 192)
    assert method.learned
    assert method.score.bias.item() == 0
    assert 0.015 < method.score.weight.std().item() < 0.025


@pytest.mark.parametrize("options", [DpcKnnOptions(k=0), DpcKnnOptions(noise=-1.0)])
def test_options_out_of_range_are_refused(options: DpcKnnOptions) -> None:
    with pytest.raises(InputError, match="dpc_knn"):
        DpcKnn(options)
