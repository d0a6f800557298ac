"""The command line: `tmbench`."""

from __future__ import annotations

import errno
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmerge_bench.errors import CountingError, InputError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Methods = Annotated[
    str | None,
    typer.Option(help="Methods, comma-separated, with options: dhtm,tome or dhtm:connectivity=4:averaging=plain."),
]
Models = Annotated[str | None, typer.Option(help="timm models, comma-separated.")]
Budgets = Annotated[str | None, typer.Option(help="Fractions of the unreduced FLOPs to keep: 0.9,0.7,0.5.")]
Gflops = Annotated[str | None, typer.Option(help="Absolute budgets in GFLOPs per image: 3.26,2.9.")]
K = Annotated[str | None, typer.Option("--k", help="Merges per layer (dhtm, lotm, random): 0,10,20 or 41/41/40.")]
R = Annotated[str | None, typer.Option("--r", help="Tokens removed per block (tome): 8,13.")]
KeepRate = Annotated[str | None, typer.Option(help="Keep rate per stage (dpc_knn, k_medoids): 0.9,0.7.")]
Layers = Annotated[str | None, typer.Option(help="Blocks that reduce, from 0: 3/6/10 or all.")]
ExperimentOption = Annotated[
    str, typer.Option("--experiment", help="A shipped experiment or a TOML file; the other flags override it.")
]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file with a method of your own.")]


class Listing(str, Enum):
    """What `tmbench list` can list."""

    methods = "methods"
    models = "models"
    datasets = "datasets"
    experiments = "experiments"


