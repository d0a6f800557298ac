"""Whole sweeps: what they write, and that nothing changes it that should not."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float
from sweeping import TINY, TINY_RGB, Recorder, contents, experiment, lasting, run, save_image
from torch import Tensor

from tokenmerge_bench import reducers
from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.budgets import Budget, Solver, reduce_with
from tokenmerge_bench.counting import count
from tokenmerge_bench.data import eval_transform, load_batch, subset
from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.hardware import open_device
from tokenmerge_bench.models import load_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.reduced_vit import ReducedViT
from tokenmerge_bench.reducers import TokenReducer
from tokenmerge_bench.statistics import wilson_interval
from tokenmerge_bench.store import ResultFolder, read_results
from tokenmerge_bench.sweep import SweepResult
from tokenmerge_bench.tokens import Tokens
from tokenmerge_bench.trie import Tree
from tokenmerge_bench.verdicts import judge

pytestmark = pytest.mark.usefixtures("closed_form_counts")
DESIGN_COLUMNS = {
    "experiment", "model", "weights", "dataset", "n_images", "method", "options", "trained", "budget", "knob",
    "top1", "top1_low", "top1_high", "top5", "gflops", "gflops_reducer", "reduction", "tokens_per_block",
    "images_per_s", "latency_ms", "peak_memory_mb", "seed", "device", "dtype", "status",
}  # fmt: skip


class Front(TokenReducer):
    """Keeps the first tokens and drops the others into the first one; `trouble` gets the number of batches x layers."""

    calls: ClassVar[int] = 0

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        type(self).calls += len(tokens.features) > 1  # MACs are counted with one image
        self.trouble(type(self).calls)
        n = tokens.features.shape[1]
        labels = torch.arange(n).where(torch.arange(n) < n_out, torch.zeros(n, dtype=torch.int64))
        return HardAssignment(labels.expand(len(tokens.features), n), n_out, tokens.sizes)

    def trouble(self, call: int) -> None:
        """Nothing; tests put something here."""

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        return 0


@dataclass
class Methods:
    """Methods that exist during one test."""

    def add(self, name: str, cls: type[TokenReducer]) -> None:
        reducers.reducer(name)(cls)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Methods:
    parse_method("dhtm")  # so that the real methods are found before the copy is made
    monkeypatch.setattr(reducers, "_registered", dict(reducers._registered))
    monkeypatch.setattr("tokenmerge_bench.registry._registered", reducers._registered)
    return Methods()


@pytest.fixture(scope="module")
def undisturbed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """The sweep that interrupted ones are compared with."""
    return run(tmp_path_factory.mktemp("sweep") / "undisturbed", weights)


@pytest.fixture(scope="module")
def template(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the smallest sweep, not to be changed."""
    return run(tmp_path_factory.mktemp("small") / "out", weights, methods=["dhtm"], limit=2).path


@pytest.fixture
def small(template: Path, tmp_path: Path) -> Path:
    """The same results in `out`."""
    return Path(shutil.copytree(template, tmp_path / "out"))


def outcome_files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.startswith("outcomes/")}


def texts(column: pd.Series[Any]) -> list[str]:
    """Values as they stand in a CSV file."""
    return ["" if value is None or value != value else str(value) for value in column]


def assert_same(found: SweepResult, wanted: SweepResult) -> None:
    pd.testing.assert_frame_equal(lasting(read_results(found.path)), lasting(read_results(wanted.path)))
    assert outcome_files(found.path) == outcome_files(wanted.path)


