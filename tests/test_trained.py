"""Trained checkpoints in sweeps: beside the methods off the shelf, never mixed up with them or with each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Command, assert_refused
from sweeping import TINY, TINY_BRIGHT, Recorder, contents, lasting, run, save_checkpoint

from tokenmerge_bench import checkpoints as shelf
from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.checkpoints import CARD, Checkpoint, load_weights
from tokenmerge_bench.compare import compare
from tokenmerge_bench.data import eval_transform, load_batch, subset
from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.engine import attached
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import Experiment
from tokenmerge_bench.models import DEMO_MODEL
from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.store import read_results
from tokenmerge_bench.sweep import SweepResult, run_sweep
from tokenmerge_bench.tables import results_table
from tokenmerge_bench.trained import Places
from tokenmerge_bench.verdicts import judge

pytestmark = pytest.mark.usefixtures("closed_form_counts")
Save = Callable[..., Checkpoint]
MIXED: dict[str, Any] = {"methods": ["dpc_knn", "sit"], "keep_rate": ["0.7"]}


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a checkpoint into a folder of its own, `NAME`."""

    def saved(name: str, *method: str, **described: Any) -> Checkpoint:
        return save_checkpoint(tmp_path / "checkpoints" / name, *method, **described)

    return saved


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Two seeds of one method, one with other options than the default, and the unreduced model; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return [
        save_checkpoint(folder / "sit0"),
        save_checkpoint(folder / "sit1", seed=1),
        save_checkpoint(folder / "weighted", "dpc_knn:learned_weights=true"),
        save_checkpoint(folder / "control", "none"),
    ]


@pytest.fixture(scope="module")
def mixed(
    weights: Path, several: list[Checkpoint], tmp_path_factory: pytest.TempPathFactory, closed_form_counts: None
) -> SweepResult:
    """A sweep of methods off the shelf and all of them; not to be changed."""
    return run(tmp_path_factory.mktemp("mixed") / "out", weights, checkpoints=several, **MIXED)


@pytest.fixture(scope="module")
def results(mixed: SweepResult) -> Results:
    return open_results([mixed.path])


def shown(table: pd.DataFrame, *columns: str) -> list[list[Any]]:
    return table[list(columns)].fillna("").to_numpy().tolist()


def fingerprint_of(weights: Path) -> str:
    return load_weights(TINY, weights, device=torch.device("cpu")).fingerprint


