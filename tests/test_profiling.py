"""`tmbench profile`: its statistics, its clock, its folder and its command. No test asks how fast anything is."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Command, assert_refused
from sweeping import TINY, TINY_RGB, contents
from torch import Tensor

from tokenmerge_bench import batch_sizes, figures, profiling, timing
from tokenmerge_bench.batch_sizes import Search, check_batch_sizes, largest_batch
from tokenmerge_bench.budgets import Budget, Solver, attach
from tokenmerge_bench.durations import median_interval, paired_ratio, quartiles
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.figures import speed
from tokenmerge_bench.models import build_model, load_model
from tokenmerge_bench.modes import Mode, as_mode, shared_by
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.profiles import COLUMNS, is_profile, open_profiles
from tokenmerge_bench.provenance import hardware_name
from tokenmerge_bench.reduced_vit import image_shape
from tokenmerge_bench.rivals import free_drop, noise
from tokenmerge_bench.store import ResultFolder
from tokenmerge_bench.timing import Samples, Stopwatch, take_samples, tracing_reason

pytestmark = pytest.mark.usefixtures("own_registry")

CPU = torch.device("cpu")
ROUNDS = Stopwatch(CPU).rounds
WHAT = ("profile", "--models", TINY, "--methods", "dhtm,lotm", "--k", "2", "--seconds", "0", "--out", "speed")


# --- statistics -------------------------------------------------------------------------------------------------------


def test_median_and_quartiles_are_those_of_the_sample() -> None:
    found = quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.q25, found.median, found.q75) == (2.0, 3.0, 4.0)
    found = quartiles([1.0, 2.0, 3.0, 10.0])
    assert (found.q25, found.median, found.q75) == (1.75, 2.5, 4.75)
    assert quartiles([7.0]).q25 == 7.0
    with pytest.raises(ValueError, match="empty"):
        quartiles([])


def covered(n: int, below: int) -> float:
    """Probability that the median lies between the smallest and largest of n values, `below` of them left out."""
    return float(sum(math.comb(n, heads) for heads in range(below + 1, n - below)) / 2**n)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_interval_of_a_median_is_the_shortest_that_covers(level: float) -> None:
    for n in range(1, 60):
        wide_enough = [below for below in range((n + 1) // 2) if covered(n, below) >= level]
        below = max(wide_enough, default=0)
        found = median_interval(np.random.default_rng(n).permutation(n).astype(float), level)
        assert (found.low, found.value, found.high) == (below, (n - 1) / 2, n - 1 - below)


def test_one_disturbed_round_does_not_widen_the_interval() -> None:
    ratios = np.full(ROUNDS, 1.2)
    ratios[3] = 40.0
    found = median_interval(ratios)
    assert (found.low, found.value, found.high) == (1.2, 1.2, 1.2)


def test_what_slows_a_whole_round_down_cancels() -> None:
    times = np.geomspace(1, 100, 11)
    found = paired_ratio(2 * times, times)
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="same rounds"):
        paired_ratio([1.0, 2.0], [1.0])


# --- timing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Rivals run, and take the seconds that this says of them."""
    durations: dict[str, float] = {}

    def clock(self: Stopwatch, run: Callable[[], str], times: int = 1) -> float:
        name: str = run()
        return durations[name]

    monkeypatch.setattr(Stopwatch, "__call__", clock)
    monkeypatch.setattr(timing, "LEAST", 0.02)
    monkeypatch.setattr(Stopwatch, "rounds", 9)
    return durations


def test_every_rival_runs_once_in_every_round_in_an_order_that_the_seed_decides(fake_clock: dict[str, float]) -> None:
    fake_clock |= {"a": 1.0, "b": 0.001, "c": 2e-9}
    rivals: dict[str, Any] = {name: lambda name=name: name for name in fake_clock}
    found = take_samples(rivals, CPU, seconds=0.0, seed=1)
    assert found.seconds == {name: [value] * 9 for name, value in fake_clock.items()}
    assert found.passes == {"a": 1, "b": 20, "c": 10_000}
    assert [sorted(order) for order in found.order] == [["a", "b", "c"]] * 9
    assert len(set(map(tuple, found.order))) > 2
    assert take_samples(rivals, CPU, seconds=0.0, seed=1).order == found.order
    assert take_samples(rivals, CPU, seconds=0.0, seed=2).order != found.order


