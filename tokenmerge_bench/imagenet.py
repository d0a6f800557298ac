"""ImageNet-1k: classes by WordNet id, and the label files of the flat validation folder.

A label is the position of a class's WordNet id among the 1000 sorted ids, as in torchvision and timm.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import scipy.io
from timm.data.imagenet_info import ImageNetInfo

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.images import FileImages, Member

__all__ = ["class_labels", "is_flat", "open_flat", "wordnet_ids"]

_VAL_NAME = re.compile(r"ILSVRC2012_val_\d{8}")
# Where a labels file may lie, seen from the images: Kaggle's is four folders up, the devkit keeps its own in data/.
_ANCESTORS, _SUBFOLDERS = 4, (".", "data", "ILSVRC2012_devkit_t12/data")


@cache
def wordnet_ids() -> dict[str, int]:
    """Label by WordNet id, of the 1000 classes of ImageNet-1k."""
    return {wnid: label for label, wnid in enumerate(ImageNetInfo().label_names())}


def class_labels(names: Iterable[str], where: str) -> tuple[int, dict[str, int]]:
    """Number of classes, and the label of each class name.

    WordNet ids give ImageNet's 1000 classes and labels. If no name is one, the classes are the sorted names, as in
    torchvision's ImageFolder. Raises InputError, about `where`, if some are and some are not.
    """
    ordered = sorted(set(names))
    others = [name for name in ordered if name not in wordnet_ids()]
    if not others:
        return len(wordnet_ids()), {name: wordnet_ids()[name] for name in ordered}
    if len(others) < len(ordered):
        raise InputError(
            f"'{others[0]}' in {where} is no ImageNet-1k WordNet id (as n01440764 is), though others there are: "
            "give the folder that holds the class folders, and nothing else"
        )
    return len(ordered), {name: label for label, name in enumerate(ordered)}


def is_flat(members: Sequence[Member]) -> bool:
    """Whether these are ImageNet's validation images as they come, without class folders."""
    paths = [PurePosixPath(member.path) for member in members]
    return all(_VAL_NAME.fullmatch(path.stem) and path.parent.name not in wordnet_ids() for path in paths)


def open_flat(name: str, members: Sequence[Member], folder: Path, where: str) -> FileImages:
    """ImageNet's validation images without class folders, labelled by a file in `folder` or in a folder above it.

    That file is the first of these: Kaggle's LOC_val_solution.csv (WordNet ids), Caffe's val.txt (name and label), or
    ILSVRC2012_validation_ground_truth.txt of the development kit (one ILSVRC2012_ID a line, which the kit's meta.mat
    turns into a WordNet id). The images are named as in class folders, so that an image is the same in every layout.

    Raises InputError if there is no such file, if its lines are not as many as `members` or do not name them, if a
    label is none of ImageNet-1k's, and if meta.mat is wanting: those IDs are not in the order of the labels, and
    nothing is guessed.
    """
    path, read = _labels_file(folder, where)
    label_of = read(path)
    if len(label_of) != len(members):
        raise InputError(
            f"'{path}' labels {len(label_of)} images but {where} holds {len(members)}: complete the one or the other"
        )
    files = [PurePosixPath(member.path) for member in members]
    unlabelled = next((file.name for file in files if file.stem not in label_of), None)
    if unlabelled is not None:
        raise InputError(f"'{path}' has no label for '{unlabelled}': give the labels file that belongs to these images")
    wnids = list(wordnet_ids())
    labels = [label_of[file.stem] for file in files]
    found = [(f"{wnids[label]}/{file.name}", label, m) for file, label, m in zip(files, labels, members, strict=True)]
    return FileImages.of(name, len(wnids), found)


