"""From one row per point to one row per setting: runs that differ only in their seed are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

SETTING = ["model", "method", "options", "trained", "budget"]


def label(method: str, options: object) -> str:
    """A method with its options as it is asked for; options that are empty or missing leave the name alone."""
    return f"{method}:{options}" if isinstance(options, str) and options else method


def budget_flag(recorded: str) -> tuple[str, str]:
    """The flag that asks for a budget as it is recorded, and its value: `--k`, `40`."""
    kind, sign, value = recorded.partition("=")
    if sign:
        return f"--{kind.replace('_', '-')}", value
    gflops = recorded.removesuffix(" GFLOPs")
    return ("--budgets", recorded) if gflops == recorded else ("--gflops", gflops)


def setting_key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What tells settings apart, of a row of results; an empty cell of a file is an empty text."""
    return tuple("" if pd.isna(row[column]) else row[column] for column in SETTING)


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row per model, method, options and budget, in the order of the results.

    Accuracies and the bounds of their intervals are means over seeds; `top1_sd` is the sample standard deviation
    over the seeds (0 for one) and `seeds` their number. `label` is the method with its options, as it is asked for.
    """
    results = results.assign(**{column: results[column].fillna("") for column in ("options", "knob", "budget")})
    groups: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
    for run in results.to_dict("records"):
        groups.setdefault(setting_key(run), []).append(run)
    rows = [_averaged(group) for group in groups.values()]
    # A stable order that keeps a method's budgets together, off the shelf and then trained.
    orders = {column: list(dict.fromkeys(row[column] for row in rows)) for column in ("label", "model", "budget")}

    def place(row: dict[Any, Any]) -> tuple[int, int, bool, int]:
        label, model, budget = (orders[column].index(row[column]) for column in ("label", "model", "budget"))
        return label, model, row["trained"] == "yes", budget

    rows.sort(key=place)
    return pd.DataFrame(rows)


def _averaged(runs: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
    """The row of one setting, from those of its runs."""
    good = [run for run in runs if run["status"] == "ok"]
    row = dict((good or runs)[0])
    if len(good) > 1:
        frame = pd.DataFrame(good)
        for column in ("top1", "top1_low", "top1_high", "top5", "images_per_s", "latency_ms"):
            row[column] = frame[column].mean()
    row["seeds"] = len(good)
    row["top1_sd"] = float(frame["top1"].std(ddof=1)) if len(good) > 1 else 0.0
    row["label"] = label(row["method"], row["options"])
    return row
