"""Experiments as TOML files with overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import Command

from tokenmerge_bench import published
from tokenmerge_bench.budgets import Solver
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import Experiment, load_experiment, shipped
from tokenmerge_bench.models import DEMO_MODEL, build_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.products import figure_names, table_names

GOOD = 'methods = ["dhtm"]\nmodels = ["deit_tiny_patch16_224"]\ndataset = "demo"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + "budgets = [0.7]\n")
    return path


def test_the_demo_is_the_embedded_benchmark_with_all_training_free_methods() -> None:
    demo = load_experiment("demo")
    assert demo.models == [DEMO_MODEL]
    assert demo.dataset == "demo"
    assert {"dhtm", "random", "tome", "lotm", "dpc_knn", "k_medoids"} <= set(demo.methods)
    assert demo.seeds >= 3
    assert demo.limit is not None


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_experiment_can_be_read(name: str) -> None:
    loaded = load_experiment(name)
    assert loaded.all_budgets()
    assert len(loaded.all_methods()) == len(loaded.methods)
    assert loaded.title
    assert set(loaded.shows) <= {*figure_names(), *table_names()}


def test_the_help_of_sweep_says_what_the_default_is(tmbench: Command) -> None:
    demo, said = load_experiment("demo"), " ".join(tmbench("sweep", "--help").out.split())
    budgets = [f"{budget:g}" for budget in demo.budgets]
    assert len(demo.methods) == 6
    assert f"six methods at {', '.join(budgets[:-1])} and {budgets[-1]} of the FLOPs, {demo.limit} images" in said
    assert f"{demo.seeds} seeds" in said


def test_a_title_that_names_the_images_is_not_kept_for_others() -> None:
    assert load_experiment("demo", dataset="demo", limit=10).title == load_experiment("demo").title
    assert load_experiment("demo", dataset="images").title == ""
    assert load_experiment("table2", dataset="images").title == load_experiment("table2").title


def test_all_that_the_paper_shows_has_an_experiment() -> None:
    wanted = {"table1", "table2", "fig1", "fig2", "fig4", "demo"}
    ablations = {"connectivity", "similarity", "averaging_attention", "placement", "k_schedule"}
    assert wanted | ablations <= set(shipped())


def test_the_published_tables_are_asked_for_as_published() -> None:
    table1, table2 = load_experiment("table1"), load_experiment("table2")
    assert [int(k) for k in table1.k] == sorted(set(published.table1()["k"]))
    assert table1.models == list(dict.fromkeys(published.table1()["model"]))
    assert set(published.table2()["method"]) <= set(table2.methods)
    assert table2.budgets == [0.7]


def test_schedules_of_merges_cost_the_same() -> None:
    chosen = load_experiment("k_schedule")
    solver = Solver(build_model("deit_tiny_patch16_224"))
    costs = [solver.solve(parse_method("dhtm"), budget).macs.total for budget in chosen.all_budgets()]
    assert max(costs) < 1.01 * min(costs)


def test_methods_come_in_order_and_once() -> None:
    chosen = load_experiment("demo", methods=["tome", "dhtm:connectivity=8", "dhtm"])
    assert [spec.label for spec in chosen.all_methods()] == ["tome", "dhtm"]
    with pytest.raises(InputError, match="did you mean 'dhtm'"):
        load_experiment("demo", methods=["dhmt"]).all_methods()


def test_budgets_of_a_flag_leave_out_methods_of_the_file_that_cannot_follow() -> None:
    assert load_experiment("demo", k=["40"]).methods == ["dhtm", "lotm", "random"]
    assert load_experiment("demo", k=["40"], methods=["tome"]).methods == ["tome"]
    with pytest.raises(InputError, match="none of dhtm, random takes --r; name methods that do with --methods"):
        load_experiment("fig4", r=["8"])


def test_the_layers_of_an_experiment_are_those_of_methods_that_name_none() -> None:
    chosen = load_experiment("demo", methods=["dhtm", "dhtm:layers=all"], layers="2/4")
    assert [spec.layers for spec in chosen.all_methods()] == [(2, 4), "all"]


def test_flags_win_over_the_file_and_none_leaves_it_alone(file: Path) -> None:
    loaded = load_experiment(str(file), methods=["tome"], limit=None, seeds=5, dataset=None)
    assert (loaded.methods, loaded.seeds, loaded.dataset, loaded.limit) == (["tome"], 5, "demo", None)


def test_budgets_of_one_kind_replace_those_of_another() -> None:
    demo = load_experiment("demo", k=["0", "40"])
    assert demo.budgets == []
    assert [budget.recorded for budget in demo.all_budgets()] == ["k=0", "k=40"]


def test_budgets_come_in_order_and_once() -> None:
    loaded = load_experiment("demo", budgets=[0.5, 0.9, 0.5])
    assert [budget.recorded for budget in loaded.all_budgets()] == ["0.5", "0.9"]


def test_knob_values_may_be_written_as_numbers(file: Path) -> None:
    file.write_text(GOOD + "k = [0, 40, '41/41/40']\n")
    assert load_experiment(str(file)).k == ["0", "40", "41/41/40"]
    file.write_text(GOOD + "keep_rate = [0.9, 0.7]\n")
    assert [budget.recorded for budget in load_experiment(str(file)).all_budgets()] == [
        "keep_rate=0.9",
        "keep_rate=0.7",
    ]


@pytest.mark.parametrize(
    "budgets", [{}, {"budgets": [0.7], "k": ["40"]}, {"gflops": [3.0], "r": ["8"], "keep_rate": ["0.7"]}]
)
def test_budgets_are_given_in_exactly_one_way(budgets: dict[str, Any]) -> None:
    chosen = Experiment(methods=["dhtm"], models=["m"], dataset="demo", **budgets)
    with pytest.raises(
        InputError, match="give budgets in exactly one way: --budgets, --gflops, --k, --r or --keep-rate"
    ):
        chosen.all_budgets()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("method = ['dhtm']", r"unknown key 'method' \(did you mean 'methods'\?\); known keys are title"),
        ("batchsize = 4", r"did you mean 'batch_size'"),
        ("limit = 'all'", "limit='all' is not allowed"),
        ("limit = 0", "limit=0 is not allowed"),
        ("seeds = 0", "seeds=0 is not allowed"),
        ("seed = -1", "seed=-1 is not allowed"),
        ("batch_size = 0", "batch_size=0 is not allowed"),
        ("crop_pct = 1.5", "crop_pct=1.5 is not allowed"),
        ("examples = -1", "examples=-1 is not allowed"),
        ("dtype = 'float8'", "dtype='float8' is not allowed"),
        ("gflops = 3.26", r"gflops=3.26 is not allowed"),
        ("gflops = ['a']", "gflops='a' is not allowed"),
        ("layers = [3, 6]", r"layers=\[3, 6\] is not allowed"),
    ],
)
def test_wrong_keys_and_values_name_themselves(file: Path, line: str, message: str) -> None:
    file.write_text(GOOD + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        load_experiment(str(file))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left_out", ["methods", "models"])
def test_what_is_missing_is_named(file: Path, left_out: str) -> None:
    file.write_text("".join(line + "\n" for line in GOOD.splitlines() if not line.startswith(left_out)))
    with pytest.raises(InputError, match=left_out):
        load_experiment(str(file))


@pytest.mark.parametrize(
    "content", [b"methods = [", b"methods = 'a'\nmethods = 'b'\n", b"dataset = 'caf\xe9'\n", b"\xff\xfe"]
)
def test_files_that_are_no_toml(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"mine.toml' is no valid TOML \("):
        load_experiment(str(file))


def test_experiments_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown experiment 'dmo' \(did you mean 'demo'\?\); known are .*demo"):
        load_experiment("dmo")
    with pytest.raises(InputError, match="does not exist; give the path of a TOML file"):
        load_experiment(str(tmp_path / "none.toml"))


def test_trained_checkpoints_are_asked_for() -> None:
    """Table 2 has trained rows; what `tmbench sweep` runs without arguments has none, so that it stays fast."""
    asked = {name: load_experiment(name).trained for name in ("demo", "table2")}
    assert asked == {"demo": False, "table2": True}
    assert load_experiment("demo", trained=True).trained
    assert not any(load_experiment(name).untrained for name in shipped())
