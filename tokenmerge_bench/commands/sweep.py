"""`tmbench sweep` and `tmbench run`: from an experiment and flags to results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmerge_bench.commands.shared import load_plugins, stdout, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import Comparison, Images, Plugins, Running

if TYPE_CHECKING:
    from tokenmerge_bench.experiment import Experiment


def sweep(
    comparison: Comparison,
    images: Images,
    running: Running,
    experiment: Annotated[
        str, typer.Option(help="A shipped experiment or a TOML file; the other flags override it.")
    ] = "demo",
    plugin: Plugins = None,
) -> None:
    """Evaluate methods over FLOPs budgets; without arguments, the embedded benchmark.

    Interrupted at any moment, the same command goes on where it stopped.

    [bold]tmbench sweep --methods dhtm,tome,random --out results/three[/bold]
    [bold]tmbench sweep --models deit_tiny_patch16_224 --weights deit_tiny.safetensors --dataset imagenet/val
    --methods dhtm,random --k 0,40,56 --limit 5000[/bold]
    """
    if run_experiment(experiment, comparison, images, running, plugin):
        raise typer.Exit(1)


def run(
    experiment: Annotated[str, typer.Argument(help="A shipped experiment (`list experiments`) or a TOML file.")],
    comparison: Comparison,
    images: Images,
    running: Running,
    plugin: Plugins = None,
) -> None:
    """Run an experiment, such as a table or a figure of the DHTM paper; flags override what its file says.

    [bold]tmbench run table1 --dataset imagenet/val --device cuda[/bold]
    [bold]tmbench run table2 --dataset demo[/bold]
    """
    if run_experiment(experiment, comparison, images, running, plugin):
        raise typer.Exit(1)


def run_experiment(
    name: str, comparison: Comparison, images: Images, running: Running, plugins: list[Path] | None
) -> bool:
    """Runs an experiment, shows what came of it, and says whether any point failed."""
    load_plugins(plugins)
    from tokenmerge_bench.display import errors, reasons, reporter, results_table
    from tokenmerge_bench.products import check_names, figure_names, make, table_names
    from tokenmerge_bench.results import open_results
    from tokenmerge_bench.sweep import run_sweep

    experiment = _experiment(name, comparison, images, running)
    check_names(experiment.shows, [*table_names(), *figure_names()], "table or figure")
    own, checkpoints = running.given_weights(experiment.models)
    with reporter() as told:
        try:
            result = run_sweep(
                experiment,
                name=Path(name).stem,
                weights=own,
                checkpoints=checkpoints,
                device=running.device,
                out=running.out,
                fresh=running.fresh,
                workers=running.workers,
                compiled=running.compile,
                graphs=running.cuda_graphs,
                reporter=told,
            )
        except KeyboardInterrupt:
            told.note("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
    console = stdout()
    for model in dict.fromkeys(result.table["model"]):
        console.print(results_table(result.table, model))
    for line in reasons(result.table):
        errors.print(f"tmbench: {line}", markup=False, highlight=False, soft_wrap=True)
    if (result.table["status"] == "ok").any():
        typer.echo(f"table   {result.path / 'results.csv'}")
        tell(*make(open_results([result.path]), experiment.shows, result.path))
    return bool(result.failures)


def _experiment(name: str, comparison: Comparison, images: Images, running: Running) -> Experiment:
    """The experiment of a command: the file, then the flags."""
    from tokenmerge_bench.experiment import load_experiment
    from tokenmerge_bench.models import DEMO_MODEL

    overrides = {**comparison.overrides(), **images.overrides(), **running.overrides()}
    demo = load_experiment("demo")
    # The images that the file itself names decide what its models and its limit are for.
    meant = load_experiment(name, **{**overrides, "models": demo.models, "dataset": None}).dataset
    if images.dataset == demo.dataset != meant and overrides["models"] is None:
        overrides["models"] = demo.models
    elif overrides["models"] == [DEMO_MODEL] and images.dataset is None and meant is None:
        overrides["dataset"] = demo.dataset
    experiment = load_experiment(name, **overrides)
    own_data = images.dataset not in (None, demo.dataset)
    if own_data and comparison.models is None and experiment.models == [DEMO_MODEL]:
        raise InputError(f"--dataset {images.dataset} needs to know the model; name one with --models.")
    if images.limit is not None and images.limit < 0:
        raise InputError(f"--limit {images.limit} is negative; give a number of images, or 0 for all of them.")
    # The file's limit is meant for its own images, or for any if it names none; of somebody's own images all are meant,
    # and of the embedded benchmark, where it takes the place of others, a subset.
    own_limit = experiment.limit if meant in (None, experiment.dataset) else None
    usual = demo.limit if overrides["dataset"] == demo.dataset != meant else None
    limit = images.limit if images.limit is not None else own_limit or usual
    return experiment.model_copy(update={"limit": limit or None})
