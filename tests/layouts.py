"""Small image sets on disk in the layouts that users have, for the tests of the readers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image
from sweeping import save_image

from tokenmerge_bench.imagenet import wordnet_ids

# The first validation images of ILSVRC2012: the ILSVRC2012_ID of each in the development kit, its label in
# Caffe's val.txt, its WordNet id in Kaggle's CSV.
IDS, LABELS = (490, 361, 171, 822, 297), (65, 970, 230, 809, 516)
WNIDS = ("n01751748", "n09193705", "n02105855", "n04263257", "n03125729")
NAMES = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 6)]


def flat_folder(root: Path) -> Path:
    """ImageNet's first five validation images (as noise), as the original archive unpacks them; no labels."""
    for number, name in enumerate(NAMES):
        save_image(root / f"{name}.JPEG", seed=number)
    return root


def class_folders(root: Path) -> Path:
    """The same files in class folders."""
    for number, (name, wnid) in enumerate(zip(NAMES, WNIDS, strict=True)):
        save_image(root / wnid / f"{name}.JPEG", seed=number)
    return root


def own_classes(root: Path, classes: Sequence[str] = ("cats", "ants", "bees")) -> Path:
    """Two images in each of the given classes."""
    for number, name in enumerate(classes):
        for image in range(2):
            save_image(root / name / f"{image}.png", seed=10 * number + image)
    return root


def mixed_folder(root: Path) -> Path:
    """Two classes out of order, several suffixes, one broken and one truncated file, things to pass over."""
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


def write_kaggle(folder: Path) -> None:
    rows = [f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for name, wnid in zip(NAMES, WNIDS, strict=True)]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))


def write_caffe(folder: Path, labels: Sequence[object] = LABELS) -> None:
    lines = [f"{name}.JPEG {label}\n" for name, label in zip(NAMES, labels, strict=True)]
    (folder / "val.txt").write_text("".join(lines))


def write_devkit(folder: Path, ids: Sequence[int] = IDS, meta: bool = True) -> None:
    """The two files of the development kit; its list of synsets is in no order and knows more than 1000 of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in ids))
    if meta:
        synsets = [*reversed(list(zip(IDS, WNIDS, strict=True))), (1, "n02119789"), (1001, "n02084071")]
        fields = np.zeros((len(synsets), 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
        for row, (number, wnid) in zip(fields[:, 0], synsets, strict=True):
            row["ILSVRC2012_ID"], row["WNID"], row["num_children"] = number, wnid, 0
        scipy.io.savemat(folder / "meta.mat", {"synsets": fields})


def write_tar(path: Path, files: Mapping[str, bytes], mode: Any = "w") -> Path:
    """An archive of the given files, in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def contents(root: Path, prefix: str = "") -> dict[str, bytes]:
    """Every file below `root`, by its path relative to it, for `write_tar`."""
    files = sorted((path for path in root.rglob("*") if path.is_file()), reverse=True)
    return {prefix + path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def as_dict(images: Any) -> dict[str, int]:
    """Label by name."""
    return dict(zip(images.paths, images.labels.tolist(), strict=True))


def same(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images have the same pixels."""
    return (one.mode, one.size, one.tobytes()) == (other.mode, other.size, other.tobytes())


def wordnet_id(label: int) -> str:
    return list(wordnet_ids())[label]
