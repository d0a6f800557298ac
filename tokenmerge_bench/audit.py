"""The audit of the paper: what its numbers say about each other, and what our measurements say about them.

Three questions: which reading of the text explains the GFLOPs of Table 1 (`audit_flops`), whether tables and text agree
with themselves (`audit_claims`), and which reading loses as little accuracy as reported (`audit_accuracy`, from results
folders). `write` turns the answers into one document and its data; nothing in them is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tokenmerge_bench.audit_accuracy import (
    PLACE,
    VIEW,
    average_views,
    compare_accuracy,
    compare_orders,
    describe_images,
    fullest_views,
    rank_settings,
    read_outcomes,
)
from tokenmerge_bench.audit_claims import FAILS, HOLDS, OPEN, Paper, check_claims, short
from tokenmerge_bench.audit_flops import DESCRIBED, compare_gflops, possible_misprints, rank_readings, search_layers
from tokenmerge_bench.audit_products import show_products
from tokenmerge_bench.options import all_options, make_method
from tokenmerge_bench.registry import list_methods
from tokenmerge_bench.results import Results
from tokenmerge_bench.store import write_text

__all__ = ["Audit", "audit", "write"]

NEAREST = 3
"""Readings that the document shows of each model; all of them are in the CSV file."""


@dataclass(frozen=True, eq=False)
class Audit:
    """The answers, as tables; the functions that make them say what their columns are."""

    flops: pd.DataFrame
    """Every reading of every row of Table 1 (`compare_gflops`)."""
    readings: pd.DataFrame
    """The same, a row per model and reading (`rank_readings`)."""
    search: pd.DataFrame
    """The nearest of all choices of three blocks (`search_layers`)."""
    misprints: pd.DataFrame
    """Rows that a misprinted digit would explain (`possible_misprints`)."""
    arithmetic: pd.DataFrame
    """A verdict for every statement (`check_claims`)."""
    accuracy: pd.DataFrame
    """Points lost, measured and reported (`compare_accuracy`); empty without results."""
    views: pd.DataFrame
    """The same, averaged over views of the same images (`average_views`)."""
    images: pd.DataFrame
    """What the measurements rest on (`describe_images`)."""


def audit(results: Sequence[Results] = ()) -> Audit:
    """Checks the published numbers against themselves, against our counts, and against results folders.

    Args:
        results: opened folders with sweeps over `--k`; each holds one image set, shown in one way.

    Raises:
        InputError: if a published table lacks a row that a statement is about, or a folder lacks outcomes.
    """
    paper = Paper.load()
    flops = compare_gflops(paper.table1)
    outcomes = read_outcomes(results, paper.table1)
    accuracy = compare_accuracy(outcomes, paper.table1)
    return Audit(
        flops=flops,
        readings=rank_readings(flops),
        search=search_layers(paper.table1),
        misprints=possible_misprints(paper.table1, flops),
        arithmetic=check_claims(paper, flops),
        accuracy=accuracy,
        views=average_views(outcomes, paper.table1),
        images=describe_images(results, accuracy, paper.table1),
    )


def write(answers: Audit, folder: Path, results: Sequence[Results] = ()) -> list[Path]:
    """Writes reproduction.md and the tables behind it, audit_*.csv, but for those without any row.

    The tables and figures that `results` were made for are shown too, the pictures below `folder`/figures.

    Returns:
        The files, the document first.
    """
    tables = {
        "flops": answers.flops,
        "arithmetic": answers.arithmetic,
        "accuracy": answers.accuracy,
        "views": answers.views,
    }
    contents = {folder / "reproduction.md": _document(answers, show_products(results, folder))}
    for name, table in tables.items():
        if len(table):
            contents[folder / f"audit_{name}.csv"] = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    for path, text in contents.items():
        write_text(path, text)
    return list(contents)


# --- the document -----------------------------------------------------------------------------------------------------


def _document(answers: Audit, products: list[str]) -> str:
    parts = [_introduction(), products, _gflops(answers), _statements(answers.arithmetic), _accuracy(answers)]
    return "\n".join(line for part in parts for line in part)


def _introduction() -> list[str]:
    return [
        "# The DHTM paper's numbers, checked",
        "",
        "Built by `tmbench audit`; every number and every verdict below is computed when it is written.",
        "",
        "* **reported**: printed in K. Haroun et al., *Dynamic Hierarchical Token Merging for Vision Transformers*, "
        "VISAPP 2025.",
        "* **computed**: our own count of multiply-accumulates for the same network and the same k, in G (1e9).",
        "* **measured**: accuracy in our own results folders.",
        "",
    ]


def _gflops(answers: Audit) -> list[str]:
    reduced = answers.flops[answers.flops["k"] > 0]
    return [
        "## Which blocks, and where in them?",
        "",
        'Table 1 merges k tokens in each of "layers 4, 7, 11", without saying whether they are counted from 0 or from '
        "1, nor where in a layer. Each reading takes other GFLOPs, so those printed tell them apart. Here blocks are "
        "counted from 0. `pre` is before a block, `mid` between its attention and its MLP, `post` after it, which is "
        f"`pre` of the next one. Taken at its word and counted from 1, the text says {DESCRIBED.blocks} "
        f"{DESCRIBED.position}. A row is explained if its residual (reported minus computed) is within the rounding of "
        "the printed number plus what the two counts of the unreduced model differ by, which no reading can change.",
        "",
        *(f"* {_conclusion(answers, model)}" for model in answers.readings["model"].unique()),
        "",
        "The nearest readings of each model by their largest residual, and the one described:",
        "",
        *_table(_shown_readings(answers.readings)),
        "",
        "Row by row, with the reading that explains most of the model's rows:",
        "",
        *_table(_row_by_row(group, answers) for _, group in reduced.groupby(["model", "k"], sort=False)),
        "",
        *_not_applicable(answers.flops),
        "",
    ]


def _conclusion(answers: Audit, model: str) -> str:
    ranked = answers.readings[answers.readings["model"] == model]
    best = _most_explained(ranked)
    rows = answers.flops[(answers.flops["model"] == model) & (answers.flops["k"] > 0)]
    never = [f"k={k}" for k, group in rows.groupby("k") if not group["explained"].any()]
    search = answers.search[answers.search["model"] == model].iloc[0]
    if best["explained"] == best["rows"]:
        found = f"{_reading(best)} explains every row and is at most {best['max_residual']:.4f} G off."
    else:
        found = (
            f"no reading explains every row. {_reading(best)} explains most, {best['explained']} of {best['rows']}, "
            f"and misses k = {best['unexplained']} by up to {best['max_residual']:.2f} G."
        )
        for name, measure in (("largest residual", "max_residual"), ("mean residual", "mean_residual")):
            nearest = ranked.sort_values(measure, kind="stable").to_dict("records")[0]
            if _reading(nearest) != _reading(best):
                found += f" By the {name}, {_reading(nearest)} is nearest ({nearest[measure]:.4f} G)."
    if never:
        found += f" No reading at all explains {', '.join(never)}."
    found += (
        f" Of all {search['schedules']} choices of three blocks, before or inside them, the nearest "
        f"({search['layers']} {search['position']}) is up to {search['max_residual']:.4f} G off."
    )
    misprints = answers.misprints[answers.misprints["model"] == model].to_dict("records")
    if misprints:
        changes = ", ".join(
            f"{row['instead']:.2f} instead of {row['reported']:.2f} at k={row['k']}" for row in misprints
        )
        found += f" Were they misprints of one digit, {changes}, {_reading(best)} would explain all (a hypothesis)."
    return f"**{short(model)}**: {found}"


def _most_explained(ranked: pd.DataFrame) -> Mapping[Any, Any]:
    """The reading that explains most rows; among equals the nearest."""
    return ranked.sort_values("explained", ascending=False, kind="stable").to_dict("records")[0]


def _reading(row: Mapping[Any, Any]) -> str:
    return f"{row['layers']} {row['position']} ({row['layers_from_1']} counted from 1)"


def _shown_readings(readings: pd.DataFrame) -> list[dict[str, str]]:
    place = readings.groupby("model", sort=False).cumcount()
    described = (readings["layers"] == DESCRIBED.blocks) & (readings["position"] == DESCRIBED.position)
    return [
        {
            "model": short(row["model"]),
            "blocks": row["layers"],
            "counted from 1": row["layers_from_1"],
            "position": row["position"] + (" (described)" if is_described else ""),
            "largest residual, G": f"{row['max_residual']:.4f}",
            "mean, G": f"{row['mean_residual']:.4f}",
            "rows explained": f"{row['explained']} of {row['rows']}",
            "not explained, k": row["unexplained"],
        }
        for row, is_described, rank in zip(readings.to_dict("records"), described, place, strict=True)
        if rank < NEAREST or is_described
    ]


def _row_by_row(group: pd.DataFrame, answers: Audit) -> dict[str, str]:
    """One row of Table 1 under the reading described and the model's best one, and all readings that explain it."""
    first = group.iloc[0]
    best = _most_explained(answers.readings[answers.readings["model"] == first["model"]])
    listed = group["layers"] + " " + group["position"]
    explaining = listed[group["explained"] & ~group["same_as"].isin(listed)]  # each schedule once
    return {
        "model": short(first["model"]),
        "k": str(first["k"]),
        "reported, G": f"{first['reported']:.2f}",
        "described: computed (residual)": _computed(group, DESCRIBED.blocks, DESCRIBED.position),
        "best": f"{best['layers']} {best['position']}",
        "best: computed (residual)": _computed(group, best["layers"], best["position"]),
        "explained by": ", ".join(explaining) or "none",
    }


