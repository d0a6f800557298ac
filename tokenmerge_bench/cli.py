"""The command line: `tmbench`."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmerge_bench.errors import CountingError, InputError
from tokenmerge_bench.flags import (
    Comparison,
    Folders,
    Images,
    Plugins,
    Running,
    Training,
    given_flags,
    split_list,
    split_numbers,
    with_flags,
)

if TYPE_CHECKING:
    from tokenmerge_bench.experiment import Experiment

UsageError: Any = typer.BadParameter.__base__
"""Every complaint about flags and arguments: click's class, of which newer versions of typer have a copy."""
PAPER_MODELS = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"]

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Listing(str, Enum):
    """What `tmbench list` can list."""

    methods = "methods"
    models = "models"
    datasets = "datasets"
    experiments = "experiments"
    recipes = "recipes"


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
@with_flags
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
    if _run_experiment(experiment, comparison, images, running, plugin):
        raise typer.Exit(1)


@app.command()
@with_flags
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
    if _run_experiment(experiment, comparison, images, running, plugin):
        raise typer.Exit(1)


def _run_experiment(
    name: str, comparison: Comparison, images: Images, running: Running, plugins: list[Path] | None
) -> bool:
    """Runs an experiment, shows what came of it, and says whether any point failed."""
    _load_plugins(plugins)
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
    console = _stdout()
    for model in dict.fromkeys(result.table["model"]):
        console.print(results_table(result.table, model))
    for line in reasons(result.table):
        errors.print(f"tmbench: {line}", markup=False, highlight=False, soft_wrap=True)
    if (result.table["status"] == "ok").any():
        typer.echo(f"table   {result.path / 'results.csv'}")
        _tell(*make(open_results([result.path]), experiment.shows, result.path))
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


@app.command()
def figures(
    results: Folders = None,
    only: Annotated[
        str | None, typer.Option(help="Figures, comma-separated; by default all that can be drawn.")
    ] = None,
    formats: Annotated[str, typer.Option(help="png, svg, pdf, comma-separated.")] = "png,svg,pdf",
    out: Annotated[Path | None, typer.Option(help="Where to write; by default the first results folder.")] = None,
) -> None:
    """Draw figures from results folders or profiles; no model and no images needed.

    [bold]tmbench figures results/table1[/bold]
    [bold]tmbench figures results/tiny results/small --only fig4 --formats pdf --out paper/[/bold]
    [bold]tmbench figures results/speed[/bold]
    """
    from tokenmerge_bench.figures import PROFILE_FIGURES
    from tokenmerge_bench.products import FORMATS, check_names, figure_names
    from tokenmerge_bench.profiles import is_profile

    wanted, forms = split_list(only, "--only"), split_list(formats, "--formats")
    check_names(wanted or [], [*figure_names(), *PROFILE_FIGURES], "figure")
    profiles = [folder for folder in results or [] if is_profile(folder)]
    if not profiles:
        if alone := [name for name in wanted or [] if name in PROFILE_FIGURES]:
            raise InputError(f"{alone[0]} is drawn from profiles; name a folder that `tmbench profile` wrote.")
        _products("figure", results, only, figure_names(), out, forms)
        return
    if len(profiles) < len(results or []):
        raise InputError(f"'{profiles[0]}' is a profile, and others are not; draw them one after the other.")
    if others := [name for name in wanted or [] if name not in PROFILE_FIGURES]:
        raise InputError(
            f"{others[0]} is drawn from a sweep, and '{profiles[0]}' is a profile; leave it out of --only."
        )
    check_names(forms or [], FORMATS, "format")
    paths, reasons = _speed(profiles, out or profiles[0], forms)
    _tell(paths, reasons)
    if reasons:
        raise typer.Exit(2)


@app.command()
def tables(
    results: Folders = None,
    only: Annotated[str | None, typer.Option(help="Tables, comma-separated; by default all that can be made.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default the first results folder.")] = None,
) -> None:
    """Make tables from results folders as Markdown, CSV and LaTeX, published numbers beside measured ones.

    [bold]tmbench tables results/table1[/bold]
    """
    from tokenmerge_bench.products import table_names

    _products("table", results, only, table_names(), out)


