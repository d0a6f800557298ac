"""Labelled image sets (the demo, ImageNet folders, Fashion-MNIST for training), subsets and batches.

An `ImageSet` gives PIL images by index. Batches are decoded and transformed in worker processes, in a fixed
order and with fixed chunk boundaries, so that an interrupted sweep can leave out the chunks it has already
seen.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokenmerge_bench.errors import InputError, nearest

__all__ = [
    "ArrayImages",
    "Batch",
    "Batches",
    "FolderImages",
    "ImageSet",
    "Transform",
    "Unreadable",
    "eval_transform",
    "fashion_mnist_train",
    "iter_batches",
    "load_batch",
    "open_dataset",
    "subset",
    "to_mode",
]

Indices = npt.NDArray[np.int64]
Transform = Callable[[Image.Image], Tensor]

_DEMO = Path(__file__).parent / "demo" / "fashion_mnist"
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"})
# What Pillow raises on damaged files, by format; UnidentifiedImageError is an OSError.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


class Unreadable(Exception):
    """An image file that cannot be decoded; the message is its name."""


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """Labelled images, by index.

    `classes` is the number of classes of the label space (1000 for ImageNet even if fewer have images).
    `labels` and `ids` are (len,) int64; an id names an image whatever its position or the folder's other
    contents, and seeds per-image randomness. `paths` are names for messages. `fingerprint` is 16 hex digits
    over what identifies the content.
    """

    name: str
    classes: int
    labels: Indices
    ids: Indices
    paths: list[str]
    fingerprint: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """The decoded image at `index`; raises Unreadable if it cannot be decoded."""


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageSet):
    """Images in memory: (len, H, W) greyscale or (len, H, W, 3) RGB uint8.

    The fingerprint covers pixels and labels.
    """

    pixels: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, name: str, pixels: npt.NDArray[np.uint8], labels: Indices, classes: int) -> ArrayImages:
        """An image set of the given arrays; ids are the positions."""
        digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + labels.astype("<i8").tobytes())
        names = [f"{name}[{i}]" for i in range(len(labels))]
        ids = np.arange(len(labels), dtype=np.int64)
        return cls(name, classes, labels.astype(np.int64), ids, names, digest.hexdigest()[:16], pixels)

    def load(self, index: int) -> Image.Image:
        """The image at `index`, mode L or RGB."""
        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True, eq=False)
class FolderImages(ImageSet):
    """Image files in class folders below `root`; `paths` are relative to it, POSIX style.

    The fingerprint covers relative paths, file sizes and labels, not pixels: reading every byte would cost
    more than many a sweep. The ids are the first 8 bytes of sha256 of the relative path, masked to 63 bits.
    """

    root: Path

    def load(self, index: int) -> Image.Image:
        """Decode the file at `index`; raises Unreadable with its relative path if that fails."""
        try:
            with Image.open(self.root / self.paths[index]) as image:
                image.load()
                return image.copy()
        except (*_DECODE_ERRORS, Image.DecompressionBombError) as error:
            raise Unreadable(self.paths[index]) from error


def open_dataset(spec: str) -> ImageSet:
    """The image set that a user names: `demo` or a folder of ImageNet class folders.

    `demo` is the 10,000 Fashion-MNIST test images. Class folders are WordNet ids; a label is the id's
    position among the 1000 sorted ImageNet-1k ids. Hidden folders are passed over. Raises InputError for a
    missing or empty folder and for a folder name that is no ImageNet id.
    """
    if spec == "demo":
        return _read_idx_pair("demo", _DEMO, "t10k")
    root = Path(spec).expanduser()
    if not root.exists():
        if Path(spec).name == spec:
            raise InputError(f"unknown dataset '{spec}': give 'demo' or a folder of ImageNet class folders")
        raise InputError(f"dataset folder '{spec}' does not exist: check the path, or give 'demo'")
    if not root.is_dir():
        raise InputError(f"dataset '{spec}' is a file: give the folder that holds the class folders")
    return _open_folder(root)


def _open_folder(root: Path) -> FolderImages:
    wnids: list[str] = ImageNetInfo().label_names()
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    found: list[tuple[str, int, int]] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if folder.name not in label_of:
            raise InputError(
                f"'{folder.name}' in dataset folder '{root}' is no ImageNet-1k WordNet id (as n01440764 is): "
                "give the folder that holds the class folders, and nothing else"
            )
        found += [(path, size, label_of[folder.name]) for path, size in _image_files(root, folder)]
    if not found:
        raise InputError(f"no images in dataset folder '{root}': put them in class folders, as n01440764/*.JPEG")
    found.sort()
    paths = [path for path, _, _ in found]
    lines = "".join(f"{path}\t{size}\t{label}\n" for path, size, label in found)
    return FolderImages(
        name=root.resolve().name,
        classes=len(wnids),
        labels=np.array([label for _, _, label in found], dtype=np.int64),
        ids=np.array([_path_id(path) for path in paths], dtype=np.int64),
        paths=paths,
        fingerprint=hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        root=root,
    )


def _image_files(root: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Relative POSIX path and size in bytes of every image file below `folder`."""
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in _SUFFIXES and not name.startswith("."):
                # A dangling link is an unreadable image later on, not a crash now.
                yield path.relative_to(root).as_posix(), path.stat().st_size if path.exists() else 0


