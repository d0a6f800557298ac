"""Tables made from results folders: numbers worked out by hand, nothing dropped in silence, and files that read."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_results import DEIT, made, nothing, point, right, unreduced

from tokenmerge_bench import published
from tokenmerge_bench.compare import compare
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.rendering import render, shown
from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.tables import TABLES, results_table, save, table1, table2, unavailable

HISTORIC = Path(__file__).parent / "historic_results" / "v1"
ODD = "odd_vit"
"""A model that nothing was published of."""


@pytest.fixture
def by_k(tmp_path: Path) -> Results:
    """DHTM at some of the paper's k and one that it lacks, beside what Table 1 is not about; a model of our own."""
    return made(
        tmp_path / "by_k",
        unreduced(right(90)),
        point("dhtm", "k=0", 1.0, right(90)),
        point("dhtm", "k=20", 0.9, right(88)),
        point("dhtm", "k=24", 0.85, right(89, start=1)),
        point("dhtm", "k=40", 0.7, right(80)),
        nothing("dhtm", "k=56", "failed", "out of memory"),
        point("dhtm", "k=40", 0.7, right(20), options="connectivity=4"),
        point("dhtm", "k=40/20/20", 0.75, right(20)),
        point("dhtm", "0.5", 0.5, right(20)),
        point("random", "k=40", 0.7, right(20)),
        unreduced(right(50), model=ODD),
        point("dhtm", "k=40", 0.7, right(50), model=ODD),
    )


@pytest.fixture
def by_method(tmp_path: Path) -> Results:
    """All kinds of rows at 30 % fewer FLOPs, and one at another budget."""
    return made(
        tmp_path / "by_method",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.700, right(80)),
        point("tome", "0.7", 0.702, right(78)),
        point("lotm", "0.7", 0.698, right(60)),
        point("random", "0.7", 0.7, right(50), seed=0),
        point("random", "0.7", 0.7, right(54), seed=1),
        point("dhtm", "0.7", 0.7, right(70), options="connectivity=4"),
        nothing("k_medoids", "0.7", "unreachable", "at least 0.75 & more"),
        nothing("sit", "", "missing", "not here yet"),
        point("dpc_knn", "0.7", 0.7, right(85), trained="yes"),
        point("k_medoids", "0.7", 0.7, right(30), trained="yes"),
        point("dhtm", "0.5", 0.5, right(40)),
    )


def rows(frame: pd.DataFrame, *keys: str) -> dict[Any, dict[Any, Any]]:
    """Records by the values of some columns."""
    records = frame.to_dict("records")
    found = {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row for row in records}
    assert len(found) == len(frame)
    return found


# --- table 1 ----------------------------------------------------------------------------------------------------------


def test_table1_has_the_papers_rows_and_ours_in_the_order_of_k(by_k: Results) -> None:
    frame = table1(by_k)
    assert frame.loc[frame["model"] == DEIT, "k"].tolist() == [0, 10, 20, 24, 30, 40, 48, 56]
    assert frame.loc[frame["model"] == ODD, "k"].tolist() == [0, 40]


def test_table1_sets_the_published_number_beside_the_measured_one(by_k: Results) -> None:
    row = rows(table1(by_k), "model", "k")[DEIT, 40]
    assert (row["gflops_reported"], row["gflops"]) == (0.88, 0.7)
    assert row["gflops_difference"] == pytest.approx(0.7 - 0.88)
    assert (row["top1_reported"], row["top1"], row["images"]) == (71.66, 80, 100)
    assert row["drop_reported"] == pytest.approx(72.20 - 71.66)
    assert row["drop"] == pytest.approx(10)
    assert row["drop_difference"] == pytest.approx(10 - (72.20 - 71.66))


