"""`tmbench profile`: methods timed against the unreduced model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.commands.products import speed
from tokenmerge_bench.commands.shared import complain, interruptible, load_plugins, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import (
    OUTPUT,
    RUNNING,
    WEIGHTS,
    Comparison,
    Json,
    Plugins,
    Running,
    option,
    split_list,
    switch,
)
from tokenmerge_bench.terminal import stdout


def profile(
    comparison: Comparison,
    batch_sizes: Annotated[
        str,
        option("Images per batch, comma-separated; max: as many as still raise the throughput.", "NUMBERS", RUNNING),
    ] = "1,8,32",
    dtypes: Annotated[
        str,
        option(
            "float32, bfloat16, float16, float64; the whole model is cast, without autocast.",
            "DTYPES",
            RUNNING,
            completion.dtypes,
        ),
    ] = "float32",
    modes: Annotated[
        str,
        option(
            "eager, compile (torch.compile), graph (a CUDA graph), compile-graph, comma-separated.",
            "MODES",
            RUNNING,
            completion.modes,
        ),
    ] = "eager",
    weights: Annotated[
        list[str] | None,
        option(
            "FILE, or MODEL=FILE. Without, all models but the embedded one get random ones: times do not depend on the "
            "values of weights, unless a method's choices take longer on some images than on others. Repeatable.",
            "[MODEL=]FILE",
            WEIGHTS,
        ),
    ] = None,
    device: Annotated[str, option("cpu, cuda or cuda:N.", "DEVICE", RUNNING, completion.device)] = "cpu",
    seconds: Annotated[
        float, option("Samples per batch size, precision and mode: seconds, all methods together.", "SECONDS", RUNNING)
    ] = 10.0,
    seed: Annotated[int, option("Of the images, of the order, and of methods that draw numbers.", "N", RUNNING)] = 0,
    out: Annotated[Path | None, option("Folder; by default a new one under results/.", "FOLDER", OUTPUT)] = None,
    fresh: Annotated[bool, switch("--fresh", "Replace what an earlier profile left in the folder.", OUTPUT)] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Time methods against the unreduced model; needs neither images nor weights.

    Throughput, latency, peak memory and the share of time above a free drop of tokens, all rivals in turn in shuffled
    order. Without arguments, the embedded model on the CPU at 0.7 of the FLOPs. Interrupted, the same command goes on.
    """
    load_plugins(plugin)
    from tokenmerge_bench.display import reasons
    from tokenmerge_bench.experiment import load_experiment
    from tokenmerge_bench.json_output import write_json
    from tokenmerge_bench.profile_display import profile_reporter, profile_sheets
    from tokenmerge_bench.profiling import run_profile

    experiment = load_experiment("demo", **comparison.overrides_at_a_budget(), seed=seed)
    own, checkpoints = Running(weights=weights).given_weights(experiment.models)
    if checkpoints:
        raise InputError(
            f"checkpoint '{checkpoints[0].name}' was trained for {checkpoints[0].described}, and times do not depend "
            "on the weights of methods; leave it out."
        )
    with profile_reporter() as told, interruptible(told.note):
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
    complain(reasons(result.table))
    for sheet in profile_sheets(result.table) if not as_json else ():
        stdout().print(sheet)
    paths, left_out = speed([result.path], result.path)
    table = result.path / "profile.csv"
    if as_json:
        write_json({"folder": result.path, "results": result.table, "files": [table, *paths], "left_out": left_out})
    else:
        typer.echo(f"table   {table}")
        tell(paths, {})
    complain(left_out.values())
    if result.failed:
        raise typer.Exit(1)
