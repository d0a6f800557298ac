"""The training track: a toy problem is learnt, and no kill, mistake or damage loses or falsifies anything."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands import Command, assert_refused
from safetensors.torch import load_file
from sweeping import TINY as TINY_MODEL
from sweeping import save_checkpoint
from toy_training import (
    ALONE,
    AUGMENTED,
    FINISHED,
    RECIPE,
    TINY,
    UNFINISHED,
    Silent,
    curve_of,
    files_of,
    run,
    save_textures,
    task,
    textures,
    weights_of,
)

from tokenmerge_bench import checkpoints, learning_curve
from tokenmerge_bench import train as training
from tokenmerge_bench.budgets import Budget, Solver, reduce_with
from tokenmerge_bench.checkpoints import CARD, WEIGHTS, open_checkpoint
from tokenmerge_bench.data import ArrayImages
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.figures import curve
from tokenmerge_bench.learning_curve import CurveRow
from tokenmerge_bench.models import DEMO_MODEL, load_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.recipe import Recipe
from tokenmerge_bench.store import read_results, write_bytes, write_text
from tokenmerge_bench.student import Student
from tokenmerge_bench.train import CURVE, STATE, Task
from tokenmerge_bench.training_images import divide, open_source

CPU = torch.device("cpu")
SIT, SINKHORN = "sit:layers=1/2", "sinkhorn:layers=1/2"
SMALL: dict[str, Any] = {"batch_size": 16, "holdout": 12}
"""5 updates an epoch of 100 images."""
WORKERS: dict[str, Any] = {"auto_augment": "rand-m5-mstd0.5", "crop_scale": (0.6, 1.0)}
"""What is done image by image, in worker processes if there are any."""


@pytest.fixture(scope="module")
def toy() -> ArrayImages:
    return textures(224)


@pytest.fixture(scope="module")
def few() -> ArrayImages:
    return textures(100)


@pytest.fixture(scope="module")
def base(few: ArrayImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of the unreduced model; not to be changed."""
    out = tmp_path_factory.mktemp("base") / "out"
    run(few, out, **SMALL)
    return out


