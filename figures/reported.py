"""Published results, made comparable with measured ones: as the drop from the unreduced model of the same source."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D

from tokenmerge_bench import published
from tokenmerge_bench.figures import style

LEGEND = "reported, drop from its own unreduced model"
"""What the legend says of a hollow marker."""
TRAINED_LEGEND = "reported, trained with reduction"
"""What the legend says of one that is half filled."""


def drops(model: str) -> pd.DataFrame:
    """Published results of a model, each once: columns method, trained, k (if known), gflops and drop in points.

    Published accuracies are of other weights and images than ours; the drop from the unreduced model is what both have
    in common. Empty for a model of which nothing was published.
    """
    curve = published.table1()
    tables = [
        curve.assign(method=published.TABLE1_METHOD, trained="no"),
        published.quoted().assign(trained="no"),
        published.table2(),
    ]
    points = pd.concat(tables, ignore_index=True)
    points = points[(points["model"] == model) & (points["k"] != 0)]
    unreduced = curve.loc[(curve["model"] == model) & (curve["k"] == 0), "top1"]
    # Tables quote each other: the same number at the same FLOPs is the same result.
    points = points.drop_duplicates(subset=["method", "trained", "top1", "gflops"])
    drop = unreduced.iloc[0] - points["top1"] if len(unreduced) else points["top1"]
    return points.assign(drop=drop)[["method", "trained", "k", "gflops", "drop"]]


def explain(legend: style.Legend, trained: bool) -> None:
    """Says in the legend what a published point is, with a marker of no method's colour."""
    name = TRAINED_LEGEND if trained else LEGEND
    legend["reference"][name] = Line2D([], [], **style.published(style.Look(style.GREY, "o"), trained))
