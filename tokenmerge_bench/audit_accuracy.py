"""Points of accuracy lost by each way of reading the paper, measured, beside the drops that its Table 1 reports.

A *place* is what a comparison is about: images, model, weights, precision, and the input size, because that sets the
number of tokens. A *view* is what else the preprocessing does to an image. Folders of one place and view are one
comparison; several views of one place can be averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from tokenmerge_bench.audit_flops import ROUNDING
from tokenmerge_bench.results import Results
from tokenmerge_bench.statistics import paired_difference
from tokenmerge_bench.store import UNREDUCED

STAND_IN = "deit_tiny_patch16_224"
"""Whose published drops stand beside a model that the paper does not have."""
LARGEST = 3
"""Settings are ordered by their mean loss at this many of the largest k, where losses are larger than noise."""
FEWEST = 3
"""Settings that two models must have in common for their orders to be compared."""
UNKNOWN = "unknown"
"""Preprocessing that a folder did not record."""
PLACE = ["dataset", "images", "model", "weights", "dtype", "input_size"]
VIEW = ["crop_pct", "crop_mode", "interpolation", "mean", "std"]
CELL = [*PLACE, *VIEW, "setting", "k"]
LOSS = ["n_images", "seeds", "lost", "low", "high", "reported_model", "reported_lost", "inside"]
STANDING = ["setting", "ks", "mean_lost", "mean_reported", "compatible", "excluded_at"]
ORDERS = ["dataset", "images", "model", "other", "settings", "ks", "rho"]


def read_outcomes(results: Sequence[Results], table1: pd.DataFrame) -> pd.DataFrame:
    """A row per place, view, setting and k of Table 1 that was evaluated; of folders that hold the same one, the first.

    Columns dataset; images: fingerprints of the image set and of the choice from it; model; weights: their fingerprint;
    dtype; input_size, crop_pct, crop_mode, interpolation, mean, std as text; setting (method with options), k;
    unreduced and hits: frames (seeds, images) that say whether top-1 was right, without and with reduction. Only
    budgets `k` with one number for all blocks are looked at, and only models whose unreduced accuracy is in the folder.

    Raises:
        InputError: if per-image outcomes are missing.
    """
    rows = [row for r in results for model in r.summary["model"].unique() for row in _outcomes(r, model, table1)]
    return pd.DataFrame(rows, columns=[*CELL, "unreduced", "hits"]).drop_duplicates(CELL, ignore_index=True)


def _outcomes(results: Results, model: str, table1: pd.DataFrame) -> list[dict[str, Any]]:
    ks = {f"k={k}": int(k) for k in table1["k"] if k > 0}
    done = results.summary[(results.summary["model"] == model) & (results.summary["status"] == "ok")]
    reduced = done[done["budget"].isin(list(ks)) & (done["method"] != UNREDUCED)].to_dict("records")
    unreduced = results.unreduced(model)
    if unreduced is None or not reduced:
        return []
    images = results.outcomes(results.runs(unreduced)[0]).index  # the order that `hits` follows
    stock, *all_hits = (pd.DataFrame(hits, columns=images) for hits in results.hits(unreduced, *reduced))
    where = _where(results, model)
    return [
        {**where, "setting": row["label"], "k": ks[row["budget"]], "unreduced": stock, "hits": hits}
        for row, hits in zip(reduced, all_hits, strict=True)
    ]


def _where(results: Results, model: str) -> dict[str, str]:
    """Place and view of a model in opened folders."""
    held = {name: held for origin in results.provenance for name, held in origin["models"].items()}[model]
    preprocessing = held.get("preprocessing", {})
    return {
        "dataset": results.dataset,
        "images": "/".join(results.fingerprints),
        "model": model,
        "weights": held["fingerprint"],
        "dtype": results.provenance[0]["experiment"]["dtype"],
        **{name: _text(preprocessing.get(name, UNKNOWN)) for name in ["input_size", *VIEW]},
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return value if isinstance(value, str) else f"{value:g}"


def compare_accuracy(outcomes: pd.DataFrame, table1: pd.DataFrame) -> pd.DataFrame:
    """The loss in each row of `read_outcomes`.

    Columns as there up to k; n_images, seeds; lost, low, high: points of top-1 below the unreduced model on the same
    images, with the 95 % interval of the paired difference; reported_model and reported_lost; inside: whether the
    reported drop, which is rounded, is in the interval.
    """
    rows = [
        {**{name: row[name] for name in CELL}, **_loss(row, row["unreduced"], row["hits"], table1)}
        for row in outcomes.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=[*CELL, *LOSS])


def average_views(outcomes: pd.DataFrame, table1: pd.DataFrame) -> pd.DataFrame:
    """The mean loss over all views of a place, for each setting and k that every view has; empty for single views.

    Columns as in `compare_accuracy`, with their number `views` in place of what they were; seeds: the most of any view.
    Of each image the mean over views and seeds counts, so that images stay the unit of the interval: views are no new
    images. Only images that could be read in all views count.
    """
    rows: list[dict[str, Any]] = []
    for _, place in outcomes.groupby(PLACE, sort=False):
        views = len(place.drop_duplicates(VIEW))
        for _, cell in place.groupby(["setting", "k"], sort=False):
            if len(cell) == views > 1:
                first = cell.to_dict("records")[0]
                kept = {name: first[name] for name in [*PLACE, "setting", "k"]}
                loss = _loss(first, _pooled(cell["unreduced"]), _pooled(cell["hits"]), table1)
                rows.append({**kept, "views": views, **loss, "seeds": cell["hits"].map(len).max()})
    return pd.DataFrame(rows, columns=[*PLACE, "setting", "k", "views", *LOSS])


def _pooled(views: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Hits of several views as if they were seeds; each view weighs the same, however many seeds it has."""
    frames = list(views)
    most = math.lcm(*map(len, frames))
    return pd.concat([frame for frame in frames for _ in range(most // len(frame))], join="inner")


def _loss(cell: dict[Any, Any], unreduced: pd.DataFrame, hits: pd.DataFrame, table1: pd.DataFrame) -> dict[str, Any]:
    known = cell["model"] if cell["model"] in set(table1["model"]) else STAND_IN
    column = table1[table1["model"] == known].set_index("k")["top1"]
    drop = round(float(column[0] - column[cell["k"]]), 2)
    loss = paired_difference(unreduced.to_numpy(), hits.to_numpy())
    low, high = 100 * loss.low, 100 * loss.high
    return {
        "n_images": hits.shape[1],
        "seeds": len(hits),
        "lost": 100 * loss.value,
        "low": low,
        "high": high,
        "reported_model": known,
        "reported_lost": drop,
        # the reported drop is the difference of two rounded numbers
        "inside": low - 2 * ROUNDING <= drop <= high + 2 * ROUNDING,
    }


def fullest_views(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compare_accuracy` in the view of each place that has most of them; among equals the first."""
    size = accuracy.groupby([*PLACE, *VIEW], sort=False)["lost"].transform("size")
    largest = accuracy[size == size.groupby([accuracy[name] for name in PLACE]).transform("max")]
    return largest.merge(largest.drop_duplicates(PLACE)[[*PLACE, *VIEW]])


def rank_settings(losses: pd.DataFrame) -> pd.DataFrame:
    """The settings of each place, least loss first, from losses in one view of it or from their means over views.

    Columns dataset, images, model, weights, dtype, input_size, setting; ks: the largest k that all settings have;
    mean_lost and mean_reported: means of points lost over these (missing where there are none); compatible: whether the
    reported drop is inside at every k that was evaluated; excluded_at: the k where it is not.
    """
    rows: list[dict[str, Any]] = []
    for _, group in losses.groupby(PLACE, sort=False):
        place = group[PLACE].to_dict("records")[0]
        settings = list(group.groupby("setting", sort=False))
        ks = sorted(set.intersection(*(set(part["k"]) for _, part in settings)))[-LARGEST:]
        found = [{**place, "setting": setting, **_standing(part, ks)} for setting, part in settings]
        rows += sorted(found, key=lambda row: float(row["mean_lost"]))
    return pd.DataFrame(rows, columns=[*PLACE, *STANDING])


def _standing(part: pd.DataFrame, ks: list[int]) -> dict[str, Any]:
    outside, large = part.loc[~part["inside"].astype(bool), "k"], part[part["k"].isin(ks)]
    return {
        "ks": ", ".join(map(str, ks)),
        "mean_lost": large["lost"].mean(),
        "mean_reported": large["reported_lost"].mean(),
        "compatible": outside.empty,
        "excluded_at": ", ".join(map(str, sorted(outside))),
    }


def compare_orders(losses: pd.DataFrame) -> pd.DataFrame:
    """Whether two models order the settings alike, on the same images: a row per pair of models.

    Columns dataset, images, model, other; settings: how many both have; ks: the largest k at which both have them all;
    rho: Spearman's rank correlation of the mean losses over these k. Pairs with fewer than three settings in common, or
    without any order among them, have no row.

    Args:
        losses: in one view of each place (`fullest_views`).
    """
    rows = []
    for (dataset, images), alike in losses.groupby(["dataset", "images"], sort=False):
        cells = alike.pivot_table(index=["setting", "k"], columns="model", values="lost", sort=False)
        for model, other in combinations(cells.columns, 2):
            both = cells[[model, other]].dropna()
            settings, held = both.index.unique("setting").size, both.groupby("k").size()
            ks = held.index[held == settings][-LARGEST:]
            means = both[both.index.isin(ks, level="k")].groupby("setting").mean()
            if len(means) >= FEWEST and (means.nunique() > 1).all():
                rho = float(spearmanr(means[model], means[other]).statistic)
                found = [dataset, images, model, other, settings, ", ".join(map(str, ks)), rho]
                rows.append(dict(zip(ORDERS, found, strict=True)))
    return pd.DataFrame(rows, columns=ORDERS)


def describe_images(results: Sequence[Results], accuracy: pd.DataFrame, table1: pd.DataFrame) -> pd.DataFrame:
    """What the measured losses rest on: a row per place and view of `accuracy`.

    Columns as there up to std; n_images, weights_file; top1, top1_low, top1_high of the unreduced model in percent, and
    reported_top1 (missing where none was published).
    """
    reported = table1[table1["k"] == 0].set_index("model")["top1"].to_dict()
    rows = []
    for folder in results:
        for model in folder.summary["model"].unique():
            unreduced = folder.unreduced(model)
            if unreduced is not None:
                kept = {name: unreduced[name] for name in ("n_images", "top1", "top1_low", "top1_high")}
                origin = {"weights_file": unreduced["weights"], "reported_top1": reported.get(model)}
                rows.append({**_where(folder, model), **kept, **origin})
    columns = [*PLACE, *VIEW, "n_images", "weights_file", "top1", "top1_low", "top1_high", "reported_top1"]
    described = pd.DataFrame(rows, columns=columns).drop_duplicates([*PLACE, *VIEW])
    return accuracy[[*PLACE, *VIEW]].drop_duplicates().merge(described)
