"""Images inside tar archives and webdataset shards."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from layouts import as_dict, class_folders, contents, flat_folder, mixed_folder, own_classes, same, write_tar
from PIL import Image

from tokenmerge_bench.data import Unreadable, eval_transform, iter_batches, open_dataset
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.images import ImageSet

CONFIG = {
    "input_size": (3, 24, 24),
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
}
CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10.tar.gz"


@pytest.mark.parametrize("prefix", ["", "./", "imagenet/val/"])
def test_an_archive_of_class_folders_is_the_same_set_as_the_folder(tmp_path: Path, prefix: str) -> None:
    folder = class_folders(tmp_path / "val")
    images, expected = (
        open_dataset(str(write_tar(tmp_path / "val.tar", contents(folder, prefix)))),
        open_dataset(str(folder)),
    )
    assert (images.name, images.classes) == ("val", 1000)
    assert as_dict(images) == as_dict(expected)
    assert images.ids.tolist() == expected.ids.tolist()
    assert images.fingerprint == expected.fingerprint
    for index in range(len(images)):
        assert same(images.load(index), expected.load(index))


def test_other_classes_and_splits_of_an_archive(tmp_path: Path) -> None:
    files = contents(own_classes(tmp_path / "a"), "pets/train/") | contents(
        own_classes(tmp_path / "b", ["ants", "train"]), "pets/test/"
    )
    path = str(write_tar(tmp_path / "pets.tar", files))
    test, train = open_dataset(path), open_dataset(path, split="train")
    assert as_dict(test) == {"ants/0.png": 0, "ants/1.png": 0, "train/0.png": 1, "train/1.png": 1}
    assert (train.classes, len(train)) == (3, 6)
    with pytest.raises(InputError, match=r"has no split 'val' \(--split\): it has test, train"):
        open_dataset(path, split="val")


def test_a_folder_of_an_archive_names_a_split_only_by_its_whole_name(tmp_path: Path) -> None:
    files = contents(own_classes(tmp_path / "a"), "test-drive/train/")
    images = open_dataset(str(write_tar(tmp_path / "pets.tar", files)), split="train")
    assert len(images) == 6
    with pytest.raises(InputError, match="neither validation nor test images"):
        open_dataset(str(tmp_path / "pets.tar"))


def test_damaged_images_in_an_archive_are_unreadable_by_name(tmp_path: Path) -> None:
    files = contents(mixed_folder(tmp_path / "a"))
    del files["n01440764/sub/c.webp"]  # in an archive the class is the folder that an image lies in
    images = open_dataset(str(write_tar(tmp_path / "a.tar", files)))
    assert images.paths[1] == "n01440764/broken.jpeg"
    with pytest.raises(Unreadable, match=r"^n01440764/broken.jpeg$"):
        images.load(1)
    assert images.load(0).size == (50, 40)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(Unreadable, match=r"^n01440764/a.jpg$"):
        images.load(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_read_an_archive_as_this_process_does(tmp_path: Path) -> None:
    images = open_dataset(str(write_tar(tmp_path / "pets.tar", contents(own_classes(tmp_path / "pets")))))
    images.load(0)  # nothing that this leaves open may disturb the workers
    transform, indices = eval_transform(CONFIG), np.arange(len(images))
    here, there = (list(iter_batches(images, indices, transform, 2, workers)) for workers in (0, 2))
    assert [batch.unreadable for batch in there] == [[]] * 3
    assert all(a.pixels.equal(b.pixels) for a, b in zip(here, there, strict=True))
    assert same(pickle.loads(pickle.dumps(images)).load(3), images.load(3))


def test_unusable_archives_are_refused(tmp_path: Path) -> None:
    files = contents(own_classes(tmp_path / "pets"))
    for name, mode in [("pets.tar.gz", "w:gz"), ("gz.tar", "w:gz")]:
        with pytest.raises(InputError, match=r"is no readable tar archive .*: unpack it if it is compressed"):
            open_dataset(str(write_tar(tmp_path / name, files, mode)))
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.tar' is no readable tar archive"):
        open_dataset(str(tmp_path / "cut.tar"))
    with pytest.raises(InputError, match="no images in archive"):
        open_dataset(str(write_tar(tmp_path / "none.tar", {"ants/notes.txt": b"", "ants/._0.png": b"x"})))
    with pytest.raises(InputError, match=r"'0.png' in archive .* lies in no class folder"):
        open_dataset(str(write_tar(tmp_path / "loose.tar", {"0.png": b"x", "ants/1.png": b"x"})))
    with pytest.raises(InputError, match=r"'b' in archive .* is no ImageNet-1k WordNet id"):
        open_dataset(str(write_tar(tmp_path / "some.tar", {"n01440764/0.png": b"x", "b/1.png": b"x"})))
    with pytest.raises(InputError, match=r"holds the image 'ants/0.png' twice"):
        open_dataset(str(write_tar(tmp_path / "twice.tar", {"a/ants/0.png": b"x", "b/ants/0.png": b"y"})))
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("ants/0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        archive.addfile(link)
    with pytest.raises(InputError, match=r"'ants/0.png' in .* is a link: pack it with tar --dereference"):
        open_dataset(str(tmp_path / "links.tar"))
    flat = write_tar(tmp_path / "flat" / "flat.tar", contents(flat_folder(tmp_path / "flat" / "images")))
    with pytest.raises(InputError, match=r"archive .* have no labels file"):
        open_dataset(str(flat))


def test_real_images_in_an_archive(tmp_path: Path) -> None:
    if not CIFAR.is_file():
        pytest.skip("needs an archive of CIFAR-10 in class folders")
    files: dict[str, bytes] = {}
    with tarfile.open(CIFAR) as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            if file is not None:
                files[entry.name] = file.read()
            if len(files) == 30:
                break
    images = open_dataset(str(write_tar(tmp_path / "cifar10.tar", files)), split="test")
    assert len(images) == 30
    assert all(images.load(index).size == (32, 32) for index in range(30))


def write_shards(root: Path, part: str = "val", labels: tuple[int, ...] = (3, 0, 1)) -> Path:
    """Samples in two shards, under the same keys in both, with metadata and a mask that are to be passed over."""
    for shard in range(2):
        folder = own_classes(root.parent / "source", [str(label) for label in labels])
        files: dict[str, bytes] = {}
        for key, label in enumerate(labels):
            files |= {
                f"{key:04d}.cls": str(label).encode() + b"\n",
                f"{key:04d}.json": b"{}",
                f"{key:04d}.mask.png": b"no image",
                f"{key:04d}.png": (folder / str(label) / f"{shard}.png").read_bytes(),
            }
        write_tar(root / f"toy-{part}-{shard:03d}.tar", files)
    return root


def shard_paths(images: ImageSet) -> list[str]:
    return sorted({path.partition("/")[0] for path in images.paths})


def test_shards_of_a_webdataset_are_indexed(tmp_path: Path) -> None:
    write_shards(tmp_path / "toy")
    images = open_dataset("wds/toy", tmp_path)
    assert (images.name, images.classes, len(images)) == ("toy", 4, 6)
    assert as_dict(images) == {
        f"toy-val-00{shard}/000{key}.png": label for shard in range(2) for key, label in enumerate((3, 0, 1))
    }
    for index, (path, label) in enumerate(as_dict(images).items()):
        with Image.open(tmp_path / "source" / str(label) / f"{path[len('toy-val-00')]}.png") as expected:
            assert same(images.load(index), expected)
    assert open_dataset("wds/any", tmp_path / "toy").ids.tolist() == images.ids.tolist()


def test_the_listed_class_names_say_how_many_classes_there_are(tmp_path: Path) -> None:
    write_shards(tmp_path)
    names = tmp_path / "classnames.txt"
    names.write_text("".join(f"class {i}\n" for i in range(10)))
    assert open_dataset("wds/toy", tmp_path).classes == 10
    names.write_text("a\nb\n")
    with pytest.raises(InputError, match=r"label 3 .* is beyond the 2 classes of '.*classnames.txt'"):
        open_dataset("wds/toy", tmp_path)


def test_shards_of_a_split(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write_shards(tmp_path, part)
    assert shard_paths(open_dataset("wds/toy", tmp_path)) == ["toy-validation-000", "toy-validation-001"]
    assert shard_paths(open_dataset("wds/toy", tmp_path, "train")) == ["toy-train-000", "toy-train-001"]
    assert shard_paths(open_dataset("wds/toy", tmp_path, "toy-test-*0.tar")) == ["toy-test-000"]
    with pytest.raises(InputError, match=r"no shard .* matches --split 'toy-\{0\.\.1\}.tar'"):
        open_dataset("wds/toy", tmp_path, "toy-{0..1}.tar")


def test_shards_in_a_folder_of_their_split_or_of_none(tmp_path: Path) -> None:
    write_shards(tmp_path / "two" / "test", "x")
    write_shards(tmp_path / "two" / "train", "x")
    assert shard_paths(open_dataset("wds/two", tmp_path)) == ["test"]
    write_shards(tmp_path / "one", "x")
    assert len(open_dataset("wds/one", tmp_path)) == 6
    with pytest.raises(InputError, match=r"has no split 'test' \(--split\): it is not divided into splits"):
        open_dataset("wds/one", tmp_path, "test")


def test_unusable_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'wds/toy' is looked for in --data-dir, which is not given"):
        open_dataset("wds/toy")
    with pytest.raises(InputError, match=r"no .tar shards below"):
        open_dataset("wds/toy", tmp_path)
    png = contents(own_classes(tmp_path / "pets"))["ants/0.png"]
    for samples, message in [
        ({"0.png": png}, r"'0.png' in '.*0.tar' has no '0.cls' with the number of its class"),
        ({"0.png": png, "0.cls": b"cat"}, r"has no '0.cls' with the number"),
        ({"0.png": png, "0.cls": b"-1"}, r"has no '0.cls' with the number"),
        ({"0.png": png, "0.cls": b"7" * 30}, r"has no '0.cls' with the number of its class: .* at most 9 digits"),
        ({"0.cls": b"1"}, r"no images in the shards"),
    ]:
        write_tar(tmp_path / "bad" / "0.tar", samples)
        with pytest.raises(InputError, match=message):
            open_dataset("wds/bad", tmp_path)
    (tmp_path / "bad" / "0.tar").write_bytes(b"x" * 600)
    with pytest.raises(InputError, match="is no readable tar archive"):
        open_dataset("wds/bad", tmp_path)


def test_shards_of_other_data_sets_are_not_taken_for_a_misspelt_one(tmp_path: Path) -> None:
    write_shards(tmp_path / "flowers")
    write_shards(tmp_path / "pets")
    with pytest.raises(InputError, match=r"no folder 'pet' and no .tar shards in .*: give wds/ .* flowers, pets"):
        open_dataset("wds/pet", tmp_path)
    write_shards(tmp_path, "x")
    assert shard_paths(open_dataset("wds/any", tmp_path)) == ["toy-x-000", "toy-x-001"]


def test_shards_beside_other_data_sets_may_lie_in_folders_of_splits(tmp_path: Path) -> None:
    write_shards(tmp_path / "validation", "x")
    write_shards(tmp_path / "pets", "validation")
    assert {path.split("/")[0] for path in open_dataset("wds/any", tmp_path).paths} == {"validation"}


def test_a_sample_of_two_images_is_refused(tmp_path: Path) -> None:
    png = contents(own_classes(tmp_path / "pets"))["ants/0.png"]
    write_tar(tmp_path / "two" / "0.tar", {"a/0.jpg": png, "a/0.png": png, "a/0.cls": b"1"})
    with pytest.raises(InputError, match=r"'a/0.jpg' and 'a/0.png' in '.*0.tar' are images of one sample"):
        open_dataset("wds/two", tmp_path)
