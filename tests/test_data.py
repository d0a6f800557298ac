"""Image sets, subsets and batches."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from tokenmerge_bench import data
from tokenmerge_bench.data import (
    ArrayImages,
    eval_transform,
    fashion_mnist_train,
    iter_batches,
    load_batch,
    open_dataset,
    subset,
)
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import DEMO_MODEL, build_model, data_config

GREY = {
    "input_size": (1, 28, 28),
    "mean": (0.5,),
    "std": (0.25,),
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
}
RGB = {**GREY, "input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def array_images(labels: list[int], classes: int = 10) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    return ArrayImages.of("toy", pixels, np.array(labels, dtype=np.int64), classes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes out of order, several suffixes, one broken and one truncated file, things to pass over."""
    root = tmp_path / "val"
    for wnid, name in [("n01443537", "b.PNG"), ("n01440764", "a.jpg"), ("n01440764", "sub/c.webp")]:
        path = root / wnid / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, format={".PNG": "PNG", ".jpg": "JPEG"}.get(path.suffix, "WEBP"))
    whole = (root / "n01443537" / "b.PNG").read_bytes()
    (root / "n01443537" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "n01440764" / "broken.jpeg").write_bytes(b"not an image")
    (root / "n01440764" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    return root


def test_imagenet_labels_are_the_sorted_wordnet_ids() -> None:
    names = ImageNetInfo().label_names()
    assert len(names) == 1000
    assert names == sorted(names)


def test_demo_is_the_fashion_mnist_test_set() -> None:
    demo = open_dataset("demo")
    assert (demo.name, len(demo), demo.classes) == ("demo", 10_000, 10)
    assert np.bincount(demo.labels).tolist() == [1000] * 10
    assert demo.labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert demo.load(0).size == (28, 28)
    assert demo.load(0).mode == "L"
    assert (demo.ids == np.arange(10_000)).all()
    assert demo.fingerprint == open_dataset("demo").fingerprint


def test_fingerprint_of_arrays_covers_pixels_and_labels() -> None:
    one = array_images([0, 1, 2])
    pixels = one.pixels.copy()
    pixels[2, 27, 27] ^= 1
    marks = {
        one.fingerprint,
        ArrayImages.of("toy", pixels, one.labels, 10).fingerprint,
        ArrayImages.of("toy", one.pixels, one.labels[::-1], 10).fingerprint,
    }
    assert len(marks) == 3


def test_folder_labels_are_positions_among_all_imagenet_ids(folder: Path) -> None:
    images = open_dataset(str(folder))
    assert images.name == "val"
    assert images.classes == 1000
    labelled = dict(zip(images.paths, images.labels.tolist(), strict=True))
    assert labelled == {
        "n01440764/a.jpg": 0,
        "n01440764/broken.jpeg": 0,
        "n01440764/sub/c.webp": 0,
        "n01443537/b.PNG": 1,
        "n01443537/cut.png": 1,
    }


def test_ids_of_a_folder_depend_on_the_path_alone(folder: Path) -> None:
    before = open_dataset(str(folder))
    (folder / "n01440764" / "a.jpg").unlink()
    after = open_dataset(str(folder))
    ids = dict(zip(before.paths, before.ids.tolist(), strict=True))
    # First 8 bytes of sha256("n01443537/b.PNG"), masked to 63 bits; computed by sha256sum.
    assert ids["n01443537/b.PNG"] == 0x07EA8639A5FA3A9A
    assert {path: ids[path] for path in after.paths} == dict(zip(after.paths, after.ids.tolist(), strict=True))
    assert (before.ids >= 0).all()
    assert before.fingerprint != after.fingerprint


def test_unknown_and_missing_and_wrong_places_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="unknown dataset 'imagnet'"):
        open_dataset("imagnet")
    with pytest.raises(InputError, match="does not exist"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is a file"):
        open_dataset(str(folder / "n01440764" / "a.jpg"))
    with pytest.raises(InputError, match=r"'val' in dataset folder .* no ImageNet-1k WordNet id"):
        open_dataset(str(tmp_path))
    (tmp_path / "empty" / "n01440764").mkdir(parents=True)
    with pytest.raises(InputError, match="no images"):
        open_dataset(str(tmp_path / "empty"))


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_training_files_are_found_where_people_have_them(tmp_path: Path, place: str, suffix: str) -> None:
    pixels, labels = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2), np.array([4, 0, 9], dtype=np.uint8)
    write_idx(tmp_path / place / f"train-images-idx3-ubyte{suffix}", pixels)
    write_idx(tmp_path / place / f"train-labels-idx1-ubyte{suffix}", labels)
    images = fashion_mnist_train(tmp_path)
    assert (images.pixels == pixels).all()
    assert images.labels.tolist() == [4, 0, 9]
    assert (images.name, images.classes) == ("fashion_mnist_train", 10)


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


