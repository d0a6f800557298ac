"""The cells of a sweep: model x method x options x budget x seed, each with its schedule and its MACs solved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tokenmerge_bench.budgets import Budget, Solution, Solver, Unreachable
from tokenmerge_bench.checkpoints import Checkpoint
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import LoadedModel
from tokenmerge_bench.options import MethodSpec, all_options
from tokenmerge_bench.store import UNREDUCED


@dataclass(frozen=True)
class Point:
    """One cell of a sweep. `method` is None for the unreduced model; `solution` is None where out of reach.

    Without a `checkpoint` it is off the shelf: the model's own weights, and initial ones of a reducer that learns.
    """

    model: str
    weights: str
    weights_fingerprint: str
    method: MethodSpec | None
    budget: Budget
    seed: int
    solution: Solution | None
    reason: str = ""
    """Why it cannot be evaluated; empty if it can."""
    checkpoint: Checkpoint | None = None

    @property
    def obstacle(self) -> Literal["", "unreachable", "missing"]:
        """What its status is if it cannot be evaluated: the budget is out of reach, or it must be trained first."""
        if self.solution is None:
            return "unreachable"
        return "missing" if self.reason else ""

    @property
    def id(self) -> str:
        """A name that changes with anything that could change the outcome of this point."""
        content = {
            "model": self.model,
            "weights": self.weights_fingerprint,
            "options": "" if self.method is None else all_options(self.method),
            "budget": self.budget.recorded,
            "seed": self.seed,
            "steps": [] if self.solution is None else [asdict(step) for step in self.solution.schedule.steps],
            **({} if self.checkpoint is None else {"checkpoint": self.checkpoint.card.fingerprint}),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        name = UNREDUCED if self.method is None else self.method.name
        return f"{self.model}-{name}-{digest}"


def plan(
    loaded: LoadedModel,
    methods: Sequence[MethodSpec],
    budgets: Sequence[Budget],
    seeds: int,
    seed: int,
    trained: Collection[tuple[MethodSpec, Budget]] = (),
    untrained: bool = False,
) -> list[Point]:
    """All points of one model off the shelf: the unreduced one, then every method at every budget.

    What depends on random numbers, be they drawn or initial weights, comes once per seed.

    Args:
        loaded: the model.
        methods: as they are asked for.
        budgets: as they are asked for.
        seeds: number of runs of what depends on random numbers.
        seed: of the first of them.
        trained: where there are checkpoints, so that a method that learns is not missing.
        untrained: whether methods that learn are evaluated with initial weights.

    Raises:
        InputError: if a budget is out of reach for every method, so that nothing could be compared there, or if every
            method must be trained first.
    """
    solver = Solver(loaded.model)
    identity = (loaded.name, loaded.weights, loaded.fingerprint)
    unreduced = Solution("", solver.unreduced_schedule, solver.unreduced)
    # What draws nothing is the same point whatever the seed.
    points = [Point(*identity, None, Budget("fraction", "1"), 0, unreduced)]
    for budget in budgets:
        reasons = []
        for method in methods:
            solution, reason = None, ""
            try:
                solution = solver.solve(method, budget)
            except Unreachable as error:
                reason = str(error)
                reasons.append(reason)
            reducer = method.build()
            reduces = solution is not None and bool(solution.schedule.steps)
            if reducer.learned and reduces and not untrained:
                if (method, budget) in trained:
                    continue
                reason = _must_be_trained(loaded.name, method, budget)
            drawn = (reducer.stochastic or reducer.learned) and reduces and not reason
            runs = range(seed, seed + seeds) if drawn else [0]
            points += [Point(*identity, method, budget, run, solution, reason) for run in runs]
        if len(reasons) == len(methods):
            raise InputError(
                f"no method reaches budget {budget.recorded} on {loaded.name}: {'; '.join(reasons)}; ask for another "
                "budget."
            )
    if not trained and all(point.obstacle for point in points[1:]):
        missing = next(point for point in points if point.obstacle == "missing")
        assert missing.method is not None
        raise InputError(f"{missing.method.label} {missing.reason}; --untrained evaluates initial weights.")
    return points


def _must_be_trained(model: str, method: MethodSpec, budget: Budget) -> str:
    flag = {"fraction": "budget"}.get(budget.kind, budget.kind.replace("_", "-"))
    return (
        "must be trained first; give a checkpoint by --weights, or train one: tmbench train "
        f"--model {model} --method {method.label} --{flag} {budget.text}, with --recipe, --dataset and --out"
    )
