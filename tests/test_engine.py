"""The engine: memory that runs out, failures that others share, several models, worker processes, compiling."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sweeping import TINY, TINY_BRIGHT, Recorder, contents, experiment, lasting, run, save_random_weights

from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.clocks import NoLaps
from tokenmerge_bench.data import Batch, default_workers, eval_transform, iter_views, subset
from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.engine import Engine, Evaluator, Part, evaluate, prepare
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.hardware import Courier, Hardware, open_hardware
from tokenmerge_bench.images import ArrayImages
from tokenmerge_bench.models import LoadedModel, load_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.pieces import Choose, Embed, Mlp, Piece, State, _identity
from tokenmerge_bench.points import Point, plan
from tokenmerge_bench.registry import list_methods
from tokenmerge_bench.store import BatchOutcomes, read_results
from tokenmerge_bench.sweep import SweepResult, run_sweep
from tokenmerge_bench.trie import is_out_of_memory

pytestmark = pytest.mark.usefixtures("closed_form_counts")
METHODS = ["dhtm", "lotm", "random", "tome"]
CPU = Hardware(torch.device("cpu"))


@pytest.fixture(scope="module")
def loaded(weights: Path) -> LoadedModel:
    return load_model(TINY, weights, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def points(loaded: LoadedModel) -> list[Point]:
    return plan(
        loaded, [parse_method(name) for name in METHODS], [Budget("fraction", "0.8"), Budget("fraction", "0.6")], 2, 0
    )


@pytest.fixture
def evaluators(loaded: LoadedModel, points: list[Point]) -> dict[str, Evaluator]:
    return {point.id: prepare(loaded.model, point) for point in points}


def batches(loaded: LoadedModel, count: int, size: int) -> list[tuple[Batch, ...]]:
    images = open_dataset("demo")
    return list(iter_views(images, subset(images, count, 0), [eval_transform(loaded.data_config)], size, 0))


def outcomes(
    evaluators: dict[str, Evaluator],
    loaded: LoadedModel,
    reporter: Recorder | None = None,
    size: int = 5,
    count: int = 10,
) -> tuple[list[BatchOutcomes], dict[str, str]]:
    """What the points say about `count` images in batches of `size`, and the failures."""
    failures: dict[str, str] = {}
    engine = Engine(TINY, evaluators, CPU, reporter or Recorder(), failures)
    return list(evaluate([engine], batches(loaded, count, size), {}, CPU)), failures


Said = list[dict[str, tuple[list[int], list[int]]]]


def said(found: list[BatchOutcomes]) -> Said:
    """Predictions and ranks by batch and point, without the times."""
    return [{name: (o.prediction, o.rank) for name, o in batch.points.items()} for batch in found]


@pytest.fixture(scope="module")
def undisturbed(loaded: LoadedModel, points: list[Point], closed_form_counts: None) -> Callable[[int, int], Said]:
    """What all points say about a number of images in batches of a size when nothing goes wrong; found out once."""

    @cache
    def look_up(size: int, count: int) -> Said:
        evaluators = {point.id: prepare(loaded.model, point) for point in points}
        return said(outcomes(evaluators, loaded, size=size, count=count)[0])

    return look_up


# --- together and alone -----------------------------------------------------------------------------------------------


def test_points_say_together_what_each_says_alone(loaded: LoadedModel, evaluators: dict[str, Evaluator]) -> None:
    together, failures = outcomes(evaluators, loaded)
    assert not failures
    assert [batch.chunk for batch in together] == [0, 1]
    for name, evaluator in evaluators.items():
        alone, _ = outcomes({name: evaluator}, loaded)
        assert [batch[name] for batch in said(together)] == [batch[name] for batch in said(alone)]
        assert all(batch.points[name].seconds > 0 for batch in together)


def test_the_last_batch_may_be_short_and_one_may_be_empty(
    loaded: LoadedModel, evaluators: dict[str, Evaluator]
) -> None:
    found, _ = outcomes(evaluators, loaded, size=4)
    assert [len(o.prediction) for batch in found for o in batch.points.values()] == [4, 4] * len(evaluators) + [
        2
    ] * len(evaluators)
    whole = batches(loaded, 4, 4)[0][0]
    nothing = Batch(0, whole.pixels[:0], whole.labels[:0], whole.ids[:0], whole.indices[:0], ["a", "b"])
    reporter = Recorder()
    engine = Engine(TINY, evaluators, CPU, reporter, {})
    (empty,) = evaluate([engine], [(nothing,)], {}, CPU)
    assert empty.unreadable == ["a", "b"]
    assert {(*o.prediction, *o.rank, o.seconds) for o in empty.points.values()} == {(0.0,)}
    assert reporter.steps == [(0, name) for name in evaluators]


def test_points_in_the_journal_are_left_out(loaded: LoadedModel, evaluators: dict[str, Evaluator]) -> None:
    names = list(evaluators)
    engine = Engine(TINY, evaluators, CPU, Recorder(), {})
    done: dict[str, dict[int, set[str]]] = {TINY: {0: set(names), 1: set(names[:3])}}
    (second,) = evaluate([engine], batches(loaded, 10, 5), done, CPU)
    assert (second.chunk, list(second.points)) == (1, names[3:])


# --- memory -----------------------------------------------------------------------------------------------------------


def small_memory(monkeypatch: pytest.MonkeyPatch, most: int, cls: type[Piece], error: Exception) -> Counter[int]:
    """Lets a kind of piece raise for more than `most` images; counts the numbers of images it is asked for."""
    asked: Counter[int] = Counter()
    real = cls.run

    def run(self: Piece, state: State) -> State:
        asked[len(state.x)] += 1
        if len(state.x) > most:
            raise error
        return real(self, state)

    monkeypatch.setattr(cls, "run", run)
    return asked


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError(),
]


@pytest.mark.parametrize(
    ("cls", "error"), [(Embed, ERRORS[0]), (Mlp, ERRORS[2]), (Choose, ERRORS[3])], ids=["embed", "mlp", "choose"]
)
def test_where_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(
    loaded: LoadedModel,
    evaluators: dict[str, Evaluator],
    undisturbed: Callable[[int, int], Said],
    monkeypatch: pytest.MonkeyPatch,
    cls: type[Piece],
    error: Exception,
) -> None:
    expected = undisturbed(8, 12)
    asked = small_memory(monkeypatch, 2, cls, error)
    reporter = Recorder()
    found, failures = outcomes(evaluators, loaded, reporter, size=8, count=12)
    assert not failures
    assert said(found) == expected
    assert reporter.notes == ["8 images at a time do not fit into the memory of cpu; going on with 2"]
    assert sum(evaluations for evaluations, _ in reporter.steps) == 12 * len(evaluators)
    assert asked[8] == 1  # no later batch is tried whole


def test_points_that_were_done_when_memory_ran_out_are_not_done_again(
    loaded: LoadedModel,
    evaluators: dict[str, Evaluator],
    undisturbed: Callable[[int, int], Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the reducer of one method needs the memory."""
    real = Choose.run

    def run(self: Choose, state: State) -> State:
        if self.reducer.name == "tome" and len(state.x) > 4:
            raise torch.OutOfMemoryError("no more")
        return real(self, state)

    expected = undisturbed(8, 8)
    monkeypatch.setattr(Choose, "run", run)
    reporter = Recorder()
    found, failures = outcomes(evaluators, loaded, reporter, size=8, count=8)
    assert not failures
    assert said(found) == expected
    parts = Counter(reporter.steps)
    assert set(parts.values()) <= {1, 2}
    assert all(parts[8, name] + parts[4, name] / 2 == 1 for name in evaluators)


