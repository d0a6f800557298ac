"""The report: what it says, in numbers worked out by hand, and a page that is safe, small and the same every time."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Command, assert_refused
from made_profiles import base, cell, written
from made_results import DEIT, made, nothing, point, right, unreduced
from matplotlib.markers import MarkerStyle

from tokenmerge_bench.compare import compare, shown_name
from tokenmerge_bench.contests import contests
from tokenmerge_bench.figures import style
from tokenmerge_bench.report.answers import Answer, Verdict
from tokenmerge_bench.report.charts import shape, specification, still
from tokenmerge_bench.report.contents import Contents, DataTable, gather
from tokenmerge_bench.report.page import breakable, render
from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.tables import results_table

HISTORIC = Path(__file__).parent / "historic_results"
COMMITTED = Path(__file__).parent.parent / "experiments" / "results"
EVIL = "<script>alert(1)</script>"
TOKENS = {"0.7": "9 8 7", "0.5": "9 6 3"}
"""Token schedules by budget, by which times are found."""


def at(method: str, budget: str, hits: str, **more: Any) -> dict[str, Any]:
    """A point at a fraction of the unreduced FLOPs."""
    return point(method, budget, float(budget), hits, **{"tokens_per_block": TOKENS.get(budget, ""), **more})


def timed(method: str, kept: str, speedup: float, **more: Any) -> dict[str, Any]:
    """The time of such a point, with an interval of a tenth to either side."""
    return {**cell(method, float(kept), speedup, model=DEIT, tokens_per_block=TOKENS[kept]), **more}


def told(folder: Path, *points: dict[str, Any], profile: Sequence[dict[str, Any]] = ()) -> Contents:
    """What a report says of these points."""
    folders = [made(folder / "swept", *points).folders[0]]
    if profile:
        folders += written(folder / "timed", base(model=DEIT), *profile).folders
    return gather(folders, Path("report.html"))


def bonett_price(images: int) -> tuple[str, str]:
    """The interval, in points, of a lead by this many of 100 images that only one gets right.

    With one image of each kind added these are `images` + 1 against 1 of 102.
    """
    centre = images / 102
    margin = 1.959964 * math.sqrt(((images + 2) / 102 - centre**2) / 102)
    return f"{100 * (centre - margin):.2f}", f"{100 * (centre + margin):.2f}"


def answer(contents: Contents, question: str, track: int = 0) -> Answer:
    (found,) = [answers for asked, answers in contents.answers.items() if question in asked]
    return found[track]


def verdict(contents: Contents) -> Verdict:
    (found,) = contents.verdicts
    return found


def column(table: DataTable, heading: str) -> list[str]:
    return [row[table.headings.index(heading)] for row in table.cells]


@pytest.fixture(scope="module")
def close_results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One budget at which dhtm is ahead of tome by one image of 100, and both of random by many."""
    points = [at("dhtm", "0.7", right(80)), at("tome", "0.7", right(79)), at("random", "0.7", right(50))]
    return made(tmp_path_factory.mktemp("close") / "swept", unreduced(right(90)), *points)


@pytest.fixture(scope="module")
def close(close_results: Results) -> Contents:
    return gather(close_results.folders, Path("report.html"))


@pytest.fixture(scope="module")
def close_page(close: Contents) -> str:
    return render(close)


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_a_winner_is_named_with_its_lead_interval_and_adjusted_p(tmp_path: Path) -> None:
    points = [at("random", "0.7", right(50)), at("dhtm", "0.7", right(72)), at("tome", "0.7", right(60))]
    clear = told(tmp_path, unreduced(right(90)), *points)
    assert answer(clear, "wins").short == "dhtm"
    assert answer(clear, "wins").detail == "In front at the only budget."
    found = verdict(clear)
    assert (found.budget, found.winner, found.outcome) == ("30 % fewer FLOPs", "dhtm", "wins")
    assert found.top1 == "72.00 %"
    # 12 images that only dhtm gets: p = 2 / 2^12, the second smallest of three, which Holm counts twice.
    assert found.p == f"{2 * 2 / 2**12:.2g}"
    low, high = bonett_price(12)
    assert found.leads == [f"+12.00 [+{low}, +{high}] over tome"]
    assert f"12.00 points more than tome, the next (95 % interval {low} to {high})" in answer(clear, "much").detail
    assert answer(clear, "much").short == "dhtm by 12.00 points"
    assert answer(clear, "significant").short == "Yes"


