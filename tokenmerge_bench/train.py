"""The training track: a TOML recipe and an image set in; weights, a learning curve and a model card out.

The weights kept are those of the last epoch (their moving average, if the recipe asks for one); nothing is
selected on any test set. Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from itertools import compress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pydantic
import rich.console
import rich.progress
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tokenmerge_bench.augment import Augment, normalize
from tokenmerge_bench.data import (
    ArrayImages,
    ImageSet,
    Indices,
    eval_transform,
    fashion_mnist_train,
    iter_batches,
    open_dataset,
    subset,
    to_mode,
)
from tokenmerge_bench.datasets import split_folders
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.models import build_model, data_config
from tokenmerge_bench.splits import TRAINING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CurveRow", "Recipe", "Reporter", "default_reporter", "open_training_set", "read_recipe", "train"]

_RECIPES = Path(__file__).parent / "recipes"
_OUTPUTS = ("curve.csv", "weights.safetensors", "card.json")
Stream = Iterator[tuple[Tensor, Tensor]]  # images (B, C, H, W) and labels (B,) int64, on the device


class Recipe(pydantic.BaseModel):
    """How to train one model; every key that is not required is off unless given.

    Times are in epochs, probabilities per image unless said otherwise.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str  # timm's name; num_classes comes from the data
    model_kwargs: dict[str, Any] = {}
    seed: int = 0
    epochs: int = pydantic.Field(ge=1)
    batch_size: int = pydantic.Field(ge=2)
    holdout: int = pydantic.Field(default=0, ge=0)  # training images kept aside for the curve, stratified

    opt: str = "adamw"
    lr: float = pydantic.Field(gt=0)
    weight_decay: float = pydantic.Field(default=0.0, ge=0)  # not on biases and norms, as timm does
    clip_grad: float = pydantic.Field(default=0.0, ge=0)  # largest gradient norm; 0: no clipping
    warmup_epochs: int = pydantic.Field(default=0, ge=0)
    warmup_lr: float = pydantic.Field(default=1e-6, ge=0)
    min_lr: float = pydantic.Field(default=0.0, ge=0)

    pad: int = pydantic.Field(default=0, ge=0)  # zero-pad by so many pixels, crop back at random
    hflip: float = pydantic.Field(default=0.0, ge=0, le=1)
    crop_scale: tuple[float, float] | None = None  # area range of a random resized crop
    auto_augment: str | None = None  # timm's policy string, such as rand-m9-mstd0.5
    erasing: float = pydantic.Field(default=0.0, ge=0, le=1)
    mixup: float = pydantic.Field(default=0.0, ge=0)  # alpha of the Beta distribution, as is cutmix
    cutmix: float = pydantic.Field(default=0.0, ge=0)
    mixup_prob: float = pydantic.Field(default=1.0, ge=0, le=1)  # per batch
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    drop_path: float = pydantic.Field(default=0.0, ge=0, lt=1)
    ema_decay: float = pydantic.Field(default=0.0, ge=0, lt=1)  # per update, with timm's warmup; 0: no average

    amp: Literal["none", "bfloat16"] = "none"  # autocast on CUDA; the CPU always computes in float32
    compile: Literal["none", "default", "reduce-overhead"] = "none"  # torch.compile's mode on CUDA; never on the CPU

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be less than epochs ({self.epochs})")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size ({self.batch_size}) must be even for mixup or cutmix")
        taken = {"num_classes", "drop_path_rate"} & set(self.model_kwargs)
        if taken:
            raise ValueError(f"model_kwargs must not set {min(taken)}, which comes from the data or drop_path")
        return self


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a TOML file, or by the name of one that is shipped (`demo`).

    `overrides` are `key=value` texts, the value as TOML writes it (a bare word is text),
    `model_kwargs.embed_dim=96` for a nested key. Raises InputError for a missing file, broken TOML, an
    unknown key (naming the nearest) or a bad value.
    """
    path = Path(source)
    if not path.is_file() and path.name == str(source) and (_RECIPES / f"{source}.toml").is_file():
        path = _RECIPES / f"{source}.toml"
    if not path.is_file():
        shipped = sorted(p.stem for p in _RECIPES.glob("*.toml"))
        raise InputError(f"no recipe '{source}': give a TOML file or a shipped recipe ({', '.join(shipped)})")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe '{source}' is no valid TOML: {error}") from error
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"recipe '{source}': {_first_problem(error)}") from error


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"'--set {override}' must read key=value")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"'--set {override}': '{parent}' is a plain value, with no keys below it")
    values[last] = value


def _first_problem(error: pydantic.ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(key, list(Recipe.model_fields))}"
    if problem["type"] == "missing":
        return f"the key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{key}': {message}, got {problem['input']!r}" if key else message


def open_training_set(spec: str) -> ImageSet:
    """The training images in a folder of the Fashion-MNIST files or of ImageNet class folders.

    Of a folder that is divided into splits it is the training split. Raises InputError for `demo`, which is a test set,
    for splits without a training one, and as `fashion_mnist_train` and `open_dataset` do.
    """
    if spec == "demo":
        raise InputError("'demo' is a test set and must not be trained on: give a folder of training images")
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise InputError(f"no folder '{spec}' to train on: give one of Fashion-MNIST files or of class folders")
    looks_like_idx = any(root.glob("*-ubyte*")) or (root / "FashionMNIST").is_dir()
    if looks_like_idx:
        return fashion_mnist_train(root)
    splits = split_folders(root)
    if splits and not set(TRAINING).intersection(splits):
        raise InputError(f"'{spec}' holds {', '.join(splits)} but no training images: put them in a folder train/")
    return open_dataset(spec, split="train" if splits else None)


@dataclass(frozen=True)
class CurveRow:
    """One line of curve.csv: accuracies in percent (None if not measured), seconds of wall time."""

    epoch: int
    lr: float
    train_loss: float
    holdout_top1: float | None
    holdout_top1_ema: float | None
    seconds: float


@runtime_checkable
class Reporter(Protocol):
    """Told how the training goes."""

    def start(self, epochs: int) -> None:
        """Training of so many epochs begins."""

    def epoch(self, row: CurveRow) -> None:
        """An epoch has ended."""

    def close(self) -> None:
        """Training has ended, or failed."""


class _Bar:
    """A progress bar with the time left, on standard error."""

    def start(self, epochs: int) -> None:
        columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn())
        times = (rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn())
        self._bar = rich.progress.Progress(*columns, *times, console=rich.console.Console(stderr=True))
        self._task = self._bar.add_task("training", total=epochs)
        self._bar.start()

    def epoch(self, row: CurveRow) -> None:
        self._bar.update(self._task, advance=1, description=_describe(row))

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """About twenty lines on standard error, for logs."""

    def start(self, epochs: int) -> None:
        self._epochs, self._every, self._began = epochs, max(1, epochs // 20), time.perf_counter()

    def epoch(self, row: CurveRow) -> None:
        if row.epoch % self._every == 0 or row.epoch in (1, self._epochs):
            left = (time.perf_counter() - self._began) / row.epoch * (self._epochs - row.epoch)
            sys.stderr.write(f"epoch {row.epoch}/{self._epochs}, {left:.0f} s left, {_describe(row)}\n")

    def close(self) -> None:
        pass


def default_reporter() -> Reporter:
    """A progress bar where standard error is a terminal, plain lines elsewhere."""
    return _Bar() if sys.stderr.isatty() else _Lines()


def _describe(row: CurveRow) -> str:
    found = {"top-1": row.holdout_top1, "averaged": row.holdout_top1_ema}
    shown = "".join(f", {name} {value:.2f} %" for name, value in found.items() if value is not None)
    return f"loss {row.train_loss:.4f}{shown}"


@runtime_checkable
class Source(Protocol):
    """Where the training loop takes its images from."""

    def train_batches(self, epoch: int, augment: Augment) -> Stream:
        """Whole batches of augmented training images, shuffled by seed and `epoch`; a rest is dropped."""

    def holdout_batches(self) -> Stream:
        """The held-out images as the model takes them (float32, normalised), with their labels."""


class _InMemory:
    """All images as one uint8 tensor on the device: no decoding, no worker processes."""

    def __init__(self, images: ArrayImages, split: _Split, recipe: Recipe, config: Any, device: torch.device) -> None:
        pixels = torch.from_numpy(images.pixels)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        self._pixels, self._labels = pixels.to(device), torch.from_numpy(images.labels).to(device)
        self._train = torch.from_numpy(split.train).to(device)
        self._holdout = torch.from_numpy(split.holdout).to(device)
        self._recipe, self._config = recipe, config

    def train_batches(self, epoch: int, augment: Augment) -> Stream:
        shuffle = torch.Generator().manual_seed(_mixed_seed(self._recipe.seed, epoch))
        order = self._train[torch.randperm(len(self._train), generator=shuffle).to(self._train.device)]
        batch = self._recipe.batch_size
        # Small images are augmented many batches at a time: a GPU runs faster than the host can ask it for so little.
        together = batch * max(1, 2**23 // (batch * self._pixels[0].numel()))
        for at in torch.split(order[: len(order) // batch * batch], together):
            pixels, labels = augment(self._pixels[at]), self._labels[at]
            yield from zip(torch.split(pixels, batch), torch.split(labels, batch), strict=True)

    def holdout_batches(self) -> Stream:
        for at in torch.split(self._holdout, 4 * self._recipe.batch_size):  # no gradients, so there is room
            yield normalize(self._pixels[at], self._config["mean"], self._config["std"]), self._labels[at]


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Images decoded, cropped and auto-augmented by timm's training transform, as uint8."""

    def __init__(self, images: ImageSet, split: _Split, recipe: Recipe, config: Any) -> None:
        self._images, self._indices, self._channels = images, split.train, config["input_size"][0]
        # Flips, erasing and normalisation are left to the device; without crop_scale it is a centre crop.
        self._transform = create_transform(
            config["input_size"],
            is_training=True,
            scale=recipe.crop_scale or (1.0, 1.0),
            ratio=(3 / 4, 4 / 3) if recipe.crop_scale else (1.0, 1.0),
            hflip=0.0,
            color_jitter=None,
            auto_augment=recipe.auto_augment,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            normalize=False,
        )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = int(self._indices[position])
        image = to_mode(self._images.load(index), self._channels)
        return self._transform(image), int(self._images.labels[index])


