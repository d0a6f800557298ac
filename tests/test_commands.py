"""The commands around a sweep, as they are typed: experiments, tables, figures, comparisons and the audit."""

from __future__ import annotations

import errno
import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from commands import Command, Done, assert_refused
from made_results import dhtm_and_tome, made, point, right
from PIL import Image
from sweeping import TINY, TINY_RGB, contents, lasting, run

from tokenmerge_bench import audit, experiment
from tokenmerge_bench.cli import app
from tokenmerge_bench.display import SilentReporter
from tokenmerge_bench.experiment import Experiment, load_experiment
from tokenmerge_bench.flags import Comparison, Images, Running
from tokenmerge_bench.results import open_results
from tokenmerge_bench.store import read_results

pytestmark = pytest.mark.usefixtures("closed_form_counts", "own_registry")

HISTORIC = Path(__file__).parent / "historic_results"
EMBEDDED = "deit_micro_patch2_28"
OWN = {
    "title": "My own",
    "methods": ["dhtm", "random"],
    "models": [TINY],
    "dataset": "demo",
    "k": [0, 10],
    "limit": 6,
    "seeds": 2,
    "batch_size": 3,
    "shows": ["table1", "results"],
}


def write_toml(path: Path, **changes: Any) -> Path:
    """The experiment `OWN` with some keys changed, or left out where None is given."""
    values = {**OWN, **changes}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def template(weights: Path, tmp_path_factory: pytest.TempPathFactory, closed_form_counts: None) -> Path:
    """Results of a small sweep over k; not to be changed."""
    out = tmp_path_factory.mktemp("template") / "swept"
    run(out, weights, methods=["dhtm", "random", "lotm"], k=["0", "10"], limit=12)
    return out


@pytest.fixture
def swept(template: Path, tmp_path: Path) -> Path:
    """The same results in `swept`."""
    return Path(shutil.copytree(template, tmp_path / "swept"))


@pytest.fixture(scope="module", autouse=True)
def checked_once() -> Iterator[None]:
    """What an audit says of the paper alone is the same every time, and takes longest."""

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        kept: list[Any] = []

        def call(*arguments: Any) -> Any:
            if not kept:
                kept.append(function(*arguments))
            return kept[0]

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("compare_gflops", "search_layers", "check_claims"):
            patch.setattr(audit, name, once(getattr(audit, name)))
        yield


# --- tmbench run ------------------------------------------------------------------------------------------------------


def test_a_shipped_experiment_copied_and_edited(tmbench: Command, weights: Path, tmp_path: Path) -> None:
    text = (files("tokenmerge_bench.experiments") / "table1.toml").read_text()
    text = re.sub(r"(?m)^models = .*", f'models = ["{TINY}"]\ndataset = "demo"\nlimit = 6', text)
    text = re.sub(r"(?m)^k = .*", "k = [0, 10]", text)
    text = text.replace('"fig1"', '"results"')
    (tmp_path / "my table.toml").write_text(text)
    done = tmbench("run", "my table.toml", "--weights", weights, "--out", "my results/of today")
    assert (done.code, done.err) == (0, "")
    out = tmp_path / "my results/of today"
    assert done.out.splitlines()[-4:] == [
        "table   my results/of today/results.csv",
        "table   my results/of today/table1.md (also csv, tex)",
        "table   my results/of today/results_table.md (also csv, tex)",
        "next    tmbench report 'my results/of today' -o report.html",
    ]
    table = read_results(out)
    assert set(table["experiment"]) == {"my table"}
    assert table[["method", "budget", "status"]].fillna("").to_numpy().tolist() == [
        ["none", "1", "ok"],
        ["dhtm", "k=0", "ok"],
        ["dhtm", "k=10", "ok"],
    ]
    shown = pd.read_csv(out / "table1.csv").set_index("k")["top1"]
    assert shown[10] == table.loc[table["budget"] == "k=10", "top1"].item()


class Planned(Exception):
    """Raised in place of a sweep."""


