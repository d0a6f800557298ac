"""Where trained checkpoints stand in a sweep: which of its models, methods and budgets each of them was trained for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from tokenmerge_bench.budgets import Budget, Solution, Solver, Unreachable
from tokenmerge_bench.checkpoints import Checkpoint, shipped_checkpoints
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import DEMO_MODEL, LoadedModel
from tokenmerge_bench.options import MethodSpec, all_options
from tokenmerge_bench.points import Point
from tokenmerge_bench.summary import budget_flag


@dataclass(frozen=True, eq=False)
class Place:
    """A cell of a sweep that a checkpoint was trained for.

    `asked` is the sweep's method that it stands beside, `method` the same with the options that it was trained with;
    both are None for the unreduced model.
    """

    checkpoint: Checkpoint
    asked: MethodSpec | None
    method: MethodSpec | None
    budget: Budget
    solution: Solution

    @property
    def setting(self) -> tuple[str, str, str]:
        """Equal for the checkpoints that differ in their seed alone."""
        options = "" if self.method is None else all_options(self.method)
        return self.checkpoint.card.method, options, self.budget.recorded

    def point(self, loaded: LoadedModel) -> Point:
        """The point of this cell, of the model with the checkpoint's weights."""
        seed = self.checkpoint.card.seed
        identity = (loaded.name, loaded.weights, loaded.fingerprint)
        return Point(*identity, self.method, self.budget, seed, self.solution, checkpoint=self.checkpoint)


class Places:
    """The cells of one model's sweep in which checkpoints can stand.

    Args:
        model: the model of the sweep.
        methods: the methods of the sweep.
        budgets: its budgets.
    """

    def __init__(self, model: nn.Module, methods: Sequence[MethodSpec], budgets: Sequence[Budget]) -> None:
        self._solver, self._methods, self._budgets = Solver(model), methods, budgets
        self._solved: dict[tuple[str, str, str], Solution | None] = {}

    def of(self, checkpoint: Checkpoint) -> list[Place]:
        """The cells that a checkpoint was trained for, of which there may be none.

        The method must be that of the checkpoint with the same options, or with default ones, which then stand for
        any; and the budget must be solved by the schedule that it was trained with.
        """
        method = checkpoint.method
        if method is None:
            unreduced = Solution("", self._solver.unreduced_schedule, self._solver.unreduced)
            return [Place(checkpoint, None, None, Budget("fraction", "1"), unreduced)]
        asked = asked_for(method, self._methods)
        if asked is None:
            return []
        solutions = [(budget, self._solve(method, budget)) for budget in self._budgets]
        steps = checkpoint.card.schedule_steps
        return [
            Place(checkpoint, asked, method, budget, solution)
            for budget, solution in solutions
            if solution is not None and solution.schedule.steps == steps
        ]

    def all(
        self, given: Sequence[Checkpoint], shipped: Sequence[Checkpoint], every_method: bool = False
    ) -> list[Place]:
        """The cells of all checkpoints, the unreduced model's first and then method by method.

        Args:
            given: by the user; they take the place of shipped ones of the same setting.
            shipped: with the package; for methods that learn alone, unless `every_method`.
            every_method: take shipped ones of all methods, and of the unreduced model.

        Raises:
            InputError: for a given one that has no place, or two of the same setting and seed.
        """
        wanted = [place for checkpoint in given for place in self._wanted(checkpoint)]
        _refuse_twice(wanted)
        replaced = {place.setting for place in wanted}
        for checkpoint in shipped:
            if every_method or self._learns(checkpoint):  # asked first: to find the cells takes solving their budgets
                wanted += [place for place in self.of(checkpoint) if place.setting not in replaced]
        return sorted(wanted, key=self._turn)  # files are read by name, and are shown as methods were asked for

    def _learns(self, checkpoint: Checkpoint) -> bool:
        """Whether the sweep's method beside which a checkpoint stands cannot do without one."""
        method = checkpoint.method
        asked = None if method is None else asked_for(method, self._methods)
        return asked is not None and asked.build().learned

    def _turn(self, place: Place) -> int:
        return -1 if place.asked is None else self._methods.index(place.asked)

    def _wanted(self, checkpoint: Checkpoint) -> list[Place]:
        places = self.of(checkpoint)
        if places:
            return places
        method, card = checkpoint.method, checkpoint.card
        assert method is not None
        trained = f"checkpoint '{checkpoint.name}' was trained for {checkpoint.described}"
        if asked_for(method, self._methods) is None:
            raise InputError(f"{trained}, and this sweep has no such method; add it by --methods {method.label}.")
        budgets = ", ".join(budget.recorded for budget in self._budgets)
        if card.budget not in [budget.recorded for budget in self._budgets]:
            flag = " ".join(budget_flag(card.budget))
            raise InputError(f"{trained}, and this sweep has other budgets ({budgets}); add it by {flag}.")
        tokens = "/".join(str(step.n_out) for step in card.steps)
        raise InputError(
            f"{trained}, where it left {tokens} tokens; this version, image size or model width leaves others at "
            f"{card.budget}, so train it again."
        )

    def _solve(self, method: MethodSpec, budget: Budget) -> Solution | None:
        key = (method.name, all_options(method), budget.recorded)
        if key not in self._solved:
            try:
                self._solved[key] = self._solver.solve(method, budget)
            except Unreachable:
                self._solved[key] = None
        return self._solved[key]