def _products(
    what: str,
    folders: list[Path] | None,
    only: str | None,
    known: list[str],
    out: Path | None,
    formats: list[str] | None = None,
) -> None:
    """Makes what was asked for, or all that can be made; what was asked for by name must be possible."""
    from tokenmerge_bench.products import FORMATS, WITHOUT_RESULTS, check_names, make
    from tokenmerge_bench.results import open_results

    wanted = split_list(only, "--only")
    check_names(wanted or [], known, what)
    check_names(formats or [], FORMATS, "format")
    if not folders and not (wanted and set(wanted) <= set(WITHOUT_RESULTS)):
        raise InputError("no results folder was given; name one that `tmbench sweep` or `tmbench run` wrote.")
    target = out or next(iter(folders or []), None)
    if target is None:
        raise InputError(f"{only} needs no results but a folder to write to; name one with --out.")
    paths, reasons = make(open_results(folders) if folders else None, wanted or known, target, formats or FORMATS)
    _tell(paths, reasons)
    if reasons and (wanted or not paths):
        raise typer.Exit(2)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A method with its options, as in the tables, or `none` (unreduced).")],
    b: Annotated[str, typer.Argument(help="What it is compared with.")],
    results: Folders = None,
    at: Annotated[str | None, typer.Option(help="Fractions of the unreduced FLOPs to interpolate both at.")] = None,
    unequal: Annotated[bool, typer.Option("--unequal", help="Compare budgets more than 1 % apart too.")] = False,
) -> None:
    """Decide between two methods, image by image: difference, interval, p-value, and images needed.

    [bold]tmbench compare dhtm tome results/demo[/bold]
    """
    from tokenmerge_bench.compare import compare as decide
    from tokenmerge_bench.display import comparison_tables
    from tokenmerge_bench.results import open_results

    found = decide(open_results(results or []), a, b, unequal=unequal, at=split_numbers(at, "--at"))
    console = _stdout()
    for table in comparison_tables(found):
        console.print(table)
    for sentence in found.left_out:
        sys.stderr.write(f"tmbench: left out: {sentence}\n")


@app.command()
@with_flags
def audit(
    images: Images,
    running: Running,
    results: Folders = None,
    models: Annotated[str | None, typer.Option(help="timm models to run the ablations on, comma-separated.")] = None,
) -> None:
    """Check the DHTM paper: its FLOPs under every reading, its arithmetic, and the losses of ablations it leaves open.

    Takes results folders of the experiments `placement` and `averaging_attention`, or runs both on --models and
    --dataset into --out first. Folders of the same images at several --crop-pct are averaged too. Writes
    reproduction.md, its tables and figures to --out (by default audit/).

    [bold]tmbench audit[/bold]
    [bold]tmbench audit results/placement results/averaging_attention[/bold]
    [bold]tmbench audit --models deit_tiny_patch16_224 --dataset imagenet/val --device cuda --out audit/tiny[/bold]
    """
    from tokenmerge_bench.audit import audit as check
    from tokenmerge_bench.audit import write
    from tokenmerge_bench.results import open_results

    out = running.out or Path("audit")
    folders, failed = list(results or []), False
    if models is not None:
        for name in ("placement", "averaging_attention"):
            folders.append(out / name)
            within = replace(running, out=folders[-1])
            failed |= _run_experiment(name, Comparison(models=models), images, within, None)
    elif unused := [flag for flag in given_flags(images, running) if flag != "--out"]:
        raise InputError(f"{unused[0]} is for running the ablations; name their models with --models, or leave it out.")
    opened = [open_results([folder]) for folder in folders]  # each its own: the audit keeps views apart
    for path in write(check(opened), out, opened):
        typer.echo(f"audit   {path}")
    if failed:
        raise typer.Exit(1)