@pytest.fixture(scope="module")
def interrupted(few: ArrayImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, interrupted in its second epoch; not to be changed."""
    out = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(KeyboardInterrupt):
        run(few, out, reporter=Silent(interrupt_at(6)), **SMALL)
    assert files_of(out) == UNFINISHED
    return out


# --- a toy problem ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, SIT, "dpc_knn:learned_weights=true:layers=1/2"])
def test_a_learnable_problem_is_learnt(toy: ArrayImages, tmp_path: Path, method: str | None) -> None:
    reporter, out = Silent(), tmp_path / "out"
    hasty: dict[str, Any] = {
        "epochs": 5,
        "lr": 3e-2,
        "batch_size": 8,
        "clip_grad": 1.0,
        "ema_decay": 0.8,
        "warmup_epochs": 1,
    }
    card = run(toy, out, task(method, holdout=48, **hasty), reporter=reporter)
    losses = [row.train_loss for row in reporter.rows]
    assert losses[-1] < 0.6 * losses[0]
    assert card.metrics["holdout_top1"] == reporter.rows[-1].holdout_top1_ema
    assert card.metrics["holdout_top1"] > 50  # chance is 25
    assert measured_again(toy, out) == pytest.approx(
        card.metrics["holdout_top1"], abs=2.1
    )  # one image: of half precision
    assert reporter.started == (5, 22, 0)
    assert reporter.closed
    assert reporter.notes == []
    assert files_of(out) == FINISHED


def measured_again(images: ArrayImages, out: Path) -> float:
    """Accuracy on the images held out, from the files of the checkpoint alone."""
    checkpoint = open_checkpoint(out)
    assert checkpoint is not None
    loaded, reducers = checkpoint.load(DEMO_MODEL, device=CPU)
    network = loaded.model
    if checkpoint.method is not None:
        solution = Solver(loaded.model).solve(checkpoint.method, Budget("fraction", "0.8"))
        assert solution.schedule.steps == checkpoint.card.schedule_steps
        network = reduce_with(loaded.model, checkpoint.method, solution).eval()
        network.reducers.load_state_dict(reducers)
    held = divide(images, Recipe(**checkpoint.card.recipe)).holdout
    mean, std = loaded.data_config["mean"][0], loaded.data_config["std"][0]
    with torch.inference_mode():
        scores = network((torch.from_numpy(images.pixels[held])[:, None] / 255 - mean) / std)
    return 100 * float((scores.argmax(1).numpy() == images.labels[held]).mean())


def test_weights_are_half_precision_and_load_back_strictly(base: Path) -> None:
    assert {tensor.dtype for tensor in load_file(base / WEIGHTS).values()} == {torch.float16}
    loaded = load_model(DEMO_MODEL, base / WEIGHTS, device=CPU, model_kwargs=TINY)
    assert loaded.model(torch.zeros(1, 1, 28, 28)).shape == (1, 4)


@pytest.mark.parametrize(
    ("method", "changes", "workers"), [(SINKHORN, {**AUGMENTED, "rand_augment": 9}, 0), (None, WORKERS, 1)]
)
def test_the_same_seed_gives_the_same_weights(
    few: ArrayImages, tmp_path: Path, method: str | None, changes: dict[str, Any], workers: int
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(2 if name == "b" else 1)  # what was drawn before plays no part
        one = task(method, seed=seed, epochs=1, **{**SMALL, **changes})
        run(few, tmp_path / name, one, workers=workers)
    a, b, c = (weights_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


def test_workers_change_nothing(few: ArrayImages, tmp_path: Path) -> None:
    """Not even what is drawn for mixup and drop path."""
    for workers in (0, 2):
        run(few, tmp_path / str(workers), workers=workers, epochs=1, **{**SMALL, **AUGMENTED, **WORKERS})
    assert weights_of(tmp_path / "0") == weights_of(tmp_path / "2")


def test_color_images_of_other_sizes_are_learnt(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    pixels = labels[:, None, None, None] * 150 + torch.randint(0, 100, (96, 32, 40, 3), generator=generator)
    images = ArrayImages.of("rgb", pixels.to(torch.uint8).numpy(), labels.numpy(), 2)
    card = run(images, tmp_path, epochs=4, holdout=16, batch_size=16)
    assert card.metrics["holdout_top1"] > 90


def test_repeated_augmentation_is_trained_on(few: ArrayImages, tmp_path: Path) -> None:
    reporter = Silent()
    card = run(few, tmp_path, reporter=reporter, repeats=3, pad=2, **SMALL)
    assert reporter.started == (2, 5, 0)
    assert card.metrics["images_trained_on"] == 88


def test_without_an_average_or_holdout_the_columns_are_empty(few: ArrayImages, tmp_path: Path) -> None:
    card = run(few, tmp_path, epochs=1, holdout=0, ema_decay=0.0)
    assert card.metrics["holdout_top1"] is None
    assert card.weights == "last epoch"
    assert (tmp_path / CURVE).read_text().splitlines()[1].split(",")[3:5] == ["", ""]


def test_the_learning_rate_warms_up_and_falls(few: ArrayImages, tmp_path: Path) -> None:
    reporter = Silent()
    run(few, tmp_path, reporter=reporter, epochs=5, warmup_epochs=2, warmup_lr=1e-5, min_lr=1e-4, **SMALL)
    lrs = [row.lr for row in reporter.rows]
    assert lrs[0] == pytest.approx(1e-5)
    assert lrs[0] < lrs[1] < lrs[2] < RECIPE["lr"]
    assert lrs[2] > lrs[3] > lrs[4] > 1e-4


def trainer(images: ArrayImages, of: Task, updates: int = 5) -> training._Trainer:
    torch.manual_seed(0)
    return training._Trainer(of, training._start(of, images, ALONE), images.classes, ALONE, updates)


def test_biases_norms_and_positions_are_not_decayed(few: ArrayImages, base: Path) -> None:
    taught: dict[str, Any] = {"init": "pretrained", "distill_tokens": 1.0, "distill_lr_scale": 5.0}
    made = trainer(few, task(SIT, weights=base, weight_decay=0.1, **taught))
    names = {id(parameter): name for name, parameter in made.student.named_parameters()}
    decayed = {names[id(p)]: group["weight_decay"] for group in made.optimizer.param_groups for p in group["params"]}
    assert decayed.keys() == set(names.values())
    assert decayed["backbone.blocks.0.attn.qkv.weight"] == 0.1
    for name in ("backbone.blocks.0.attn.qkv.bias", "backbone.norm.weight", "backbone.pos_embed", "backbone.cls_token"):
        assert decayed[name] == 0
    rates = {group["lr"] for group in made.optimizer.param_groups}
    assert rates == {RECIPE["lr"], 5 * RECIPE["lr"]}  # of the first update already


def test_muon_leaves_positions_and_cls_to_its_fallback(few: ArrayImages, tmp_path: Path) -> None:
    """They are no matrices, whatever their shapes say."""
    made = trainer(few, task(opt="muon", weight_decay=0.1))
    fallen = [p for group in made.optimizer.param_groups if group.get("use_fallback") for p in group["params"]]
    names = {name for name, parameter in made.student.named_parameters() if any(parameter is p for p in fallen)}
    assert names == {"backbone.cls_token", "backbone.pos_embed"}
    reporter = Silent()
    run(few, tmp_path / "out", reporter=reporter, opt="muon", epochs=3, **SMALL)
    assert reporter.rows[-1].train_loss < reporter.rows[0].train_loss


def test_the_moving_average_is_timms(few: ArrayImages) -> None:
    """Against the formula, with timm's warm-up of the decay."""
    made = trainer(few, task(SINKHORN, ema_decay=0.9))
    assert made.ema is not None
    name = "backbone.blocks.0.attn.qkv.weight"
    expected = made.student.state_dict()[name].clone()
    recipe = made.recipe
    source = open_source(few, divide(few, recipe), recipe, CONFIG, ALONE, 0)
    for number, micro in zip(range(1, 4), source.micros(1), strict=False):
        made.update([micro])
        decay = min(0.9, 1 - (1 + (number - 1)) ** (-2 / 3))
        expected.lerp_(made.student.state_dict()[name], 1 - decay)
    average = made.ema.module
    assert average.state_dict()[name].equal(expected)
    # The network of the average runs with the weights of the average.
    ours, theirs = ({id(p) for p in one.network.model.parameters()} for one in (average, made.student))
    assert ours == {id(parameter) for parameter in average.backbone.parameters()}
    assert not ours & theirs


CONFIG: dict[str, Any] = {
    "input_size": (1, 28, 28),
    "crop_pct": 1.0,
    "mean": (0.5,),
    "std": (0.5,),
    "interpolation": "bilinear",
}


@pytest.mark.parametrize("changes", [{}, {"clip_grad": 0.1}])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(few: ArrayImages, changes: dict[str, Any]) -> None:
    states = []
    for most in (0, 4):
        made = trainer(
            few, task(SIT, opt="sgd", lr=0.1, micro_batch_size=most, label_smoothing=0.1, **SMALL, **changes)
        )
        recipe = made.recipe
        source = open_source(few, divide(few, recipe), recipe, CONFIG, ALONE, 0)
        micros = list(source.micros(1))
        parts = 16 // source.micro
        for update in range(3):
            made.update(micros[update * parts : (update + 1) * parts])
        states.append(made.student.state_dict())
    assert len(micros) == 20
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-6)  # single precision, summed otherwise