def test_table1_has_the_intervals_of_accuracy_and_drop(by_k: Results) -> None:
    row, z = rows(table1(by_k), "model", "k")[DEIT, 40], 1.959964
    # Wilson, 80 of 100 images.
    centre, margin = (0.8 + z**2 / 200), z * math.sqrt(0.8 * 0.2 / 100 + (z / 200) ** 2)
    assert row["top1_low"] == pytest.approx(100 * (centre - margin) / (1 + z**2 / 100), abs=1e-4)
    assert row["top1_high"] == pytest.approx(100 * (centre + margin) / (1 + z**2 / 100), abs=1e-4)
    # Bonett and Price: 10 images lost and none gained; of 102 with one more of each kind, 11 and 1.
    centre, margin = 10 / 102, z * math.sqrt((12 / 102 - (10 / 102) ** 2) / 102)
    assert row["drop_low"] == pytest.approx(100 * (centre - margin), abs=1e-4)
    assert row["drop_high"] == pytest.approx(100 * (centre + margin), abs=1e-4)


def test_the_unreduced_model_is_the_row_of_k_0(by_k: Results) -> None:
    row = rows(table1(by_k), "model", "k")[DEIT, 0]
    assert (row["top1"], row["drop"], row["drop_reported"], row["drop_difference"]) == (90, 0, 0, 0)
    assert math.isnan(row["drop_low"])
    assert not row["best"]
    assert not row["tied"]


def test_losses_that_cannot_be_told_from_zero_are_marked_after_correction(by_k: Results) -> None:
    found = rows(table1(by_k), "model", "k")
    # Images lost, none gained: 2 at k = 20, 1 at k = 24, 10 at k = 40, and none with the other model.
    assert found[DEIT, 20]["p"] == pytest.approx(2 / 4)
    assert found[DEIT, 40]["p"] == pytest.approx(2 / 2**10)
    assert found[DEIT, 40]["p_adjusted"] == pytest.approx(4 * 2 / 2**10)  # four tests in the table
    assert {key: row["tied"] for key, row in found.items() if row["status"] == "ok"} == {
        (DEIT, 0): False, (DEIT, 20): True, (DEIT, 24): True, (DEIT, 40): False, (ODD, 0): False, (ODD, 40): True,
    }  # fmt: skip


def test_the_best_row_of_a_model_is_above_k_0_and_needs_another_to_be_best_of(by_k: Results) -> None:
    assert [key for key, row in rows(table1(by_k), "model", "k").items() if row["best"]] == [(DEIT, 24)]


def test_what_was_published_and_not_measured_is_a_row_with_its_reason(by_k: Results) -> None:
    found = rows(table1(by_k), "model", "k")
    assert (found[DEIT, 10]["status"], found[DEIT, 10]["reason"]) == ("missing", "not in these results")
    assert (found[DEIT, 56]["status"], found[DEIT, 56]["reason"]) == ("failed", "out of memory")
    assert found[DEIT, 56]["top1_reported"] == 69.98
    text = render("table1", table1(by_k), "md")
    assert f"Missing, not in these results: k=10, k=30, k=48 on {DEIT}." in text
    assert f"Failed, out of memory: k=56 on {DEIT}." in text


def test_a_failed_unreduced_model_leaves_accuracies_without_drops(tmp_path: Path) -> None:
    results = made(tmp_path / "r", nothing("none", "1", "failed", "broken"), point("dhtm", "k=40", 0.7, right(80)))
    found = rows(table1(results), "k")
    assert (found[0]["status"], found[0]["reason"]) == ("failed", "broken")
    assert found[40]["top1"] == 80
    assert math.isnan(found[40]["drop"])
    assert not found[40]["tied"]


# --- table 2 ----------------------------------------------------------------------------------------------------------


def test_table2_has_the_papers_rows_in_its_order_and_then_what_the_paper_lacks(by_method: Results) -> None:
    frame, paper = table2(by_method), published.table2()
    paper = paper[paper["model"] == DEIT]
    for trained in ("yes", "no"):
        ours = frame.loc[frame["trained"] == trained, "method"].tolist()
        theirs = paper.loc[paper["trained"] == trained, "method"].tolist()
        assert ours[: len(theirs)] == theirs
    assert frame.loc[frame["trained"] == "no", "method"].tolist()[3:] == ["random", "dhtm:connectivity=4", "k_medoids"]
    assert frame["trained"].tolist() == sorted(frame["trained"], reverse=True)
    assert len(frame) == 12


