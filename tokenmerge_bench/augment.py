"""Training augmentation of whole batches on the device; every image draws its own crop and flip.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import center_crop as torchvision_center_crop
from torchvision.transforms.v2 import RandAugment

__all__ = ["Augment", "center_crop", "normalize", "pad_crop", "random_erase", "random_hflip"]

_ALIKE = 128
"""Images that RandAugment treats alike: a device does little in the time in which one operation is asked for."""


def pad_crop(
    images: Tensor, pad: int, generator: torch.Generator | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Pad every image by `pad` zeros on each side and crop `size` (height, width) out of it at random.

    Takes and gives (B, C, H, W) of any dtype, `size` (by default H, W) for the last two; `generator` must be on the
    images' device. Raises ValueError for pad < 0 and for a size that the padded images do not have.
    """
    batch, _, full_height, full_width = images.shape
    height, width = size or (full_height, full_width)
    rows_left, columns_left = full_height + 2 * pad - height, full_width + 2 * pad - width
    if pad < 0 or min(rows_left, columns_left) < 0:
        raise ValueError(f"cannot crop {height}x{width} out of {full_height}x{full_width} padded by {pad}")
    if rows_left == columns_left == 0:
        return images
    padded = F.pad(images, (pad, pad, pad, pad))
    draws = [
        torch.randint(0, left + 1, (batch, 1), generator=generator, device=images.device)
        for left in (rows_left, columns_left)
    ]
    rows = (draws[0] + torch.arange(height, device=images.device))[:, :, None]  # (B, H, 1)
    columns = (draws[1] + torch.arange(width, device=images.device))[:, None, :]  # (B, 1, W)
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded[image, :, rows, columns].permute(0, 3, 1, 2).contiguous()


def center_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle `size` (height, width) of (B, C, H, W), placed as torchvision's CenterCrop does."""
    cropped: Tensor = torchvision_center_crop(images, list(size))
    return cropped


def random_hflip(images: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image of (B, C, H, W) left to right with the given probability."""
    if probability == 0:
        return images
    chosen = torch.rand(len(images), generator=generator, device=images.device) < probability
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def random_erase(images: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill a random box of each image of (B, C, H, W) with normal noise, with the given probability.

    The box covers 2 % to 33 % of the image at an aspect ratio of 0.3 to 3.3, as timm's RandomErasing has it;
    unlike timm's, which draws image by image on the host, this never makes the host wait for the device.
    """
    if probability == 0:
        return images
    batch, _, height, width = images.shape
    draws = torch.rand(5, batch, 1, generator=generator, device=images.device)
    area_B1 = height * width * (0.02 + (1 / 3 - 0.02) * draws[0])
    aspect_B1 = torch.exp((2 * draws[1] - 1) * math.log(1 / 0.3))
    rows_BH = _span(height, (area_B1 * aspect_B1).sqrt(), draws[2])
    columns_BW = _span(width, (area_B1 / aspect_B1).sqrt(), draws[3])
    chosen_B11 = (draws[4] < probability)[:, :, None]
    box_B1HW = (chosen_B11 & rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]
    noise = torch.empty_like(images).normal_(generator=generator)
    return torch.where(box_B1HW, noise, images)


def _span(length: int, size_B1: Tensor, position_B1: Tensor) -> Tensor:
    """Where a span of about `size_B1` lies in `length` pixels, (B, length) bool; position 0 is first, 1 last."""
    size_B1 = size_B1.round().clamp(1, length)
    first_B1 = (position_B1 * (length - size_B1 + 1)).floor()
    at = torch.arange(length, device=size_B1.device)
    return (at >= first_B1) & (at < first_B1 + size_B1)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn (B, C, H, W) uint8 into float32 of the given mean and std per channel (both on the 0..1 scale)."""
    mean_C11 = _per_channel(tuple(mean), images.device)
    std_C11 = _per_channel(tuple(std), images.device)
    return (images.float() / 255 - mean_C11) / std_C11


@lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), made once: every copy to a GPU would make the host wait for it."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


class Augment:
    """Pad-and-crop, flip, RandAugment, normalise, erase, in this order, on batches of (B, C, H, W) uint8.

    Gives float32 of the size of the model's images, to which larger ones are cropped at random.
    Everything is drawn from `generator`, which must be on the images' device.
    """

    def __init__(
        self,
        data_config: Mapping[str, Any],
        *,
        pad: int,
        hflip: float,
        erasing: float,
        generator: torch.Generator,
        rand_augment: int = 0,
    ) -> None:
        """Take mean and std from timm's `data_config`; `hflip` and `erasing` are probabilities.

        `rand_augment` is the magnitude of torchvision's RandAugment (of 31; 0: none), two operations, drawn by torch's
        own generator for every few images.
        """
        self._rand_augment = RandAugment(2, rand_augment) if rand_augment else None
        self._config, self._generator = data_config, generator
        self._pad, self._hflip, self._erasing = pad, hflip, erasing

    def __call__(self, images: Tensor) -> Tensor:
        """Augment one batch; the input is left alone."""
        cropped = pad_crop(images, self._pad, self._generator, tuple(self._config["input_size"][1:]))
        shifted = random_hflip(cropped, self._hflip, self._generator)
        if self._rand_augment is not None:
            shifted = torch.cat([self._rand_augment(alike) for alike in shifted.split(_ALIKE)])
        pixels = normalize(shifted, self._config["mean"], self._config["std"])
        return random_erase(pixels, self._erasing, self._generator)
