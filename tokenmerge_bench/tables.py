"""The paper's tables, published and measured side by side, and a table of everything, from results folders alone.

A table is a data frame of plain numbers, which is also its CSV file; `rendering.py` makes Markdown and LaTeX of it.
Accuracies and their differences are percent and percentage points, `gflops` multiply-accumulates / 1e9, intervals 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokenmerge_bench import published
from tokenmerge_bench.compare import (
    ALPHA,
    EQUAL_FLOPS,
    Setting,
    adjusted,
    equally_accurate,
    interval_columns,
    paired,
    shown_name,
)
from tokenmerge_bench.contests import Contest, contests
from tokenmerge_bench.display import short_knob
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.rendering import KINDS, render
from tokenmerge_bench.results import Results
from tokenmerge_bench.statistics import pareto_front
from tokenmerge_bench.store import UNREDUCED, write_text
from tokenmerge_bench.summary import setting_key

Row = dict[Any, Any]
TABLE2_BUDGET = "0.7"
"""Table 2 is at 30 % fewer FLOPs."""
ABSENT: Setting = {"status": "missing", "reason": "not in these results", "seeds": 0}
"""Stands for a setting that was published and not measured."""


def table1(results: Results) -> pd.DataFrame:
    """Table 1: DHTM with default options at k merges per layer, a row per model and k, reported and measured.

    The row k = 0 is the unreduced model. `best` is the highest accuracy among the others of a model; `tied` says that
    the loss cannot be told from zero (paired test, Holm's correction over the table).

    Raises:
        InputError: if the results hold no such settings.
    """
    _require("table1", results)
    reported = published.table1()
    rows: list[Row] = []
    settings: list[Setting] = []
    for model in _models(results):
        measured = _by_k(results, model)
        if not any(measured):
            continue
        paper = reported[reported["model"] == model].set_index("k")
        for k in sorted({0, *paper.index, *measured}):
            setting = measured.get(k, ABSENT)
            row = {"model": model, "k": k, **_reported(paper.loc[k] if k in paper.index else None, paper)}
            rows.append({**row, **_measured(results, model, setting)})
            settings.append(setting)
    losses = adjusted([row["p"] for row in rows])
    for row, p in zip(rows, losses, strict=True):
        row |= {"p_adjusted": p, "tied": bool(p >= ALPHA)}
    _mark_highest(rows)
    return _frame(rows, _caption("DHTM at k merges in each of its layers.", results, settings, rows))


def table2(results: Results) -> pd.DataFrame:
    """Table 2: all methods at 30 % fewer FLOPs, a row per model, method and training, reported and measured.

    The paper's rows come in its order, whether they were measured or not, and then methods that it lacks. The unreduced
    model trained in the same way stands among the trained ones: what training alone gains. `best` and `tied` (with the
    best; paired test, Holm's correction over all pairs of the table) are among the off-the-shelf methods of a model,
    and apart from them among the trained ones, if their GFLOPs agree to 1 %.

    Raises:
        InputError: if the results hold no setting at this budget.
    """
    _require("table2", results)
    at_budget = [setting for setting in results.settings if _in_table2(setting)]
    reference = published.table1()
    rows: list[Row] = []
    settings: list[Setting] = []
    for model in dict.fromkeys(setting["model"] for setting in at_budget):
        paper = reference[reference["model"] == model].set_index("k")
        measured = [setting for setting in at_budget if setting["model"] == model]
        for row, numbers, setting in _table2_rows(model, measured):
            rows.append({"model": model, **row, **_reported(numbers, paper), **_measured(results, model, setting)})
            settings.append(setting)
    _mark(rows, settings, contests(results, at_budget))
    return _frame(rows, _caption("All methods at 30 % fewer FLOPs.", results, settings, rows))


def _in_table2(setting: Setting) -> bool:
    # Methods that a folder of an earlier version could not run at any budget.
    nowhere = setting["status"] == "missing" and not setting["budget"]
    control = setting["method"] == UNREDUCED and setting["trained"] == "yes"
    return setting["budget"] == TABLE2_BUDGET or nowhere or control


def results_table(results: Results, found: Sequence[Contest] | None = None) -> pd.DataFrame:
    """Every setting: method, budget, what the solver chose, GFLOPs, accuracy, loss, and how it stands among the others.

    `best` and `tied` (with the best; paired test, Holm's correction over all pairs of the table) are among the methods
    at one budget, trained ones apart, if their GFLOPs agree to 1 %: k merges in other layers are not the same cost.
    `pareto` says that no other setting of the model is more accurate at equal cost or less, or as accurate at less.

    Args:
        results: opened results folders.
        found: their `contests`, for whoever has them already.
    """
    models = _models(results)
    settings = sorted(results.settings, key=lambda setting: models.index(setting["model"]))
    rows = [
        {
            "model": setting["model"],
            "method": shown_name(setting),
            "budget": "" if setting["method"] == UNREDUCED or pd.isna(setting["budget"]) else setting["budget"],
            "setting": short_knob(setting["knob"]) if setting["knob"] else "",
            **_measured(results, setting["model"], setting),
        }
        for setting in settings
    ]
    for positions in _grouped([row["model"] for row in rows]):
        gflops, top1 = ([rows[i][column] for i in positions] for column in ("gflops", "top1"))
        front = pareto_front(gflops, top1, EQUAL_FLOPS)
        for position, on_front in zip(positions, front, strict=True):
            rows[position]["pareto"] = bool(on_front)
    _mark(rows, settings, contests(results) if found is None else found)
    return _frame(rows, _caption("All settings.", results, settings, rows))


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(results.summary["model"]))


def unavailable(name: str, results: Results) -> str | None:
    """Why the table `name` cannot be made from these results, in one sentence; None if it can."""
    summary = results.summary
    if name == "table1" and not any(any(_by_k(results, model)) for model in _models(results)):
        return (
            "table 1 needs dhtm with its default options at budgets given as k, which these results do not have; run "
            "`tmbench run table1` or sweep with --methods dhtm --k 0,20,40."
        )
    if name == "table2" and not (summary["budget"] == TABLE2_BUDGET).any():
        held = ", ".join(dict.fromkeys(summary.loc[summary["method"] != UNREDUCED, "budget"].dropna())) or "none"
        return (
            f"table 2 compares methods at {TABLE2_BUDGET} of the FLOPs, and these results hold other budgets ({held}); "
            f"run `tmbench run table2` or sweep with --budgets {TABLE2_BUDGET}."
        )
    return None


def _require(name: str, results: Results) -> None:
    reason = unavailable(name, results)
    if reason:
        raise InputError(reason)


def _by_k(results: Results, model: str) -> dict[int, Setting]:
    """The unreduced model as k = 0, and DHTM's settings with default options and budgets such as `k=40`."""
    rows = results.summary
    rows = rows[(rows["model"] == model) & (rows["trained"] == "no")]
    dhtm = rows[(rows["label"] == published.TABLE1_METHOD) & rows["budget"].fillna("").str.fullmatch(r"k=\d+")]
    by_k = {int(row["budget"].removeprefix("k=")): row for row in dhtm.to_dict("records")}
    for unreduced in rows[rows["method"] == UNREDUCED].to_dict("records"):
        by_k[0] = unreduced
    return by_k


def _table2_rows(model: str, measured: list[Setting]) -> Iterable[tuple[Row, pd.Series[Any] | None, Setting]]:
    """Method and training, published numbers and setting of each row of one model: trained first, as in the paper.

    A method that the experiment asked for and that cannot be run here stands in the paper's row of the method, and so
    does a trained one that has other options, where none has those of the paper.
    """
    reported = published.table2()
    trained_only = set(reported["method"]) - set(reported.loc[reported["trained"] == "no", "method"])
    for trained in ("yes", "no"):
        rest = [row for row in measured if _training(row, trained_only) == trained]
        here = reported[(reported["model"] == model) & (reported["trained"] == trained)]
        for _, numbers in here.iterrows():
            kin = [row for row in rest if row["method"] == numbers["method"] and trained == "yes"]
            same = [row for row in rest if row["label"] == numbers["method"]] or kin
            setting = min(same, key=lambda row: row["status"] != "ok", default=ABSENT)
            name = setting.get("label", numbers["method"])
            rest = [row for row in rest if row["label"] != name]
            yield {"trained": trained, "method": name}, numbers, setting
        for row in rest:
            yield {"trained": trained, "method": _plain_name(row)}, None, row


def _plain_name(setting: Setting) -> str:
    """The method of a setting, where the table says elsewhere whether it was trained."""
    return "unreduced" if setting["method"] == UNREDUCED else str(setting["label"])


def _training(setting: Setting, trained_only: set[str]) -> str:
    """Whether a setting belongs to the trained methods; one that is missing belongs where the paper has it."""
    if setting["status"] == "missing":
        return "yes" if setting["method"] in trained_only else "no"
    return str(setting["trained"])


def _reported(numbers: pd.Series[Any] | None, paper: pd.DataFrame) -> Row:
    """Published GFLOPs, accuracy and drop from the paper's own unreduced model (row k = 0 of its Table 1)."""
    if numbers is None:
        return {"gflops_reported": np.nan, "top1_reported": np.nan, "drop_reported": np.nan}
    drop = round(paper.loc[0, "top1"] - numbers["top1"], 2)
    return {"gflops_reported": numbers["gflops"], "top1_reported": numbers["top1"], "drop_reported": drop}


def _measured(results: Results, model: str, setting: Setting) -> Row:
    """Our columns of a row. `drop` is what the unreduced model gets right more, with the interval of the difference."""
    row: Row = {"dataset": results.dataset, "images": pd.NA, "seeds": setting["seeds"]}
    row |= dict.fromkeys(("gflops", "saved", "top1", "top1_low", "top1_high", "top1_sd"), np.nan)
    row |= {"drop": np.nan, "drop_low": np.nan, "drop_high": np.nan, "p": np.nan}
    row |= {"status": setting["status"], "reason": setting["reason"]}
    if setting["status"] != "ok":
        return row
    row |= {column: setting[column] for column in ("gflops", "top1", "top1_low", "top1_high", "top1_sd")}
    row |= {"images": int(setting["n_images"]), "saved": 100 * setting["reduction"], "reason": ""}
    unreduced = results.unreduced(model)
    if setting["method"] == UNREDUCED and setting["trained"] == "no":
        row["drop"] = 0.0  # by definition, so without interval or test
    elif unreduced is not None:
        loss = paired(results, unreduced, setting)
        row |= {**interval_columns("drop", loss.difference), "p": loss.p}
    return row


def _grouped(names: Sequence[str]) -> list[list[int]]:
    """The positions of each name, in the order of their first appearance."""
    return [[i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)]


def _mark_highest(rows: list[Row]) -> None:
    """Sets `best` for the highest accuracy above k = 0 of each model on which two of them or more were measured."""
    for positions in _grouped([row["model"] for row in rows]):
        measured = [rows[i]["top1"] for i in positions if rows[i]["k"] and rows[i]["status"] == "ok"]
        for i in positions:
            contested = bool(rows[i]["k"]) and len(measured) > 1
            rows[i]["best"] = contested and equally_accurate(rows[i]["top1"], max(measured))


def _mark(rows: list[Row], settings: Sequence[Setting], found: Sequence[Contest]) -> None:
    """Sets `best` for the highest accuracy of each contest in which methods were compared, `tied` for what the paired
    test cannot tell from it, and `p_best`, the p-value of that test."""
    for row in rows:
        row |= {"best": False, "p_best": np.nan, "tied": False}
    places = {setting_key(s): row for s, row in zip(settings, rows, strict=True) if s is not ABSENT}
    for contest in found:
        for setting in contest.settings if contest.pairs else ():
            row, best = places[setting_key(setting)], setting in contest.equals
            p_best = np.nan if best else contest.p_best(setting)
            row |= {"best": best, "p_best": p_best, "tied": bool(p_best >= ALPHA)}


def _frame(rows: list[Row], caption: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows).astype({"images": "Int64"})
    for quantity in ("gflops", "drop"):
        if f"{quantity}_reported" in frame:
            frame[f"{quantity}_difference"] = frame[quantity] - frame[f"{quantity}_reported"]
    frame.attrs["caption"] = caption
    return frame


def _caption(subject: str, results: Results, settings: Sequence[Setting], rows: list[Row]) -> str:
    """What was measured on what, and how the numbers are to be read."""
    images = max((row["images"] for row in rows if row["status"] == "ok"), default=0)
    caption = f"{subject} Measured on {images:,} images of {results.dataset}"
    for trained, which in (("no", "methods that draw random numbers"), ("yes", "trained methods")):
        seeds = sorted({setting["seeds"] for setting in settings if setting.get("trained") == trained} - {0, 1})
        if seeds:
            caption += f", {which} as means over {' or '.join(map(str, seeds))} seeds"
    caption += (
        "; GFLOPs are multiply-accumulates. Brackets are 95 % intervals: Wilson's for accuracies (%), Bonett and "
        "Price's for paired differences of the drops (percentage points) from the unreduced model on the same images."
    )
    if any("top1_reported" in row and not pd.isna(row["top1_reported"]) for row in rows):
        caption += (
            " Reported numbers are those of the DHTM paper, on the ImageNet validation set: accuracies on different "
            "images do not compare, drops do."
        )
    return caption


TABLES: dict[str, Callable[[Results], pd.DataFrame]] = {
    "table1": table1,
    "table2": table2,
    "results": results_table,
}
"""What `save` writes, by name."""


def save(results: Results, folder: Path, only: Sequence[str] | None = None) -> list[Path]:
    """Writes tables as Markdown, CSV and LaTeX and gives the paths.

    The files of table `results` are named `results_table`, so that they can stand in a results folder.

    Args:
        results: opened results folders.
        folder: created if missing.
        only: names in `TABLES`; None writes every table that can be made (`unavailable` says which cannot, and why).

    Raises:
        InputError: for an unknown name, or if a table that was named cannot be made.
    """
    for name in only or ():
        if name not in TABLES:
            raise InputError(f"there is no table '{name}'{nearest(name, list(TABLES))}; known are {', '.join(TABLES)}.")
    wanted = [name for name in TABLES if unavailable(name, results) is None] if only is None else only
    frames = {name: TABLES[name](results) for name in wanted}
    paths = []
    for name, frame in frames.items():
        for kind in KINDS:
            paths.append(folder / f"{'results_table' if name == 'results' else name}.{kind}")
            write_text(paths[-1], render(name, frame, kind))
    return paths