class _Workers:
    """Images decoded by worker processes, for sets that do not fit in memory or need per-image transforms."""

    def __init__(
        self, images: ImageSet, split: _Split, recipe: Recipe, config: Any, device: torch.device, workers: int
    ) -> None:
        self._images, self._split, self._recipe, self._config = images, split, recipe, config
        self._device, self._workers = device, workers
        self._generator = torch.Generator()
        self._loader = DataLoader(
            _Decoded(images, split, recipe, config),
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=self._generator,
        )

    def train_batches(self, epoch: int, augment: Augment) -> Stream:
        self._generator.manual_seed(_mixed_seed(self._recipe.seed, epoch))
        for pixels, labels in self._loader:
            yield augment(pixels.to(self._device, non_blocking=True)), labels.to(self._device, non_blocking=True)

    def holdout_batches(self) -> Stream:
        transform, indices = eval_transform(self._config), self._split.holdout
        for batch in iter_batches(self._images, indices, transform, self._recipe.batch_size, self._workers):
            yield batch.pixels.to(self._device), torch.from_numpy(batch.labels).to(self._device)


def _mixed_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


@dataclass(frozen=True)
class _Split:
    """Indices of the images trained on and of those held out."""

    train: Indices
    holdout: Indices


def _split(images: ImageSet, recipe: Recipe) -> _Split:
    if recipe.holdout + recipe.batch_size > len(images):
        raise InputError(
            f"{len(images)} training images of '{images.name}' are too few for holdout "
            f"{recipe.holdout} and one batch of {recipe.batch_size}: lower holdout or batch_size"
        )
    everything = np.arange(len(images), dtype=np.int64)
    held = subset(images, recipe.holdout, recipe.seed) if recipe.holdout else everything[:0]
    return _Split(np.setdiff1d(everything, held), held)


