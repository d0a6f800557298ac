"""Very small models and what a sweep needs around them, for the tests that run whole sweeps.

Importing this registers three timm models of 12 blocks and 49 patches, a few milliseconds per image: `tiny_28` and
`tiny_bright`, which sees images otherwise, for the demo images, and `tiny_rgb` for ImageNet folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from tokenmerge_bench.budgets import Budget, Solver, reduce_with
from tokenmerge_bench.checkpoints import (
    Checkpoint,
    method_fields,
    open_checkpoint,
    step_fields,
    write_checkpoint,
)
from tokenmerge_bench.experiment import Experiment
from tokenmerge_bench.models import build_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.store import MEASURED_TIMES, UNREDUCED
from tokenmerge_bench.sweep import SweepResult, run_sweep

TINY, TINY_RGB, TINY_BRIGHT = "tiny_28", "tiny_rgb", "tiny_bright"
_COMMON = {"mean": (0.5,), "std": (0.5,), "crop_pct": 1.0, "classifier": "head", "first_conv": "patch_embed.proj"}
default_cfgs = generate_default_cfgs(
    {
        TINY: {**_COMMON, "input_size": (1, 28, 28), "num_classes": 10},
        TINY_BRIGHT: {**_COMMON, "input_size": (1, 28, 28), "num_classes": 10, "mean": (0.1,)},
        TINY_RGB: {**_COMMON, "input_size": (3, 28, 28), "num_classes": 1000, "mean": (0.5,) * 3, "std": (0.5,) * 3},
    }
)


def _tiny(name: str, channels: int, classes: int, settings: dict[str, Any]) -> VisionTransformer:
    known = {key: value for key, value in settings.items() if key in ("num_classes", "embed_dim", "img_size")}
    shape = {"img_size": 28, "patch_size": 4, "embed_dim": 16, "depth": 12, "num_heads": 2}
    model = VisionTransformer(**{**shape, "in_chans": channels, "num_classes": classes, **known})
    model.pretrained_cfg = default_cfgs[name].default.to_dict()
    return model


@register_model
def tiny_28(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _tiny(TINY, 1, 10, settings)


@register_model
def tiny_bright(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _tiny(TINY_BRIGHT, 1, 10, settings)


@register_model
def tiny_rgb(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _tiny(TINY_RGB, 3, 1000, settings)


def save_random_weights(path: Path, model: str = TINY, seed: int = 0) -> Path:
    """Weights large enough that images and token reductions change the prediction."""
    torch.manual_seed(0)
    start = build_model(model).state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = {key: value + 0.4 * torch.randn(value.shape, generator=generator) for key, value in start.items()}
    save_file(state, path)
    return path


def save_image(path: Path, seed: int, size: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def save_checkpoint(
    folder: Path, method: str = "sit", keep_rate: str = "0.7", /, *, seed: int = 0, model: str = TINY, **described: Any
) -> Checkpoint:
    """A checkpoint as training would leave it: random weights of the model and of the reducers, and their card."""
    torch.manual_seed(seed)
    shape = described.get("model_kwargs", {})
    vit = build_model(model, **shape)
    spec, solution, reducers = None, None, {}
    if method != UNREDUCED:
        spec = parse_method(method)
        solution = Solver(vit).solve(spec, Budget("keep_rate", keep_rate))
        reducers = reduce_with(vit, spec, solution).reducers.state_dict()
    state = {key: value + 0.4 * torch.randn(value.shape) for key, value in vit.state_dict().items()}
    usual = {
        "model": model,
        "classes": 10,
        **method_fields(spec),
        "budget": "1" if solution is None else f"keep_rate={keep_rate}",
        "steps": [] if solution is None else step_fields(solution.schedule.steps),
        "gflops": 0.001,
        "seed": seed,
        "initial": {"label": "tiny.safetensors", "fingerprint": "f"},
        "data": {"name": "photographs", "images": 8, "fingerprint": "d"},
        "weights": "last epoch",
    }
    write_checkpoint(folder, state, reducers, {**usual, **described})
    checkpoint = open_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


class Recorder:
    """A reporter that remembers; it can stand for a Ctrl-C at a chosen moment."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.total = self.done = 0
        self.steps: list[tuple[int, str]] = []
        self.notes: list[str] = []
        self.interrupt_at = interrupt_at

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, evaluations: int, doing: str) -> None:
        self.steps.append((evaluations, doing))
        if len(self.steps) == self.interrupt_at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def points(self) -> set[str]:
        """Points that were really evaluated."""
        return {point for _, point in self.steps}


def experiment(**changes: Any) -> Experiment:
    """Three methods on 6 demo images in 3 batches, at one k, as solving a FLOPs budget takes longer than the rest."""
    usual: dict[str, Any] = {
        "methods": ["dhtm", "lotm", "random"],
        "models": [TINY],
        "dataset": "demo",
        "limit": 6,
        "batch_size": 2,
        "seeds": 2,
    }
    if not changes.keys() & {"budgets", "gflops", "r", "keep_rate"}:
        usual["k"] = ["6"]
    return Experiment(**{**usual, **changes})


def run(
    out: Path,
    weights: Path,
    reporter: Recorder | None = None,
    fresh: bool = False,
    checkpoints: Sequence[Checkpoint] = (),
    **changes: Any,
) -> SweepResult:
    """A sweep of `experiment(**changes)` into `out`."""
    chosen = experiment(**changes)
    return run_sweep(
        chosen,
        weights=dict.fromkeys(chosen.models, weights),
        checkpoints=checkpoints,
        out=out,
        fresh=fresh,
        reporter=reporter or Recorder(),
    )


def lasting(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that two runs of a sweep must agree on."""
    return table.drop(columns=list(MEASURED_TIMES))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
