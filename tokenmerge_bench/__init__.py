"""Which way of reducing Vision Transformer tokens keeps the most accuracy at the same FLOPs?

model = timm.create_model("deit_tiny_patch16_224", pretrained=True)
reduced = attach(model, "dhtm", budget=0.7)
logits = reduced(images)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmerge_bench.assignment import Assignment, HardAssignment, SoftAssignment
    from tokenmerge_bench.budgets import Budget, Solution, Solver, Unreachable, attach
    from tokenmerge_bench.counting import Macs, closed_form, count, traced
    from tokenmerge_bench.errors import CountingError, InputError
    from tokenmerge_bench.options import MethodSpec, parse_method
    from tokenmerge_bench.reduced_vit import ReducedViT
    from tokenmerge_bench.reducers import NoOptions, TokenReducer, reducer
    from tokenmerge_bench.registry import list_methods
    from tokenmerge_bench.schedule import Schedule, Step
    from tokenmerge_bench.tokens import Tokens

__all__ = [
    "Assignment",
    "Budget",
    "CountingError",
    "HardAssignment",
    "InputError",
    "Macs",
    "MethodSpec",
    "NoOptions",
    "ReducedViT",
    "Schedule",
    "SoftAssignment",
    "Solution",
    "Solver",
    "Step",
    "TokenReducer",
    "Tokens",
    "Unreachable",
    "attach",
    "closed_form",
    "count",
    "list_methods",
    "parse_method",
    "reducer",
    "traced",
]

# Names are imported when they are first used: torch and timm take seconds, and `tmbench --help` needs neither.
_HOME = {
    "Assignment": "assignment",
    "Budget": "budgets",
    "CountingError": "errors",
    "HardAssignment": "assignment",
    "InputError": "errors",
    "Macs": "counting",
    "MethodSpec": "options",
    "NoOptions": "reducers",
    "ReducedViT": "reduced_vit",
    "Schedule": "schedule",
    "SoftAssignment": "assignment",
    "Solution": "budgets",
    "Solver": "budgets",
    "Step": "schedule",
    "TokenReducer": "reducers",
    "Tokens": "tokens",
    "Unreachable": "budgets",
    "attach": "budgets",
    "closed_form": "counting",
    "count": "counting",
    "list_methods": "registry",
    "parse_method": "options",
    "reducer": "reducers",
    "traced": "counting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tokenmerge_bench' has no attribute '{name}'")
    return getattr(import_module(f"tokenmerge_bench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
