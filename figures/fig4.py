"""Figure 4: does it matter which neighbours are merged? DHTM against random merging, mean and spread over seeds."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tokenmerge_bench.figures import reported, style
from tokenmerge_bench.figures.style import GREY, SMALL, Legend, Look
from tokenmerge_bench.results import Results

CAPTION = (
    "DHTM against random merging of neighbours: light bands are 95 % intervals over images, the dark band is one "
    "standard deviation over seeds; hollow markers are published results, drawn at the measured accuracy of the "
    "unreduced model minus the drop that was reported."
)
PAIR = ("dhtm", "random")


def obstacle(results: Results) -> str | None:
    """Why the figure cannot be drawn, in one sentence; None if it can."""
    if compared(results):
        return None
    return "fig4 compares dhtm with random on one model, and these results lack finished points of both; run both."


def draw(results: Results) -> Figure:
    """Both methods over k, where all their budgets are k; over GFLOPs otherwise.

    Args:
        results: with finished points of both methods (see `obstacle`).
    """
    pairs = compared(results)
    looks = style.looks(results)
    by_k = all(merges(rows).notna().all() for pair in pairs.values() for rows in pair.values())
    legend: Legend = {"measured": {}, "reference": {}}
    with style.paper():
        figure, axes = style.panels(list(pairs), height=2.4)
        for model, ax in axes.items():
            for rows in pairs[model].values():
                draw_method(ax, along(rows, by_k), looks, legend)
            unreduced = results.unreduced(model)
            if unreduced is not None:
                star = style.mark_unreduced(ax, 0.0 if by_k else unreduced["gflops"], unreduced["top1"])
                legend["reference"]["unreduced model"] = star
                draw_reported(ax, pairs[model], unreduced, by_k, looks, legend)
            mark_gap(ax, *(along(rows, by_k) for rows in pairs[model].values()))
            name_axes(ax, pairs[model]["dhtm"], by_k)
        style.legend_below(figure, legend)
    return figure


def compared(results: Results) -> dict[str, dict[str, pd.DataFrame]]:
    """The finished settings of both methods, for each model that has both; of several variants, the default one."""
    finished = results.summary[results.summary["status"] == "ok"]
    found = {}
    for model, rows in finished.groupby("model", sort=False):
        variants = {method: rows[rows["method"] == method] for method in PAIR}
        if all(len(variant) for variant in variants.values()):
            found[str(model)] = {method: default_variant(variant) for method, variant in variants.items()}
    return found


def default_variant(rows: pd.DataFrame) -> pd.DataFrame:
    """The settings with default options, or else those of the variant that comes first."""
    plain = rows[rows["label"] == rows["method"]]
    return plain if len(plain) else rows[rows["label"] == rows["label"].iloc[0]]


def merges(rows: pd.DataFrame) -> pd.Series[float]:
    """k of every setting whose budget is one number of merges for all layers, NaN elsewhere."""
    return pd.to_numeric(rows["budget"].str.extract(r"^k=(\d+)$", expand=False))


def along(rows: pd.DataFrame, by_k: bool) -> pd.DataFrame:
    """The settings with their place on the horizontal axis as `x`, from left to right."""
    return rows.assign(x=merges(rows) if by_k else rows["gflops"]).sort_values("x")


def draw_method(ax: Axes, rows: pd.DataFrame, looks: dict[str, Look], legend: Legend) -> None:
    """Mean accuracy, the interval of the images, and the spread over seeds where there are several."""
    name, seeds = rows["label"].iloc[0], rows["seeds"].max()
    look = looks[name]
    ax.fill_between(rows["x"], rows["top1_low"], rows["top1_high"], color=look.colour, alpha=0.15, linewidth=0)
    legend["reference"]["95 % interval"] = Patch(color=GREY, alpha=0.2, linewidth=0)
    if seeds > 1:
        spread = rows["top1_sd"]
        ax.fill_between(
            rows["x"], rows["top1"] - spread, rows["top1"] + spread, color=look.colour, alpha=0.45, linewidth=0
        )
        legend["reference"]["± 1 sd over seeds"] = Patch(color=GREY, alpha=0.6, linewidth=0)
        name = f"{name}, {seeds} seeds"
    (line,) = ax.plot(rows["x"], rows["top1"], color=look.colour, marker=look.marker, label=rows["label"].iloc[0])
    legend["measured"][name] = line


def draw_reported(
    ax: Axes,
    pair: dict[str, pd.DataFrame],
    unreduced: dict[Any, Any],
    by_k: bool,
    looks: dict[str, Look],
    legend: Legend,
) -> None:
    """The published pair, at the k for which both methods were published."""
    points = reported.drops(unreduced["model"])
    ks = [set(points.loc[points["method"] == method, "k"].dropna()) for method in PAIR]
    labels = [rows["label"].iloc[0] for rows in pair.values()]  # nothing was published of variants
    for point in points[points["k"].isin(ks[0] & ks[1]) & points["method"].isin(labels)].to_dict("records"):
        x, method = point["k"] if by_k else point["gflops"], point["method"]
        ax.plot(x, unreduced["top1"] - point["drop"], **style.hollow(looks[method]), label=f"{method}, reported")
        legend["reference"][reported.LEGEND] = reported.key()


def mark_gap(ax: Axes, dhtm: pd.DataFrame, random: pd.DataFrame) -> None:
    """How far apart the two are at the strongest setting that both have, beside it where nothing is drawn."""
    both = dhtm.merge(random, on="budget", suffixes=("", "_random"))
    if both.empty:
        return
    strongest = both.sort_values("reduction").to_dict("records")[-1]
    (left, right), x, ends = ax.get_xlim(), strongest["x"], [strongest["top1_random"], strongest["top1"]]
    inch = style.inch(ax) if x > (left + right) / 2 else -style.inch(ax)  # outward
    ax.plot([x + 0.1 * inch] * 2, ends, color=GREY, marker="_", markersize=3, linewidth=0.6)
    ax.text(
        x + 0.15 * inch,
        sum(ends) / 2,
        f"{ends[1] - ends[0]:+.1f}\npoints",
        fontsize=SMALL,
        color=GREY,
        verticalalignment="center",
        horizontalalignment="left" if inch > 0 else "right",
    )
    ax.set_xlim(min(left, x + 0.6 * inch), max(right, x + 0.6 * inch))


def name_axes(ax: Axes, rows: pd.DataFrame, by_k: bool) -> None:
    """Units, and what was evaluated on how many images."""
    ax.set_xlabel("k, merges in each reducing layer" if by_k else style.GFLOPS)
    style.name_panel(ax, rows)