def assert_same_but(method: str, found: SweepResult, wanted: SweepResult) -> None:
    """The same rows apart from those of one method."""
    found_rows, wanted_rows = read_results(found.path), read_results(wanted.path)
    others = found_rows[found_rows["method"] != method].reset_index(drop=True)
    pd.testing.assert_frame_equal(lasting(others), lasting(wanted_rows), check_dtype=False)


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_a_table_outcomes_and_provenance(undisturbed: SweepResult, weights: Path) -> None:
    folder, table = undisturbed.path, undisturbed.table
    assert set(table.columns) >= DESIGN_COLUMNS
    read = read_results(folder)
    for column in table:
        assert texts(table[column]) == texts(read[column]), column
    assert table["method"].tolist() == ["none", "dhtm", "lotm", "random", "random"]
    assert table["seed"].tolist() == [0, 0, 0, 0, 1]
    assert set(table["status"]) == {"ok"}
    assert table["n_images"].tolist() == [6] * 5
    assert table["knob"].tolist()[0] == ""
    assert all(table["knob"][1:].str.contains("="))
    assert set(table["weights"]) == {weights.name}
    assert (table[["images_per_s", "latency_ms"]] > 0).all().all()
    assert sorted(f"{point}.csv.gz" for point in table["point"]) == sorted(
        path.name for path in (folder / "outcomes").iterdir()
    )
    assert not (folder / "journal.jsonl").exists()
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["experiment"]["methods"] == ["dhtm", "lotm", "random"]
    assert origin["subset"]["images"] == 6
    assert origin["models"][TINY]["fingerprint"] in origin["models"][TINY].values()
    assert {"git_revision", "packages", "platform", "processor", "device", "command", "dataset"} <= set(origin)


def test_accuracies_are_those_of_the_logits(undisturbed: SweepResult, weights: Path) -> None:
    images = open_dataset("demo")
    loaded = load_model(TINY, weights, device=torch.device("cpu"))
    chosen = subset(images, 6, 0)
    batches = [load_batch(images, chosen[i : i + 2], eval_transform(loaded.data_config)) for i in (0, 2, 4)]
    labels = np.concatenate([b.labels for b in batches])
    for row in undisturbed.table.to_dict("records"):
        network: torch.nn.Module = loaded.model
        if row["method"] != "none":
            spec = parse_method(row["method"])
            kind, _, value = row["knob"].partition("=")
            solution = Solver(loaded.model).solve(spec, Budget(kind, value))
            network = reduce_with(loaded.model, spec, solution, row["seed"])
        with torch.inference_mode():
            each = [
                network(b.pixels) if row["method"] == "none" else network(b.pixels, torch.from_numpy(b.ids))
                for b in batches
            ]
        logits = torch.cat(each).numpy()
        order = np.argsort(-logits, axis=1, kind="stable")
        assert row["top1"] == pytest.approx(100 * np.mean(order[:, 0] == labels), abs=1e-3)
        assert row["top5"] == pytest.approx(100 * np.mean((order[:, :5] == labels[:, None]).any(1)), abs=1e-3)
        outcomes = pd.read_csv(undisturbed.path / "outcomes" / f"{row['point']}.csv.gz")
        assert outcomes["image"].tolist() == [images.paths[i] for i in chosen]
        assert outcomes["label"].tolist() == labels.tolist()
        assert outcomes["prediction"].tolist() == order[:, 0].tolist()
        assert outcomes["rank"].tolist() == np.argmax(order == labels[:, None], axis=1).tolist()
        if isinstance(network, ReducedViT):
            macs = count(network)
            assert row["gflops"] == macs.total / 1e9
            assert row["gflops_reducer"] == macs.reducer / 1e9
            assert row["tokens_per_block"].split() == [str(t) for t in network.schedule.mlp_tokens()]


def test_savings_are_fractions_of_the_unreduced_model(undisturbed: SweepResult) -> None:
    table = undisturbed.table
    assert table["reduction"][0] == 0
    assert np.allclose(table["reduction"], 1 - table["gflops"] / table["gflops"][0], atol=1e-6)
    assert all(table["reduction"][1:].between(0.1, 0.3))


def wilson(hits: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(centre - half, 0.0), min(centre + half, 1.0)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 6), (3, 6), (6, 6), (917, 1000), (9236, 10000)])
def test_intervals_are_wilsons(hits: int, n: int) -> None:
    assert wilson_interval(hits, n) == pytest.approx(wilson(hits, n), abs=1e-12)


def test_intervals_of_the_table_belong_to_its_outcomes(undisturbed: SweepResult) -> None:
    for row in undisturbed.table.to_dict("records"):
        outcomes = pd.read_csv(undisturbed.path / "outcomes" / f"{row['point']}.csv.gz")
        hits = int((outcomes["prediction"] == outcomes["label"]).sum())
        assert (outcomes["rank"] == 0).sum() == hits
        assert row["top1"] == pytest.approx(100 * hits / 6, abs=1e-3)
        low, high = wilson(hits, 6)
        assert (row["top1_low"], row["top1_high"]) == pytest.approx((100 * low, 100 * high), abs=1e-3)


