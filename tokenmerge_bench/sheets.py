"""Tables that fit their terminal: where it is narrow, columns that matter less are left out, and that is said."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tokenmerge_bench.terminal import decorated

NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Column:
    """One column of a sheet.

    Attributes:
        heading: in words, which may stand in several lines.
        number: aligned to the right.
        least: the width to which its text may be folded; None for what is never broken, such as numbers.
        rank: the columns with the highest are left out first, those of one rank together; those with 0 never are.
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
        lines = decorated(console)
        widths, left_out = _layout(self, options.max_width, lines)
        same = [f"{heading}: {cells[0]}" for heading, cells in left_out.items() if len(set(cells)) == 1]
        gone = [heading for heading, cells in left_out.items() if len(set(cells)) > 1]
        yield from map(Text, filter(None, [self.title, *same]))
        yield _table(self, widths, lines)
        if self.caption:
            yield Text(self.caption, style="dim")
        if gone:
            yield Text(f"Left out for want of room: {', '.join(gone)}. --json has all.", style="dim")


def _table(sheet: Sheet, widths: Mapping[int, int], lines: bool) -> Table:
    table = Table(box=box.ROUNDED if lines else box.MARKDOWN)
    for number, width in widths.items():
        column = sheet.columns[number]
        heading = textwrap.fill(column.heading.replace(" %", f"{NO_BREAK}%"), width).replace(NO_BREAK, " ")
        table.add_column(escape(heading), justify="right" if column.number else "left", overflow="fold", width=width)
    for number, row in enumerate(sheet.rows):
        first = not number or number in sheet.starts
        if lines and number and first:
            table.add_section()
        repeated = lines and bool(sheet.starts) and not first
        table.add_row(*("" if repeated and column == 0 else escape(row[column]) for column in widths))
    return table


def _layout(sheet: Sheet, room: int, lines: bool) -> tuple[dict[int, int], dict[str, list[str]]]:
    """The widths of the columns that fit, by number, and by heading the cells of those that do not, but blank ones."""
    # Markdown has headings of one line.
    spared = {n: _width(_words(c.heading)) if lines else cell_len(c.heading) for n, c in enumerate(sheet.columns)}
    widths = {n: max(spared[n], _least(column, sheet.cells(n))) for n, column in enumerate(sheet.columns)}
    left_out: dict[str, list[str]] = {}
    for rank in sorted({column.rank for column in sheet.columns} - {0}, reverse=True):
        if _whole(widths) <= room:
            break
        for number in [number for number in widths if sheet.columns[number].rank == rank]:
            del widths[number]
            left_out[sheet.columns[number].heading] = [cell for cell in sheet.cells(number) if cell]
    wanted = {number: max(width, _width(sheet.cells(number))) for number, width in widths.items()}
    for _ in range(room - _whole(widths)):  # what is left goes to the narrowest of those that are folded
        folded = [number for number, width in widths.items() if width < wanted[number]]
        if folded:
            widths[min(folded, key=widths.__getitem__)] += 1
    return widths, left_out


def _whole(widths: Mapping[int, int]) -> int:
    """The width of a table: each column has a margin to either side and a line before it."""
    return sum(width + 3 for width in widths.values()) + 1


def _least(column: Column, cells: Sequence[str]) -> int:
    """The smallest width in which the cells of a column are readable."""
    width = _width(cells)
    return width if column.least is None else min(column.least, width)


def _words(heading: str) -> list[str]:
    """The parts between which a heading may be broken; a % sign stays with what it belongs to."""
    return [word.replace(NO_BREAK, " ") for word in heading.replace(" %", f"{NO_BREAK}%").split(" ")]


def _width(cells: Sequence[str]) -> int:
    """The width of the cells, in one line each unless they have several."""
    return max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)
