"""K-Medoids: the golden cases K1 to K3, and a naive reference on random, smooth and tied inputs."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import references as ref
import torch
from timm.layers import Attention

from tokenmerge_bench.distances import pairwise_distances
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.methods.k_medoids import KMedoids, KMedoidsOptions, received_attention, weighted_medoids
from tokenmerge_bench.reduced_vit import AttentionTap
from tokenmerge_bench.tokens import Tokens

Variant = Literal["weighted", "tokenreduction"]
VARIANTS: list[Variant] = ["weighted", "tokenreduction"]

K1 = [[0], [1], [2], [4], [10], [11], [13]], [0.1, 0.1, 0.3, 0.45, 0.2, 0.4, 0.1]
K2 = [[0, 0], [0, 3], [4, 0], [10, 10], [10, 13], [14, 10], [9, 9]], [0.5, 0.2, 0.1, 0.3, 0.6, 0.25, 0.15]
K3 = [[0], [0], [5], [6]], [4.0, 3.0, 2.0, 1.0]
Case = tuple[list[list[int]], list[float]]


def cluster(case: Case, m: int, iters: int, variant: Variant) -> tuple[list[int], list[int]]:
    rows, weights = case
    distance = pairwise_distances(torch.tensor(rows, dtype=torch.float64)[None])
    medoids, labels = weighted_medoids(distance, torch.tensor(weights, dtype=torch.float64)[None], m, iters, variant)
    return medoids[0].tolist(), labels[0].tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_k1_start(variant: Variant) -> None:
    assert cluster(K1, 2, 0, variant) == ([3, 5], [0, 0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("iters", [1, 3])
@pytest.mark.parametrize(
    ("variant", "medoids", "values"), [("weighted", [2, 5], [2, 11]), ("tokenreduction", [1, 6], [1, 13])]
)
def test_k1(iters: int, variant: Variant, medoids: list[int], values: list[int]) -> None:
    assert cluster(K1, 2, iters, variant) == (medoids, [0, 0, 0, 0, 1, 1, 1])
    assert [K1[0][i][0] for i in medoids] == values


@pytest.mark.parametrize(
    ("variant", "iters", "medoids", "labels"),
    [
        ("weighted", 0, [4, 0, 3], [1, 1, 1, 2, 0, 2, 2]),
        ("weighted", 1, [4, 0, 3], [1, 1, 1, 2, 0, 2, 2]),
        ("weighted", 3, [4, 0, 3], [1, 1, 1, 2, 0, 2, 2]),
        ("tokenreduction", 0, [4, 0, 3], [1, 1, 1, 2, 0, 2, 2]),
        ("tokenreduction", 1, [4, 2, 6], [1, 1, 1, 2, 0, 0, 2]),
        ("tokenreduction", 3, [5, 2, 6], [1, 1, 1, 2, 2, 0, 2]),
    ],
)
def test_k2(variant: Variant, iters: int, medoids: list[int], labels: list[int]) -> None:
    assert cluster(K2, 3, iters, variant) == (medoids, labels)


def test_k3_an_empty_cluster_keeps_its_medoid() -> None:
    assert cluster(K3, 3, 1, "weighted") == ([0, 1, 2], [0, 0, 2, 2])


def test_an_empty_cluster_gets_token_0_in_the_parity_variant() -> None:
    # Tokens 2 and 3 coincide and are the heaviest, so the second of the two clusters that start there is empty.
    case: Case = ([[9], [1], [5], [5]], [1.0, 2.0, 4.0, 3.0])
    assert cluster(case, 2, 0, "tokenreduction")[0] == [2, 3]
    assert cluster(case, 2, 1, "tokenreduction")[0][1] == 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("iters", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_equals_the_naive_reference(variant: Variant, iters: int, kind: str) -> None:
    for seed, n in enumerate([4, 9, 20]):
        x = np.stack([ref.random_rows(kind, n, 3, seed + 10 * i) for i in range(3)])
        w = np.random.default_rng(seed).random((3, n))
        distance = pairwise_distances(torch.from_numpy(x))
        for m in sorted({1, n // 3, n // 2, n}):
            medoids, labels = weighted_medoids(distance, torch.from_numpy(w), m, iters, variant)
            for i in range(3):
                expected = ref.k_medoids(x[i], w[i].tolist(), m, iters, variant)
                assert medoids[i].tolist() == expected.centres
                assert labels[i].tolist() == expected.labels


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_naive_reference_where_many_costs_tie(variant: Variant) -> None:
    # Whole positions on a line and whole weights: every cost is exact in both.
    rng = np.random.default_rng(0)
    for n in (4, 9, 15):
        x = rng.integers(0, 5, (4, n, 1)).astype(np.float64)
        w = rng.integers(1, 4, (4, n)).astype(np.float64)
        distance = pairwise_distances(torch.from_numpy(x))
        for m in range(1, n + 1):
            medoids, labels = weighted_medoids(distance, torch.from_numpy(w), m, 3, variant)
            for i in range(4):
                expected = ref.k_medoids(x[i], w[i].tolist(), m, 3, variant)
                assert medoids[i].tolist() == expected.centres
                assert labels[i].tolist() == expected.labels


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_weights_of_cls_are_its_attention_averaged_over_heads(prefix: int) -> None:
    attention = torch.randn(2, 3, 6 + prefix, 6 + prefix, dtype=torch.float64).softmax(-1)
    tokens = Tokens.of(torch.zeros(2, 6, 4), (2, 3), prefix=prefix, attention=attention)
    cls = torch.zeros(2, 6).double()
    for image in range(2):
        for patch in range(6):
            for head in range(3):
                cls[image, patch] += attention[image, head, 0, prefix + patch] / 3
    torch.testing.assert_close(received_attention(tokens, "cls"), cls)


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_weights_of_all_are_what_the_attention_hands_over_as_received(prefix: int) -> None:
    attention = Attention(24, num_heads=3, qkv_bias=True).eval().double()
    tap = AttentionTap(attention, frozenset({"received"}))
    x = torch.randn(2, prefix + 6, 24, dtype=torch.float64)
    torch.testing.assert_close(tap.attention(x), attention(x))
    received = tap.collect(prefix)["received"]
    q, k, _ = attention.qkv(x).reshape(2, prefix + 6, 3, 3, 8).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)
    everything = torch.zeros(2, 6).double()
    for image in range(2):
        for patch in range(6):
            for head in range(3):
                for query in range(6 + prefix):
                    everything[image, patch] += weights[image, head, query, prefix + patch]
    torch.testing.assert_close(received, everything)
    tokens = Tokens.of(torch.zeros(2, 6, 4), (2, 3), prefix=prefix, received=received)
    assert received_attention(tokens, "all") is received


def test_without_a_previous_block_all_tokens_weigh_the_same() -> None:
    x = torch.from_numpy(ref.random_rows("random", 12, 3, 0))[None]
    found = KMedoids().assign(Tokens.of(x, (3, 4)), 4)
    assert found.owner()[0].tolist() == ref.k_medoids(x[0].numpy(), [1.0] * 12, 4, 3).labels


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_tokens_are_the_medoids_themselves(variant: Variant) -> None:
    x = ref.random_rows("random", 15, 3, 4)
    received = torch.rand(1, 15, dtype=torch.float64)
    tokens = Tokens.of(torch.from_numpy(x)[None], (3, 5), received=received)
    assignment = KMedoids(KMedoidsOptions(variant=variant, iters=2)).assign(tokens, 5)
    expected = ref.k_medoids(x, received[0].tolist(), 5, 2, variant)
    assert assignment.owner()[0].tolist() == expected.labels
    assert torch.equal(assignment.merge(tokens.features)[0], tokens.features[0, expected.centres])


def test_cls_weights_need_a_class_token() -> None:
    tokens = Tokens.of(torch.zeros(1, 4, 2), (2, 2), prefix=0, attention=torch.ones(1, 1, 4, 4))
    with pytest.raises(InputError, match="class token"):
        KMedoids(KMedoidsOptions(weights="cls")).assign(tokens, 2)


def test_negative_rounds_are_refused() -> None:
    with pytest.raises(InputError, match="iters=-1"):
        KMedoids(KMedoidsOptions(iters=-1))