def test_ranks_and_predictions_of_ties_go_to_the_lower_class() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    prediction, rank, finite = judge(logits, torch.tensor([2, 0, 0]))
    assert prediction.tolist() == [1, 0, 3]
    assert rank.tolist() == [1, 0, 3]
    assert finite
    assert not judge(torch.tensor([[1.0, math.nan]]), torch.tensor([0]))[2]
    assert not judge(torch.tensor([[1.0, math.inf]]), torch.tensor([0]))[2]


def test_seeds_of_random_differ(undisturbed: SweepResult) -> None:
    first, second = undisturbed.table[undisturbed.table["method"] == "random"]["point"]
    files = outcome_files(undisturbed.path)
    assert files[f"outcomes/{first}.csv.gz"] != files[f"outcomes/{second}.csv.gz"]


def test_results_do_not_depend_on_the_batch_size(undisturbed: SweepResult, weights: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "out", weights, batch_size=6)
    compared = ["method", "top1", "top5", "gflops", "knob", "seed", "n_images"]
    pd.testing.assert_frame_equal(whole.table[compared], undisturbed.table[compared])


def test_the_same_method_spelt_twice_is_one_point(weights: Path, tmp_path: Path) -> None:
    spelt = ["dhtm", "dhtm:connectivity=8", "dhtm:layers=3/6/10", "dhtm"]
    assert run(tmp_path / "out", weights, methods=spelt, limit=2).table["method"].tolist() == ["none", "dhtm"]


# --- points that give no number ---------------------------------------------------------------------------------------


def test_an_unreachable_point_is_a_row_with_its_reason(weights: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "out", weights, methods=["tome:staged=on", "dhtm"], budgets=[0.4], limit=2)
    rows = result.table.set_index("method")
    assert rows.loc["tome", "status"] == "unreachable"
    assert "nearest that tome:staged=true can do is" in str(rows.loc["tome", "reason"])
    assert rows["top1"].isna().tolist() == [False, True, False]
    assert rows.loc["dhtm", "status"] == "ok"
    assert result.failures == {}


def test_preprocessing_can_be_changed_and_is_recorded(
    rgb_weights: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, Any] = {"models": [TINY_RGB], "dataset": str(image_folder), "methods": ["dhtm"]}
    run(tmp_path / "out", rgb_weights, **chosen)
    with pytest.raises(InputError, match=r"holds another experiment \(preprocessing was .*crop_pct.*0.5"):
        run(tmp_path / "out", rgb_weights, **chosen, crop_pct=0.5)
    run(tmp_path / "cropped", rgb_weights, **chosen, crop_pct=0.5, interpolation="bilinear")
    used = [
        json.loads((tmp_path / folder / "provenance.json").read_text())["models"][TINY_RGB]["preprocessing"]
        for folder in ("out", "cropped")
    ]
    assert [(p["crop_pct"], p["interpolation"]) for p in used] == [(1.0, "bicubic"), (0.5, "bilinear")]
    with pytest.raises(InputError, match="bicubik"):
        run(tmp_path / "bad", rgb_weights, **chosen, interpolation="bicubik")


def test_images_of_another_size(rgb_weights: Path, image_folder: Path, tmp_path: Path) -> None:
    """Position embeddings are resampled, and the budget is that of the larger model."""
    result = run(
        tmp_path / "out",
        rgb_weights,
        models=[TINY_RGB],
        dataset=str(image_folder),
        methods=["dhtm"],
        budgets=[0.7],
        img_size=56,
    )
    assert result.table["tokens_per_block"][0].split()[0] == str(14 * 14 + 1)
    assert result.table["reduction"][1] == pytest.approx(0.3, abs=0.005)


def test_images_that_are_not_whole_patches_are_refused(rgb_weights: Path, image_folder: Path, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"models": [TINY_RGB], "dataset": str(image_folder), "methods": ["dhtm"]}
    with pytest.raises(InputError, match=r"30 pixels are not whole patches of 4 pixels .* by --img-size"):
        run(tmp_path / "out", rgb_weights, **chosen, img_size=30)


