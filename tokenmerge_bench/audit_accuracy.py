"""Points of accuracy lost by each way of reading the paper, measured, beside the drops that its Table 1 reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tokenmerge_bench.audit_flops import ROUNDING
from tokenmerge_bench.points import UNREDUCED
from tokenmerge_bench.results import Results
from tokenmerge_bench.statistics import paired_difference

STAND_IN = "deit_tiny_patch16_224"
"""Whose published drops stand beside a model that the paper does not have."""
LARGEST = 3
"""Settings are ordered by their mean loss at this many of the largest k, where losses are larger than noise."""
COLUMNS = (
    "dataset", "images", "n_images", "model", "setting", "k", "seeds",
    "lost", "low", "high", "reported_model", "reported_lost", "inside",
)  # fmt: skip
RANKED = ("dataset", "images", "model", "setting", "ks", "mean_lost", "compatible", "evaluated", "excluded_at")
DESCRIBED = (
    "dataset", "images", "n_images", "model", "weights", "crop_pct", "top1", "top1_low", "top1_high", "reported_top1",
)  # fmt: skip


def compare_accuracy(results: Sequence[Results], table1: pd.DataFrame) -> pd.DataFrame:
    """A row per setting and k of Table 1 that was evaluated, on any model.

    Columns dataset, images (fingerprint of the choice), n_images, model, setting (method with options), k, seeds; lost,
    low, high: points of top-1 below the unreduced model on the same images, with the 95 % interval of the paired
    difference; reported_model and reported_lost; inside: whether the reported drop, which is rounded, is in the
    interval. Only budgets `k` with one number for all blocks are looked at.

    Raises:
        InputError: if per-image outcomes are missing.
    """
    rows = [row for r in results for model in r.summary["model"].unique() for row in _model(r, model, table1)]
    return pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(["images", "model", "setting", "k"], ignore_index=True)


def _model(results: Results, model: str, table1: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of one model on one image set; none without the unreduced model to compare with."""
    drops = _reported_drops(table1, model)
    ks = {f"k={k}": k for k in drops}
    done = results.summary[(results.summary["model"] == model) & (results.summary["status"] == "ok")]
    reduced = done[done["budget"].isin(list(ks)) & (done["method"] != UNREDUCED)].to_dict("records")
    unreduced = results.unreduced(model)
    if unreduced is None or not reduced:
        return []
    stock_hits, *all_hits = results.hits(unreduced, *reduced)
    rows = []
    for row, hits in zip(reduced, all_hits, strict=True):
        loss = paired_difference(stock_hits, hits)
        low, high, k = 100 * loss.low, 100 * loss.high, ks[row["budget"]]
        rows.append(
            {
                "dataset": results.dataset,
                "images": results.fingerprints[1],
                "n_images": hits.shape[1],
                "model": model,
                "setting": row["label"],
                "k": k,
                "seeds": len(hits),
                "lost": 100 * loss.value,
                "low": low,
                "high": high,
                "reported_model": model if model in set(table1["model"]) else STAND_IN,
                "reported_lost": drops[k],
                # the reported drop is the difference of two rounded numbers
                "inside": low - 2 * ROUNDING <= drops[k] <= high + 2 * ROUNDING,
            }
        )
    return rows


def _reported_drops(table1: pd.DataFrame, model: str) -> dict[int, float]:
    """Points lost at each k above 0, in the paper's own Table 1."""
    known = model if model in set(table1["model"]) else STAND_IN
    column = table1[table1["model"] == known]
    unreduced = float(column.loc[column["k"] == 0, "top1"].iloc[0])
    return {int(k): round(unreduced - top1, 2) for k, top1 in zip(column["k"], column["top1"], strict=True) if k > 0}


def rank_settings(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The settings of each image set and model, least loss first.

    Columns dataset, images, model, setting; ks and mean_lost: mean of points lost over the largest k that all settings
    have (none and missing where there is no such k); compatible: whether the reported drop is inside at every k that
    was evaluated; their number; excluded_at: the k where it is not.
    """
    rows: list[dict[str, Any]] = []
    for key, group in accuracy.groupby(["dataset", "images", "model"], sort=False):
        assert isinstance(key, tuple)
        place = dict(zip(("dataset", "images", "model"), key, strict=True))
        settings = list(group.groupby("setting", sort=False))
        ks = sorted(set.intersection(*(set(part["k"]) for _, part in settings)))[-LARGEST:]
        found = [{**place, "setting": setting, **_standing(part, ks)} for setting, part in settings]
        rows += sorted(found, key=lambda row: float(row["mean_lost"]))
    return pd.DataFrame(rows, columns=RANKED)


def _standing(part: pd.DataFrame, ks: list[int]) -> dict[str, Any]:
    outside = part.loc[~part["inside"].astype(bool), "k"]
    return {
        "ks": ", ".join(map(str, ks)),
        "mean_lost": part.loc[part["k"].isin(ks), "lost"].mean(),
        "compatible": outside.empty,
        "evaluated": len(part),
        "excluded_at": ", ".join(map(str, outside)),
    }


def describe_images(results: Sequence[Results], accuracy: pd.DataFrame, table1: pd.DataFrame) -> pd.DataFrame:
    """What the measured losses rest on: a row per image set and model of `accuracy`.

    Columns dataset, images, n_images, model, weights, crop_pct (missing where it was not recorded); top1, top1_low,
    top1_high of the unreduced model in percent, and reported_top1 (missing where none was published).
    """
    reported = table1[table1["k"] == 0].set_index("model")["top1"].to_dict()
    rows = []
    for folder in results:
        used = accuracy.loc[accuracy["images"] == folder.fingerprints[1], "model"].unique()
        recorded = {name: held for origin in folder.provenance for name, held in origin.get("models", {}).items()}
        for model in used:
            unreduced = folder.unreduced(model)
            if unreduced is None:
                continue
            kept = {key: unreduced[key] for key in ("n_images", "model", "weights", "top1", "top1_low", "top1_high")}
            crop = recorded.get(model, {}).get("preprocessing", {}).get("crop_pct")
            place = {"dataset": folder.dataset, "images": folder.fingerprints[1]}
            rows.append({**place, **kept, "crop_pct": crop, "reported_top1": reported.get(model)})
    return pd.DataFrame(rows, columns=DESCRIBED).drop_duplicates(["images", "model"], ignore_index=True)
