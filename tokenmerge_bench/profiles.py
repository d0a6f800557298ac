"""The folder of a profile: what `tmbench profile` leaves behind, and what lets it go on after an interruption.

    profile.json      format, what was timed where (hardware, versions, seconds, ...) and the groups the folder is for
    records/ID.json   one finished group: its rows of profile.csv, every sample, and the order in every round
    records/max-ID.json  the largest batch size of a model at a precision, and what was tried to find it
    profile.csv       all rows, made from the records
    provenance.json   versions, hardware, command
    speed.*           the figure

A group is one model at one batch size, precision and mode: all its rivals, timed against one another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.store import Folder, write_text
from tokenmerge_bench.summary import label

FORMAT = 1
COLUMNS = (
    "model", "weights", "method", "options", "budget", "knob", "gflops", "reduction", "tokens_per_block", "batch_size",
    "dtype", "mode", "device", "images_per_s", "latency_ms", "latency_q25_ms", "latency_q75_ms", "samples",
    "peak_memory_mb", "speedup", "speedup_low", "speedup_high", "free_drop_speedup", "of_free_drop", "reducer_share",
    "seed", "status", "reason",
)  # fmt: skip
"""Columns of profile.csv.

`gflops` (1e9 multiply-accumulates per image) includes the reducers' own; `reduction` is the fraction of the unreduced
model's that is saved. `latency_ms` is the time of a whole batch, `images_per_s` follows from its median. `speedup` is
the unreduced model's time over this one's in the same round: the median over rounds, with its 95 % interval. Free drop
is the same token schedule with tokens dropped by position, which costs next to nothing; `of_free_drop` is its time over
this one's, and `reducer_share` the rest: choosing, merging and proportional attention together. `peak_memory_mb` is of
an eager pass, weights and images included, and empty on the CPU. `device` names the hardware.
"""
TEXT = (
    "model", "weights", "method", "options", "budget", "knob", "tokens_per_block", "dtype", "mode", "device", "status",
    "reason",
)  # fmt: skip
NUMBERS = tuple(column for column in COLUMNS if column not in TEXT)
"""Columns of numbers; empty where there is none."""
GROUP = ["device", "model", "batch_size", "dtype", "mode"]
"""Columns that rows which were timed against one another have in common."""


class ProfileFolder(Folder):
    """The folder of a profile, opened for one command; see `Folder`. Its points are groups."""

    maker = "profile"
    format = FORMAT
    files = ("profile.csv", "provenance.json", "records")
    products = ("speed.*",)

    def is_done(self, point: str) -> bool:
        """Whether a group has been timed and nothing in it failed: what failed gets another chance, with its rivals."""
        return super().is_done(point) and all(row["status"] != "failed" for row in self.record(point).get("rows", []))

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Writes a record, which marks its group as done."""
        write_text(self.path / "records" / f"{name}.json", json.dumps(dict(record), indent=1) + "\n")

    def write_table(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Writes profile.csv and returns it."""
        table = pd.DataFrame([{column: row.get(column) for column in COLUMNS} for row in rows], columns=list(COLUMNS))
        table = table.assign(**{column: pd.to_numeric(table[column]) for column in NUMBERS})  # also where all are empty
        write_text(self.path / "profile.csv", table.to_csv(index=False, lineterminator="\n"))
        return table


@dataclass(frozen=True, eq=False)
class Profile:
    """Profiles opened for looking: one profile.csv after the other, with a column `label` (method and options)."""

    folders: list[Path]
    table: pd.DataFrame

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of methods that were timed against the unreduced model."""
        return self.table[(self.table["status"] == "ok") & self.table["speedup"].notna()]


def is_profile(path: Path) -> bool:
    """Whether a folder is a profile's."""
    return (path / "profile.json").is_file()


def open_profiles(paths: Sequence[Path]) -> Profile:
    """Opens profiles; nothing is compared across them, so they may be of any hardware.

    Raises:
        InputError: for a folder that is no profile, an unfinished one, or one of a newer format, and for two that timed
            the same model in the same way, which would be shown as if timed together.
    """
    tables = [_read(path) for path in paths]
    seen: dict[tuple[object, ...], Path] = {}
    for path, table in zip(paths, tables, strict=True):
        for key in dict.fromkeys(table[list(GROUP)].itertuples(index=False, name=None)):
            if key in seen:
                raise InputError(
                    f"'{seen[key]}' and '{path}' both timed {', '.join(map(str, key))}, each against its own rivals; "
                    "give one at a time."
                )
            seen[key] = path
    return Profile(list(paths), pd.concat(tables, ignore_index=True))


def _read(path: Path) -> pd.DataFrame:
    file = path / "profile.csv"
    if not is_profile(path):
        raise InputError(f"'{path}' is no profile; give a folder that `tmbench profile` wrote.")
    if not file.is_file():
        raise InputError(f"the profile in '{path}' is not finished; give its command again, it goes on where it was.")
    try:
        held = json.loads((path / "profile.json").read_text(encoding="utf-8"))["format"]
        table = pd.read_csv(file, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except (ValueError, KeyError, TypeError) as error:  # of JSON and of pandas' parser
        raise InputError(f"'{path}' is damaged ({error}); give the command of the profile again.") from error
    if not isinstance(held, int) or held > FORMAT:
        raise InputError(
            f"'{path}' was written in format {held}, and this version reads formats up to {FORMAT}; update "
            "tokenmerge-bench."
        )
    lacking = [column for column in COLUMNS if column not in table]
    wrong = [c for c in NUMBERS if c in table and not pd.api.types.is_numeric_dtype(table[c])]
    if lacking or wrong or table.empty:
        what = f"lacks '{lacking[0]}'" if lacking else f"has no numbers in '{wrong[0]}'" if wrong else "has no rows"
        raise InputError(f"'{file}' {what}; give the command of the profile again.")
    labels = [label(method, options) for method, options in zip(table["method"], table["options"], strict=True)]
    return table.assign(label=labels)
