"""What an evaluation reads of an image set: a subset, batches of it, and the transform of the model.

Batches are decoded and transformed in worker processes, in a fixed order and with fixed chunk boundaries, so that an
interrupted sweep can leave out the chunks it has already seen. Workers take pieces of a chunk, so that all of them work
on the first one, and an image is decoded once for all models, whatever their transforms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.idx import fashion_mnist_train
from tokenmerge_bench.images import ArrayImages, FileImages, ImageSet, Indices, Unreadable

__all__ = [
    "ArrayImages",
    "Batch",
    "Batches",
    "FileImages",
    "ImageSet",
    "Indices",
    "Transform",
    "Unreadable",
    "as_seen",
    "default_workers",
    "eval_transform",
    "fashion_mnist_train",
    "iter_batches",
    "iter_views",
    "load_batch",
    "load_views",
    "open_dataset",
    "subset",
    "to_mode",
]

Transform = Callable[[Image.Image], Tensor]
PIECE = 32
"""Images that a worker process decodes at a time."""
_LEAST_CROP = 0.05  # 20 times the side: less resizes to images that no memory holds
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # timm's names


def subset(images: ImageSet, limit: int | None, seed: int) -> Indices:
    """Sorted indices of a stratified choice of exactly `limit` images.

    All of them if `limit` is None or no less than their number. Class counts are as equal as the data allow
    (they differ by at most one unless a class runs out). The choice depends on `labels`, `limit` and `seed`
    alone, and a smaller limit chooses a part of what a larger one chooses, so a quick look can grow into a
    full one. Raises InputError for `limit` < 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the number of images must be at least 1, got {limit}")
    if limit is None or limit >= len(images):
        return np.arange(len(images), dtype=np.int64)
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(images.labels == label)) for label in np.unique(images.labels)]
    order = rng.permutation(len(members))
    quota = _equal_shares(np.array([len(m) for m in members], dtype=np.int64), limit, order)
    chosen = np.concatenate([m[:n] for m, n in zip(members, quota, strict=True)])
    return np.sort(chosen).astype(np.int64)


def _equal_shares(counts: Indices, total: int, order: Indices) -> Indices:
    """How many of each class: the highest common level that fits, then one more each in `order`."""
    level = 0
    while np.minimum(counts, level + 1).sum() <= total:
        level += 1
    shares: Indices = np.minimum(counts, level)
    wanting = [c for c in order if counts[c] > level]
    shares[wanting[: total - int(shares.sum())]] += 1
    return shares


@dataclass(frozen=True, eq=False)
class Batch:
    """The readable images of one chunk, B of them (B can be 0), and the names of the others.

    `pixels` is (B, C, H, W); `labels`, `ids` and `indices` (positions in the image set) are (B,) int64.
    """

    chunk: int
    pixels: Tensor
    labels: Indices
    ids: Indices
    indices: Indices
    unreadable: list[str]


def load_batch(images: ImageSet, indices: Sequence[int] | Indices, transform: Transform, chunk: int = 0) -> Batch:
    """Decode and transform the images at `indices`; undecodable ones are listed by name, not raised."""
    return load_views(images, indices, [transform], chunk)[0]


def load_views(
    images: ImageSet, indices: Sequence[int] | Indices, transforms: Sequence[Transform], chunk: int = 0
) -> tuple[Batch, ...]:
    """The images at `indices` under each transform, decoded once; undecodable ones are listed by name, not raised."""
    pixels: list[list[Tensor]] = [[] for _ in transforms]
    kept: list[int] = []
    unreadable: list[str] = []
    for index in map(int, indices):
        try:
            image = images.load(index)
        except Unreadable as error:
            unreadable.append(str(error))
            continue
        for view, transform in zip(pixels, transforms, strict=True):
            view.append(transform(image))
        kept.append(index)
    at = np.array(kept, dtype=np.int64)
    # With nothing readable, the shape of a blank image keeps the batch (0, C, H, W).
    stacks = [
        torch.stack(view) if view else transform(Image.new("RGB", (8, 8)))[None][:0]
        for view, transform in zip(pixels, transforms, strict=True)
    ]
    return tuple(Batch(chunk, stack, images.labels[at], images.ids[at], at, unreadable) for stack in stacks)


