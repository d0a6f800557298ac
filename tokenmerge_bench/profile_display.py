"""What the terminal shows of a profile: progress while it runs, a table for each group at the end."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokenmerge_bench.display import ProgressReporter, SilentReporter, errors, short_knob
from tokenmerge_bench.profiles import GROUP
from tokenmerge_bench.profiling import STEPS
from tokenmerge_bench.sheets import Column, Sheet
from tokenmerge_bench.store import UNREDUCED
from tokenmerge_bench.summary import label
from tokenmerge_bench.terminal import redrawn

COLUMNS = [
    Column("method", least=14),
    Column("budget"),
    Column("setting", rank=4),
    Column("FLOPs saved", number=True, rank=1),
    Column("time saved", number=True, rank=5),
    Column("times as fast", number=True),
    Column("95 % interval", number=True),
    Column("of free drop", number=True),
    Column("images/s", number=True, rank=2),
    Column("latency ms", number=True),
    Column("IQR", number=True, rank=3),
    Column("peak MB", number=True, rank=6),
]


class GroupProgress(ProgressReporter):
    """A progress bar with an ETA on stderr, and what is being timed."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("timing"),
            BarColumn(bar_width=40),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=errors,
        )
        self._task = self._progress.add_task("", total=None)

    def start(self, total: int, done: int) -> None:
        """Sets the length of the bar; groups of an earlier run count as done."""
        self._progress.reset(self._task, total=total, completed=done)
        if done:
            self.note(f"going on after an interruption: {done // STEPS} of {total // STEPS} groups are there already")

    def advance(self, evaluations: int, doing: str) -> None:
        """Moves the bar and names the group."""
        self._progress.update(self._task, advance=evaluations, description=doing.partition(":")[0])


def profile_reporter() -> SilentReporter:
    """A progress bar where stderr is a terminal, silence elsewhere."""
    return GroupProgress() if redrawn(errors) else SilentReporter()


def profile_sheets(table: pd.DataFrame) -> list[Sheet]:
    """A table for each group of profile.csv in which anything was timed."""
    groups = [rows for _, rows in table.groupby(GROUP, sort=False, dropna=False)]
    return [_group_sheet(rows) for rows in groups if (rows["status"] == "ok").any()]


def _group_sheet(rows: pd.DataFrame) -> Sheet:
    first = rows.iloc[0]
    title = (
        f"{first['model']} ({first['weights']} weights), batch {int(first['batch_size'])}, {first['dtype']}, "
        f"{first['mode']}, on {first['device']}"
    )
    records = rows.fillna({"options": "", "knob": "", "budget": ""}).to_dict("records")
    return Sheet(title, COLUMNS, [_cells(row) for row in records])


def _cells(row: dict[Any, Any]) -> list[str]:
    name = "unreduced" if row["method"] == UNREDUCED else label(row["method"], row["options"])
    if row["status"] != "ok":
        return [name, row["budget"], row["status"], *[""] * (len(COLUMNS) - 3)]
    times = [
        _number(row["images_per_s"]),
        _number(row["latency_ms"]),
        f"{_number(row['latency_q25_ms'])} to {_number(row['latency_q75_ms'])}",
        _or_blank(row["peak_memory_mb"], ",.0f"),
    ]
    if row["method"] == UNREDUCED:
        return [name, *[""] * 7, *times]
    saved = 100 * (1 - 1 / row["speedup"])  # a speedup that is missing (NaN) stays so
    return [
        name,
        row["budget"],
        short_knob(row["knob"]) if row["knob"] else "",
        f"{100 * row['reduction']:.1f} %",
        _or_blank(saved, ".1f", " %"),
        _or_blank(row["speedup"], ".3f"),
        "" if pd.isna(row["speedup"]) else f"{row['speedup_low']:.3f} to {row['speedup_high']:.3f}",
        _or_blank(100 * row["of_free_drop"], ".0f", " %"),
        *times,
    ]


def _or_blank(value: Any, form: str, unit: str = "") -> str:
    return "" if value is None or pd.isna(value) else f"{value:{form}}{unit}"


def _number(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
