"""From a budget to a token schedule: fractions of the unreduced MACs, absolute GFLOPs, or the method's own knob."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from tokenmerge_bench.counting import BackboneCost, Macs
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import Value
from tokenmerge_bench.options import MethodSpec, parse_method
from tokenmerge_bench.reduced_vit import Geometry, ReducedViT, build_reducers, geometry
from tokenmerge_bench.reducers import TokenReducer
from tokenmerge_bench.schedule import Schedule, make_schedule

TOLERANCE = 0.005
"""A budget counts as reached within this fraction of itself."""


@dataclass(frozen=True)
class Budget:
    """What the user asked for.

    `kind` is `fraction` (of the unreduced MACs, in (0, 1]), `gflops` (1e9 MACs per image), or the name of a knob, whose
    value is then kept as text until the method reads it.
    """

    kind: Literal["fraction", "gflops", "k", "r", "keep_rate"]
    text: str

    def __post_init__(self) -> None:
        if self.kind == "fraction" and not 0 < self.number <= 1:
            raise InputError(
                f"budget {self.text} is out of range; give the fraction of the unreduced FLOPs to keep, above 0 and at "
                "most 1, such as 0.7 (or use --gflops for absolute GFLOPs)."
            )
        if self.kind == "gflops" and not 0 < self.number < float("inf"):
            raise InputError(f"--gflops {self.text} is no budget; give GFLOPs per image above 0, such as 3.26.")

    @property
    def number(self) -> float:
        """The value of a fraction or of GFLOPs."""
        try:
            return float(self.text)
        except ValueError:
            raise InputError(f"budget '{self.text}' is no number; write for instance 0.7.") from None

    @property
    def recorded(self) -> str:
        """The budget as it stands in the results, such as `0.7`, `3.26 GFLOPs` or `k=40`."""
        if self.kind == "fraction":
            return f"{self.number:g}"
        return f"{self.number:g} GFLOPs" if self.kind == "gflops" else f"{self.kind}={self.text}"


@dataclass(frozen=True)
class Solution:
    """A token schedule with its cost, and the knob value that gives it."""

    knob: str
    schedule: Schedule
    macs: Macs


class Unreachable(Exception):
    """No setting of the method meets the budget; the message says how near it comes."""


class Solver:
    """Finds schedules of methods on one model.

    Args:
        model: a supported timm ViT. Only its layer sizes are read.
        count_reducers: whether the reducers' own MACs count towards a budget.
    """

    def __init__(self, model: nn.Module, count_reducers: bool = True) -> None:
        self.shape: Geometry = geometry(model)
        self.cost = BackboneCost.of(model)
        self.count_reducers = count_reducers
        self.unreduced_schedule = Schedule(self.shape.patches, self.shape.prefix, self.shape.depth)
        self.unreduced = self.cost.macs(self.unreduced_schedule)

    def solve(self, spec: MethodSpec, budget: Budget) -> Solution:
        """The setting nearest to the budget.

        Raises:
            Unreachable: if the nearest setting misses a FLOPs budget by more than 0.5 % of it.
            InputError: for a knob that the method does not have or cannot follow.
        """
        reducer = self._prototype(spec)
        if budget.kind not in ("fraction", "gflops"):
            if budget.kind != reducer.knob.name:
                raise InputError(
                    f"{spec.label} has no knob '{budget.kind}' (its own is {reducer.knob.flag}); use --budgets or "
                    "--gflops to compare it with methods that do."
                )
            return self.at(spec, reducer.knob.parse(budget.text))
        unit = self.unreduced.total if budget.kind == "fraction" else 1e9
        target = budget.number * unit
        if target > self.unreduced.total * (1 + TOLERANCE):
            raise Unreachable(
                f"{budget.recorded} is more than the unreduced model needs ({self.unreduced.total / 1e9:.4g} GFLOPs)"
            )
        best = self._nearest(spec, reducer, target)
        achieved = self._charged(best.macs)
        if abs(achieved - target) > TOLERANCE * target:
            raise Unreachable(
                f"the nearest that {spec.label} can do is {achieved / self.unreduced.total:.3f} of the unreduced FLOPs "
                f"({achieved / 1e9:.4g} GFLOPs, {best.knob})"
            )
        return best

    def at(self, spec: MethodSpec, value: Value) -> Solution:
        """The schedule and cost of a knob value."""
        return self._at(spec.blocks(self.shape.depth), self._prototype(spec), value)

    def _at(self, blocks: tuple[int, ...], reducer: TokenReducer, value: Value) -> Solution:
        shape = self.shape
        counts = reducer.knob.counts(value, shape.patches, len(blocks), partial(reducer.fewest, grid=shape.grid))
        schedule = make_schedule(counts, blocks, reducer.site, n0=shape.patches, prefix=shape.prefix, depth=shape.depth)
        own = sum(reducer.macs(step.n_in, step.n_out, shape.width) for step in schedule.steps)
        return Solution(reducer.knob.text(value), schedule, self.cost.macs(schedule, own))

    def _nearest(self, spec: MethodSpec, reducer: TokenReducer, target: float) -> Solution:
        """Tries every value that the knob offers; the first (least reduced) of equally near ones wins.

        Only where even that misses the budget are its uneven neighbours tried too.
        """
        blocks = spec.blocks(self.shape.depth)
        fewest = partial(reducer.fewest, grid=self.shape.grid)

        def miss(found: tuple[Value, Solution]) -> float:
            return abs(self._charged(found[1].macs) - target)

        values = reducer.knob.candidates(self.shape.patches, len(blocks), fewest)
        best = min(((value, self._at(blocks, reducer, value)) for value in values), key=miss)
        if miss(best) > TOLERANCE * target:
            near = reducer.knob.near(best[0], self.shape.patches, len(blocks))
            tried = ((value, self._at_if_feasible(blocks, reducer, value)) for value in near)
            nearer = min(((value, found) for value, found in tried if found is not None), key=miss, default=best)
            best = nearer if miss(nearer) <= TOLERANCE * target else best
        return best[1]

    def _at_if_feasible(self, blocks: tuple[int, ...], reducer: TokenReducer, value: Value) -> Solution | None:
        """The schedule of a knob value, or None where the method cannot follow it."""
        try:
            return self._at(blocks, reducer, value)
        except InputError:
            return None

    def _charged(self, macs: Macs) -> int:
        return macs.total if self.count_reducers else macs.backbone

    def _prototype(self, spec: MethodSpec) -> TokenReducer:
        reducer = spec.build()
        reducer.prefix, reducer.head_width = self.shape.prefix, self.shape.head_width
        return reducer


def attach(
    model: nn.Module,
    method: str | MethodSpec,
    *,
    budget: float | None = None,
    gflops: float | None = None,
    k: int | str | None = None,
    r: int | str | None = None,
    keep_rate: float | None = None,
    seed: int = 0,
) -> ReducedViT:
    """A reduced version of a timm ViT that shares its weights; the model itself is not changed.

    Args:
        model: a VisionTransformer or VisionTransformerDistilled of timm.
        method: name with options as on the command line, such as `"dhtm"` or `"dhtm:connectivity=4:layers=all"`.
        budget: fraction of the unreduced MACs to keep, in (0, 1].
        gflops: MACs per image, in 1e9.
        k: merges per layer, one number or `"41/41/40"`.
        r: tokens removed per block, one number or a list as for `k`.
        keep_rate: fraction of the patch tokens kept at each stage.
        seed: for methods that draw random numbers.

    Exactly one of the budgets must be given.

    Raises:
        InputError: for a model, method, option or knob that does not fit.
        Unreachable: if the method cannot meet the FLOPs budget.

    Example:
        >>> model = timm.create_model("deit_tiny_patch16_224", pretrained=True)
        >>> reduced = attach(model, "dhtm", k=40)
        >>> logits = reduced(images)
    """
    given = {"fraction": budget, "gflops": gflops, "k": k, "r": r, "keep_rate": keep_rate}
    chosen = {kind: value for kind, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise InputError("give exactly one of budget=, gflops=, k=, r= and keep_rate=.")
    ((kind, value),) = chosen.items()
    spec = parse_method(method) if isinstance(method, str) else method
    solver = Solver(model)
    solution = solver.solve(spec, Budget(kind, str(value)))  # type: ignore[arg-type]
    return reduce_with(model, spec, solution, seed)


def reduce_with(model: nn.Module, spec: MethodSpec, solution: Solution, seed: int = 0) -> ReducedViT:
    """The model with a solved schedule attached, in the model's mode, on its device."""
    reducers = build_reducers(spec.type, spec.options, solution.schedule, geometry(model))
    reduced = ReducedViT(model, solution.schedule, reducers, seed)
    parameter = next(model.parameters())
    reduced.reducers.to(parameter.device)
    return reduced