def test_a_tie_is_called_a_tie_and_the_first_that_is_told_apart_is_named(close: Contents) -> None:
    assert answer(close, "wins").short == "No clear winner"
    assert (
        "dhtm and tome cannot be told from the best at the only budget. Behind: random." in answer(close, "wins").detail
    )
    assert answer(close, "much").short == "Undecided: 1.00 points"
    found = verdict(close)
    assert (found.winner, found.outcome, found.p) == ("dhtm", "not told apart from tome", "1")
    assert found.leads[0].endswith("over tome")
    assert "30.00 points more than random, the first that is told apart" in answer(close, "much").detail
    assert re.fullmatch(r"\+30\.00 \[\+\d\d\.\d\d, \+\d\d\.\d\d\] over random, p <0\.0001", found.leads[1])


def test_without_significance_the_number_of_images_that_it_would_take_is_told(
    close: Contents, close_results: Results
) -> None:
    needed = compare(close_results, "dhtm", "tome").pairs["images_needed"].iloc[0]
    found = answer(close, "significant")
    assert found.short == "No, but some are worse"
    assert "Significantly behind: random at 30 % fewer FLOPs." in found.detail
    assert "100 images cannot tell the best methods apart here" in found.detail
    assert needed == 783
    assert "If the difference seen is the true one, telling dhtm from tome at 30 % fewer FLOPs" in found.detail
    assert "would take about 780 images" in found.detail


def test_no_number_of_images_is_told_that_is_not_more_than_there_are(tmp_path: Path) -> None:
    # p = 2 / 2^8 = 0.008 alone, and 0.08 among 10 tests: one test would need 96 images, and a hundred leave a tie.
    points = [at("dhtm", "0.7", right(88)), *(at(f"other_{number}", "0.7", right(80)) for number in range(4))]
    found = told(tmp_path, unreduced(right(90)), *points)
    assert found.pairs is not None
    assert float(column(found.pairs, "images needed")[0]) < 100
    assert answer(found, "significant").detail == "100 images cannot tell the best methods apart here."


def test_methods_of_equal_accuracy_are_told_so(tmp_path: Path) -> None:
    points = [at(name, "0.7", right(80)) for name in ("dhtm", "tome")]
    found = told(tmp_path, unreduced(right(90)), *points)
    assert answer(found, "much").short == "dhtm and tome are equal"
    assert (verdict(found).winner, verdict(found).outcome) == ("dhtm and tome", "equally accurate")
    assert "80.00 % of the images right (the unreduced model 90.00 %): just as many as tome" in (
        answer(found, "much").detail
    )


@pytest.mark.parametrize(
    "points",
    [
        [],
        [nothing("dhtm", "0.7", "failed", "broken")],
        [point("dhtm", "k=0", 1.0, right(90)), point("random", "k=0", 1.0, right(90))],
    ],
    ids=["only unreduced", "all failed", "nothing reduced"],
)
def test_where_nothing_was_compared_the_report_says_so(tmp_path: Path, points: list[dict[str, Any]]) -> None:
    found = told(tmp_path, unreduced(right(90)), *points)
    assert list(found.answers) == ["Which method wins?"]
    assert answer(found, "wins").short == "Nothing to rank"
    assert found.verdicts == []
    assert ("paired comparisons" in found.caveats[0]) == (found.pairs is not None)


def test_the_interval_of_an_accuracy_is_told_by_its_longer_side(tmp_path: Path) -> None:
    found = told(tmp_path, unreduced(right(100)), at("dhtm", "0.7", right(100)))
    low = 100 * 100 / (100 + 1.959964**2)  # Wilson's where all are right; there is nothing above
    assert f"interval of an accuracy reaches up to {100 - low:.1f} points to a side" in found.caveats[0]


def test_a_chart_without_methods_has_no_legend_and_a_size(tmp_path: Path) -> None:
    found = told(tmp_path, unreduced(right(90)))
    drawn = still(specification(found.plots[0], found.looks))
    assert re.search(r'viewBox="0 0 7\d\d 4\d\d"', drawn)


