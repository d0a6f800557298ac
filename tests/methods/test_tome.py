"""ToMe: the golden cases T1 to T3, and a naive reference over the whole sequence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import references as ref
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tokenmerge_bench.assignment import HardAssignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import RemovedPerBlock
from tokenmerge_bench.methods.tome import Tome, TomeOptions, bipartite_soft_matching
from tokenmerge_bench.reduced_vit import ReducedViT, build_reducers, geometry, log_sizes
from tokenmerge_bench.schedule import make_schedule
from tokenmerge_bench.tokens import Tokens

METRIC = torch.tensor([[1, 1], [3, 4], [4, 3], [1, 0], [0, 1], [4, 4], [5, 12]], dtype=torch.float64)
X = torch.tensor([[100], [1], [2], [3], [4], [5], [6]], dtype=torch.float64)


def match(r: int, prefix: int, sizes: list[float]) -> tuple[list[float], list[float]]:
    """T1 with its first `prefix` rows protected: features and sizes of the patch tokens that are left."""
    n = 7 - prefix
    r = min(r, n // 2)
    labels = bipartite_soft_matching(METRIC[None, prefix:], r, prefix)
    patch_sizes = torch.tensor(sizes, dtype=torch.float64)[None, prefix:]
    assignment = HardAssignment(labels, n - r, patch_sizes)
    return assignment.merge(X[None, prefix:]).flatten().tolist(), assignment.merge_sizes(patch_sizes).flatten().tolist()


@pytest.mark.parametrize(
    ("r", "prefix", "sizes_in", "x", "sizes"),
    [
        (0, 1, [1] * 7, [2, 4, 6, 1, 3, 5], [1] * 6),
        (1, 1, [1] * 7, [4, 6, 1, 3, 3.5], [1, 1, 1, 1, 2]),
        (2, 1, [1] * 7, [4, 3.5, 3, 3.5], [1, 2, 1, 2]),
        (3, 1, [1] * 7, [3.666667, 3, 3.5], [3, 1, 2]),
        (4, 1, [1] * 7, [3.666667, 3, 3.5], [3, 1, 2]),
        (2, 1, [1, 2, 3, 1, 1, 1, 4], [4, 4.333333, 3, 2.75], [1, 6, 1, 4]),
        (3, 0, [1] * 7, [4, 3.5, 3, 35.666667], [1, 2, 1, 3]),
        (2, 2, [1] * 7, [4, 3, 4.333333], [1, 1, 3]),
    ],
)
def test_t1(r: int, prefix: int, sizes_in: list[float], x: list[float], sizes: list[float]) -> None:
    found_x, found_sizes = match(r, prefix, sizes_in)
    assert found_x == pytest.approx(x, abs=2e-6)
    assert found_sizes == sizes


def small_vit(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    model: VisionTransformer = VisionTransformer(**{**settings, **options}).eval()
    return model


@pytest.mark.parametrize(
    ("logits", "weights"),
    [([0.0, 0.0, 0.0], [0.125, 0.25, 0.625]), ([1.0, 0.0, 0.0], [0.279708, 0.205798, 0.514494])],
)
@pytest.mark.parametrize("fused", [True, False])
def test_t2_proportional_attention(logits: list[float], weights: list[float], fused: bool) -> None:
    # Identity values make the output of attention the row of weights itself.
    reduced = ReducedViT(small_vit(), make_schedule((), (), "mid", n0=16, prefix=1, depth=3), [])
    reduced(torch.zeros(1, 3, 32, 32))
    assert reduced.last is not None
    reduced.last.sizes, reduced.last.proportional = torch.tensor([[1.0, 2.0, 5.0]]), True
    bias = log_sizes(reduced.last, torch.zeros(1, 3, 8, dtype=torch.float64))
    assert bias is not None
    assert bias.shape == (1, 1, 1, 3)
    query = torch.tensor([[[[1.0]]]], dtype=torch.float64)
    key = torch.tensor(logits, dtype=torch.float64).reshape(1, 1, 3, 1)
    if fused:
        found = torch.nn.functional.scaled_dot_product_attention(
            query, key, torch.eye(3, dtype=torch.float64)[None, None], attn_mask=bias, scale=1.0
        )
    else:
        found = (query @ key.transpose(2, 3) + bias).softmax(-1)
    assert found.flatten().tolist() == pytest.approx(weights, abs=1e-6)


@pytest.mark.parametrize(
    ("r", "inflection", "schedule"),
    [
        ((13,), 0.0, [13] * 12),
        ((8,), -1.0, [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]),
        ((8,), 1.0, [0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16]),
        ((13,), -1.0, [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]),
        ((10,), -0.5, [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 5]),
        ((7,), -1.0, [14, 12, 11, 10, 8, 7, 6, 5, 3, 2, 1, 0]),
        ((16, 8, 4), 0.0, [16, 8, 4] + [0] * 9),
    ],
)
def test_t3(r: tuple[int, ...], inflection: float, schedule: list[int]) -> None:
    assert list(RemovedPerBlock(inflection).schedule(r, 12)) == schedule


def reference_labels(metric: Tensor, r: int, prefix: int) -> list[int]:
    """Labels of the patch tokens by the reference, numbered from 0 after the prefix tokens."""
    whole = torch.cat([torch.ones(prefix, metric.shape[1], dtype=metric.dtype), metric]).numpy()
    result = ref.tome(whole, whole, [1.0] * len(whole), r, prefix)
    assert result.members[:prefix] == [[p] for p in range(prefix)]
    owner = {position: m for m, group in enumerate(result.members) for position in group}
    return [owner[prefix + i] - prefix for i in range(len(metric))]


@pytest.mark.parametrize("kind", ["random", "smooth", "tied"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("n", [2, 7, 12, 15])
def test_equals_the_naive_reference(kind: str, prefix: int, n: int) -> None:
    rows = [ref.random_rows(kind, n, 4, seed) for seed in range(4)]
    if kind == "tied":  # unit vectors of a few axes: every score is exactly 0 or 1
        rows = [np.eye(4)[row[:, 0].astype(int)] for row in rows]
    metric = torch.from_numpy(np.stack(rows))
    for r in range(n // 2 + 1):
        labels = bipartite_soft_matching(metric, r, prefix)
        if r == 0:
            assert sorted(labels[0].tolist()) == list(range(n))
            continue
        for image in range(4):
            assert labels[image].tolist() == reference_labels(metric[image], r, prefix)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_weighted_means_equal_the_reference_over_several_layers(prefix: int) -> None:
    generator = torch.Generator().manual_seed(prefix)
    n0, sizes = 16, [1.0] * (16 + prefix)
    x = torch.randn(n0 + prefix, 3, dtype=torch.float64, generator=generator).numpy()
    ours, cells = torch.from_numpy(x[prefix:])[None], torch.arange(n0)[None]
    for r in (5, 3, 4):
        n = len(x) - prefix
        keys = torch.randn(1, 2, n, 4, dtype=torch.float64, generator=generator)
        metric = np.concatenate([np.ones((prefix, 4)), keys.mean(1)[0].numpy()])
        expected = ref.tome(metric, x, sizes, r, prefix)
        tokens = Tokens.of(ours, (4, 4), cells=cells, prefix=prefix, keys=keys)
        r = min(r, n // 2)
        assignment = Tome().assign(tokens, n - r)
        ours, cells = assignment.merge(ours), assignment.owner().gather(1, cells)
        np.testing.assert_allclose(ours[0].numpy(), expected.x[prefix:], atol=1e-12)
        assert assignment.merge_sizes(tokens.sizes)[0].tolist() == expected.sizes[prefix:]
        x, sizes = expected.x, expected.sizes


def test_reference_protects_the_distillation_token_and_orders_it_second() -> None:
    result = ref.tome(METRIC.numpy(), X.numpy(), [1.0] * 7, 2, 2)
    assert result.x.flatten().tolist() == pytest.approx([100, 1, 4, 3, 4.333333], abs=2e-6)
    assert result.sizes == [1, 1, 1, 1, 3]


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_at_most_half_of_the_tokens_go_at_once(n: int) -> None:
    assert Tome().fewest(n, (1, n)) == n - n // 2


def test_staged_uses_the_blocks_of_tokenreduction_and_a_keep_rate() -> None:
    staged = Tome(TomeOptions(staged=True))
    assert staged.layers == (3, 6, 9)
    assert staged.knob.name == "keep_rate"
    assert Tome().layers == "all"


@pytest.mark.parametrize("options", [TomeOptions(inflection=1.5), TomeOptions(inflection=-0.5, staged=True)])
def test_options_that_mean_nothing_are_refused(options: TomeOptions) -> None:
    with pytest.raises(InputError, match="tome"):
        Tome(options)


def test_sizes_reach_the_attention_of_the_next_block_as_logarithms() -> None:
    model = small_vit()
    schedule = make_schedule((10, 10, 6), (0, 1, 2), "mid", n0=16, prefix=1, depth=3)
    reduced = ReducedViT(model, schedule, build_reducers(Tome, TomeOptions(), schedule, geometry(model)))
    reduced(torch.randn(2, 3, 32, 32))
    assert reduced.last is not None
    bias = log_sizes(reduced.last, torch.zeros(2, 7, 32))
    assert bias is not None
    assert bias.shape == (2, 1, 1, 7)
    assert bias[..., 0].tolist() == [[[0.0]], [[0.0]]]
    total = sum(math.exp(value) for value in bias[0, 0, 0, 1:].tolist())
    assert total == pytest.approx(16, rel=1e-6)
