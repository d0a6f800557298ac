"""Training augmentation of whole batches on the device; every image draws its own crop and flip.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data.random_erasing import RandomErasing
from torch import Tensor

__all__ = ["Augment", "normalize", "pad_crop", "random_hflip"]


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


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn (B, C, H, W) uint8 into float32 of the given mean and std per channel (both on the 0..1 scale)."""
    mean_C11 = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    std_C11 = torch.tensor(std, device=images.device).view(-1, 1, 1)
    return (images.float() / 255 - mean_C11) / std_C11


class Augment:
    """Pad-and-crop, flip, normalise, erase, in this order, on batches of (B, C, H, W) uint8; gives float32.

    Crops and flips draw from `generator`; timm's RandomErasing draws from Python's and torch's global
    generators.
    """

    def __init__(
        self,
        data_config: dict[str, object],
        *,
        pad: int,
        hflip: float,
        erasing: float,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        """Take mean and std from timm's `data_config`; `hflip` and `erasing` are probabilities."""
        self._config, self._pad, self._hflip, self._generator = data_config, pad, hflip, generator
        erase = RandomErasing(erasing, mode="pixel", device=device)  # type: ignore[no-untyped-call]
        self._erase = erase if erasing > 0 else None

    def __call__(self, images: Tensor) -> Tensor:
        """Augment one batch; the input is left alone."""
        shifted = random_hflip(pad_crop(images, self._pad, self._generator), self._hflip, self._generator)
        pixels = normalize(shifted, self._config["mean"], self._config["std"])  # type: ignore[arg-type]
        return self._erase(pixels) if self._erase is not None else pixels
