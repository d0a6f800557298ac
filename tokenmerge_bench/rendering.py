"""How tables are shown: which columns of a frame, in which words and marks, as Markdown, LaTeX or CSV.

Everything but CSV starts as `shown`: cells of plain text in which `**bold**` and a dagger are the only marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

Kind = Literal["md", "csv", "tex"]
KINDS: tuple[Kind, ...] = ("md", "csv", "tex")
Row = dict[Any, Any]
SPREAD = "±: standard deviation over seeds."
"""What the legend adds where a row has several seeds."""
NONE = "—"
"""The cell of a number that there is not."""


@dataclass(frozen=True)
class Column:
    """One column of a shown table: heading (`{a}` and `{b}` are compared methods), and its cell from a row.

    Cells of text are escaped; those of numbers may hold `**bold**` and a dagger.
    """

    heading: str
    cell: Callable[[Row], str]
    text: bool = False


@dataclass(frozen=True)
class Layout:
    """How a table is shown: its columns, how many of them start a new block when they change, what the marks mean."""

    title: str
    columns: list[Column]
    blocks: int = 1
    legend: str = ""


def _text(column: str) -> Callable[[Row], str]:
    return lambda row: str(row[column])


def _format(value: Any, form: str) -> str:
    """A number, or a dash for none; what rounds to zero has no sign."""
    if pd.isna(value):
        return NONE
    text = format(value, form)
    return text.lstrip("+-") if not text.strip("+-0.") else text


def _number(column: str, form: str = ".2f") -> Callable[[Row], str]:
    return lambda row: _format(row[column], form)


def _images(column: str) -> Callable[[Row], str]:
    return lambda row: f"{round(row[column], 1):,g}"


def _p(column: str) -> Callable[[Row], str]:
    return lambda row: "<0.0001" if row[column] < 0.0001 else _format(row[column], ".3g")


def _with_interval(column: str, form: str = ".2f") -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value, low, high = (_format(row[f"{column}{bound}"], form) for bound in ("", "_low", "_high"))
        return value if low == NONE else f"{value} [{low}, {high}]"

    return cell


def _accuracy(row: Row) -> str:
    """Accuracy with marks, spread and interval; what became of the row where there is none."""
    if row["status"] != "ok":
        return str(row["status"])
    value = f"**{row['top1']:.2f}**" if row["best"] else f"{row['top1']:.2f}"
    spread = f" ± {row['top1_sd']:.2f}" if row["seeds"] > 1 else ""
    return f"{value}{'†' if row['tied'] else ''}{spread} [{row['top1_low']:.2f}, {row['top1_high']:.2f}]"


REPORTED = [
    Column("GFLOPs reported", _number("gflops_reported")),
    Column("GFLOPs measured", _number("gflops", ".4f")),
    Column("GFLOPs difference", _number("gflops_difference", "+.2f")),
    Column("top-1 reported", _number("top1_reported")),
    Column("top-1 measured", _accuracy),
    Column("drop reported", _number("drop_reported")),
    Column("drop measured", _with_interval("drop")),
    Column("drop difference", _number("drop_difference", "+.2f")),
]
LAYOUTS = {
    "table1": Layout(
        "Table 1",
        [Column("model", _text("model"), True), Column("k", _text("k")), *REPORTED],
        legend="**Bold**: highest accuracy above k = 0. †: the loss cannot be told from zero (paired test, Holm's "
        "correction over the table, 5 %).",
    ),
    "table2": Layout(
        "Table 2",
        [
            Column("model", _text("model"), True),
            Column("training", lambda row: "trained" if row["trained"] == "yes" else "off the shelf", True),
            Column("method", _text("method"), True),
            *REPORTED,
        ],
        blocks=2,
        legend="**Bold**: highest accuracy of the model, off-the-shelf and trained methods apart, only among settings "
        "within 1 % of each other's GFLOPs. †: cannot be told from it (paired test, Holm's correction over all pairs "
        "of the table, 5 %).",
    ),
    "results": Layout(
        "Results",
        [
            Column("model", _text("model"), True),
            Column("method", _text("method"), True),
            Column("budget", _text("budget"), True),
            Column("setting", _text("setting"), True),
            Column("GFLOPs", _number("gflops", ".4g")),
            Column("saved (%)", _number("saved", ".1f")),
            Column("top-1 (%)", _accuracy),
            Column("drop", _with_interval("drop")),
            Column("front", lambda row: "yes" if row["pareto"] else "", True),
        ],
        blocks=2,
        legend="**Bold**: highest accuracy at its budget, only among settings within 1 % of each other's GFLOPs (where "
        "those of a budget differ by more, none is marked). †: cannot be told from it (paired test, Holm's correction "
        "over all pairs of the table, 5 %). Front: no other setting of the model is as cheap and more accurate, or "
        "cheaper and as accurate.",
    ),
    "compare": Layout(
        "Comparison",
        [
            Column("model", _text("model"), True),
            Column("budget", _text("budget"), True),
            Column("GFLOPs {a}", _number("gflops_a", ".4g")),
            Column("GFLOPs {b}", _number("gflops_b", ".4g")),
            Column("top-1 {a}", _number("top1_a")),
            Column("top-1 {b}", _number("top1_b")),
            Column("difference", _with_interval("difference", "+.2f")),
            Column("only {a} right", _images("only_a")),
            Column("only {b} right", _images("only_b")),
            Column("p", _p("p")),
            Column("p adjusted", _p("p_adjusted")),
            Column("images needed", _number("images_needed", ",d")),
            Column("verdict", _text("verdict"), True),
        ],
    ),
    "pairs": Layout(
        "Paired comparisons",
        [
            Column("model", _text("model"), True),
            Column("budget", _text("budget"), True),
            Column("method A", _text("a"), True),
            Column("method B", _text("b"), True),
            Column("verdict", _text("verdict"), True),
            Column("difference", _with_interval("difference", "+.2f")),
            Column("p adjusted", _p("p_adjusted")),
            Column("p", _p("p")),
            Column("top-1 A", _number("top1_a")),
            Column("top-1 B", _number("top1_b")),
            Column("only A right", _images("only_a")),
            Column("only B right", _images("only_b")),
            Column("images needed", _number("images_needed", ",.0f")),
        ],
    ),
    "profile": Layout(
        "Measured times",
        [
            Column("model", _text("model"), True),
            Column("method", _text("method"), True),
            Column("budget", _text("budget"), True),
            Column("times as fast", _with_interval("speedup", ".3f")),
            Column("run on", _text("way"), True),
            Column("FLOPs saved (%)", _number("flops_saved", ".1f")),
            Column("time saved (%)", _number("time_saved", ".1f")),
            Column("if free", _number("free_drop_speedup", ".3f")),
            Column("images/s", _number("images_per_s", ",.0f")),
            Column("ms per image", _number("ms", ".3g")),
            Column("peak MB", _number("peak_memory_mb", ",.0f")),
            Column("status", lambda row: "" if row["status"] == "ok" else row["status"], True),
        ],
        legend="Times as fast: the unreduced model's time over the method's in the same round; median of all rounds "
        "with its 95 % interval, which the ratio of two medians need not equal. If free: the same for dropping as many "
        "tokens by their position, with nothing to choose and nothing to merge.",
    ),
    "curves": Layout(
        "Between the curves",
        [
            Column("model", _text("model"), True),
            Column("GFLOPs from", _number("gflops_from", ".4g")),
            Column("to", _number("gflops_to", ".4g")),
            Column("mean difference", _with_interval("difference", "+.2f")),
            Column("verdict", _text("verdict"), True),
        ],
    ),
    "at": Layout(
        "Interpolated",
        [
            Column("model", _text("model"), True),
            Column("of the FLOPs", _number("fraction", "g")),
            Column("GFLOPs", _number("gflops", ".4g")),
            Column("top-1 {a}", _with_interval("top1_a")),
            Column("top-1 {b}", _with_interval("top1_b")),
            Column("difference", _with_interval("difference", "+.2f")),
            Column("verdict", _text("verdict"), True),
        ],
    ),
}


def render(name: str, frame: pd.DataFrame, kind: Kind) -> str:
    """A table as text; nothing for an empty frame.

    Args:
        name: a name in `LAYOUTS`: a table of `tables.py`; `compare`, `curves` and `at` for those of a `Comparison`;
            `pairs` and `profile` for those of a report.
        frame: what the function of that name gave.
        kind: `md` with caption, legend and notes; `tex`, a `table*` that needs booktabs; `csv`, all columns of the
            frame, to eight digits.
    """
    if kind == "csv":
        return frame.to_csv(index=False, lineterminator="\n", float_format="%.8g")
    if frame.empty:
        return ""
    return _markdown(name, frame) if kind == "md" else _latex(name, frame)


@dataclass(frozen=True)
class Shown:
    """A table in words: headings, which columns are text (left-aligned; the others hold numbers), rows of cells, the
    rows at which a block starts; below it the legend, in which `**bold**` and a dagger are marks, and the notes, which
    are plain text of any origin."""

    headings: list[str]
    text: list[bool]
    cells: list[list[str]]
    starts: list[int]
    legend: str
    notes: list[str]


def shown(name: str, frame: pd.DataFrame, repeated: bool = False) -> Shown:
    """A frame that is not empty, in words. Columns in which nothing stands are left out.

    The first cells of a row are blank where they, and all to their left, say the same as in the row above, unless what
    is `repeated` is wanted: for rows that will be sorted or filtered.
    """
    layout, rows = LAYOUTS[name], frame.to_dict("records")
    columns = [column for column in layout.columns if any(column.cell(row) not in (NONE, "") for row in rows)]
    cells = [[column.cell(row) for column in columns] for row in rows]
    blanked = [list(row) for row in cells]
    starts = []
    for number in range(1, len(cells)):
        same = 0
        while columns[same].text and cells[number][same] == cells[number - 1][same]:
            blanked[number][same] = ""
            same += 1
        if same < layout.blocks:
            starts.append(number)
    compared = {str(key): value for key, value in frame.attrs.items()}
    headings = [column.heading.format(**compared) for column in columns]
    seeds = [SPREAD] if any(row.get("seeds", 0) > 1 for row in rows) else []
    legend = " ".join(text for text in (layout.legend, *seeds) if text)
    body = cells if repeated else blanked
    return Shown(headings, [column.text for column in columns], body, starts, legend, _notes(rows))


def _markdown(name: str, frame: pd.DataFrame) -> str:
    table = shown(name, frame)
    cells = [
        [_escape_markdown(cell) if text else cell for cell, text in zip(row, table.text, strict=True)]
        for row in table.cells
    ]
    body = pd.DataFrame(cells, columns=[_escape_markdown(heading) for heading in table.headings]).to_markdown(
        index=False, colalign=["left" if text else "right" for text in table.text], disable_numparse=True
    )
    caption = f"**{LAYOUTS[name].title}.** {_escape_markdown(frame.attrs['caption'])}"
    below = [text for text in (table.legend, *map(_escape_markdown, table.notes)) if text]
    return "\n\n".join([caption, body, *below]) + "\n"


def _latex(name: str, frame: pd.DataFrame) -> str:
    table = shown(name, frame)
    cells = [
        [_escape_latex(cell) if text else _latex_marks(cell) for cell, text in zip(row, table.text, strict=True)]
        for row in table.cells
    ]
    for start in table.starts:
        cells[start][0] = rf"\midrule {cells[start][0]}"
    align = ["l" if text else "r" for text in table.text]
    headings = [_latex_heading(heading, side) for heading, side in zip(table.headings, align, strict=True)]
    body = pd.DataFrame(cells, columns=headings).to_latex(index=False, escape=False, column_format="".join(align))
    legend = _latex_marks(_escape_latex(table.legend))
    below = "".join(f"\n\\par {text}" for text in (legend, *map(_escape_latex, table.notes)) if text)
    return rf"""% Needs \usepackage{{booktabs}}.