def test_table2_compares_drops_from_ones_own_unreduced_model(by_method: Results) -> None:
    row = rows(table2(by_method), "trained", "method")["no", "tome"]
    assert (row["top1_reported"], row["drop_reported"]) == (70.94, pytest.approx(72.20 - 70.94))
    assert (row["top1"], row["drop"], row["gflops"]) == (78, pytest.approx(12), 0.702)
    assert row["drop_difference"] == pytest.approx(12 - (72.20 - 70.94))


def test_trained_and_off_the_shelf_rows_are_told_apart(by_method: Results) -> None:
    found = rows(table2(by_method), "trained", "method")
    assert (found["yes", "k_medoids"]["top1"], found["yes", "k_medoids"]["top1_reported"]) == (30, 69.90)
    assert found["no", "k_medoids"]["status"] == "unreachable"
    assert found["yes", "tome"]["status"] == "missing"
    assert found["yes", "tome"]["reason"] == "not in these results"
    assert (found["yes", "sit"]["status"], found["yes", "sit"]["reason"]) == ("missing", "not here yet")
    assert found["yes", "sit"]["top1_reported"] == 68.99


def test_a_trained_method_with_options_fills_the_row_of_the_paper(tmp_path: Path) -> None:
    learned: dict[str, Any] = {"trained": "yes", "options": "learned_weights=true"}
    other: dict[str, Any] = {"trained": "yes", "options": "noise=0.5"}
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dpc_knn", "0.7", 0.7, right(80)),
        point("dpc_knn", "0.7", 0.7, right(85), **learned),
        point("dpc_knn", "0.7", 0.7, right(84), **other),
        nothing("sit", "0.7", "missing", "must be trained first; do this") | {"trained": "yes"},
        nothing("sit", "0.5", "missing", "must be trained first; do that") | {"trained": "yes"},
    )
    frame = table2(results)
    trained = frame[frame["trained"] == "yes"]
    here = trained[trained["top1"].notna()]
    assert here[["method", "top1", "top1_reported"]].fillna(0).to_numpy().tolist() == [
        ["dpc_knn:learned_weights=true", 85, 70.10],
        ["dpc_knn:noise=0.5", 84, 0],
    ]
    assert trained["method"].tolist().count("sit") == 1
    assert rows(frame, "trained", "method")["no", "dpc_knn"]["top1"] == 80
    assert "Missing, must be trained first: sit (trained) on" in render("table2", frame, "md")


def test_the_unreduced_model_fine_tuned_is_among_the_trained_and_never_best(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        unreduced(right(95), trained="yes", seed=0),
        unreduced(right(97), trained="yes", seed=1),
        point("tome", "0.7", 0.7, right(85), trained="yes"),
        point("sit", "0.7", 0.7, right(80), trained="yes"),
        point("dhtm", "0.7", 0.7, right(80)),
    )
    found = rows(table2(results), "trained", "method")
    control = found["yes", "unreduced"]
    assert (control["top1"], control["seeds"], control["best"], control["tied"]) == (96, 2, False, False)
    assert control["drop"] == pytest.approx(-6)
    assert control["drop_low"] < -6 < control["drop_high"]
    assert ("no", "unreduced") not in found
    assert found["yes", "tome"]["best"]
    assert "trained methods as means over 2 seeds" in table2(results).attrs["caption"]


def test_best_and_tied_are_among_the_trained_and_among_the_others(by_method: Results) -> None:
    found = rows(table2(by_method), "trained", "method")
    assert [key for key, row in found.items() if row["best"]] == [("yes", "dpc_knn"), ("no", "dhtm")]
    # Two images between dhtm and tome; 10 to dhtm:connectivity=4; 20 to lotm, 55 between the trained ones.
    assert [key for key, row in found.items() if row["tied"]] == [("no", "tome")]
    assert found["no", "tome"]["p_best"] == pytest.approx(0.5)  # the largest of five, so Holm leaves it
    # Of the eleven pairs of the table six have smaller p-values, however far from the best they are.
    assert found["no", "dhtm:connectivity=4"]["p_best"] == pytest.approx(5 * 2 / 2**10)