def _path_id(path: str) -> int:
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def fashion_mnist_train(root: Path) -> ArrayImages:
    """The 60,000 Fashion-MNIST training images.

    Read from IDX files (plain or .gz) in `root` or `root`/FashionMNIST/raw. Raises InputError where they
    are not found, saying where to get them, and for damaged files.
    """
    for folder in (root, root / "FashionMNIST" / "raw"):
        if _idx_file(folder, "train-images-idx3-ubyte") and _idx_file(folder, "train-labels-idx1-ubyte"):
            return _read_idx_pair("fashion_mnist_train", folder, "train")
    raise InputError(
        f"no Fashion-MNIST training files in '{root}' (train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "plain or .gz): "
        "get them with torchvision.datasets.FashionMNIST(root, download=True) or Debian's package "
        "dataset-fashion-mnist"
    )


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _read_idx_pair(name: str, folder: Path, part: str) -> ArrayImages:
    pixels = _read_idx(folder, f"{part}-images-idx3-ubyte", 3)
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise InputError(f"'{folder}' has {len(pixels)} images but {len(labels)} labels ({part}): download both again")
    return ArrayImages.of(name, pixels, labels.astype(np.int64), classes=10)


def _read_idx(folder: Path, stem: str, dims: int) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes: magic (0, 0, 8, dims), sizes as big-endian uint32, then the data."""
    path = _idx_file(folder, stem)
    if path is None:
        raise InputError(f"'{folder}' lacks {stem}.gz: reinstall tokenmerge-bench or download the file again")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"'{path}' is damaged ({error}): download it again") from error
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes((0, 0, 8, dims)):
        raise InputError(f"'{path}' is no IDX file of {dims}-dimensional bytes: download it again")
    shape = struct.unpack(f">{dims}I", content[4:header])
    if len(content) != header + int(np.prod(shape)):
        raise InputError(f"'{path}' is cut short or padded (its header says {shape}): download it again")
    # A copy, because a view of bytes is read-only and torch warns about sharing it.
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


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
    pixels: list[Tensor] = []
    kept: list[int] = []
    unreadable: list[str] = []
    for index in map(int, indices):
        try:
            image = images.load(index)
        except Unreadable as error:
            unreadable.append(str(error))
            continue
        pixels.append(transform(image))
        kept.append(index)
    # With nothing readable, the shape of a blank image keeps the batch (0, C, H, W).
    stack = torch.stack(pixels) if pixels else transform(Image.new("RGB", (8, 8)))[None][:0]
    at = np.array(kept, dtype=np.int64)
    return Batch(chunk, stack, images.labels[at], images.ids[at], at, unreadable)


class Batches(Dataset[Batch]):
    """Chunks of `indices`, each loaded as one item.

    Chunk c is `indices[c * batch_size : (c + 1) * batch_size]`. Raises InputError for a batch size below 1.
    """

    def __init__(self, images: ImageSet, indices: Indices, transform: Transform, batch_size: int) -> None:
        """`transform` must be picklable when worker processes are used."""
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, got {batch_size}")
        self.images, self.indices, self.transform, self.batch_size = images, indices, transform, batch_size

    def __len__(self) -> int:
        """Number of chunks, the last of which may be short."""
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, chunk: int) -> Batch:
        """Load chunk number `chunk`."""
        part = self.indices[chunk * self.batch_size : (chunk + 1) * self.batch_size]
        return load_batch(self.images, part, self.transform, chunk)


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
    if workers < 0:
        raise InputError(f"the number of workers must not be negative, got {workers}")
    batches = Batches(images, indices, transform, batch_size)
    wanted = [chunk for chunk in range(len(batches)) if chunk not in set(skip)]
    # batch_size=None: an item is already a batch, and the sampler gives the chunk numbers in order.
    loader = DataLoader(batches, batch_size=None, sampler=wanted, num_workers=workers, collate_fn=_as_it_is)
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image as greyscale (1 channel) or RGB (3)."""
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
    `input_size`); None leaves an entry alone. Raises InputError for an override that the config does not
    have.
    """
    for key in overrides:
        if key not in data_config:
            raise InputError(f"'{key}' is no entry of the model's data config{nearest(key, list(data_config))}")
    config = {**data_config, **{key: value for key, value in overrides.items() if value is not None}}
    return _EvalTransform(config["input_size"][0], create_transform(**config, is_training=False))