def _labels_file(folder: Path, where: str) -> tuple[Path, Callable[[Path], dict[str, int]]]:
    here = folder.resolve()
    for place in (here, *list(here.parents)[:_ANCESTORS]):
        for subfolder in _SUBFOLDERS:
            for name, read in _READERS.items():
                path = place / subfolder / name
                if path.is_file():
                    return path, read
    raise InputError(
        f"the images in {where} lie in no class folders and have no labels file: put Caffe's val.txt, Kaggle's "
        "LOC_val_solution.csv, or the development kit's ILSVRC2012_validation_ground_truth.txt with its meta.mat "
        "beside them, or give a folder with one folder of images per class"
    )


def _read_kaggle(path: Path) -> dict[str, int]:
    """Kaggle's CSV: ImageId, then a WordNet id and a box for every object; all objects of an image are of one class."""
    rows = [row for row in csv.reader(_lines(path)) if row]
    return _unique(path, [(row[0], _wordnet_label(path, " ".join(row[1:]))) for row in rows[1:]])


def _wordnet_label(path: Path, objects: str) -> int:
    wnid = next(iter(objects.split()), "")
    if wnid not in wordnet_ids():
        raise InputError(f"'{path}' names the class '{wnid}', which is no ImageNet-1k WordNet id: download it again")
    return wordnet_ids()[wnid]


def _read_caffe(path: Path) -> dict[str, int]:
    """Caffe's text: a file name and a label, from 0, on each line."""
    return _unique(path, [_caffe_line(path, number, line) for number, line in enumerate(_lines(path), 1)])


def _caffe_line(path: Path, number: int, line: str) -> tuple[str, int]:
    name, _, label = line.strip().rpartition(" ")
    if not name or not label.isdecimal() or int(label) >= len(wordnet_ids()):
        raise InputError(
            f"line {number} of '{path}' reads '{line}' where a file name and a label from 0 to "
            f"{len(wordnet_ids()) - 1} are wanted: use Caffe's val.txt"
        )
    return PurePosixPath(name).stem, int(label)


def _read_devkit(path: Path) -> dict[str, int]:
    """The development kit's text: an ILSVRC2012_ID on each line; line i is of ILSVRC2012_val_<i>."""
    meta = path.parent / "meta.mat"
    if not meta.is_file():
        raise InputError(
            f"'{path}' holds ILSVRC2012_IDs, whose order is not that of the labels: put meta.mat of the same "
            f"development kit beside it, in '{path.parent}'"
        )
    label_of_id = _read_meta(meta)
    lines = _lines(path)
    unknown = next((number for number, line in enumerate(lines, 1) if line.strip() not in label_of_id), None)
    if unknown is not None:
        raise InputError(
            f"line {unknown} of '{path}' reads '{lines[unknown - 1]}', which '{meta}' gives no ImageNet-1k class: take "
            "both files from one development kit"
        )
    return {f"ILSVRC2012_val_{number:08d}": label_of_id[line.strip()] for number, line in enumerate(lines, 1)}


def _read_meta(path: Path) -> dict[str, int]:
    """Label by ILSVRC2012_ID (as text), of those synsets in meta.mat that are classes of ImageNet-1k."""
    try:
        synsets = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        pairs = [(int(i), str(wnid)) for i, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)]
    except Exception as error:  # scipy's reader fails in many ways on what is no MATLAB file
        raise InputError(f"'{path}' is not the meta.mat of an ILSVRC2012 development kit: unpack it again") from error
    return {str(number): wordnet_ids()[wnid] for number, wnid in pairs if wnid in wordnet_ids()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels file '{path}' cannot be read as text: download it again") from error


def _unique(path: Path, pairs: Sequence[tuple[str, int]]) -> dict[str, int]:
    names, counts = np.unique([name for name, _ in pairs], return_counts=True)
    if len(names) < len(pairs):
        raise InputError(f"'{path}' names '{names[counts > 1][0]}' more than once: leave one label of each image")
    return dict(pairs)


_READERS: dict[str, Callable[[Path], dict[str, int]]] = {
    "LOC_val_solution.csv": _read_kaggle,
    "val.txt": _read_caffe,
    "ILSVRC2012_validation_ground_truth.txt": _read_devkit,
}
