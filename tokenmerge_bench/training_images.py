"""Where training takes its images from: pixels in memory, or files decoded by worker processes.

What an epoch sees follows from (seed, epoch, process) alone, whatever the number of workers, so that training that was
interrupted goes on as if it had not been. Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokenmerge_bench.augment import Augment, center_crop, normalize
from tokenmerge_bench.data import (
    ArrayImages,
    ImageSet,
    Indices,
    Unreadable,
    eval_transform,
    fashion_mnist_train,
    iter_batches,
    open_dataset,
    subset,
    to_mode,
)
from tokenmerge_bench.datasets import class_folders, split_folders
from tokenmerge_bench.distributed import Team
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.recipe import Recipe
from tokenmerge_bench.splits import SPLITS, TRAINING

__all__ = ["Micro", "Source", "Split", "divide", "micro_batch", "mixed_seed", "open_source", "open_training_set"]

_SMALL = 64
"""Images of at most so many pixels a side are decoded once and kept in memory."""
_AT_A_TIME = 2**23
"""Values of small images that are augmented together: a GPU runs faster than the host can ask it for so little."""


@dataclass(frozen=True)
class Micro:
    """Images that a process takes at a time: (B, C, H, W) float32, with labels and identifiers (B,) int64."""

    pixels: Tensor
    labels: Tensor
    ids: Tensor


def open_training_set(spec: str) -> ImageSet:
    """The training images of a folder of the Fashion-MNIST files, or of class folders in `train/`.

    The folder `train/` itself may be given too. Raises InputError for `demo`, which is a test set, for a folder that is
    not divided into splits, so that it might be one, for splits without a training one or with other classes
    than it, for images of one class, and as `fashion_mnist_train` and `open_dataset` do.
    """
    images = _open_training_set(spec)
    if images.classes < 2:
        raise InputError(f"'{spec}' has images of one class, and nothing to tell apart: give class folders, one each")
    return images


def _open_training_set(spec: str) -> ImageSet:
    if spec == "demo":
        raise InputError("'demo' is a test set and must not be trained on: give a folder of training images")
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise InputError(f"no folder '{spec}' to train on: give one of Fashion-MNIST files or of class folders")
    if any(root.glob("*-ubyte*")) or (root / "FashionMNIST").is_dir():
        return fashion_mnist_train(root)
    splits = split_folders(root)
    if not splits:
        if root.resolve().name not in TRAINING:
            raise InputError(
                f"'{spec}' is not divided into train/ and val/, so that it might be a test set: put the images to "
                "train on into a folder train/ and give it or the folder around it"
            )
        around = root.resolve().parent
        _check_classes(around, root.resolve().name, split_folders(around))
        return open_dataset(spec)
    training = next((name for name in TRAINING if name in splits), None)
    if training is None:
        raise InputError(f"'{spec}' holds {', '.join(splits)} but no training images: put them in a folder train/")
    _check_classes(root, training, splits)
    return open_dataset(spec, split="train")


def _check_classes(root: Path, training: str, folders: list[str]) -> None:
    """Labels are positions among the class folders, so all splits must have the same."""
    known = class_folders(root / training)
    for name in SPLITS.intersection(folders) - {training}:
        here = class_folders(root / name)
        odd = sorted(set(here) ^ set(known))
        if here and odd:
            has, lacks = (name, training) if odd[0] in here else (training, name)
            raise InputError(
                f"'{root}': {has}/ has the class '{odd[0]}', which {lacks}/ lacks ({len(odd)} such in all): give both "
                "the same class folders"
            )


def mixed_seed(*parts: int) -> int:
    """One 32-bit seed of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@dataclass(frozen=True)
class Split:
    """Indices of the images trained on and of those held out."""

    train: Indices
    holdout: Indices


def divide(images: ImageSet, recipe: Recipe) -> Split:
    """Holds out images of every class alike. Raises InputError if no batch is left to train on."""
    if recipe.holdout + recipe.batch_size > len(images):
        raise InputError(
            f"{len(images)} training images of '{images.name}' are too few for holdout "
            f"{recipe.holdout} and one batch of {recipe.batch_size}: lower holdout or batch_size"
        )
    everything = np.arange(len(images), dtype=np.int64)
    held = subset(images, recipe.holdout, recipe.seed) if recipe.holdout else everything[:0]
    return Split(np.setdiff1d(everything, held), held)


