"""What there is: methods, models, data sets, experiments, recipes, and FLOPs without data.

Each listing is made of rows, which is what `--json` prints, and a sheet that shows them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenmerge_bench.budgets import Solver, Unreachable, reduce_with
from tokenmerge_bench.checkpoints import shipped_checkpoints
from tokenmerge_bench.counting import count
from tokenmerge_bench.datasets import dataset_layouts
from tokenmerge_bench.display import short_knob
from tokenmerge_bench.experiment import Experiment, load_experiment, shipped
from tokenmerge_bench.models import DEMO_MODEL, build_model, list_models
from tokenmerge_bench.names import method_options
from tokenmerge_bench.options import layers_text
from tokenmerge_bench.recipe import purpose, read_recipe, shipped_recipes
from tokenmerge_bench.registry import list_methods
from tokenmerge_bench.sheets import Column, Sheet
from tokenmerge_bench.store import UNREDUCED
from tokenmerge_bench.summary import label

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Listing:
    """What there is of one kind: its rows, and how they are shown."""

    rows: Callable[[], Rows]
    sheet: Callable[[Rows], Sheet]


def method_rows() -> Rows:
    """Every method with its knob, its default blocks, its options (defaults) and what is trained of it."""
    shipped = shipped_checkpoints(DEMO_MODEL)
    found = []
    for name, cls in list_methods().items():
        reducer = cls()
        options = {field.name: field.default for field in dataclasses.fields(cls.options_type)}
        found.append(
            {
                "method": name,
                "summary": (cls.__doc__ or "").strip().partition("\n")[0].partition(" Options:")[0],
                "knob": reducer.knob.flag,
                "blocks": layers_text(reducer.layers),
                "site": reducer.site,
                "options": options,
                "must_be_trained": reducer.learned,
                "shipped": [checkpoint.card.budget for checkpoint in shipped if checkpoint.card.method == name],
            }
        )
    return found


def methods_sheet(rows: Rows) -> Sheet:
    """Methods, with what is typed below what it means."""
    cells = []
    for row in rows:
        known = method_options(row["method"])
        typed = [
            f"{option}={'|'.join(known.get(option, [str(default)]))}" for option, default in row["options"].items()
        ]
        trained = ["Must be trained."] if row["must_be_trained"] else []
        budgets = f"Shipped, trained at {' and '.join(row['shipped'])}." if row["shipped"] else ""
        lines = [" ".join([row["summary"], *trained, budgets]).strip(), *(["  ".join(typed)] if typed else [])]
        cells.append([f"{row['method']}\n{row['knob']}\n{row['blocks']} {row['site']}", "\n".join(lines)])
    columns = [Column("method, knob, blocks"), Column("what it does; its options, the default first", least=40)]
    caption = (
        f"Options are typed as METHOD:OPTION=VALUE. Shipped checkpoints are of {DEMO_MODEL}, at fractions of its FLOPs "
        "and added by --trained."
    )
    return Sheet("", columns, cells, range(len(cells)), caption)


def model_rows() -> Rows:
    """Models known to work, and where their weights come from."""
    return [{"model": model.name, "weights": model.source} for model in list_models()]


def models_sheet(rows: Rows) -> Sheet:
    """Models and weights."""
    caption = (
        "Weights of all but the first are downloaded from timm's hub when they are needed. Any other timm "
        "VisionTransformer of pre-norm blocks works too, with --weights FILE."
    )
    columns = [Column("model"), Column("weights", rank=1)]
    return Sheet("", columns, [[row["model"], row["weights"]] for row in rows], caption=caption)


def dataset_rows() -> Rows:
    """What `--dataset` takes."""
    return [{"dataset": form, "what": what} for form, what in dataset_layouts()]


def datasets_sheet(rows: Rows) -> Sheet:
    """Forms of names and what they stand for."""
    columns = [Column("data set"), Column("what it is", least=40)]
    return Sheet("", columns, [[row["dataset"], row["what"]] for row in rows])


def experiment_rows() -> Rows:
    """The experiments that ship with the package."""
    found = []
    for name in shipped():
        held = load_experiment(name)
        found.append({"experiment": name, "title": held.title, "models": held.models, "methods": held.methods})
    return found


def experiments_sheet(rows: Rows) -> Sheet:
    """Experiments, with their models and methods as far as there is room."""
    columns = [
        Column("experiment"),
        Column("what it shows", least=24),
        Column("models", least=22),
        Column("methods", least=36, rank=1),
    ]
    cells = [[row["experiment"], row["title"], ", ".join(row["models"]), ", ".join(row["methods"])] for row in rows]
    caption = "tmbench run NAME --dataset FOLDER; with --dataset demo, on the embedded benchmark"
    return Sheet("", columns, cells, range(len(cells)), caption)


def recipe_rows() -> Rows:
    """The training recipes that ship with the package."""
    found = []
    for name in shipped_recipes():
        recipe = read_recipe(name)
        begins = "pretrained weights" if recipe.init == "pretrained" else "nothing"
        row = {"recipe": name, "what": purpose(name), "model": recipe.model, "begins_with": begins}
        found.append({**row, "epochs": recipe.epochs})
    return found


def recipes_sheet(rows: Rows) -> Sheet:
    """Recipes and what they are for."""
    columns = [
        Column("recipe"),
        Column("what it is for", least=24),
        Column("model", rank=1),
        Column("begins with", least=10, rank=2),
        Column("epochs", number=True),
    ]
    cells = [[str(value) for value in row.values()] for row in rows]
    caption = "tmbench train --recipe NAME; --model gives another model, --set KEY=VALUE changes the rest"
    return Sheet("", columns, cells, range(len(cells)), caption)


LISTINGS = {
    "methods": Listing(method_rows, methods_sheet),
    "models": Listing(model_rows, models_sheet),
    "datasets": Listing(dataset_rows, datasets_sheet),
    "experiments": Listing(experiment_rows, experiments_sheet),
    "recipes": Listing(recipe_rows, recipes_sheet),
}


def flops_rows(experiment: Experiment, model: str) -> Rows:
    """Token schedules and MACs of one model, counted by fvcore on the attached model and checked by the closed form.

    A row for the unreduced model and for each method at each budget, with the columns of results.csv of these names.
    """
    network = build_model(model).eval()
    solver = Solver(network)
    whole = solver.unreduced.total
    none = {"model": model, "method": UNREDUCED, "options": None, "budget": "1", "knob": None}
    tokens = _tokens(solver.unreduced_schedule.mlp_tokens())
    counted = {"gflops": whole / 1e9, "gflops_reducer": 0.0, "reduction": 0.0, "tokens_per_block": tokens}
    rows: Rows = [{**none, **counted, "status": "ok", "reason": None}]
    for spec in experiment.all_methods():
        for budget in experiment.all_budgets():
            row = {"model": model, "method": spec.name, "options": spec.changed or None, "budget": budget.recorded}
            try:
                found = solver.solve(spec, budget)
            except Unreachable as error:
                blank = dict.fromkeys(("knob", *counted))
                rows.append({**row, **blank, "status": "unreachable", "reason": str(error)})
                continue
            macs = count(reduce_with(network, spec, found))
            rows.append(
                {
                    **row,
                    "knob": found.knob,
                    "gflops": macs.total / 1e9,
                    "gflops_reducer": macs.reducer / 1e9,
                    "reduction": 1 - macs.total / whole,
                    "tokens_per_block": _tokens(found.schedule.mlp_tokens()),
                    "status": "ok",
                    "reason": None,
                }
            )
    return rows


def flops_sheet(rows: Rows) -> Sheet:
    """The FLOPs of one model."""
    columns = [
        Column("method", least=14),
        Column("budget"),
        Column("setting", rank=1),
        Column("tokens leaving each block", least=14),
        Column("GFLOPs", number=True),
        Column("reducer", number=True, rank=2),
        Column("saved", number=True),
    ]
    cells, starts = [], []
    for number, row in enumerate(rows):
        name = "unreduced" if row["method"] == UNREDUCED else label(row["method"], row["options"])
        if number and (row["method"], row["options"]) != (rows[number - 1]["method"], rows[number - 1]["options"]):
            starts.append(number)
        cells.append([name, *_flops_cells(row)])
    return Sheet(f"{rows[0]['model']}, GFLOPs of one image", columns, cells, starts)


def _flops_cells(row: dict[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [row["budget"], row["status"], row["reason"], "", "", ""]
    tokens = short_knob("=" + row["tokens_per_block"].replace(" ", "/"))[1:].replace("/", " ")
    if row["method"] == UNREDUCED:
        return ["", "", tokens, f"{row['gflops']:.4f}", "", ""]
    gflops, reducer = f"{row['gflops']:.4f}", f"{row['gflops_reducer']:.4f}"
    return [row["budget"], short_knob(row["knob"]), tokens, gflops, reducer, f"{100 * row['reduction']:.1f} %"]


def _tokens(counts: list[int]) -> str:
    return " ".join(map(str, counts))
