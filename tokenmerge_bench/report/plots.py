"""What the charts show: every setting at its cost and accuracy, in numbers to draw and words to hover over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tokenmerge_bench.compare import Setting, shown_name
from tokenmerge_bench.display import short_knob
from tokenmerge_bench.figures import reported, style
from tokenmerge_bench.report.answers import interval_words
from tokenmerge_bench.report.charts import Plot
from tokenmerge_bench.report.timings import Timing, Timings
from tokenmerge_bench.results import Results
from tokenmerge_bench.statistics import Interval
from tokenmerge_bench.store import UNREDUCED

APART = 2
"""How many times as far as in the figures single settings of the same FLOPs stand apart: these charts are wider."""
COLUMNS = (
    "method", "label", "trained", "x", "x_low", "x_high", "top1", "top1_low", "top1_high", "order", "curve", "band",
    "setting", "accuracy", "lost", "cost",
)  # fmt: skip
Losses = dict[tuple[str, str, str], Interval]


def plots(results: Results, losses: Losses, timings: Timings) -> list[Plot]:
    """For each model accuracy over FLOPs, and over measured time for each way it was timed in; where it was not, over
    the rough time of the sweep."""
    found = []
    for model in dict.fromkeys(row["model"] for row in results.finished):
        rows = [row for row in results.finished if row["model"] == model]
        reduced = [row for row in rows if row["method"] != UNREDUCED]
        others = [row for row in rows if row["method"] == UNREDUCED]
        found.append(_over_flops(results, model, reduced, others, losses))
        ways = timings.ways(reduced)
        found += [_over_time(results, model, way, reduced, others, losses, timings) for way in ways]
        if not ways:
            found += _over_rough_time(results, model, reduced, others, losses)
    return found


def _over_flops(
    results: Results, model: str, reduced: Sequence[Setting], others: Sequence[Setting], losses: Losses
) -> Plot:
    settings = _frame([{**_described(row, losses), "x": row["gflops"]} for row in reduced])
    placed = style.placed(settings.assign(gflops=settings["x"]))
    costs = [row["gflops"] for row in (*reduced, *others)]
    shift = APART * placed["shift"] * (max(costs) - min(costs))
    settings = settings.assign(x=settings["x"] + shift, curve=~placed["alone"], band=~placed["alone"])
    published = _published(results, model)
    caption = "Higher is more accurate, further left is cheaper. Bands, or bars of single settings, are 95 % intervals"
    if others:
        caption += f"; {_star(others)}, the dotted line{'s their accuracies' if len(others) > 1 else ' its accuracy'}"
    caption += "."
    if (settings["trained"] == "yes").any():
        caption += " Curves of trained methods are dashed."
    if shift.any():
        caption += " Settings of the same FLOPs are drawn side by side."
    if len(published):
        caption += (
            " Hollow markers are published results, drawn at the measured accuracy of the unreduced model minus the "
            "drop that was reported."
        )
    unreduced = _frame([{**_described(row, losses), "x": row["gflops"]} for row in others])
    title = "GFLOPs per image (multiply-accumulates)"
    return Plot(model, "FLOPs", title, caption, settings, published, unreduced)


def _over_time(
    results: Results,
    model: str,
    way: str,
    reduced: Sequence[Setting],
    others: Sequence[Setting],
    losses: Losses,
    timings: Timings,
) -> Plot:
    timed = [(row, timing) for row in reduced for timing in timings.of(row) if timing.way == way]
    settings = _frame([{**_described(row, losses), **_time(row, timing)} for row, timing in timed])
    settings = settings.assign(curve=settings.groupby("method")["method"].transform("size") > 1)
    unreduced = _frame([{**_described(row, losses), "x": 100.0} for row in others])
    star = f"; {_star(others)}" if others else ""
    return Plot(
        model,
        f"measured time: {way}",
        "time per image, % of the unreduced model's",
        f"Higher is more accurate, further left is faster; right of 100 % is slower than unreduced{star}. "
        "Bars are 95 % intervals.",
        settings,
        _frame([]),
        unreduced,
    )


def _star(unreduced: Sequence[Setting]) -> str:
    if len(unreduced) > 1:
        return "the stars are the unreduced model, off the shelf and trained"
    return "the star is the unreduced model"


def _time(row: Setting, timing: Timing) -> dict[str, Any]:
    time = timing.time
    cost = f"{_cost(row)}; {interval_words(timing.speedup)} times as fast, {timing.ms:.3g} ms per image"
    return {"x": time.value, "x_low": time.low, "x_high": time.high, "cost": cost}


def _over_rough_time(
    results: Results, model: str, reduced: Sequence[Setting], others: Sequence[Setting], losses: Losses
) -> list[Plot]:
    """One chart, or none where the sweep took no times."""

    def frame(rows: Sequence[Setting]) -> pd.DataFrame:
        timed = [(row, 1000 / row["images_per_s"]) for row in rows if row["images_per_s"] > 0]
        return _frame(
            [
                {**_described(row, losses), "x": ms, "cost": f"{_cost(row)}; about {ms:.2g} ms per image"}
                for row, ms in timed
            ]
        )

    settings, unreduced = frame(reduced), frame(others)
    if settings.empty:
        return []
    settings = settings.assign(curve=settings.groupby("method")["method"].transform("size") > 1)
    return [
        Plot(
            model,
            "rough time of the sweep",
            "time per image in the sweep, ms (orders of magnitude only)",
            "Not a measurement of speed: these times are added up from pieces that settings share, and tell orders of "
            "magnitude. Give the folder of a profile beside the sweep's to have measured time here.",
            settings,
            _frame([]),
            unreduced,
        )
    ]


def _published(results: Results, model: str) -> pd.DataFrame:
    """Published results of the methods that the sweep names, also of those that could not be run."""
    unreduced = results.unreduced(model)
    if unreduced is None:
        return _frame([])
    known = results.summary.loc[results.summary["model"] == model, "label"]
    rows = reported.drops(model)
    return _frame(
        [
            {
                "method": shown_name({**row, "label": row["method"]}),
                "label": row["method"],
                "trained": row["trained"],
                "x": row["gflops"],
                "top1": unreduced["top1"] - row["drop"],
                "setting": "reported (published result)",
                "accuracy": "not measured here",
                "lost": f"{row['drop']:.2f} reported",
                "cost": f"{row['gflops']:.4g} GFLOPs reported",
            }
            for row in rows[rows["method"].isin(known)].to_dict("records")
        ]
    )


def _described(row: Setting, losses: Losses) -> dict[str, Any]:
    """All columns but the horizontal ones."""
    name, reduces = shown_name(row), row["method"] != UNREDUCED
    budget = row["budget"] if reduces and not pd.isna(row["budget"]) else ""
    loss = losses.get((row["model"], name, budget))
    return {
        "method": name,
        "label": row["label"],
        "trained": row["trained"],
        **{column: row[column] for column in ("top1", "top1_low", "top1_high")},
        "order": row["gflops"],
        "setting": ", ".join(filter(None, (budget, short_knob(row["knob"]) if row["knob"] else ""))) or "not reduced",
        "accuracy": f"{row['top1']:.2f} % [{row['top1_low']:.2f}, {row['top1_high']:.2f}]",
        "lost": "none" if loss is None else interval_words(loss),
        "cost": _cost(row),
    }


def _cost(row: Setting) -> str:
    return f"{row['gflops']:.4g} GFLOPs, {100 * row['reduction']:.1f} % fewer"


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows with all columns, also where there are none."""
    frame = pd.DataFrame([{"curve": False, "band": False, **row} for row in rows], columns=list(COLUMNS))
    return frame.assign(curve=frame["curve"].astype(bool), band=frame["band"].astype(bool))