def test_when_everything_is_tied_no_method_is_told_apart(tmp_path: Path) -> None:
    points = [at(name, "0.7", right(80 - number)) for number, name in enumerate(("dhtm", "tome", "random"))]
    found = told(tmp_path, unreduced(right(90)), *points)
    assert verdict(found).outcome == "not told apart from all others"
    assert len(verdict(found).leads) == 1


def test_a_winner_at_some_budgets_and_another_at_others(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        unreduced(right(90)),
        at("dhtm", "0.7", right(80)),
        at("tome", "0.7", right(60)),
        at("dhtm", "0.5", right(50)),
        at("tome", "0.5", right(70)),
    )
    assert answer(found, "wins").short == "It depends on the budget"
    assert answer(found, "wins").detail == "In front: dhtm at 30 % fewer FLOPs, tome at 50 % fewer FLOPs."
    assert answer(found, "much").short == "dhtm by 20.00 points"
    assert [row.winner for row in found.verdicts] == ["dhtm", "tome"]
    assert answer(found, "significant").short == "Yes"


def test_a_lead_that_is_not_decided_is_not_told_as_one(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        unreduced(right(90)),
        *(at(name, "0.7", right(hits)) for name, hits in (("dhtm", 80), ("tome", 79), ("lotm", 50))),
        *(at(name, "0.6", right(hits)) for name, hits in (("dhtm", 50), ("tome", 51), ("lotm", 80))),
        *(at(name, "0.5", right(hits)) for name, hits in (("dhtm", 70), ("tome", 69), ("lotm", 40))),
    )
    assert answer(found, "wins").short == "It depends on the budget"
    assert answer(found, "much").short == "dhtm by 1.00 points, undecided"


def test_a_winner_that_is_tied_at_one_of_its_budgets(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        unreduced(right(90)),
        at("dhtm", "0.7", right(80)),
        at("tome", "0.7", right(79)),
        at("dhtm", "0.5", right(70)),
        at("tome", "0.5", right(50)),
    )
    assert answer(found, "wins").short == "dhtm"
    assert answer(found, "wins").detail == "In front at both budgets, and alone there at 1 of them."
    assert answer(found, "significant").short == "At 1 of 2 budgets"
    assert "ahead of all others at 50 % fewer FLOPs" in answer(found, "significant").detail
    assert answer(found, "much").short == "dhtm by 20.00 points"


def test_flops_that_differ_are_not_ranked_and_the_report_says_so(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        unreduced(right(90)),
        point("dhtm", "k=40", 0.7, right(80)),
        point("random", "k=40", 0.8, right(60)),
    )
    assert answer(found, "wins").short == "Nothing to rank"
    assert answer(found, "significant").short == "Not tested"
    assert verdict(found).outcome == "not ranked: FLOPs 14.3 % apart"
    assert found.pairs is None
    assert any("differ by more than 1 %" in caveat for caveat in found.caveats)


def test_a_method_alone_is_compared_with_the_unreduced_model(tmp_path: Path) -> None:
    found = told(tmp_path, unreduced(right(90)), at("dhtm", "0.7", right(80)))
    assert "Only dhtm has results here" in answer(found, "wins").detail
    assert answer(found, "much").short == "dhtm: 10.00 points lost"
    assert verdict(found).outcome == "alone here"
    low, high = bonett_price(10)
    assert verdict(found).loss == f"10.00 [{low}, {high}]"


def test_trained_methods_and_models_have_answers_of_their_own(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        unreduced(right(90)),
        at("dhtm", "0.7", right(80)),
        at("tome", "0.7", right(60)),
        at("tome", "0.7", right(85), trained="yes"),
        at("sit", "0.7", right(50), trained="yes"),
        unreduced(right(50), model="odd_vit"),
        at("dhtm", "0.7", right(40), model="odd_vit"),
        at("tome", "0.7", right(20), model="odd_vit"),
    )
    winners = {held.where: held.short for held in found.answers["Which method wins?"]}
    assert winners == {
        f"{DEIT}, off the shelf": "dhtm",
        f"{DEIT}, trained methods": "tome (trained)",
        "odd_vit, off the shelf": "dhtm",
    }
    assert any("Trained methods have had training" in caveat for caveat in found.caveats)


