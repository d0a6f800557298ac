"""Image sets by the names users give: folders with class folders, flat folders, splits, torchvision's sets."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import (
    LABELS,
    NAMES,
    WNIDS,
    as_dict,
    class_folders,
    contents,
    flat_folder,
    mixed_folder,
    own_classes,
    same,
    wordnet_id,
    write_caffe,
    write_devkit,
    write_kaggle,
    write_tar,
)
from PIL import Image
from sweeping import save_image
from torchvision import datasets as torch_sets

from tokenmerge_bench.datasets import dataset_layouts, open_dataset
from tokenmerge_bench.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return mixed_folder(tmp_path / "val")


def test_imagenet_labels_are_the_positions_of_the_sorted_wordnet_ids() -> None:
    assert [wordnet_id(label) for label in (0, 999)] == ["n01440764", "n15075141"]
    assert tuple(wordnet_id(label) for label in LABELS) == WNIDS


def test_folder_labels_are_positions_among_all_imagenet_ids(folder: Path) -> None:
    images = open_dataset(str(folder))
    assert (images.name, images.classes) == ("val", 1000)
    assert as_dict(images) == {
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


def test_fingerprint_of_a_folder_is_what_earlier_results_recorded(tmp_path: Path) -> None:
    root = own_classes(tmp_path / "val", ["n01440764"])
    sizes = [(root / "n01440764" / f"{i}.png").stat().st_size for i in range(2)]
    lines = "".join(f"n01440764/{i}.png\t{size}\t0\n" for i, size in enumerate(sizes))
    assert open_dataset(str(root)).fingerprint == hashlib.sha256(lines.encode()).hexdigest()[:16]


def test_nothing_is_decoded_before_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        images = open_dataset(str(folder))
    assert images.load(0).size == (50, 40)


@pytest.mark.parametrize("labels", [write_kaggle, write_caffe, write_devkit], ids=["kaggle", "caffe", "devkit"])
@pytest.mark.parametrize("layout", ["folder", "archive"])
def test_imagenet_is_the_same_set_in_every_layout(tmp_path: Path, labels: Any, layout: str) -> None:
    expected = open_dataset(str(class_folders(tmp_path / "classes")))
    flat = flat_folder(tmp_path / "imagenet" / "val")
    labels(flat.parent)
    archive = write_tar(flat.parent / "ILSVRC2012_img_val.tar", contents(flat))
    images = open_dataset(str(flat if layout == "folder" else archive))
    assert as_dict(images) == {
        f"{wnid}/{name}.JPEG": label for wnid, name, label in zip(WNIDS, NAMES, LABELS, strict=True)
    }
    assert images.classes == 1000
    assert (images.paths, images.ids.tolist()) == (expected.paths, expected.ids.tolist())
    assert images.fingerprint == expected.fingerprint
    for index in range(5):
        assert same(images.load(index), expected.load(index))


@pytest.mark.parametrize("place", ["val", ".", "val/data", "ILSVRC2012_devkit_t12/data"])
def test_labels_of_the_devkit_are_found_where_it_is_unpacked(tmp_path: Path, place: str) -> None:
    flat_folder(tmp_path / "val")
    write_devkit(tmp_path / place)
    assert sorted(open_dataset(str(tmp_path)).labels.tolist()) == sorted(LABELS)


def test_labels_of_kaggle_are_found_four_folders_up(tmp_path: Path) -> None:
    flat = flat_folder(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    write_kaggle(tmp_path)
    assert sorted(open_dataset(str(flat.parent)).labels.tolist()) == sorted(LABELS)


def test_devkit_labels_without_their_key_are_not_guessed(tmp_path: Path) -> None:
    write_devkit(flat_folder(tmp_path), meta=False)
    with pytest.raises(InputError, match=r"ILSVRC2012_IDs, whose order is not that of the labels: put meta.mat"):
        open_dataset(str(tmp_path))
    (tmp_path / "meta.mat").write_bytes(b"not MATLAB")
    with pytest.raises(InputError, match=r"meta.mat' is not the meta.mat of an ILSVRC2012 development kit"):
        open_dataset(str(tmp_path))
    write_devkit(tmp_path, ids=(490, 361, 171, 822, 1001))  # an id that is no class of ImageNet-1k
    with pytest.raises(InputError, match=r"line 5 of .* reads '1001', which .*meta.mat' gives no ImageNet-1k class"):
        open_dataset(str(tmp_path))


def test_flat_images_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no labels file: put Caffe's val.txt, Kaggle's LOC_val_solution.csv, or"):
        open_dataset(str(flat_folder(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 65\n", r"labels 1 images but .* holds 5"),
        ("val.txt", "".join(f"{name}.JPEG 1\n" for name in [*NAMES, "x"]), r"labels 6 images but .* holds 5"),
        ("val.txt", f"{NAMES[0]}.JPEG 65\n" * 2, f"names '{NAMES[0]}' more than once"),
        ("val.txt", f"{NAMES[0]}.JPEG 1000\n", r"line 1 of .*val.txt' reads '.* 1000' where .* from 0 to 999"),
        ("val.txt", f"{NAMES[0]}.JPEG -1\n", r"line 1 of .*val.txt'"),
        ("val.txt", f"{NAMES[0]}.JPEG 1\n\n", r"line 2 of .*val.txt' reads ''"),
        ("val.txt", "".join(f"x{i}.JPEG 1\n" for i in range(5)), r"val.txt' has no label for 'ILSVRC2012_val_"),
        ("val.txt", b"\xff\xfe\xff", r"cannot be read as text"),
        ("LOC_val_solution.csv", f"ImageId,PredictionString\n{NAMES[0]},cat 1 2 3 4\n", r"names the class 'cat'"),
        ("LOC_val_solution.csv", f"ImageId,PredictionString\n{NAMES[0]}\n", r"names the class ''"),
    ],
)
def test_wrong_labels_files_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    flat_folder(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        open_dataset(str(tmp_path))


def test_other_folders_are_classes_by_their_sorted_names(tmp_path: Path) -> None:
    own_classes(tmp_path / "pets")
    (tmp_path / "pets" / "dogs").mkdir()  # a class that has no images here is a class all the same
    images = open_dataset(str(tmp_path / "pets"))
    assert (images.name, images.classes) == ("pets", 4)
    assert as_dict(images) == {
        f"{name}/{i}.png": label for label, name in enumerate(("ants", "bees", "cats")) for i in range(2)
    }


def test_a_folder_that_is_partly_imagenet_is_refused(tmp_path: Path) -> None:
    own_classes(tmp_path, ["n01440764", "cats"])
    with pytest.raises(InputError, match=r"'cats' in dataset folder .* is no ImageNet-1k WordNet id \(as n01440764"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("name", ["val", "validation"])
def test_the_folder_above_the_validation_images_will_do(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / name)
    own_classes(tmp_path / "train", ["n01440764"])
    assert open_dataset(str(tmp_path)).fingerprint == open_dataset(str(tmp_path / name)).fingerprint
    assert len(open_dataset(str(tmp_path), split="validation")) == 5
    assert len(open_dataset(str(tmp_path / name), split="val")) == 5
    assert open_dataset(str(tmp_path), split="train").paths == ["n01440764/0.png", "n01440764/1.png"]


def test_splits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "val")
    with pytest.raises(InputError, match=r"has no split 'test' \(--split\): it has val"):
        open_dataset(str(tmp_path), split="test")
    with pytest.raises(InputError, match=r"val' has no split 'train' \(--split\)"):
        open_dataset(str(tmp_path / "val"), split="train")
    own_classes(tmp_path / "only" / "train")
    with pytest.raises(InputError, match=r"neither validation nor test images: take those of training by --split tr"):
        open_dataset(str(tmp_path / "only"))


def test_the_split_of_the_very_name_is_taken_before_its_synonyms(tmp_path: Path) -> None:
    for number, name in enumerate(("validation", "val", "minival"), 1):
        own_classes(tmp_path / name, ["ants", "bees", "cats"][:number])
    chosen = {split: open_dataset(str(tmp_path), split=split).name for split in (None, "val", "valid", "minival")}
    assert chosen == {None: "validation", "val": "val", "valid": "validation", "minival": "minival"}


def test_the_test_split_stands_in_for_a_missing_validation_split(tmp_path: Path) -> None:
    own_classes(tmp_path / "train", ["ants"])
    own_classes(tmp_path / "test", ["ants", "train"])  # a class may be named as a split is
    assert open_dataset(str(tmp_path)).classes == 2
    assert open_dataset(str(tmp_path / "test")).classes == 2


def test_relative_folders_start_at_the_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_classes(tmp_path / "there" / "pets")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("pets", Path("there"))) == 6
    with pytest.raises(InputError, match="unknown dataset 'pets': give 'demo' or a folder"):
        open_dataset("pets")


def test_unknown_and_missing_and_wrong_places_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="unknown dataset 'imagnet'"):
        open_dataset("imagnet")
    with pytest.raises(InputError, match="does not exist"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is a file"):
        open_dataset(str(folder / "n01440764" / "a.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images in dataset folder '.*empty': put them in class folders"):
        open_dataset(str(tmp_path / "empty"))
    (tmp_path / "empty" / "n01440764").mkdir()
    with pytest.raises(InputError, match=r"no images in .* \(its folders: 'n01440764'\)"):
        open_dataset(str(tmp_path / "empty"))


def test_a_dangling_link_is_an_unreadable_image_and_no_crash(tmp_path: Path) -> None:
    own_classes(tmp_path, ["ants"])
    (tmp_path / "ants" / "gone.png").symlink_to(tmp_path / "nothing.png")
    assert open_dataset(str(tmp_path)).paths == ["ants/0.png", "ants/1.png", "ants/gone.png"]


def test_image_sets_can_be_sent_to_other_processes(folder: Path) -> None:
    images = open_dataset(str(folder))
    sent = pickle.loads(pickle.dumps(images))
    assert same(sent.load(0), images.load(0))


def test_the_demo_has_one_split_and_no_folder(tmp_path: Path) -> None:
    assert len(open_dataset("demo", split="test")) == 10_000
    with pytest.raises(InputError, match="'demo' has no split 'train'"):
        open_dataset("demo", split="train")
    with pytest.raises(InputError, match="leave --data-dir out"):
        open_dataset("demo", tmp_path)


def test_layouts_are_listed_with_what_they_are() -> None:
    specs = [spec for spec, _ in dataset_layouts()]
    assert specs[0] == "demo"
    assert {"DIR", "FILE.tar", "torch/cifar10", "hfds/NAME", "wds/NAME"} <= set(specs)


def write_cifar(root: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's files of a few made-up images, with their checksums in place of the originals'."""
    labels = "labels" if source is torch_sets.CIFAR10 else "fine_labels"
    names = [f"class {i}" for i in range(10 if source is torch_sets.CIFAR10 else 100)]

    def write(name: str, content: object) -> list[str]:
        path = root / source.base_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    monkeypatch.setattr(source, "train_list", [write("train", {"data": pixels[:1], labels: [7]})])
    monkeypatch.setattr(source, "test_list", [write("test", {"data": pixels[1:], labels: [2, 9]})])
    key = source.meta["key"]
    name, md5 = write("meta", {key: names})
    monkeypatch.setattr(source, "meta", {"filename": name, "key": key, "md5": md5})


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int
) -> None:
    source = getattr(torch_sets, name.upper())
    write_cifar(tmp_path, source, monkeypatch)
    test, train = open_dataset(f"torch/{name}", tmp_path), open_dataset(f"torch/{name}", tmp_path, "train")
    assert (test.name, test.classes, test.labels.tolist()) == (name, classes, [2, 9])
    assert (train.name, train.labels.tolist()) == (f"{name}_train", [7])
    assert same(test.load(1), source(tmp_path, train=False)[1][0])
    with pytest.raises(InputError, match=r"has no split 'validation' \(--split\): it has test, train"):
        open_dataset(f"torch/{name}", tmp_path, "validation")
    changed = tmp_path / source.base_folder / "test"
    changed.write_bytes(changed.read_bytes() + b"x")
    with pytest.raises(InputError, match=rf"complete and unchanged '.*': unpack {source.filename} \(https://"):
        open_dataset(f"torch/{name}", tmp_path)


