"""Training augmentation of whole batches on the device; every image draws its own crop and flip.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augment", "normalize", "pad_crop", "random_erase", "random_hflip"]


def pad_crop(images: Tensor, pad: int, generator: torch.Generator | None = None) -> Tensor:
    """Shift every image by up to `pad` pixels each way at random, filling with zeros.

    Takes and gives (B, C, H, W) of any dtype; `generator` must be on the images' device. Raises ValueError
    for pad < 0.
    """
    if pad < 0:
        raise ValueError(f"pad must not be negative, got {pad}")
    if pad == 0:
        return images
    batch, _, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    offsets = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator, device=images.device)
    rows = (offsets[0] + torch.arange(height, device=images.device))[:, :, None]  # (B, H, 1)
    columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, :]  # (B, 1, W)
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded[image, :, rows, columns].permute(0, 3, 1, 2).contiguous()


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
    """Pad-and-crop, flip, normalise, erase, in this order, on batches of (B, C, H, W) uint8; gives float32.

    Everything is drawn from `generator`, which must be on the images' device.
    """

    def __init__(
        self,
        data_config: dict[str, object],
        *,
        pad: int,
        hflip: float,
        erasing: float,
        generator: torch.Generator,
    ) -> None:
        """Take mean and std from timm's `data_config`; `hflip` and `erasing` are probabilities."""
        self._config, self._generator = data_config, generator
        self._pad, self._hflip, self._erasing = pad, hflip, erasing

    def __call__(self, images: Tensor) -> Tensor:
        """Augment one batch; the input is left alone."""
        shifted = random_hflip(pad_crop(images, self._pad, self._generator), self._hflip, self._generator)
        pixels = normalize(shifted, self._config["mean"], self._config["std"])  # type: ignore[arg-type]
        return random_erase(pixels, self._erasing, self._generator)