def test_the_unreduced_budget_k_0_is_no_contest(tmp_path: Path) -> None:
    points = [point(name, "k=0", 1.0, right(90)) for name in ("dhtm", "random")]
    found = told(tmp_path, unreduced(right(90)), *points, at("dhtm", "0.7", right(80)), at("random", "0.7", right(60)))
    assert [row.budget for row in found.verdicts] == ["30 % fewer FLOPs"]


def test_the_winners_are_those_that_the_tables_mark() -> None:
    results = open_results([COMMITTED / "photographs" / "table2"])
    table = results_table(results)
    marked = {(row["model"], row["method"]) for row in table[table["best"] | table["tied"]].to_dict("records")}
    found = contests(results)
    assert {(contest.model, shown_name(leader)) for contest in found for leader in contest.leaders} == marked
    assert sum(len(contest.pairs) for contest in found) == 2 * 15


# --- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speedups", "short"),
    [
        ({"dhtm": [1.3, 1.2]}, "Yes"),
        ({"dhtm": [1.3, 0.5]}, "Sometimes: 1 of 2 timings"),
        ({"dhtm": [1.05, 0.5]}, "Cannot be told"),
        ({"dhtm": [0.8, 0.5]}, "No, slower"),
    ],
)
def test_whether_the_winner_is_faster(tmp_path: Path, speedups: dict[str, list[float]], short: str) -> None:
    rows = [
        timed(name, "0.7", speedup, batch_size=batch)
        for name, values in speedups.items()
        for batch, speedup in zip((1, 32), values, strict=True)
    ]
    points = [unreduced(right(90)), at("dhtm", "0.7", right(80)), at("tome", "0.7", right(60))]
    found = told(tmp_path, *points, profile=[*rows, base(model=DEIT, batch_size=1)])
    assert answer(found, "faster").short == short
    best = speedups["dhtm"][0]
    said = f"{best:.2f} [{0.9 * best:.2f}, {1.1 * best:.2f}]"
    assert f"on Some GPU, batch 1, bfloat16, eager: dhtm {said} at 0.7" in answer(found, "faster").detail
    assert verdict(found).speeds[0] == f"{said}: batch 1, bfloat16, eager"
    assert found.profile_command == ""


def test_of_tied_methods_every_ones_speed_is_told(tmp_path: Path) -> None:
    points = [unreduced(right(90)), at("dhtm", "0.7", right(80)), at("tome", "0.7", right(79))]
    found = told(tmp_path, *points, profile=[timed("dhtm", "0.7", 0.5), timed("tome", "0.7", 1.5)])
    assert answer(found, "faster").short == "Sometimes: 1 of 2 timings"
    assert "tome 1.50 [1.35, 1.65] at 0.7, dhtm 0.50 [0.45, 0.55] at 0.7" in answer(found, "faster").detail


def test_of_many_ways_the_verdict_has_the_fastest_and_the_slowest(tmp_path: Path) -> None:
    points = [unreduced(right(90)), at("dhtm", "0.7", right(80))]
    ways = [timed("dhtm", "0.7", speedup, batch_size=batch) for batch, speedup in enumerate((1.2, 1.4, 1.0, 1.1), 1)]
    assert verdict(told(tmp_path, *points, profile=ways)).speeds == [
        "1.40 [1.26, 1.54]: batch 2, bfloat16, eager",
        "1.00 [0.90, 1.10]: batch 3, bfloat16, eager",
        "the fastest and the slowest of 4 ways",
    ]


def test_times_belong_to_settings_of_the_same_tokens_whatever_their_budget_is_called(tmp_path: Path) -> None:
    points = [unreduced(right(90)), at("dhtm", "0.7", right(80)), at("dhtm", "0.5", right(60))]
    rows = [timed("dhtm", "0.7", 1.5, budget="k=43"), timed("dhtm", "0.5", 2.0, tokens_per_block="1 2 3")]
    found = told(tmp_path, *points, profile=rows)
    assert [len(row.speeds) for row in found.verdicts] == [1, 0]
    assert f"Not timed: dhtm at 0.5 on {DEIT}." in found.caveats
    assert f"Timed, but with no accuracy in these results: dhtm at 0.5 on {DEIT}." in found.caveats