def test_compile_is_for_cuda_alone(few: ArrayImages, tmp_path: Path, base: Path) -> None:
    run(few, tmp_path, compile="reduce-overhead", amp="bfloat16", **SMALL)
    assert weights_of(tmp_path) == weights_of(base)


# --- distillation -----------------------------------------------------------------------------------------------------


def student(images: ArrayImages, of: Task) -> Student:
    return trainer(images, of).student.train()


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(few: ArrayImages, base: Path) -> None:
    both: dict[str, Any] = {"init": "pretrained", "weights": base, "distill_tokens": 2.0, "distill_logits": 2.0}
    pixels, ids = torch.rand(4, 1, 28, 28), torch.arange(4)
    _, extra = student(few, task("dhtm:layers=1/2", Budget("k", "0"), **both))(pixels, ids)
    assert extra.item() == pytest.approx(0, abs=1e-6)
    reduced = student(few, task(SIT, **both))
    _, extra = reduced(pixels, ids)
    assert extra.item() > 0.1
    assert reduced.eval()(pixels, ids)[1] is None


def test_distillation_brings_the_student_nearer_to_its_teacher(few: ArrayImages, base: Path, tmp_path: Path) -> None:
    taught = task(SIT, distill_tokens=2.0, distill_logits=2.0, init="pretrained", weights=base, lr=1e-2, **SMALL)
    made = student(few, taught)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    pixels, ids, losses = torch.rand(8, 1, 28, 28), torch.arange(8), []
    for _ in range(20):
        _, extra = made(pixels, ids)
        losses.append(extra.item())
        optimizer.zero_grad()
        extra.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    run(few, tmp_path, taught)
    held = load_file(tmp_path / WEIGHTS)
    assert not [key for key in held if "recalibration" in key or "teacher" in key]  # of no use after training
    assert any(key.startswith("reducers.") for key in held)


# --- checkpoints and their cards --------------------------------------------------------------------------------------


def test_the_card_says_what_the_checkpoint_is(few: ArrayImages, base: Path, tmp_path: Path) -> None:
    card = run(few, tmp_path, task(SIT, weights=base, init="pretrained", seed=3, **SMALL))
    assert json.loads((tmp_path / CARD).read_text()) == json.loads(card.model_dump_json())
    assert (card.model, card.model_kwargs, card.classes) == (DEMO_MODEL, TINY, 4)
    assert (card.method, card.budget, card.seed) == ("sit", "0.8", 3)
    assert card.options["layers"] == "1/2"
    assert [step.block for step in card.schedule_steps] == [1, 2]
    unreduced = json.loads((base / CARD).read_text())
    assert card.gflops == pytest.approx(0.8 * unreduced["gflops"], rel=0.01)
    assert unreduced["method"] == "none"
    assert unreduced["initial"] is None
    assert card.initial == {"weights": WEIGHTS, "fingerprint": card.initial["fingerprint"]} if card.initial else False
    assert Recipe(**card.recipe) == Recipe(**{**RECIPE, **SMALL, "init": "pretrained", "seed": 3})
    assert card.data == {"name": "toy", "images": 100, "fingerprint": few.fingerprint}
    assert card.weights == "moving average, last epoch"
    assert card.metrics["images_trained_on"] == 88
    assert card.metrics["unreadable"] == []
    (_, last) = curve_of(tmp_path)
    assert f"{card.metrics['train_loss']:.6g}" == last["train_loss"]
    assert f"{card.metrics['holdout_top1']:.6g}" == last["holdout_top1_ema"]
    assert card.hardware
    assert card.precision == "float32"
    assert card.versions.keys() >= {"tokenmerge_bench", "torch", "timm"}
    assert card.seconds > 0


def test_the_curve_has_a_row_for_every_epoch(base: Path) -> None:
    rows = curve_of(base)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "holdout_top1", "holdout_top1_ema"]


