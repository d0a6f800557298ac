"""The training track: a recipe, an image set and a method at a budget in; a checkpoint and a learning curve out.

An epoch draws its order and its augmentation from (seed, epoch, process) alone, and the state is saved whole after
every epoch, so that training that was killed at any moment goes on as if it had not been. Nothing is selected on any
test set: the weights kept are the last epoch's, or the best ones on images held out of the training set.
"""

from __future__ import annotations

import io
import math
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokenmerge_bench.budgets import Budget, Solution, Solver, Unreachable
from tokenmerge_bench.captured_step import CapturedStep, can_be_captured
from tokenmerge_bench.checkpoints import (
    CARD,
    WEIGHTS,
    Card,
    method_fields,
    open_checkpoint,
    step_fields,
    write_checkpoint,
)
from tokenmerge_bench.data import ImageSet
from tokenmerge_bench.distributed import Team
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.learning_curve import CurveRow, Quiet, Reporter, curve_csv, default_reporter
from tokenmerge_bench.models import build_model, data_config, load_model
from tokenmerge_bench.options import MethodSpec
from tokenmerge_bench.provenance import hardware_name, version
from tokenmerge_bench.recipe import Recipe
from tokenmerge_bench.store import Folder, write_bytes, write_text
from tokenmerge_bench.student import Student
from tokenmerge_bench.training_images import Micro, Source, divide, micro_batch, mixed_seed, open_source
from tokenmerge_bench.trie import is_out_of_memory

__all__ = ["Task", "train"]

CURVE, STATE = "curve.csv", "state.pt"
_LOOK_EVERY = 100
"""Updates after which the losses are looked at, which makes the host wait for the device."""


@dataclass(frozen=True)
class Task:
    """What is to be trained: a recipe, and a method at a budget (None: the unreduced model).

    `weights` are those to begin with, of a recipe whose `init` is `pretrained`: a file, or a folder of a checkpoint of
    the unreduced model. None takes what the package or the hub has.
    """

    recipe: Recipe
    method: MethodSpec | None = None
    budget: Budget | None = None
    weights: Path | None = None

    def __post_init__(self) -> None:
        if (self.method is None) != (self.budget is None):
            raise InputError("a method is trained at a budget: give both, --method and --budget, or neither.")
        if not self.recipe.model:
            raise InputError("the recipe names no model: give one with --model.")
        if self.recipe.distills and self.method is None:
            raise InputError("distillation teaches a reduced model: give --method, or set distill_* to 0.")
        if self.weights is not None and self.recipe.init == "scratch":
            raise InputError(
                f"--weights {self.weights} would not be used, as the recipe trains from scratch: leave it out, or "
                "--set init=pretrained."
            )
        if self.recipe.distills and self.recipe.init == "scratch":
            raise InputError(
                "distillation learns from the weights that training begins with, and the recipe trains from scratch: "
                "--set init=pretrained, or set distill_* to 0."
            )
        _check_names(self.recipe)


@dataclass(frozen=True)
class _Start:
    """A task at its beginning: the model with its first weights, and the schedule."""

    backbone: nn.Module
    initial: dict[str, str] | None
    solution: Solution | None
    gflops: float


class _TrainFolder(Folder):
    """The folder of one training run; see `Folder`."""

    maker = "train"
    format = 1
    files = (STATE, f".{STATE}.tmp", CURVE, WEIGHTS, CARD)
    products = ("curve.png", "curve.svg")


