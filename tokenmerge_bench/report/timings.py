"""Measured times beside accuracies: which rows of profiles belong to which settings of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tokenmerge_bench.compare import Setting
from tokenmerge_bench.figures.speed import time_saved
from tokenmerge_bench.profiles import Profile
from tokenmerge_bench.statistics import Interval
from tokenmerge_bench.store import UNREDUCED

MODES = {"graph": "CUDA graph", "compile": "compiled", "compile-graph": "compiled, CUDA graph"}
"""Modes in other words than their names."""


@dataclass(frozen=True)
class Timing:
    """How fast a setting ran in one way on one device: `speedup` is the unreduced model's time over its own, with its
    95 % interval, `ms` its time per image."""

    device: str
    way: str
    speedup: Interval
    ms: float

    @property
    def place(self) -> str:
        """Device and way."""
        return self.way if self.way.startswith(self.device) else f"{self.device}, {self.way}"

    @property
    def time(self) -> Interval:
        """Time in percent of the unreduced model's."""
        return Interval(100 / self.speedup.value, 100 / self.speedup.high, 100 / self.speedup.low)

    @property
    def verdict(self) -> str:
        """`faster` or `slower` than the unreduced model, or `not told apart`."""
        if self.speedup.low > 1:
            return "faster"
        return "slower" if self.speedup.high < 1 else "not told apart"


class Timings:
    """The times in profiles, by the setting that was timed.

    A setting is found again by its model, its method with options, and how many tokens every block gets: these decide
    how long it takes, whatever the budget was called. Trained weights take the same time as others.
    """

    def __init__(self, profile: Profile | None) -> None:
        self._rows: dict[tuple[str, str, str], list[dict[Any, Any]]] = {}
        finished = None if profile is None else with_ways(profile.finished)
        for row in [] if finished is None else finished[finished["method"] != UNREDUCED].to_dict("records"):
            self._rows.setdefault(_key(row), []).append(row)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def of(self, setting: Setting) -> list[Timing]:
        """What was measured of a setting, a timing per way; empty if it was not timed."""
        return [_timing(row) for row in self._rows.get(_key(setting), [])]

    def ways(self, settings: Sequence[Setting]) -> list[str]:
        """The ways in which any of the settings was timed beside the unreduced model, in the order of the profiles."""
        held = {timing.way for setting in settings for timing in self.of(setting)}
        return [way for way in dict.fromkeys(row["way"] for rows in self._rows.values() for row in rows) if way in held]

    def strangers(self, settings: Sequence[Setting]) -> list[str]:
        """What was timed of these models and is not among the settings: methods with model and budget."""
        known, models = {_key(setting) for setting in settings}, {setting["model"] for setting in settings}
        rows = [row for key, rows in self._rows.items() if key not in known for row in rows]
        named = [f"{row['label']} at {row['budget']} on {row['model']}" for row in rows if row["model"] in models]
        return list(dict.fromkeys(named))


def profile_table(profile: Profile, models: Sequence[str]) -> pd.DataFrame:
    """A row per timed setting of these models, for a table: `profile.csv` with the way it was run in words, and what
    was saved."""
    rows = with_ways(profile.table)
    rows = rows[rows["model"].isin(models)]
    return rows.assign(
        method=rows["label"].where(rows["method"] != UNREDUCED, "unreduced"),
        budget=rows["budget"].where(rows["method"] != UNREDUCED, "").fillna(""),
        flops_saved=100 * rows["reduction"],
        time_saved=time_saved(rows["speedup"]),
        ms=1000 / rows["images_per_s"],
    )


def _key(row: dict[Any, Any]) -> tuple[str, str, str]:
    """What decides how long a setting takes; by its budget where nobody recorded its tokens."""
    tokens = row["tokens_per_block"]
    return str(row["model"]), str(row["label"]), tokens if isinstance(tokens, str) else f"at {row['budget']}"


def _timing(row: dict[Any, Any]) -> Timing:
    interval = Interval(float(row["speedup"]), float(row["speedup_low"]), float(row["speedup_high"]))
    return Timing(str(row["device"]), str(row["way"]), interval, 1000 / float(row["images_per_s"]))


def with_ways(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of profiles with a column `way`: what tells their groups apart but for the model, in words. The device is
    part of it if there are several."""
    several = rows["device"].nunique() > 1
    return rows.assign(way=[_way(row, several) for row in rows.to_dict("records")])


def _way(row: dict[Any, Any], with_device: bool) -> str:
    batch = "batch ?" if pd.isna(row["batch_size"]) else f"batch {int(row['batch_size']):,}"
    words = [batch, row["dtype"], MODES.get(row["mode"], row["mode"])]
    return ", ".join([row["device"], *words] if with_device else words)