def test_without_a_profile_speed_is_not_measured_and_the_commands_that_do_are_given(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        unreduced(right(90), device="cuda", images_per_s=100.0),
        at("dhtm", "0.7", right(80), device="cuda", images_per_s=150.0),
        at("tome", "0.7", right(60), device="cuda", images_per_s=50.0),
        point("lotm", "k=40/20", 0.6, right(80), options="layers=all", device="cuda", images_per_s=200.0),
        point("dhtm", "3.26 GFLOPs", 0.65, right(70), device="cuda", images_per_s=200.0),
    )
    said = answer(found, "faster")
    assert said.short == "Not measured"
    assert "orders of magnitude" in said.detail
    assert re.findall(r"\d", said.detail) == []  # that clock may even have the sign wrong
    assert any("Speed was not measured" in caveat for caveat in found.caveats)
    profile, report = found.profile_command.split("\n")
    assert profile == (
        f"tmbench profile --models {DEIT} --methods dhtm,tome,lotm:layers=all --budgets 0.7 --gflops 3.26 --k 40/20 "
        "--device cuda --out results/speed"
    )
    assert report == f"tmbench report {tmp_path / 'swept'} results/speed -o report.html"
    assert [plot.axis for plot in found.plots] == ["FLOPs", "rough time of the sweep"]
    assert found.plots[1].settings["x"].tolist() == pytest.approx([1000 / 150, 5, 20, 5])


# --- charts -----------------------------------------------------------------------------------------------------------


def test_a_chart_over_flops_and_one_over_measured_time(tmp_path: Path) -> None:
    points = [unreduced(right(90)), *(at("dhtm", budget, right(80)) for budget in ("0.7", "0.5"))]
    rows = [timed("dhtm", "0.7", 1.25), timed("dhtm", "0.5", 2.0)]
    flops, time = told(tmp_path, *points, profile=rows).plots
    assert flops.settings["x"].tolist() == [0.7, 0.5]
    assert flops.settings[["curve", "band"]].all(axis=None)
    assert flops.unreduced[["x", "top1"]].to_numpy().tolist() == [[1.0, 90.0]]
    assert time.axis == "measured time: batch 32, bfloat16, eager"
    assert time.settings["x"].tolist() == pytest.approx([80, 50])
    assert time.settings["x_low"].tolist() == pytest.approx([80 / 1.1, 50 / 1.1])
    assert time.settings["x_high"].tolist() == pytest.approx([80 / 0.9, 50 / 0.9])
    assert time.settings["accuracy"].iloc[0].startswith("80.00 % [")
    assert "1.25 [1.12, 1.38] times as fast" in time.settings["cost"].iloc[0]


def test_single_settings_of_the_same_flops_stand_side_by_side_and_the_caption_says_so(close: Contents) -> None:
    drawn = close.plots[0]
    assert drawn.settings["x"].nunique() == 3
    assert (drawn.settings["x"] - 0.7).abs().max() < 0.01
    assert "side by side" in drawn.caption


def test_published_results_are_drawn_as_their_drop(tmp_path: Path) -> None:
    found = told(tmp_path, unreduced(right(90)), point("dhtm", "k=40", 0.9, right(80)))
    reported = found.plots[0].reported
    assert reported.loc[reported["x"] == 0.88, "top1"].tolist() == [pytest.approx(90 - (72.20 - 71.66))]
    assert [table.name for table in found.tables] == ["results", "table1"]
    assert "71.66" in column(found.tables[1], "top-1 reported")


def test_a_chart_says_in_words_what_it_shows(close: Contents) -> None:
    assert close.plots[0].alt == (
        f"Chart of {DEIT}: top-1 accuracy against GFLOPs per image (multiply-accumulates). dhtm 80.0 %, tome 79.0 %, "
        "random 50.0 %, unreduced 90.0 %. The numbers stand in the tables."
    )


def test_trained_curves_and_a_trained_unreduced_model_are_explained(tmp_path: Path) -> None:
    points = [at("dhtm", "0.7", right(80), trained="yes"), at("dhtm", "0.5", right(70), trained="yes")]
    found = told(tmp_path, unreduced(right(90)), unreduced(right(91), trained="yes"), *points)
    assert "the stars are the unreduced model, off the shelf and trained" in found.plots[0].caption
    assert "Curves of trained methods are dashed." in found.plots[0].caption


