"""What a terminal is shown: tables that fit, and how the points stand while a sweep runs."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress
from sweeping import TINY, experiment, run

from tokenmerge_bench import live
from tokenmerge_bench.budgets import Budget, Solution, Solver
from tokenmerge_bench.models import build_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.points import Point
from tokenmerge_bench.sheets import Column, Sheet
from tokenmerge_bench.standings import Standings
from tokenmerge_bench.store import BatchOutcomes, PointOutcomes
from tokenmerge_bench.terminal import decorated, redrawn, stdout

SHEET = Sheet(
    "title",
    [
        Column("method", least=8),
        Column("model", rank=3),
        Column("text", least=10, rank=1),
        Column("top-1 %", number=True),
        Column("p adjusted", number=True, rank=2),
    ],
    [
        ["dhtm:connectivity=4", "tiny", "some words in a row", "93.25", "0.001"],
        ["dhtm:connectivity=4", "tiny", "few", "9.5", "0.01"],
        ["[red]tome", "tiny", "", "100.00", "1"],
    ],
    starts=(2,),
    caption="caption",
)


def printed(renderable: Any, width: int, height: int = 24, **settings: Any) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, color_system=None, **settings)
    console.print(renderable)
    return file.getvalue().splitlines()


# --- tables -----------------------------------------------------------------------------------------------------------


def test_columns_that_only_say_something_together_are_left_out_together() -> None:
    columns = [Column("budget"), *(Column(f"only {name} right", number=True, rank=1) for name in ("dhtm", "tome"))]
    sheet = Sheet("title", columns, [["0.7", "5", "3"], ["0.5", "8", "4"]])
    assert "dhtm" in " ".join(printed(sheet, 40, force_terminal=True))
    lines = printed(sheet, 25, force_terminal=True)
    assert not any("only" in line for line in lines if line.startswith("│"))
    said = " ".join(line.strip() for line in lines[-4:])
    assert "Left out for want of room: only dhtm right, only tome right." in said


def test_where_there_is_room_everything_is_shown() -> None:
    assert printed(SHEET, 100, force_terminal=True) == [
        "title",
        "╭─────────────────────┬───────┬─────────────────────┬─────────┬──────────╮",
        "│                     │       │                     │         │        p │",
        "│ method              │ model │ text                │ top-1 % │ adjusted │",
        "├─────────────────────┼───────┼─────────────────────┼─────────┼──────────┤",
        "│ dhtm:connectivity=4 │ tiny  │ some words in a row │   93.25 │    0.001 │",
        "│                     │ tiny  │ few                 │     9.5 │     0.01 │",
        "├─────────────────────┼───────┼─────────────────────┼─────────┼──────────┤",
        "│ [red]tome           │ tiny  │                     │  100.00 │        1 │",
        "╰─────────────────────┴───────┴─────────────────────┴─────────┴──────────╯",
        "caption",
    ]


def test_a_pipe_gets_markdown_in_which_every_row_has_its_name() -> None:
    assert [line for line in printed(SHEET, 100) if line.strip()] == [
        "title",
        "| method              | model | text                | top-1 % | p adjusted |",
        "|---------------------|-------|---------------------|---------|------------|",
        "| dhtm:connectivity=4 | tiny  | some words in a row |   93.25 |      0.001 |",
        "| dhtm:connectivity=4 | tiny  | few                 |     9.5 |       0.01 |",
        "| [red]tome           | tiny  |                     |  100.00 |          1 |",
        "caption",
    ]


def test_a_column_that_says_the_same_everywhere_goes_above_and_others_are_named_below() -> None:
    lines = printed(SHEET, 44, force_terminal=True)
    assert lines[:2] == ["title", "model: tiny"]
    assert " ".join(" ".join(lines[-2:]).split()) == "Left out for want of room: p adjusted. --json has all."
    assert any("93.25" in line for line in lines)
    assert "0.001" not in " ".join(lines)


@given(st.integers(28, 120), st.booleans())
def test_numbers_are_never_broken_and_nothing_is_cut(width: int, terminal: bool) -> None:
    lines = printed(replace(SHEET, title="", caption=""), width, force_terminal=terminal)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for number in ("93.25", "9.5", "100.00"):
        assert re.search(rf"[│|] +{re.escape(number)} [│|]", text)
    cells = "".join(re.split(r"[│|]", line)[1].strip() for line in lines if line[:1] in "│|" and "│" in line)
    assert not terminal or cells.startswith("methoddhtm:connectivity=4[red]tome")


# --- where colours and lines are wanted -------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "screen", "wanted", "redrawable"),
    [
        ({"TERM": "xterm"}, True, True, True),
        ({"TERM": "xterm"}, False, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False, True),
        ({"TERM": "dumb"}, True, False, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, True, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False, False),
    ],
)
def test_when_there_are_colours_and_lines(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], screen: bool, wanted: bool, redrawable: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = Screen() if screen else io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    console = stdout()
    assert decorated(Console()) == wanted
    assert redrawn(Console()) == redrawable
    console.print(SHEET)
    console.print("[bold red]x[/]")
    assert ("╭" in file.getvalue(), "\x1b" in file.getvalue()) == (wanted, wanted)


# --- how points stand -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solution() -> Solution:
    return Solver(build_model(TINY)).solve(parse_method("dhtm"), Budget("k", "6"))


def points(
    solution: Solution, methods: list[str], budgets: list[str], models: int = 1, seeds: int = 1
) -> Iterator[Point]:
    """The points of models `m0`, `m1`, ...: the unreduced one, and methods at budgets."""
    for model in (f"m{number}" for number in range(models)):
        yield Point(model, "w", "f", None, Budget("fraction", "1"), 0, solution)
        for method in methods:
            for budget in budgets:
                for seed in range(seeds):
                    yield Point(model, "w", "f", parse_method(method), Budget("fraction", budget), seed, solution)


def told(standings: Standings, right: int, of: int) -> None:
    """Lets all points that run see another batch."""
    ranks = [0] * right + [3] * (of - right)
    seen = {name: PointOutcomes([], ranks, 0.0) for name, one in standings.by_point.items() if not one.point.obstacle}
    standings.count(BatchOutcomes("m", 0, [], [], {n: o for n, o in seen.items() if n not in standings.failures}))


def board(standings: Standings, width: int = 80, height: int = 24) -> list[str]:
    progress = Progress()
    progress.add_task("")
    shown = live.Board(progress)
    shown.follow(standings)
    first, *others = printed(shown, width, height, force_terminal=True)
    assert "%" in first
    return others


def test_accuracy_so_far_with_how_sure_it_is(solution: Solution) -> None:
    standings = Standings(points(solution, ["dhtm", "random"], ["0.7", "0.5"], seeds=2), 40, {})
    assert board(standings)[0].strip() == "top-1 % on 40 images: none yet"
    assert board(standings)[2].split() == ["0.7", "0.5"]
    assert board(standings)[3].split() == ["dhtm", "…", "…"]
    told(standings, 9, 10)
    assert [line.rstrip() for line in board(standings)] == [
        "top-1 % so far, on 10 of 40 images: ± 19.3 or less (95 %)",  # Wilson's for 9 of 10 is 59.6 to 98.2
        "m0, unreduced 90.0",
        "           0.7     0.5",
        "dhtm      90.0    90.0",
        "random    90.0    90.0",
    ]
    told(standings, 15, 30)
    assert board(standings)[0].strip() == "top-1 % on 40 images"
    assert board(standings)[3].split() == ["dhtm", "60.0✓", "60.0✓"]


def test_points_that_are_done_failed_or_never_ran(solution: Solution) -> None:
    chosen = list(points(solution, ["dhtm", "random"], ["0.7", "0.5"]))
    chosen[2] = replace(chosen[2], solution=None, reason="out of reach")
    failures: dict[str, str] = {}
    standings = Standings(chosen, 100, failures)
    standings.count_whole(chosen[1].id, 100, 87.5)
    failures[chosen[3].id] = "RuntimeError: no"
    rows = [line.split() for line in board(standings)]
    assert rows[-2:] == [["dhtm", "88.0✓", "-"], ["random", "failed", "…"]]


def test_what_was_counted_before_is_left_alone(solution: Solution) -> None:
    chosen = list(points(solution, ["dhtm"], ["0.7"]))
    standings = Standings(chosen, 100, {})
    standings.count(
        BatchOutcomes("m", 0, [], [], {point.id: PointOutcomes([], [0, 1], 0.0) for point in chosen}),
        but={chosen[0].id},
    )
    assert [(one.seen, one.right) for one in standings.by_point.values()] == [(0, 0), (2, 1)]


@pytest.fixture(scope="module")
def many(solution: Solution) -> Standings:
    """13 methods at 16 budgets on 4 models."""
    methods = [f"dhtm:layers={block}" for block in range(12)] + ["dhtm:averaging=plain:position=post:feature=keys"]
    budgets = [f"0.{number}" for number in range(10, 26)]
    standings = Standings(points(solution, methods, budgets, models=4), 1000, {})
    told(standings, 30, 64)
    return standings


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 10), (40, 8)])
def test_any_number_of_points_fits_and_what_does_not_is_counted(many: Standings, width: int, height: int) -> None:
    lines = board(many, width, height)
    assert len(lines) < height - 1
    assert max(map(len, lines)) <= width
    shown_models = sum(bool(re.match(r"m\d,", line)) for line in lines)
    shown_rows = sum(line.startswith("dhtm") for line in lines)
    more = [int(number) for number in re.findall(r"(\d+) more methods", "\n".join(lines))]
    assert shown_rows + sum(more) == 13 * shown_models
    if shown_models < 4:
        assert f"and {4 - shown_models} more models" in lines[-1]
    columns = len(lines[2].split())
    if columns < 16:
        assert f"{16 - columns} more budgets" in "\n".join(lines)


# --- while a sweep runs -----------------------------------------------------------------------------------------------


def test_a_sweep_in_a_terminal_draws_the_table_and_cleans_up_after_ctrl_c(
    tmbench: Command, weights: Path, monkeypatch: pytest.MonkeyPatch, closed_form_counts: None
) -> None:
    screen = Screen()
    terminal = Console(file=screen, force_terminal=True, width=80, height=24)
    monkeypatch.setattr(live, "errors", terminal)
    monkeypatch.setattr("tokenmerge_bench.display.errors", terminal)
    evaluated = 0

    def interrupted(reporter: live.LiveReporter, evaluations: int, doing: str) -> None:
        nonlocal evaluated
        evaluated += evaluations
        if evaluated == 3 * 8 + 4:  # all three points on two batches of four, and one of them on the third
            reporter._live.refresh()
            raise KeyboardInterrupt

    monkeypatch.setattr(live.LiveReporter, "advance", interrupted)
    what = ("--methods", "dhtm,lotm", "--k", 3, "--models", TINY, "--weights", weights)
    done = tmbench("sweep", *what, "--limit", 20, "--batch-size", 4, "--out", "out")
    assert (done.code, done.out, done.err) == (130, "", "")
    shown = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert re.search(r"top-1 % so far, on 8 of 20 images: ± \d+\.\d or less \(95 %\)", shown)
    assert re.search(r"lotm +\d+\.\d", shown)
    assert "tmbench: interrupted; the same command goes on from here" in shown
    assert (shown.count("\x1b[?25l"), shown.count("\x1b[?25h")) == (1, 1)  # the cursor is hidden, and comes back
    below = shown[shown.index("interrupted; ") :]
    assert below.rindex("\x1b[2K") > below.rindex("lotm")  # the table that stood there is wiped out


def test_standings_end_as_the_results_say(weights: Path, tmp_path: Path, closed_form_counts: None) -> None:
    class Looking(live.LiveReporter):
        def __enter__(self) -> Any:
            return self

        def note(self, text: str) -> None:
            pass

    reporter = Looking()
    table = run(tmp_path / "out", weights, reporter, methods=["dhtm", "random"]).table  # type: ignore[arg-type]
    standings = reporter._board.standings
    assert standings is not None
    assert standings.images == experiment().limit
    found = {name: (one.seen, round(100 * one.right / one.seen, 4)) for name, one in standings.by_point.items()}
    assert found == {row["point"]: (row["n_images"], row["top1"]) for row in table.to_dict("records")}
    again = Looking()
    run(tmp_path / "out", weights, again, methods=["dhtm", "random"])  # type: ignore[arg-type]
    assert again._board.standings is not None
    assert {name: (one.seen, one.right) for name, one in again._board.standings.by_point.items()} == {
        name: (one.seen, one.right) for name, one in standings.by_point.items()
    }
