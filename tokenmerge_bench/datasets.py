"""The image sets that users have, by the name they give: folders, archives, sets of torchvision and of the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokenmerge_bench import idx
from tokenmerge_bench.archives import open_shards, open_tar
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.hub import open_hub_dataset
from tokenmerge_bench.imagenet import class_labels, open_flat, wordnet_ids
from tokenmerge_bench.images import ArrayImages, FileImages, ImageSet, Member, is_image
from tokenmerge_bench.splits import SPLITS, choose_split

__all__ = ["dataset_layouts", "open_dataset", "split_folders"]

_LAYOUTS = (
    ("demo", "10,000 test images of Fashion-MNIST, inside the package, for deit_micro_patch2_28"),
    ("DIR", "one folder of images per class: ImageNet by WordNet id (n01440764, ...), or your own, numbered in order"),
    ("DIR", "a folder that holds val/, validation/ or test/ of one of the other layouts; --split takes another part"),
    ("DIR", "ImageNet's flat validation folder, with val.txt, LOC_val_solution.csv or the devkit's files beside it"),
    ("FILE.tar", "an uncompressed archive of class folders, or of ImageNet's flat validation folder"),
    ("torch/cifar10", "CIFAR-10 as torchvision keeps it below --data-dir; torch/cifar100 and torch/fashion_mnist too"),
    ("hfds/NAME", "a data set of the Hugging Face hub, or a folder of its files; needs pip install datasets"),
    ("wds/NAME", "a webdataset in local .tar shards below --data-dir"),
)


def dataset_layouts() -> list[tuple[str, str]]:
    """What `open_dataset` takes: the form of the name, and what it stands for."""
    return list(_LAYOUTS)


def open_dataset(spec: str, data_dir: Path | None = None, split: str | None = None) -> ImageSet:
    """The image set that a user names, in one of the forms of `dataset_layouts`.

    `data_dir` is where relative folders start, where `torch/` and `wds/` look, and where `hfds/` keeps downloads.
    `split` is by default the validation split, or the test split where there is none; `split_folders` says which
    folders are splits, not classes, but one of the very name of `split` is taken anyway. The same image of ImageNet
    has the same name and id whether it comes from a class folder, the flat folder or an archive.

    Raises InputError where nothing is found, saying what belongs where, and for labels that are wanting or wrong.
    """
    kind, _, name = spec.partition("/")
    if kind == "hfds" and name:
        return open_hub_dataset(name, data_dir, split)
    if kind in ("torch", "wds") and name:
        if data_dir is None or not data_dir.is_dir():
            given = "is not given" if data_dir is None else f"'{data_dir}' is no folder"
            raise InputError(f"'{spec}' is looked for in --data-dir, which {given}: name the folder that holds it")
        return open_shards(name, data_dir, split) if kind == "wds" else _open_torch(name, data_dir, split)
    if spec == "demo":
        choose_split(split, ("test",), "'demo'")
        if data_dir is not None:
            raise InputError("'demo' lies inside the package: leave --data-dir out, or name another --dataset")
        return idx.demo()
    return _open_path(spec, (data_dir or Path()) / Path(spec).expanduser(), split)


def _open_path(spec: str, path: Path, split: str | None) -> FileImages:
    if path.is_dir():
        return _open_folder(path, split)
    if not path.exists():
        if path.name == str(path):
            raise InputError(
                f"unknown dataset '{spec}': give 'demo' or a folder of images; `tmbench list datasets` shows the rest"
            )
        raise InputError(f"dataset folder '{path}' does not exist: check the path, or give 'demo'")
    if ".tar" in path.suffixes:
        return open_tar(path, split)
    raise InputError(f"dataset '{path}' is a file: give the folder that holds the class folders, or a .tar archive")


def _open_torch(name: str, root: Path, split: str | None) -> ArrayImages:
    """A data set that torchvision keeps below `root`; nothing is downloaded."""
    from torchvision import datasets

    known = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    if name not in (*known, "fashion_mnist"):
        raise InputError(f"unknown data set 'torch/{name}': give torch/cifar10, torch/cifar100 or torch/fashion_mnist")
    part = choose_split(split, ("train", "test"), f"data set 'torch/{name}'")
    if name == "fashion_mnist":
        return idx.fashion_mnist_train(root) if part == "train" else idx.fashion_mnist_test(root)
    source = known[name]
    try:
        # Its files are pickles, which torchvision loads only when their checksums are those of the originals.
        images = source(root, train=part == "train", download=False)
    except RuntimeError as error:
        raise InputError(
            f"torchvision finds no complete and unchanged '{root / source.base_folder}': unpack {source.filename} "
            f"({source.url}) into '{root}', or name another folder by --data-dir"
        ) from error
    labels = np.array(images.targets, dtype=np.int64)
    return ArrayImages.of(name if part == "test" else f"{name}_{part}", images.data, labels, len(images.classes))


def _open_folder(root: Path, split: str | None) -> FileImages:
    """Class folders or ImageNet's flat folder, in `root` or in its folder of the split."""
    root = _split_folder(root, split)
    folders = _subfolders(root)
    loose = [_member(root, path) for path in root.iterdir() if is_image(path.name) and not path.is_dir()]
    if loose and not _wordnet(folders):
        return open_flat(root.resolve().name, loose, root, f"dataset folder '{root}'")
    return _open_classes(root, folders)