def test_methods_look_as_in_the_figures(close: Contents, close_results: Results, close_page: str) -> None:
    looks = style.looks(close_results)
    assert {name: close.looks[name] for name in looks} == looks
    for look in looks.values():
        assert f'd="{shape(look.marker)}"' in close_page


@pytest.mark.parametrize("marker", sorted({look.marker for look in style.METHODS.values()} - {"o"}) + list("*hpd8"))
def test_a_marker_has_matplotlibs_outline(marker: str) -> None:
    corners = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[-\d.e]+,[-\d.e]+", shape(marker))]
    outline = MarkerStyle(marker).get_path().transformed(MarkerStyle(marker).get_transform()).vertices
    assert np.asarray(corners) == pytest.approx(np.asarray(outline, dtype=float)[:-1] * [2, -2], abs=5e-3)
    assert max(abs(value) for corner in corners for value in corner) <= 1.5


# --- tables, failures, provenance -------------------------------------------------------------------------------------


def test_rows_of_tables_are_whole_so_that_they_can_be_sorted(close: Contents) -> None:
    main = close.tables[0]
    assert column(main, "method") == ["unreduced", "dhtm", "tome", "random"]
    assert main.headings[0] == "method"  # there is one model, named above
    assert main.caption.startswith(DEIT)
    assert close.pairs is not None
    assert column(close.pairs, "method A") == ["dhtm", "tome", "dhtm"]
    assert column(close.pairs, "verdict") == ["dhtm better", "tome better", "undecided"]
    csv = pd.read_csv(StringIO(close.pairs.csv))
    assert csv["difference"].tolist() == pytest.approx([30, 29, 1])


def test_results_are_ranked_within_a_budget(close: Contents) -> None:
    (results,) = [table for table in close.tables if table.name == "results"]
    budget, top1 = (results.headings.index(name) for name in ("budget", "top-1 (%)"))
    rows = [(row[budget], float(re.findall(r"[\d.]+", row[top1])[0])) for row in results.cells]
    budgets = list(dict.fromkeys(held for held, _ in rows))
    assert [held for held, _ in rows] == [held for held in budgets for row in rows if row[0] == held]
    for one in budgets:
        accuracies = [accuracy for held, accuracy in rows if held == one]
        assert accuracies == sorted(accuracies, reverse=True)
    assert max(sum(held == one for held, _ in rows) for one in budgets) > 1


def test_what_gave_no_number_is_told_with_its_reason(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        unreduced(right(90)),
        at("dhtm", "0.7", right(80)),
        nothing("tome", "0.7", "failed", "out of memory"),
        nothing("lotm", "0.2", "unreachable", "at least 0.5"),
    )
    assert found.failures == [
        f"Failed, out of memory: tome at 0.7 on {DEIT}.",
        f"Unreachable, at least 0.5: lotm at 0.2 on {DEIT}.",
    ]
    assert verdict(found).outcome == "alone here"


def test_every_folder_says_where_it_comes_from_and_how_to_redo_it(tmp_path: Path) -> None:
    folders = [COMMITTED / "photographs" / "table2", COMMITTED / "speed" / "at_0.7"]
    sweep, profile = gather(folders, tmp_path / "r.html").origins
    held = json.loads((folders[0] / "provenance.json").read_text(encoding="utf-8"))
    assert sweep.command == held["command"]
    assert sweep.title == "sweep: Table 2: all methods at 30 % fewer FLOPs"
    assert held["packages"]["torch"] in sweep.entries["versions"]
    assert held["subset"]["fingerprint"] in sweep.entries["choice of images"]
    assert "crop_pct 0.9" in sweep.entries["preprocessing"]
    assert json.loads(sweep.record) == held
    assert profile.command.startswith("tmbench profile ")


def test_merges_on_sample_images_are_shown_where_the_sweep_kept_them(close_page: str) -> None:
    found = gather([HISTORIC / "v2"], Path("r.html"))
    assert [sample.method for sample in found.samples] == ["dhtm", "tome:staged=true", "random"]
    assert found.samples[0].picture.startswith(b"RIFF")
    assert found.samples[0].text in render(found)
    assert "--examples" in close_page


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_command_writes_one_file_and_the_same_bytes_again(tmbench: Command, tmp_path: Path) -> None:
    made(tmp_path / "swept", unreduced(right(90)), at("dhtm", "0.7", right(80)), at("tome", "0.7", right(60)))
    done = tmbench("report", "swept", "-o", "new/report.html")
    assert (done.code, done.out, done.err) == (0, f"report  {Path('new/report.html')}\n", "")
    first = (tmp_path / "new" / "report.html").read_bytes()
    assert len(first) < 2e6
    assert tmbench("report", "swept", "-o", "new/report.html").code == 0
    assert (tmp_path / "new" / "report.html").read_bytes() == first
    assert b"tmbench report swept -o new/report.html" in first


