"""Data sets through the package `datasets`, from local files: nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenmerge_bench.data import Unreadable, open_dataset
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.imagenet import wordnet_ids
from tokenmerge_bench.images import ImageSet

if importlib.util.find_spec("datasets") is None:
    datasets: Any = None
else:
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()

needs_datasets = pytest.mark.skipif(datasets is None, reason="needs the package datasets")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)


def table(names: Sequence[str] = ("a", "b", "c"), column: str = "img", labels: str = "label") -> Any:
    features = {column: datasets.Image(), labels: datasets.ClassLabel(names=list(names))}
    rows = {column: [Image.fromarray(pixels) for pixels in PIXELS], labels: [0, 1, 2, 1, 0]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def shows(image: Image.Image, pixels: Any) -> bool:
    return np.array_equal(np.asarray(image), pixels)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A folder of parquet files as the hub keeps them, with a training, a validation and a test split."""
    root = tmp_path / "toy"
    root.mkdir()
    for split, rows in [("train", 1), ("validation", 5), ("test", 2)]:
        table().select(range(rows)).to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


@needs_datasets
def test_a_folder_of_parquet_files(tmp_path: Path, parquet: Path) -> None:
    images = open_dataset(f"hfds/{parquet}", tmp_path / "cache")
    assert (images.name, images.classes, images.labels.tolist()) == ("toy-validation", 3, [0, 1, 2, 1, 0])
    assert images.paths[4] == "toy-validation[4]"
    assert all(shows(images.load(i), PIXELS[i]) for i in range(5))
    assert len(open_dataset(f"hfds/{parquet}", tmp_path / "cache", "train")) == 1
    assert shows(pickle.loads(pickle.dumps(images)).load(3), PIXELS[3])


@needs_datasets
@pytest.mark.parametrize("divided", [True, False])
def test_a_data_set_saved_to_disk(tmp_path: Path, divided: bool) -> None:
    saved = datasets.DatasetDict({"train": table().select([0]), "test": table()}) if divided else table()
    saved.save_to_disk(tmp_path / "toy")
    images = open_dataset(f"hfds/{tmp_path}/toy")
    assert images.name == ("toy-test" if divided else "toy-all")
    assert images.labels.tolist() == [0, 1, 2, 1, 0]
    assert shows(images.load(2), PIXELS[2])
    with pytest.raises(InputError, match=r"has no split 'validation' \(--split\)"):
        open_dataset(f"hfds/{tmp_path}/toy", split="validation")


@needs_datasets
def test_class_names_that_are_wordnet_ids_give_imagenet_labels(tmp_path: Path) -> None:
    table(["n01443537", "n02102040", "n01440764"]).save_to_disk(tmp_path / "toy")
    images = open_dataset(f"hfds/{tmp_path}/toy")
    assert (images.classes, images.labels.tolist()) == (1000, [1, 217, 0, 217, 1])


@needs_datasets
def test_all_of_imagenets_classes_in_another_order_give_imagenet_labels(tmp_path: Path) -> None:
    table(list(reversed(wordnet_ids()))).save_to_disk(tmp_path / "toy")
    images = open_dataset(f"hfds/{tmp_path}/toy")
    assert (images.classes, images.labels.tolist()) == (1000, [999, 998, 997, 998, 999])


@needs_datasets
def test_classes_keep_the_order_that_the_data_set_gives_them(tmp_path: Path) -> None:
    table(["zebra", "ant", "cat"], labels="fine").save_to_disk(tmp_path / "toy")
    assert open_dataset(f"hfds/{tmp_path}/toy").labels.tolist() == [0, 1, 2, 1, 0]