def test_all_pairs_count_because_the_best_was_picked_by_the_same_data(tmp_path: Path) -> None:
    """Seven images between the best and the last: of three tests that would be 0.047, of six pairs it is not."""
    counts = {"dhtm": 80, "tome": 79, "lotm": 78, "k_medoids": 73}
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        *(point(method, "0.7", 0.7, right(count)) for method, count in counts.items()),
    )
    for name in ("table2", "results"):
        (row,) = (
            row for row in TABLES[name](results).to_dict("records") if row["method"] == "k_medoids" and row["tied"]
        )
        assert row["p_best"] == pytest.approx(6 * 2 / 2**7)
        assert "over all pairs of the table" in render(name, TABLES[name](results), "md")


def test_what_cannot_be_told_from_one_of_several_best_is_tied(tmp_path: Path) -> None:
    """lotm has 10 images less than dhtm and none more; to tome, as good as dhtm, it loses 20 and gains 10."""
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(80)),
        point("tome", "0.7", 0.7, right(80, start=10)),
        point("lotm", "0.7", 0.7, right(70)),
    )
    found = rows(results_table(results), "method")
    assert [method for method, row in found.items() if row["best"]] == ["dhtm", "tome"]
    less = sum(math.comb(30, k) for k in range(11)) / 2**30
    assert found["lotm"]["p_best"] == pytest.approx(2 * 2 * less)  # the second largest of three
    assert found["lotm"]["tied"]


def test_seeds_are_averaged_and_their_spread_is_shown(by_method: Results) -> None:
    row = rows(table2(by_method), "trained", "method")["no", "random"]
    assert (row["top1"], row["seeds"]) == (52, 2)
    assert row["top1_sd"] == pytest.approx(math.sqrt(8))
    assert math.isnan(row["top1_reported"])
    text = render("table2", table2(by_method), "md")
    assert re.search(r"52\.00 ± 2\.83 \[", text)
    assert "means over 2 seeds" in text


def test_a_model_that_nothing_was_published_of_has_measured_columns_alone(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90), model=ODD),
        point("dhtm", "0.7", 0.7, right(80), model=ODD),
        nothing("sit", "", "missing", "not here yet", model=ODD),
    )
    frame = table2(results)
    assert frame["method"].tolist() == ["sit", "dhtm"]
    assert shown("table2", frame).headings == [
        "model", "training", "method", "GFLOPs measured", "top-1 measured", "drop measured",
    ]  # fmt: skip
    assert "reported" not in render("table2", frame, "md").lower()


# --- all settings -----------------------------------------------------------------------------------------------------


def test_every_setting_is_a_row(by_method: Results) -> None:
    frame = results_table(by_method)
    assert len(frame) == len(by_method.summary)
    found = rows(frame, "method", "budget")
    assert found["unreduced", ""]["top1"] == 90
    row = found["dhtm", "0.5"]
    assert (row["setting"], row["gflops"], row["saved"], row["top1"], row["drop"]) == (
        "k=9", 0.5, pytest.approx(50), 40, pytest.approx(50),
    )  # fmt: skip
    assert found["k_medoids (trained)", "0.7"]["drop"] == pytest.approx(60)
    assert found["k_medoids", "0.7"]["status"] == "unreachable"


def test_best_is_at_each_budget_and_the_front_is_over_all(by_method: Results) -> None:
    found = rows(results_table(by_method), "method", "budget")
    assert [key for key, row in found.items() if row["best"]] == [("dhtm", "0.7"), ("dpc_knn (trained)", "0.7")]
    # dpc_knn (0.7 GFLOPs, 85 %) beats everything of 0.7 GFLOPs and more but the unreduced model, and lotm, which is
    # cheaper by less than 1 %.
    assert [key for key, row in found.items() if row["pareto"]] == [
        ("unreduced", ""), ("dhtm", "0.5"), ("dpc_knn (trained)", "0.7"),
    ]  # fmt: skip