def _version(wanted: bool) -> bool:
    if wanted:
        from tokenmerge_bench.provenance import version

        typer.echo(f"tokenmerge-bench {version()}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Which way of reducing Vision Transformer tokens keeps the most accuracy at the same FLOPs?

    FLOPs are multiply-accumulates per image, as fvcore counts and as the papers print.

    [bold]tmbench sweep[/bold]  runs the embedded benchmark, no download needed
    [bold]tmbench sweep --methods dhtm,tome,random --budgets 0.8,0.6[/bold]
    [bold]tmbench flops --models deit_small_patch16_224 --methods dhtm --k 0,40[/bold]
    """


@app.command()
def sweep(
    experiment_: ExperimentOption = "demo",
    methods: Methods = None,
    models: Models = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Weights: FILE, or MODEL=FILE for one of several models. Repeatable.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="'demo', or a folder of ImageNet class folders (WordNet ids).")
    ] = None,
    budgets: Budgets = None,
    gflops: Gflops = None,
    k: K = None,
    r: R = None,
    keep_rate: KeepRate = None,
    layers: Layers = None,
    limit: Annotated[
        int | None, typer.Option(help="Images, drawn the same number of each class; 0: all of them.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of every method that draws random numbers.")] = None,
    seed: Annotated[int | None, typer.Option(help="First seed, also of the choice of images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per batch.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Results folder; by default a new one under results/.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what an earlier sweep left in the folder.")] = False,
    plugin: Plugins = None,
) -> None:
    """Evaluate methods over FLOPs budgets; without arguments, the embedded benchmark.

    Interrupted at any moment, the same command goes on where it stopped.

    [bold]tmbench sweep --methods dhtm,tome,random --out results/three[/bold]
    [bold]tmbench sweep --models deit_tiny_patch16_224 --weights deit_tiny.safetensors --dataset imagenet/val
    --methods dhtm,random --k 0,40,56 --limit 5000[/bold]
    """
    _load_plugins(plugin)
    from tokenmerge_bench.display import errors, reasons, reporter, results_table
    from tokenmerge_bench.experiment import load_experiment
    from tokenmerge_bench.figures.accuracy_flops import save
    from tokenmerge_bench.models import DEMO_MODEL
    from tokenmerge_bench.store import read_results
    from tokenmerge_bench.sweep import run_sweep

    if dataset not in (None, "demo") and models is None:
        raise InputError(f"--dataset {dataset} needs to know the model; name one with --models.")
    own_data = dataset not in (None, "demo")
    experiment = load_experiment(
        experiment_,
        methods=_list(methods),
        models=_list(models),
        dataset=dataset,
        budgets=_numbers(budgets, "--budgets"),
        gflops=_numbers(gflops, "--gflops"),
        k=_list(k),
        r=_list(r),
        keep_rate=_list(keep_rate),
        layers=layers,
        seeds=seeds,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
    )
    if limit is not None and limit < 0:
        raise InputError(f"--limit {limit} is negative; give a number of images, or 0 for all of them.")
    # The embedded benchmark evaluates a subset by default; somebody's own images are all meant.
    chosen = limit if limit is not None else (None if own_data else experiment.limit)
    experiment = experiment.model_copy(update={"limit": chosen or None})
    files = _weights(weights or [], experiment.models, DEMO_MODEL)
    with reporter() as told:
        try:
            result = run_sweep(
                experiment,
                name=Path(experiment_).stem,
                weights=files,
                device=device,
                out=out,
                fresh=fresh,
                workers=workers,
                reporter=told,
            )
        except KeyboardInterrupt:
            told.note("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
    console = _stdout()
    for model in dict.fromkeys(result.table["model"]):
        console.print(results_table(result.table, model))
    for line in reasons(result.table):
        errors.print(f"tmbench: {line}", markup=False, highlight=False, soft_wrap=True)
    if (result.table["status"] == "ok").any():
        pictures = save(read_results(result.path), result.path)
        typer.echo(f"table   {result.path / 'results.csv'}")
        typer.echo(f"figure  {pictures[0]}")
    if result.failures:
        raise typer.Exit(1)


@app.command()
def flops(
    models: Models = "deit_tiny_patch16_224,deit_small_patch16_224,deit_base_patch16_224",
    methods: Methods = None,
    budgets: Budgets = None,
    gflops: Gflops = None,
    k: K = None,
    r: R = None,
    keep_rate: KeepRate = None,
    layers: Layers = None,
    plugin: Plugins = None,
) -> None:
    """Show token schedules and FLOPs; needs neither weights nor images.

    [bold]tmbench flops --models deit_small_patch16_224 --methods dhtm,random --k 0,40,48[/bold]
    """
    _load_plugins(plugin)
    from tokenmerge_bench.experiment import load_experiment
    from tokenmerge_bench.listings import flops_table

    experiment = load_experiment(
        "demo",
        methods=_list(methods),
        models=_list(models),
        budgets=_numbers(budgets, "--budgets"),
        gflops=_numbers(gflops, "--gflops"),
        k=_list(k),
        r=_list(r),
        keep_rate=_list(keep_rate),
        layers=layers,
    )
    console = _stdout()
    for model in experiment.models:
        console.print(flops_table(experiment, model))


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], plugin: Plugins = None) -> None:
    """List methods with their options, models, data sets or experiments."""
    _load_plugins(plugin)
    from tokenmerge_bench import listings

    tables = {
        Listing.methods: listings.methods_table,
        Listing.models: listings.models_table,
        Listing.datasets: listings.datasets_table,
        Listing.experiments: listings.experiments_table,
    }
    _stdout().print(tables[what]())


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (demo) or a TOML file.")],
    data: Annotated[str, typer.Option(help="Folder with the training images.")],
    out: Annotated[Path, typer.Option(help="New folder for weights, learning curve and card.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: KEY=VALUE.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 0,
) -> None:
    """Train a model; the embedded one was made by [bold]tmbench train demo[/bold]."""
    from tokenmerge_bench.engine import open_device
    from tokenmerge_bench.train import open_training_set, read_recipe
    from tokenmerge_bench.train import train as run

    run(read_recipe(recipe, change or []), open_training_set(data), out, open_device(device), workers)
    typer.echo(f"weights.safetensors, curve.csv and card.json are in {out}")


def main() -> None:
    """Runs the command line; wrong input ends with one sentence on stderr and exit code 2."""
    try:
        app()
    except (InputError, CountingError) as error:
        sys.stderr.write(f"tmbench: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; make room and give the same command again, finished work is kept."
        else:
            remedy = f"'{error.filename}': {error.strerror or error}; check that it exists and may be used."
        sys.stderr.write(f"tmbench: {remedy}\n")
        sys.exit(2)


def _stdout() -> Any:
    from rich.console import Console

    # A pipe has no width of its own; tables are then as wide as they need.
    return Console() if sys.stdout.isatty() else Console(width=200)


def _list(text: str | None) -> list[str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError("an empty list was given; leave the flag out or give comma-separated values.")
    return parts


def _numbers(text: str | None, flag: str) -> list[float] | None:
    parts = _list(text)
    if parts is None:
        return None
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise InputError(f"{flag} '{text}' are no numbers; write for instance {flag} 0.9,0.7.") from None


def _weights(given: list[str], models: list[str], demo_model: str) -> dict[str, Path]:
    """Weight files by model name, from FILE or MODEL=FILE."""
    files: dict[str, Path] = {}
    for text in given:
        model, sign, file = text.partition("=")
        if not sign or (model not in models and Path(text).is_file()):  # a path may have an = in it
            if len(models) > 1:
                raise InputError(f"--weights {text} does not say for which model; write --weights MODEL={text}.")
            model, file = models[0], text
        if model not in models:
            raise InputError(f"--weights {text} names '{model}', which is not among the models ({', '.join(models)}).")
        if model in files:
            raise InputError(f"--weights names two files for '{model}', {files[model]} and {file}; give one.")
        files[model] = Path(file)
    return files


def _load_plugins(paths: list[Path] | None) -> None:
    from tokenmerge_bench.registry import load_plugin

    for path in paths or []:
        load_plugin(path)
