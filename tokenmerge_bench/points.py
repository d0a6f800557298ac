"""The cells of a sweep: model x method x options x budget x seed, each with its schedule and its MACs solved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tokenmerge_bench.budgets import Budget, Solution, Solver, Unreachable
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import LoadedModel
from tokenmerge_bench.options import MethodSpec, all_options

UNREDUCED = "none"
"""The method name of the unreduced model's row."""


@dataclass(frozen=True)
class Point:
    """One cell of a sweep. `method` is None for the unreduced model; `solution` is None where out of reach."""

    model: str
    weights: str
    weights_fingerprint: str
    method: MethodSpec | None
    budget: Budget
    seed: int
    solution: Solution | None
    reason: str = ""

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
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        name = UNREDUCED if self.method is None else self.method.name
        return f"{self.model}-{name}-{digest}"


def plan(
    loaded: LoadedModel, methods: Sequence[MethodSpec], budgets: Sequence[Budget], seeds: int, seed: int
) -> list[Point]:
    """All points of one model: the unreduced one, then every method at every budget; random methods once per seed.

    Raises:
        InputError: if a budget is out of reach for every method, so that nothing could be compared there.
    """
    solver = Solver(loaded.model)
    identity = (loaded.name, loaded.weights, loaded.fingerprint)
    unreduced = Solution("", solver.unreduced_schedule, solver.unreduced)
    for method in methods:
        if method.build().learned:
            raise InputError(
                f"{method.label} has weights of its own that must be trained first, and there is no checkpoint; "
                "leave it out or choose options that need no training."
            )
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
            drawn = method.build().stochastic and solution is not None and solution.schedule.steps
            runs = range(seed, seed + seeds) if drawn else [0]
            points += [Point(*identity, method, budget, run, solution, reason) for run in runs]
        if len(reasons) == len(methods):
            raise InputError(
                f"no method reaches budget {budget.recorded} on {loaded.name}: {'; '.join(reasons)}; ask for another "
                "budget."
            )
    return points
