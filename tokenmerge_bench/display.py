"""What the terminal shows: progress while a sweep runs, tables at the end. Tables go to stdout, everything else to
stderr."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tokenmerge_bench.compare import Comparison, shown_name
from tokenmerge_bench.points import UNREDUCED
from tokenmerge_bench.rendering import shown
from tokenmerge_bench.summary import label, summarise

errors = Console(stderr=True)


class SilentReporter:
    """Says nothing but notes; for pipes and scripts."""

    def start(self, total: int, done: int) -> None:
        """See `engine.Reporter`."""

    def advance(self, evaluations: int, doing: str) -> None:
        """See `engine.Reporter`."""

    def note(self, text: str) -> None:
        """Notes are never withheld."""
        sys.stderr.write(f"tmbench: {text}\n")

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
        if done:
            self.note(f"going on after an interruption: {done} of {total} evaluations are there already")

    def advance(self, evaluations: int, doing: str) -> None:
        """Moves the bar."""
        self._progress.advance(self._task, evaluations)

    def note(self, text: str) -> None:
        """Prints above the bar."""
        self._progress.console.print(f"tmbench: {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> ProgressReporter:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def reporter() -> SilentReporter:
    """A progress bar where stderr is a terminal, silence elsewhere."""
    return ProgressReporter() if errors.is_terminal else SilentReporter()


def results_table(results: pd.DataFrame, model: str) -> Table:
    """The results of one model: a line per method, options and budget."""
    rows = summarise(results[results["model"] == model])
    first = results[results["model"] == model].iloc[0]
    n = rows["n_images"].max()
    images = "no images" if pd.isna(n) else f"{int(n):,} images"
    title = f"{model} ({first['weights']}) on {first['dataset']}, {images}"
    table = Table(title=title, title_justify="left", collapse_padding=True)
    # In 80 columns there is room for names and settings in two lines if numbers stay in one.
    table.add_column("method", overflow="fold")
    for heading in ("budget", "setting", "GFLOPs", "saved", "top-1 %", "95 % interval", "lost"):
        named = heading in ("budget", "setting")
        wrapped = heading in ("setting", "top-1 %", "95 % interval")
        table.add_column(heading, justify="left" if named else "right", no_wrap=not wrapped, overflow="fold")
    off_the_shelf = (rows["method"] == UNREDUCED) & (rows["trained"] == "no") & (rows["status"] == "ok")
    unreduced = rows.loc[off_the_shelf, "top1"]
    baseline = float(unreduced.iloc[0]) if len(unreduced) else None
    previous = ""
    for row in rows.to_dict("records"):
        name = shown_name(row)
        if previous and name != previous:
            table.add_section()
        table.add_row("" if name == previous else name, *_cells(row, baseline))
        previous = name
    return table


def _cells(row: dict[Any, Any], baseline: float | None) -> list[str]:
    if row["status"] != "ok":
        return [row["budget"], row["status"], "", "", "", "", ""]
    top1 = f"{row['top1']:.2f}" + (f" ± {row['top1_sd']:.2f}" if row["seeds"] > 1 else "")
    lost = "" if baseline is None else f"{baseline - row['top1']:.2f}"
    if row["method"] == UNREDUCED:
        return ["", "", f"{row['gflops']:.4g}", "", top1, _interval(row), lost if row["trained"] == "yes" else ""]
    return [
        row["budget"],
        short_knob(row["knob"]),
        f"{row['gflops']:.4g}",
        f"{100 * row['reduction']:.1f} %",
        top1,
        _interval(row),
        lost,
    ]


def _interval(row: dict[Any, Any]) -> str:
    return f"{row['top1_low']:.2f} to {row['top1_high']:.2f}"


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


def comparison_tables(found: Comparison) -> list[Table]:
    """A comparison of two methods: pair by pair, curve against curve, and at the fractions that were asked for."""
    frames = {"compare": found.pairs, "curves": found.curves, "at": found.at}
    return [_shown_table(name, frame) for name, frame in frames.items() if not frame.empty]


def _shown_table(name: str, frame: pd.DataFrame) -> Table:
    content = shown(name, frame)
    table = Table(title=frame.attrs["caption"], title_justify="left", title_style="")
    for heading, is_text in zip(content.headings, content.text, strict=True):
        table.add_column(heading, justify="left" if is_text else "right")
    for number, cells in enumerate(content.cells):
        if number in content.starts:
            table.add_section()
        table.add_row(*map(escape, cells))
    return table