@pytest.fixture
def planned(tmbench: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """The experiment that a command would run."""

    def stop(chosen: Experiment, **_: Any) -> None:
        raise Planned(chosen)

    monkeypatch.setattr("tokenmerge_bench.sweep.run_sweep", stop)

    def plan(*arguments: object) -> Experiment:
        with pytest.raises(Planned) as planned:
            tmbench(*arguments)
        chosen: Experiment = planned.value.args[0]
        return chosen

    return plan


@pytest.mark.parametrize(
    ("arguments", "models", "dataset", "limit"),
    [
        (["sweep"], [EMBEDDED], "demo", 400),
        (["sweep", "--limit", 0], [EMBEDDED], "demo", None),
        (["sweep", "--dataset", "val", "--models", TINY_RGB], [TINY_RGB], "val", None),
        (["run", "table2", "--dataset", "demo"], [EMBEDDED], "demo", 400),
        (["run", "table2", "--dataset", "demo", "--limit", 7], [EMBEDDED], "demo", 7),
        (["run", "table2", "--models", EMBEDDED], [EMBEDDED], "demo", 400),
        (["run", "table2", "--dataset", "demo", "--models", TINY], [TINY], "demo", 400),
        (["run", "fig4", "--dataset", "val"], ["deit_small_patch16_224"], "val", None),
        (["run", "fig2", "--dataset", "val"], ["deit_small_patch16_224"], "val", 4),
        (["run", "fig2", "--dataset", "demo"], [EMBEDDED], "demo", 4),
        (["run", "own.toml"], [TINY], "demo", 6),
        (["run", "own.toml", "--dataset", "demo"], [TINY], "demo", 6),
        (["run", "own.toml", "--dataset", "val"], [TINY], "val", None),
        (["run", "all.toml", "--dataset", "demo"], [TINY], "demo", None),
        (["run", "elsewhere.toml", "--models", EMBEDDED], [EMBEDDED], "val", 6),
        (["run", "elsewhere.toml", "--dataset", "demo"], [EMBEDDED], "demo", 400),
        (["sweep", "--experiment", "own.toml", "--limit", 0], [TINY], "demo", None),
    ],
)
def test_which_images_and_models_are_meant(
    planned: Callable[..., Experiment],
    tmp_path: Path,
    arguments: list[object],
    models: list[str],
    dataset: str,
    limit: int | None,
) -> None:
    write_toml(tmp_path / "own.toml")
    write_toml(tmp_path / "all.toml", limit=None)
    write_toml(tmp_path / "elsewhere.toml", dataset="val")
    chosen = planned(*arguments)
    assert (chosen.models, chosen.dataset, chosen.limit) == (models, dataset, limit)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tabel1"], ["'tabel1'", "did you mean 'table1'"]),
        (["none.toml"], ["'none.toml' does not exist", "give the path"]),
        (["table1"], ["'table1' leaves the choice of images to you", "--dataset"]),
        (["typo.toml"], ["'typo.toml'", "'limits'", "did you mean 'limit'"]),
        (["shows.toml"], ["'figl'", "did you mean 'fig", "table1"]),
        (["words.toml"], ["'words.toml'", "limit='many'"]),
        (["torn.toml"], ["'torn.toml'", "no valid TOML"]),
        (["untrained.toml"], ["sit must be trained first", "--untrained"]),
        (["own.toml", "--methods", "dhmt"], ["'dhmt'", "did you mean 'dhtm'"]),
        (["own.toml", "--k", "30"], ["k=30 is too many", "at most 18"]),
        (["own.toml", "--k", ""], ["--k", "empty list", "comma-separated"]),
        (["own.toml", "--out", "file/out"], ["'file/out'", "is a file, or lies in one", "--out"]),
    ],
)
def test_bad_experiments(
    tmbench: Command, weights: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    write_toml(tmp_path / "own.toml")
    write_toml(tmp_path / "typo.toml", limit=None, limits=6)
    write_toml(tmp_path / "shows.toml", shows=["table1", "figl"])
    write_toml(tmp_path / "words.toml", limit="many")
    write_toml(tmp_path / "untrained.toml", methods=["sit"], k=None, budgets=[0.7])
    (tmp_path / "torn.toml").write_text("k = [0, 10")
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    more = () if "table1" in arguments else ("--weights", weights)
    assert_refused(tmbench("run", *arguments, *more), *words)
    assert contents(tmp_path) == before


# --- how images are shown ---------------------------------------------------------------------------------------------


def test_how_images_are_shown_arrives(
    tmbench: Command, rgb_weights: Path, image_folder: Path, tmp_path: Path, quick_figures: None
) -> None:
    write_toml(tmp_path / "own.toml", models=[TINY_RGB], methods=["dhtm"], dataset=None, limit=None)
    shutil.copytree(image_folder, tmp_path / "images" / "val")
    done = tmbench(
        *("run", "own.toml", "--weights", rgb_weights, "--dataset", "images", "--data-dir", tmp_path, "--split", "val"),
        *("--crop-pct", 0.5, "--img-size", 32, "--interpolation", "bilinear", "--examples", 2, "--out", "out"),
    )
    assert (done.code, done.err) == (0, "")
    origin = json.loads((tmp_path / "out" / "provenance.json").read_text())
    shown = origin["models"][TINY_RGB]["preprocessing"]
    assert (shown["crop_pct"], shown["interpolation"], shown["input_size"]) == (0.5, "bilinear", [3, 32, 32])
    assert (origin["experiment"]["split"], origin["experiment"]["data_dir"]) == ("val", str(tmp_path))
    assert origin["dataset"]["name"] == "val"
    pictures = sorted((tmp_path / "out" / "examples").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (32, 32)
    assert set(read_results(tmp_path / "out")["n_images"]) == {6}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--crop-pct", "1.5"], ["--crop-pct 1.5", "less than or equal to 1"]),
        (["--crop-pct", "0"], ["--crop-pct 0", "greater than or equal to 0.05"]),
        (["--crop-pct", "most"], ["'--crop-pct'", "valid", "`tmbench sweep --help`"]),
        (["--img-size", "0"], ["--img-size 0", "greater than or equal to 1"]),
        (["--img-size", "28.5"], ["'--img-size'", "valid", "`tmbench sweep --help`"]),
        (["--interpolation", "bicubik"], ["--interpolation 'bicubik'", "bilinear, bicubic"]),
        (["--examples", "-1"], ["--examples -1", "greater than or equal to 0"]),
        (["--split", "train"], ["no split 'train'", "--split"]),
        (["--data-dir", "none"], ["'none/val' does not exist"]),
        (["--dataset", "torch/cifar10"], ["'torch/cifar10'", "--data-dir, which is not given"]),
        (["--dataset", "demo", "--split", "train"], ["'demo' has no split 'train'", "it has test"]),
        (["--dataset", "demo", "--data-dir", "."], ["'demo' lies inside the package", "leave --data-dir out"]),
    ],
)
def test_images_that_cannot_be_shown_so(
    tmbench: Command, rgb_weights: Path, image_folder: Path, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    before = contents(tmp_path)
    usual = ("--models", TINY_RGB, "--weights", rgb_weights, "--dataset", "val", "--methods", "dhtm", "--k", 3)
    assert_refused(tmbench("sweep", *usual, *flags), *words)
    assert contents(tmp_path) == before


# --- tmbench figures and tables ---------------------------------------------------------------------------------------


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever builds a network or opens images fails."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("tables and figures are made from results alone")

    monkeypatch.setattr(torch.nn.Module, "__init__", fail)
    monkeypatch.setattr("tokenmerge_bench.datasets.open_dataset", fail)
    monkeypatch.setattr("tokenmerge_bench.sweep.open_dataset", fail)


def test_tables_and_figures_need_no_model(
    tmbench: Command, swept: Path, template: Path, tmp_path: Path, no_models: None
) -> None:
    done = tmbench("tables", "swept")
    assert done.code == 0
    assert done.out.splitlines() == [
        "table   swept/table1.md (also csv, tex)",
        "table   swept/results_table.md (also csv, tex)",
    ]
    assert done.err.startswith("tmbench: table2 is left out: table 2 compares methods at 0.7 of the FLOPs")
    assert done.err.count("\n") == 1
    done = tmbench("figures", "swept", "--only", "fig4, fig1", "--formats", "svg,png,svg", "--out", "my figures/new")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "figure  my figures/new/fig4.svg (also png)",
        "figure  my figures/new/fig1.svg (also png)",
    ]
    assert sorted(contents(tmp_path / "my figures" / "new")) == ["fig1.png", "fig1.svg", "fig4.png", "fig4.svg"]
    assert {name: content for name, content in contents(swept).items() if "table" not in name} == contents(template)