@pytest.mark.parametrize(("dearest", "marked"), [(0.7069, True), (0.7071, False)])
@pytest.mark.parametrize("name", ["table2", "results"])
def test_there_is_a_best_only_among_settings_of_equal_cost(
    name: str, dearest: float, marked: bool, tmp_path: Path
) -> None:
    """Each is within 1 % of its neighbour, and the ends within 1 % of each other or not; trained ones stand apart."""
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("lotm", "0.7", 0.700, right(70)),
        point("tome", "0.7", 0.7035, right(79)),
        point("dhtm", "0.7", dearest, right(80)),
        *(point(method, "0.7", 0.75, right(80), trained="yes") for method in ("lotm", "tome")),
    )
    frame = TABLES[name](results)
    found = frame[~frame["method"].str.contains("trained") & ~(frame.get("trained", "no") == "yes")]
    assert found.loc[found["best"], "method"].tolist() == ["dhtm"] * marked
    assert found.loc[found["tied"], "method"].tolist() == ["tome"] * marked
    assert found["p_best"].notna().sum() == 2 * marked
    assert frame["best"].sum() == 2 + marked  # the trained ones are equally good
    assert "within 1 % of each other's GFLOPs" in render(name, frame, "md")


def test_old_results_still_make_tables(tmp_path: Path) -> None:
    results = open_results([HISTORIC])
    assert len(results_table(results)) == len(results.summary)
    assert [path.name for path in save(results, tmp_path)] == [f"results_table.{kind}" for kind in ("md", "csv", "tex")]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_table_says_why_it_cannot_be_made(by_k: Results, by_method: Results) -> None:
    assert unavailable("table1", by_k) is None
    assert unavailable("table2", by_method) is None
    assert "tmbench run table1" in str(unavailable("table1", by_method))
    why = str(unavailable("table2", by_k))
    assert "0.7" in why
    assert "k=20, k=24, k=40" in why
    for name, results in (("table1", by_method), ("table2", by_k)):
        with pytest.raises(InputError, match="these results"):
            TABLES[name](results)
        with pytest.raises(InputError, match="these results"):
            save(results, results.folders[0], [name])


def test_an_unknown_table_is_refused_before_anything_is_written(by_k: Results, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no table 'tabel1' \(did you mean 'table1'\?\)"):
        save(by_k, tmp_path / "out", ["results", "tabel1"])
    assert not (tmp_path / "out").exists()


# --- files ------------------------------------------------------------------------------------------------------------


def test_save_writes_what_can_be_made_in_three_formats(by_k: Results, tmp_path: Path) -> None:
    paths = save(by_k, tmp_path / "out")
    expected = [f"{name}.{kind}" for name in ("table1", "results_table") for kind in ("md", "csv", "tex")]
    assert [path.name for path in paths] == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)


def test_saving_into_the_results_folder_leaves_the_results_alone(by_k: Results) -> None:
    before = (by_k.folders[0] / "results.csv").read_bytes()
    save(by_k, by_k.folders[0])
    assert (by_k.folders[0] / "results.csv").read_bytes() == before


@pytest.mark.parametrize("name", list(TABLES))
def test_csv_holds_the_frame(name: str, by_k: Results, by_method: Results) -> None:
    frame = TABLES[name](by_k if name == "table1" else by_method)
    read = pd.read_csv(io.StringIO(render(name, frame, "csv")), dtype={"budget": str})
    assert read.columns.tolist() == frame.columns.tolist()
    assert read["top1"].tolist() == pytest.approx(frame["top1"].tolist(), nan_ok=True)
    assert read["best"].tolist() == frame["best"].tolist()


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_marks_the_best_and_the_tied(by_method: Results) -> None:
    text = render("table2", table2(by_method), "md")
    cells = markdown_cells(text)
    assert len({len(row) for row in cells}) == 1
    methods = cells[0].index("method"), cells[0].index("top-1 measured")
    shown_accuracy = {(row[methods[0]], row[methods[1]]) for row in cells[2:]}
    assert ("tome", "78.00† [68.93, 85.00]") in shown_accuracy
    assert ("dhtm", "**80.00** [71.12, 86.66]") in shown_accuracy
    assert ("sinkhorn", "missing") in shown_accuracy
    assert text.startswith("**Table 2.**")
    assert "**Bold**: highest accuracy" in text
    for part in ("100 images of photographs", "95 %", "Wilson", "accuracies on different images do not compare"):
        assert part in text


