"""`tmbench profile`: methods timed against the unreduced model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench.commands.products import speed
from tokenmerge_bench.commands.shared import load_plugins, stdout, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import Comparison, Plugins, Running, split_list


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
    load_plugins(plugin)
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
    console = stdout()
    for table in profile_tables(result.table):
        console.print(table)
    for line in reasons(result.table):
        errors.print(f"tmbench: {line}", markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"table   {result.path / 'profile.csv'}")
    tell(*speed([result.path], result.path))
    if result.failed:
        raise typer.Exit(1)