def test_nothing_is_loaded_from_anywhere(close_page: str) -> None:
    text = close_page
    addresses = re.findall(r'\s(?:src|href|action|srcset|poster|xlink:href)="([^"]*)"', text.partition("<script>")[0])
    assert addresses
    assert [a for a in addresses if not a.startswith(("data:", "#"))] == []
    assert "default-src 'none'" in unescape(text)
    assert "@import" not in text
    assert "url(" not in text.partition("</style>")[0]


def test_links_within_the_page_lead_somewhere(close_page: str) -> None:
    anchors = set(re.findall(r'href="#([^"]+)"', close_page))
    assert {"verdict", "table-results"} <= anchors <= set(re.findall(r'\sid="([^"]+)"', close_page))


def test_a_line_may_end_within_a_name_where_an_option_begins_or_much_follows() -> None:
    assert breakable("a:b=<c>: d") == "a:<wbr>b=<wbr>&lt;c&gt;: d"
    assert breakable(f"k_medoids on {DEIT}") == "k_medoids on deit_<wbr>tiny_<wbr>patch16_224"


def test_the_csv_of_a_table_is_in_the_page(close: Contents, close_page: str) -> None:
    (data,) = re.findall(r'download="results.csv" href="data:text/csv;base64,([^"]*)"', close_page)
    assert base64.b64decode(data).decode() == close.tables[0].csv


def test_names_of_users_are_text_wherever_they_stand(tmp_path: Path) -> None:
    odd = f"a\"b'c&{EVIL}"
    found = told(
        tmp_path / '"><img src=x onerror=alert(1)>',
        unreduced(right(90), model=odd, weights=EVIL),
        at(EVIL, "0.7", right(80), model=odd, weights=EVIL),
        at("tome", "0.7", right(60), model=odd, options=f"x={EVIL}"),
        nothing(EVIL, "0.5", "failed", f"{EVIL} `{EVIL}` **{EVIL}**", model=odd),
        profile=[timed(EVIL, "0.7", 1.2, model=odd, device=EVIL), base(model=odd, device=EVIL)],
    )
    assert answer(found, "wins").short == EVIL
    text = render(found)
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert len(re.findall("<script", text)) == len(re.findall("</script", text)) == 3
    data = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])[0]["model"] == odd


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_reported_is_refused(tmbench: Command, tmp_path: Path) -> None:
    made(tmp_path / "swept", unreduced(right(90)), at("dhtm", "0.7", right(80)))
    made(tmp_path / "failed", nothing("none", "1", "failed", "broken"))
    written(tmp_path / "timed", base(), cell("dhtm", 0.7, 1.2))
    (tmp_path / "a_file").write_text("")
    assert_refused(tmbench("report"), "no results folder was given")
    assert_refused(tmbench("report", "nowhere"), "'nowhere' does not exist")
    assert_refused(tmbench("report", "timed"), "'timed' is a profile", "accuracy")
    assert_refused(tmbench("report", "failed"), "'failed' has no finished point")
    assert_refused(tmbench("report", "swept", "timed", "timed"), "both timed")
    assert_refused(tmbench("report", "swept", "-o", "a_file/report.html"), "a_file")
    assert_refused(tmbench("report", "swept", "-o", "."), "'.'")
    kept = (tmp_path / "swept" / "results.csv").read_bytes()
    assert_refused(tmbench("report", "swept", "-o", "swept/results.csv"), "'.html'")
    assert (tmp_path / "swept" / "results.csv").read_bytes() == kept


def test_sweeps_of_different_images_are_refused_as_everywhere(tmbench: Command) -> None:
    one, other = COMMITTED / "photographs" / "table1", COMMITTED / "embedded" / "table2"
    assert_refused(tmbench("report", one, other), "different images")