\begin{{table*}}
\centering
\caption{{{_escape_latex(frame.attrs["caption"])}}}
\label{{tab:{name}}}
\footnotesize
\setlength{{\tabcolsep}}{{3pt}}
{body.strip()}{below}
\end{{table*}}
"""


def _notes(rows: list[Row]) -> list[str]:
    """What became of the rows without a measurement, those with the same reason together."""
    named: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.get("status", "ok") != "ok":
            what = f"k={row['k']}" if "k" in row else row["method"]
            what += " (trained)" if row.get("trained") == "yes" else ""
            what += f" at {row['budget']}" if row.get("budget") else ""
            reason: str = row["status"] if pd.isna(row["reason"]) else f"{row['status']}, {row['reason']}"
            if row["status"] == "missing":
                reason = reason.partition("; ")[0]  # what to do about it differs from row to row
            named.setdefault(reason, {}).setdefault(row["model"], []).append(what)
    return [
        f"{reason[0].upper()}{reason[1:]}: "
        + "; ".join(f"{', '.join(whats)} on {model}" for model, whats in models.items())
        + "."
        for reason, models in named.items()
    ]


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*<`\[])", r"\\\1", " ".join(text.split()))


_LATEX_SIGNS = str.maketrans(
    {"†": r"$^{\dagger}$", "±": r"$\pm$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$"}
    | {"\N{MULTIPLICATION SIGN}": r"$\times$", "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--", "—": "---"}
)
_LATEX = _LATEX_SIGNS | str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)


def _escape_latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def _latex_heading(heading: str, side: str) -> str:
    """A heading in two lines, because it is mostly wider than the numbers below it."""
    lines = r"\\".join(_escape_latex(heading).split(" ", 1))
    return rf"\shortstack[{side}]{{{lines}}}"


def _latex_marks(text: str) -> str:
    """Bold, dagger and signs of a cell of numbers, which are written as in Markdown, in LaTeX."""
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    text = re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)
    text = re.sub(r"^<", "$<$", text)
    return text.translate(_LATEX_SIGNS)