def test_the_best_epoch_is_kept_if_the_recipe_says_so(
    few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracies are made up: 50, 75, 75, 25 of the average; the first of the best is kept."""
    best = {**SMALL, "epochs": 4, "keep": "best"}
    found = {id(few): iter([0.0, 50.0, 0.0, 75.0, 0.0, 75.0, 0.0, 25.0])}
    monkeypatch.setattr(training._Trainer, "top1", lambda *_: next(found[id(few)]))
    card = run(few, tmp_path / "best", **best)
    assert card.weights == "moving average, epoch 2, the best of 4 on held-out training images"
    assert card.metrics["holdout_top1"] == 75
    monkeypatch.setattr(training._Trainer, "top1", lambda *_: 0.0)

    def stop(update: int) -> None:
        if update == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(few, tmp_path / "second", reporter=Silent(stop), **{**best, "keep": "last"})
    second = torch.load(tmp_path / "second" / STATE, weights_only=True)
    assert second["updates"] == 10
    expected = second["average"]["backbone.head.weight"]
    assert load_file(tmp_path / "best" / WEIGHTS)["head.weight"].equal(expected.half())


def test_the_card_names_no_absolute_path(few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(tmp_path / "__main__.py"), "train", "--out", str(tmp_path / "o"), f"--weights={tmp_path / 'w'}", "x=1"]
    monkeypatch.setattr(sys, "argv", words)
    assert run(few, tmp_path / "o", epochs=1, **SMALL).command == "tmbench train --out o --weights=w x=1"


# --- killed and gone on with ------------------------------------------------------------------------------------------


IN_CHILD = pytest.MonkeyPatch()
"""For what is changed in a copy of this process, which ends with it."""


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(update: int) -> Callable[[], Silent]:
    return lambda: Silent(lambda now: die() if now == update else None)


def die_writing_the_state(epoch: int) -> Callable[[], Silent]:
    """Half of the file is written."""

    def prepare() -> Silent:
        def write(path: Path, content: bytes) -> None:
            if len(torch.load(io.BytesIO(content), weights_only=True)["curve"]) == epoch:
                path.with_name(f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
                die()
            write_bytes(path, content)

        IN_CHILD.setattr(training, "write_bytes", write)
        return Silent()

    return prepare


def die_after_the_state(epoch: int) -> Callable[[], Silent]:
    """Before the epoch's line is in curve.csv."""

    def prepare() -> Silent:
        def write(path: Path, text: str) -> None:
            if text.count("\n") > epoch:
                die()
            write_text(path, text)

        IN_CHILD.setattr(training, "write_text", write)
        return Silent()

    return prepare


def die_before_the_card() -> Silent:
    IN_CHILD.setattr(checkpoints, "write_text", die)
    return Silent()


def die_after_the_card() -> Silent:
    def last(path: Path, text: str) -> None:
        write_text(path, text)
        die()

    IN_CHILD.setattr(checkpoints, "write_text", last)
    return Silent()


def in_child(action: Callable[[], object]) -> int:
    """Runs something in a copy of this process; the identifier of which is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return child


def assert_killed(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def killed_run(prepare: Callable[[], Silent], images: ArrayImages, out: Path, of: Task, workers: int) -> None:
    run(images, out, of, workers=workers, reporter=prepare())


KILLED: dict[str, tuple[str | None, dict[str, Any], int, list[tuple[Callable[[], Silent], int]]]] = {
    "at every kind of moment": (
        SINKHORN,
        {**AUGMENTED, "micro_batch_size": 8, "keep": "best"},
        0,
        [
            (die_writing_the_state(1), 0),
            (die_after_the_state(1), 1),
            (die_at(7), 1),
            (die_writing_the_state(2), 1),
            (die_after_the_state(2), 2),
            (die_before_the_card, 2),
        ],
    ),
    "with workers": (None, {**AUGMENTED, **WORKERS, "repeats": 2}, 1, [(die_at(8), 1)]),
    "with a teacher": (
        SIT,
        {"init": "pretrained", "distill_tokens": 2.0, "distill_logits": 2.0, "opt": "sgd"},
        0,
        [(die_at(8), 1)],
    ),
}


@pytest.mark.parametrize("case", KILLED)
def test_training_that_was_killed_goes_on_as_if_it_had_not_been(
    few: ArrayImages, base: Path, tmp_path: Path, case: str
) -> None:
    method, changes, workers, kills = KILLED[case]
    one = task(method, weights=base if "init" in changes else None, **{**SMALL, **changes})
    out, whole = tmp_path / "killed", tmp_path / "whole"
    run(few, whole, one, workers=workers)
    for prepare, epochs in kills:
        assert_killed(in_child(partial(killed_run, prepare, few, out, one, workers)))
        assert not (out / CARD).exists()
        state = torch.load(out / STATE, weights_only=True) if epochs else {"curve": []}
        assert len(state["curve"]) == epochs
        assert (out / STATE).exists() == bool(epochs)
    reporter = Silent()
    card = run(few, out, one, workers=workers, reporter=reporter)
    assert reporter.started is not None
    assert reporter.started[2] == kills[-1][1]
    assert curve_of(out) == curve_of(whole)
    assert weights_of(out) == weights_of(whole)
    assert files_of(out) == FINISHED
    uninterrupted = json.loads((whole / CARD).read_text())
    assert {key: card.metrics[key] for key in card.metrics} == uninterrupted["metrics"]
    assert card.weights == uninterrupted["weights"]


def test_killed_at_any_moment(few: ArrayImages, tmp_path: Path) -> None:
    one = task(SINKHORN, **{**SMALL, **AUGMENTED, "epochs": 3})
    began = time.perf_counter()
    run(few, tmp_path / "whole", one)
    seconds = time.perf_counter() - began
    draws = random.Random(0)
    for _ in range(2):
        child = in_child(lambda: run(few, tmp_path / "killed", one))
        time.sleep(draws.uniform(0.3, 1.0) * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run(few, tmp_path / "killed", one)
    assert curve_of(tmp_path / "killed") == curve_of(tmp_path / "whole")
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")


def test_killed_between_the_card_and_the_end_it_is_finished(few: ArrayImages, tmp_path: Path) -> None:
    one = task(**SMALL)
    assert_killed(in_child(lambda: run(few, tmp_path, one, reporter=die_after_the_card())))
    reporter = Silent()
    run(few, tmp_path, one, reporter=reporter)
    assert reporter.started is None
    assert files_of(tmp_path) == FINISHED


def test_the_state_of_a_run_under_way_has_the_weights_of_the_model(interrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pth").write_bytes((interrupted / STATE).read_bytes())
    load_model(DEMO_MODEL, tmp_path / "state.pth", device=CPU, model_kwargs=TINY)


def interrupt_at(update: int) -> Callable[[int], None]:
    def stop(now: int) -> None:
        if now == update:
            raise KeyboardInterrupt

    return stop


def test_a_finished_folder_gives_its_card_and_is_not_touched(few: ArrayImages, base: Path) -> None:
    before = {name: (base / name).stat().st_mtime_ns for name in (CARD, CURVE, WEIGHTS)}
    reporter = Silent()
    card = run(few, base, reporter=reporter, **SMALL)
    assert json.loads((base / CARD).read_text()) == json.loads(card.model_dump_json())
    assert {name: (base / name).stat().st_mtime_ns for name in before} == before
    assert reporter.rows == []
    assert reporter.notes == [f"'{base}' holds this training, finished; --fresh would start it over"]


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"lr": 1e-4}, r"recipe's lr was 0\.003, now 0\.0001"),
        ({"seed": 1}, "recipe's seed was 0, now 1"),
        ("tome", "method's method was none, now tome"),
        ("other images", "data was toy"),
    ],
)
def test_an_earlier_run_of_another_task_is_not_overwritten(
    few: ArrayImages, base: Path, interrupted: Path, of: Any, message: str
) -> None:
    images = textures(100, seed=1) if of == "other images" else few
    other = task(of, **SMALL) if of == "tome" else task(**{**SMALL, **(of if isinstance(of, dict) else {})})
    for out in (base, interrupted):
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        says = rf"holds another experiment \(.*{message}.*give another folder .*--fresh"
        with pytest.raises(InputError, match=says):
            run(images, out, other)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_fresh_starts_over(few: ArrayImages, base: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(few, tmp_path, reporter=Silent(interrupt_at(6)), seed=1, **SMALL)
    (tmp_path / "curve.png").touch()
    run(few, tmp_path, fresh=True, **SMALL)
    assert weights_of(tmp_path) == weights_of(base)
    assert files_of(tmp_path) == FINISHED


def test_a_mistake_beside_fresh_loses_nothing(few: ArrayImages, base: Path) -> None:
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    mistakes: list[dict[str, Any]] = [{"opt": "adamq"}, {"mixup": 0.5, "micro_batch_size": 1}]
    for mistake in mistakes:
        with pytest.raises(InputError, match=r"adamq|cannot be shared"):
            run(few, base, fresh=True, **SMALL, **mistake)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_folders_of_something_else_are_not_written_to(few: ArrayImages, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(InputError, match="holds files that no train made"):
        run(few, tmp_path, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_a_run_under_way_is_not_disturbed(few: ArrayImages, tmp_path: Path) -> None:
    found: list[str] = []

    def again(update: int) -> None:
        if update == 1:
            with pytest.raises(InputError, match="another train is writing to") as refused:
                run(few, tmp_path, fresh=True, **SMALL)
            found.append(str(refused.value))

    run(few, tmp_path, reporter=Silent(again), **SMALL)
    assert len(found) == 1


def test_a_damaged_state_is_not_taken_for_a_whole_one(few: ArrayImages, interrupted: Path, tmp_path: Path) -> None:
    for path in interrupted.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 1000 if path.name == STATE else None])
    with pytest.raises(InputError, match=r"state\.pt' is damaged .* start over with --fresh"):
        run(few, tmp_path, **SMALL)


def test_finished_weights_that_are_not_those_of_the_card_are_refused(
    few: ArrayImages, base: Path, tmp_path: Path
) -> None:
    run(few, tmp_path, epochs=1, **SMALL)
    (tmp_path / WEIGHTS).write_bytes(weights_of(base))
    with pytest.raises(InputError, match="and its card disagree"):
        run(few, tmp_path, epochs=1, **SMALL)


# --- divergence and memory --------------------------------------------------------------------------------------------


def test_a_learning_rate_that_is_too_high_is_named(few: ArrayImages, tmp_path: Path) -> None:
    reporter = Silent()
    with pytest.raises(
        InputError, match=r"diverged: .* \(epoch 1\), at a learning rate of \d.*e\+1\d; no epoch is finished"
    ):
        run(few, tmp_path, opt="sgd", lr=1e12, epochs=3, reporter=reporter)
    assert reporter.closed
    assert files_of(tmp_path) == {"train.json"}
    run(few, tmp_path, epochs=1)  # which tells it to be lowered, and the folder is free


def test_a_loss_that_is_no_number_stops_training_with_the_last_good_state(
    few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the 8th update, which is the third of the second epoch."""
    loss, rates = training._Trainer._loss, []

    def poisoned(self: training._Trainer, micro: Any) -> torch.Tensor:
        rates.append(self.lr)
        return loss(self, micro) + (math.inf if self.updates == 7 else 0.0)

    monkeypatch.setattr(training._Trainer, "_loss", poisoned)
    with pytest.raises(InputError) as raised:
        run(few, tmp_path, **SMALL)
    assert str(raised.value) == (
        f"training diverged: the loss is inf at update 8 (epoch 2), at a learning rate of {rates[7]:.3g}; "
        f"'{tmp_path / STATE}' holds the weights after epoch 1; lower lr or set clip_grad, in another folder"
    )
    assert files_of(tmp_path) == UNFINISHED
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert state["updates"] == 5
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_weights_that_the_last_update_spoilt_are_not_kept(
    few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss shows it."""
    update = training._Trainer.update

    def spoil(self: training._Trainer, micros: Any) -> torch.Tensor:
        loss = update(self, micros)
        if self.updates == 10:
            torch.nn.init.constant_(self._parameters[0], float("nan"))
        return loss

    monkeypatch.setattr(training._Trainer, "update", spoil)
    with pytest.raises(InputError, match=r"weights are no numbers at update 10 \(epoch 2\).*after epoch 1"):
        run(few, tmp_path, **SMALL)
    assert files_of(tmp_path) == UNFINISHED
    assert torch.load(tmp_path / STATE, weights_only=True)["updates"] == 5


def test_a_batch_that_does_not_fit_says_what_to_lower_and_goes_on(
    few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = training._Trainer.update

    def scarce(self: training._Trainer, micros: Any) -> torch.Tensor:
        if self.updates == 6 and len(micros[0].labels) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return update(self, micros)

    monkeypatch.setattr(training._Trainer, "update", scarce)
    says = (
        r"^16 images at a time do not fit into the memory of cpu: give the same command with "
        r"--set micro_batch_size=8, it goes on after epoch 1$"
    )
    with pytest.raises(InputError, match=says):
        run(few, tmp_path, **SMALL)
    reporter = Silent()
    card = run(few, tmp_path, reporter=reporter, micro_batch_size=8, **SMALL)
    assert reporter.started == (2, 5, 1)
    assert card.recipe["micro_batch_size"] == 8
    assert len(curve_of(tmp_path)) == 2


def test_where_nothing_can_be_lowered_it_says_so(
    few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(training._Trainer, "update", scarce)
    for least, mixup in ((1, 0.0), (2, 0.5)):
        with pytest.raises(InputError, match=rf"^not even a batch of {least} fits into the memory of cpu"):
            run(few, tmp_path, micro_batch_size=least, mixup=mixup, **SMALL)


def test_images_held_out_that_do_not_fit_say_so_too(
    few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(training._Trainer, "top1", scarce)
    with pytest.raises(InputError, match=r"--set micro_batch_size=8, it goes on after epoch 0"):
        run(few, tmp_path, **SMALL)


def test_other_errors_are_not_hidden(few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(training._Trainer, "update", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(few, tmp_path, **SMALL)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (None, {"model": "deit_micro_patch2_82"}, f"did you mean '{DEMO_MODEL}'"),
        (None, {"model": ""}, "the recipe names no model: give one with --model"),
        (None, {"model_kwargs": {"embed_dmi": 16}}, "embed_dmi"),
        (None, {"opt": "adamq"}, "optimizer 'adamq' .*did you mean"),
        (None, {"opt": "adahessian"}, "optimizer 'adahessian' needs second derivatives"),
        (None, {"auto_augment": "randaug"}, "no auto_augment 'randaug': write it as rand-m9"),
        (None, {"distill_logits": 1.0}, "distillation teaches a reduced model"),
        (SIT, {"distill_logits": 1.0}, "the recipe trains from scratch: --set init=pretrained, or set distill_"),
        (None, {"holdout": 90}, "100 training images of 'toy' are too few for holdout 90"),
        ("sit:layers=9", {}, "9"),
    ],
)
def test_mistakes_are_named(
    few: ArrayImages, tmp_path: Path, method: str | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(few, tmp_path, task(method, **{**SMALL, **changes}))
    assert files_of(tmp_path) <= {"train.json"}


def test_a_budget_that_the_method_cannot_reach_is_refused(few: ArrayImages, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the nearest that .* can do is 0\.\d+ .*ask for another --budget"):
        run(few, tmp_path / "out", task("tome", Budget("fraction", "0.2")))
    assert not (tmp_path / "out").exists()


def test_a_method_without_a_budget_is_refused() -> None:
    with pytest.raises(InputError, match="give both, --method and --budget, or neither"):
        Task(Recipe(**RECIPE), parse_method("sit"))


def test_weights_that_would_not_be_used_are_refused(base: Path) -> None:
    with pytest.raises(InputError, match=r"would not be used, as the recipe trains from scratch.*init=pretrained"):
        task(weights=base)


def test_weights_of_another_architecture_are_refused(few: ArrayImages, base: Path, tmp_path: Path) -> None:
    wider = {**TINY, "embed_dim": 24}
    with pytest.raises(InputError, match="weights"):
        run(few, tmp_path / "out", task(weights=base, init="pretrained", model_kwargs=wider))
    assert not (tmp_path / "out").exists()


def test_weights_that_were_trained_with_a_method_are_no_beginning(few: ArrayImages, tmp_path: Path) -> None:
    reduced = save_checkpoint(tmp_path / "sit").file.parent
    with pytest.raises(InputError, match=r"was trained tiny_28 with sit at .*weights of the unreduced model"):
        run(few, tmp_path / "out", task(weights=reduced, init="pretrained", model=TINY_MODEL, model_kwargs={}))
    assert not (tmp_path / "out").exists()


def test_a_head_for_other_classes_is_replaced(few: ArrayImages, base: Path, tmp_path: Path) -> None:
    seven = ArrayImages.of("seven", few.pixels, few.labels + 3, 7)
    card = run(seven, tmp_path, task(weights=base, init="pretrained", lr=1e-9, ema_decay=0.0, **SMALL))
    assert card.classes == 7
    with pytest.raises(InputError, match=r"know 4 classes and 'seven' has 7, so that their logits teach nothing"):
        run(seven, tmp_path / "taught", task(SIT, weights=base, init="pretrained", distill_logits=1.0))
    before, after = load_file(base / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert after["head.weight"].shape == (7, 16)
    assert after["blocks.0.attn.qkv.weight"].equal(before["blocks.0.attn.qkv.weight"])


# --- what is told on the way ------------------------------------------------------------------------------------------


def test_lines_are_reported_where_stderr_is_no_terminal(
    few: ArrayImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(task(**SMALL), few, tmp_path, ALONE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2, ")
    assert "averaged" in lines[0]


def test_a_bar_shows_how_far_it_is_and_how_long_it_takes(
    few: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    training.train(task(**SMALL), few, tmp_path, ALONE)
    told = capsys.readouterr().err
    assert "epoch 2/2" in told
    assert "averaged" in told
    # Of a folder that is finished there is no bar, but a note.
    training.train(task(**SMALL), few, tmp_path, ALONE)
    assert "holds this training, finished" in capsys.readouterr().err


def test_a_curve_is_the_same_file_for_the_same_rows() -> None:
    rows = [CurveRow(1, 1e-3, 2.0 / 3, None, 50.0, 1.5), CurveRow(2, 1e-4, 0.5, 25.0, None, 2.0)]
    assert learning_curve.curve_csv(rows) == (
        "epoch,lr,train_loss,holdout_top1,holdout_top1_ema,seconds\n1,0.001,0.666667,,50,1.5\n2,0.0001,0.5,25,,2\n"
    )


@pytest.mark.parametrize(
    ("accuracies", "epochs", "labels"),
    [
        ((), 20, [["training loss"], ["learning rate"]]),
        (("holdout_top1",), 1, [["training loss"], ["learning rate"], ["weights"]]),
        (
            ("holdout_top1", "holdout_top1_ema"),
            40,
            [["training loss"], ["learning rate"], ["weights", "moving average"]],
        ),
    ],
)
def test_the_figure_of_a_curve_shows_what_was_measured(
    tmp_path: Path, accuracies: tuple[str, ...], epochs: int, labels: list[list[str]]
) -> None:
    rows = [CurveRow(e, 1e-3 / e, 1 / e, None, None, 1.0) for e in range(1, epochs + 1)]
    made: list[dict[str, Any]] = [{name: 90.0 - row.train_loss - len(name) for name in accuracies} for row in rows]
    rows = [replace(row, **values) for row, values in zip(rows, made, strict=True)]
    (tmp_path / CURVE).write_text(learning_curve.curve_csv(rows))
    table = pd.read_csv(tmp_path / CURVE)
    figure = curve.draw(table)
    for axes, named in zip(figure.axes, labels, strict=True):
        legend = axes.get_legend()
        assert axes.get_xlabel() == "epoch"
        assert ([text.get_text() for text in legend.get_texts()] if legend else [axes.get_ylabel()]) == named
    for axes, columns in zip(figure.axes, (["train_loss"], ["lr"], accuracies), strict=False):
        for line, column in zip(axes.get_lines(), columns, strict=True):
            assert line.get_xydata().tolist() == table[["epoch", column]].to_numpy().tolist()  # type: ignore[union-attr]
            assert (line.get_marker() == ".") == (epochs < 40)  # or a single epoch would not be seen
    figure.draw_without_rendering()
    inside = figure.bbox.padded(1)
    for axes in figure.axes:
        for text in (axes.yaxis.label, axes.xaxis.label):
            box = text.get_window_extent()
            assert inside.contains(box.x0, box.y0)
            assert inside.contains(box.x1, box.y1)
    if epochs == 1:  # once is enough
        assert curve.save(tmp_path / CURVE) == [tmp_path / "curve.png", tmp_path / "curve.svg"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "epoch,lr,train_loss\n1,2,3\n"])
def test_what_is_no_learning_curve_is_not_drawn(tmp_path: Path, text: str) -> None:
    (tmp_path / CURVE).write_text(text)
    with pytest.raises(InputError, match=r"no learning curve that `tmbench train` wrote"):
        curve.save(tmp_path / CURVE)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set in class folders, with a split for evaluation."""
    save_textures(tmp_path / "data" / "train", 40)
    save_textures(tmp_path / "data" / "val", 8, seed=1)
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    lines = [f'model = "{TINY_MODEL}"', "epochs = 1", "batch_size = 8", "lr = 1e-3"]
    (tmp_path / "r.toml").write_text("\n".join(lines))
    return tmp_path / "r.toml"


@pytest.fixture
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning curves are not drawn, which takes longer than training."""
    monkeypatch.setattr(curve, "save", lambda _: [])


def test_what_was_trained_is_swept(tmbench: Command, folder: Path, recipe: Path, quick_figures: None) -> None:
    usual = ("--recipe", recipe, "--dataset", folder)
    done = tmbench("train", *usual, "--out", "base")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "weights base/weights.safetensors (last epoch; card.json says how they came)",
        "figure  base/curve.png (also svg)",
    ]
    started = ("--weights", "base", "--set", "init=pretrained")
    done = tmbench("train", *usual, *started, "--method", "sit", "--keep-rate", "0.7", "--seed", "2", "--out", "sit")
    assert done.code == 0, done.err
    card = json.loads(Path("sit", CARD).read_text())
    assert (card["method"], card["budget"], card["seed"]) == ("sit", "keep_rate=0.7", 2)
    assert card["initial"]["weights"] == "weights.safetensors"
    again = tmbench("train", *usual, *started, "--method", "sit", "--keep-rate", "0.7", "--seed", "2", "--out", "sit")
    assert (again.code, again.out) == (0, done.out)
    done = tmbench(
        *("sweep", "--models", TINY_MODEL, "--weights", "base", "--weights", "sit", "--methods", "dpc_knn,sit"),
        *("--keep-rate", "0.7", "--dataset", folder, "--out", "swept"),
    )
    assert done.code == 0, done.err
    rows = read_results(Path("swept"))
    assert rows[["method", "trained", "weights", "status"]].to_numpy().tolist() == [
        ["none", "no", "base", "ok"],
        ["dpc_knn", "no", "base", "ok"],
        ["sit", "yes", "sit", "ok"],
    ]
    assert rows["n_images"].tolist() == [8, 8, 8]


def test_a_full_disk_is_one_sentence_and_what_is_there_is_kept(
    tmbench: Command, folder: Path, recipe: Path, no_curve: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ("train", "--recipe", recipe, "--dataset", folder, "--out", "out", "--set", "epochs=2")
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == f".{STATE}.tmp" and Path("out", STATE).exists():
            written(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, content)

    with monkeypatch.context() as later:
        later.setattr(Path, "write_bytes", full)
        done = tmbench(*usual)
    assert done.code == 2
    says = "tmbench: the disk is full; make room and give the same command again, finished work is kept."
    assert done.err.splitlines()[1:] == [says]  # after the first epoch's line
    assert files_of(Path("out")) == UNFINISHED
    assert tmbench(*usual).code == 0


BAD: list[tuple[str, list[str], list[str]]] = [
    ("misspelt key", ["--set", "epohcs=3"], ["unknown key 'epohcs'", "did you mean 'epochs'"]),
    ("misspelt recipe", ["--recipe", "dmeo"], ["no recipe 'dmeo'", "did you mean 'demo'"]),
    ("test set", ["--dataset", "demo"], ["'demo' is a test set"]),
    ("no split", ["--dataset", "data/val"], ["not divided into train/ and val/"]),
    ("no such folder", ["--dataset", "nowhere"], ["no folder 'nowhere'"]),
    ("method without budget", ["--method", "sit"], ["give --method and one of --budget"]),
    ("two budgets", ["--method", "tome", "--r", "3", "--budget", "0.7"], ["at one budget"]),
    ("budget without method", ["--budget", "0.7"], ["none of them for the unreduced model"]),
    ("unknown method", ["--method", "sti", "--budget", "0.7"], ["'sti'", "did you mean 'sit'"]),
    ("unreachable", ["--method", "tome", "--budget", "0.1"], ["the nearest that tome can do"]),
    ("unknown model", ["--model", "tiny_82"], ["'tiny_82'", "did you mean"]),
    ("missing weights", ["--weights", "no.safetensors", "--set", "init=pretrained"], ["no.safetensors"]),
    ("unused weights", ["--weights", "no.safetensors"], ["trains from scratch"]),
    ("unfinished weights", ["--weights", "data", "--set", "init=pretrained"], ["holds no card.json"]),
    ("negative seed", ["--seed", "-1"], ["'seed'", "greater than or equal to 0"]),
    ("negative workers", ["--workers", "-1"], ["--workers -1 is negative"]),
    ("unknown device", ["--device", "gpu"], ["gpu"]),
    ("large batch", ["--set", "batch_size=64"], ["40 training images", "lower holdout or batch_size"]),
    ("foreign folder", ["--out", "data"], ["holds files that no train made"]),
]


@pytest.mark.parametrize(("flags", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_sentence_and_code_2(
    tmbench: Command, folder: Path, recipe: Path, flags: list[str], words: list[str]
) -> None:
    usual = {"--recipe": str(recipe), "--dataset": str(folder), "--out": "out"}
    repeated = [word for pair in usual.items() if pair[0] not in flags for word in pair]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert_refused(tmbench("train", *repeated, *flags), *words)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not Path("out").exists()


def test_another_task_in_the_same_folder_is_one_sentence_and_code_2(
    tmbench: Command, folder: Path, recipe: Path, no_curve: None
) -> None:
    usual = ("train", "--recipe", recipe, "--dataset", folder, "--out", "out")
    assert tmbench(*usual).code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    done = tmbench(*usual, "--method", "tome", "--r", "2")
    assert_refused(done, "holds another experiment", "was none, now tome", "--fresh")
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert tmbench(*usual, "--method", "tome", "--r", "2", "--fresh").code == 0


def test_an_interruption_says_how_to_go_on(
    tmbench: Command, folder: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Trainer, "update", interrupt)
    done = tmbench("train", "--recipe", recipe, "--dataset", folder, "--out", "out")
    assert done.code == 130
    assert done.err == "tmbench: interrupted; the same command goes on after the last finished epoch\n"