def _computed(group: pd.DataFrame, layers: str, position: str) -> str:
    row = group[(group["layers"] == layers) & (group["position"] == position)].iloc[0]
    return f"{row['computed']:.4f} ({row['residual']:+.4f})"


def _not_applicable(flops: pd.DataFrame) -> list[str]:
    notes = flops.loc[flops["note"] != "", ["layers", "position", "note"]].drop_duplicates().to_dict("records")
    return [f"{row['layers']} {row['position']} is {row['note']}." for row in notes]


def _statements(arithmetic: pd.DataFrame) -> list[str]:
    counts = {verdict: int((arithmetic["verdict"] == verdict).sum()) for verdict in (FAILS, HOLDS, OPEN)}
    lines = [
        "## Do tables and text agree with themselves?",
        "",
        f"Of {len(arithmetic)} statements of the text and properties that correct tables have, {counts[HOLDS]} hold, "
        f"{counts[FAILS]} do not, and {counts[OPEN]} cannot be checked from what is printed. Margins are differences "
        "of top-1 in points.",
        "",
    ]
    sections = (
        (FAILS, "Does not hold", "recomputed"),
        (HOLDS, "Holds", "recomputed"),
        (OPEN, "Cannot be checked", "what can be said"),
    )
    for verdict, heading, column in sections:
        rows = arithmetic[arithmetic["verdict"] == verdict].to_dict("records")
        cells = [{"statement": row["claim"], "where": row["where"], column: row["recomputed"]} for row in rows]
        lines += [f"### {heading}", "", *_table(cells), ""]
    return lines


