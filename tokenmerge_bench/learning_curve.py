"""What training tells on its way: a row of the learning curve for every epoch, and progress for whoever waits."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Protocol, runtime_checkable

import rich.console
import rich.progress

__all__ = ["CurveRow", "Reporter", "curve_csv", "default_reporter"]


@dataclass(frozen=True)
class CurveRow:
    """One line of curve.csv: accuracies in percent (None if not measured), seconds of wall time.

    `lr` is that of the epoch's first update.
    """

    epoch: int
    lr: float
    train_loss: float
    holdout_top1: float | None
    holdout_top1_ema: float | None
    seconds: float


def curve_csv(rows: Sequence[CurveRow]) -> str:
    """The learning curve as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(CurveRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in asdict(row).items()}
        writer.writerow(cells)
    return text.getvalue()


@runtime_checkable
class Reporter(Protocol):
    """Told how the training goes."""

    def start(self, epochs: int, updates: int, done: int) -> None:
        """Training of so many epochs of so many updates begins, after `done` epochs of an earlier run."""

    def advance(self) -> None:
        """An update has been asked for."""

    def epoch(self, row: CurveRow) -> None:
        """An epoch has ended."""

    def note(self, text: str) -> None:
        """Something the user should know now."""

    def close(self) -> None:
        """Training has ended, or failed."""


class Quiet:
    """Says nothing, as all processes but the leading one."""

    def start(self, epochs: int, updates: int, done: int) -> None: ...

    def advance(self) -> None: ...

    def epoch(self, row: CurveRow) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A progress bar with the time left, on standard error."""

    def __init__(self) -> None:
        self._console = rich.console.Console(stderr=True)

    def start(self, epochs: int, updates: int, done: int) -> None:
        columns: tuple[rich.progress.ProgressColumn, ...] = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            rich.progress.TimeRemainingColumn(),
        )
        self._bar = rich.progress.Progress(*columns, console=self._console)
        self._task = self._bar.add_task("training", total=epochs * updates, completed=done * updates, epoch=done)
        self._bar.start()

    def advance(self) -> None:
        self._bar.update(self._task, advance=1)

    def epoch(self, row: CurveRow) -> None:
        self._bar.update(self._task, description=_describe(row), epoch=row.epoch)

    def note(self, text: str) -> None:
        self._console.print(f"tmbench: {text}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """About twenty lines on standard error, for logs."""

    def start(self, epochs: int, updates: int, done: int) -> None:
        self._epochs, self._every, self._done, self._began = epochs, max(1, epochs // 20), done, time.perf_counter()

    def advance(self) -> None: ...

    def epoch(self, row: CurveRow) -> None:
        if row.epoch % self._every == 0 or row.epoch in (1, self._epochs):
            a_piece = (time.perf_counter() - self._began) / (row.epoch - self._done)
            left = a_piece * (self._epochs - row.epoch)
            sys.stderr.write(f"epoch {row.epoch}/{self._epochs}, {left:.0f} s left, {_describe(row)}\n")

    def note(self, text: str) -> None:
        sys.stderr.write(f"tmbench: {text}\n")

    def close(self) -> None: ...


def default_reporter() -> Reporter:
    """A progress bar where standard error is a terminal, plain lines elsewhere."""
    return _Bar() if sys.stderr.isatty() else _Lines()


def _describe(row: CurveRow) -> str:
    found = {"top-1": row.holdout_top1, "averaged": row.holdout_top1_ema}
    shown = "".join(f", {name} {value:.2f} %" for name, value in found.items() if value is not None)
    return f"loss {row.train_loss:.4f}{shown}"