def test_what_is_asked_for_by_name_must_be_possible(tmbench: Command, swept: Path) -> None:
    done = tmbench("tables", "swept", "--only", "table2,results")
    assert (done.code, done.out) == (2, "table   swept/results_table.md (also csv, tex)\n")
    assert done.err.count("\n") == 1
    assert "table 2 compares methods at 0.7" in done.err
    assert_refused(tmbench("figures", "swept", "--only", "fig2"), "fig2 finds no merges")


def test_figure_3_shows_no_results_and_needs_none(tmbench: Command, tmp_path: Path) -> None:
    done = tmbench("figures", "--only", "fig3", "--formats", "svg", "--out", "here")
    assert (done.code, done.out, done.err) == (0, "figure  here/fig3.svg\n", "")
    assert sorted(contents(tmp_path / "here")) == ["fig3.svg"]
    assert_refused(tmbench("figures", "--only", "fig3"), "fig3 needs no results", "--out")
    assert_refused(tmbench("figures", "--only", "fig3,fig1", "--out", "here"), "no results folder was given")


@pytest.fixture
def traps(swept: Path, tmp_path: Path) -> None:
    """Folders that cannot be opened."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("stopped", "newer", "elsewhere"):
        shutil.copytree(swept, tmp_path / name)
    (tmp_path / "stopped" / "results.csv").unlink()
    edit_json(tmp_path / "newer" / "sweep.json", format=7)
    edit_json(tmp_path / "newer" / "provenance.json", tokenmerge_bench="9.1")
    edit_json(tmp_path / "elsewhere" / "provenance.json", subset={"images": 5, "fingerprint": "another"})


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figures"], ["no results folder was given", "tmbench sweep"]),
        (["figures", "--out", "new"], ["no results folder was given"]),
        (["tables"], ["no results folder was given"]),
        (["tables", "--out", "new"], ["no results folder was given"]),
        (["figures", "swept", "--only", "fig1,fgi3"], ["no figure 'fgi3'", "did you mean 'fig3'", "fig1, fig2"]),
        (["figures", "swept", "--only", "table1"], ["no figure 'table1'", "fig1, fig2"]),
        (["tables", "swept", "--only", "tabel2"], ["no table 'tabel2'", "did you mean 'table2'"]),
        (["tables", "swept", "--only", "fig1"], ["no table 'fig1'", "table1, table2"]),
        (["figures", "swept", "--formats", "pgn"], ["no format 'pgn'", "did you mean 'png'", "png, svg, pdf"]),
        (["figures", "swept", "--only", ""], ["--only", "empty list"]),
        (["figures", "swept", "--formats", " , "], ["--formats", "empty list"]),
        (["tables", "swept", "--only", ","], ["--only", "empty list"]),
        (["tables", "none"], ["'none' does not exist"]),
        (["tables", "empty"], ["'empty' holds no results.csv"]),
        (["figures", "file"], ["'file' is a file"]),
        (["figures", "stopped"], ["'stopped' is not finished", "give its command again"]),
        (["compare", "dhtm", "random", "stopped"], ["'stopped' is not finished", "give its command again"]),
        (["audit", "stopped"], ["'stopped' is not finished", "give its command again"]),
        (["tables", "newer"], ["'newer'", "tokenmerge-bench 9.1 in format 7", "update"]),
        (["tables", "swept", "--out", "file"], ["'file' is a file"]),
        (["tables", "swept", "--out", "file/new"], ["'file/new' is a file, or lies in one"]),
        (["figures", "--only", "fig3", "--out", "file/new"], ["'file/new' is a file, or lies in one"]),
        (["audit", "--out", "file/new"], ["'file/new' is a file, or lies in one"]),
        (["figures", "swept", "elsewhere"], ["'swept' and 'elsewhere'", "different images", "12 images", "another"]),
        (["compare", "dhtm", "lotm", "swept", "elsewhere"], ["'swept' and 'elsewhere'", "different images"]),
    ],
)
def test_what_cannot_be_shown(
    tmbench: Command, traps: None, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    before = contents(tmp_path)
    assert_refused(tmbench(*arguments), *words)
    assert contents(tmp_path) == before


def test_different_images_are_refused_with_both_fingerprints(tmbench: Command, traps: None, swept: Path) -> None:
    dataset, subset = open_results([swept]).fingerprints
    assert_refused(tmbench("tables", "swept", "elsewhere"), f"12 images {subset}", "5 images another", dataset)


def test_a_folder_without_write_permission(
    tmbench: Command, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path, _: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", forbidden)
    for command in (("tables", "swept"), ("figures", "swept", "--only", "fig3"), ("audit",)):
        assert_refused(tmbench(*command), "Permission denied", "cannot be read or written")


@pytest.mark.parametrize("name", sorted(path.name for path in HISTORIC.iterdir()))
def test_a_folder_of_an_older_version_can_be_shown(tmbench: Command, tmp_path: Path, name: str) -> None:
    before = contents(HISTORIC / name)
    done = tmbench("tables", HISTORIC / name, "--only", "results", "--out", "out")
    assert (done.code, done.err) == (0, "")
    done = tmbench("figures", HISTORIC / name, "--only", "fig1", "--formats", "svg", "--out", "out")
    assert (done.code, done.err) == (0, "")
    done = tmbench("compare", "dhtm", "none", HISTORIC / name)
    assert done.code == 0
    finished = read_results(HISTORIC / name).query("method == 'dhtm' and status == 'ok'")
    assert len(pd.read_csv(tmp_path / "out" / "results_table.csv").query("method == 'dhtm'")) == len(finished) > 0
    assert len(rows_of(done.out)) == len(finished)
    assert contents(HISTORIC / name) == before


def test_ctrl_c_while_tables_are_made(tmbench: Command, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenmerge_bench.tables.save", interrupted)
    done = tmbench("tables", "swept")
    assert done.code == 130
    assert "Traceback" not in done.err


# --- tmbench compare --------------------------------------------------------------------------------------------------


def rows_of(out: str) -> list[list[str]]:
    """The cells of the rows of printed tables, which a line of dashes parts from their headings."""
    rows: list[list[str]] = []
    below = False
    for line in out.splitlines():
        if line.startswith("|-"):
            below = True
        elif not line.startswith("|"):
            below = False
        elif below:
            rows.append([cell.strip() for cell in line.split("|")[1:-1]])
    return rows


@pytest.fixture
def two(tmp_path: Path) -> None:
    made(tmp_path / "two", *dhtm_and_tome(), point("lotm", "k=20", 0.600, right(60)))


def test_what_is_printed_agrees_with_the_results(tmbench: Command, swept: Path) -> None:
    done = tmbench("compare", "dhtm", "random", "swept")
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    results = open_results([swept])
    rows = [row for row in rows_of(done.out) if len(row) > 8]
    assert [row[1] for row in rows] == ["k=0", "k=10"]
    for row in rows:
        a, b = (
            results.summary.query(f"method == '{method}' and budget == '{row[1]}'").to_dict("records")[0]
            for method in ("dhtm", "random")
        )
        hits_a, hits_b = (hits.mean(axis=0) for hits in results.hits(a, b))
        assert row[2:6] == [f"{a['gflops']:.4g}", f"{b['gflops']:.4g}", f"{a['top1']:.2f}", f"{b['top1']:.2f}"]
        assert float(row[6].split()[0]) == pytest.approx(100 * np.mean(hits_a - hits_b), abs=0.005)


def test_who_is_better_and_by_how_much(tmbench: Command, two: None) -> None:
    done = tmbench("compare", "dhtm", "tome", "two", "--at", "0.6")
    assert (done.code, done.err) == (0, "")
    first, second, curve, at = rows_of(done.out)
    # 12 images differ: p is twice the probability of at most 2 of 12
    assert first[:2] == ["deit_tiny_patch16_224", "0.7"]
    assert first[4:6] == ["80.00", "72.00"]
    assert first[6].startswith("+8.00 [")
    assert first[7:10] == ["10", "2", f"{2 * (1 + 12 + 66) / 2**12:.3g}"]
    assert first[-1] == "undecided"  # 0.0386, but for two tests
    assert second[7:9] == ["6", "0"]
    assert float(second[9]) == pytest.approx(2 / 2**6, abs=1e-4)
    assert curve[:3] == ["deit_tiny_patch16_224", "0.5", "0.7"]
    assert at[1:3] == ["0.6", "0.6"]


def test_budgets_that_differ_are_compared_on_request_only(tmbench: Command, two: None) -> None:
    refused = tmbench("compare", "dhtm", "lotm", "two")
    assert_refused(refused, "no budget in common", "0.6", "% apart, more than 1 %", "--unequal", "--at")
    done = tmbench("compare", "dhtm", "lotm", "two", "--unequal")
    assert done.code == 0
    assert [row[1] for row in rows_of(done.out)] == ["0.7 / k=20"]
    assert re.fullmatch(r"tmbench: left out: dhtm at 0\.5 .*\n", done.err)
    assert all(re.search(r"but (dhtm|lotm) takes \d+\.\d % more FLOPs", row[-1]) for row in rows_of(done.out))


def test_against_the_unreduced_model_any_budget_will_do(tmbench: Command, two: None) -> None:
    for name in ("none", "unreduced"):
        done = tmbench("compare", "dhtm", name, "two")
        assert (done.code, done.err) == (0, "")
        assert [row[6].split()[0] for row in rows_of(done.out)] == ["-10.00", "-24.00"]


def test_fractions_out_of_reach_are_left_out_and_told(tmbench: Command, two: None) -> None:
    done = tmbench("compare", "dhtm", "tome", "two", "--at", "0.6,0.2,1.5")
    assert done.code == 0
    assert done.err.count("\n") == 2
    for fraction in ("0.2", "1.5"):
        assert f"left out: {fraction} of the FLOPs of deit_tiny_patch16_224" in done.err
    assert [row[1] for row in rows_of(done.out)][-1] == "0.6"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dthm", "tome", "two"], ["no method 'dthm'", "did you mean 'dhtm'", "'tome'"]),
        (["dhtm", "dhtm", "two"], ["'dhtm' was given twice"]),
        (["none", "unreduced", "two"], ["given twice"]),
        (["dhtm", "tome"], ["no results folder was given"]),
        (["two", "dhtm", "tome"], ["'tome' does not exist"]),
        (["dhtm"], ["Missing argument", "`tmbench compare --help`"]),
        (["dhtm", "tome", "two", "--at", "80%"], ["--at '80%' are no numbers", "--at 0.9,0.7"]),
        (["dhtm", "tome", "two", "--at", "nan"], ["--at 'nan' are no numbers"]),
        (["dhtm", "tome", "two", "--at", ""], ["--at", "empty list"]),
    ],
)
def test_what_cannot_be_compared(tmbench: Command, two: None, arguments: list[str], words: list[str]) -> None:
    assert_refused(tmbench("compare", *arguments), *words)


# --- tmbench audit ----------------------------------------------------------------------------------------------------


def test_an_audit_without_results(tmbench: Command, tmp_path: Path) -> None:
    done = tmbench("audit")
    written = ["reproduction.md", "audit_flops.csv", "audit_arithmetic.csv"]
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [f"audit   audit/{name}" for name in written]
    assert sorted(contents(tmp_path / "audit")) == sorted(written)
    assert "Not measured" in (tmp_path / "audit" / "reproduction.md").read_text()


def test_an_audit_of_results(tmbench: Command, weights: Path, tmp_path: Path) -> None:
    run(tmp_path / "swept", weights, methods=["dhtm:layers=3/6"], k=["10", "20"], limit=12)
    done = tmbench("audit", "swept", "--out", "my audit")
    assert (done.code, done.err) == (0, "")
    assert "audit   my audit/audit_accuracy.csv" in done.out.splitlines()
    found = pd.read_csv(tmp_path / "my audit" / "audit_accuracy.csv").set_index("k")
    top1 = read_results(tmp_path / "swept").set_index("budget")["top1"]
    assert found.index.tolist() == [10, 20]
    for k in (10, 20):
        assert found.loc[k, "setting"] == "dhtm:layers=3/6"
        assert found.loc[k, "lost"] == pytest.approx(top1["1"] - top1[f"k={k}"], abs=1e-3)
    text = (tmp_path / "my audit" / "reproduction.md").read_text()
    assert "Not measured" not in text
    assert "dhtm:layers=3/6" in text[text.index("## Which reading loses as little accuracy as reported?") :]


def test_an_audit_runs_both_ablations_and_goes_on_after_ctrl_c(
    tmbench: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_figures: None
) -> None:
    def shortened(name: str, **given: Any) -> Experiment:
        """At a k for which the tiny model has enough tokens."""
        chosen = load_experiment(name, **given)
        return chosen.model_copy(update={"k": ["10"], "methods": chosen.methods[:3]})

    monkeypatch.setattr(experiment, "load_experiment", shortened)
    real, runs, stop = SilentReporter.advance, 0, 0

    def counted(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == stop:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(SilentReporter, "advance", counted)

    def audited(out: str) -> Done:
        usual = ("--dataset", "demo", "--limit", 4, "--batch-size", 2, "--seeds", 1, "--weights", weights)
        return tmbench("audit", "--models", TINY, *usual, "--out", out)

    assert audited("undisturbed").code == 0
    total, runs = runs, 0
    stop = total - 2  # in the last batch of the second ablation
    done = audited("audit")
    assert done.code == 130
    assert done.err == "tmbench: interrupted; the same command goes on from here\n"
    assert (tmp_path / "audit" / "placement" / "results.csv").is_file()
    assert not (tmp_path / "audit" / "reproduction.md").exists()
    done = audited("audit")
    assert (done.code, done.err) == (0, "")
    assert runs == stop + 4  # all four points on the last batch, and nothing else
    for name in ("placement", "averaging_attention"):
        pd.testing.assert_frame_equal(
            lasting(read_results(tmp_path / "audit" / name)), lasting(read_results(tmp_path / "undisturbed" / name))
        )
    documents = [(tmp_path / out / "reproduction.md").read_text() for out in ("audit", "undisturbed")]
    assert documents[0] == documents[1]
    settings = pd.read_csv(tmp_path / "audit" / "audit_accuracy.csv")["setting"]
    assert {"dhtm", "dhtm:position=pre", "dhtm:averaging=plain"} <= set(settings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", TINY], ["'placement' leaves the choice of images to you", "--dataset"]),
        (["--dataset", "demo"], ["--dataset is for running the ablations", "--models"]),
        (["--crop-pct", "0.9"], ["--crop-pct is for running the ablations"]),
        (["swept", "--device", "cuda"], ["--device is for running the ablations"]),
        (["--weights", "file"], ["--weights is for running the ablations"]),
        (["--fresh"], ["--fresh is for running the ablations"]),
        (["--models", TINY, "--k", "10"], ["No such option: --k", "`tmbench audit --help`"]),
        (["none"], ["'none' does not exist"]),
    ],
)
def test_what_cannot_be_audited(
    tmbench: Command, swept: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    before = contents(tmp_path)
    assert_refused(tmbench("audit", *arguments), *words)
    assert contents(tmp_path) == before


# --- flags ------------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def names_of(bundle: type) -> list[str]:
    return [field.name for field in fields(bundle)]


def parameters_of(command: str) -> dict[str, tuple[Any, ...]]:
    """The type, description and default of each flag of a command, by its name in Python."""
    callbacks = {info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    described = {}
    for name, parameter in inspect.signature(callbacks[command]).parameters.items():
        kind, option = get_args(parameter.annotation)
        described[name] = (kind, vars(option), parameter.default)
    return described


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_lists_every_flag(tmbench: Command, command: str) -> None:
    done = tmbench(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: tmbench {command}" in done.out
    flags = [flag for parameter in COMMANDS[command].params for flag in parameter.opts if flag.startswith("--")]
    assert len(flags) > 0
    assert [flag for flag in flags if not re.search(rf"{flag}\b", done.out)] == []


def test_without_arguments_help_is_shown(tmbench: Command) -> None:
    done = tmbench()
    assert (done.code, done.err) == (0, "")
    assert [command for command in COMMANDS if not re.search(rf"(?m)^  {command} ", done.out)] == []


@pytest.mark.parametrize(
    ("other", "own", "left_out"),
    [
        ("run", {"experiment"}, set()),  # an argument there
        ("flops", set(), {"experiment", *names_of(Images), *names_of(Running)}),
        ("audit", {"results", "models"}, {"experiment", "plugin", *names_of(Comparison)}),
    ],
)
def test_the_same_flag_is_the_same_everywhere(other: str, own: set[str], left_out: set[str]) -> None:
    sweep, theirs = parameters_of("sweep"), parameters_of(other)
    assert {name: theirs[name] for name in theirs.keys() - own} == {
        name: sweep[name] for name in sweep.keys() - left_out - own
    }


def test_the_same_flags_do_the_same(tmbench: Command, weights: Path, tmp_path: Path, quick_figures: None) -> None:
    what = ("--models", TINY, "--methods", "dhtm:connectivity=4,random", "--layers", "1/5", "--k", "3/7,5")
    how = ("--weights", weights, "--limit", 4, "--seeds", 2, "--seed", 3, "--batch-size", 2, "--dtype", "float64")
    assert tmbench("sweep", *what, *how, "--out", "swept").code == 0
    assert tmbench("run", "demo", *what, *how, "--out", "run").code == 0
    table = read_results(tmp_path / "swept")
    pd.testing.assert_frame_equal(lasting(read_results(tmp_path / "run")), lasting(table))
    assert set(table.loc[table["method"] == "random", "seed"]) == {3, 4}
    done = tmbench("flops", *what)
    assert (done.code, done.err) == (0, "")
    counted = {(row[0], row[1]): (row[2], float(row[4])) for row in rows_of(done.out)}
    summary = open_results([tmp_path / "swept"]).summary.query("method != 'none'").to_dict("records")
    assert len(summary) == 4
    for row in summary:
        knob, gflops = counted[row["label"], row["budget"]]
        assert knob == row["knob"]
        assert gflops == pytest.approx(row["gflops"], abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "--metods", "dhtm"], ["--metods", "--methods", "`tmbench sweep --help`"]),
        (["sweep", "dhtm"], ["unexpected extra argument", "dhtm", "`tmbench sweep --help`"]),
        (["sweep", "--models"], ["'--models' requires an argument"]),
        (["run"], ["Missing argument", "`tmbench run --help`"]),
        (["run", "table1", "table2"], ["unexpected extra argument", "table2"]),
        (["flops", "--limit", "3"], ["--limit", "`tmbench flops --help`"]),
        (["figure", "swept"], ["No such command 'figure'", "`tmbench --help`"]),
        (["methods"], ["No such command 'methods'", "did you mean `tmbench list methods`?"]),
        (["--only", "fig1", "figures"], ["--only", "`tmbench --help`"]),
        (["list"], ["Missing argument", "datasets", "`tmbench list --help`"]),
        (["list", "method"], ["'method' is not one of 'methods'"]),
    ],
)
def test_commands_that_are_mistyped(tmbench: Command, arguments: list[str], words: list[str]) -> None:
    assert_refused(tmbench(*arguments), *words)
