"""Fashion-MNIST's IDX files: the test images inside the package, and those that users have."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokenmerge_bench import idx
from tokenmerge_bench.data import ArrayImages, fashion_mnist_train, open_dataset
from tokenmerge_bench.errors import InputError


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_demo_is_the_fashion_mnist_test_set() -> None:
    demo = open_dataset("demo")
    assert (demo.name, len(demo), demo.classes) == ("demo", 10_000, 10)
    assert np.bincount(demo.labels).tolist() == [1000] * 10
    assert demo.labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert demo.load(0).size == (28, 28)
    assert demo.load(0).mode == "L"
    assert (demo.ids == np.arange(10_000)).all()
    assert demo.fingerprint == open_dataset("demo").fingerprint


def test_the_users_own_test_files_hold_the_same_images_as_the_demo() -> None:
    mine, demo = open_dataset("torch/fashion_mnist", idx._DEMO), open_dataset("demo")
    assert (mine.name, mine.fingerprint) == ("fashion_mnist", demo.fingerprint)


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("part", "read", "name"),
    [
        ("train", fashion_mnist_train, "fashion_mnist_train"),
        ("train", lambda root: open_dataset("torch/fashion_mnist", root, "train"), "fashion_mnist_train"),
        ("t10k", lambda root: open_dataset("torch/fashion_mnist", root), "fashion_mnist"),
    ],
    ids=["function", "train", "test"],
)
def test_files_are_found_where_people_have_them(
    tmp_path: Path, place: str, suffix: str, part: str, read: Callable[[Path], ArrayImages], name: str
) -> None:
    pixels, labels = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2), np.array([4, 0, 9], dtype=np.uint8)
    write_idx(tmp_path / place / f"{part}-images-idx3-ubyte{suffix}", pixels)
    write_idx(tmp_path / place / f"{part}-labels-idx1-ubyte{suffix}", labels)
    images = read(tmp_path)
    assert (images.pixels == pixels).all()
    assert images.labels.tolist() == [4, 0, 9]
    assert (images.name, images.classes) == (name, 10)


def test_missing_and_damaged_training_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"torchvision.datasets.FashionMNIST.*dataset-fashion-mnist"):
        fashion_mnist_train(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(images, np.zeros((3, 2, 2), dtype=np.uint8))
    write_idx(labels, np.zeros(2, dtype=np.uint8))
    with pytest.raises(InputError, match="3 images but 2 labels"):
        fashion_mnist_train(tmp_path)
    labels.write_bytes(labels.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        fashion_mnist_train(tmp_path)
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(InputError, match="cut short"):
        fashion_mnist_train(tmp_path)
    images.write_bytes(b"\x00\x00\x08\x01" + bytes(12))
    with pytest.raises(InputError, match="no IDX file of 3-dimensional"):
        fashion_mnist_train(tmp_path)


def test_the_licence_of_the_shipped_images_is_beside_them() -> None:
    notice = (idx._DEMO / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in notice
    assert "Copyright (c) 2017 Zalando SE" in notice
