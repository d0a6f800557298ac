"""Tables that fit their terminal: where it is narrow, columns that matter less are left out, and that is said."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tokenmerge_bench.terminal import decorated


@dataclass(frozen=True)
class Column:
    """One column of a sheet.

    Attributes:
        heading: in words, which may stand in several lines.
        number: aligned to the right.
        least: the width to which its text may be folded; None for what is never broken, such as numbers.
        rank: of the columns with a rank, those with the highest are left out first; those with 0 never are.
    """

    heading: str
    number: bool = False
    least: int | None = None
    rank: int = 0


@dataclass(frozen=True)
class Sheet:
    """A table in words, before it is known how wide it may be; rich prints it with lines in a terminal, and as Markdown
    elsewhere.

    Attributes:
        title: above it.
        columns: from left to right.
        rows: a cell for each column.
        starts: rows with which a block starts; where there are lines, what the first column says is not repeated in it.
        caption: below it.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    starts: Collection[int] = ()
    caption: str = ""

    def cells(self, column: int) -> list[str]:
        """The cells of a column, from top to bottom."""
        return [row[column] for row in self.rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Table]:
        shown, left_out = _fitting(self, options.max_width)
        same = [f"{heading} {cells[0]}" for heading, cells in left_out.items() if len(set(cells)) == 1]
        gone = [heading for heading, cells in left_out.items() if len(set(cells)) > 1]
        if title := ", ".join(filter(None, [self.title, *same])):
            yield Text(title)
        yield _table(self, shown, decorated(console))
        if self.caption:
            yield Text(self.caption, style="dim")
        if gone:
            yield Text(f"Left out for want of room: {', '.join(gone)}. --json has all.", style="dim")


def _table(sheet: Sheet, shown: Sequence[int], lines: bool) -> Table:
    table = Table(box=box.ROUNDED if lines else box.MARKDOWN)
    for number in shown:
        column = sheet.columns[number]
        cells = sheet.cells(number)
        table.add_column(
            escape(textwrap.fill(column.heading, max(_width(cells), _width(column.heading.split())))),
            justify="right" if column.number else "left",
            no_wrap=column.least is None,
            overflow="fold",
            min_width=_least(column, cells),
        )
    for number, row in enumerate(sheet.rows):
        first = not number or number in sheet.starts
        if lines and number and first:
            table.add_section()
        repeated = lines and bool(sheet.starts) and not first
        table.add_row(*("" if repeated and column == 0 else escape(row[column]) for column in shown))
    return table


def _fitting(sheet: Sheet, room: int) -> tuple[list[int], dict[str, list[str]]]:
    """The columns that fit, by number, and by heading the cells of those that do not, but for the blank ones."""
    shown = list(range(len(sheet.columns)))
    left_out: dict[str, list[str]] = {}
    least = [_least(column, sheet.cells(number)) for number, column in enumerate(sheet.columns)]
    ranked = sorted((n for n in shown if sheet.columns[n].rank), key=lambda n: -sheet.columns[n].rank)
    while ranked and sum(least[n] + 3 for n in shown) + 1 > room:
        number = ranked.pop(0)
        shown.remove(number)
        left_out[sheet.columns[number].heading] = [cell for cell in sheet.cells(number) if cell]
    return shown, left_out


def _least(column: Column, cells: Sequence[str]) -> int:
    """The smallest width in which a column is readable."""
    width = _width(cells)
    return max(_width(column.heading.split()), width if column.least is None else min(column.least, width))


def _width(cells: Sequence[str]) -> int:
    """The width of the cells, in one line each unless they have several."""
    return max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)
