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

A_SECOND = 1
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
        self._board.follow(standings)

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
    grids: list[Grid] = field(default_factory=list)

    def follow(self, standings: Standings) -> None:
        """Arranges the points, once: what changes is read when it is drawn."""
        self.standings, self.grids = standings, _grids(standings)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Progress | Table | Text]:
        yield self.progress
        if self.standings is None:
            return
        yield _how_sure(self.standings)
        room = console.height - 3  # the two lines above, and the one that the cursor is on
        for number, grid in enumerate(self.grids):
            later = len(self.grids) - number - 1
            columns = _columns(grid, options.max_width)
            whole = 2 + len(grid.rows) + (columns < len(grid.budgets)) + bool(later) <= room
            rows = len(grid.rows) if whole else room - 3 - bool(later)
            if rows < 1:
                yield _line(f"and {later + 1} more models", "dim")
                return
            yield from _drawn(grid, self.standings, rows, columns)
            room -= 2 + rows + (columns < len(grid.budgets) or not whole)


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


def _columns(grid: Grid, width: int) -> int:
    """How many budgets there is room for beside the methods; one at least."""
    left = width - min(METHOD, max(map(len, grid.rows), default=0)) - 2
    columns = 0
    for budget in grid.budgets:
        left -= max(LEAST_CELL, len(budget)) + 2
        columns += left >= 0
    return max(1, columns)


def _drawn(grid: Grid, standings: Standings, rows: int, columns: int) -> Iterator[Table | Text]:
    names = [row if len(row) <= METHOD else f"{row[: METHOD - 1]}…" for row in grid.rows[:rows]]
    budgets = grid.budgets[:columns]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for budget in budgets:
        table.add_column(budget, justify="right", min_width=LEAST_CELL, no_wrap=True)
    for row, name in zip(grid.rows, names, strict=False):
        table.add_row(name, *(_cell(grid.cells[row, budget], standings) for budget in budgets))
    unreduced = "".join(f", unreduced {100 * one.right / one.seen:.1f}" for one in grid.unreduced if one.seen)
    yield _line(grid.model + unreduced, "bold")
    yield table
    hidden = [(len(grid.rows) - rows, "methods"), (len(grid.budgets) - columns, "budgets")]
    if missing := [f"{number} more {what}" for number, what in hidden if number]:
        yield _line(f"and {', '.join(missing)}", "dim")


def _how_sure(standings: Standings) -> Text:
    """What the numbers are, of how many images, and how far the least certain of them can be trusted."""
    running = [standing for standing in standings.by_point.values() if 0 < standing.seen < standings.images]
    if not running:
        anything = any(standing.seen for standing in standings.by_point.values())
        return _line(f"top-1 % on {standings.images:,} images" + ("" if anything else ": none yet"), "dim")
    # The interval is widest for the fewest images, and there nearest to one half.
    widest = min(running, key=lambda one: (one.seen, abs(one.right / one.seen - 0.5)))
    low, high = wilson_interval(widest.right, widest.seen)
    images = f"{widest.seen:,} of {standings.images:,} images"
    return _line(f"top-1 % so far, on {images}: ± {50 * (high - low):.1f} or less (95 %)", "dim")


def _line(text: str, style: str) -> Text:
    """A line that stays one in a narrow terminal."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _cell(cell: Sequence[Standing], standings: Standings) -> Text:
    """The accuracy so far over all seeds; ✓ behind it says that all images have been seen."""
    seen, right = sum(standing.seen for standing in cell), sum(standing.right for standing in cell)
    if any(standing.id in standings.failures for standing in cell):
        return Text("failed", style="red")
    if not cell or any(standing.point.obstacle for standing in cell):
        return Text("-", style="dim")
    if not seen:
        return Text("…", style="dim")
    done = all(standing.seen >= standings.images for standing in cell)
    return Text(f"{100 * right / seen:.1f}{'✓' if done else ' '}", style="green" if done else "")
