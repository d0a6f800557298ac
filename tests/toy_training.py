"""A toy problem that a very small ViT learns in a second, and trainings of it, for the tests of the training track."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.checkpoints import CARD, WEIGHTS, Card
from tokenmerge_bench.data import ArrayImages, ImageSet
from tokenmerge_bench.distributed import Team
from tokenmerge_bench.learning_curve import CurveRow
from tokenmerge_bench.models import DEMO_MODEL
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.recipe import Recipe
from tokenmerge_bench.train import CURVE, STATE, Task, train

ALONE = Team(torch.device("cpu"))
TINY: dict[str, Any] = {"embed_dim": 16, "depth": 4, "num_heads": 2, "patch_size": 7}
"""16 patches of 7 pixels."""
RECIPE: dict[str, Any] = {
    "model": DEMO_MODEL,
    "model_kwargs": TINY,
    "epochs": 2,
    "batch_size": 32,
    "lr": 3e-3,
    "holdout": 20,
    "ema_decay": 0.9,
}
AUGMENTED: dict[str, Any] = {
    "pad": 2,
    "hflip": 0.5,
    "erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "drop_path": 0.1,
}
"""All that draws random numbers and can be done on the device."""


class Silent:
    """Keeps what a reporter is told; `at_update` is called with the number of each update, counted over epochs."""

    def __init__(self, at_update: Callable[[int], None] | None = None) -> None:
        self.rows: list[CurveRow] = []
        self.notes: list[str] = []
        self.started: tuple[int, int, int] | None = None
        self.closed = False
        self._at_update, self._updates = at_update, 0

    def start(self, epochs: int, updates: int, done: int) -> None:
        self.started, self._updates = (epochs, updates, done), updates * done

    def advance(self) -> None:
        self._updates += 1
        if self._at_update is not None:
            self._at_update(self._updates)

    def epoch(self, row: CurveRow) -> None:
        self.rows.append(row)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.closed = True


def textures(count: int, side: int = 28, seed: int = 0) -> ArrayImages:
    """Noisy images of four textures: flat, columns, rows, checks."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 4
    pixels = rng.integers(0, 120, (count, side, side), dtype=np.uint8)
    row, column = np.indices((side, side))
    pixels += 120 * np.stack([0 * row, column % 2, row % 2, (row + column) % 2]).astype(np.uint8)[labels]
    return ArrayImages.of("toy", pixels, labels, 4)


def save_textures(root: Path, count: int, side: int = 28, seed: int = 0) -> Path:
    """The same as PNGs in class folders."""
    images = textures(count, side, seed)
    for index, label in enumerate(images.labels):
        folder = root / ("flat", "columns", "rows", "checks")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.pixels[index]).save(folder / f"{index:03}.png")
    return root


def task(
    method: str | None = None, budget: Budget | None = None, /, weights: Path | None = None, **changes: Any
) -> Task:
    """A small training; `changes` are of `RECIPE`. A method is given 0.8 of the FLOPs unless told otherwise."""
    recipe = Recipe(**{**RECIPE, **changes})
    if method is None:
        return Task(recipe, weights=weights)
    return Task(recipe, parse_method(method), budget or Budget("fraction", "0.8"), weights)


def run(
    images: ImageSet,
    out: Path,
    of: Task | None = None,
    /,
    reporter: Silent | None = None,
    workers: int = 0,
    fresh: bool = False,
    **changes: Any,
) -> Card:
    """Trains `of`, or the unreduced model with `changes` of the recipe."""
    return train(of or task(**changes), images, out, ALONE, workers=workers, fresh=fresh, reporter=reporter or Silent())


def weights_of(out: Path) -> bytes:
    return (out / WEIGHTS).read_bytes()


def curve_of(out: Path) -> list[dict[str, str]]:
    """The rows of curve.csv, less the seconds, which differ from run to run."""
    with (out / CURVE).open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def files_of(out: Path) -> set[str]:
    """Files that a training left, but for the lock."""
    return {path.name for path in out.iterdir()} - {".lock"}


FINISHED = {CARD, CURVE, WEIGHTS, "train.json"}
UNFINISHED = {CURVE, STATE, "train.json"}
