"""`tmbench sweep` and `tmbench run`: from an experiment and flags to results."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.commands.shared import complain, interruptible, load_plugins, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import COMPARED, Comparison, Images, Json, Plugins, Running, option
from tokenmerge_bench.terminal import stdout

if TYPE_CHECKING:
    from tokenmerge_bench.experiment import Experiment
    from tokenmerge_bench.sweep import SweepResult


def sweep(
    comparison: Comparison,
    images: Images,
    running: Running,
    experiment: Annotated[
        str,
        option(
            "A shipped experiment or a TOML file, which the other flags override. The default: six methods at 0.7, 0.5 "
            "and 0.4 of the FLOPs, 400 images, 3 seeds.",
            "NAME",
            COMPARED,
            completion.experiment,
        ),
    ] = "demo",
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Evaluate methods over FLOPs budgets; without arguments, the embedded benchmark.

    Interrupted at any moment, the same command goes on where it stopped.
    """
    ran = run_experiment(experiment, comparison, images, running, plugin, as_json)
    _end(ran, as_json)


def run(
    experiment: Annotated[
        str,
        typer.Argument(
            help="A shipped experiment (`list experiments`) or a TOML file.",
            metavar="EXPERIMENT",
            autocompletion=completion.experiment,
        ),
    ],
    comparison: Comparison,
    images: Images,
    running: Running,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run an experiment, such as a table or a figure of the DHTM paper; flags override what its file says."""
    ran = run_experiment(experiment, comparison, images, running, plugin, as_json)
    _end(ran, as_json)


@dataclass(frozen=True, eq=False)
class Ran:
    """What came of an experiment: the sweep, the files made of it, and why others could not be made."""

    sweep: SweepResult
    files: list[Path]
    left_out: dict[str, str]


def run_experiment(
    name: str, comparison: Comparison, images: Images, running: Running, plugins: list[Path] | None, quiet: bool
) -> Ran:
    """Runs an experiment and shows what came of it, unless stdout is to be kept `quiet`."""
    load_plugins(plugins)
    from tokenmerge_bench.display import reasons, results_sheet
    from tokenmerge_bench.live import reporter
    from tokenmerge_bench.products import check_names, figure_names, make, table_names
    from tokenmerge_bench.results import open_results
    from tokenmerge_bench.sweep import run_sweep

    experiment = _experiment(name, comparison, images, running)
    check_names(experiment.shows, [*table_names(), *figure_names()], "table or figure")
    own, checkpoints = running.given_weights(experiment.models)
    with reporter() as told, interruptible(told.note):
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
    for model in dict.fromkeys(result.table["model"]) if not quiet else ():
        stdout().print(results_sheet(result.table, model))
    complain(reasons(result.table))
    ran = Ran(result, [result.path / "results.csv"], {})
    if (result.table["status"] == "ok").any():
        paths, left_out = make(open_results([result.path]), experiment.shows, result.path)
        ran = Ran(result, [*ran.files, *paths], left_out)
        if not quiet:
            typer.echo(f"table   {ran.files[0]}")
            tell(paths, {})
            typer.echo(f"next    {shlex.join(['tmbench', 'report', str(result.path), '-o', 'report.html'])}")
        complain(left_out.values())
    return ran


def _end(ran: Ran, as_json: bool) -> None:
    """The JSON document where it is asked for, and the exit code 1 if any point failed."""
    if as_json:
        from tokenmerge_bench.json_output import write_json

        results = ran.sweep.table
        document = {"folder": ran.sweep.path, "results": results, "files": ran.files, "left_out": ran.left_out}
        write_json(document)
    if ran.sweep.failures:
        raise typer.Exit(1)


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
    images.refuse_negative_limit()
    # The file's limit is meant for its own images, or for any if it names none; of somebody's own images all are meant,
    # and of the embedded benchmark, where it takes the place of others, a subset.
    own_limit = experiment.limit if meant in (None, experiment.dataset) else None
    usual = demo.limit if overrides["dataset"] == demo.dataset != meant else None
    limit = images.limit if images.limit is not None else own_limit or usual
    return experiment.model_copy(update={"limit": limit or None})
