"""What all figures share: widths of paper columns, the look of each method, the legend, saving."""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.style import context
from matplotlib.transforms import Affine2D
from PIL import Image

from tokenmerge_bench.results import Results
from tokenmerge_bench.store import UNREDUCED, write_bytes

SINGLE, DOUBLE = 3.3, 6.9
"""Widths of one and of two columns of a paper, in inches."""
SMALL = 6.5
"""Font size of notes inside a drawing, in points."""
PHOTOGRAPH = 100
"""Pixels: pictures with no shorter side are taken for photographs, which a SVG need not hold exactly."""
GREY = "0.4"
GFLOPS = "GFLOPs per image\n(multiply-accumulates)"
"""What horizontal axes say."""
SAME_FLOPS = 1.01
"""Settings whose FLOPs differ by no more than this factor cost the same, as in `compare`."""
APART = 0.009
"""How far single settings of the same FLOPs stand apart, as a fraction of the horizontal axis."""
MOVED = "same FLOPs: side by side"
"""What the legend says where that was done."""
Legend = dict[str, dict[str, Artist]]
"""What stands in a legend: for each heading, names and what is drawn beside them."""

_SETTINGS: dict[str, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # a label is text: its $ starts no formula
    "savefig.dpi": 300,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tokenmerge-bench",  # equal drawings are equal files
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}


@dataclass(frozen=True)
class Look:
    """Colour and marker of a method."""

    colour: tuple[float, float, float] | str
    marker: str


PALETTE: list[tuple[float, float, float]] = list(sns.color_palette("colorblind"))
METHODS = {
    "dhtm": Look(PALETTE[0], "o"),
    "tome": Look(PALETTE[1], "s"),
    "lotm": Look(PALETTE[2], "D"),
    "dpc_knn": Look(PALETTE[3], "^"),
    "k_medoids": Look(PALETTE[4], "v"),
    "sit": Look(PALETTE[5], "P"),
    "sinkhorn": Look(PALETTE[6], "X"),
    "random": Look(PALETTE[7], "<"),
    "patchmerger": Look(PALETTE[8], ">"),
}
"""The looks of the methods of the paper, in all figures."""
_FREE_MARKERS = "hpd8s^v<>XPD"
"""At least as many as there are colours, so that every turn of `looks` pairs each colour with another marker."""


def looks(results: Results) -> dict[str, Look]:
    """The look of each label of the results: the same in all figures that are made from them."""
    return looks_of(results.summary["label"])


def looks_of(found: Iterable[str]) -> dict[str, Look]:
    """The look of each label.

    The methods of the paper have theirs in the figures of all results. Variants and other methods take what is left:
    first colours and markers that are not in use, then every other pair of a colour and a marker.
    """
    labels = [label for label in dict.fromkeys(found) if label != UNREDUCED]
    used = [METHODS[label] for label in labels if label in METHODS]
    colours = sorted(PALETTE, key=[look.colour for look in used].count)  # those in use come last
    markers = sorted(_FREE_MARKERS, key=[look.marker for look in used].count)
    turns = (markers[turn:] + markers[:turn] for turn in range(len(markers)))
    pairs = (Look(*pair) for turned in turns for pair in zip(colours, turned, strict=False))
    free = cycle(look for look in pairs if look not in METHODS.values())
    return {label: METHODS.get(label) or next(free) for label in labels}


def paper() -> AbstractContextManager[None]:
    """Matplotlib's defaults, whatever the user's settings, with fonts and lines for a paper."""
    return context(["default", _SETTINGS])


