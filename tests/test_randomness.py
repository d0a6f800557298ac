"""The counter-based generator: uniform, independent of the batch, different for every coordinate."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from tokenmerge_bench.randomness import uniforms


def chi_square_p(values: Tensor, bins: int = 64) -> float:
    counts = torch.histc(values.double().flatten(), bins, 0, 1).numpy()
    return float(stats.chisquare(counts).pvalue)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_uniform_along_images_steps_and_blocks(seed: int) -> None:
    along_images = uniforms(seed, torch.arange(20000), 3, 1)
    along_steps = uniforms(seed, torch.tensor([7]), 3, 20000)
    along_blocks = torch.cat([uniforms(seed, torch.tensor([7]), block, 1) for block in range(700)])
    along_seeds = torch.cat([uniforms(1000 * seed + other, torch.tensor([7]), 3, 1) for other in range(700)])
    for values in (along_images, along_steps, along_blocks, along_seeds):
        assert chi_square_p(values) > 1e-3


def test_consecutive_numbers_are_uncorrelated() -> None:
    values = uniforms(0, torch.arange(300), 6, 300) - 0.5
    noise = 4 / values.numel() ** 0.5
    shifted = [
        (values[1:], values[:-1]),
        (values[:, 1:], values[:, :-1]),
        (values, uniforms(1, torch.arange(300), 6, 300) - 0.5),
        (values, uniforms(0, torch.arange(300), 7, 300) - 0.5),
    ]
    for a, b in shifted:
        assert abs((a * b).mean().item() * 12) < noise


def test_pairs_of_consecutive_numbers_fill_the_square_evenly() -> None:
    pairs = uniforms(3, torch.arange(30000), 0, 2)
    cell = (pairs * 8).long()
    counts = torch.bincount(cell[:, 0] * 8 + cell[:, 1], minlength=64).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_range_and_type() -> None:
    values = uniforms(0, torch.arange(1000), 0, 100)
    assert values.dtype == torch.float64
    assert values.shape == (1000, 100)
    assert values.min() >= 0
    assert values.max() < 1
    assert values.unique().numel() == values.numel()


def test_an_image_draws_the_same_numbers_in_any_batch() -> None:
    ids = torch.tensor([11, 3, 2**40, 0, 3])
    together = uniforms(5, ids, 6, 20)
    for row, image in zip(together, ids, strict=True):
        assert torch.equal(uniforms(5, image[None], 6, 20)[0], row)
    assert torch.equal(together[1], together[4])


def test_more_numbers_begin_with_the_same_ones() -> None:
    ids = torch.arange(4)
    assert torch.equal(uniforms(0, ids, 1, 50)[:, :20], uniforms(0, ids, 1, 20))


def test_seed_image_block_and_step_all_matter() -> None:
    coordinates = [(seed, image, block) for seed in (0, 1, 2, -1) for image in (0, 1, 2) for block in (0, 1, 2)]
    rows = torch.cat([uniforms(seed, torch.tensor([image]), block, 3) for seed, image, block in coordinates])
    assert rows.unique().numel() == rows.numel()


@pytest.mark.parametrize("seed", [0, 2**31, 2**63 - 1, -1])
@pytest.mark.parametrize("image", [0, 2**62, -5])
def test_extreme_coordinates_are_accepted(seed: int, image: int) -> None:
    values = uniforms(seed, torch.tensor([image]), 0, 8)
    assert ((values >= 0) & (values < 1)).all()
    assert values.unique().numel() == 8