def train(
    task: Task,
    images: ImageSet,
    out: Path,
    team: Team,
    *,
    workers: int = 0,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Card:
    """Trains a task on `images`, or goes on with it, in the folder `out`; all processes of the team call it.

    Writes `curve.csv` as it goes, and at the end the checkpoint (`checkpoints.py`), whose card it returns; of a
    folder in which that was done before, it returns the card. Seeds Python's, numpy's and torch's global generators;
    on the CPU the same task, images and versions give the same weights, interrupted or not.

    Args:
        task: what to train.
        images: what to train it on.
        out: a new folder, or one of an earlier, interrupted run of the same task.
        team: the processes and this one's device.
        workers: processes that decode images that are not held in memory.
        fresh: start over, whatever the folder holds.
        reporter: told how it goes, by the leading process.

    Raises:
        InputError: for a model, data, budget or folder that does not suit; when the loss is no longer finite; and when
            a batch does not fit into memory.
    """
    reporter = (reporter or default_reporter()) if team.leads else Quiet()
    recipe = task.recipe
    _seed_all(recipe.seed)
    split = divide(images, recipe)
    micro_batch(recipe, team)  # what is refused is refused before --fresh clears the folder
    start = _start(task, images, team)
    with _opened(task, start, images, out, team, fresh) as held:
        done = team.first(lambda: _finished(out))
        if done is not None:
            reporter.note(f"'{out}' holds this training, finished; --fresh would start it over")
            return done
        source = open_source(images, split, recipe, data_config(start.backbone), team, workers)
        trainer = _Trainer(task, start, images.classes, team, source.updates)
        rows, seconds, unreadable = trainer.resume(out / STATE) if held else ([], 0.0, [])
        source.unreadable.update(unreadable)
        began = time.perf_counter() - seconds
        reporter.start(recipe.epochs, source.updates, len(rows))
        try:
            for row in _epochs(trainer, source, out, len(rows), reporter):
                rows.append(row)
                source.unreadable = team.union(source.unreadable)
                if team.leads:
                    trainer.save(out / STATE, rows, time.perf_counter() - began, sorted(source.unreadable))
                    write_text(out / CURVE, curve_csv(rows))
                reporter.epoch(row)
        finally:
            reporter.close()
        if source.unreadable:
            names = sorted(source.unreadable)
            reporter.note(f"{len(names)} training images could not be decoded and were left out, such as '{names[0]}'")
        return team.first(lambda: _finish(task, start, images, trainer, source, rows, time.perf_counter() - began, out))


def _check_names(recipe: Recipe) -> None:
    """Raises InputError for names of timm's that it does not know, or that cannot be used here."""
    optimizer = _optimizer(recipe, [nn.Parameter(torch.zeros(2, 2))])
    if getattr(optimizer, "is_second_order", False):
        raise InputError(f"optimizer '{recipe.opt}' needs second derivatives, which are not computed; take another opt")
    try:
        create_transform(8, is_training=True, auto_augment=recipe.auto_augment)
    except Exception as error:  # of a policy that it cannot read, timm asserts one thing or another
        raise InputError(
            f"timm has no auto_augment '{recipe.auto_augment}': write it as rand-m9-mstd0.5-inc1, augmix-m3, original "
            "or none"
        ) from error


def _seed_all(*parts: int) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(mixed_seed(*parts))


def _start(task: Task, images: ImageSet, team: Team) -> _Start:
    """The model before training. Every process builds the same one."""
    recipe, kwargs = task.recipe, {**task.recipe.model_kwargs, "drop_path_rate": task.recipe.drop_path}
    initial = None
    if recipe.init == "scratch":
        backbone = build_model(recipe.model, **kwargs, num_classes=images.classes)
    else:
        loaded = load_model(recipe.model, _weights_file(task), device=torch.device("cpu"), model_kwargs=kwargs)
        backbone, initial = loaded.model, {"weights": loaded.weights, "fingerprint": loaded.fingerprint}
        if backbone.num_classes != images.classes:
            if recipe.distill_logits:
                raise InputError(
                    f"the weights to begin with know {backbone.num_classes} classes and '{images.name}' has "
                    f"{images.classes}, so that their logits teach nothing: --set distill_logits=0, or fine-tune the "
                    "unreduced model first."
                )
            backbone.reset_classifier(images.classes)  # type: ignore[operator]
    solver = Solver(backbone)
    if task.method is None or task.budget is None:
        return _Start(backbone.to(team.device), initial, None, solver.unreduced.total / 1e9)
    try:
        solution = solver.solve(task.method, task.budget)
    except Unreachable as error:
        raise InputError(f"{error}; ask for another --budget.") from error
    return _Start(backbone.to(team.device), initial, solution, solution.macs.total / 1e9)


def _weights_file(task: Task) -> Path | None:
    """The weights to begin with: a plain file, or those of a checkpoint of the unreduced model."""
    if task.weights is None:
        return None
    checkpoint = open_checkpoint(task.weights)
    if checkpoint is None:
        return task.weights
    if checkpoint.method is not None:
        raise InputError(
            f"'{task.weights}' was trained {checkpoint.described}; training begins with weights of the unreduced model."
        )
    checkpoint.read()  # refuses weights that are not those of the card
    return checkpoint.file


@contextmanager
def _opened(task: Task, start: _Start, images: ImageSet, out: Path, team: Team, fresh: bool) -> Iterator[bool]:
    """Holds the folder, in the leading process; whether it has the state of an earlier run."""
    identity = _identity(task, start, images, team)
    described = "unreduced" if task.method is None else f"{task.method.label} {start.solution and start.solution.knob}"
    opened: list[Folder] = []

    def claim() -> bool:
        # A folder in which no epoch was finished, as with a mistake in the recipe, holds nothing that would be lost.
        is_empty = not any((out / name).exists() for name in (STATE, WEIGHTS, CARD))
        opened.append(_TrainFolder(out, identity, {"training": f"{task.recipe.model} {described}"}, fresh or is_empty))
        return (out / STATE).is_file()

    try:
        yield team.first(claim)
    finally:
        for folder in opened:
            folder.close()


def _identity(task: Task, start: _Start, images: ImageSet, team: Team) -> dict[str, Any]:
    """What must be the same for an interrupted run to be gone on with."""
    recipe = task.recipe.model_dump(mode="json")
    del recipe["micro_batch_size"]  # which may have to be lowered to go on
    method = {} if task.method is None else {f"code of {task.method.name}": task.method.code}
    return {
        **{f"recipe's {key}": value for key, value in recipe.items()},
        **method,
        **{f"method's {key}": value for key, value in method_fields(task.method).items()},
        "schedule": "" if start.solution is None else start.solution.knob,
        "initial weights": start.initial and start.initial["fingerprint"],
        "data": f"{images.name} {images.fingerprint}",
        "version": version(),
        "device": team.device.type,
        "processes": team.size,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _finished(out: Path) -> Card | None:
    """The card of a run that came to its end."""
    if not (out / CARD).is_file():
        return None
    checkpoint = open_checkpoint(out)
    assert checkpoint is not None
    checkpoint.read()
    (out / STATE).unlink(missing_ok=True)  # a kill may have come between the card and this
    return checkpoint.card


class _Trainer:
    """The network, its moving average, the optimiser and its schedule; steps, measures, saves and resumes."""

    def __init__(self, task: Task, start: _Start, classes: int, team: Team, updates_per_epoch: int) -> None:
        recipe = self.recipe = task.recipe
        self.team, self.updates, self.per_epoch = team, 0, updates_per_epoch
        self.student = Student(start.backbone, task.method, start.solution, recipe, recipe.seed).to(team.device)
        self.student.train()
        self.ema = ModelEmaV3(self.student, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        # Parameters and buffers are looked up once, since at every update that would take longer than the update.
        self._averages = list(self.ema.module.state_dict().values()) if self.ema is not None else []
        self._values = list(self.student.state_dict().values())
        self._parameters = list(self.student.parameters())
        self._wrapped = team.wrapped(self.student)
        self._forward: Callable[..., tuple[Tensor, Tensor | None]] = self._compiled()
        groups = _groups(recipe, self.student)
        self.optimizer = _optimizer(recipe, groups, **_fast_options(recipe, team.device))
        self._scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        self._scheduler.step_update(0)  # or the first update would not know of distill_lr_scale
        self._mix = _mixup(recipe, classes, team.device)
        self._best: dict[str, Any] | None = None

    def _compiled(self) -> Callable[..., Any]:
        """The forward pass, on CUDA compiled if the recipe says so: whole, or with reducers the halves of blocks."""
        if self.recipe.compile == "none" or self.team.device.type != "cuda" or self.recipe.distills:
            return self._wrapped
        if len(self.student.reducers):
            self.student.compile_halves()
            return self._wrapped
        # CUDA graphs write the gradients of a part where those of the part before lie, and the sum is lost.
        in_parts = micro_batch(self.recipe, self.team) * self.team.size < self.recipe.batch_size
        mode = "default" if in_parts else self.recipe.compile
        compiled: Callable[..., Any] = torch.compile(self._wrapped, mode=mode)
        return compiled

    @cached_property
    def _step(self) -> Callable[[], Any]:
        """The optimiser's step; made by the first update, since `resume` before it replaces the optimiser's state."""
        return CapturedStep(self.optimizer) if can_be_captured(self.optimizer) else self.optimizer.step

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self, micros: Sequence[Micro]) -> Tensor:
        """One update on the images of a batch; gives this process's mean loss, still on the device."""
        losses = []
        for number, micro in enumerate(micros, start=1):
            with self._apart(number < len(micros)):
                loss = self._loss(micro)
                (loss / len(micros)).backward()
            losses.append(loss.detach())
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_grad)
        self._step()
        # Before the next forward pass, whose CUDA graph reuses the gradients' memory.
        self.optimizer.zero_grad()
        self.updates += 1
        if self.ema is not None:
            _move(self._averages, self._values, 1 - self.ema.get_decay(self.updates))
        self._scheduler.step_update(self.updates)
        return torch.stack(losses).mean()

    def _apart(self, more_follow: bool) -> AbstractContextManager[Any]:
        """Gradients are averaged over the team with the last part of a batch alone."""
        if more_follow and isinstance(self._wrapped, DistributedDataParallel):
            return self._wrapped.no_sync()
        return nullcontext()

    def _loss(self, micro: Micro) -> Tensor:
        pixels, targets, smoothing = micro.pixels, micro.labels, self.recipe.label_smoothing
        if self._mix is not None:
            # Mixup writes into its input and smooths the labels itself.
            (pixels, targets), smoothing = self._mix(pixels, targets), 0.0
        with self._autocast():
            logits, extra = self._forward(pixels, micro.ids)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        return loss if extra is None else loss + extra

    def top1(self, student: nn.Module, micros: Iterator[Micro]) -> float | None:
        """Top-1 accuracy of a student in percent over the team's images; None if there are none."""
        student.eval()
        counts = torch.zeros(2, dtype=torch.int64, device=self.team.device)
        with torch.no_grad(), self._autocast():
            for micro in micros:
                right = student(micro.pixels, micro.ids)[0].argmax(1) == micro.labels
                counts += torch.stack([right.sum(), right.new_full((), len(right), dtype=torch.int64)])
        student.train()
        right, seen = self.team.total(counts).tolist()
        return 100 * right / seen if seen else None

    def kept(self) -> Student:
        """The student whose weights are kept, at the end of the last epoch."""
        return self.student if self.ema is None else self.ema.module

    def weigh(self, row: CurveRow) -> None:
        """Keeps the weights of an epoch if the recipe keeps the best and none was better."""
        top1 = row.holdout_top1 if self.ema is None else row.holdout_top1_ema
        if self.recipe.keep == "best" and (self._best is None or (top1 or 0.0) > self._best["top1"]):
            self._best = {"epoch": row.epoch, "top1": top1 or 0.0, **_weights(self.kept())}

    def chosen(self) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
        """State dicts of the model and the reducers that are kept, and which they are, in words."""
        kind = "" if self.ema is None else "moving average, "
        if self._best is None:
            weights, which = _weights(self.kept()), f"{kind}last epoch"
        else:
            weights = self._best
            which = f"{kind}epoch {self._best['epoch']}, the best of {self.recipe.epochs} on held-out training images"
        return weights["model"], weights["reducers"], which

    def is_finite(self) -> bool:
        """Whether all parameters are numbers."""
        return bool(torch.stack([parameter.detach().isfinite().all() for parameter in self._parameters]).all())

    def save(self, path: Path, rows: Sequence[CurveRow], seconds: float, unreadable: Sequence[str]) -> None:
        """Writes everything that the rest of the training depends on, whole or not at all."""
        state = {
            "model": self.student.backbone.state_dict(),  # by this name, for who wants to begin with it elsewhere
            "student": {k: v for k, v in self.student.state_dict().items() if not k.startswith("backbone.")},
            "average": self.ema.module.state_dict() if self.ema is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "best": self._best,
            "curve": [asdict(row) for row in rows],
            "seconds": seconds,
            "unreadable": list(unreadable),
        }
        content = io.BytesIO()  # of a full disk, torch.save says something about its own insides
        torch.save(state, content)
        write_bytes(path, content.getvalue())

    def resume(self, path: Path) -> tuple[list[CurveRow], float, list[str]]:
        """Takes up what `save` wrote; the learning curve so far, the seconds that it took, and unreadable images."""
        try:
            state = torch.load(path, map_location=self.team.device, weights_only=True)
        except Exception as error:  # a damaged file can fail in any way
            raise InputError(f"'{path}' is damaged ({type(error).__name__}); start over with --fresh.") from error
        backbone = {f"backbone.{key}": value for key, value in state["model"].items()}
        self.student.load_state_dict({**backbone, **state["student"]})
        if self.ema is not None:
            self.ema.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self._best = state["updates"], state["best"]
        self._scheduler.step_update(self.updates)
        return [CurveRow(**row) for row in state["curve"]], state["seconds"], state["unreadable"]

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.recipe.amp == "bfloat16" and self.team.device.type == "cuda"
        return torch.autocast(self.team.device.type, torch.bfloat16, enabled=enabled)


def _weights(student: Student) -> dict[str, Any]:
    """Copies of what a checkpoint holds, on the CPU."""
    parts = {"model": student.backbone, "reducers": student.reducers}
    return {
        name: {key: value.detach().to("cpu", copy=True) for key, value in part.state_dict().items()}
        for name, part in parts.items()
    }


@torch.no_grad()
def _move(averages: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
    """Move the averages towards the values by `weight` in 0..1; what is not floating point is copied."""
    moved = [average.is_floating_point() for average in averages]
    torch._foreach_lerp_(list(compress(averages, moved)), list(compress(values, moved)), weight)
    for average, value, done in zip(averages, values, moved, strict=True):
        if not done:
            average.copy_(value)


def _groups(recipe: Recipe, student: Student) -> list[dict[str, Any]]:
    """The parameters: with weight decay, without it, and at another learning rate what only training needs."""
    inference = nn.ModuleDict({"backbone": student.backbone, "reducers": student.reducers})
    groups: list[dict[str, Any]] = param_groups_weight_decay(
        inference,
        recipe.weight_decay,
        no_weight_decay_list=tuple(student.no_weight_decay()),
        fallback_no_weight_decay=True,  # positions and CLS are no matrices, whatever their shapes tell Muon
    )
    if student.recalibration is not None:
        alone = param_groups_weight_decay(student.recalibration, recipe.weight_decay)
        groups += [{**group, "lr_scale": recipe.distill_lr_scale} for group in alone]
    return groups


def _optimizer(recipe: Recipe, parameters: Sequence[Any], **options: Any) -> torch.optim.Optimizer:
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(parameters, recipe.opt, recipe.peak_lr, **options)
    except ValueError as error:
        known = nearest(recipe.opt, [str(name) for name in list_optimizers()])
        raise InputError(f"timm has no optimizer '{recipe.opt}'{known}; correct the recipe's opt") from error
    except (AssertionError, ImportError) as error:
        raise InputError(f"optimizer '{recipe.opt}' cannot be used here ({error}); take another opt") from error
    return optimizer


def _fast_options(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What makes a step cheap to ask a GPU for: AdamW's one kernel, or else a CUDA graph where the optimiser can."""
    if device.type != "cuda":
        return {}
    if recipe.opt == "adamw":
        return {"fused": True}
    if recipe.compile != "reduce-overhead":
        return {}
    defaults = _optimizer(recipe, [nn.Parameter(torch.zeros(2, 2))]).defaults
    return {"capturable": True} if "capturable" in defaults else {}


def _mixup(recipe: Recipe, classes: int, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    if not recipe.mixes:
        return None
    mix: Callable[..., tuple[Tensor, Tensor]] = Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )
    return mix


def _epochs(trainer: _Trainer, source: Source, out: Path, done: int, reporter: Reporter) -> Iterator[CurveRow]:
    recipe = trainer.recipe
    for epoch in range(done + 1, recipe.epochs + 1):
        began, lr = time.perf_counter(), trainer.lr
        _seed_all(recipe.seed, epoch, trainer.team.rank)
        try:
            loss = _epoch(trainer, source, epoch, out, reporter)
            plain = trainer.top1(trainer.student, source.holdout())
            averaged = trainer.top1(trainer.ema.module, source.holdout()) if trainer.ema else None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(_too_large(source, trainer.team.device, epoch)) from error
        row = CurveRow(epoch, lr, loss, plain, averaged, time.perf_counter() - began)
        trainer.weigh(row)
        yield row


def _too_large(source: Source, device: torch.device, epoch: int) -> str:
    if source.micro <= (2 if source.recipe.mixes else 1):
        return f"not even a batch of {source.micro} fits into the memory of {device}: take a smaller model"
    return (
        f"{source.micro} images at a time do not fit into the memory of {device}: give the same command with --set "
        f"micro_batch_size={source.micro // 2}, it goes on after epoch {epoch - 1}"
    )


def _epoch(trainer: _Trainer, source: Source, epoch: int, out: Path, reporter: Reporter) -> float:
    """The updates of an epoch; their mean loss over the team."""
    micros = source.micros(epoch)
    parts = trainer.recipe.batch_size // trainer.team.size // source.micro
    losses: list[Tensor] = []
    rates: list[float] = []
    for _ in range(source.updates):
        rates.append(trainer.lr)
        losses.append(trainer.update(list(islice(micros, parts))))
        reporter.advance()
        if len(losses) % _LOOK_EVERY == 0:
            _look(losses[-_LOOK_EVERY:], rates[-_LOOK_EVERY:], trainer, epoch, out)
    late = len(losses) % _LOOK_EVERY
    _look(losses[len(losses) - late :], rates[len(rates) - late :], trainer, epoch, out)
    if not trainer.is_finite():  # the last update may have done it, which no loss shows
        raise _diverged("weights are no numbers", trainer.updates, rates[-1], epoch, out)
    return (trainer.team.total(torch.stack(losses).mean()) / trainer.team.size).item()


def _look(losses: Sequence[Tensor], rates: Sequence[float], trainer: _Trainer, epoch: int, out: Path) -> None:
    """Stops where a loss is not finite. One transfer: reading every loss would make the host wait for every update."""
    if not losses:
        return
    found = (trainer.team.total(torch.stack(list(losses))) / trainer.team.size).tolist()
    for number, (loss, rate) in enumerate(zip(found, rates, strict=True)):
        if not math.isfinite(loss):
            update = trainer.updates - len(found) + number + 1
            raise _diverged(f"the loss is {loss}", update, rate, epoch, out)


def _diverged(what: str, update: int, rate: float, epoch: int, out: Path) -> InputError:
    if epoch == 1:
        remedy = "no epoch is finished; lower lr or set clip_grad"
    else:
        remedy = (
            f"'{out / STATE}' holds the weights after epoch {epoch - 1}; lower lr or set clip_grad, in another folder"
        )
    return InputError(
        f"training diverged: {what} at update {update} (epoch {epoch}), at a learning rate of {rate:.3g}; {remedy}"
    )


def _finish(
    task: Task,
    start: _Start,
    images: ImageSet,
    trainer: _Trainer,
    source: Source,
    rows: Sequence[CurveRow],
    seconds: float,
    out: Path,
) -> Card:
    """Writes the checkpoint, and lets go of the state."""
    model, reducers, which = trainer.chosen()
    device, recipe = trainer.team.device, task.recipe
    best = trainer.recipe.keep == "best"
    shown = max(rows, key=lambda row: _kept_top1(row, recipe) or 0.0) if best else rows[-1]
    described = {
        "model": recipe.model,
        "model_kwargs": recipe.model_kwargs,
        "classes": images.classes,
        **method_fields(task.method),
        **_budget_fields(task, start),
        "gflops": start.gflops,
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "initial": start.initial,
        "data": {"name": images.name, "images": len(images), "fingerprint": images.fingerprint},
        "weights": which,
        "metrics": {
            "train_loss": rows[-1].train_loss,
            "holdout_top1": _kept_top1(shown, recipe),
            "images_trained_on": len(source.split.train),
            "unreadable": sorted(source.unreadable),
        },
        "hardware": hardware_name(device),
        "precision": recipe.amp if device.type == "cuda" and recipe.amp != "none" else "float32",
        "versions": {
            "tokenmerge_bench": version(),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "seconds": round(seconds, 1),
        "processes": trainer.team.size,
        "command": _command(sys.argv),
    }
    write_text(out / CURVE, curve_csv(rows))  # a kill may have come between the last state and its line of the curve
    card = write_checkpoint(out, model, reducers, described)
    (out / STATE).unlink(missing_ok=True)
    return card


def _kept_top1(row: CurveRow, recipe: Recipe) -> float | None:
    return row.holdout_top1_ema if recipe.ema_decay else row.holdout_top1


def _budget_fields(task: Task, start: _Start) -> Mapping[str, Any]:
    if task.budget is None or start.solution is None:
        return {}
    steps = start.solution.schedule.steps
    return {"budget": task.budget.recorded, "knob": start.solution.knob, "steps": step_fields(steps)}


def _command(argv: Sequence[str]) -> str:
    """The command line, absolute paths cut to their last part: a card is for publishing."""
    parts = [word.rpartition("=") for word in argv[1:]]
    words = [f"{key}{equals}{Path(value).name if os.path.isabs(value) else value}" for key, equals, value in parts]
    return shlex.join(["tmbench", *words])