def _accuracy(answers: Audit) -> list[str]:
    lines = ["## Which reading loses as little accuracy as reported?", ""]
    if answers.accuracy.empty:
        return [
            *lines,
            "Not measured: no results folder with finished points at one of the paper's k was given. Run the "
            "experiments `placement` and `averaging_attention` (`tmbench run NAME --dataset imagenet/val`) and give "
            "their folders to `tmbench audit`.",
            "",
        ]
    shown = fullest_views(answers.accuracy)
    lines += [
        "Top-1 points lost against the unreduced model on the same images, with the 95 % interval of the paired "
        "difference; negative numbers are gains, several seeds are averaged. The measured losses are of the images "
        "and weights named below, the reported ones of ImageNet's validation images and the paper's weights. A setting "
        "is excluded at a k where the reported drop is outside its interval. With few images an interval excludes "
        "little, so a setting that is not excluded need not be the one that was used; and over several k, an interval "
        "of the right one may miss by chance. The settings that lose least stand first.",
        "",
        *_defaults(shown["setting"]),
    ]
    if len(answers.views):
        lines += [_about_views(), ""]
    for _, losses in shown.groupby(PLACE, sort=False):
        lines += _one_model(losses, answers)
    return lines + _orders(compare_orders(shown))


def _defaults(settings: Iterable[str]) -> list[str]:
    """What a setting leaves unsaid, of the methods that are installed here."""
    known = list_methods()
    used = sorted({setting.partition(":")[0] for setting in settings} & set(known))
    lines = ["Settings are written as on the command line. What they leave out, with blocks counted from 0:", ""]
    for name in used:
        values = json.loads(all_options(make_method(name, {})))
        options = ", ".join(f"{key}={str(value).lower()}" for key, value in values.items())
        lines.append(f"* `{name}`: {options}")
    return [*lines, ""] if used else []


def _about_views() -> str:
    return (
        "Where the same images were evaluated in several views (crops, for instance), the first table is of the view "
        "with most settings, and a second one has means over all views. Why: a loss of a few points rests on a few "
        "images that the reduction tips over, in another crop it tips over others, and the mean averages part of this "
        "noise away. What it cannot do: views of the same photographs are not new photographs. Its intervals are over "
        "images alone, each with its mean over views and seeds, and a mean over crops stands beside a drop that was "
        "reported of one."
    )


def _one_model(losses: pd.DataFrame, answers: Audit) -> list[str]:
    """One place: the losses in its fullest view, then the means over all of its views."""
    view = losses[[*PLACE, *VIEW]].drop_duplicates()
    described = view.merge(answers.images).to_dict("records")[0]
    lines = [
        f"### {short(described['model'])}, {described['n_images']:,.0f} images of {described['dataset']}",
        "",
        _origin(described),
        "",
        *_table(_losses(losses)),
        "",
        _standing(losses),
        "",
    ]
    means, each, views = (view[PLACE].merge(table) for table in (answers.views, answers.accuracy, answers.images))
    if len(views) > 1:
        lines += _views(means, each.sort_values(VIEW), views.sort_values(VIEW))
    return lines