def test_rounds_follow_until_the_time_is_used_up(fake_clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock["a"] = 1.0
    ticks = count()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    told: list[float] = []
    found = take_samples({"a": lambda: "a"}, CPU, seconds=12.0, told=told.append)  # type: ignore[dict-item,return-value]
    assert len(found.order) == 12
    assert told == sorted(told)
    assert told[-1] == 1
    monkeypatch.setattr(timing, "MOST_ROUNDS", 10)
    found = take_samples({"a": lambda: "a"}, CPU, seconds=1e9)  # type: ignore[dict-item,return-value]
    assert len(found.order) == 10


def test_a_rival_that_fails_is_left_out_and_the_others_go_on(fake_clock: dict[str, float]) -> None:
    fake_clock |= {"good": 1.0, "late": 1.0}
    calls = count()

    def late() -> Any:
        if next(calls) == 4:
            raise torch.cuda.OutOfMemoryError("Tried to allocate 5 GiB\nand more")
        return "late"

    def never() -> Any:
        raise ValueError("no\nsuch thing")

    rivals: dict[str, Any] = {"good": lambda: "good", "late": late, "never": never}
    found = take_samples(rivals, CPU, seconds=0.0)
    assert found.seconds == {"good": [1.0] * 9}
    assert found.failures == {"late": "out of memory (Tried to allocate 5 GiB)", "never": "ValueError: no"}


def test_a_ctrl_c_is_no_failure() -> None:
    def pressed() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_samples({"a": pressed}, CPU, seconds=0.0)


@pytest.fixture
def traced() -> Iterator[None]:
    """A tracer is active, as a debugger's would be."""
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    yield
    sys.settrace(before)


def test_nothing_is_timed_under_a_tracer(tmbench: Command, tmp_path: Path, traced: None) -> None:
    assert_refused(tmbench(*WHAT), "a tracer", "would mean nothing")
    assert list(tmp_path.iterdir()) == []


def test_whatever_distorts_times_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing_reason() is None
    for variable in ("CUDA_LAUNCH_BLOCKING", "TRITON_INTERPRET"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert variable in (tracing_reason() or "")
            patch.setenv(variable, "0")
            assert tracing_reason() is None
    sys.setprofile(lambda *_: None)
    try:
        reason = tracing_reason()
    finally:
        sys.setprofile(None)
    assert "Python profiler" in (reason or "")
    with torch.autograd.set_detect_anomaly(True):
        assert "anomaly" in (tracing_reason() or "")
    with torch.autograd.profiler.profile():
        assert "torch profiler" in (tracing_reason() or "")
    with monkeypatch.context() as patch:
        patch.setattr(torch._C, "_get_tracing_state", object)
        assert "torch.jit" in (tracing_reason() or "")
    with monkeypatch.context() as patch:
        tools = SimpleNamespace(get_tool=lambda tool: "coverage.py" if tool == 1 else None)
        patch.setattr(sys, "monitoring", tools, raising=False)
        assert tracing_reason() == "'coverage.py' (coverage) watches through sys.monitoring"
    assert tracing_reason() is None


# --- batch sizes and modes --------------------------------------------------------------------------------------------


def of_rates(rates: dict[int, float]) -> Callable[[int], float]:
    def rate(batch: int) -> float:
        if batch not in rates:
            raise torch.cuda.OutOfMemoryError("full")
        return rates[batch]

    return rate


@pytest.mark.parametrize(
    ("rates", "batch", "tried"),
    [
        ({8: 100.0, 16: 150.0, 32: 151.0}, 16, [8, 16, 32]),
        ({8: 100.0, 16: 90.0}, 8, [8, 16]),
        ({8: 100.0, 16: 150.0}, 16, [8, 16, 32]),
        ({8: 1.0, 16: 2.0, 32: 4.0, 64: 8.0}, 32, [8, 16, 32]),
        ({1: 1.0, 2: 9.0}, 2, [8, 4, 2]),
    ],
    ids=["no gain", "slower", "does not fit", "limit", "the start does not fit"],
)
def test_the_largest_batch(rates: dict[int, float], batch: int, tried: list[int]) -> None:
    found, steps = largest_batch(of_rates(rates), Search(start=8, gain=0.05, limit=32))
    assert found == batch
    assert [step["batch_size"] for step in steps] == tried
    assert [step["images_per_s"] for step in steps] == [rates.get(size) for size in tried]


def test_not_even_one_image() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        largest_batch(of_rates({}), Search(start=8, gain=0.05, limit=32))


def test_batch_sizes_are_read_once_each_and_the_maximum_comes_last() -> None:
    assert check_batch_sizes(["max", "8", "1", "8"]) == [8, 1, None]
    assert Search.on(CPU).start == 8
    assert Search.on(torch.device("cuda")).start == 256


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_every_mode_gives_the_same_logits(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = build_model(TINY).eval()
    images, ids = noise(model, 2, "float32", CPU, 0)
    solution = Solver(model).solve(parse_method("random"), Budget("k", "5"))
    networks = [model, attach(model, "random", k=5), free_drop(model, solution.schedule)]
    with torch.inference_mode():
        expected = [model(images), networks[1](images, ids), networks[2](images, ids)]
        found = [as_mode(network, images, ids, mode)() for network in networks]
    for logits, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, wanted)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_compiler_makes_the_halves_of_all_blocks_of_a_group_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_nothing(function: Any, **_: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    model = build_model(TINY).eval()
    images, ids = noise(model, 2, "float32", CPU, 0)
    shared = shared_by("compile")
    for network in (model, attach(model, "random", k=5)):
        as_mode(network, images, ids, "compile", shared)
    assert len(compiled) == 2


def test_free_drop_reduces_as_the_method_does_and_asks_nobody() -> None:
    model = build_model(TINY).eval()
    solution = Solver(model).solve(parse_method("k_medoids"), Budget("keep_rate", "0.8"))
    dropping = free_drop(model, solution.schedule)
    images, ids = noise(model, 2, "float32", CPU, 0)
    left: list[int] = []
    model.get_submodule("norm").register_forward_hook(lambda _, given, out: left.append(out.shape[1]))
    with torch.inference_mode():
        dropping(images, ids)
    assert left == [1 + solution.schedule.steps[-1].n_out]
    assert dropping.reducer_macs() == 0


def test_the_same_seed_is_the_same_noise_in_every_precision() -> None:
    model = build_model(TINY)
    images, ids = noise(model, 3, "float32", CPU, 5)
    assert images.shape == (3, *image_shape(model))
    assert ids.tolist() == [0, 1, 2]
    assert torch.equal(noise(model, 3, "bfloat16", CPU, 5)[0], images.bfloat16())
    assert not torch.equal(noise(model, 3, "float32", CPU, 6)[0], images)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are short and few, and the figure is named, not drawn: it has tests of its own."""
    monkeypatch.setattr(timing, "LEAST", 1e-4)
    monkeypatch.setattr(Stopwatch, "rounds", 3)
    monkeypatch.setattr(speed, "draw", lambda profile: profile.finished)
    importlib.import_module("tokenmerge_bench.products")  # which would keep the replacement of what it imports
    monkeypatch.setattr(figures, "save", lambda _, folder, name, forms: [folder / f"{name}.{form}" for form in forms])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the profile of `profiled` is kept; not to be changed."""
    return tmp_path_factory.mktemp("template") / "speed"


@pytest.fixture
def profiled(tmbench: Command, template: Path, tmp_path: Path) -> Path:
    """A finished profile of one image at a time in `speed`, timed once for all tests."""
    if not template.exists():
        assert tmbench(*WHAT, "--batch-sizes", "1", "--out", template).code == 0
    return Path(shutil.copytree(template, tmp_path / "speed"))


def timed(tmp_path: Path) -> pd.DataFrame:
    return open_profiles([tmp_path / "speed"]).table


def test_a_profile_says_what_was_timed_and_how_long_it_took(tmbench: Command, tmp_path: Path) -> None:
    done = tmbench(*WHAT, "--batch-sizes", "1,4", "--dtypes", "float32,float64")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-2:] == ["table   speed/profile.csv", "figure  speed/speed.png (also svg, pdf)"]
    assert done.out.count(f"{TINY} (random weights), batch ") == 4
    assert f"on {hardware_name(CPU)}" in done.out
    table = timed(tmp_path)
    assert [column for column in table if column != "label"] == list(COLUMNS)
    groups = [("float32", 1), ("float32", 4), ("float64", 1), ("float64", 4)]
    assert list(zip(table["dtype"], table["batch_size"], table["method"], strict=True)) == [
        (*group, method) for group in groups for method in ("none", "dhtm", "lotm")
    ]
    assert set(table["status"]) == {"ok"}
    assert set(table["device"]) == {hardware_name(CPU)}
    assert set(table["weights"]) == {"random"}
    assert set(table["samples"]) == {3}
    assert (table["latency_q25_ms"] <= table["latency_ms"]).all()
    assert (table["latency_ms"] <= table["latency_q75_ms"]).all()
    rate = 1000 * table["batch_size"] / table["latency_ms"]
    np.testing.assert_allclose(table["images_per_s"], rate, rtol=1e-2)
    assert (table["speedup_low"] <= table["speedup"]).all()
    assert (table["speedup"] <= table["speedup_high"]).all()
    assert table["peak_memory_mb"].isna().all()
    reduced, unreduced = table[table["method"] != "none"], table[table["method"] == "none"]
    assert (unreduced["speedup"] == 1).all()
    assert unreduced[["free_drop_speedup", "of_free_drop", "reducer_share"]].isna().all(axis=None)
    np.testing.assert_allclose(reduced["reducer_share"], 1 - reduced["of_free_drop"], atol=1e-4)
    assert (reduced["free_drop_speedup"] > 0).all()
    solver = Solver(build_model(TINY))
    for row in reduced.to_dict("records"):
        solution = solver.solve(parse_method(row["method"]), Budget("k", "2"))
        assert row["gflops"] == pytest.approx(solution.macs.total / 1e9)
        assert row["reduction"] == pytest.approx(1 - solution.macs.total / solver.unreduced.total, abs=1e-6)
        assert (row["budget"], row["knob"]) == ("k=2", solution.knob)


def test_a_record_keeps_every_sample_and_the_order_in_every_round(tmbench: Command, tmp_path: Path) -> None:
    assert tmbench(*WHAT, "--batch-sizes", "2").code == 0
    (file,) = (tmp_path / "speed" / "records").iterdir()
    record = json.loads(file.read_text())
    names = set(record["seconds"])
    assert len(names) == 4  # the unreduced model, two methods, and one free drop: the schedules are the same
    assert {len(taken) for taken in record["seconds"].values()} == {len(record["order"])}
    assert all(set(order) == names for order in record["order"])
    assert len(set(map(tuple, record["order"]))) > 1
    origin = json.loads((tmp_path / "speed" / "provenance.json").read_text())
    assert origin["hardware"] == hardware_name(CPU)
    assert origin["path"] == path_for(CPU)


def test_the_embedded_model_has_weights_of_its_own_and_files_are_taken(weights: Path) -> None:
    assert profiling.load("deit_micro_patch2_28", None).weights == "embedded"
    assert profiling.load(TINY, weights).weights == weights.name
    first, second = profiling.load(TINY_RGB, None), profiling.load(TINY_RGB, None)
    assert first.weights == "random"
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert load_model(TINY, weights, device=CPU).fingerprint == profiling.load(TINY, weights).fingerprint


class Counted:
    """Times nothing twice that a profile has already; a Ctrl-C at a chosen group."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.groups = 0
        self.interrupt_at = interrupt_at

    def __call__(self, *given: Any, **named: Any) -> Samples:
        self.groups += 1
        if self.groups == self.interrupt_at:
            raise KeyboardInterrupt
        return take_samples(*given, **named)


def counting(monkeypatch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> Counted:
    counted = Counted(interrupt_at)
    monkeypatch.setattr(profiling, "take_samples", counted)
    return counted


def test_the_same_command_times_nothing_again(
    tmbench: Command, profiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(profiled)
    counted = counting(monkeypatch)
    done = tmbench(*WHAT, "--batch-sizes", "1")
    assert (done.code, done.err, counted.groups) == (0, "", 0)
    assert contents(profiled) == before
    assert tmbench(*WHAT, "--batch-sizes", "1,2").code == 0
    assert counted.groups == 1
    assert tmbench(*WHAT, "--batch-sizes", "1,2", "--fresh").code == 0
    assert counted.groups == 3


def test_what_is_interrupted_goes_on(tmbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = counting(monkeypatch, interrupt_at=2)
    done = tmbench(*WHAT, "--batch-sizes", "1,2,3")
    assert (done.code, done.out) == (130, "")
    assert done.err == "tmbench: interrupted; the same command goes on from here\n"
    assert is_profile(tmp_path / "speed")
    assert_refused(tmbench("figures", "speed"), "'speed' is not finished", "give its command again")
    counted.interrupt_at = None
    assert tmbench(*WHAT, "--batch-sizes", "1,2,3").code == 0
    assert counted.groups == 4
    assert set(timed(tmp_path)["batch_size"]) == {1, 2, 3}


def test_another_profile_is_refused_and_can_replace_it(
    tmbench: Command, profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(profiled)
    other = [*WHAT, "--batch-sizes", "2"]
    assert_refused(tmbench(*other), "'speed' holds another experiment", "batch 1, float32, eager", "--fresh")
    assert_refused(tmbench(*WHAT, "--batch-sizes", "1", "--seed", "3"), "seed was 0, now 3")
    with monkeypatch.context() as patch:
        patch.setattr(profiling, "hardware_name", lambda _: "another machine")
        assert_refused(tmbench(*WHAT, "--batch-sizes", "1"), "another machine")
    assert contents(profiled) == before
    assert tmbench(*other, "--fresh").code == 0
    assert set(timed(tmp_path)["batch_size"]) == {2}
    assert len(list((profiled / "records").iterdir())) == 1
    with pytest.raises(InputError, match="holds files that no sweep made"):
        ResultFolder(profiled, {}, {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert_refused(tmbench(*WHAT[:-1], "mine"), "holds files that no profile made")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-sizes", "0"], ["batch size '0'", "1,32,256,max"]),
        (["--batch-sizes", "1,many"], ["batch size 'many'"]),
        (["--batch-sizes", "-4"], ["batch size '-4'"]),
        (["--batch-sizes", ","], ["--batch-sizes", "empty list"]),
        (["--dtypes", "float8"], ["no precision 'float8'", "float32, bfloat16"]),
        (["--modes", "eagre"], ["no mode 'eagre'", "did you mean 'eager'"]),
        (["--modes", "eager,graph"], ["CUDA graphs", "--device cuda"]),
        (["--seconds", "-1"], ["--seconds -1"]),
        (["--seconds", "nan"], ["--seconds nan"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--device", "tpu"], ["--device 'tpu'"]),
        (["--methods", "dhtm,sit"], ["sit has no knob 'k'", "--keep-rate", "--budgets"]),
        (["--methods", "dthm"], ["unknown method 'dthm'"]),
        (["--models", "tiny_29"], ["'tiny_29'"]),
        (["--weights", "none.safetensors"], ["'none.safetensors' does not exist"]),
        (["--budgets", "0.7"], ["exactly one way"]),
        (["--limit", "5"], ["--limit", "`tmbench profile --help`"]),
    ],
)
def test_what_cannot_be_timed(tmbench: Command, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(tmbench(*WHAT, *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_compiling_that_is_switched_off_is_refused(tmbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert_refused(tmbench(*WHAT, "--modes", "compile"), "would run eagerly", "TORCHDYNAMO_DISABLE=1")


PLUGIN = '''
import torch
from tokenmerge_bench import TokenReducer, reducer

@reducer("broken")
class Broken(TokenReducer):
    """Fails."""

    def assign(self, tokens, n_out):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB.")

    def macs(self, n_in, n_out, width):
        return 0
'''


def test_a_method_that_fails_is_a_row_and_not_the_end(tmbench: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(PLUGIN)
    what = [*WHAT, "--batch-sizes", "1", "--methods", "dhtm,broken", "--plugin", "broken.py"]
    done = tmbench(*what)
    assert done.code == 1
    reason = "out of memory (CUDA out of memory. Tried to allocate 2.00 TiB.)"
    assert done.err == f"tmbench: {TINY} broken at k=2: failed, {reason}\n"
    table = timed(tmp_path).set_index("method")
    assert table["status"].to_dict() == {"none": "ok", "dhtm": "ok", "broken": "failed"}
    assert table.loc["broken", "reason"] == reason
    assert table["speedup"].to_dict()["dhtm"] > 0
    assert "figure  speed/speed.png" in done.out


def test_what_failed_gets_another_chance(tmbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(PLUGIN)
    what = [*WHAT, "--batch-sizes", "1", "--methods", "dhtm,broken", "--plugin", "broken.py"]
    assert tmbench(*what).code == 1
    counted = counting(monkeypatch)
    assert tmbench(*what).code == 1
    assert counted.groups == 1


def test_without_the_unreduced_model_there_are_times_but_no_speedups(
    tmbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> Samples:
        found = take_samples(*given, **named)
        del found.seconds["none"]
        found.failures["none"] = "it broke"
        return found

    monkeypatch.setattr(profiling, "take_samples", fails)
    done = tmbench(*WHAT, "--batch-sizes", "1")
    assert done.code == 1
    assert f"{TINY} none at 1: failed, it broke" in done.err
    assert "speed needs a method that was timed beside the unreduced model" in done.err
    table = timed(tmp_path).set_index("method")
    assert table.loc[["dhtm", "lotm"], "speedup"].isna().all()
    assert (table.loc[["dhtm", "lotm"], "of_free_drop"] > 0).all()


def test_a_budget_out_of_reach_is_a_row(tmbench: Command, tmp_path: Path) -> None:
    command = ["profile", "--models", TINY, "--methods", "lotm:layers=10,random:layers=all", "--budgets", "0.5"]
    done = tmbench(*command, "--seconds", "0", "--batch-sizes", "1", "--out", "speed")
    assert done.code == 0
    table = timed(tmp_path).set_index("method")
    assert table["status"].to_dict() == {"none": "ok", "lotm": "unreachable", "random": "ok"}
    assert "the nearest that lotm" in done.err


def test_the_maximum_is_found_once_and_timed_once(
    tmbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Search] = []

    def search(rate: Callable[[int], float], how: Search) -> tuple[int, list[dict[str, Any]]]:
        assert rate(2) > 0
        searched.append(how)
        return 3, []

    monkeypatch.setattr(profiling, "largest_batch", search)
    assert tmbench(*WHAT, "--batch-sizes", "max,1").code == 0
    assert list(timed(tmp_path)["batch_size"]) == [1] * 3 + [3] * 3
    assert tmbench(*WHAT, "--batch-sizes", "max,1").code == 0
    assert searched == [batch_sizes.Search.on(CPU)]
    assert tmbench(*WHAT, "--batch-sizes", "1,max,3").code == 0  # now it has a number as well, and is shown under it
    assert sorted(timed(tmp_path)["batch_size"]) == [1] * 3 + [3] * 3


def test_a_maximum_that_is_asked_for_by_its_number_is_timed_under_it(
    tmbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "largest_batch", lambda *_: (2, []))
    assert tmbench(*WHAT, "--batch-sizes", "2,max").code == 0
    assert list(timed(tmp_path)["batch_size"]) == [2] * 3


def test_damaged_profiles_are_refused(tmbench: Command, profiled: Path, tmp_path: Path) -> None:
    file = profiled / "profile.csv"
    text = file.read_text()
    file.write_text(text.replace("speedup_low", "something"))
    assert_refused(tmbench("figures", "speed"), "lacks 'speedup_low'")
    file.write_text(text.splitlines()[0])
    assert_refused(tmbench("figures", "speed"), "no ")
    file.write_text(text)
    manifest = profiled / "profile.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 9}))
    assert_refused(tmbench("figures", "speed"), "format 9", "update")
    manifest.write_text("{")
    assert_refused(tmbench("figures", "speed"), "is damaged")
    with pytest.raises(InputError, match="is no profile"):
        open_profiles([tmp_path])


def test_two_profiles_of_the_same_are_not_shown_as_one(tmbench: Command, profiled: Path, tmp_path: Path) -> None:
    shutil.copytree(profiled, tmp_path / "again")
    assert_refused(tmbench("figures", "speed", "again"), "both timed")