def test_sets_of_torchvision_say_what_they_want(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'torch/cifar10' is looked for in --data-dir, which is not given"):
        open_dataset("torch/cifar10")
    with pytest.raises(InputError, match=r"--data-dir, which '.*none' is no folder"):
        open_dataset("torch/cifar10", tmp_path / "none")
    with pytest.raises(InputError, match=r"unpack cifar-10-python\.tar\.gz"):
        open_dataset("torch/cifar10", tmp_path)
    with pytest.raises(InputError, match=r"unknown data set 'torch/mnist': give torch/cifar10, torch/cifar100 or"):
        open_dataset("torch/mnist", tmp_path)
    with pytest.raises(InputError, match="no Fashion-MNIST test files"):
        open_dataset("torch/fashion_mnist", tmp_path)


def test_images_beside_own_classes_are_not_taken_silently(tmp_path: Path) -> None:
    own_classes(tmp_path)
    save_image(tmp_path / "stray.png", seed=0)
    with pytest.raises(InputError, match="lie in no class folders and have no labels file"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("classes", [["valid", "invalid"], ["train", "test", "exam"], ["bus", "car", "train"]])
def test_own_classes_may_be_named_as_splits_are(tmp_path: Path, classes: list[str]) -> None:
    images = open_dataset(str(own_classes(tmp_path, classes)))
    assert sorted({path.split("/")[0] for path in images.paths}) == sorted(classes)
    with pytest.raises(InputError, match=r"has no split 'validation' \(--split\): it is not divided into splits"):
        open_dataset(str(tmp_path), split="validation")


def test_the_folder_of_the_very_name_of_the_split_is_taken_wherever_it_lies(tmp_path: Path) -> None:
    own_classes(tmp_path, ["bus", "car"])
    own_classes(tmp_path / "train", ["a", "b"])
    assert open_dataset(str(tmp_path)).classes == 3
    assert open_dataset(str(tmp_path), split="train").paths == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


def test_hidden_folders_hold_no_images(tmp_path: Path) -> None:
    own_classes(tmp_path, ["ants"])
    save_image(tmp_path / "ants" / ".ipynb_checkpoints" / "0.png", seed=0)
    save_image(tmp_path / "ants" / "more" / ".cache" / "0.png", seed=0)
    assert open_dataset(str(tmp_path)).paths == ["ants/0.png", "ants/1.png"]


@pytest.mark.parametrize(
    ("link", "target"), [("bees/loop", ".."), ("ants/self", "."), ("ants/up", "../.."), ("ants/more", "../bees")]
)
def test_links_neither_go_in_circles_nor_bring_in_other_classes(tmp_path: Path, link: str, target: str) -> None:
    pets = own_classes(tmp_path / "data" / "pets", ["ants", "bees"])
    (pets / link).symlink_to(target, target_is_directory=True)
    assert open_dataset(str(pets)).paths == ["ants/0.png", "ants/1.png", "bees/0.png", "bees/1.png"]


def test_links_to_more_images_of_a_class_are_followed_once(tmp_path: Path) -> None:
    pets = own_classes(tmp_path / "pets", ["ants"])
    save_image(tmp_path / "elsewhere" / "2.png", seed=2)
    for name in ("y", "x"):
        (pets / "ants" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (pets / "bees").symlink_to(own_classes(tmp_path / "other", ["b"]) / "b", target_is_directory=True)
    assert open_dataset(str(pets)).paths == ["ants/0.png", "ants/1.png", "ants/x/2.png", "bees/0.png", "bees/1.png"]
