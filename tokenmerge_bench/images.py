"""What an image set is, and the three ways to hold one: pixels in memory, encoded files, rows of a table.

Every kind gives PIL images by index, can be pickled, and opens a file anew for each image, so that worker processes
never share one.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenmerge_bench.errors import InputError

__all__ = ["ArrayImages", "FileImages", "ImageSet", "Indices", "Member", "RowImages", "Unreadable", "is_image"]

Indices = npt.NDArray[np.int64]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
# What Pillow raises on damaged files, by format; UnidentifiedImageError is an OSError.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


class Unreadable(Exception):
    """An image that cannot be decoded; the message is its name."""


def is_image(name: str) -> bool:
    """Whether a file of this name (without folders) is taken for an image: by its suffix, unless it is hidden."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """Labelled images, by index.

    `classes` is the number of classes of the label space (1000 for ImageNet even if fewer have images).
    `labels` and `ids` are (len,) int64; an id names an image whatever its position or what else there is, and seeds
    per-image randomness. `paths` are names for messages and tables. `fingerprint` is 16 hex digits over what
    identifies the content.
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


@dataclass(frozen=True)
class Member:
    """One encoded image that was listed but not read: `size` bytes of `file` from `offset` on.

    `path` is its POSIX path within the folder or archive that was listed.
    """

    path: str
    file: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class FileImages(ImageSet):
    """Encoded images, each a file of its own or a stretch of an archive.

    The fingerprint covers names, sizes and labels, not pixels: reading every byte would cost more than many a sweep.
    The ids are the first 8 bytes of sha256 of the name, masked to 63 bits.
    """

    members: list[Member]

    @classmethod
    def of(cls, name: str, classes: int, found: Sequence[tuple[str, int, Member]]) -> FileImages:
        """An image set of (name, label, member), sorted by name. Raises InputError if two names are the same."""
        ordered = sorted(found, key=lambda image: image[0])
        paths = [path for path, _, _ in ordered]
        twice = next((path for path, after in pairwise(paths) if path == after), None)
        if twice is not None:
            raise InputError(f"data set '{name}' holds the image '{twice}' twice: leave one of the two out")
        lines = "".join(f"{path}\t{member.size}\t{label}\n" for path, label, member in ordered)
        return cls(
            name,
            classes,
            labels=np.array([label for _, label, _ in ordered], dtype=np.int64),
            ids=np.array([_name_id(path) for path in paths], dtype=np.int64),
            paths=paths,
            fingerprint=_digest(lines).hex()[:16],
            members=[member for _, _, member in ordered],
        )

    def load(self, index: int) -> Image.Image:
        """Decode the image at `index`; raises Unreadable with its name if that fails."""
        member = self.members[index]
        try:
            with open(member.file, "rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise Unreadable(self.paths[index]) from error
        return _decode(content, self.paths[index])


@dataclass(frozen=True, eq=False)
class RowImages(ImageSet):
    """Rows of a `datasets.Dataset` whose column `column` holds encoded images (`bytes`, or the `path` of a file).

    The fingerprint covers the sizes of the encoded images, the names of files and the labels; ids are the row numbers.
    """

    rows: Any
    column: str

    @classmethod
    def of(cls, name: str, classes: int, labels: Indices, marks: Sequence[str], rows: Any, column: str) -> RowImages:
        """An image set of all rows; `marks` are what the fingerprint covers of each image."""
        lines = "".join(f"{mark}\t{label}\n" for mark, label in zip(marks, labels, strict=True))
        names = [f"{name}[{i}]" for i in range(len(labels))]
        ids = np.arange(len(labels), dtype=np.int64)
        return cls(name, classes, labels, ids, names, _digest(lines).hex()[:16], rows, column)

    def load(self, index: int) -> Image.Image:
        """Decode the image of row `index`; raises Unreadable with its name if that fails."""
        value = self.rows[int(index)][self.column] or {}
        content, path = value.get("bytes"), value.get("path")
        try:
            return _decode(content or Path(path or "").read_bytes(), self.paths[index])
        except OSError as error:
            raise Unreadable(self.paths[index]) from error


def _decode(content: bytes, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return image.copy()
    except (*_DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise Unreadable(name) from error


def _name_id(name: str) -> int:
    return int.from_bytes(_digest(name)[:8], "big") & (2**63 - 1)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
