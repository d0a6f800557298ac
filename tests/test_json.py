"""What `--json` prints: one document, whose keys scripts rely on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Command, assert_refused
from made_results import dhtm_and_tome, made, nothing
from sweeping import TINY

from tokenmerge_bench import json_output, profiles
from tokenmerge_bench.commands.listing import Listing
from tokenmerge_bench.registry import list_methods
from tokenmerge_bench.store import COLUMNS, read_results

pytestmark = pytest.mark.usefixtures("closed_form_counts", "own_registry")
DOCUMENTED = (Path(__file__).parent.parent / "docs" / "json.md").read_text(encoding="utf-8")


def no_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def document(out: str) -> Any:
    """The one document on stdout, in which NaN and infinity are refused."""
    return json.loads(out, parse_constant=no_constant)


def keys(held: Any) -> set[str]:
    """The keys of a document, and of the rows in it."""
    rows = [row for value in held.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    return set(held).union(*rows)


def assert_documented(held: Any) -> None:
    undocumented = [key for key in sorted(keys(held)) if f"`{key}`" not in DOCUMENTED]
    assert undocumented == []


@pytest.fixture
def two(tmp_path: Path) -> None:
    made(tmp_path / "two", *dhtm_and_tome(), nothing("tome", "0.3", "unreachable", "out of reach"))


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.float64("nan"), None),
        (pd.NA, None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (0.1, 0.1),
        (Path("a/b"), "a/b"),
        (("x", [float("-inf")]), ["x", [None]]),
        ({"é": "<&>"}, {"é": "<&>"}),
        (pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "t": ["a", ""]}),
         [{"n": 1, "t": "a"}, {"n": None, "t": None}]),
    ],
)  # fmt: skip
def test_values(capsys: pytest.CaptureFixture[str], value: Any, written: Any) -> None:
    json_output.write_json({"value": value})
    assert document(capsys.readouterr().out) == {"value": written}


# --- every command ----------------------------------------------------------------------------------------------------


def test_a_sweep(tmbench: Command, weights: Path, tmp_path: Path, quick_figures: None) -> None:
    what = (
        "--models",
        TINY,
        "--weights",
        weights,
        "--methods",
        "dhtm,tome:staged=on",
        "--budgets",
        "0.4",
        "--limit",
        4,
    )
    done = tmbench("sweep", *what, "--out", "out", "--json")
    assert done.code == 0
    assert re.fullmatch(r"tmbench: .*tome:staged=true at 0\.4: unreachable, .*\n", done.err)
    found = document(done.out)
    assert found["folder"] == "out"
    assert found["files"] == ["out/results.csv", "out/fig1.png"]
    assert found["left_out"] == {}
    table = read_results(tmp_path / "out")
    assert [tuple(row) for row in found["results"]] == [COLUMNS] * 3
    for row, expected in zip(found["results"], table.to_dict("records"), strict=True):
        for key, value in row.items():
            if value is None:
                assert pd.isna(expected[key]), key
            else:
                assert value == expected[key], key
                assert isinstance(value, (int, float)) == isinstance(expected[key], (int, float)), key
    assert [row["top1"] is None for row in found["results"]] == [False, False, True]
    assert_documented(found)


def test_a_comparison(tmbench: Command, two: None) -> None:
    done = tmbench("compare", "dhtm", "tome", "two", "--at", "0.6,0.2", "--json")
    assert done.code == 0
    assert [line.partition(": left out: ")[0] for line in done.err.splitlines()] == ["tmbench", "tmbench"]
    found = document(done.out)
    assert (found["a"], found["b"], found["dataset"]) == ("dhtm", "tome", "photographs")
    assert [(row["budget"], row["top1_a"], row["only_a"]) for row in found["pairs"]] == [
        ("0.7", 80.0, 10.0), ("0.5", 66.0, 6.0)
    ]  # fmt: skip
    assert found["pairs"][0]["p"] == pytest.approx(2 * 79 / 2**12)
    assert found["pairs"][0]["equal_flops"] is True
    assert [row["fraction"] for row in found["at"]] == [0.6]
    assert len(found["curves"]) == 1
    assert len(found["left_out"]) == 2
    assert_documented(found)


def test_flops(tmbench: Command) -> None:
    done = tmbench("flops", "--models", TINY, "--methods", "dhtm,tome:staged=on", "--budgets", "0.4", "--json")
    assert (done.code, done.err) == (0, "")
    found = document(done.out)
    none, dhtm, tome = found["results"]
    assert (none["method"], none["reduction"], none["status"]) == ("none", 0.0, "ok")
    assert none["tokens_per_block"] == " ".join(["50"] * 12)
    assert dhtm["reduction"] == pytest.approx(0.6, abs=0.02)
    assert dhtm["gflops"] == pytest.approx((1 - dhtm["reduction"]) * none["gflops"])
    assert (tome["options"], tome["status"], tome["gflops"]) == ("staged=true", "unreachable", None)
    assert set(none) < set(COLUMNS)
    assert_documented(found)


@pytest.mark.parametrize("what", [listing.value for listing in Listing])
def test_lists(tmbench: Command, what: str) -> None:
    done = tmbench("list", what, "--json")
    assert (done.code, done.err) == (0, "")
    found = document(done.out)
    assert list(found) == [what]
    assert len(found[what]) > 3
    assert_documented(found)
    if what == "methods":
        assert [row["method"] for row in found[what]] == list(list_methods())
        assert found[what][0]["options"]["connectivity"] == 8


def test_tables_and_figures(tmbench: Command, two: None) -> None:
    done = tmbench("tables", "two", "--out", "here", "--only", "results", "--json")
    assert (done.code, done.err) == (0, "")
    assert document(done.out) == {
        "files": [f"here/results_table.{kind}" for kind in ("md", "csv", "tex")],
        "left_out": {},
    }
    done = tmbench("figures", "--only", "fig3", "--formats", "svg", "--out", "here", "--json")
    assert (done.code, document(done.out)) == (0, {"files": ["here/fig3.svg"], "left_out": {}})
    assert_documented(document(done.out))


def test_pictures_and_reports(tmbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmerge_bench.figures.merges.write", lambda _, paths: paths)
    done = tmbench("show", "--methods", "dhtm", "--k", 10, "--formats", "svg", "--json")
    assert (done.code, done.err) == (0, "")
    found = document(done.out)
    assert [Path(file).suffix for file in found["files"]] == [".svg"]
    assert_documented(found)
    monkeypatch.setattr("tokenmerge_bench.report.write_report", lambda folders, out: None)
    done = tmbench("report", "two", "--json")
    assert document(done.out) == {"files": ["report.html"]}


def test_a_profile(tmbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenmerge_bench import profiling

    row = dict.fromkeys(profiles.COLUMNS) | {"model": "m", "status": "ok", "batch_size": 8, "latency_ms": 2.5}
    table = pd.DataFrame([row])
    made_up = profiling.ProfileResult(tmp_path / "speed", table)
    monkeypatch.setattr(profiling, "run_profile", lambda *_, **__: made_up)
    monkeypatch.setattr("tokenmerge_bench.commands.profile.speed", lambda *_: ([], {"speed": "nothing was timed"}))
    done = tmbench("profile", "--json")
    assert (done.code, done.err) == (0, "tmbench: nothing was timed\n")
    found = document(done.out)
    assert tuple(found["results"][0]) == profiles.COLUMNS
    assert (found["results"][0]["latency_ms"], found["results"][0]["speedup"]) == (2.5, None)
    assert found["files"] == [str(tmp_path / "speed" / "profile.csv")]
    assert_documented(found)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--methods", "dhmt"],
        ["compare", "dhtm", "tmoe", "two"],
        ["flops", "--budgets", "2"],
        ["tables", "nowhere"],
        ["figures", "two", "--only", "fig2"],
        ["list", "things"],
        ["profile", "--batch-sizes", "0"],
    ],
)
def test_errors_are_no_json(tmbench: Command, two: None, arguments: list[str]) -> None:
    assert_refused(tmbench(*arguments, "--json"))