@app.command()
@with_flags
def profile(
    comparison: Comparison,
    batch_sizes: Annotated[
        str, typer.Option(help="Images per batch, comma-separated; max: as many as still raise the throughput.")
    ] = "1,8,32",
    dtypes: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64; the whole model is cast, without autocast.")
    ] = "float32",
    modes: Annotated[
        str, typer.Option(help="eager, compile (torch.compile), graph (a CUDA graph), compile-graph, comma-separated.")
    ] = "eager",
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights: FILE, or MODEL=FILE. Without, all models but the embedded one get random ones: times do not "
            "depend on the values of weights, unless a method's choices take longer on some images than on others."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seconds: Annotated[
        float, typer.Option(help="Samples per batch size, precision and mode: seconds, all methods together.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the images, of the order, and of methods that draw numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; by default a new one under results/.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what an earlier profile left in the folder.")] = False,
    plugin: Plugins = None,
) -> None:
    """Time methods against the unreduced model; needs neither images nor weights.

    Throughput, latency, peak memory and the share of time above a free drop of tokens, all rivals in turn in shuffled
    order. Without arguments, the embedded model on the CPU at 0.7 of the FLOPs. Interrupted, the same command goes on.

    [bold]tmbench profile --models deit_small_patch16_224 --methods dhtm,tome,random --budgets 0.7
    --batch-sizes 1,32,256,max --dtypes bfloat16 --modes eager,compile,graph --device cuda --out results/speed[/bold]
    """
    _load_plugins(plugin)
    from tokenmerge_bench.display import errors, reasons
    from tokenmerge_bench.experiment import WAYS, load_experiment
    from tokenmerge_bench.profile_display import profile_reporter, profile_tables
    from tokenmerge_bench.profiling import run_profile

    chosen = {**comparison.overrides(), "seed": seed}
    if all(chosen[way] is None for way in WAYS):
        chosen["budgets"] = [0.7]
    experiment = load_experiment("demo", **chosen)
    own, checkpoints = Running(weights=weights).given_weights(experiment.models)
    if checkpoints:
        raise InputError(
            f"checkpoint '{checkpoints[0].name}' was trained for {checkpoints[0].described}, and times do not depend "
            "on the weights of methods; leave it out."
        )
    with profile_reporter() as told:
        try:
            result = run_profile(
                experiment,
                batch_sizes=split_list(batch_sizes, "--batch-sizes") or [],
                dtypes=split_list(dtypes, "--dtypes") or [],
                modes=split_list(modes, "--modes") or [],
                weights=own,
                device=device,
                seconds=seconds,
                out=out,
                fresh=fresh,
                reporter=told,
            )
        except KeyboardInterrupt:
            told.note("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
    console = _stdout()
    for table in profile_tables(result.table):
        console.print(table)
    for line in reasons(result.table):
        errors.print(f"tmbench: {line}", markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"table   {result.path / 'profile.csv'}")
    _tell(*_speed([result.path], result.path))
    if result.failed:
        raise typer.Exit(1)


def _speed(folders: list[Path], target: Path, formats: list[str] | None = None) -> tuple[list[Path], dict[str, str]]:
    """Draws what profiles show: the files, and why there are none."""
    from tokenmerge_bench.figures import PROFILE_FIGURES, save
    from tokenmerge_bench.products import FORMATS
    from tokenmerge_bench.profiles import open_profiles

    profile, paths, reasons = open_profiles(folders), [], {}
    for name, figure in PROFILE_FIGURES.items():
        reason = figure.obstacle(profile)
        if reason is None:
            paths += save(figure.draw(profile), target, name, formats or FORMATS)
        else:
            reasons[name] = reason
    return paths, reasons


@app.command()
@with_flags
def flops(
    comparison: Comparison,
    plugin: Plugins = None,
) -> None:
    """Show token schedules and FLOPs; needs neither weights nor images.

    [bold]tmbench flops --models deit_small_patch16_224 --methods dhtm,random --k 0,40,48[/bold]
    """
    _load_plugins(plugin)
    from tokenmerge_bench.experiment import load_experiment
    from tokenmerge_bench.listings import flops_table

    chosen = comparison.overrides()
    experiment = load_experiment("demo", **{**chosen, "models": chosen["models"] or PAPER_MODELS})
    console = _stdout()
    for model in experiment.models:
        console.print(flops_table(experiment, model))


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], plugin: Plugins = None) -> None:
    """List methods with their options, models, data sets, experiments or training recipes."""
    _load_plugins(plugin)
    from tokenmerge_bench import listings

    tables = {
        Listing.methods: listings.methods_table,
        Listing.models: listings.models_table,
        Listing.datasets: listings.datasets_table,
        Listing.experiments: listings.experiments_table,
        Listing.recipes: listings.recipes_table,
    }
    _stdout().print(tables[what]())


