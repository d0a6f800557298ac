"""Tables of what there is: methods, models, data sets, experiments, recipes, and FLOPs without data."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from tokenmerge_bench.budgets import Solver, Unreachable, reduce_with
from tokenmerge_bench.checkpoints import shipped_checkpoints
from tokenmerge_bench.counting import count
from tokenmerge_bench.datasets import dataset_layouts
from tokenmerge_bench.display import short_knob
from tokenmerge_bench.experiment import Experiment, load_experiment, shipped
from tokenmerge_bench.models import DEMO_MODEL, build_model, list_models
from tokenmerge_bench.options import layers_text
from tokenmerge_bench.recipe import purpose, read_recipe, shipped_recipes
from tokenmerge_bench.registry import list_methods


def methods_table() -> Table:
    """Every method with its knob, its default layers, its options (defaults first), and what is trained of it."""
    table = Table(show_lines=True)
    for heading in ("method", "what it does", "knob", "blocks", "options"):
        # What is typed is never cut off.
        table.add_column(heading, no_wrap=heading in ("method", "knob"), overflow="fold")
    shipped = shipped_checkpoints(DEMO_MODEL)
    for name, cls in list_methods().items():
        reducer = cls()
        options = "\n".join(
            f"{field.name}={field.default}".lower()
            if isinstance(field.default, bool)
            else f"{field.name}={field.default}"
            for field in dataclasses.fields(cls.options_type)
        )
        summary = (cls.__doc__ or "").strip().splitlines()[0].partition(" Options:")[0]
        blocks = f"{layers_text(reducer.layers)} {reducer.site}"
        trained = ["must be trained"] if reducer.learned else []
        budgets = [c.card.budget for c in shipped if c.card.method == name]
        trained += [f"shipped: {', '.join(budgets)}"] if budgets else []
        table.add_row(name, "\n".join([summary, *trained]), reducer.knob.flag, blocks, options)
    table.caption = f"shipped: budgets of the checkpoints of {DEMO_MODEL} that --trained adds; --weights takes others"
    return table


def models_table() -> Table:
    """Models known to work, and where their weights come from."""
    table = Table("model", "weights")
    for model in list_models():
        table.add_row(model.name, model.source)
    table.caption = "Any other timm VisionTransformer of pre-norm blocks works too, with --weights FILE."
    return table


def datasets_table() -> Table:
    """What `--dataset` takes."""
    table = Table("data set", "what it is")
    for spec, what in dataset_layouts():
        table.add_row(spec, what)
    return table


def experiments_table() -> Table:
    """The experiments that ship with the package."""
    table = Table("experiment", "what it shows", "models", "methods")
    for name in shipped():
        experiment = load_experiment(name)
        table.add_row(name, experiment.title, ", ".join(experiment.models), ", ".join(experiment.methods))
    table.caption = "tmbench run NAME --dataset FOLDER; with --dataset demo, on the embedded benchmark"
    return table


def recipes_table() -> Table:
    """The training recipes that ship with the package."""
    table = Table("recipe", "what it is for", "model", "begins with", "epochs", show_lines=True)
    for name in shipped_recipes():
        recipe = read_recipe(name)
        begins = "pretrained weights" if recipe.init == "pretrained" else "nothing"
        table.add_row(name, purpose(name), recipe.model, begins, str(recipe.epochs))
    table.caption = "tmbench train --recipe NAME; --model gives another model, --set KEY=VALUE changes the rest"
    return table


def flops_table(experiment: Experiment, model: str) -> Table:
    """Token schedules and MACs of one model, counted by fvcore on the attached model and checked by the closed form."""
    network = build_model(model).eval()
    solver = Solver(network)
    table = Table(
        "method",
        "budget",
        "setting",
        "tokens leaving each block",
        title=f"{model}, GFLOPs of one image",
        title_justify="left",
    )
    for heading in ("GFLOPs", "reducer", "saved"):
        table.add_column(heading, justify="right")
    tokens = _tokens(solver.unreduced_schedule.mlp_tokens())
    table.add_row("unreduced", "", "", tokens, f"{solver.unreduced.total / 1e9:.4f}", "", "")
    for spec in experiment.all_methods():
        for budget in experiment.all_budgets():
            try:
                found = solver.solve(spec, budget)
            except Unreachable as error:
                table.add_row(spec.label, budget.recorded, "unreachable", str(error), "", "", "")
                continue
            macs = count(reduce_with(network, spec, found))
            table.add_row(
                spec.label,
                budget.recorded,
                short_knob(found.knob),
                _tokens(found.schedule.mlp_tokens()),
                f"{macs.total / 1e9:.4f}",
                f"{macs.reducer / 1e9:.4f}",
                f"{100 * (1 - macs.total / solver.unreduced.total):.1f} %",
            )
    return table


def _tokens(counts: list[int]) -> str:
    return short_knob("=" + "/".join(map(str, counts)))[1:].replace("/", " ")