class Batches(Dataset[tuple[Batch, ...]]):
    """Chunks of `indices`, and pieces of chunks, under each transform.

    Chunk c is `indices[c * batch_size : (c + 1) * batch_size]`. Raises InputError for a batch size below 1.
    """

    def __init__(
        self, images: ImageSet, indices: Indices, transforms: Sequence[Transform], batch_size: int, piece: int
    ) -> None:
        """`transforms` must be picklable when worker processes are used; `piece` is the number of images of a piece."""
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, got {batch_size}")
        self.images, self.indices, self.transforms = images, indices, transforms
        self.batch_size, self.piece = batch_size, piece

    def __len__(self) -> int:
        """Number of chunks, the last of which may be short."""
        return -(-len(self.indices) // self.batch_size)

    def pieces(self, chunk: int) -> list[tuple[int, int, int]]:
        """The pieces of a chunk: its number, and where each begins and ends in `indices`."""
        first = chunk * self.batch_size
        last = min(first + self.batch_size, len(self.indices))
        return [(chunk, start, min(start + self.piece, last)) for start in range(first, last, self.piece)]

    def __getitem__(self, piece: tuple[int, int, int]) -> tuple[Batch, ...]:
        """Load one piece of a chunk."""
        chunk, start, stop = piece
        return load_views(self.images, self.indices[start:stop], self.transforms, chunk)


def iter_batches(
    images: ImageSet,
    indices: Indices,
    transform: Transform,
    batch_size: int,
    workers: int,
    skip: Collection[int] = (),
) -> Iterator[Batch]:
    """Every chunk of `indices` in order, except those in `skip`, which are not even loaded.

    They are loaded by `workers` processes (0: in this one). Chunk numbers and boundaries depend on `indices`
    and `batch_size` alone. Raises InputError for a batch size below 1 or a negative number of workers.
    """
    return (views[0] for views in iter_views(images, indices, [transform], batch_size, workers, skip))


def iter_views(
    images: ImageSet,
    indices: Indices,
    transforms: Sequence[Transform],
    batch_size: int,
    workers: int,
    skip: Collection[int] = (),
    pin: bool = False,
) -> Iterator[tuple[Batch, ...]]:
    """As `iter_batches`, with a batch for each transform: the same images, decoded once.

    `pin` puts them into page-locked memory, from which a CUDA device copies while it computes.
    """
    if workers < 0:
        raise InputError(f"the number of workers must not be negative, got {workers}")
    batches = Batches(images, indices, transforms, batch_size, PIECE if workers else batch_size)
    skipped = frozenset(skip)
    chunks = [batches.pieces(chunk) for chunk in range(len(batches)) if chunk not in skipped]
    # batch_size=None: an item is already a piece of a batch, and the sampler gives the pieces in order.
    wanted = [piece for pieces in chunks for piece in pieces]
    loader = DataLoader(batches, batch_size=None, sampler=wanted, num_workers=workers, collate_fn=_as_it_is)
    return _whole_chunks(iter(loader), list(map(len, chunks)), pin)


def _whole_chunks(
    pieces: Iterator[tuple[Batch, ...]], numbers: Sequence[int], pin: bool
) -> Iterator[tuple[Batch, ...]]:
    """Joins the given numbers of pieces, one after the other."""
    for number in numbers:
        yield tuple(_joined(view, pin) for view in zip(*islice(pieces, number), strict=True))


def _joined(parts: Sequence[Batch], pin: bool) -> Batch:
    """One batch of the pieces of a chunk."""
    shape = (sum(len(part.pixels) for part in parts), *parts[0].pixels.shape[1:])
    pixels = parts[0].pixels
    if pin or len(parts) > 1:
        pixels = torch.empty(shape, dtype=pixels.dtype, pin_memory=pin)
        torch.cat([part.pixels for part in parts], out=pixels)
    labels, ids, indices = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "ids", "indices")
    )
    unreadable = [name for part in parts for name in part.unreadable]
    return Batch(parts[0].chunk, pixels, labels, ids, indices, unreadable)


def default_workers(device: torch.device) -> int:
    """Worker processes if nothing else is asked for: the processors, at most 16, beside a GPU; on the CPU none.

    There, the networks need the processors themselves.
    """
    if device.type != "cuda":
        return 0
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, here)


def _as_it_is(batch: Any) -> Any:
    return batch


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image as greyscale (1 channel) or RGB (3), as Pillow converts it.

    Transparency is dropped and the orientation in the EXIF data ignored, as in timm's and torchvision's evaluation. But
    16-bit greyscale is scaled to 8 bits, which Pillow would clip: nearly all of it would be white.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).clip(0, 65535).astype(np.int64) + 128) // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns of the direct way
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


@dataclass(frozen=True)
class _EvalTransform:
    """Mode conversion, then timm's own transform; a class, so that worker processes can be sent it."""

    channels: int
    timm_transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.timm_transform(to_mode(image, self.channels))


def eval_transform(data_config: Mapping[str, Any], **overrides: Any) -> Transform:
    """timm's evaluation transform of a model's data config: a PIL image of any mode gives (C, H, W) float32.

    `overrides` replace entries of the config (`crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`,
    `input_size`); None leaves an entry alone. The short side is resized to the image size divided by `crop_pct`: DeiT's
    own evaluation has 0.875 (256 for 224), timm's config of DeiT 0.9 (248). Raises InputError for an override that the
    config does not have, a `crop_pct` outside [0.05, 1] and an interpolation that Pillow does not have.
    """
    for key in overrides:
        if key not in data_config:
            raise InputError(f"'{key}' is no entry of the model's data config{nearest(key, list(data_config))}")
    given = {key: value for key, value in overrides.items() if value is not None}
    if not _LEAST_CROP <= given.get("crop_pct", 1.0) <= 1:
        raise InputError(f"--crop-pct {given['crop_pct']} is no share of the image: give one from {_LEAST_CROP} to 1")
    if given.get("interpolation", "bicubic") not in _INTERPOLATIONS:
        raise InputError(f"unknown --interpolation '{given['interpolation']}': give {', '.join(_INTERPOLATIONS)}")
    config = {**data_config, **given}
    return _EvalTransform(config["input_size"][0], create_transform(**config, is_training=False))


def as_seen(image: Image.Image, data_config: Mapping[str, Any]) -> Image.Image:
    """What a model of this data config sees of an image: resized and cropped, greyscale or RGB, not yet normalised."""
    plain = {"mean": (0.0,) * len(data_config["mean"]), "std": (1.0,) * len(data_config["std"])}
    seen: Image.Image = to_pil_image(eval_transform(data_config, **plain)(image))
    return seen