def test_subset_is_exact_balanced_sorted_and_seeded() -> None:
    images = array_images([0] * 50 + [1] * 3 + [2] * 30)
    chosen = subset(images, 20, seed=1)
    assert len(set(chosen.tolist())) == 20
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(images.labels[chosen], minlength=3)
    assert counts[1] == 3  # all there are
    assert sorted(counts[[0, 2]].tolist()) == [8, 9]
    assert (chosen == subset(images, 20, seed=1)).all()
    assert not np.array_equal(chosen, subset(images, 20, seed=2))


def test_subset_of_fewer_images_than_classes_takes_one_of_each_chosen_class() -> None:
    images = array_images([label for label in range(10) for _ in range(5)])
    assert np.bincount(images.labels[subset(images, 4, seed=0)]).max() == 1


def test_a_larger_subset_extends_a_smaller_one() -> None:
    images = array_images([0] * 50 + [1] * 7 + [2] * 30)
    subsets = [set(subset(images, limit, seed=5).tolist()) for limit in (1, 2, 10, 33, 86)]
    assert all(subsets[i] < subsets[i + 1] for i in range(len(subsets) - 1))


def test_subset_bounds() -> None:
    images = array_images([0, 1, 1])
    assert subset(images, None, 0).tolist() == subset(images, 3, 0).tolist() == subset(images, 99, 0).tolist()
    with pytest.raises(InputError, match="at least 1, got 0"):
        subset(images, 0, 0)


def test_unreadable_images_are_listed_and_the_rest_kept(folder: Path) -> None:
    images = open_dataset(str(folder))
    batch = load_batch(images, range(len(images)), eval_transform(RGB))
    assert sorted(batch.unreadable) == ["n01440764/broken.jpeg", "n01443537/cut.png"]
    assert batch.pixels.shape == (3, 3, 32, 32)
    assert [images.paths[i] for i in batch.indices] == [
        "n01440764/a.jpg",
        "n01440764/sub/c.webp",
        "n01443537/b.PNG",
    ]
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.ids.tolist() == images.ids[batch.indices].tolist()


def test_a_batch_with_nothing_readable_keeps_its_shape(folder: Path) -> None:
    images = open_dataset(str(folder))
    broken = [i for i, path in enumerate(images.paths) if "broken" in path]
    batch = load_batch(images, broken, eval_transform(GREY))
    assert batch.pixels.shape == (0, 1, 28, 28)
    assert batch.labels.shape == batch.ids.shape == batch.indices.shape == (0,)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_fixed_boundaries_and_order(workers: int) -> None:
    images = array_images([i % 10 for i in range(11)])
    indices = np.array([10, 0, 1, 2, 5, 6, 7, 9], dtype=np.int64)
    batches = list(iter_batches(images, indices, eval_transform(GREY), 3, workers, skip={1}))
    assert [batch.chunk for batch in batches] == [0, 2]
    assert [batch.indices.tolist() for batch in batches] == [[10, 0, 1], [7, 9]]
    expected = (torch.from_numpy(images.pixels[9]).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(batches[1].pixels[1, 0], expected)


def test_skipped_chunks_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    real = ArrayImages.load

    def load(self: ArrayImages, index: int) -> Image.Image:
        loaded.append(index)
        return real(self, index)

    monkeypatch.setattr(ArrayImages, "load", load)
    images = array_images([0] * 6)
    list(iter_batches(images, np.arange(6), eval_transform(GREY), 2, 0, skip=[0, 2]))
    assert loaded == [2, 3]


def test_batch_size_and_workers_are_checked() -> None:
    images = array_images([0])
    with pytest.raises(InputError, match="batch size must be at least 1, got 0"):
        iter_batches(images, np.arange(1), eval_transform(GREY), 0, 0)
    with pytest.raises(InputError, match="workers must not be negative, got -1"):
        iter_batches(images, np.arange(1), eval_transform(GREY), 1, -1)


def test_the_demo_models_own_transform_takes_the_demo_images_as_they_are() -> None:
    config = data_config(build_model(DEMO_MODEL, depth=1))
    demo = open_dataset("demo")
    assert isinstance(demo, ArrayImages)
    expected = (torch.from_numpy(demo.pixels[7]).float() / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(eval_transform(config)(demo.load(7))[0], expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("config", [GREY, RGB], ids=["grey", "rgb"])
def test_images_of_any_mode_become_what_the_model_takes(mode: str, config: dict[str, object]) -> None:
    assert eval_transform(config)(Image.new(mode, (40, 30))).shape == config["input_size"]


def test_transform_overrides() -> None:
    image = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8))
    plain, tight = eval_transform(GREY)(image), eval_transform(GREY, crop_pct=0.5)(image)
    assert plain.shape == tight.shape == (1, 28, 28)
    assert not torch.equal(plain, tight)
    assert torch.equal(plain, eval_transform(GREY, crop_pct=None)(image))
    with pytest.raises(InputError, match=r"'crop_pc' .*did you mean 'crop_pct'"):
        eval_transform(GREY, crop_pc=0.5)


def test_the_licence_of_the_shipped_images_is_beside_them() -> None:
    notice = (data._DEMO / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in notice
    assert "Copyright (c) 2017 Zalando SE" in notice