def test_what_does_not_fit_with_one_image_fails_alone(
    loaded: LoadedModel,
    evaluators: dict[str, Evaluator],
    undisturbed: Callable[[int, int], Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Choose.run

    def run(self: Choose, state: State) -> State:
        if self.reducer.name == "dhtm" and len(self.counts) == 1 and min(self.counts) == most_reduced:
            raise torch.OutOfMemoryError("never")
        if self.reducer.name == "dhtm" and most_reduced in self.counts:
            raise torch.OutOfMemoryError("never together")
        return real(self, state)

    dhtm = [name for name in evaluators if "-dhtm-" in name]
    first = {name: evaluators[name].network.schedule.steps[0].n_out for name in dhtm}
    most_reduced = min(first.values())
    (greedy,) = (name for name in dhtm if first[name] == most_reduced)
    expected = undisturbed(4, 8)
    monkeypatch.setattr(Choose, "run", run)
    found, failures = outcomes(evaluators, loaded, size=4, count=8)
    assert failures == {greedy: "OutOfMemoryError: never"}
    kept = [{name: value for name, value in batch.items() if name != greedy} for batch in expected]
    assert said(found) == kept


@pytest.mark.parametrize(
    ("error", "yes"), [*((error, True) for error in ERRORS), (RuntimeError("size mismatch"), False), (OSError(), False)]
)
def test_what_is_a_lack_of_memory(error: Exception, yes: bool) -> None:
    assert is_out_of_memory(error) is yes


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failure_in_shared_work_is_that_of_the_point_that_causes_it(
    loaded: LoadedModel,
    evaluators: dict[str, Evaluator],
    undisturbed: Callable[[int, int], Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both points of a method choose in one run; one of them breaks it."""
    real = Choose.run
    dhtm = [name for name in evaluators if "-dhtm-" in name]
    guilty = dhtm[0]
    count = evaluators[guilty].network.schedule.steps[0].n_out

    def run(self: Choose, state: State) -> State:
        if self.reducer.name == "dhtm" and count in self.counts:
            raise ValueError("too many")
        return real(self, state)

    expected = undisturbed(5, 10)
    monkeypatch.setattr(Choose, "run", run)
    reporter = Recorder()
    found, failures = outcomes(evaluators, loaded, reporter)
    assert failures == {guilty: "ValueError: too many"}
    assert said(found) == [{n: value for n, value in batch.items() if n != guilty} for batch in expected]
    assert Counter(name for _, name in reporter.steps) == {name: 1 if name == guilty else 2 for name in evaluators}


def test_logits_that_are_not_finite_fail_their_point_alone(
    loaded: LoadedModel,
    evaluators: dict[str, Evaluator],
    undisturbed: Callable[[int, int], Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = undisturbed(5, 10)
    guilty = next(name for name in evaluators if "-tome-" in name)
    (reducer, *_) = evaluators[guilty].network.reducers
    monkeypatch.setattr(type(reducer), "values", lambda self, features: features / 0)
    found, failures = outcomes(evaluators, loaded)
    assert set(failures) == {name for name in evaluators if "-tome-" in name}
    assert set(failures.values()) == {"ArithmeticError: the model gave logits that are not finite"}
    assert said(found) == [{n: value for n, value in batch.items() if n not in failures} for batch in expected]


# --- several models, several processes --------------------------------------------------------------------------------


def sweep_of(models: list[str], out: Path, files: dict[str, Path], **more: Any) -> SweepResult:
    return run_sweep(
        experiment(models=models, methods=["dhtm", "random"]),
        weights=files,
        out=out,
        **{"reporter": Recorder(), **more},
    )


@pytest.fixture(scope="module")
def files(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    bright = tmp_path_factory.mktemp("bright") / "bright.safetensors"
    return {TINY: weights, TINY_BRIGHT: save_random_weights(bright, TINY_BRIGHT)}


@pytest.fixture(scope="module")
def both(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, closed_form_counts: None) -> SweepResult:
    """A sweep of two models; not to be changed."""
    return sweep_of([TINY, TINY_BRIGHT], tmp_path_factory.mktemp("both") / "both", files)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each image is decoded."""
    loads: Counter[int] = Counter()
    real = ArrayImages.load

    def load(self: ArrayImages, index: int) -> Any:
        loads[index] += 1
        return real(self, index)

    monkeypatch.setattr(ArrayImages, "load", load)
    return loads


def test_images_are_decoded_once_for_all_models(files: dict[str, Path], tmp_path: Path, decoded: Counter[int]) -> None:
    both = sweep_of([TINY, TINY_BRIGHT], tmp_path / "both", files)
    assert len(decoded) == 6
    assert set(decoded.values()) == {1}
    assert set(both.table["status"]) == {"ok"}
    for model in files:
        alone = sweep_of([model], tmp_path / model, files)
        rows = both.table[both.table["model"] == model].reset_index(drop=True)
        pd.testing.assert_frame_equal(lasting(rows), lasting(alone.table), check_dtype=False)
        for point in rows["point"]:
            name = f"outcomes/{point}.csv.gz"
            assert contents(both.path)[name] == contents(alone.path)[name]


def test_a_model_that_is_added_is_all_that_is_evaluated(files: dict[str, Path], tmp_path: Path) -> None:
    sweep_of([TINY], tmp_path / "out", files)
    reporter = Recorder()
    grown = sweep_of([TINY, TINY_BRIGHT], tmp_path / "out", files, reporter=reporter)
    assert set(grown.table["status"]) == {"ok"}
    assert all(TINY_BRIGHT in name for _, name in reporter.steps)


@pytest.mark.parametrize("interrupt_at", [3, 7, 11])
def test_stopped_among_two_models_it_ends_the_same(
    files: dict[str, Path], both: SweepResult, tmp_path: Path, interrupt_at: int
) -> None:
    models = [TINY, TINY_BRIGHT]
    with pytest.raises(KeyboardInterrupt):
        sweep_of(models, tmp_path / "out", files, reporter=Recorder(interrupt_at))
    reporter = Recorder()
    found = sweep_of(models, tmp_path / "out", files, reporter=reporter)
    pd.testing.assert_frame_equal(lasting(read_results(found.path)), lasting(read_results(both.path)))
    assert len(reporter.steps) == 24 - 4 * ((interrupt_at - 1) // 4)  # a model's batch is a line of the journal


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_change_nothing(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmerge_bench.data.PIECE", 2)
    more: dict[str, Any] = {"weights": {TINY: weights}, "reporter": Recorder()}
    chosen = experiment(limit=12, batch_size=5, methods=["dhtm"])
    here = run_sweep(chosen, out=tmp_path / "here", workers=0, **more)
    there = run_sweep(chosen, out=tmp_path / "there", workers=2, **more)
    pd.testing.assert_frame_equal(lasting(here.table), lasting(there.table))
    assert {k: v for k, v in contents(here.path).items() if k.startswith("outcomes")} == {
        k: v for k, v in contents(there.path).items() if k.startswith("outcomes")
    }


def test_peak_memory_of_a_point_is_not_claimed(weights: Path, tmp_path: Path) -> None:
    table = run(tmp_path / "out", weights, methods=["dhtm"], limit=2).table
    assert "peak_memory_mb" in table
    assert table["peak_memory_mb"].isna().all()


# --- times ------------------------------------------------------------------------------------------------------------


class FakeLaps(NoLaps):
    def seconds(self) -> dict[int, float]:
        return {0: 1.0, 1: 10.0, 2: 100.0}


def test_a_point_takes_what_its_pieces_take() -> None:
    rows, verdicts = [["a"], ["b", "c"]], torch.zeros(2, 3, dtype=torch.int64)
    paths = {"a": [0, 1], "b": [0, 2], "c": [0, 2], "failed": [0, 7]}
    part = Part(rows, verdicts, paths, FakeLaps())
    assert part.seconds() == {"a": 11.0, "b": 101.0, "c": 101.0}


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_courier_brings_double_precision_where_it_is_wanted(loaded: LoadedModel) -> None:
    ((batch,),) = batches(loaded, 2, 2)
    there = Courier(Hardware(torch.device("cpu"), torch.float64)).bring(batch)
    assert there.images.dtype == torch.float64
    assert np.array_equal(there.labels.numpy(), batch.labels)
    assert np.array_equal(there.ids.numpy(), batch.ids)


def test_flags_that_would_do_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--cuda-graphs needs a CUDA device, not cpu; leave it out or give --device"):
        open_hardware("cpu", torch.float32, False, True)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(InputError, match="--compile would do nothing, as TORCHDYNAMO_DISABLE=1 is set; unset it"):
        open_hardware("cpu", torch.float32, True, False)
    assert open_hardware("cpu", torch.float32, False, False) == CPU


def test_a_gpu_gets_worker_processes_by_default_and_the_cpu_keeps_its_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert default_workers(torch.device("cpu")) == 0
    for processors, expected in ((1, 1), (8, 8), (64, 16)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: set(range(n)))
        assert default_workers(torch.device("cuda")) == expected


COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, torch._dynamo
from torch._dynamo.utils import counters
from sweeping import TINY
from tokenmerge_bench.budgets import attach
from tokenmerge_bench.clocks import NoLaps
from tokenmerge_bench.models import build_model
from tokenmerge_bench.modes import compiling
from tokenmerge_bench.pieces import Halves, pieces_of
from tokenmerge_bench.trie import Tree

torch.manual_seed(0)
model = build_model(TINY).eval()
images, ids = torch.randn(3, 1, 28, 28), torch.arange(3)
graphs = []
for number in (1, 3):
    networks = {str(k): attach(model, "dhtm", k=k) for k in range(2, 2 + number)}
    halves = Halves(compiled=True)
    tree = Tree({name: pieces_of(network, halves) for name, network in networks.items()})
    with compiling(), torch.inference_mode():
        counters.clear()
        for count in (3, 2):
            for names, state in tree.run(images[:count], ids[:count], NoLaps(), []):
                torch.testing.assert_close(state.x, networks[names[0]](images[:count], ids[:count]))
        graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"], counters["graph_break"]
print(*graphs)
"""


def test_the_same_compiled_code_serves_all_blocks_token_counts_and_points() -> None:
    """In a process of its own: the type checks of these tests cannot be compiled."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", COMPILED, here], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "3"]  # attention with and without sizes, and the MLP


def test_compiled_results_are_no_others(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roundings differ, so that the folder is another evaluation's."""
    monkeypatch.setattr("tokenmerge_bench.pieces._compiled", lambda function: function)
    chosen, more = experiment(methods=["dhtm"], limit=2), {"weights": {TINY: weights}, "out": tmp_path / "out"}
    run_sweep(chosen, compiled=True, reporter=Recorder(), **more)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["compile"] is True
    with pytest.raises(InputError, match=r"another experiment \(dtype was float32, compiled, now float32\)"):
        run_sweep(chosen, reporter=Recorder(), **more)  # type: ignore[arg-type]


def test_reducers_that_differ_in_anything_set_on_them_share_nothing() -> None:
    first, second = (list_methods()["dhtm"]() for _ in range(2))
    assert _identity(first) == _identity(second)
    for name, value in (("shift", 3), ("prefix", 2), ("head_width", 32), ("proportional_attention", False)):
        other = list_methods()["dhtm"]()
        setattr(other, name, value)
        assert _identity(other) != _identity(first)
    tomes = [list_methods()["tome"]() for _ in range(2)]  # whose knobs are objects of their own
    assert _identity(tomes[0]) == _identity(tomes[1])