class Source(ABC):
    """Batches of one process, in the order of an epoch.

    Args:
        images: what there is.
        split: what of it to train on and what to hold out.
        recipe: batch size, augmentation and seed.
        config: timm's data config of the model.
        team: the processes that share the work.
    """

    def __init__(self, images: ImageSet, split: Split, recipe: Recipe, config: Mapping[str, Any], team: Team) -> None:
        self.images, self.split, self.recipe, self.config, self.team = images, split, recipe, config, team
        self.updates = len(split.train) // recipe.batch_size
        """Updates of an epoch; a rest of less than a batch is left out, another one each epoch."""
        if not self.updates:
            raise InputError(
                f"only {len(split.train)} images of '{images.name}' to train on can be decoded, which is less than one "
                f"batch of {recipe.batch_size}: check the files, or lower batch_size"
            )
        self.micro = micro_batch(recipe, team)
        self.unreadable: set[str] = set()
        self._generator = torch.Generator(team.device)
        self._augment = Augment(
            config,
            pad=recipe.pad,
            hflip=recipe.hflip,
            erasing=recipe.erasing,
            rand_augment=recipe.rand_augment,
            generator=self._generator,
        )

    def micros(self, epoch: int) -> Iterator[Micro]:
        """Augmented training images, `micro` at a time; each update takes as many as make its batch.

        Identifiers change from epoch to epoch, so that methods that draw random numbers draw others.
        """
        # Not what the epoch gives torch's own generator, or drop path would draw what crops and flips draw.
        self._generator.manual_seed(mixed_seed(self.recipe.seed, epoch, self.team.rank, 1))
        for micro in self._micros(epoch, self._order(epoch)):
            yield Micro(micro.pixels, micro.labels, micro.ids + epoch)

    @abstractmethod
    def _micros(self, epoch: int, order: Indices) -> Iterator[Micro]: ...

    @abstractmethod
    def holdout(self) -> Iterator[Micro]:
        """This process's part of the held-out images, as the model takes them."""

    def _order(self, epoch: int) -> Indices:
        """Indices of the images of this process, update after update."""
        recipe, team = self.recipe, self.team
        shuffled = np.random.default_rng((recipe.seed, epoch)).permutation(self.split.train)
        # Repeated augmentation (Hoffer et al., CVPR 2020): fewer images, each in several views of one batch.
        views = np.repeat(shuffled, recipe.repeats)[: self.updates * recipe.batch_size]
        order: Indices = views.reshape(self.updates, recipe.batch_size)[:, team.rank :: team.size].reshape(-1)
        return order

    def _held(self) -> Indices:
        held: Indices = self.split.holdout[self.team.rank :: self.team.size]
        return held


def micro_batch(recipe: Recipe, team: Team) -> int:
    """The largest equal part of a process's share of a batch that the recipe allows; even where images are mixed."""
    share, rest = divmod(recipe.batch_size, team.size)
    most = recipe.micro_batch_size or share
    parts = [share // n for n in range(1, share + 1) if share % n == 0 and share // n <= most]
    fitting = [part for part in parts if not (recipe.mixes and part % 2)]
    if rest or not fitting:
        even = ", in even numbers" if recipe.mixes else ""
        raise InputError(
            f"batch_size {recipe.batch_size} cannot be shared equally by {team.size} processes in parts of at most "
            f"{most} images{even}: change batch_size or micro_batch_size"
        )
    return fitting[0]


def open_source(
    images: ImageSet, split: Split, recipe: Recipe, config: Mapping[str, Any], team: Team, workers: int
) -> Source:
    """From memory where images are small and need no per-image transform; decoded by `workers` elsewhere."""
    unreadable: set[str] = set()
    if not isinstance(images, ArrayImages):
        images, split, unreadable = _in_memory(images, split, config["input_size"][0], workers)
    source: Source
    if isinstance(images, ArrayImages) and _as_it_is(recipe) and _fits(images, config):
        source = _FromMemory(images, split, recipe, config, team)
    else:
        source = _FromWorkers(images, split, recipe, config, team, workers)
    source.unreadable |= unreadable
    return source


def _as_it_is(recipe: Recipe) -> bool:
    return recipe.crop_scale is None and recipe.auto_augment is None and not recipe.color_jitter


def _fits(images: ArrayImages, config: Mapping[str, Any]) -> bool:
    """Whether images are of the size and the channels that are augmented."""
    channels = images.pixels.shape[3] if images.pixels.ndim == 4 else 1
    return (channels, *images.pixels.shape[1:3]) == (config["input_size"][0], *_canvas(config))


def _canvas(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width from which the model's images are cropped, as in evaluation."""
    _, height, width = config["input_size"]
    return math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])


