"""Subsets, batches, and the transform that images go through."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import mixed_folder
from PIL import Image

from tokenmerge_bench import data
from tokenmerge_bench.data import (
    ArrayImages,
    eval_transform,
    iter_batches,
    load_batch,
    open_dataset,
    subset,
    to_mode,
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
    return mixed_folder(tmp_path / "val")


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


def test_the_chunks_to_skip_are_not_gone_through_for_every_chunk() -> None:
    class Counted(list[int]):
        passes = 0

        def __iter__(self) -> Iterator[int]:
            self.passes += 1
            return super().__iter__()

    few, many = Counted([1]), Counted([1])  # checking the type takes passes too
    for skip, images in [(few, 3), (many, 12)]:
        list(iter_batches(array_images([0] * images), np.arange(images), eval_transform(GREY), 1, 0, skip))
    assert few.passes == many.passes


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


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight_and_not_clipped(mode: str, channels: int) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65279, 65535]])
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        image = Image.frombytes(mode, (7, 1), values.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    assert image.mode == mode
    scaled = np.asarray(to_mode(image, channels)).reshape(7, channels)
    assert scaled.tolist() == [[value] * channels for value in (0, 0, 1, 1, 128, 254, 255)]


def test_a_sixteen_bit_file_looks_as_its_eight_bit_version_does(tmp_path: Path) -> None:
    eight = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    files: dict[str, np.ndarray] = {"eight": eight, "sixteen": eight.astype(np.uint16) * 257}
    for name, pixels in files.items():
        path = tmp_path / "grey" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    images, transform = open_dataset(str(tmp_path)), eval_transform(RGB)
    assert images.load(1).mode != "L"
    assert torch.equal(transform(images.load(0)), transform(images.load(1)))


def test_transparency_and_orientation_are_dropped_as_in_torchvisions_evaluation(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    clear = Image.fromarray(noise)
    assert np.array_equal(np.asarray(to_mode(clear, 3)), noise[..., :3])
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(noise[..., :3]).save(tmp_path / "turned.png", exif=orientation)
    with Image.open(tmp_path / "turned.png") as turned:
        assert np.array_equal(np.asarray(to_mode(turned, 3)), noise[..., :3])
    palette = Image.fromarray(noise[..., :3]).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    palette.info["transparency"] = bytes(range(0, 256, 32))
    assert np.array_equal(np.asarray(to_mode(palette, 3)), expected)


def resize_to(transform: Any) -> int:
    """The length that the short side is resized to."""
    return int(transform.timm_transform.transforms[0].size)


def test_deits_own_evaluation_resizes_to_256_and_timms_to_248() -> None:
    config = data_config(build_model("deit_tiny_patch16_224", depth=1))
    assert resize_to(eval_transform(config)) == 248
    assert resize_to(eval_transform(config, crop_pct=0.875)) == 256
    assert resize_to(eval_transform(config, crop_pct=0.05)) == 4480
    assert eval_transform(config, crop_pct=0.875)(Image.new("RGB", (300, 260))).shape == (3, 224, 224)


def test_interpolations_are_those_that_timm_knows() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8))
    pixels = [eval_transform(GREY, interpolation=name)(image) for name in data._INTERPOLATIONS]
    assert all(not torch.equal(a, b) for a, b in combinations(pixels, 2))
    with pytest.raises(InputError, match="unknown --interpolation 'bicubik': give nearest, bilinear, bicubic, box, "):
        eval_transform(GREY, interpolation="bicubik")


@pytest.mark.parametrize("share", [0, 0.0001, 0.049, -0.5, 1.01, 87.5, float("nan")])
def test_a_crop_that_is_no_share_of_the_image_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=f"--crop-pct {share} is no share of the image"):
        eval_transform(GREY, crop_pct=share)


def test_transform_overrides() -> None:
    image = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8))
    plain, tight = eval_transform(GREY)(image), eval_transform(GREY, crop_pct=0.5)(image)
    assert plain.shape == tight.shape == (1, 28, 28)
    assert not torch.equal(plain, tight)
    assert torch.equal(plain, eval_transform(GREY, crop_pct=None)(image))
    with pytest.raises(InputError, match=r"'crop_pc' .*did you mean 'crop_pct'"):
        eval_transform(GREY, crop_pc=0.5)
