"""What a terminal shows while a sweep runs: how far it is, and the accuracy of every point so far.

Points of a sweep see every batch in turn, so that all of them finish nearly together: what can be looked at on the way
is the table of accuracies that becomes more certain. It is drawn over, some times a second, from counts that are there
anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from tokenmerge_bench.display import ProgressReporter, SilentReporter, errors
from tokenmerge_bench.standings import Standing, Standings
from tokenmerge_bench.statistics import wilson_interval
from tokenmerge_bench.terminal import redrawn

A_SECOND = 2
"""Times that the table is drawn."""
LEAST_CELL, METHOD = 6, 28
"""Width of a budget's column without its margin, and the greatest of the methods'."""


def reporter() -> SilentReporter:
    """A live table where stderr is a screen, silence elsewhere."""
    return LiveReporter() if redrawn(errors) else SilentReporter()


class LiveReporter(ProgressReporter):
    """A progress bar with an ETA, and below it the standings, as far as there is room; gone when the sweep ends."""

    def __init__(self) -> None:
        super().__init__()
        self._board = Board(self._progress)
        self._live = Live(self._board, console=errors, refresh_per_second=A_SECOND, transient=True)

    def follow(self, standings: Standings) -> None:
        """See `sweep.Follower`."""
        self._board.standings = standings

    def __enter__(self) -> LiveReporter:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()


@dataclass
class Board:
    """What is drawn: the progress, and for each model its points, methods down and budgets across."""

    progress: Progress
    standings: Standings | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Progress | Table | Text]:
        yield self.progress
        if self.standings is None:
            return
        yield _how_sure(self.standings)
        grids = _grids(self.standings)
        room = console.height - 3  # the two lines above, and the one that the cursor is on
        for number, grid in enumerate(grids):
            left = len(grids) - number - 1
            rows = min(len(grid.rows), room - 3 - bool(left))  # title, headings, and a line that says what is missing
            if rows < 1:
                yield Text(f"and {left + 1} more models, for which there is no room here", style="dim")
                return
            yield from _drawn(grid, self.standings, rows, options.max_width)
            room -= rows + 2 + (rows < len(grid.rows))


@dataclass
class Grid:
    """The points of one model: `cells` by row and budget, a cell's standings differing in their seed alone."""

    model: str
    unreduced: list[Standing] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    budgets: list[str] = field(default_factory=list)
    cells: dict[tuple[str, str], list[Standing]] = field(default_factory=lambda: defaultdict(list))


def _grids(standings: Standings) -> list[Grid]:
    grids: dict[str, Grid] = {}
    for standing in standings.by_point.values():
        point = standing.point
        grid = grids.setdefault(point.model, Grid(point.model))
        if point.method is None and point.checkpoint is None:
            grid.unreduced.append(standing)
            continue
        name = "unreduced" if point.method is None else point.method.label
        row = f"{name} (trained)" if point.checkpoint is not None else name
        grid.rows += [row] if row not in grid.rows else []
        grid.budgets += [point.budget.recorded] if point.budget.recorded not in grid.budgets else []
        grid.cells[row, point.budget.recorded].append(standing)
    return list(grids.values())


def _drawn(grid: Grid, standings: Standings, rows: int, width: int) -> Iterator[Table | Text]:
    names = [row if len(row) <= METHOD else f"{row[: METHOD - 1]}…" for row in grid.rows[:rows]]
    widths = [max(LEAST_CELL, len(budget)) + 2 for budget in grid.budgets]
    shown = len(widths)
    while shown > 1 and max(map(len, names)) + 2 + sum(widths[:shown]) > width:
        shown -= 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for budget in grid.budgets[:shown]:
        table.add_column(budget, justify="right", min_width=LEAST_CELL, no_wrap=True)
    for row, name in zip(grid.rows, names, strict=False):
        table.add_row(name, *(_cell(grid.cells[row, budget], standings) for budget in grid.budgets[:shown]))
    unreduced = "".join(f", unreduced {100 * one.right / one.seen:.1f}" for one in grid.unreduced if one.seen)
    yield Text(grid.model + unreduced, style="bold", no_wrap=True, overflow="ellipsis")
    yield table
    hidden = [(len(grid.rows) - rows, "methods"), (len(grid.budgets) - shown, "budgets")]
    if missing := [f"{number} more {what}" for number, what in hidden if number]:
        yield Text(f"and {', '.join(missing)}, for which there is no room here", style="dim")


def _how_sure(standings: Standings) -> Text:
    """What the numbers are, of how many images, and how far the least certain of them can be trusted."""
    running = [standing for standing in standings.by_point.values() if 0 < standing.seen < standings.images]
    if not running:
        return Text(f"top-1 % on {standings.images:,} images", style="dim")
    # The interval is widest for the fewest images, and there nearest to one half.
    widest = min(running, key=lambda one: (one.seen, abs(one.right / one.seen - 0.5)))
    low, high = wilson_interval(widest.right, widest.seen)
    images = f"{widest.seen:,} of {standings.images:,} images"
    return Text(f"top-1 % so far, on {images}: ± {50 * (high - low):.1f} or less (95 %)", style="dim")


def _cell(cell: Sequence[Standing], standings: Standings) -> Text:
    """The accuracy so far over all seeds; ✓ behind it says that all images have been seen."""
    seen, right = sum(standing.seen for standing in cell), sum(standing.right for standing in cell)
    if any(standing.point.id in standings.failures for standing in cell):
        return Text("failed", style="red")
    if not cell or any(standing.point.obstacle for standing in cell):
        return Text("-", style="dim")
    if not seen:
        return Text("…", style="dim")
    done = all(standing.seen >= standings.images for standing in cell)
    return Text(f"{100 * right / seen:.1f}{'✓' if done else ' '}", style="green" if done else "")