def test_leading_cells_are_not_repeated(by_method: Results) -> None:
    cells = markdown_cells(render("table2", table2(by_method), "md"))[2:]
    assert [row[0] for row in cells] == [DEIT] + [""] * 11
    assert [row[1] for row in cells if row[1]] == ["trained", "off the shelf"]
    assert all(row[2] for row in cells)


def test_the_same_words_below_different_ones_are_shown_again(by_k: Results) -> None:
    """`k=40` of one method is not blank because the row above it, of another, says the same."""
    cells = markdown_cells(render("results", results_table(by_k), "md"))[2:]
    budgets = [row[2] for row in cells]
    assert budgets.count("k=40") == 4


def test_numbers_that_round_to_zero_have_no_sign() -> None:
    nought = {"model": "m", "fraction": 0.7, "gflops": 1.0, "verdict": "undecided"}
    nought |= {f"top1_{x}{bound}": 50.0 for x in "ab" for bound in ("", "_low", "_high")}
    frame = pd.DataFrame([{**nought, "difference": -0.001, "difference_low": -0.3, "difference_high": 0.004}])
    frame.attrs |= {"a": "one", "b": "two", "caption": "c"}
    (row,) = shown("at", frame).cells
    assert row[5] == "0.00 [-0.30, 0.00]"


def latex_rows(text: str) -> list[str]:
    body = text[text.index(r"\toprule") + len(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line.strip().removeprefix(r"\midrule").strip() for line in body.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("name", list(TABLES))
def test_latex_is_whole(name: str, by_k: Results, by_method: Results) -> None:
    text = render(name, TABLES[name](by_k if name == "table1" else by_method), "tex")
    bare = re.sub(r"\\[{}%&$#_\\]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count("$") % 2 == 0
    begun = re.findall(r"\\begin\{(.+?)\}", text)
    assert begun == ["table*", "tabular"]
    assert re.findall(r"\\end\{(.+?)\}", text) == begun[::-1]
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text).group(1))  # type: ignore[union-attr]
    lines = latex_rows(text)
    assert len(lines) > 3
    for line in lines:
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    assert rf"\label{{tab:{name}}}" in text
    assert not re.search(r"(?<!\\)%(?! Needs)", text)
    assert all(ord(character) < 128 for character in text)


def test_latex_marks_and_escapes(by_method: Results) -> None:
    text = render("table2", table2(by_method), "tex")
    assert r"\textbf{80.00} [71.12, 86.66]" in text
    assert r"78.00$^{\dagger}$ [68.93, 85.00]" in text
    assert r"52.00 $\pm$ 2.83 [" in text
    assert r"deit\_tiny\_patch16\_224" in text
    assert r"at least 0.75 \& more" in text
    assert text.count(r"\midrule") == 2  # below the headings, and between trained and off the shelf


HOSTILE = "**not** |here| <img src=x> ![y](z) \\ yet"


def test_reasons_are_escaped_below_markdown_and_latex_tables(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(80)),
        nothing("sit", "0.7", "failed", HOSTILE),
    )
    for name in ("table2", "results"):
        frame = TABLES[name](results)
        note = next(line for line in render(name, frame, "md").splitlines() if line.startswith("Failed"))
        assert r"\*\*not\*\* \|here\| \<img src=x> !\[y](z) \\ yet" in note
        assert r"**not** \textbar{}here\textbar{} \textless{}img" in render(name, frame, "tex")


def test_signs_in_reasons_are_latex_that_any_engine_sets(tmp_path: Path) -> None:
    reason = "224 → 160 is ≤ 0.5 ± 0.1 — or ≥ 2 \N{MULTIPLICATION SIGN} 3, ≈ \N{MINUS SIGN}1 \N{EN DASH} naïve"
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(80)),
        nothing("sit", "0.7", "failed", reason),
    )
    text = render("results", results_table(results), "tex")
    wanted = r"224 $\rightarrow$ 160 is $\leq$ 0.5 $\pm$ 0.1 --- or $\geq$ 2 $\times$ 3, $\approx$ $-$1 -- naïve"
    assert wanted in text