def _source(images: ImageSet, split: _Split, recipe: Recipe, config: Any, device: torch.device, workers: int) -> Source:
    """In memory where the images already are what the model takes and no per-image transform is asked for."""
    if isinstance(images, ArrayImages) and recipe.crop_scale is None and recipe.auto_augment is None:
        channels = 1 if images.pixels.ndim == 3 else 3
        if (channels, *images.pixels.shape[1:3]) == tuple(config["input_size"]):
            return _InMemory(images, split, recipe, config, device)
    return _Workers(images, split, recipe, config, device, workers)


class _Trainer:
    """The model, its moving average, the optimiser and its schedule; steps and measures."""

    def __init__(self, recipe: Recipe, classes: int, device: torch.device, updates_per_epoch: int) -> None:
        self.recipe, self.device, self.updates = recipe, device, 0
        kwargs = {**recipe.model_kwargs, "num_classes": classes, "drop_path_rate": recipe.drop_path}
        self.model = build_model(recipe.model, **kwargs).to(device)
        self.config = data_config(self.model)
        self._forward: Callable[[Tensor], Tensor] = self.model
        if recipe.compile != "none" and device.type == "cuda":
            self._forward = torch.compile(self.model, mode=recipe.compile)
        self._parameters = list(self.model.parameters())
        self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        # Parameters and buffers are looked up once, since at every update that would take longer than the update.
        self._averages = list(self.ema.module.state_dict().values()) if self.ema is not None else []
        self._values = list(self.model.state_dict().values())
        self.optimizer = _optimizer(recipe, self.model, device)
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
        self._mix = _mixup(recipe, classes, device)

    def step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """One update on normalised (B, C, H, W) pixels; gives the loss, still on the device."""
        targets, smoothing = labels, self.recipe.label_smoothing
        if self._mix is not None:
            # Mixup writes into its input and smooths the labels itself.
            (pixels, targets), smoothing = self._mix(pixels, labels), 0.0
        with self._autocast():
            logits = self._forward(pixels)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        loss.backward()
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_grad)
        self.optimizer.step()
        # Before the next forward pass, whose CUDA graph reuses the gradients' memory.
        self.optimizer.zero_grad()
        self.updates += 1
        if self.ema is not None:
            _move(self._averages, self._values, 1 - self.ema.get_decay(self.updates))
        self._scheduler.step_update(self.updates)
        return loss.detach()

    def top1(self, model: nn.Module, batches: Stream) -> float | None:
        """Top-1 accuracy of `model` in percent; None if there are no images."""
        model.eval()
        right, seen = torch.zeros((), device=self.device), 0
        with torch.no_grad(), self._autocast():
            for pixels, labels in batches:
                right += (model(pixels).argmax(1) == labels).sum()
                seen += len(labels)
        model.train()
        return 100 * right.item() / seen if seen else None

    def kept(self) -> nn.Module:
        """The model whose weights are kept."""
        return self.model if self.ema is None else self.ema.module

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.recipe.amp == "bfloat16" and self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