@needs_datasets
def test_images_that_are_files_and_images_that_are_damaged(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png")
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"no image")
    rows = {"image": [str(tmp_path / f"{i}.png") for i in range(3)], "label": [0, 0, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "toy")
    (tmp_path / "2.png").unlink()
    images = open_dataset(f"hfds/{tmp_path}/toy")
    assert images.classes == 1
    assert shows(images.load(0), PIXELS[0])
    for index in (1, 2):  # damaged, and gone
        with pytest.raises(Unreadable, match=rf"^toy-all\[{index}\]$"):
            images.load(index)


def open_files(root: Path, pixels: Any, names: Sequence[str] = ("0.bmp", "1.bmp")) -> ImageSet:
    """The two images, files in class folders, as `datasets` reads them in place."""
    for name, image, label in zip(names, pixels, "ab", strict=True):
        path = root / "images" / "test" / label / name
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    return open_dataset(f"hfds/{root}/images", root / "cache")


@needs_datasets
def test_the_fingerprint_of_files_covers_their_names_and_sizes_but_not_their_place(tmp_path: Path) -> None:
    images = open_files(tmp_path / "a", PIXELS[:2])
    assert shows(images.load(1), PIXELS[1])
    others = [
        open_files(tmp_path / "other_sizes", PIXELS[:2, :4]),
        open_files(tmp_path / "other_names", PIXELS[:2], ("0.bmp", "2.bmp")),
    ]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert open_files(tmp_path / "b", PIXELS[:2]).fingerprint == images.fingerprint
    (tmp_path / "a" / "images" / "test" / "b" / "1.bmp").unlink()
    with pytest.raises(Unreadable, match=r"^images-test\[1\]$"):
        images.load(1)


@needs_datasets
def test_the_fingerprint_of_encoded_images_is_what_earlier_results_recorded(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "toy")
    rows = table().cast_column("img", datasets.Image(decode=False))
    lines = "".join(f"{len(row['img']['bytes'])}\t{row['label']}\n" for row in rows)
    expected = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert open_dataset(f"hfds/{tmp_path}/toy").fingerprint == expected


@needs_datasets
@pytest.mark.parametrize("part", ["train", "train[:60%]"])
def test_a_saved_training_split_is_taken_only_when_asked_for(tmp_path: Path, parquet: Path, part: str) -> None:
    table().to_parquet(parquet / "train-00000-of-00001.parquet")
    rows = datasets.load_dataset(str(parquet), split=part, cache_dir=str(tmp_path / "cache"))
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="neither validation nor test images: take those of training by --split train"):
        open_dataset(f"hfds/{tmp_path}/saved")
    images = open_dataset(f"hfds/{tmp_path}/saved", split="train")
    assert (images.name, len(images)) == (f"saved-{part}", len(rows))


@needs_datasets
def test_unusable_data_sets_are_refused(tmp_path: Path, parquet: Path) -> None:
    with pytest.raises(InputError, match=r"has no split 'dev' \(--split\): it has test, train, validation"):
        open_dataset(f"hfds/{parquet}", tmp_path / "cache", "dev")
    for name in ("validation", "test"):
        (parquet / f"{name}-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match="neither validation nor test images"):
        open_dataset(f"hfds/{parquet}", tmp_path / "cache")
    table(labels="fine").add_column("coarse", [0] * 5).cast_column(
        "coarse", datasets.ClassLabel(names=["x"])
    ).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match=r"it has img \(Image\), fine \(ClassLabel\), coarse \(ClassLabel\)"):
        open_dataset(f"hfds/{tmp_path}/two")
    hidden = table().cast_column("label", datasets.Value("int64")).map(lambda row: {"label": -1})
    hidden.save_to_disk(tmp_path / "hidden")
    with pytest.raises(InputError, match="does not hold the number of a class for each image"):
        open_dataset(f"hfds/{tmp_path}/hidden")
    with pytest.raises(InputError, match=r"/none' cannot be loaded \(\w+: .*\): check the name and the network"):
        open_dataset(f"hfds/{tmp_path}/none")


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'hfds/cifar10' needs the package datasets: .* pip install datasets"):
        open_dataset("hfds/cifar10")
