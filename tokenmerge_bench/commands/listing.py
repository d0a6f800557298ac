"""`tmbench flops` and `tmbench list`: what there is and what it costs, without data."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from tokenmerge_bench.commands.shared import load_plugins
from tokenmerge_bench.flags import Comparison, Json, Plugins
from tokenmerge_bench.terminal import stdout

PAPER_MODELS = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"]


class Listing(str, Enum):
    """What `tmbench list` can list."""

    methods = "methods"
    models = "models"
    datasets = "datasets"
    experiments = "experiments"
    recipes = "recipes"


def flops(comparison: Comparison, plugin: Plugins = None, as_json: Json = False) -> None:
    """Show token schedules and FLOPs; needs neither weights nor images."""
    load_plugins(plugin)
    from tokenmerge_bench.experiment import load_experiment
    from tokenmerge_bench.json_output import write_json
    from tokenmerge_bench.listings import flops_rows, flops_sheet

    chosen = comparison.overrides()
    experiment = load_experiment("demo", **{**chosen, "models": chosen["models"] or PAPER_MODELS})
    found = []
    for model in experiment.models:
        rows = flops_rows(experiment, model)
        found += rows
        if not as_json:
            stdout().print(flops_sheet(rows))
    if as_json:
        write_json({"results": found})


def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")], plugin: Plugins = None, as_json: Json = False
) -> None:
    """List methods with their options, models, data sets, experiments or training recipes."""
    load_plugins(plugin)
    from tokenmerge_bench.json_output import write_json
    from tokenmerge_bench.listings import LISTINGS

    listing = LISTINGS[what.value]
    rows = listing.rows()
    if as_json:
        write_json({what.value: rows})
    else:
        stdout().print(listing.sheet(rows))
