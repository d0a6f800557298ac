"""Fashion-MNIST in its IDX files: the test images inside the package (`demo`), and the user's own files."""

from __future__ import annotations

import gzip
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.images import ArrayImages

__all__ = ["CLASSES", "NAMES", "demo", "fashion_mnist_test", "fashion_mnist_train"]

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the classes, by label."""
NAMES = ("demo", "fashion_mnist", "fashion_mnist_train")
"""The image sets that are opened here."""
_DEMO = Path(__file__).parent / "demo" / "fashion_mnist"


@cache
def demo() -> ArrayImages:
    """The 10,000 Fashion-MNIST test images inside the package, read once."""
    return _read_pair("demo", _DEMO, "t10k")


def fashion_mnist_train(root: Path) -> ArrayImages:
    """The 60,000 Fashion-MNIST training images.

    Read from IDX files (plain or .gz) in `root` or `root`/FashionMNIST/raw. Raises InputError where they
    are not found, saying where to get them, and for damaged files.
    """
    return _read_pair("fashion_mnist_train", _folder(root, "train", "training"), "train")


def fashion_mnist_test(root: Path) -> ArrayImages:
    """The 10,000 Fashion-MNIST test images, from the user's files as `fashion_mnist_train` reads them."""
    return _read_pair("fashion_mnist", _folder(root, "t10k", "test"), "t10k")


def _folder(root: Path, part: str, called: str) -> Path:
    stems = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    for folder in (root, root / "FashionMNIST" / "raw"):
        if all(_file(folder, stem) for stem in stems):
            return folder
    raise InputError(
        f"no Fashion-MNIST {called} files in '{root}' ({', '.join(stems)}, plain or .gz): "
        "get them with torchvision.datasets.FashionMNIST(root, download=True) or Debian's package "
        "dataset-fashion-mnist"
    )


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _read_pair(name: str, folder: Path, part: str) -> ArrayImages:
    pixels = _read(folder, f"{part}-images-idx3-ubyte", 3)
    labels = _read(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise InputError(f"'{folder}' has {len(pixels)} images but {len(labels)} labels ({part}): download both again")
    return ArrayImages.of(name, pixels, labels.astype(np.int64), classes=10)


def _read(folder: Path, stem: str, dims: int) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes: magic (0, 0, 8, dims), sizes as big-endian uint32, then the data."""
    path = _file(folder, stem)
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
