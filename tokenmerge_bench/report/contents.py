"""What a report says, from results folders and profiles alone: everything in words and numbers, nothing of the page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tokenmerge_bench import tables
from tokenmerge_bench.contests import contests, pairs_table
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.figures.style import Look, looks
from tokenmerge_bench.profiles import Profile, is_profile, open_profiles
from tokenmerge_bench.rendering import LAYOUTS, render, shown
from tokenmerge_bench.report.answers import Answer, Verdict, answers, tracks, verdicts
from tokenmerge_bench.report.caveats import caveats
from tokenmerge_bench.report.charts import Plot
from tokenmerge_bench.report.gallery import Sample, samples
from tokenmerge_bench.report.origins import Origin, facts, image_words, origins, profile_command, subject
from tokenmerge_bench.report.plots import plots
from tokenmerge_bench.report.timings import Timings, profile_table
from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.statistics import Interval

AHEAD = {"results": ("model", "method", "budget", "top-1 (%)", "drop")}
"""Columns that a narrow screen shows without scrolling."""


@dataclass(frozen=True)
class DataTable:
    """A table: `cells` hold text of any origin where the column is `text`, and else numbers in which `**bold**` and a
    dagger are marks; `csv` is all of it."""

    name: str
    title: str
    caption: str
    headings: list[str]
    text: list[bool]
    cells: list[list[str]]
    legend: str
    notes: list[str]
    csv: str


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that stands on the page, in its order."""

    title: str
    subject: str
    facts: dict[str, str]
    answers: dict[str, list[Answer]]
    verdicts: list[Verdict]
    looks: dict[str, Look]
    plots: list[Plot]
    tables: list[DataTable]
    pairs: DataTable | None
    samples: list[Sample]
    failures: list[str]
    caveats: list[str]
    origins: list[Origin]
    profile_command: str
    command: str


def gather(folders: Sequence[Path], out: Path) -> Contents:
    """Reads folders of sweeps and of profiles and says what is in them.

    Args:
        folders: at least one of them a sweep's; sweeps of the same images, profiles of any hardware.
        out: where the report will be, for the command that makes it again.

    Raises:
        InputError: for folders that cannot be read or shown together, or if there is nothing but profiles.
    """
    timed = [folder for folder in folders if is_profile(folder)]
    swept = [folder for folder in folders if folder not in timed]
    if timed and not swept:
        raise InputError(
            f"'{timed[0]}' is a profile, and a report is about accuracy; give a folder that `tmbench sweep` or "
            "`tmbench run` wrote as well."
        )
    results = open_results(swept)
    profile = open_profiles(timed) if timed else None
    if not (results.summary["status"] == "ok").any():
        raise InputError(
            f"'{swept[0]}' has no finished point to report: all are failed, unreachable or missing; run the sweep "
            "again."
        )
    timings = Timings(profile)
    found = contests(results)
    everything = tables.results_table(results, found)
    losses = _losses(everything)
    held = tracks(results, found)
    pairs = pairs_table(found)
    drawn = plots(results, losses, timings)
    named = shlex.join(["tmbench", "report", *map(str, folders), "-o", str(out)])
    main = data_table("results", _ranked(everything))
    return Contents(
        title=f"Token reduction compared on {image_words(results)}",
        subject=subject(results),
        facts=facts(results, profile),
        answers=answers(held, timings),
        verdicts=verdicts(held, losses, timings),
        looks=named_looks(results, drawn),
        plots=drawn,
        tables=[main, *_published(results), *_timed(results, profile)],
        pairs=None if pairs.empty else data_table("pairs", _decided_first(pairs)),
        samples=samples(results),
        failures=main.notes,
        caveats=caveats(results, timings, found),
        origins=origins(folders),
        profile_command=profile_command(results, timings, folders, out),
        command=named,
    )


def named_looks(results: Results, drawn: Sequence[Plot]) -> dict[str, Look]:
    """The look of every method that is drawn, as it is shown; a trained one has that of the method."""
    by_label = looks(results)
    rows = pd.concat([frame[["method", "label"]] for plot in drawn for frame in (plot.settings, plot.reported)])
    return {name: by_label[label] for name, label in rows.drop_duplicates().itertuples(index=False)}


def data_table(name: str, frame: pd.DataFrame) -> DataTable:
    """A frame as a table of the page: a model that all rows share stands above it, and `AHEAD` before all else."""
    words = shown(name, frame, repeated=True)
    caption = str(frame.attrs.get("caption", ""))
    models = frame["model"].unique()
    if len(models) == 1:
        caption = f"{models[0]}. {caption}"
    first = int(len(models) == 1)  # every layout begins with the model
    ahead = AHEAD.get(name, words.headings)
    places = sorted(range(first, len(words.headings)), key=lambda place: words.headings[place] not in ahead)
    return DataTable(
        name,
        LAYOUTS[name].title,
        caption,
        [words.headings[place] for place in places],
        [words.text[place] for place in places],
        [[row[place] for place in places] for row in words.cells],
        words.legend,
        words.notes,
        render(name, frame, "csv"),
    )


def _ranked(everything: pd.DataFrame) -> pd.DataFrame:
    """Settings of a budget beside each other, the most accurate first; models and budgets in the order they had."""
    order = everything.assign(
        **{name: pd.factorize(everything[name])[0] for name in ("model", "budget")}, top1=-everything["top1"]
    ).sort_values(["model", "budget", "top1"], kind="stable")
    return everything.loc[order.index]


def _decided_first(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.sort_values("verdict", key=lambda verdict: verdict == "undecided", kind="stable")


def _published(results: Results) -> list[DataTable]:
    """The paper's tables that these results can fill, with reported and measured numbers side by side."""
    possible = [name for name in ("table1", "table2") if tables.unavailable(name, results) is None]
    frames = {name: tables.TABLES[name](results) for name in possible}
    return [data_table(name, frame) for name, frame in frames.items() if frame["top1_reported"].notna().any()]


def _timed(results: Results, profile: Profile | None) -> list[DataTable]:
    """What was measured of the models of these results; nothing where nothing was."""
    if profile is None:
        return []
    frame = profile_table(profile, list(results.summary["model"].unique()))
    return [] if frame.empty else [data_table("profile", frame)]


def _losses(everything: pd.DataFrame) -> dict[tuple[str, str, str], Interval]:
    """Points lost against the unreduced model, by model, method as shown and budget."""
    rows: list[dict[Any, Any]] = everything[everything["drop_low"].notna()].to_dict("records")
    return {
        (row["model"], row["method"], row["budget"]): Interval(row["drop"], row["drop_low"], row["drop_high"])
        for row in rows
    }