def panels(models: Sequence[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    """A figure with one panel for each model: one column wide for one, two columns wide for more, three in a row.

    Args:
        models: their names.
        height: of a row of panels, in inches.
    """
    columns = min(len(models), 3)
    rows = math.ceil(len(models) / columns)
    figure = Figure(figsize=(SINGLE if columns == 1 else DOUBLE, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for unused in axes[len(models) :]:
        unused.remove()
    return figure, dict(zip(models, axes, strict=False))


def published(look: Look, trained: bool = False) -> dict[str, Any]:
    """Line properties of a published point: a hollow marker without a line, half filled if it was trained."""
    return {
        "marker": look.marker,
        "linestyle": "none",
        "color": look.colour,
        "fillstyle": "left" if trained else "none",
        "markeredgewidth": 0.7,
    }


def placed(rows: pd.DataFrame) -> pd.DataFrame:
    """The settings of one panel with two more columns, `alone` and `shift`.

    A curve joins the settings of a method if their FLOPs differ. Settings of which no curve can be made, a single one
    or several that cost the same, stand `alone`, and where they cost the same as others that do, side by side in the
    order of their FLOPs: `shift` is how far from their place, as a fraction of the horizontal axis.
    """
    flops = rows.groupby(["label", "trained"], sort=False)["gflops"]
    alone = flops.transform("max") <= SAME_FLOPS * flops.transform("min")
    ascending = rows.loc[alone, "gflops"].sort_values(kind="stable")
    cost = (ascending > SAME_FLOPS * ascending.shift()).cumsum()  # equal numbers, equal FLOPs
    same = cost.groupby(cost)
    shift = APART * (same.cumcount() - (same.transform("size") - 1) / 2)
    return rows.assign(alone=alone, shift=shift.reindex(rows.index, fill_value=0.0))


def pieces(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """What is drawn of a method in one piece: the curve through its settings, or each that stands `alone`."""
    if not rows["alone"].any():
        yield rows
    else:
        yield from (rows.iloc[[i]] for i in range(len(rows)))


def move(ax: Axes, artist: Artist, shift: float) -> None:
    """Draws an artist beside its place in the data, which it keeps, by a fraction of the horizontal axis."""
    if shift:
        artist.set_transform(ax.transScale + ax.transLimits + Affine2D().translate(shift, 0) + ax.transAxes)


@dataclass(frozen=True)
class Spread:
    """How uncertainty is drawn: opacity of its band along a curve, width of its bar at a single setting in points."""

    name: str
    opacity: float
    width: float


def draw_spread(ax: Axes, piece: pd.DataFrame, low: str, high: str, spread: Spread, look: Look, legend: Legend) -> None:
    """A band along a curve, or a bar at a setting that stands alone, where a band would have no width.

    Args:
        ax: where.
        piece: one of `pieces`, with its place on the horizontal axis as `x`.
        low: column of the lower ends.
        high: column of the upper ends.
        spread: what it is.
        look: of the method.
        legend: gets an entry.
    """
    known = legend["reference"]
    if len(piece) > 1:
        ax.fill_between(piece["x"], piece[low], piece[high], color=look.colour, alpha=spread.opacity, linewidth=0)
        known.setdefault(spread.name, Patch(color=GREY, alpha=spread.opacity + 0.1, linewidth=0))
        return
    shift, trained = piece["shift"].iloc[0], piece["trained"].iloc[0] == "yes"
    bar = ax.vlines(piece["x"], piece[low], piece[high], look.colour, linewidth=spread.width)
    bar.set_linestyle("--" if trained else "-")
    move(ax, bar, shift)
    key = Line2D([], [], color=GREY, marker="|", markersize=9, markeredgewidth=spread.width, linestyle="none")
    known.setdefault(f"{spread.name}, bar", key)
    if shift:
        known.setdefault(MOVED, Line2D([], [], linestyle="none"))


def mark_unreduced(ax: Axes, x: float, top1: float) -> Line2D:
    """The unreduced model as a star, with a level line for all others to be read against."""
    ax.axhline(top1, color=GREY, linestyle="--", linewidth=0.6, zorder=0)
    (star,) = ax.plot(x, top1, marker="*", color="0.2", markersize=7, linestyle="none", label="unreduced", zorder=4)
    return star


def name_panel(ax: Axes, rows: pd.DataFrame) -> None:
    """The unit of accuracy, and what was evaluated on how many images."""
    ax.set_ylabel("top-1 accuracy (%)")
    ax.set_title(f"{rows['model'].iloc[0]}\n{rows['dataset'].iloc[0]}, {int(rows['n_images'].max()):,} images")


def legend_below(figure: Figure, entries: Legend) -> None:
    """One legend under the panels, for which the figure grows: each heading with its entries, in columns that fit.

    Args:
        figure: becomes higher, and two columns of the paper wide where one is too narrow for the legend.
        entries: headings that have none are left out.
    """
    groups = {heading: list(group.items()) for heading, group in entries.items() if group}
    longest = max(len(group) for group in groups.values())
    narrow = [(figure.get_figwidth(), rows) for rows in range(1, min(longest, 6) + 1)]
    for width, rows in narrow + [(DOUBLE, rows) for rows in range(1, longest + 1)]:
        figure.set_figwidth(width)
        legend = draw_legend(figure, groups, rows)
        size = legend.get_window_extent()
        if size.width <= figure.bbox.width or (width, rows) == (DOUBLE, longest):
            figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)
            return
        legend.remove()


def draw_legend(figure: Figure, groups: Mapping[str, Sequence[tuple[str, Artist]]], rows: int) -> Artist:
    """The legend with columns of `rows` entries under each heading.

    Matplotlib fills it column by column, so blanks at the end of a group make the next group start a new column.
    """
    blank = ("", Line2D([], [], linestyle="none"))
    cells: list[tuple[str, Artist]] = []
    headings = []
    for heading, group in groups.items():
        for start in range(0, len(group), rows):
            headings.append(len(cells))
            column = [("" if start else heading, blank[1]), *group[start : start + rows]]
            cells += column + [blank] * (rows + 1 - len(column))
    legend = figure.legend(
        [handle for _, handle in cells],
        [wrapped(name) for name, _ in cells],
        loc="outside lower left",
        ncols=len(headings),
        columnspacing=1.2,
        handlelength=2.2,
    )
    for index in headings:
        legend.get_texts()[index].set_fontweight("bold")
    return legend


def wrapped(name: str) -> str:
    """A name in lines of a legend, broken between words and before options."""
    return textwrap.fill(name.replace(":", " :"), 26).replace(" :", ":")


def inch(ax: Axes) -> float:
    """About how much of the horizontal axis is an inch on paper."""
    left, right = ax.get_xlim()
    return float((right - left) * ax.figure.dpi / ax.bbox.width)


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str] = ("png", "svg", "pdf")) -> list[Path]:
    """Writes a figure once for each format, whole or not at all: PNG at 300 dpi, SVG and PDF with real text.

    The same figure gives the same bytes. Returns the paths, `folder/name.format`.
    """
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    paths = []
    for form in formats:
        buffer = io.BytesIO()
        with paper():
            figure.savefig(buffer, format=form, metadata=no_date.get(form))
        content = buffer.getvalue()
        paths.append(folder / f"{name}.{form}")
        write_bytes(paths[-1], with_jpegs(content) if form == "svg" else content)
    return paths


def with_jpegs(svg: bytes) -> bytes:
    """An SVG with its photographs as JPEG, a fifth of the bytes; small pictures, of which one sees pixels, stay PNG."""

    def lighter(found: re.Match[bytes]) -> bytes:
        with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
            if min(picture.size) < PHOTOGRAPH:
                return found[0]
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0)
        return b"data:image/jpeg;base64," + base64.b64encode(buffer.getvalue())

    return re.sub(rb'data:image/png;base64,([^"]+)', lighter, svg)
