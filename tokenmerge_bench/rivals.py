"""The rivals of a profile: the unreduced model, methods at budgets, and the free drop that bounds what each can gain.

A *cell* is one model with one method (or unreduced) at one budget, batch size, precision and mode. Cells that differ in
nothing but method and budget are a *group*, whose rivals are timed against one another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.batch_sizes import MAXIMUM
from tokenmerge_bench.engine import attached
from tokenmerge_bench.models import LoadedModel
from tokenmerge_bench.modes import Mode
from tokenmerge_bench.points import Point
from tokenmerge_bench.reduced_vit import ReducedViT, image_shape
from tokenmerge_bench.reducers import TokenReducer
from tokenmerge_bench.schedule import Schedule
from tokenmerge_bench.store import UNREDUCED
from tokenmerge_bench.tokens import Tokens


@dataclass(frozen=True)
class Group:
    """Rivals that are timed against one another."""

    loaded: LoadedModel
    points: tuple[Point, ...]
    """The unreduced model, then every method at every budget."""
    batch: int | None
    """Images; None for the automatic maximum."""
    dtype: str
    mode: Mode

    @cached_property
    def id(self) -> str:
        """A name that changes with what is timed."""
        content = json.dumps([self.loaded.fingerprint, *(point.id for point in self.points)])
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        return f"{self.loaded.name}-{self.dtype}-{self.mode}-{self.batch or MAXIMUM}-{digest}"

    def __str__(self) -> str:
        methods = dict.fromkeys(f"{p.method.label} at {p.budget.recorded}" for p in self.points if p.method is not None)
        return f"{self.loaded.name}, batch {self.batch or MAXIMUM}, {self.dtype}, {self.mode}: {', '.join(methods)}"

    @property
    def names(self) -> list[str]:
        """The rivals that have a row, by the names that `rival` gives."""
        return [rival(point) for point in self.points]

    def networks(self, model: nn.Module) -> dict[str, Callable[[], nn.Module]]:
        """What builds each rival around a model, by name: the points that are within reach, and their free drops."""
        builders: dict[str, Callable[[], nn.Module]] = {rival(self.points[0]): lambda: model}
        for point in self.points:
            if point.method is not None and point.solution is not None:
                builders[rival(point)] = partial(attached, model, point)
                builders.setdefault(free_rival(point), partial(free_drop, model, point.solution.schedule))
        return builders

    def differs_in_batch_alone(self, other: Group) -> bool:
        """Whether another group is the same, but of a given number of images."""
        return other.batch is not None and replace(self, batch=None) == replace(other, batch=None)


class FreeDrop(TokenReducer):
    """Asks for nothing and is never asked: in a `ReducedViT` with `drop` set, tokens are dropped by position."""

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """The first tokens."""
        batch, n, _ = tokens.features.shape
        return HardAssignment.keep_first(batch, n, n_out, tokens.features.device)

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """Nothing is computed."""
        return 0


def free_drop(model: nn.Module, schedule: Schedule) -> ReducedViT:
    """A model under a token schedule at the least cost there is: no reducer, and no size bias in the attention."""
    dropping = ReducedViT(model, schedule, [FreeDrop() for _ in schedule.steps])
    dropping.drop = True
    return dropping


def rival(point: Point) -> str:
    """The name of a point among the rivals of a group."""
    return UNREDUCED if point.method is None else point.id


def free_rival(point: Point) -> str:
    """The name of the free drop of a point's schedule; equal schedules share one, and an empty one drops nothing."""
    assert point.solution is not None
    steps = point.solution.schedule.steps
    content = json.dumps([asdict(step) for step in steps])
    return f"free-drop-{hashlib.sha256(content.encode()).hexdigest()[:10]}" if steps else UNREDUCED


def noise(
    model: nn.Module, batch: int, dtype: str, device: torch.device, seed: int
) -> tuple[Float[Tensor, "B I height width"], Int[Tensor, " B"]]:
    """Normal noise in the shape of the model's images, and their identifiers."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, *image_shape(model), generator=generator)
    return images.to(device=device, dtype=getattr(torch, dtype)), torch.arange(batch, device=device)