def _in_memory(images: ImageSet, split: Split, channels: int, workers: int) -> tuple[ImageSet, Split, set[str]]:
    """The images decoded, if they are small and of one size, less those that cannot be decoded; else as they are."""
    decoded = _Pixels(images, channels)
    first = next(
        (found for found in (decoded[range(i, i + 1)][0] for i in range(len(images))) if found is not None), None
    )
    if first is None:
        raise InputError(f"none of the {len(images)} images of '{images.name}' can be decoded; check the files")
    if max(first.shape[:2]) > _SMALL:
        return images, split, set()
    chunks = [range(at, min(at + 512, len(images))) for at in range(0, len(images), 512)]
    pixels = np.zeros((len(images), *first.shape), np.uint8)
    blank: list[int] = []
    loader = DataLoader(decoded, batch_size=None, sampler=chunks, num_workers=workers, collate_fn=_same)
    for chunk, found in zip(chunks, loader, strict=True):
        for index, image in zip(chunk, found, strict=True):
            if image is None:
                blank.append(index)
            elif image.shape != first.shape:
                return images, split, set()
            else:
                pixels[index] = image
    held = ArrayImages(images.name, images.classes, images.labels, images.ids, images.paths, images.fingerprint, pixels)
    unreadable = {images.paths[index] for index in blank}
    return held, Split(np.setdiff1d(split.train, blank), np.setdiff1d(split.holdout, blank)), unreadable


class _Pixels(Dataset[list[Any]]):
    """Ranges of images as arrays; None for one that cannot be decoded."""

    def __init__(self, images: ImageSet, channels: int) -> None:
        self._images, self._channels = images, channels

    def __getitem__(self, chunk: range) -> list[Any]:
        return [self._decode(index) for index in chunk]

    def _decode(self, index: int) -> Any:
        try:
            return np.asarray(to_mode(self._images.load(index), self._channels))
        except Unreadable:
            return None


def _same(chunk: Any) -> Any:
    return chunk


class _FromMemory(Source):
    """All images as one uint8 tensor on the device: no decoding, no worker processes."""

    def __init__(self, images: ArrayImages, *rest: Any) -> None:
        super().__init__(images, *rest)
        pixels = torch.from_numpy(images.pixels)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        device = self.team.device
        self._pixels, self._labels = pixels.to(device), torch.from_numpy(images.labels).to(device)
        self._ids = torch.from_numpy(images.ids).to(device)

    def _micros(self, epoch: int, order: Indices) -> Iterator[Micro]:
        together = self.micro * max(1, _AT_A_TIME // (self.micro * self._pixels[0].numel()))
        for at in torch.split(torch.from_numpy(order).to(self.team.device), together):
            parts = (self._augment(self._pixels[at]), self._labels[at], self._ids[at])
            yield from map(Micro, *(torch.split(part, self.micro) for part in parts))

    def holdout(self) -> Iterator[Micro]:
        held = torch.from_numpy(self._held()).to(self.team.device)
        if not len(held):  # of nothing, torch.split makes one empty batch
            return
        for at in torch.split(held, 4 * self.micro):  # no gradients, so there is room
            cropped = center_crop(self._pixels[at], self.config["input_size"][1:])
            pixels = normalize(cropped, self.config["mean"], self.config["std"])
            yield Micro(pixels, self._labels[at], self._ids[at])


@dataclass(frozen=True)
class _View:
    """One view of an image in an epoch, and the seed of its random transform."""

    index: int
    seed: int


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Views of images, decoded, cropped and auto-augmented by timm's training transform, as uint8.

    One that cannot be decoded is black and has the label -1 - index.
    """

    def __init__(self, images: ImageSet, recipe: Recipe, config: Mapping[str, Any]) -> None:
        self._images, self._channels = images, config["input_size"][0]
        # Flips, erasing and normalisation are left to the device, and so is cropping where there is no crop_scale.
        self._size = tuple(config["input_size"][1:]) if recipe.crop_scale else _canvas(config)
        self._transform = create_transform(
            (self._channels, *self._size),
            is_training=True,
            scale=recipe.crop_scale or (1.0, 1.0),
            ratio=(3 / 4, 4 / 3) if recipe.crop_scale else (1.0, 1.0),
            hflip=0.0,
            color_jitter=recipe.color_jitter or None,
            auto_augment=recipe.auto_augment,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            normalize=False,
        )
        _mend_posterize(self._transform)

    def __getitem__(self, view: _View) -> tuple[Tensor, int]:
        try:
            image, label = to_mode(self._images.load(view.index), self._channels), int(self._images.labels[view.index])
        except Unreadable:
            mode = "L" if self._channels == 1 else "RGB"
            image, label = Image.new(mode, (self._size[1], self._size[0])), -1 - view.index
        with _drawing(view.seed):
            return self._transform(image), label


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Transforms draw from Python's, numpy's and torch's own generators, which are then as they were before.

    A view's draws must not hang on which worker makes it, nor what training draws on whether there are workers.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - timm draws from it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would see to GPUs as well, which takes longer
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _mend_posterize(transform: Any) -> None:
    """timm's RandAugment may ask Pillow to keep no bits of an image, which newer versions of Pillow refuse."""
    for step in transform.transforms:
        for op in getattr(step, "ops", ()):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, bits) if 0 < bits < 8 else image.point(lambda value: value if bits else 0)


