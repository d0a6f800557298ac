"""Figure 4: does it matter which neighbours are merged? DHTM against random merging, mean and spread over seeds."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenmerge_bench.figures import reported, style
from tokenmerge_bench.figures.style import GREY, SAME_FLOPS, SMALL, Legend, Look, Spread
from tokenmerge_bench.results import Results

CAPTION = (
    "DHTM against random merging of neighbours: light bands and thin bars are 95 % intervals over images, the dark "
    "band or thick bar is one standard deviation over seeds; single settings of the same FLOPs are moved apart, "
    "neighbours by less than 1 % of the axis; hollow markers are published results, drawn at the measured accuracy "
    "of the unreduced model minus the drop that was reported."
)
PAIR = ("dhtm", "random")
INTERVAL = Spread("95 % interval", opacity=0.15, width=0.8)
SEEDS = Spread("± 1 sd over seeds", opacity=0.45, width=1.8)
Pair = dict[str, pd.DataFrame]
"""The settings of both methods on one model."""


def obstacle(results: Results) -> str | None:
    """Why the figure cannot be drawn, in one sentence; None if it can."""
    pairs = compared(results)
    if not pairs:
        return (
            "fig4 compares dhtm with random on one model, both off the shelf, and these results lack finished points "
            "of both; run both."
        )
    if not any(map(has_strongest, pairs.values())):
        return (
            "fig4 shows what happens as more tokens are merged, and all settings of these results cost the same within "
            "1 %; run several budgets, or compare the settings with `tmbench tables`."
        )
    return None


def draw(results: Results) -> Figure:
    """Both methods over k, where all their budgets are k; over GFLOPs otherwise.

    Args:
        results: with finished points of both methods (see `obstacle`).
    """
    pairs = {model: pair for model, pair in compared(results).items() if has_strongest(pair)}
    looks = style.looks(results)
    by_k = all(merges(rows).notna().all() for pair in pairs.values() for rows in pair.values())
    legend: Legend = {"measured": {}, "reference": {}}
    with style.paper():
        figure, axes = style.panels(list(pairs), height=2.4)
        for model, ax in axes.items():
            settings = style.placed(pd.concat(pairs[model].values()))
            for _, rows in settings.groupby("method", sort=False):
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


def compared(results: Results) -> dict[str, Pair]:
    """The finished settings of both methods, for each model that has both; of several variants, the default one.

    Off the shelf alone: trained points are another curve.
    """
    summary = results.summary
    finished = summary[(summary["status"] == "ok") & (summary["trained"] == "no")]
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


def has_strongest(pair: Pair) -> bool:
    """Whether there is one setting of each method, or some reduce more than others."""
    flops = pd.concat(pair.values())["gflops"]
    return len(flops) == len(PAIR) or bool(flops.max() > SAME_FLOPS * flops.min())


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
    title = f"{name}, {seeds} seeds" if seeds > 1 else name
    rows = rows.assign(sd_low=rows["top1"] - rows["top1_sd"], sd_high=rows["top1"] + rows["top1_sd"])
    for piece in style.pieces(rows):
        style.draw_spread(ax, piece, "top1_low", "top1_high", INTERVAL, look, legend)
        if seeds > 1:
            style.draw_spread(ax, piece, "sd_low", "sd_high", SEEDS, look, legend)
        (drawn,) = ax.plot(piece["x"], piece["top1"], color=look.colour, marker=look.marker, label=name)
        style.move(ax, drawn, piece["shift"].iloc[0])
        legend["measured"][title] = drawn


def draw_reported(
    ax: Axes,
    pair: Pair,
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
        ax.plot(x, unreduced["top1"] - point["drop"], **style.published(looks[method]), label=f"{method}, reported")
        reported.explain(legend, trained=False)


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
