"""Figure 1: accuracy against FLOPs. One panel per model, one line per method, with 95 % intervals."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tokenmerge_bench.figures import reported, style
from tokenmerge_bench.figures.style import GREY, SMALL, Legend, Look, Spread
from tokenmerge_bench.results import Results
from tokenmerge_bench.store import UNREDUCED

CAPTION = (
    "Top-1 accuracy against FLOPs (multiply-accumulates) of token-reduction methods on the same images, bands and bars "
    "are 95 % intervals; single settings of the same FLOPs are moved apart, neighbours by less than 1 % of the axis; "
    "hollow markers are published results, half filled those of trained methods, drawn at the measured accuracy of the "
    "unreduced model minus the drop that was reported."
)
ABOUT = 0.02
"""Published and measured settings stand together within this fraction: 3.26 G of Table 2 is 1.1 % above 70 %."""
INTERVAL = Spread("95 % interval", opacity=0.1, width=0.8)
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Marked where the budgets themselves are no fractions of the FLOPs."""


def obstacle(results: Results) -> str | None:
    """Why the figure cannot be drawn, in one sentence; None if it can."""
    if (results.summary["status"] == "ok").any():
        return None
    return (
        "fig1 needs a finished point, and all of these results are failed, unreachable or missing; run the sweep again."
    )


def draw(results: Results) -> Figure:
    """Accuracy against FLOPs of every finished setting.

    Args:
        results: with at least one finished point (see `obstacle`).
    """
    rows = results.summary
    looks = style.looks(results)
    models = list(dict.fromkeys(rows.loc[rows["status"] == "ok", "model"]))
    legend: Legend = {"off the shelf": {}, "trained": {}, "reference": {}}
    with style.paper():
        figure, axes = style.panels(models, height=2.9)
        for model, ax in axes.items():
            ax.set_xmargin(0.08)
            of_model = rows[rows["model"] == model]
            unreduced = results.unreduced(model)
            finished = style.placed(of_model[(of_model["status"] == "ok") & (of_model["method"] != UNREDUCED)])
            draw_methods(ax, finished, looks, legend)
            draw_control(ax, of_model, legend)
            if unreduced is not None:
                mark_unreduced(ax, unreduced, legend)
                draw_reported(ax, of_model, finished, unreduced, looks, legend)
                mark_reductions(ax, of_model, unreduced["gflops"])
            ax.set_xlabel(style.GFLOPS)
            style.name_panel(ax, of_model)
        style.legend_below(figure, legend)
    return figure


def draw_methods(ax: Axes, finished: pd.DataFrame, looks: dict[str, Look], legend: Legend) -> None:
    """The intervals and points of each method; solid for those off the shelf, dashed for those that were trained."""
    finished = finished.assign(x=finished["gflops"])
    lines = [line.sort_values("x") for _, line in finished.groupby(["label", "trained"], sort=False)]
    numbers = [line[["x", "top1", "shift"]].to_numpy().tolist() for line in lines]
    for place, line in enumerate(lines):
        hiding = numbers[place + 1 :].count(numbers[place])  # lines that will be drawn exactly over this one
        draw_method(ax, line, looks[line["label"].iloc[0]], 1 + 0.7 * hiding, legend)


def draw_method(ax: Axes, line: pd.DataFrame, look: Look, size: float, legend: Legend) -> None:
    """Intervals and points of one method; its line and markers are `size` times as large as usual."""
    label, trained = line["label"].iloc[0], line["trained"].iloc[0]
    for piece in style.pieces(line):
        style.draw_spread(ax, piece, "top1_low", "top1_high", INTERVAL, look, legend)
        (drawn,) = ax.plot(
            piece["x"],
            piece["top1"],
            color=look.colour,
            marker=look.marker,
            markeredgecolor="white",
            markeredgewidth=0.3,
            linestyle="--" if trained == "yes" else "-",
            label=label,
        )
        drawn.set(linewidth=size * drawn.get_linewidth(), markersize=size * drawn.get_markersize())
        style.move(ax, drawn, piece["shift"].iloc[0])
        legend[heading(trained)][label] = drawn


def heading(trained: str) -> str:
    """Where a method stands in the legend."""
    return "trained" if trained == "yes" else "off the shelf"


def draw_control(ax: Axes, rows: pd.DataFrame, legend: Legend) -> None:
    """The unreduced model trained as the methods were, a hollow star: what training alone gains."""
    control = rows[(rows["method"] == UNREDUCED) & (rows["trained"] == "yes") & (rows["status"] == "ok")]
    if len(control):
        look = {**style.published(style.Look("0.2", "*")), "markersize": 12}  # around the other, where it gains nothing
        (star,) = ax.plot(control["gflops"], control["top1"], **look, label="unreduced, trained", zorder=5)
        legend["trained"]["unreduced model"] = star


def mark_unreduced(ax: Axes, unreduced: dict[Any, Any], legend: Legend) -> None:
    """The unreduced model as a star with a level line, and its FLOPs as the unit of a second axis."""
    gflops = unreduced["gflops"]
    legend["reference"]["unreduced model"] = style.mark_unreduced(ax, gflops, unreduced["top1"])
    top = ax.secondary_xaxis("top", functions=(lambda x: x / gflops, lambda x: x * gflops))
    top.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    top.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    top.set_xlabel("of the unreduced FLOPs")


def draw_reported(
    ax: Axes,
    rows: pd.DataFrame,
    finished: pd.DataFrame,
    unreduced: dict[Any, Any],
    looks: dict[str, Look],
    legend: Legend,
) -> None:
    """Published results of the methods that the experiment names, also of those that could not be run.

    They follow where a measured setting of about their FLOPs is moved aside.
    """
    points = reported.drops(rows["model"].iloc[0])
    for point in points[points["method"].isin(rows["label"])].to_dict("records"):
        method, trained = point["method"], point["trained"] == "yes"
        look = style.published(looks[method], trained)
        (drawn,) = ax.plot(point["gflops"], unreduced["top1"] - point["drop"], **look, label=f"{method}, reported")
        away = (finished["gflops"] / point["gflops"] - 1).abs()
        beside = finished.loc[(finished["label"] == method) & (away < ABOUT), "shift"]
        style.move(ax, drawn, beside.iloc[0] if len(beside) else 0.0)
        legend[heading(point["trained"])].setdefault(method, Line2D([], [], **look))
        reported.explain(legend, trained)


def mark_reductions(ax: Axes, rows: pd.DataFrame, unreduced: float) -> None:
    """Dotted lines where FLOPs were to be saved, with room for their labels below the data."""
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.1 * (high - low), high)
    finished = rows[rows["status"] == "ok"]
    budgets = pd.to_numeric(finished["budget"], errors="coerce")  # k=40 and 3.26 GFLOPs are no numbers
    lowest = finished["gflops"].min() / unreduced
    fractions = sorted(budgets[budgets < 1].unique()) or [kept for kept in FRACTIONS if kept >= lowest]
    for kept in fractions:
        what = " fewer" if kept == fractions[-1] else ""  # the last one says what all of them mean
        ax.axvline(kept * unreduced, color=GREY, linestyle=":", linewidth=0.6, zorder=0)
        ax.annotate(
            f"{100 * (1 - kept):.3g} %{what}",
            (kept * unreduced, 0.02),
            xycoords=ax.get_xaxis_transform(),
            xytext=(-7, 0),  # the number stands on the line
            textcoords="offset points",
            fontsize=SMALL,
            color=GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            zorder=0.5,  # above the dotted line, below the frame
        )
