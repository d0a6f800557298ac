"""From rows to settings, and how they are shown. Results of earlier versions must go on loading."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tokenmerge_bench.display import ProgressReporter, SilentReporter, reasons, results_sheet, short_knob
from tokenmerge_bench.knobs import MergesPerLayer
from tokenmerge_bench.results import open_results
from tokenmerge_bench.store import COLUMNS, FORMAT, outcomes_file, read_results
from tokenmerge_bench.summary import summarise

HISTORIC = sorted((Path(__file__).parent / "historic_results").iterdir())


def row(method: str, top1: float | None, **more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "model": "m", "weights": "w", "dataset": "d", "n_images": 100, "trained": "no", "budget": "0.7", "knob": "k=6",
        "status": "failed" if top1 is None else "ok", "method": method, "top1": top1, "seed": 0, "options": None,
    }  # fmt: skip
    if top1 is not None:
        usual |= {"top1_low": top1 - 1, "top1_high": top1 + 2, "top5": 99.0, "gflops": 1.0, "reduction": 0.3}
        usual |= {"images_per_s": 10.0, "latency_ms": 5.0}
    return {**usual, **more}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{column: r.get(column) for column in COLUMNS} for r in rows])


# --- summaries --------------------------------------------------------------------------------------------------------


def test_seeds_become_a_mean_and_a_sample_deviation() -> None:
    drawn = [row("random", top1, seed=seed, latency_ms=seed) for seed, top1 in enumerate((50.0, 52.0, 57.0))]
    (found,) = summarise(table(*drawn)).to_dict("records")
    assert found["seeds"] == 3
    assert found["top1"] == pytest.approx(53.0)
    assert found["top1_sd"] == pytest.approx(13**0.5)  # (9 + 1 + 16) / 2
    assert (found["top1_low"], found["top1_high"]) == pytest.approx((52.0, 55.0))
    assert found["latency_ms"] == pytest.approx(1.0)


def test_one_seed_has_no_spread() -> None:
    (found,) = summarise(table(row("dhtm", 50.0))).to_dict("records")
    assert (found["seeds"], found["top1_sd"], found["top1"]) == (1, 0.0, 50.0)


def test_a_seed_that_failed_is_left_out_of_the_mean() -> None:
    (found,) = summarise(table(row("random", None), row("random", 50.0, seed=1), row("random", 52.0, seed=2))).to_dict(
        "records"
    )
    assert (found["status"], found["seeds"], found["top1"]) == ("ok", 2, 51.0)
    (failed,) = summarise(table(row("random", None), row("random", None, seed=1))).to_dict("records")
    assert (failed["status"], failed["seeds"]) == ("failed", 0)


@pytest.mark.parametrize("key", ["model", "method", "options", "budget", "trained"])
def test_settings_are_kept_apart(key: str) -> None:
    assert len(summarise(table(row("dhtm", 50.0), {**row("dhtm", 52.0), key: "other"}))) == 2


def test_budgets_of_a_method_stand_together_in_the_order_of_the_results() -> None:
    rows = [row(method, 50.0, budget=budget) for budget in ("0.9", "0.5") for method in ("tome", "dhtm")]
    found = summarise(table(row("none", 60.0, budget="1"), *rows, row("dhtm", 1.0, options="k=1")))
    assert list(zip(found["label"], found["budget"], strict=True)) == [
        ("none", "1"), ("tome", "0.9"), ("tome", "0.5"), ("dhtm", "0.9"), ("dhtm", "0.5"), ("dhtm:k=1", "0.7"),
    ]  # fmt: skip


# --- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "shown"),
    [
        ("k=40", "k=40"),
        ("k=41/41/40", "k=41x2/40"),
        ("r=10/10/9/9/9", "r=10x2/9x3"),
        ("r=3/2/3", "r=3/2/3"),
        ("keep_rate=0.7", "keep_rate=0.7"),
        ("k=0/0/0/1", "k=0x3/1"),
    ],
)
def test_runs_are_abbreviated(knob: str, shown: str) -> None:
    assert short_knob(knob) == shown


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_what_is_shown_can_be_typed(values: list[int]) -> None:
    shown = short_knob(f"k={'/'.join(map(str, values))}")
    assert MergesPerLayer().parse(shown.removeprefix("k=")) == tuple(values)


def shown(results: pd.DataFrame, model: str = "m", width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_sheet(results, model))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_the_table_shows_the_loss_against_the_unreduced_model() -> None:
    text = shown(table(row("none", 60.0, budget="1"), row("dhtm", 57.5), row("tome", None)))
    assert "m (w) on d, 100 images" in text
    (line,) = [line for line in text.splitlines() if "dhtm" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["dhtm", "0.7", "k=6", "1.000", "30.0 %", "57.50", "56.50 to 59.50", "2.50"]
    (line,) = [line for line in text.splitlines() if "tome" in line]
    assert "failed" in line
    assert "nan" not in line


def test_nothing_is_cut_off_where_a_terminal_is_narrow() -> None:
    rows = [row("none", 60.0, budget="1"), row("none", 60.5, budget="1"), row("k_medoids", 57.5)]
    narrow = table(*(one | {"trained": mark} for one, mark in zip(rows, ("no", "yes", "yes"), strict=True)))
    text = shown(narrow.assign(knob="keep_rate=0.790816"), width=80)
    assert max(map(len, text.splitlines())) == 80
    assert "…" not in text
    assert text.count("(trained)") == 2
    assert "790816" in text


def test_the_table_does_without_the_unreduced_model() -> None:
    text = shown(table(row("none", None, budget="1"), row("dhtm", 57.5)))
    (line,) = [line for line in text.splitlines() if "dhtm" in line]
    assert [cell.strip() for cell in line.strip("|").split("|")][-3:] == ["57.50", "56.50 to 59.50", ""]


def test_the_table_does_without_any_result() -> None:
    assert "no images" in shown(table(row("none", None, budget="1", n_images=None), row("dhtm", None, n_images=None)))


def test_reasons_name_the_point_once() -> None:
    bad = [row("random", None, seed=seed, options="pair=any", reason="E: no", status="failed") for seed in range(3)]
    assert reasons(table(row("dhtm", 50.0), *bad)) == ["m random:pair=any at 0.7: failed, E: no"]
    assert reasons(table(row("dhtm", 50.0))) == []


def test_notes_are_never_withheld(capsys: pytest.CaptureFixture[str]) -> None:
    with SilentReporter() as told:
        told.start(10, 0)
        told.advance(5, "x")
        told.note("an image is missing")
    assert capsys.readouterr().err == "tmbench: an image is missing\n"


def test_what_is_finished_is_no_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter() as told:
        told.start(10, 10)
    assert capsys.readouterr().err.startswith("tmbench: nothing left to evaluate: all 10 evaluations are there already")


def test_the_bar_counts_what_is_done_already(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter() as told:
        told.start(10, 4)
        told.advance(6, "x")
        told.note("watch [red]this[/red]")
        (task,) = told._progress.tasks
        assert (task.completed, task.total, task.finished) == (10, 10, True)
    printed = capsys.readouterr().err
    assert "4 of 10 evaluations are there already" in printed
    assert "tmbench: watch [red]this[/red]" in printed


# --- earlier versions -------------------------------------------------------------------------------------------------


def test_there_are_earlier_results() -> None:
    assert [path.name for path in HISTORIC] == [f"v{number}" for number in range(1, FORMAT + 1)]


def test_results_of_format_1_are_shown_as_they_were() -> None:
    results = read_results(HISTORIC[0])
    assert set(results["status"]) == {"ok", "unreachable", "failed"}
    assert any("must be trained first" in line for line in reasons(results))


def test_results_of_format_2_have_missing_methods_and_examples() -> None:
    results = open_results([HISTORIC[1]])
    assert set(results.table["status"]) == {"ok", "unreachable", "missing"}
    assert any("sit: missing, not here yet" in line for line in reasons(results.table))
    dhtm = results.table[results.table["method"] == "dhtm"].to_dict("records")[0]
    assert [len(example.sites) for example in results.examples(dhtm)] == [3, 3]


@pytest.mark.parametrize("folder", HISTORIC, ids=lambda path: path.name)
def test_earlier_results_load(folder: Path) -> None:
    results = read_results(folder)
    assert results["method"].tolist().count("none") == 1
    assert set(results["budget"].dropna()) == {"1", "0.5", "0.4"}
    rows = summarise(results).set_index(["label", "budget"])
    assert rows.loc[("random", "0.5"), "seeds"] == 2
    text = shown(results, results["model"][0])
    assert "tome:staged=true" in text
    assert "unreachable" in text
    manifest = json.loads((folder / "sweep.json").read_text())
    planned = results[results["status"] != "missing"]
    assert set(planned["point"]) == set(manifest["points"])
    good = results[results["status"] == "ok"]
    for point in good.to_dict("records"):
        record = json.loads((folder / "records" / f"{point['point']}.json").read_text())
        assert record["top1"] == point["top1"]
        file = outcomes_file(folder, point["point"])
        assert file is not None
        outcomes = pd.read_csv(file)
        assert 100 * (outcomes["rank"] == 0).mean() == pytest.approx(point["top1"])
        assert len(outcomes) == point["n_images"]
    assert not any(word in (folder / "provenance.json").read_text() for word in ("/home", "/root", "/tmp", "/work"))
