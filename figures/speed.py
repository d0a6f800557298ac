"""FLOPs saved against time saved: a panel per model, batch size, precision and mode, a marker or line per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tokenmerge_bench.figures import style
from tokenmerge_bench.figures.style import DOUBLE, GREY, SINGLE, SMALL, Legend, Look, Spread
from tokenmerge_bench.profiles import GROUP, Profile
from tokenmerge_bench.store import UNREDUCED

CAPTION = (
    "Time saved against FLOPs (multiply-accumulates) saved, both in percent of the unreduced model's: bars are 95 % "
    "intervals of the median over rounds in which all rivals ran in shuffled order, hollow markers are free drop, "
    "which drops as many tokens by position and bounds what a method can save, and below zero a method is slower than "
    "the unreduced model; single settings of the same FLOPs are moved apart."
)
COLUMNS = 4
ACROSS = ("batch_size", "mode", "dtype")
"""What panels stand side by side for, if there are several."""
HEIGHT = 2.1
"""Of a row of panels, in inches."""
FLOOR = -100.0
"""Percent of time saved, which is twice the time; what lies below is drawn there, with an arrow and its number."""
APART = 6
"""How many times as far as in other figures single settings of the same FLOPs stand apart: with bar and bound."""
INTERVAL = Spread("95 % interval", opacity=0.15, width=0.9)
MINUS = "\N{MINUS SIGN}"
Key = tuple[Any, ...]


def obstacle(profile: Profile) -> str | None:
    """Why the figure cannot be drawn, in one sentence; None if it can."""
    if len(reduced(profile)):
        return None
    return "speed needs a method that was timed beside the unreduced model, and all of these failed; profile again."


def reduced(profile: Profile) -> pd.DataFrame:
    """The methods' finished rows, with what is drawn of them in percent: `x`, `saved`, `low`, `high`, `bound`."""
    rows = profile.finished
    rows = rows[rows["method"] != UNREDUCED]
    return rows.assign(
        x=100 * rows["reduction"],
        saved=time_saved(rows["speedup"]),
        low=time_saved(rows["speedup_low"]),
        high=time_saved(rows["speedup_high"]),
        bound=time_saved(rows["free_drop_speedup"]),
        trained="no",
    )


def time_saved(speedup: pd.Series[float]) -> pd.Series[float]:
    """Percent of the unreduced model's time that is saved at a speedup over it; negative if slower."""
    return 100 * (1 - 1 / speedup)


def draw(profile: Profile) -> Figure:
    """Both savings of every method that was timed.

    Args:
        profile: with at least one method that was timed beside the unreduced model (see `obstacle`).
    """
    rows = reduced(profile)
    looks = style.looks_of(profile.table["label"])
    legend: Legend = {"measured": {}, "reference": {}}
    devices = list(dict.fromkeys(rows["device"]))
    right = max(1.3 * rows["x"].max(), 5.0)  # with room for what is moved aside
    with style.paper():
        groups: dict[Any, pd.DataFrame] = dict(list(rows.groupby(GROUP, sort=False)))
        figure, axes = grid(list(groups))
        lines: dict[int, list[Key]] = {}  # whose panels share the numbers on the left
        for key, ax in axes.items():
            lines.setdefault(ax.get_subplotspec().rowspan.start, []).append(key)  # type: ignore[union-attr]
        limits = {key: limits_of([groups[other] for other in keys]) for keys in lines.values() for key in keys}
        for key, ax in axes.items():
            own = groups[key]
            ax.set_xlim(0, right)
            ax.set_ylim(*limits[key])
            draw_references(ax, legend)
            for _, settings in placed(own).groupby("label", sort=False):
                draw_method(ax, settings.sort_values("x"), looks, legend)
            name_panel(ax, own.iloc[0], len(devices) > 1)
        if len(devices) == 1:
            figure.suptitle(f"on {devices[0]}", fontsize=SMALL, color=GREY, x=0.01, horizontalalignment="left")
        style.legend_below(figure, legend)
    return figure