def split_folders(root: Path) -> list[str]:
    """The names of the folders in `root` if it is divided into splits, and none if they are classes.

    They are splits if one is named for a split, none for a class of ImageNet, and those named otherwise, as a
    development kit, hold no images themselves: `invalid` beside `valid` or `bus` beside `train` makes both classes.
    """
    folders = _subfolders(root)
    others = [folder for folder in folders if folder not in SPLITS]
    is_divided = len(others) < len(folders) and not _wordnet(folders)
    return folders if is_divided and not any(_holds_images(root / folder) for folder in others) else []


def class_folders(root: Path) -> list[str]:
    """The class folders whose positions are labels; none where they are ImageNet's, whose names say the label."""
    folders = _subfolders(root)
    return [] if _wordnet(folders) else folders


def _split_folder(root: Path, split: str | None) -> Path:
    folders = _subfolders(root)
    of_that_name = [] if _wordnet(folders) else [folder for folder in folders if folder == split]
    present = split_folders(root) or of_that_name
    return root / (choose_split(split, present, f"dataset folder '{root}'", {root.resolve().name}) or ".")


def _wordnet(folders: list[str]) -> bool:
    return not wordnet_ids().keys().isdisjoint(folders)


def _subfolders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    # os.walk takes a folder that may not be read, as lost+found, for an empty one.
    _, _, names = next(os.walk(folder), ("", [], []))
    return any(map(is_image, names))


def _open_classes(root: Path, folders: list[str]) -> FileImages:
    classes, label_of = class_labels(folders, f"dataset folder '{root}'")
    here = root.resolve()
    # A link from within a class to these would give it the images of others.
    visited = {here, *here.parents, *((root / folder).resolve() for folder in folders)}
    found = [(m.path, label_of[folder], m) for folder in folders for m in _list_folder(root, folder, visited)]
    if not found:
        seen = f" (its folders: '{folders[0]}'{', ...' if len(folders) > 1 else ''})" if folders else ""
        raise InputError(f"no images in dataset folder '{root}'{seen}: put them in class folders, as n01440764/*.JPEG")
    return FileImages.of(root.resolve().name, classes, found)


def _list_folder(root: Path, folder: str, visited: set[Path]) -> Iterator[Member]:
    """Every image file below `root`/`folder`, with its path relative to `root`.

    Hidden folders are left out, and so are those `visited` before, to which the others are added: links may go in
    circles.
    """
    for parent, folders, names in os.walk(root / folder, followlinks=True):
        folders[:] = [
            name for name in sorted(folders) if not name.startswith(".") and _is_new(Path(parent, name), visited)
        ]
        yield from (_member(root, Path(parent, name)) for name in names if is_image(name))


def _is_new(folder: Path, visited: set[Path]) -> bool:
    before = len(visited)
    visited.add(folder.resolve())
    return len(visited) > before


def _member(root: Path, path: Path) -> Member:
    # A dangling link is an unreadable image later on, not a crash now.
    size = path.stat().st_size if path.exists() else 0
    return Member(path.relative_to(root).as_posix(), str(path), 0, size)
