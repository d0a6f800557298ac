"""Training recipes: TOML files, shipped or the user's, with overrides from the command line, validated."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import pydantic

from tokenmerge_bench.errors import InputError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Recipe", "purpose", "read_recipe", "shipped_recipes"]

_RECIPES = Path(__file__).parent / "recipes"


class Recipe(pydantic.BaseModel):
    """How to train one model; every key that is not required is off unless given.

    Times are in epochs, probabilities per image unless said otherwise.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = ""  # timm's name, unless --model gives another; num_classes comes from the data
    model_kwargs: dict[str, Any] = {}
    init: Literal["scratch", "pretrained"] = "scratch"  # pretrained: --weights, or what the package or the hub has
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)
    epochs: int = pydantic.Field(ge=1)
    batch_size: int = pydantic.Field(ge=2)  # images per update, over all processes
    micro_batch_size: int = pydantic.Field(default=0, ge=0)  # most images at a time in a process; 0: its whole share
    holdout: int = pydantic.Field(default=0, ge=0)  # training images kept aside for the curve, stratified
    keep: Literal["last", "best"] = "last"  # the epoch whose weights are kept; best: on the held-out images

    opt: str = "adamw"
    lr: float = pydantic.Field(gt=0)
    lr_batch_size: int = pydantic.Field(default=0, ge=0)  # lr is meant for so many images per update; 0: as it is
    weight_decay: float = pydantic.Field(default=0.0, ge=0)  # not on biases, norms, CLS and positions, as timm does
    clip_grad: float = pydantic.Field(default=0.0, ge=0)  # largest gradient norm; 0: no clipping
    warmup_epochs: int = pydantic.Field(default=0, ge=0)
    warmup_lr: float = pydantic.Field(default=1e-6, ge=0)
    min_lr: float = pydantic.Field(default=0.0, ge=0)

    pad: int = pydantic.Field(default=0, ge=0)  # zero-pad by so many pixels, crop back at random
    hflip: float = pydantic.Field(default=0.0, ge=0, le=1)
    crop_scale: tuple[float, float] | None = None  # area range of a random resized crop; none: no such crop
    color_jitter: float = pydantic.Field(default=0.0, ge=0)  # timm's, which auto_augment replaces
    auto_augment: str | None = None  # timm's policy, such as rand-m9-mstd0.5, or none
    rand_augment: int = pydantic.Field(default=0, ge=0, le=30)  # torchvision's magnitude, 128 images at a time alike
    repeats: int = pydantic.Field(default=1, ge=1)  # views of an image in one epoch of as many images (repeated aug.)
    erasing: float = pydantic.Field(default=0.0, ge=0, le=1)
    mixup: float = pydantic.Field(default=0.0, ge=0)  # alpha of the Beta distribution, as is cutmix
    cutmix: float = pydantic.Field(default=0.0, ge=0)
    mixup_prob: float = pydantic.Field(default=1.0, ge=0, le=1)  # per batch
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    drop_path: float = pydantic.Field(default=0.0, ge=0, lt=1)
    ema_decay: float = pydantic.Field(default=0.0, ge=0, lt=1)  # per update, with timm's warmup; 0: no average

    distill_tokens: float = pydantic.Field(default=0.0, ge=0)  # SiT's feature recalibration (its equations 6 to 8)
    distill_logits: float = pydantic.Field(default=0.0, ge=0)
    distill_temperature: float = pydantic.Field(default=1.0, gt=0)
    distill_lr_scale: float = pydantic.Field(default=5.0, gt=0)  # learning rate of what only training needs

    amp: Literal["none", "bfloat16"] = "none"  # autocast on CUDA; the CPU always computes in float32
    compile: Literal["none", "default", "reduce-overhead"] = "none"  # torch.compile's mode on CUDA; never on the CPU
    # nor with distillation. A model with a method, and batches in parts, take `default` for `reduce-overhead`, by
    # which an optimiser that allows it, as timm's muon, takes its step in a CUDA graph too.

    @pydantic.field_validator("crop_scale", "auto_augment", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """TOML has no way to write None, with which a recipe's value is overridden."""
        return None if value == "none" else value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be less than epochs ({self.epochs})")
        if self.mixes and self.batch_size % 2:
            raise ValueError(f"batch_size ({self.batch_size}) must be even for mixup or cutmix")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {list(self.crop_scale)} must be fractions of the area, the smaller one first")
        if self.keep == "best" and not self.holdout:
            raise ValueError("keep = best chooses by held-out images, and holdout is 0")
        taken = {"num_classes", "drop_path_rate"} & set(self.model_kwargs)
        if taken:
            raise ValueError(f"model_kwargs must not set {min(taken)}, which comes from the data or drop_path")
        return self

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, by mixup or cutmix."""
        return bool(self.mixup or self.cutmix)

    @property
    def distills(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.distill_tokens or self.distill_logits)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, scaled to the batch size."""
        return self.lr * self.batch_size / self.lr_batch_size if self.lr_batch_size else self.lr


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


def purpose(name: str) -> str:
    """What a shipped recipe is for: the first sentence of the comment at its beginning."""
    lines = (_RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].removesuffix(".")


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
        known = shipped_recipes()
        raise InputError(
            f"no recipe '{source}'{nearest(str(source), known)}: give a TOML file or a shipped recipe "
            f"({', '.join(known)})"
        )
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
