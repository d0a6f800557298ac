"""Results folders opened for looking: the rows of all of them in one table, and what happened to each image.

Tables, figures and comparisons start here and need nothing else: no model, no images.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.store import FORMAT, UNREDUCED, outcomes_file, read_results
from tokenmerge_bench.summary import setting_key, summarise

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Site:
    """What one reduction left of an image: `owner` (N0,) is the token, 0 to `tokens` - 1, of each grid cell."""

    block: int
    tokens: int
    owner: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Example:
    """One image of a sweep with the merges of one point: `picture` (H, W, 3) uint8 is the model's own crop."""

    image: str
    picture: npt.NDArray[np.uint8]
    grid: tuple[int, int]
    sites: list[Site]


@dataclass(frozen=True, eq=False)
class Results:
    """Folders that were evaluated on the same images in the same way, so that everything in them may be compared.

    `table` is their results.csv one after the other, with a column `folder` (position in `folders`). A point that
    several folders hold (the unreduced model, above all) is there once.
    """

    folders: list[Path]
    provenance: list[dict[str, Any]]
    table: pd.DataFrame

    @property
    def dataset(self) -> str:
        """Name of the image set."""
        return str(self.provenance[0]["dataset"]["name"])

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Fingerprints of the image set and of the choice of images from it."""
        return _fingerprints(self.provenance[0])

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per setting (`summary.summarise`), all statuses, seeds averaged."""
        return summarise(self.table)

    @cached_property
    def settings(self) -> list[dict[Any, Any]]:
        """The rows of `summary` one by one."""
        return self.summary.to_dict("records")

    @cached_property
    def finished(self) -> list[dict[Any, Any]]:
        """Those of them that gave numbers."""
        return [setting for setting in self.settings if setting["status"] == "ok"]

    def runs(self, setting: dict[Any, Any]) -> list[dict[Any, Any]]:
        """The finished rows of `table` of one row of `summary`: one per seed."""
        return self._runs.get(setting_key(setting), [])

    @cached_property
    def _runs(self) -> dict[tuple[Any, ...], list[dict[Any, Any]]]:
        found: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
        for run in self.table[self.table["status"] == "ok"].to_dict("records"):
            found.setdefault(setting_key(run), []).append(run)
        return found

    def unreduced(self, model: str) -> dict[Any, Any] | None:
        """The summary row of the unreduced model off the shelf, or None where that point failed."""
        return self._unreduced.get(model)

    @cached_property
    def _unreduced(self) -> dict[str, dict[Any, Any]]:
        rows = [row for row in self.finished if row["method"] == UNREDUCED and row["trained"] == "no"]
        return {row["model"]: row for row in reversed(rows)}  # the first of each

    def outcomes(self, run: dict[Any, Any]) -> pd.DataFrame:
        """Per-image outcomes of one row of `table`: columns label, prediction, rank; index image.

        Raises:
            InputError: if the folder lacks them.
        """
        file = outcomes_file(self.folders[run["folder"]], run["point"])
        if file is None:
            raise InputError(
                f"'{self.folders[run['folder']]}' lacks the per-image outcomes of {run['point']}; copy the whole "
                "folder, or run the sweep again."
            )
        try:
            table = pd.read_csv(file).set_index("image")
            sound = table.index.is_unique and pd.api.types.is_integer_dtype(table["rank"])
        except (OSError, EOFError, ValueError, KeyError, zlib.error):  # what gzip and pandas raise on damaged files
            sound = False
        if not sound:
            raise InputError(f"'{file}' is damaged; copy the folder once more, or run the sweep again.")
        return table

    def hits(self, *settings: dict[Any, Any]) -> list[Hits]:
        """Whether top-1 was right, (seeds, images) for each row of `summary`, the images in the same order for all.

        Raises:
            InputError: if outcomes are missing or the settings did not see the same images.
        """
        order: pd.Index[str] | None = None
        found = []
        for setting in settings:
            right = []
            for run in self.runs(setting):
                ranks = self._ranks(run)
                if order is None:
                    order = ranks.index
                if ranks.index.equals(order):  # as it nearly always is; to look for every name takes long
                    right.append(ranks.to_numpy() == 0)
                    continue
                if len(ranks) != len(order) or not ranks.index.isin(order).all():
                    raise InputError(
                        f"{settings[0]['label']} and {setting['label']} of {setting['model']} did not see the same "
                        f"images ({len(order)} and {len(ranks)}, some unreadable); run the sweep again."
                    )
                right.append(ranks.reindex(order).to_numpy() == 0)
            if not right:
                raise InputError(f"{setting['label']} at {setting['budget']} has no finished run; run the sweep again.")
            found.append(np.stack(right))
        return found

    def _ranks(self, run: dict[Any, Any]) -> pd.Series[int]:
        """The ranks among `outcomes`, read once: whoever compares every pair asks for each of them many times."""
        key = run["folder"], run["point"]
        if key not in self._read:
            ranks = self.outcomes(run)["rank"]
            first = next(iter(self._read.values()), ranks)
            if ranks.index.equals(first.index):
                ranks.index = first.index  # held once, and equal at a glance
            self._read[key] = ranks
        return self._read[key]

    @cached_property
    def _read(self) -> dict[tuple[int, str], pd.Series[int]]:
        return {}

    def examples(self, run: dict[Any, Any]) -> list[Example]:
        """Merges on example images of one row of `table`; empty unless the experiment asked for examples."""
        folder = self.folders[run["folder"]] / "examples"
        file = folder / f"{run['point']}.json"
        if not file.is_file():
            return []
        try:
            return [_example(folder, held) for held in json.loads(file.read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{file}' or a picture beside it is damaged; run the sweep again.") from error


def open_results(paths: Sequence[Path]) -> Results:
    """Opens results folders together.

    Raises:
        InputError: for a folder without results, one of a newer format, or folders of different images, or of one
            model or method with different weights, preprocessing, precision or code.
    """
    if not paths:
        raise InputError("no results folder was given; name one that `tmbench sweep` or `tmbench run` wrote.")
    tables: list[pd.DataFrame] = []
    origins: list[dict[str, Any]] = []
    for number, path in enumerate(paths):
        table = read_results(path).assign(folder=number)
        origin = _provenance(path)
        _refuse_unnamed(path, table, origin)
        for earlier, other in zip(paths, origins, strict=False):
            _refuse_unlike(earlier, other, path, origin)
        tables.append(table)
        origins.append(origin)
    table = pd.concat(tables, ignore_index=True)
    # A finished point of one folder stands for the same point of another, finished or not.
    finished = table["status"] == "ok"
    table = pd.concat([table[finished], table[~finished]]).drop_duplicates(subset="point").sort_index()
    return Results(list(paths), origins, table.reset_index(drop=True))


def _example(folder: Path, held: dict[str, Any]) -> Example:
    rows, columns = held["grid"]
    sites = [Site(s["block"], s["tokens"], np.array(s["owner"], dtype=np.int64)) for s in held["sites"]]
    if any(site.owner.shape != (rows * columns,) for site in sites):
        raise ValueError("an owner for every grid cell is needed")
    with Image.open(folder / Path(held["picture"]).name) as image:  # nothing outside the folder is opened
        return Example(held["image"], np.asarray(image.convert("RGB")), (rows, columns), sites)


def _provenance(path: Path) -> dict[str, Any]:
    origin: dict[str, Any] = _json(path, "provenance.json")
    try:
        _fingerprints(origin)
    except (KeyError, TypeError) as error:
        raise InputError(f"'{path / 'provenance.json'}' names no images; run the sweep again.") from error
    held = _json(path, "sweep.json").get("format") if (path / "sweep.json").is_file() else FORMAT
    if not isinstance(held, int) or held > FORMAT:
        raise InputError(
            f"'{path}' was written by tokenmerge-bench {origin.get('tokenmerge_bench')} in format {held}, and this "
            f"version reads formats up to {FORMAT}; update tokenmerge-bench."
        )
    return origin


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"'{path}' lacks a readable {name}; finish its sweep by giving the command again.")
    return content


def _refuse_unnamed(path: Path, table: pd.DataFrame, origin: dict[str, Any]) -> None:
    """Raises InputError for a model of which nothing is recorded, so that nothing about it could be compared."""
    unnamed = set(table["model"]).difference(origin.get("models", table["model"]))
    if unnamed:
        raise InputError(
            f"'{path / 'provenance.json'}' says nothing of {', '.join(sorted(unnamed))}; finish its sweep by giving "
            "the command again."
        )


def _refuse_unlike(path: Path, origin: dict[str, Any], later: Path, other: dict[str, Any]) -> None:
    """Raises InputError where two folders cannot be looked at together, naming what differs."""
    refused = "cannot be shown or compared together; give folders"
    if _fingerprints(origin) != _fingerprints(other):
        raise InputError(
            f"'{path}' and '{later}' were evaluated on different images ({_images(origin)}; {_images(other)}) and "
            f"{refused} of the same images."
        )
    conditions, others = ({**_conditions(o), **_code(p)} for p, o in ((path, origin), (later, other)))
    for what, held in conditions.items():
        found = others.get(what, held)
        if held != found:
            raise InputError(f"'{path}' and '{later}' differ in the {what} ({held}; {found}) and {refused} that agree.")


def _conditions(origin: dict[str, Any]) -> dict[str, Any]:
    """What else must be the same for outcomes to be comparable, as far as it was recorded."""
    found = {"precision": origin.get("experiment", {}).get("dtype"), "compilation": origin.get("compile", False)}
    for model, held in origin.get("models", {}).items():
        # Another image size resamples the positions, so that the weights differ too: named for what was asked for.
        found |= {f"{key} of {model}": value for key, value in held.get("preprocessing", {}).items()}
        found[f"weights of {model}"] = held.get("fingerprint")
    return found | {_trained(held): held.get("fingerprint") for held in origin.get("checkpoints", [])}


def _trained(held: dict[str, Any]) -> str:
    """What a checkpoint of a folder is, in words; two of the same would be averaged as if they were two seeds."""
    card = held["card"]
    options = json.dumps(card.get("options", {}), sort_keys=True)
    what = f"{card['method']} {options} at {card.get('budget')} with seed {card.get('seed')}"
    return f"checkpoint of {held['model']} trained with {what}"


def _code(path: Path) -> dict[str, Any]:
    """Fingerprints of the code of the methods, by which two versions of a method are told apart."""
    evaluation = _json(path, "sweep.json").get("evaluation", {}) if (path / "sweep.json").is_file() else {}
    return {key: value for key, value in evaluation.items() if key.startswith("code of ")}


def _fingerprints(origin: dict[str, Any]) -> tuple[str, str]:
    return origin["dataset"]["fingerprint"], origin["subset"]["fingerprint"]


def _images(origin: dict[str, Any]) -> str:
    dataset, subset = _fingerprints(origin)
    return f"{origin['dataset']['name']} {dataset}, {origin['subset']['images']} images {subset}"