def asked_for(method: MethodSpec, methods: Iterable[MethodSpec]) -> MethodSpec | None:
    """The method of a sweep beside which a trained one stands: of the same options, or else of default ones."""
    kin = [asked for asked in methods if asked.name == method.name]
    same = [asked for asked in kin if all_options(asked) == all_options(method)]
    return next(iter([*same, *(asked for asked in kin if not asked.changed)]), None)


def model_of(checkpoint: Checkpoint, models: Sequence[str]) -> str:
    """The model of a sweep that a checkpoint is one of: the same name, or else the same but for timm's tag.

    Raises:
        InputError: if there is none.
    """
    own = checkpoint.card.model
    kin = [model for model in models if model.partition(".")[0] == own.partition(".")[0]]
    if not kin:
        raise InputError(
            f"checkpoint '{checkpoint.name}' was trained for {checkpoint.described}, and the models here are "
            f"{', '.join(models)}; add it by --models {own}."
        )
    return own if own in kin else kin[0]


def nothing_shipped(models: Iterable[str]) -> str:
    """A sentence for sweeps in which no checkpoint that ships with the package has a place."""
    budgets = sorted({c.card.budget for c in shipped_checkpoints(DEMO_MODEL)} - {"1"}, reverse=True)
    return (
        f"no trained checkpoint that ships with the package fits these methods, budgets and {', '.join(models)}; there "
        f"are those of {DEMO_MODEL} with its own weights and image size at {', '.join(budgets)}, and --weights takes "
        "others."
    )


def refuse_other_shape(checkpoint: Checkpoint, trained: LoadedModel, own: LoadedModel) -> None:
    """Raises InputError for a checkpoint of a model of another size than the one that it is compared with."""
    solvers = [Solver(loaded.model) for loaded in (trained, own)]
    if solvers[0].shape != solvers[1].shape or solvers[0].unreduced != solvers[1].unreduced:
        raise InputError(
            f"checkpoint '{checkpoint.name}' is of a {own.name} of another size ({checkpoint.card.model_kwargs}) than "
            f"the unreduced model beside it; give that model's weights too, by --weights {own.name}=PATH."
        )


def _refuse_twice(places: Sequence[Place]) -> None:
    seen: dict[tuple[tuple[str, str, str], int], Checkpoint] = {}
    for place in places:
        checkpoint = place.checkpoint
        other = seen.setdefault((place.setting, checkpoint.card.seed), checkpoint)
        if other is not checkpoint:
            raise InputError(
                f"checkpoints '{other.file}' and '{checkpoint.file}' are both {checkpoint.described} with seed "
                f"{checkpoint.card.seed}; give one of them, or train the other with another seed."
            )