@torch.no_grad()
def _move(averages: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
    """Move the averages towards the values by `weight` in 0..1; what is not floating point is copied."""
    moved = [average.is_floating_point() for average in averages]
    torch._foreach_lerp_(list(compress(averages, moved)), list(compress(values, moved)), weight)
    for average, value, done in zip(averages, values, moved, strict=True):
        if not done:
            average.copy_(value)


def _optimizer(recipe: Recipe, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    fused: dict[str, Any] = {"fused": True} if device.type == "cuda" and recipe.opt == "adamw" else {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, **fused
        )
    except ValueError as error:
        known = nearest(recipe.opt, [str(name) for name in list_optimizers()])
        raise InputError(f"timm has no optimizer '{recipe.opt}'{known}; correct the recipe's opt") from error
    return optimizer


def _mixup(recipe: Recipe, classes: int, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    if not recipe.mixup and not recipe.cutmix:
        return None
    mix: Callable[..., tuple[Tensor, Tensor]] = Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )
    return mix


def train(
    recipe: Recipe,
    images: ImageSet,
    out: Path,
    device: torch.device,
    workers: int,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train by `recipe` on `images`, writing into the folder `out`.

    Writes `weights.safetensors` (fp16), `curve.csv` and `card.json`. Returns what card.json holds. Seeds
    Python's, numpy's and torch's global generators; on the CPU the same recipe, images and versions give the
    same weights. `workers` processes decode images that are not held in memory. Raises InputError for a
    model, data or folder that does not suit, and when the loss is no longer finite.
    """
    existing = [name for name in _OUTPUTS if (out / name).exists()]
    if existing:
        raise InputError(f"'{out}' already holds {existing[0]} of an earlier run: give another output folder")
    began, reporter = time.perf_counter(), reporter or default_reporter()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(recipe.seed)
    split = _split(images, recipe)
    trainer = _Trainer(recipe, images.classes, device, len(split.train) // recipe.batch_size)
    source = _source(images, split, recipe, trainer.config, device, workers)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[CurveRow] = []
    reporter.start(recipe.epochs)
    try:
        for row in _epochs(trainer, source):
            rows.append(row)
            _write_curve(out / "curve.csv", rows)
            reporter.epoch(row)
    finally:
        reporter.close()
    _write_weights(out / "weights.safetensors", trainer.kept())
    card = _card(recipe, images, device, rows[-1], time.perf_counter() - began)
    _write(out / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    return card


def _epochs(trainer: _Trainer, source: Source) -> Iterator[CurveRow]:
    recipe, device = trainer.recipe, trainer.device
    augment = Augment(
        trainer.config,
        pad=recipe.pad,
        hflip=recipe.hflip,
        erasing=recipe.erasing,
        generator=torch.Generator(device).manual_seed(recipe.seed),
    )
    for epoch in range(1, recipe.epochs + 1):
        began, lr = time.perf_counter(), trainer.optimizer.param_groups[0]["lr"]
        losses = [trainer.step(pixels, labels) for pixels, labels in source.train_batches(epoch, augment)]
        # One transfer an epoch: reading every loss would make the host wait for every update.
        loss = torch.stack(losses).mean().item()
        if not math.isfinite(loss):
            raise InputError(f"training diverged: the loss is {loss} in epoch {epoch}; lower lr or set clip_grad")
        plain = trainer.top1(trainer.model, source.holdout_batches())
        averaged = trainer.top1(trainer.ema.module, source.holdout_batches()) if trainer.ema else None
        yield CurveRow(epoch, lr, loss, plain, averaged, time.perf_counter() - began)


def _card(recipe: Recipe, images: ImageSet, device: torch.device, last: CurveRow, seconds: float) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "model": recipe.model,
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "command": _command(sys.argv),
        "data": {"name": images.name, "images": len(images), "fingerprint": images.fingerprint},
        "weights": "moving average, last epoch" if recipe.ema_decay else "last epoch",
        "holdout_top1": last.holdout_top1_ema if recipe.ema_decay else last.holdout_top1,
        "train_loss": last.train_loss,
        "hardware": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "precision": recipe.amp if cuda and recipe.amp != "none" else "float32",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "seconds": round(seconds, 1),
    }


def _command(argv: Sequence[str]) -> str:
    """The command line, absolute paths cut to their last part: a card is for publishing."""
    words = [Path(word).name if os.path.isabs(word) else word for word in argv]
    return shlex.join(words)


def _write_curve(path: Path, rows: Sequence[CurveRow]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(CurveRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in asdict(row).items()}
        writer.writerow(cells)
    _write(path, text.getvalue().encode())


def _write_weights(path: Path, model: nn.Module) -> None:
    state = {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    _write(path, safetensors.torch.save(state, metadata={"format": "pt"}))


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