def _origin(described: Mapping[Any, Any]) -> str:
    size, choice = described["input_size"].replace(" ", "x"), described["images"].rpartition("/")[2]
    text = (
        f"Weights {described['weights_file']} in {described['dtype']}; input {size}, crop {described['crop_pct']}, "
        f"{described['interpolation']}; choice of images {choice}. Unreduced top-1: measured {described['top1']:.2f} % "
        f"({described['top1_low']:.2f} to {described['top1_high']:.2f})"
    )
    if pd.notna(described["reported_top1"]):
        return f"{text}, reported {described['reported_top1']:.2f} %."
    return f"{text}; nothing was reported of this model."


def _views(means: pd.DataFrame, each: pd.DataFrame, views: pd.DataFrame) -> list[str]:
    """The means over the views of one place; `each` has the losses behind them, in the order of `views`."""
    differing = [f"{name} {' / '.join(views[name])}" for name in VIEW if views[name].nunique() > 1]
    unreduced = " / ".join(f"{top1:.2f}" for top1 in views["top1"])
    told = f"{len(views)} views, {', '.join(differing)} (unreduced top-1 {unreduced} %)"
    if means.empty:
        return [f"There are {told}, but no setting was evaluated at the same k in all of them.", ""]
    return [
        f"Mean over {told}, of what was evaluated in all of them; below each mean, the views in this order:",
        "",
        *_table(_losses(means, each)),
        "",
        _standing(means),
        "",
    ]


def _losses(losses: pd.DataFrame, each: pd.DataFrame | None = None) -> list[dict[str, str]]:
    """The reported drops, then a row per setting, least loss first; with the loss in `each` view below it if given."""
    settings = rank_settings(losses).to_dict("records")
    first, drops = settings[0], losses.set_index("k")["reported_lost"].sort_index()

    def row(name: str, cells: Mapping[Any, str], mean: str = "", excluded: str = "") -> dict[str, str]:
        columns = {"setting": name, **{f"k={k}": cells.get(k, "") for k in drops.index.unique()}}
        if first["ks"]:
            columns[f"mean of k={first['ks']}"] = mean
        if _has_reported(losses):
            columns["excluded at k"] = excluded
        return columns

    reported = {k: f"**{drop:.2f}**" for k, drop in drops.items()}
    rows = [row(f"reported, {short(losses['reported_model'].iloc[0])}", reported, f"**{first['mean_reported']:.2f}**")]
    for setting in settings:
        own = losses[losses["setting"] == setting["setting"]].to_dict("records")
        seeds = max(cell["seeds"] for cell in own)
        name = f"measured, `{setting['setting']}`" + (f", {seeds} seeds" if seeds > 1 else "")
        cells = {
            cell["k"]: f"{_points(cell['lost'])} ({_points(cell['low'])} to {_points(cell['high'])})" for cell in own
        }
        rows.append(row(name, cells, _points(setting["mean_lost"]), setting["excluded_at"] or "none"))
        if each is not None:
            by_k = each[each["setting"] == setting["setting"]].groupby("k")["lost"]
            rows.append(row("each view", {k: " / ".join(_points(lost, 1) for lost in part) for k, part in by_k}))
    return rows


def _points(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0:.{digits}f}"  # adding 0 takes the sign off a zero


def _has_reported(losses: pd.DataFrame) -> bool:
    """Whether the drops beside these losses are of the same model."""
    return bool((losses["model"] == losses["reported_model"]).all())


def _standing(losses: pd.DataFrame) -> str:
    if not _has_reported(losses):
        return (
            f"The drops of {short(losses['reported_model'].iloc[0])} stand above for their size alone: none was "
            "reported of this model, so nothing is excluded."
        )
    settings = rank_settings(losses)
    kept = settings.loc[settings["compatible"].astype(bool), "setting"]
    return (
        f"Not excluded at any k that was evaluated, {len(kept)} of {len(settings)} settings: "
        f"{', '.join(f'`{setting}`' for setting in kept) or 'none'}."
    )


def _orders(orders: pd.DataFrame) -> list[str]:
    if orders.empty:
        return []
    lines = ["### Do the models order the settings alike?", ""]
    for row in orders.to_dict("records"):
        lines.append(
            f"* {short(row['model'])} and {short(row['other'])} on {row['dataset']}: Spearman's rho of the mean losses "
            f"at k={row['ks']} is {row['rho']:.2f} over the {row['settings']} settings that both have (1: the same "
            "order, 0: unrelated, -1: reversed)."
        )
    return [*lines, ""]


def _table(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """A Markdown table with the keys of the first row as its head."""
    cells = list(rows)
    if not cells:
        return ["None."]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