def limits_of(panels: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """From the least to the most time saved in panels that stand side by side, with room around; zero is among them."""
    rows = pd.concat(panels)
    values = rows[["saved", "low", "high", "bound"]].clip(lower=FLOOR)
    top, bottom = max(values.max().max(), rows["x"].max(), 5.0), min(values.min().min(), 0.0)
    room = 0.08 * (top - bottom)
    return bottom - room, top + room


def grid(keys: Sequence[Key]) -> tuple[Figure, dict[Key, Axes]]:
    """A panel for each group: batch sizes, or what else varies, from left to right, the rest from top to bottom."""
    values = {name: {key[place] for key in keys} for place, name in enumerate(GROUP)}
    varies = next((name for name in ACROSS if len(values[name]) > 1), ACROSS[0])
    lines: dict[Key, list[Key]] = {}
    for key in keys:
        lines.setdefault(tuple(v for v, name in zip(key, GROUP, strict=True) if name != varies), []).append(key)
    columns = min(max(map(len, lines.values())), COLUMNS)
    cells = [line[i : i + columns] for line in lines.values() for i in range(0, len(line), columns)]
    width = SINGLE if columns == 1 else DOUBLE
    figure = Figure(figsize=(width, HEIGHT * len(cells) + 0.2), layout="constrained")
    axes = figure.subplots(len(cells), columns, squeeze=False)
    found: dict[Key, Axes] = {}
    for across, line in zip(axes, cells, strict=True):
        for ax in across[len(line) :]:
            ax.remove()
        found |= dict(zip(line, across, strict=False))
        across[0].set_ylabel("time saved (%)")
        for ax in across[1 : len(line)]:
            ax.tick_params(labelleft=False)
    for ax in found.values():
        ax.set_xlabel("FLOPs saved (%)")
    return figure, found


def placed(rows: pd.DataFrame) -> pd.DataFrame:
    """See `style.placed`: single settings of the same FLOPs stand side by side."""
    found = style.placed(rows)
    return found.assign(shift=-APART * found["shift"])  # more saved stands to the right


def draw_references(ax: Axes, legend: Legend) -> None:
    """The diagonal, on which time falls as FLOPs do, and the level of the unreduced model."""
    grey: dict[str, Any] = {"color": GREY, "linewidth": 0.6, "zorder": 0}
    legend["reference"]["time falls as FLOPs do"] = ax.axline((0, 0), slope=1, linestyle="--", **grey)
    legend["reference"]["as fast as unreduced"] = ax.axhline(0, linestyle="-", **grey)


def draw_method(ax: Axes, rows: pd.DataFrame, looks: dict[str, Look], legend: Legend) -> None:
    """A method's settings: a curve or single markers, their intervals, and what free drop would save."""
    name = rows["label"].iloc[0]
    look = looks[name]
    for piece in style.pieces(rows):
        shift = piece["shift"].iloc[0]
        inside = piece[["saved", "low", "high", "bound"]].clip(lower=FLOOR)
        shown = piece.assign(**{str(column): inside[column] for column in inside})
        style.draw_spread(ax, shown, "low", "high", INTERVAL, look, legend)
        if len(piece) == 1:  # along a curve, lines from markers to bounds would only cross
            gap = ax.vlines(shown["x"], shown["saved"], shown["bound"], look.colour, linestyle=":", linewidth=0.6)
            style.move(ax, gap, shift)
        (free,) = ax.plot(shown["x"], shown["bound"], **style.published(look), label=f"{name}, free drop")
        (drawn,) = ax.plot(shown["x"], shown["saved"], color=look.colour, marker=look.marker, label=name)
        legend["measured"][name] = drawn
        legend["reference"].setdefault("free drop, the bound", hollow())
        for artist in (free, drawn):
            style.move(ax, artist, shift)
        for row in piece[piece["saved"] < FLOOR].to_dict("records"):
            mark_below(ax, row["x"], row["saved"], shift, look)


def hollow() -> Line2D:
    """The key of a free drop."""
    return Line2D([], [], marker="o", linestyle="none", color=GREY, fillstyle="none", markeredgewidth=0.7)


def mark_below(ax: Axes, x: float, saved: float, shift: float, look: Look) -> None:
    """The number of a setting that lies below the drawing."""
    left, right = ax.get_xlim()
    ax.annotate(
        f"← {saved:.0f}".replace("-", MINUS),  # turned, the arrow points down
        (x + shift * (right - left), FLOOR),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=SMALL - 0.5,
        color=look.colour,
        rotation=90,
        horizontalalignment="center",
        verticalalignment="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        zorder=5,
    )


def name_panel(ax: Axes, row: Any, with_device: bool) -> None:
    """What was timed, and on what if that differs between panels."""
    batch = row["batch_size"]
    images = "?" if math.isnan(batch) else f"{int(batch):,}"
    device = f"\n{row['device']}" if with_device else ""
    ax.set_title(f"{row['model']}{device}\nbatch {images}\n{row['dtype']}, {row['mode']}")