def test_the_spread_is_explained_where_there_is_one(by_k: Results, by_method: Results, tmp_path: Path) -> None:
    explained = "±: standard deviation over seeds."
    seeds = made(tmp_path / "r", unreduced(right(90)), *(point("dhtm", "k=40", 0.7, right(80), seed=s) for s in (0, 1)))
    for name, results in (("table1", seeds), ("table2", by_method), ("results", by_method)):
        frame = TABLES[name](results)
        assert explained in render(name, frame, "md")
        assert explained.replace("±", r"$\pm$") in render(name, frame, "tex")
    for name in ("table1", "results"):
        assert "±" not in render(name, TABLES[name](by_k), "md")


def test_names_of_users_are_escaped(tmp_path: Path) -> None:
    name = "50%_of{#1}&$x|y\\<b>*~^"
    results = made(tmp_path / "r", unreduced(right(9)), point(name, "0.7", 0.7, right(8)))
    frame = results_table(results)
    assert (
        r"50\%\_of\{\#1\}\&\$x\textbar{}y\textbackslash{}\textless{}b\textgreater{}*\textasciitilde{}\textasciicircum{}"
        in render("results", frame, "tex")
    )
    text = render("results", frame, "md")
    assert r"50%_of{#1}&$x\|y\\\<b>\*~^" in text
    assert len({len(row) for row in markdown_cells(text)}) == 1
    assert pd.read_csv(io.StringIO(render("results", frame, "csv")))["method"].tolist() == ["unreduced", name]


@pytest.mark.parametrize("kind", ["md", "tex"])
def test_comparisons_are_rendered_too(kind: Any, tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        *(point("dhtm", b, float(b), right(80)) for b in ("0.7", "0.5")),
        *(point("tome", b, float(b), right(60)) for b in ("0.7", "0.5")),
    )
    found = compare(results, "dhtm", "tome", at=[0.6])
    pairs, curves = render("compare", found.pairs, kind), render("curves", found.curves, kind)
    at = render("at", found.at, kind)
    for text in (pairs, curves, at):
        assert "+20.00 [" in text
        assert "dhtm better" in text
        assert "100 images of photographs" in text
    assert "only dhtm right" in pairs.replace(r"\\", " ")
    below = {"md": "<0.0001", "tex": "$<$0.0001"}[kind]  # 2 / 2^20
    assert below in pairs
    assert render("at", compare(results, "dhtm", "tome").at, kind) == ""


def test_a_row_that_an_older_folder_lacks_does_not_hide_the_trained_one(tmp_path: Path) -> None:
    """Older sweeps recorded a method without weights as missing, off the shelf and at no budget."""
    trained = [point(name, "0.7", 0.7, right(hits), trained="yes") for name, hits in (("sit", 60), ("tome", 80))]
    table = table2(made(tmp_path / "old", unreduced(right(90)), nothing("sit", "", "missing", "no weights"), *trained))
    sit = table[table["method"] == "sit"]
    assert sit["top1"].tolist() == [60.0]
    assert not sit["best"].any()


def test_times_come_with_what_they_mean_and_without_columns_in_which_nothing_stands() -> None:
    row = {
        "model": "deit", "method": "tome", "budget": "0.7", "way": "cpu, batch 1", "flops_saved": 30.0,
        "time_saved": 20.0, "speedup": 1.25, "speedup_low": 1.2, "speedup_high": 1.3, "free_drop_speedup": 1.4,
        "images_per_s": 100.0, "ms": 10.0, "peak_memory_mb": math.nan, "status": "ok",
    }  # fmt: skip
    table = shown("profile", pd.DataFrame([row]))
    assert table.headings[3:] == [
        "times as fast", "run on", "FLOPs saved (%)", "time saved (%)", "if free", "images/s", "ms per image"
    ]  # fmt: skip
    assert "median of all rounds" in table.legend
    assert "If free" in table.legend
    failed = shown("profile", pd.DataFrame([row, row | {"status": "failed", "reason": "out of memory"}]))
    assert [cells[-1] for cells in failed.cells] == ["", "failed"]
