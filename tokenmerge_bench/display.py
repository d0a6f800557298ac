"""What the terminal shows: progress while a sweep runs, tables at the end. Tables go to stdout, everything else to
stderr."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokenmerge_bench.compare import Comparison, shown_name
from tokenmerge_bench.rendering import shown
from tokenmerge_bench.sheets import Column, Sheet
from tokenmerge_bench.store import UNREDUCED
from tokenmerge_bench.summary import label, summarise
from tokenmerge_bench.terminal import say, stderr

errors = stderr()
RESULTS = [
    Column("method", least=14),
    Column("budget"),
    Column("setting", rank=2),
    Column("GFLOPs", number=True),
    Column("saved", number=True, rank=1),
    Column("top-1 %", number=True),
    Column("95 % interval", number=True),
    Column("lost", number=True),
]
DISPENSABLE = ("verdict", "only .*", "GFLOPs.*", "images needed", "p")
"""Headings of a comparison that a narrow terminal does without, the last one first."""


class SilentReporter:
    """Says nothing but notes; for pipes and scripts."""

    def start(self, total: int, done: int) -> None:
        """See `engine.Reporter`."""

    def advance(self, evaluations: int, doing: str) -> None:
        """See `engine.Reporter`."""

    def note(self, text: str) -> None:
        """Notes are never withheld."""
        say(text)

    def __enter__(self) -> SilentReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class ProgressReporter(SilentReporter):
    """A progress bar with an ETA on stderr."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("evaluating"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("images x points"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=errors,
        )
        self._task = self._progress.add_task("", total=None)

    def start(self, total: int, done: int) -> None:
        """Sets the length of the bar; work of an earlier run counts as done."""
        self._progress.reset(self._task, total=total, completed=done)
        if done == total:
            self.note(f"nothing left to evaluate: all {total} evaluations are there already")
        elif done:
            self.note(f"going on after an interruption: {done} of {total} evaluations are there already")

    def advance(self, evaluations: int, doing: str) -> None:
        """Moves the bar."""
        self._progress.advance(self._task, evaluations)

    def note(self, text: str) -> None:
        """Prints above the bar."""
        say(text, self._progress.console)

    def __enter__(self) -> ProgressReporter:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def results_sheet(results: pd.DataFrame, model: str) -> Sheet:
    """The results of one model: a line per method, options and budget."""
    rows = summarise(results[results["model"] == model]).to_dict("records")
    first = results[results["model"] == model].iloc[0]
    n = max((row["n_images"] for row in rows if not pd.isna(row["n_images"])), default=None)
    images = "no images" if n is None else f"{int(n):,} images"
    off_the_shelf = (r for r in rows if (r["method"], r["trained"], r["status"]) == (UNREDUCED, "no", "ok"))
    baseline = next((row["top1"] for row in off_the_shelf), None)
    names = [shown_name(row) for row in rows]
    starts = [number for number in range(1, len(rows)) if names[number] != names[number - 1]]
    cells = [[name, *_cells(row, baseline)] for name, row in zip(names, rows, strict=True)]
    return Sheet(f"{model} ({first['weights']}) on {first['dataset']}, {images}", RESULTS, cells, starts)


def _cells(row: dict[Any, Any], baseline: float | None) -> list[str]:
    if row["status"] != "ok":
        return [row["budget"], row["status"], "", "", "", "", ""]
    top1 = f"{row['top1']:.2f}" + (f" ± {row['top1_sd']:.2f}" if row["seeds"] > 1 else "")
    lost = "" if baseline is None else f"{baseline - row['top1']:.2f}"
    interval = f"{row['top1_low']:.2f} to {row['top1_high']:.2f}"
    if row["method"] == UNREDUCED:
        return ["", "", f"{row['gflops']:#.4g}", "", top1, interval, lost if row["trained"] == "yes" else ""]
    gflops, saved = f"{row['gflops']:#.4g}", f"{100 * row['reduction']:.1f} %"
    return [row["budget"], short_knob(row["knob"]), gflops, saved, top1, interval, lost]


def short_knob(knob: str) -> str:
    """A per-layer list with its runs abbreviated: `r=10/10/9/9/9` becomes `r=10x2/9x3`."""
    name, _, values = knob.partition("=")
    runs = [(value, len(list(run))) for value, run in groupby(values.split("/"))]
    return f"{name}=" + "/".join(value if length == 1 else f"{value}x{length}" for value, length in runs)


def reasons(results: pd.DataFrame) -> list[str]:
    """One line for each point that gave no number, with its reason."""
    bad = results[results["status"] != "ok"]
    lines = []
    for row in bad.fillna({"budget": ""}).to_dict("records"):
        at = f" at {row['budget']}" if row["budget"] else ""
        lines.append(f"{row['model']} {label(row['method'], row['options'])}{at}: {row['status']}, {row['reason']}")
    return list(dict.fromkeys(lines))


def comparison_sheets(found: Comparison) -> list[Sheet]:
    """A comparison of two methods: pair by pair, curve against curve, and at the fractions that were asked for."""
    frames = {"compare": found.pairs, "curves": found.curves, "at": found.at}
    return [_comparison_sheet(name, frame) for name, frame in frames.items() if not frame.empty]


def _comparison_sheet(name: str, frame: pd.DataFrame) -> Sheet:
    content = shown(name, frame)
    columns = [
        Column(heading, number=not text, least=14 if text else None, rank=_rank(heading, frame["model"].nunique()))
        for heading, text in zip(content.headings, content.text, strict=True)
    ]
    return Sheet(frame.attrs["caption"], columns, content.cells, content.starts)


def _rank(heading: str, models: int) -> int:
    """How well a narrow terminal does without a column of a comparison; a single model can be named above the table."""
    if heading == "model":
        return len(DISPENSABLE) + 1 if models == 1 else 0
    return next((rank for rank, form in enumerate(DISPENSABLE, 1) if re.fullmatch(form, heading)), 0)
