"""Augmentation on the device: every image is treated on its own, and nothing is invented."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenmerge_bench.augment import Augment, center_crop, normalize, pad_crop, random_erase, random_hflip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment(side: int = 28, **changes: Any) -> Augment:
    usual: dict[str, Any] = {"pad": 0, "hflip": 0.0, "erasing": 0.0, "generator": seeded()}
    return Augment({"input_size": (1, side, side), "mean": (0.5,), "std": (0.5,)}, **{**usual, **changes})


def test_every_image_is_shifted_on_its_own_and_nothing_is_invented() -> None:
    images = torch.zeros(64, 2, 9, 7, dtype=torch.uint8)
    images[:, :, 4, 3] = torch.tensor([5, 9], dtype=torch.uint8)
    shifted = pad_crop(images, 2, seeded())
    assert shifted.shape == images.shape
    where = shifted[:, 0].flatten(1).argmax(1)
    rows, columns = where // 7, where % 7
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5}
    assert shifted[:, 1].flatten(1).argmax(1).equal(where)  # channels move together
    assert (shifted.sum((2, 3)) == torch.tensor([5, 9])).all()


def test_larger_images_are_cropped_at_every_place() -> None:
    images = torch.arange(20, dtype=torch.uint8).reshape(1, 1, 4, 5).expand(300, 1, 4, 5)
    cropped = pad_crop(images, 0, seeded(), (2, 3))
    assert cropped.shape == (300, 1, 2, 3)
    corners = cropped[:, 0, 0, 0].tolist()
    assert set(corners) == {5 * row + column for row in range(3) for column in range(3)}
    expected = torch.tensor([[0, 1, 2], [5, 6, 7]]) + torch.tensor(corners)[:, None, None]
    assert cropped[:, 0].long().equal(expected)
    assert center_crop(images, (2, 3))[0, 0, 0, 0] == 6


def test_padding_by_nothing_changes_nothing() -> None:
    images = torch.rand(2, 1, 3, 3)
    assert pad_crop(images, 0).equal(images)


@pytest.mark.parametrize(("pad", "size"), [(-1, None), (1, (6, 3))])
def test_crops_that_do_not_fit_are_refused(pad: int, size: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="cannot crop"):
        pad_crop(torch.rand(2, 1, 3, 3), pad, size=size)


def test_flips_mirror_the_share_of_images_asked_for() -> None:
    images = torch.arange(3.0).expand(1000, 1, 2, 3)
    flipped = random_hflip(images, 0.3, seeded())
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all()
    assert 250 < int(mirrored.sum()) < 350
    assert random_hflip(images, 1.0).equal(images.flip(-1))
    assert random_hflip(images, 0.0).equal(images)


def test_normalize_uses_each_channels_own_numbers() -> None:
    images = torch.full((1, 2, 1, 1), 255, dtype=torch.uint8)
    assert normalize(images, (0.5, 0.2), (0.25, 0.4)).flatten().tolist() == pytest.approx([2.0, 2.0])


def test_boxes_are_erased_from_the_share_of_images_asked_for() -> None:
    images = torch.zeros(2000, 2, 24, 30)
    erased = random_erase(images, 0.4, seeded()) != 0
    assert erased[:, 0].equal(erased[:, 1])  # all channels
    rows, columns = erased[:, 0].any(2), erased[:, 0].any(1)
    assert (rows[:, :, None] & columns[:, None, :]).equal(erased[:, 0])  # what is erased is rows x columns
    for span in (rows, columns):
        assert (span.diff(dim=1).sum(1) <= 2).all()  # of one run each
        assert (span.float().mean(0) > 0.01).all()  # which reaches every pixel
    shares = erased[:, 0].float().mean((1, 2))
    hit = shares > 0
    assert 700 < int(hit.sum()) < 900
    assert 0.01 < shares[hit].min() < 0.05
    assert 0.30 < shares.max() < 0.36
    assert shares[hit].mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert random_erase(images, 0.0) is images


def test_augment_leaves_its_input_alone_and_erases_when_asked() -> None:
    images = torch.full((8, 1, 28, 28), 128, dtype=torch.uint8)
    kept = images.clone()
    plain = augment(hflip=0.5)(images)
    erased = augment(hflip=0.5, erasing=1.0)(images)
    assert images.equal(kept)
    assert (plain == plain[0, 0, 0, 0]).all()
    assert (erased != plain).flatten(1).any(1).all()


def test_augment_crops_to_the_size_that_the_model_takes() -> None:
    images = torch.zeros(3, 1, 32, 30, dtype=torch.uint8)
    assert augment()(images).shape == (3, 1, 28, 28)


def test_rand_augment_treats_a_few_images_alike() -> None:
    one = torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8, generator=seeded())
    torch.manual_seed(0)
    pixels = augment(rand_augment=15, generator=seeded())(one.expand(384, 3, 28, 28))
    few = [group[0] for group in pixels.split(128)]
    assert all(group.equal(first.expand_as(group)) for group, first in zip(pixels.split(128), few, strict=True))
    assert not few[0].equal(few[1])
    assert not few[1].equal(few[2])
