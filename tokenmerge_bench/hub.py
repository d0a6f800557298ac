"""Data sets of the Hugging Face hub, or saved on disk in its formats, through the package `datasets`."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.imagenet import class_labels, wordnet_ids
from tokenmerge_bench.images import Indices, RowImages
from tokenmerge_bench.splits import choose_split

__all__ = ["open_hub_dataset"]


def open_hub_dataset(name: str, cache: Path | None, split: str | None) -> RowImages:
    """A data set by its name on the hub, a folder of its files, or a folder that `save_to_disk` wrote.

    The image column is the one of that type and the labels are the column `label` or the only one of classes. Where
    all class names are WordNet ids, the labels become ImageNet's. `cache` is where `datasets` keeps what it downloads.
    Raises InputError if `datasets` is not installed, the data set or split cannot be had, or a column is wanting.
    """
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"'hfds/{name}' needs the package datasets: install it with pip install datasets")
    where = f"data set 'hfds/{name}'"
    rows, chosen = _rows(importlib.import_module("datasets"), name, cache, split, where)
    image, label = _columns(rows.features, where)
    table = rows.with_format("arrow").select_columns([image, label])[:]
    labels = np.asarray(table[label].to_pylist(), dtype=object)
    if not len(labels) or not all(isinstance(value, int) and value >= 0 for value in labels):
        raise InputError(
            f"column '{label}' in the {chosen} split of {where} does not hold the number of a class for each image: "
            "give another split by --split"
        )
    classes, numbers = _class_numbers(rows.features[label], labels.astype(np.int64), where)
    undecoded = rows.select_columns([image]).cast_column(image, importlib.import_module("datasets").Image(decode=False))
    return RowImages.of(f"{Path(name).name}-{chosen}", classes, numbers, _marks(table[image]), undecoded, image)


def _rows(datasets: Any, name: str, cache: Path | None, split: str | None, where: str) -> tuple[Any, str]:
    """The rows of one split, and its name."""
    folder = Path(name).expanduser()
    location = str(folder) if folder.is_dir() else name
    try:
        if (folder / "state.json").is_file():
            rows = datasets.load_from_disk(location)
            known = str(rows.split or "")
            choose_split(split, {known.partition("[")[0]} - {""}, where, {known})  # train[:10%] is a part of train
            return rows, known or "all"
        saved = datasets.load_from_disk(location) if (folder / "dataset_dict.json").is_file() else None
        names = list(saved or datasets.get_dataset_split_names(location))
        chosen = choose_split(split, names, where)
        if chosen is None:
            raise InputError(f"{where} has the splits {', '.join(names)}: choose one by --split")
        if saved is not None:
            return saved[chosen], chosen
        return datasets.load_dataset(location, split=chosen, cache_dir=cache and str(cache)), chosen
    except InputError:
        raise
    except Exception as error:  # the hub client, pyarrow and every format fail with types of their own
        reason = (str(error).strip().splitlines() or ["no details"])[0]
        raise InputError(
            f"{where} cannot be loaded ({type(error).__name__}: {reason}): check the name and the network, or give a "
            "folder of its parquet files as hfds/FOLDER"
        ) from error


def _columns(features: Any, where: str) -> tuple[str, str]:
    """The names of the image column and of the label column."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    label = "label" if "label" in kinds else classes[0] if len(classes) == 1 else None
    if len(images) != 1 or label is None:
        raise InputError(
            f"{where} must have one column of images and a column 'label', or one of classes; it has "
            + ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        )
    return images[0], label


def _class_numbers(feature: Any, labels: Indices, where: str) -> tuple[int, Indices]:
    """Number of classes, and the labels, which are those of ImageNet if the class names are WordNet ids."""
    names = getattr(feature, "names", None)
    if not names:
        return int(labels.max()) + 1, labels
    classes, label_of = class_labels(names, where)
    if names[0] not in wordnet_ids():  # nor is any other; they keep the order that the data set gives them
        return classes, labels
    return classes, np.array([label_of[name] for name in names], dtype=np.int64)[labels]


def _marks(column: Any) -> list[str]:
    """What tells each encoded image from others, without reading it: its size in bytes, after the name of a file."""
    compute = importlib.import_module("pyarrow.compute")
    sizes = compute.binary_length(compute.struct_field(column, "bytes")).to_pylist()
    paths = compute.struct_field(column, "path").to_pylist()
    found = zip(sizes, paths, strict=True)
    return [_file_mark(Path(path)) if path and not size else str(size or 0) for size, path in found]


def _file_mark(path: Path) -> str:
    # The name alone: the same files in another place are the same images. A file that is gone is unreadable later on.
    return f"{path.name}\t{path.stat().st_size if path.exists() else 0}"
