"""`tmbench flops` and `tmbench list`: what there is and what it costs, without data."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from tokenmerge_bench.commands.shared import load_plugins, stdout
from tokenmerge_bench.flags import Comparison, Plugins

PAPER_MODELS = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"]


class Listing(str, Enum):
    """What `tmbench list` can list."""

    methods = "methods"
    models = "models"
    datasets = "datasets"
    experiments = "experiments"
    recipes = "recipes"


def flops(
    comparison: Comparison,
    plugin: Plugins = None,
) -> None:
    """Show token schedules and FLOPs; needs neither weights nor images.

    [bold]tmbench flops --models deit_small_patch16_224 --methods dhtm,random --k 0,40,48[/bold]
    """
    load_plugins(plugin)
    from tokenmerge_bench.experiment import load_experiment
    from tokenmerge_bench.listings import flops_table

    chosen = comparison.overrides()
    experiment = load_experiment("demo", **{**chosen, "models": chosen["models"] or PAPER_MODELS})
    console = stdout()
    for model in experiment.models:
        console.print(flops_table(experiment, model))


def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], plugin: Plugins = None) -> None:
    """List methods with their options, models, data sets, experiments or training recipes."""
    load_plugins(plugin)
    from tokenmerge_bench import listings

    tables = {
        Listing.methods: listings.methods_table,
        Listing.models: listings.models_table,
        Listing.datasets: listings.datasets_table,
        Listing.experiments: listings.experiments_table,
        Listing.recipes: listings.recipes_table,
    }
    stdout().print(tables[what]())
