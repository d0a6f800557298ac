"""From one row per point to one row per setting: runs that differ only in their seed are averaged."""

from __future__ import annotations

from typing import Any

import pandas as pd

SETTING = ["model", "method", "options", "trained", "budget"]


def label(method: str, options: object) -> str:
    """A method with its options as it is asked for; options that are empty or missing leave the name alone."""
    return f"{method}:{options}" if isinstance(options, str) and options else method


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row per model, method, options and budget, in the order of the results.

    Accuracies and the bounds of their intervals are means over seeds; `top1_sd` is the sample standard deviation
    over the seeds (0 for one) and `seeds` their number. `label` is the method with its options, as it is asked for.
    """
    results = results.assign(**{column: results[column].fillna("") for column in ("options", "knob", "budget")})
    rows: list[dict[Any, Any]] = []
    groups: dict[Any, pd.DataFrame] = dict(list(results.groupby(SETTING, sort=False, dropna=False)))
    for group in groups.values():
        good = group[group["status"] == "ok"]
        row: dict[Any, Any] = (good if len(good) else group).to_dict("records")[0]
        if len(good):
            for column in ("top1", "top1_low", "top1_high", "top5", "images_per_s", "latency_ms"):
                row[column] = good[column].mean()
        row["seeds"] = len(good)
        row["top1_sd"] = float(good["top1"].std(ddof=1)) if len(good) > 1 else 0.0
        row["label"] = label(row["method"], row["options"])
        rows.append(row)
    # A stable order that keeps a method's budgets together, off the shelf and then trained.
    orders = {column: list(dict.fromkeys(row[column] for row in rows)) for column in ("label", "model", "budget")}

    def place(row: dict[Any, Any]) -> tuple[int, int, bool, int]:
        label, model, budget = (orders[column].index(row[column]) for column in ("label", "model", "budget"))
        return label, model, row["trained"] == "yes", budget

    rows.sort(key=place)
    return pd.DataFrame(rows)