def test_an_experiment_without_images_asks_for_them(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves the choice of images to you; name them with --dataset"):
        run(tmp_path / "out", weights, dataset=None)


def test_budgets_that_nobody_reaches_are_refused_before_anything_is_written(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no method reaches budget 0.01 .*; ask for another budget"):
        run(tmp_path / "out", weights, budgets=[0.01])
    assert not (tmp_path / "out").exists()


def test_a_point_that_raises_fails_alone_and_is_tried_again(
    weights: Path, tmp_path: Path, temporary: Methods, undisturbed: SweepResult
) -> None:
    class Breaks(Front):
        calls = 0

        def trouble(self, call: int) -> None:
            if call == 4:  # the first of three layers in the second batch
                raise RuntimeError("no more\nsecond line")

    temporary.add("breaks", Breaks)
    methods = ["breaks", "dhtm", "lotm", "random"]
    first = run(tmp_path / "out", weights, methods=methods)
    row = first.table.set_index("method").loc["breaks"]
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: no more")
    assert list(first.failures.values()) == ["RuntimeError: no more"]
    assert_same_but("breaks", first, undisturbed)

    again = Recorder()
    second = run(tmp_path / "out", weights, again, methods=methods)
    assert set(second.table["status"]) == {"ok"}
    assert len(again.steps) == 2  # its first batch was in the journal
    assert_same_but("breaks", second, undisturbed)
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_a_method_that_cannot_even_be_attached_fails_alone(weights: Path, tmp_path: Path, temporary: Methods) -> None:
    class Breaks(Front):
        def trouble(self, call: int) -> None:
            raise KeyError("never")

    temporary.add("breaks", Breaks)
    table = run(tmp_path / "out", weights, methods=["breaks", "dhtm"], limit=2).table.set_index("method")
    assert (table.loc["breaks", "status"], table.loc["breaks", "reason"]) == ("failed", "KeyError: 'never'")
    assert table.loc["dhtm", "status"] == "ok"


def test_logits_that_are_not_finite_fail(weights: Path, tmp_path: Path, temporary: Methods) -> None:
    class Poison(Front):
        def values(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
            return features * torch.nan

    temporary.add("poison", Poison)
    table = run(tmp_path / "out", weights, methods=["poison", "dhtm"], limit=2).table.set_index("method")
    assert table.loc["poison", "status"] == "failed"
    assert "logits that are not finite" in str(table.loc["poison", "reason"])
    assert table.loc["dhtm", "status"] == "ok"


def test_learned_weights_without_training_are_no_result(weights: Path, tmp_path: Path) -> None:
    methods = ["dpc_knn:learned_weights=true", "dpc_knn"]
    with pytest.raises(InputError, match=r"^dpc_knn:learned_weights=true must be trained first; give a checkpoint"):
        run(tmp_path / "out", weights, methods=methods[:1], keep_rate=["0.7"], limit=2)
    assert not (tmp_path / "out").exists()
    table = run(tmp_path / "out", weights, methods=methods, keep_rate=["0.7"], limit=2).table
    assert table[["options", "status"]].to_numpy().tolist() == [
        ["", "ok"], ["learned_weights=true", "missing"], ["", "ok"]
    ]  # fmt: skip


# --- images -----------------------------------------------------------------------------------------------------------


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"no image")


def rgb(out: Path, weights: Path, folder: Path, reporter: Recorder | None = None, **changes: Any) -> SweepResult:
    usual: dict[str, Any] = {"models": [TINY_RGB], "dataset": str(folder), "limit": None}
    return run(out, weights, reporter, **{**usual, **changes})


def test_a_class_folder_maps_to_imagenet_classes(rgb_weights: Path, image_folder: Path, tmp_path: Path) -> None:
    result = rgb(tmp_path / "out", rgb_weights, image_folder)
    outcomes = pd.read_csv(result.path / "outcomes" / f"{result.table['point'][0]}.csv.gz")
    assert outcomes["label"].tolist() == [0, 0, 1, 1, 217, 217]
    assert outcomes["image"].tolist()[0] == "n01440764/0.png"


@pytest.mark.parametrize("interrupt_at", [None, 4, 9])
def test_unreadable_images_are_named_counted_and_left_out_alike(
    rgb_weights: Path, image_folder: Path, tmp_path: Path, interrupt_at: int | None
) -> None:
    bad = ["n01440764/0.png", "n02102040/0.png", "n02102040/1.png"]
    spoil(image_folder, *bad)
    if interrupt_at is not None:
        with pytest.raises(KeyboardInterrupt):
            rgb(tmp_path / "out", rgb_weights, image_folder, Recorder(interrupt_at))
    reporter = Recorder()
    result = rgb(tmp_path / "out", rgb_weights, image_folder, reporter)
    assert result.unreadable == bad
    assert reporter.notes == [f"3 images were unreadable and left out for every point: {', '.join(bad)}"]
    assert set(result.table["n_images"]) == {3}
    tables = [pd.read_csv(file) for file in sorted((result.path / "outcomes").iterdir())]
    assert len(tables) == 5
    assert all(t["image"].tolist() == ["n01440764/1.png", "n01443537/0.png", "n01443537/1.png"] for t in tables)
    # A finished folder still knows them.
    assert rgb(tmp_path / "out", rgb_weights, image_folder).unreadable == bad
    assert json.loads((result.path / "provenance.json").read_text())["unreadable"] == bad


def test_a_single_unreadable_image_is_spoken_of_as_one(rgb_weights: Path, image_folder: Path, tmp_path: Path) -> None:
    spoil(image_folder, "n01440764/0.png")
    reporter = Recorder()
    rgb(tmp_path / "out", rgb_weights, image_folder, reporter, methods=["dhtm"])
    assert reporter.notes == ["1 image was unreadable and left out for every point: n01440764/0.png"]


def test_nothing_but_unreadable_images(rgb_weights: Path, image_folder: Path, tmp_path: Path) -> None:
    spoil(image_folder, *(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png")))
    with pytest.raises(InputError, match="none of the 6 images of 'val' can be read; check the files"):
        rgb(tmp_path / "out", rgb_weights, image_folder)


def test_an_image_that_was_unreadable_once_is_evaluated_when_it_can_be_read(
    rgb_weights: Path, image_folder: Path, tmp_path: Path
) -> None:
    """The same size, so that the image set is still the same one."""
    chosen: dict[str, Any] = {"models": [TINY_RGB], "dataset": str(image_folder), "limit": None}
    file = next(image_folder.rglob("*.png"))
    content = file.read_bytes()
    file.write_bytes(bytes(len(content)))
    damaged = run(tmp_path / "out", rgb_weights, methods=["dhtm"], **chosen)
    assert damaged.table["n_images"].tolist() == [5, 5]
    again = Recorder()
    run(tmp_path / "out", rgb_weights, again, methods=["dhtm"], **chosen)
    assert not again.steps  # it still cannot be read
    file.write_bytes(content)
    mended = run(tmp_path / "out", rgb_weights, methods=["dhtm", "lotm"], **chosen)
    assert mended.table["n_images"].tolist() == [6, 6, 6]
    assert mended.unreadable == []


def test_damaged_records_and_journal_lines_are_evaluated_again(
    weights: Path, tmp_path: Path, undisturbed: SweepResult
) -> None:
    run(tmp_path / "out", weights)
    next((tmp_path / "out" / "records").glob("*dhtm*")).write_text("")
    (tmp_path / "out" / "journal.jsonl").write_text('{"model": 3}\nno json\n')
    result = run(tmp_path / "out", weights)
    pd.testing.assert_frame_equal(lasting(result.table), lasting(undisturbed.table))


def test_stopped_between_the_records_of_a_new_model_its_provenance_is_still_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "out", weights, methods=["dhtm"])
    finish = ResultFolder.finish_point
    written: list[str] = []

    def stopped(folder: ResultFolder, point: str, *rest: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(point)
        finish(folder, point, *rest)

    monkeypatch.setattr(ResultFolder, "finish_point", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", weights, methods=["dhtm", "lotm", "random"])
    monkeypatch.undo()
    run(tmp_path / "out", weights, methods=["dhtm", "lotm", "random"])
    origin = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert origin["experiment"]["methods"] == ["dhtm", "lotm", "random"]


def test_other_examples_are_another_experiment_and_fresh_clears_them(weights: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", weights, methods=["dhtm"], examples=2)
    assert len(list((tmp_path / "out" / "examples").glob("*.png"))) == 2
    with pytest.raises(InputError, match=r"another experiment \(examples was 2, now 0\)"):
        run(tmp_path / "out", weights, methods=["dhtm"])
    run(tmp_path / "out", weights, methods=["dhtm"], fresh=True)
    assert not (tmp_path / "out" / "examples").exists()


def test_images_that_were_repaired_are_another_experiment(
    rgb_weights: Path, image_folder: Path, tmp_path: Path
) -> None:
    spoil(image_folder, "n01440764/0.png")
    rgb(tmp_path / "out", rgb_weights, image_folder, methods=["dhtm"])
    before = contents(tmp_path / "out")
    save_image(image_folder / "n01440764/0.png", 0)
    with pytest.raises(InputError, match=r"holds another experiment \(dataset was val "):
        rgb(tmp_path / "out", rgb_weights, image_folder, methods=["dhtm"])
    assert contents(tmp_path / "out") == before


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt_at", [1, 5, 6, 9, 15])
def test_stopped_after_any_evaluation_it_ends_the_same(
    weights: Path, tmp_path: Path, undisturbed: SweepResult, interrupt_at: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", weights, Recorder(interrupt_at))
    assert not (tmp_path / "out" / "results.csv").exists()
    reporter = Recorder()
    assert_same(run(tmp_path / "out", weights, reporter), undisturbed)
    whole_batches = (interrupt_at - 1) // 5
    assert (reporter.total, reporter.done) == (30, 10 * whole_batches)
    assert len(reporter.steps) == 15 - 5 * whole_batches


@pytest.mark.parametrize("left", [0, 40, -1])
def test_a_torn_journal_is_mended(weights: Path, tmp_path: Path, undisturbed: SweepResult, left: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", weights, Recorder(11))
    journal = tmp_path / "out" / "journal.jsonl"
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + second[:left])
    reporter = Recorder()
    assert_same(run(tmp_path / "out", weights, reporter), undisturbed)
    assert len(reporter.steps) == 10


@pytest.mark.parametrize("finished", [0, 2, 5])
def test_stopped_while_points_are_finished_it_ends_the_same(
    weights: Path, tmp_path: Path, undisturbed: SweepResult, finished: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenmerge_bench.store as store

    write, written = store.write_text, 0

    def interrupted(path: Path, text: str) -> None:
        nonlocal written
        if path.parent.name == "records" or path.name == "results.csv":
            if written == finished:
                raise KeyboardInterrupt
            written += 1
        write(path, text)

    monkeypatch.setattr(store, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", weights)
    monkeypatch.undo()
    reporter = Recorder()
    assert_same(run(tmp_path / "out", weights, reporter), undisturbed)
    assert reporter.steps == []
    assert reporter.done == reporter.total == 30


class Killed(Recorder):
    """Ends its process in the second batch, as `kill -9` does: nothing is tidied up."""

    def advance(self, evaluations: int, doing: str) -> None:
        super().advance(evaluations, doing)
        if len(self.steps) == 8:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_killed_it_ends_the_same(weights: Path, tmp_path: Path, undisturbed: SweepResult) -> None:
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=run, args=(out, weights, Killed()))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len((out / "journal.jsonl").read_bytes().splitlines()) == 1
    reporter = Recorder()
    assert_same(run(out, weights, reporter), undisturbed)
    assert reporter.done == 10


def test_stopped_sweeps_go_on_in_the_same_process(weights: Path, tmp_path: Path) -> None:
    """As in a notebook, which keeps the traceback and with it everything that it refers to."""
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path / "out", weights, Recorder(1), methods=["dhtm"], limit=2)
    assert caught.value.__traceback__ is not None
    assert set(run(tmp_path / "out", weights, methods=["dhtm"], limit=2).table["status"]) == {"ok"}


# --- what may be reused -----------------------------------------------------------------------------------------------


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Points that were run, a name for each batch."""
    seen: list[str] = []
    real = Tree.run

    def counted(self: Tree, *rest: Any) -> Any:
        for names, state in real(self, *rest):
            seen.extend(names)
            yield names, state

    monkeypatch.setattr(Tree, "run", counted)
    return iter([seen])


def test_a_finished_sweep_is_not_run_again(weights: Path, tmp_path: Path, forwards: Iterator[list[str]]) -> None:
    seen = next(forwards)
    first = run(tmp_path / "out", weights)
    assert len(seen) == 15
    before = contents(tmp_path / "out")
    second = run(tmp_path / "out", weights)
    assert len(seen) == 15
    pd.testing.assert_frame_equal(first.table, second.table)
    after = contents(tmp_path / "out")
    assert {k: v for k, v in after.items() if k != "provenance.json"} == {
        k: v for k, v in before.items() if k != "provenance.json"
    }


def test_an_added_method_is_all_that_is_evaluated(
    weights: Path, tmp_path: Path, forwards: Iterator[list[str]], undisturbed: SweepResult
) -> None:
    seen = next(forwards)
    run(tmp_path / "out", weights, methods=["dhtm"])
    old = set(seen)
    seen.clear()
    result = run(tmp_path / "out", weights, methods=["dhtm", "lotm", "random"])
    assert len(seen) == 9
    assert not old & set(seen)
    assert_same(result, undisturbed)


def test_an_added_budget_is_all_that_is_evaluated(weights: Path, small: Path, forwards: Iterator[list[str]]) -> None:
    seen = next(forwards)
    run(small, weights, methods=["dhtm"], k=["3", "6"], limit=2)
    assert len(seen) == 1


def test_other_weights_of_the_same_name_are_another_experiment(weights: Path, other_weights: Path, small: Path) -> None:
    assert weights.name == other_weights.name
    before = contents(small)
    with pytest.raises(InputError, match="holds another experiment"):
        run(small, other_weights, methods=["dhtm"], limit=2)
    assert contents(small) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["dhtm:averaging=plain"]},
        {"methods": ["dhtm:layers=3/6/9"]},
        {"layers": "3/6/9"},
        {"k": ["5"]},
        {"budgets": [0.5], "k": []},
        {"limit": 4},
        {"seed": 1},
        {"batch_size": 3},
        {"dtype": "float64"},
    ],
)
def test_changed_options_never_reuse_an_old_point(weights: Path, small: Path, changes: dict[str, Any]) -> None:
    before = contents(small)
    with pytest.raises(InputError, match="holds another experiment"):
        run(small, weights, **{"methods": ["dhtm"], "limit": 2, **changes})
    assert contents(small) == before


def test_fresh_evaluates_everything_again(weights: Path, small: Path, forwards: Iterator[list[str]]) -> None:
    seen = next(forwards)
    run(small, weights, fresh=True, methods=["lotm"], limit=2)
    assert len(seen) == 2
    assert read_results(small)["method"].tolist() == ["none", "lotm"]


def test_without_a_folder_the_name_follows_from_the_experiment(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenmerge_bench.sweep import run_sweep

    monkeypatch.chdir(tmp_path)
    paths = [
        run_sweep(experiment(methods=["dhtm"], limit=2, k=[k]), weights={TINY: weights}, reporter=Recorder()).path
        for k in ("6", "5", "6")
    ]
    assert paths[0] == paths[2] != paths[1]
    assert all(path.parent == Path("results") and path.name.startswith("demo-") for path in paths)


def test_two_models_share_a_folder_and_keep_apart(
    weights: Path, rgb_weights: Path, image_folder: Path, tmp_path: Path
) -> None:
    from tokenmerge_bench.sweep import run_sweep

    with pytest.raises(InputError, match="distinguishes 10 classes but data set 'val' has 1000; give a model trained"):
        run_sweep(
            experiment(models=[TINY_RGB, TINY], dataset=str(image_folder), limit=None),
            weights={TINY: weights, TINY_RGB: rgb_weights},
            out=tmp_path / "out",
            reporter=Recorder(),
        )
    assert not (tmp_path / "out").exists()


# --- hardware ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions_run(weights: Path, tmp_path: Path, dtype: str) -> None:
    table = run(tmp_path / "out", weights, methods=["dhtm", "tome"], budgets=[0.5], limit=2, dtype=dtype).table
    assert set(table["status"]) == {"ok"}
    assert set(table["dtype"]) == {dtype}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device 'gpu' is no device; write cpu, cuda or cuda:1"),
        ("", "--device '' is no device"),
        ("mps", "--device mps is not supported; write cpu or cuda"),
        ("meta", "not supported"),
    ],
)
def test_devices_that_are_none(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_device(name)


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        InputError, match="--device cuda was asked for but this machine has no CUDA device; use --device cpu"
    ):
        open_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--device cuda:2 does not exist; this machine has 2 CUDA devices"):
        open_device("cuda:2")
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert open_device("cuda:1").index == 1
    assert chosen == [torch.device("cuda:1")]