@dataclass
class _Views:
    """The views of an epoch, as a sampler that persistent workers can be asked for again."""

    views: list[_View] = field(default_factory=list)

    def __iter__(self) -> Iterator[_View]:
        return iter(self.views)

    def __len__(self) -> int:
        return len(self.views)


class _FromWorkers(Source):
    """Images decoded by worker processes, for sets that do not fit in memory or need per-image transforms."""

    def __init__(
        self,
        images: ImageSet,
        split: Split,
        recipe: Recipe,
        config: Mapping[str, Any],
        team: Team,
        workers: int,
    ) -> None:
        super().__init__(images, split, recipe, config, team)
        self._workers, self._views = workers, _Views()
        self._loader = DataLoader(
            _Decoded(images, recipe, config),
            batch_size=self.micro,
            sampler=self._views,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=team.device.type == "cuda",
            generator=torch.Generator(),  # what it draws is not used, and must not be drawn from torch's own
        )

    def _micros(self, epoch: int, order: Indices) -> Iterator[Micro]:
        first = mixed_seed(self.recipe.seed, epoch, self.team.rank)
        self._views.views = [_View(int(index), (first + at) % 2**32) for at, index in enumerate(order)]
        device = self.team.device
        for number, (pixels, labels) in enumerate(self._loader):
            at = order[number * self.micro : (number + 1) * self.micro]
            ids = torch.from_numpy(self.images.ids[at])
            self._replace_unreadable(pixels, labels)
            on_device = (x.to(device, non_blocking=True) for x in (pixels, labels, ids))
            pixels, labels, ids = on_device
            yield Micro(self._augment(pixels), labels, ids)

    def _replace_unreadable(self, pixels: Tensor, labels: Tensor) -> None:
        """Puts another image of the batch in the place of one that cannot be decoded, and remembers its name."""
        bad = (labels < 0).nonzero().flatten().tolist()
        good = (labels >= 0).nonzero().flatten().tolist()
        self.unreadable.update(self.images.paths[-1 - int(labels[position])] for position in bad)
        if bad and not good:
            raise InputError(
                f"none of {len(bad)} images in a row of '{self.images.name}' can be decoded, such as "
                f"'{min(self.unreadable)}'; check the files"
            )
        for number, position in enumerate(bad):
            other = good[number % len(good)]
            pixels[position], labels[position] = pixels[other], labels[other]

    def holdout(self) -> Iterator[Micro]:
        transform, held = eval_transform(self.config), self._held()
        if not len(held):
            return
        for batch in iter_batches(self.images, held, transform, self.micro, self._workers):
            self.unreadable.update(batch.unreadable)
            if not len(batch.labels):  # none can be decoded, and not every method takes an empty batch
                continue
            parts = (batch.pixels, torch.from_numpy(batch.labels), torch.from_numpy(batch.ids))
            yield Micro(*(part.to(self.team.device) for part in parts))