def ship(folder: Path, *checkpoints: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes checkpoints those that ship with the package."""
    folder.mkdir()
    for checkpoint in checkpoints:
        shutil.copy(checkpoint.file, folder / f"{checkpoint.name}.safetensors")
        shutil.copy(checkpoint.file.with_name(CARD), folder / f"{checkpoint.name}.json")
    monkeypatch.setattr(shelf, "_SHIPPED", folder)


# --- what a mixed sweep writes ----------------------------------------------------------------------------------------


def test_trained_points_stand_beside_those_off_the_shelf(
    mixed: SweepResult, several: list[Checkpoint], weights: Path
) -> None:
    marks = [checkpoint.card.fingerprint for checkpoint in several]
    read = read_results(mixed.path)
    assert shown(read, "method", "options", "trained", "weights", "seed", "checkpoint", "budget") == [
        ["none", "", "no", weights.name, 0, "", "1"],
        ["none", "", "yes", "control", 0, marks[3], "1"],
        ["dpc_knn", "", "no", weights.name, 0, "", "keep_rate=0.7"],
        ["dpc_knn", "learned_weights=true", "yes", "weighted", 0, marks[2], "keep_rate=0.7"],
        ["sit", "", "yes", "sit0", 0, marks[0], "keep_rate=0.7"],
        ["sit", "", "yes", "sit1", 1, marks[1], "keep_rate=0.7"],
    ]
    assert set(read["status"]) == {"ok"}
    assert set(read["model"]) == {TINY}
    assert read["point"].is_unique
    assert (read["reduction"][:2] == 0).all()
    assert (read["reduction"][2:] > 0).all()


def test_a_trained_point_is_its_own_weights_and_reducers(
    mixed: SweepResult, several: list[Checkpoint], results: Results
) -> None:
    """Each is worked out once more, without the sweep."""
    images = open_dataset("demo")
    chosen = subset(images, 6, 0)
    rows = {row["checkpoint"]: row for row in mixed.table.to_dict("records")}
    for checkpoint in several:
        row = rows[checkpoint.card.fingerprint]
        loaded, reducers = checkpoint.load(TINY, device=torch.device("cpu"))
        methods = [] if checkpoint.method is None else [checkpoint.method]
        (place,) = Places(loaded.model, methods, [Budget("keep_rate", "0.7")]).of(checkpoint)
        network = attached(loaded.model, place.point(loaded), reducers)
        batch = load_batch(images, chosen, eval_transform(loaded.data_config))
        with torch.inference_mode():
            logits = network(batch.pixels, torch.from_numpy(batch.ids))
        prediction, rank, _ = judge(logits, torch.from_numpy(batch.labels))
        outcomes = results.outcomes({**row, "folder": 0})
        assert outcomes["prediction"].tolist() == prediction.tolist()
        assert outcomes["rank"].tolist() == rank.tolist()


def test_seeds_are_averaged(mixed: SweepResult, results: Results) -> None:
    both = mixed.table[mixed.table["method"] == "sit"]["top1"]
    row = results.summary[results.summary["method"] == "sit"].iloc[0]
    assert (row["seeds"], row["top1"], row["top1_sd"]) == (2, both.mean(), pytest.approx(both.std(ddof=1)))
    hits = results.hits(row.to_dict())[0]
    assert hits.shape == (2, 6)


def test_the_unreduced_model_is_the_one_off_the_shelf(results: Results) -> None:
    unreduced = results.unreduced(TINY)
    assert unreduced is not None
    assert (unreduced["trained"], unreduced["weights"]) == ("no", "tiny.safetensors")
    frame: dict[Any, dict[Any, Any]] = results_table(results).set_index("method").to_dict("index")
    assert list(frame)[:2] == ["unreduced", "unreduced (trained)"]
    own, tuned = frame["unreduced"], frame["unreduced (trained)"]
    assert own["drop"] == 0
    assert np.isnan(own["drop_low"])
    assert tuned["drop"] == pytest.approx(own["top1"] - tuned["top1"], abs=1e-3)
    assert tuned["drop_low"] < tuned["drop"] < tuned["drop_high"]


@pytest.mark.parametrize(
    ("a", "b"),
    [("sit (trained)", "dpc_knn"), ("none (trained)", "none"), ("unreduced (trained)", "sit (trained)")],
)
def test_trained_methods_are_compared(results: Results, a: str, b: str) -> None:
    found = compare(results, a, b, unequal=True)
    assert len(found.pairs) == 1
    assert found.a == a.replace("none", "unreduced")


def test_the_provenance_has_the_cards(mixed: SweepResult, several: list[Checkpoint]) -> None:
    origin = json.loads((mixed.path / "provenance.json").read_text())
    assert [held["name"] for held in origin["checkpoints"]] == ["control", "weighted", "sit0", "sit1"]
    for held, checkpoint in zip(origin["checkpoints"], [several[i] for i in (3, 2, 0, 1)], strict=True):
        assert held["card"] == checkpoint.card.model_dump(mode="json")
        assert held["fingerprint"] == checkpoint.card.fingerprint
        assert held["model"] == TINY
    assert list(origin["models"]) == [TINY]
    assert str(several[0].file.parent.parent) not in json.dumps(origin["checkpoints"])


def test_soft_assignments_have_pictures(weights: Path, tmp_path: Path, several: list[Checkpoint]) -> None:
    out = run(tmp_path / "out", weights, checkpoints=several[:1], examples=2, **MIXED)
    row = out.table[out.table["method"] == "sit"].iloc[0].to_dict()
    examples = open_results([out.path]).examples({**row, "folder": 0})
    steps = several[0].card.steps
    assert [[(site.block, site.tokens) for site in example.sites] for example in examples] == [
        [(step.block, step.n_out) for step in steps]
    ] * 2
    for example in examples:
        for site in example.sites:
            assert 0 <= site.owner.min() <= site.owner.max() < site.tokens


# --- going on ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_sweep_goes_on(
    mixed: SweepResult, weights: Path, several: list[Checkpoint], tmp_path: Path
) -> None:
    """Of five engines, the third is at the second of three batches."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, weights, Recorder(interrupt_at=9), checkpoints=several, **MIXED)
    journal = [json.loads(line)["model"] for line in (out / "journal.jsonl").read_text().splitlines()]
    assert len(set(journal)) == 5
    again = Recorder()
    found = run(out, weights, again, checkpoints=several, **MIXED)
    assert again.done > 0
    pd.testing.assert_frame_equal(lasting(found.table), lasting(mixed.table))
    ours, theirs = contents(out), contents(mixed.path)
    assert {name for name in ours if name.startswith("outcomes")} == {n for n in theirs if n.startswith("outcomes")}
    assert all(ours[name] == theirs[name] for name in ours if name.startswith("outcomes"))


def test_checkpoints_can_be_added_and_not_exchanged(weights: Path, save: Save, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(out, weights, **MIXED)
    assert shown(first.table, "method", "status") == [["none", "ok"], ["dpc_knn", "ok"], ["sit", "missing"]]
    told = Recorder()
    run(out, weights, told, checkpoints=[save("mine")], **MIXED)
    assert {point.split("-")[1] for point in told.points} == {"sit"}
    before = contents(out)
    with pytest.raises(InputError, match=r"holds another experiment .*mine sit at keep_rate=0.7 seed 0"):
        run(out, weights, checkpoints=[save("mine", weights="moving average, last epoch")], **MIXED)
    assert contents(out) == before


def test_folders_of_two_checkpoints_of_one_setting_are_not_averaged(weights: Path, save: Save, tmp_path: Path) -> None:
    paths = []
    for name, which in (("a", "last epoch"), ("b", "moving average, last epoch")):
        paths.append(run(tmp_path / name, weights, checkpoints=[save(name, weights=which)], **MIXED).path)
    with pytest.raises(InputError, match=r"differ in the checkpoint of tiny_28 trained with sit .* with seed 0"):
        open_results(paths)


# --- what is missing --------------------------------------------------------------------------------------------------


def test_what_must_be_trained_first_is_missing(weights: Path, save: Save, tmp_path: Path) -> None:
    result = run(
        tmp_path / "out", weights, checkpoints=[save("mine")], methods=["dpc_knn", "sit"], keep_rate=["0.7", "0.5"]
    )
    missing = result.table[result.table["status"] == "missing"]
    assert shown(missing, "method", "budget", "trained") == [["sit", "keep_rate=0.5", "yes"]]
    assert missing["reason"].item() == (
        "must be trained first; give a checkpoint by --weights, or train one: tmbench train --model tiny_28 "
        "--method sit --keep-rate 0.5, with --recipe, --dataset and --out"
    )
    summary = open_results([result.path]).summary
    assert summary.loc[summary["method"] == "sit", "budget"].tolist() == ["keep_rate=0.7", "keep_rate=0.5"]


def test_budgets_and_methods_stay_in_the_order_they_were_asked_for(weights: Path, save: Save, tmp_path: Path) -> None:
    """Whatever was trained, and in whichever order checkpoints were given."""
    given = [save("b", "patchmerger", "0.5"), save("a")]
    asked: dict[str, Any] = {"methods": ["sit", "patchmerger"], "keep_rate": ["0.7", "0.5"]}
    result = run(tmp_path / "out", weights, checkpoints=given, **asked)
    assert shown(result.table, "method", "budget", "status")[1:] == [
        ["patchmerger", "keep_rate=0.7", "missing"],
        ["sit", "keep_rate=0.7", "ok"],
        ["sit", "keep_rate=0.5", "missing"],
        ["patchmerger", "keep_rate=0.5", "ok"],
    ]


def test_without_any_checkpoint_there_is_nothing_to_run(tmbench: Command, weights: Path, tmp_path: Path) -> None:
    asked = ("--models", TINY, "--weights", weights, "--methods", "sit,sinkhorn", "--keep-rate", "0.7", "--limit", 2)
    before = contents(tmp_path)
    words = ["sit must be trained first", "--method sit --keep-rate 0.7", "--untrained"]
    assert_refused(tmbench("sweep", *asked), *words)
    assert contents(tmp_path) == before


def test_untrained_methods_have_weights_that_follow_from_the_seed(weights: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"methods": ["sit", "dpc_knn"], "keep_rate": ["0.7"], "untrained": True}
    runs = [run(tmp_path / name, weights, **asked) for name in "ab"]
    rows = runs[0].table
    assert shown(rows, "method", "trained", "seed", "status", "checkpoint") == [
        ["none", "no", 0, "ok", ""],
        ["sit", "no", 0, "ok", ""],
        ["sit", "no", 1, "ok", ""],
        ["dpc_knn", "no", 0, "ok", ""],
    ]
    outcomes = [{n: c for n, c in contents(r.path).items() if n.startswith("outcomes")} for r in runs]
    assert outcomes[0] == outcomes[1]


def test_a_budget_that_reduces_nothing_needs_no_training(weights: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "out", weights, methods=["sit"], keep_rate=["1.0"])
    assert shown(result.table, "method", "status", "trained") == [["none", "ok", "no"], ["sit", "ok", "no"]]


# --- checkpoints that ship with the package ---------------------------------------------------------------------------


def test_shipped_checkpoints(weights: Path, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that learn take them in any case, the others where they are asked for."""
    own = {"initial": {"label": "tiny.safetensors", "fingerprint": fingerprint_of(weights)}}
    made = [
        save("sit-0.7", **own),
        save("dpc_knn-0.7", "dpc_knn:learned_weights=true", **own),
        save("none-1", "none", **own),
    ]
    ship(tmp_path / "shipped", *made, monkeypatch=monkeypatch)
    plain = run(tmp_path / "plain", weights, **MIXED).table
    assert shown(plain, "weights")[2:] == [["embedded:sit-0.7"]]
    everything = run(tmp_path / "all", weights, trained=True, **MIXED).table
    own_weights = [weights.name]
    assert shown(everything, "weights") == [
        own_weights, ["embedded:none-1"], own_weights, ["embedded:dpc_knn-0.7"], ["embedded:sit-0.7"]
    ]  # fmt: skip
    mine = run(tmp_path / "mine", weights, checkpoints=[save("mine", seed=3)], **MIXED).table
    assert shown(mine, "weights", "seed")[2:] == [["mine", 3]]


def test_shipped_checkpoints_are_found_under_timms_tag_too(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"models": [f"{DEMO_MODEL}.fashion_mnist"], "methods": ["sit"], "budgets": [0.7]}
    found = run_sweep(Experiment(dataset="demo", limit=2, **asked), out=tmp_path / "out", reporter=Recorder()).table
    assert shown(found, "model", "weights", "status")[1:] == [[asked["models"][0], "embedded:sit-0.7", "ok"]]


def test_shipped_checkpoints_are_not_for_other_weights(
    weights: Path, other_weights: Path, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"label": "tiny.safetensors", "fingerprint": fingerprint_of(weights)}
    ship(tmp_path / "shipped", save("sit-0.7", initial=own), monkeypatch=monkeypatch)
    told = Recorder()
    assert run(tmp_path / "out", other_weights, told, trained=True, **MIXED).table["status"].tolist()[-1] == "missing"
    (note,) = told.notes
    assert note.startswith(f"no trained checkpoint that ships with the package fits these methods, budgets and {TINY}")


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_figures")
def test_checkpoints_as_they_are_typed(tmbench: Command, weights: Path, save: Save, tmp_path: Path) -> None:
    given = [save("mine").file.parent, save("control", "none").file]
    flags = [word for path in given for word in ("--weights", path)]
    done = tmbench(
        *("sweep", "--models", TINY, "--weights", f"{TINY}={weights}", *flags, "--methods", "dpc_knn,sit"),
        *("--keep-rate", "0.7", "--limit", 2, "--out", "out"),
    )
    assert done.code == 0
    assert done.err == ""
    assert "sit (trained)" in done.out
    assert "unreduced (trained)" in done.out
    table = read_results(tmp_path / "out")
    assert shown(table, "weights") == [["tiny.safetensors"], ["control"], ["tiny.safetensors"], ["mine"]]


@pytest.mark.usefixtures("quick_figures")
def test_a_model_trained_from_scratch_is_the_one_off_the_shelf(tmbench: Command, save: Save, tmp_path: Path) -> None:
    """Its folder alone, or as MODEL=FOLDER; so is a fine-tuned one, if that is asked for."""
    scratch = save("scratch", "none", initial=None).file.parent
    tuned = save("tuned", "none").file.parent
    for out, text in enumerate((scratch, f"{TINY}={scratch}", f"{TINY}={tuned}")):
        done = tmbench(
            *("sweep", "--models", f"{TINY}", "--weights", text, "--methods", "dpc_knn", "--keep-rate", "0.7"),
            *("--limit", 2, "--out", out),
        )
        assert done.code == 0, done.err
        table = read_results(tmp_path / str(out))
        assert set(table["weights"]) == {str(text).rpartition("/")[2]}
        assert set(table["trained"]) == {"no"}


@pytest.mark.parametrize(
    ("method", "described", "flags", "words"),
    [
        ("sit", {}, ["--methods", "dpc_knn"], ["tiny_28 with sit at keep_rate=0.7", "--methods sit"]),
        ("sit", {}, ["--keep-rate", "0.5"], ["other budgets (keep_rate=0.5)", "add it by --keep-rate 0.7"]),
        ("sit", {"model": TINY_BRIGHT}, [], [f"trained for {TINY_BRIGHT}", f"add it by --models {TINY_BRIGHT}"]),
        ("sit", {"budget": "3.26 GFLOPs"}, ["--keep-rate", "0.5"], ["add it by --gflops 3.26"]),
        ("sit", {"budget": "0.7"}, ["--keep-rate", "0.5"], ["add it by --budgets 0.7"]),
        ("sit", {"budget": "keep_rate=0.5"}, ["--keep-rate", "0.5"], ["it left 34/24/16 tokens", "so train it again"]),
        ("sit", {"classes": 7}, [], ["weights of another architecture"]),
        ("sit", {"options": {"distil": True}}, [], ["'sit' has no option 'distil'"]),
        ("sti", {"method": "sti"}, [], ["unknown method 'sti'", "did you mean 'sit'"]),
        ("dpc_knn:k=3", {}, ["--methods", "dpc_knn:k=4"], ["no such method", "--methods dpc_knn:k=3"]),
        ("none", {"model_kwargs": {"embed_dim": 32}}, [], ["another size", "embed_dim", f"--weights {TINY}=PATH"]),
    ],
)  # fmt: skip
def test_checkpoints_of_something_else(
    tmbench: Command,
    weights: Path,
    save: Save,
    tmp_path: Path,
    method: str,
    described: dict[str, Any],
    flags: list[str],
    words: list[str],
) -> None:
    folder = save("mine", method.replace("sti", "sit"), **described).file.parent
    usual = ("--models", TINY, "--weights", f"{TINY}={weights}", "--limit", 2, "--out", "out")
    before = contents(tmp_path)
    asked = {"--methods": "dpc_knn,sit", "--keep-rate": "0.7"} | dict(zip(flags[::2], flags[1::2], strict=True))
    chosen = [word for pair in asked.items() for word in pair]
    assert_refused(tmbench("sweep", *usual, *chosen, "--weights", folder), *words)
    assert contents(tmp_path) == before


def test_reducers_of_another_version_are_refused(weights: Path, save: Save, tmp_path: Path) -> None:
    """A card that calls the reducers another method, of the same schedule."""
    other = save("mine", "patchmerger", method="sit", options={})
    with pytest.raises(InputError, match=r"weights of other reducers than sit has here: .* train it again"):
        run(tmp_path / "out", weights, checkpoints=[other], **MIXED)
    assert not (tmp_path / "out").exists()


def test_two_of_one_seed_are_refused(weights: Path, save: Save, tmp_path: Path) -> None:
    twice = [save("a"), save("b", weights="moving average, last epoch")]
    with pytest.raises(InputError, match=r"a/.*and .*b/.* are both tiny_28 with sit at keep_rate=0.7 with seed 0"):
        run(tmp_path / "out", weights, checkpoints=twice, **MIXED)


def test_a_trained_method_is_not_a_models_own(tmbench: Command, save: Save) -> None:
    folder = save("mine").file.parent
    asked = ("--models", TINY, "--weights", f"{TINY}={folder}", "--methods", "dpc_knn", "--keep-rate", "0.7")
    assert_refused(tmbench("sweep", *asked), "trained with sit", "not those of the unreduced model")


def test_methods_that_learn_are_timed_and_counted_with_initial_weights(tmbench: Command, tmp_path: Path) -> None:
    asked = ("--models", TINY, "--methods", "sit,dpc_knn", "--keep-rate", "0.7")
    done = tmbench("profile", *asked, "--batch-sizes", 1, "--seconds", 0, "--out", "speed")
    assert (done.code, done.err) == (0, "")
    assert shown(pd.read_csv(tmp_path / "speed" / "profile.csv"), "method", "status", "seed") == [
        ["none", "ok", 0], ["sit", "ok", 0], ["dpc_knn", "ok", 0]
    ]  # fmt: skip
    done = tmbench("flops", *asked)
    assert (done.code, done.err) == (0, "")
    assert "sit" in done.out


def test_methods_are_listed_with_what_is_trained_of_them(
    tmbench: Command, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tmp_path / "shipped", save("tome-0.7", "dpc_knn", model="deit_micro_patch2_28"), monkeypatch=monkeypatch)
    listed = tmbench("list", "methods").out
    assert "patchmerger" in listed  # which is as long as a name gets
    assert "--keep-rate" in listed
    assert listed.count("Must be trained.") == 3
    assert "Shipped, trained at keep_rate=0.7." in listed


def test_profiles_take_no_checkpoints(tmbench: Command, save: Save) -> None:
    folder = save("mine").file.parent
    done = tmbench("profile", "--models", TINY, "--weights", folder, "--methods", "sit", "--keep-rate", "0.7")
    assert_refused(done, "'mine' was trained for tiny_28 with sit", "times do not depend", "leave it out")
