"""Accuracy against FLOPs: one panel per model, one line per method, with 95 % intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tokenmerge_bench.points import UNREDUCED
from tokenmerge_bench.summary import summarise

MARKERS = "osD^vPX*<>hp"


def draw(results: pd.DataFrame) -> Figure:
    """The figure of a results table (as read by `store.read_results`)."""
    rows = summarise(results)
    rows = rows[rows["status"] == "ok"]
    models = list(dict.fromkeys(rows["model"]))
    labels = [label for label in dict.fromkeys(rows["label"]) if label != UNREDUCED]
    colours = dict(zip(labels, sns.color_palette("colorblind", len(labels)), strict=True))
    markers = {label: MARKERS[i % len(MARKERS)] for i, label in enumerate(labels)}
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.1):
        figure, axes = plt.subplots(
            1, len(models), figsize=(4.6 * len(models) + 1.6, 3.8), squeeze=False, layout="constrained"
        )
        for ax, model in zip(axes[0], models, strict=True):
            panel(ax, rows[rows["model"] == model], results[results["model"] == model], colours, markers)
        # A method may be missing from a panel, so every panel is asked.
        named = {name: h for ax in axes[0] for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside right center", frameon=False)
    return figure


def panel(
    ax: Axes,
    rows: pd.DataFrame,
    results: pd.DataFrame,
    colours: dict[str, tuple[float, float, float]],
    markers: dict[str, str],
) -> None:
    """One model: lines over the settings, bands for the intervals, small dots for single seeds."""
    for label, colour in colours.items():
        line = rows[rows["label"] == label].sort_values("gflops")
        if line.empty:
            continue
        ax.fill_between(line["gflops"], line["top1_low"], line["top1_high"], color=colour, alpha=0.12, linewidth=0)
        ax.plot(line["gflops"], line["top1"], color=colour, marker=markers[label], markersize=5, label=label)
        if line["seeds"].max() > 1:
            names = results["method"] + results["options"].map(lambda o: f":{o}" if isinstance(o, str) and o else "")
            single = results[(names == label) & (results["status"] == "ok")]
            ax.plot(single["gflops"], single["top1"], ".", color=colour, markersize=3, alpha=0.7)
    first = rows.iloc[0]
    ax.set_xlabel("GFLOPs per image (multiply-accumulates)")
    ax.set_ylabel("top-1 accuracy (%)")
    ax.set_title(
        f"{first['model']} on {first['dataset']}, {int(first['n_images']):,} images", loc="left", fontsize="medium"
    )
    sns.despine(ax=ax)
    for unreduced in rows[rows["method"] == UNREDUCED].to_dict("records"):  # none if that point failed
        mark_unreduced(ax, unreduced["gflops"], unreduced["top1"])


def mark_unreduced(ax: Axes, gflops: float, top1: float) -> None:
    """The unreduced model as a star with a level line, and its FLOPs as the unit of a second axis."""
    ax.axhline(top1, color="0.4", linestyle="--", linewidth=0.8)
    ax.plot(gflops, top1, marker="*", color="0.2", markersize=9, linestyle="", label="unreduced")

    def fraction(x: Any) -> Any:
        return x / gflops

    def absolute(x: Any) -> Any:
        return x * gflops

    top = ax.secondary_xaxis("top", functions=(fraction, absolute))
    top.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    top.set_xlabel("of the unreduced FLOPs", fontsize="small")
    top.tick_params(labelsize="small")


def save(results: pd.DataFrame, folder: Path) -> list[Path]:
    """Draws the figure and writes it as PNG and SVG; gives the paths."""
    figure = draw(results)
    paths = [folder / "accuracy_flops.png", folder / "accuracy_flops.svg"]
    for path in paths:
        temporary = path.with_name(f".{path.name}")
        figure.savefig(temporary, dpi=200, format=path.suffix[1:])
        temporary.replace(path)
    plt.close(figure)
    return paths