@app.command()
@with_flags
def train(
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a TOML file; see `list recipes`.")],
    dataset: Annotated[str, typer.Option(help="Folder with the training images: train/CLASS/, or Fashion-MNIST.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and its learning curve; new, or interrupted.")],
    training: Training,
    change: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: KEY=VALUE.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to begin with; by default those of the package or the hub.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; under torchrun cuda takes a GPU each.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that decode images, for each process that trains.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what an earlier run left in the folder.")] = False,
    plugin: Plugins = None,
) -> None:
    """Train a model with a method attached at a budget, or unreduced; `sweep --weights FOLDER` evaluates it.

    Interrupted at any moment, the same command goes on after the last finished epoch. Several GPUs: the same command
    under torchrun.

    [bold]tmbench train --recipe demo_finetune --method sit --budget 0.7 --dataset fashion_mnist --out runs/sit[/bold]
    [bold]torchrun --nproc-per-node 8 -m tokenmerge_bench train --model deit_small_patch16_224 --method sit --budget 0.7
    --dataset /imagenet --recipe tokenreduction_30ep --device cuda --workers 12 --out runs/sit-small[/bold]
    """
    _load_plugins(plugin)
    from tokenmerge_bench.distributed import open_team
    from tokenmerge_bench.figures import curve
    from tokenmerge_bench.recipe import read_recipe
    from tokenmerge_bench.train import CURVE, Task
    from tokenmerge_bench.train import train as run
    from tokenmerge_bench.training_images import open_training_set

    task = Task(read_recipe(recipe, [*training.changes(), *(change or [])]), *training.method_at_budget(), weights)
    if workers < 0:
        raise InputError(f"--workers {workers} is negative; give 0 to decode images in this process, or more.")
    images = open_training_set(dataset)
    team = open_team(device)
    try:
        card = run(task, images, out, team, workers=workers, fresh=fresh)
    except KeyboardInterrupt:
        if team.leads:
            sys.stderr.write("tmbench: interrupted; the same command goes on after the last finished epoch\n")
        raise typer.Exit(130) from None
    finally:
        team.close()
    if team.leads:
        typer.echo(f"weights {out / 'weights.safetensors'} ({card.weights}; card.json says how they came)")
        _tell(curve.save(out / CURVE), {})


def main() -> None:
    """Runs the command line; wrong input ends with one sentence on stderr and exit code 2."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="tmbench", standalone_mode=False))
    except typer.Abort:  # older versions of typer make one of a Ctrl-C
        sys.exit(130)
    except UsageError as error:
        sys.stderr.write(f"tmbench: {_usage(error)}\n")
        sys.exit(2)
    except (InputError, CountingError) as error:
        sys.stderr.write(f"tmbench: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; make room and give the same command again, finished work is kept."
        else:
            what = f"'{error.filename}'" if error.filename else "a file"
            remedy = (
                f"{what} cannot be read or written ({error.strerror or error}); check the path and its permissions."
            )
        sys.stderr.write(f"tmbench: {remedy}\n")
        sys.exit(2)


def _usage(error: Any) -> str:
    """What is wrong with flags or arguments, in one sentence."""
    message = " ".join(error.format_message().split()).removesuffix(".")
    command = error.ctx.command_path if error.ctx else "tmbench"
    return f"{message} (`{command} --help` shows how)."


def _stdout() -> Any:
    from rich.console import Console

    # A pipe has no width of its own; tables are then as wide as they need.
    return Console() if sys.stdout.isatty() else Console(width=250)


def _tell(paths: list[Path], reasons: dict[str, str]) -> None:
    """Where the products are, and why others could not be made."""
    kinds: dict[Path, list[str]] = {}
    for path in paths:
        kinds.setdefault(path.with_suffix(""), []).append(path.suffix[1:])
    for stem, suffixes in kinds.items():
        what = "table  " if "csv" in suffixes else "figure "
        typer.echo(f"{what} {stem}.{suffixes[0]}" + (f" (also {', '.join(suffixes[1:])})" if suffixes[1:] else ""))
    for reason in reasons.values():
        sys.stderr.write(f"tmbench: {reason}\n")


def _load_plugins(paths: list[Path] | None) -> None:
    from tokenmerge_bench.registry import load_plugin

    for path in paths or []:
        load_plugin(path)
