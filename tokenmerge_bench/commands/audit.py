"""`tmbench audit`: the DHTM paper checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.commands.sweep import run_experiment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import COMPARED, Comparison, Folders, Images, Json, Running, given_flags, option


def audit(
    images: Images,
    running: Running,
    results: Folders = None,
    models: Annotated[
        str | None,
        option("timm models to run the ablations on, comma-separated.", "MODELS", COMPARED, completion.models),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the DHTM paper: its FLOPs under every reading, its arithmetic, and the losses of ablations it leaves open.

    Takes results folders of the experiments `placement` and `averaging_attention`, or runs both on --models and
    --dataset into --out first. Folders of the same images at several --crop-pct are averaged too. Writes
    reproduction.md, its tables and figures to --out (by default audit/).
    """
    from tokenmerge_bench.audit import audit as check
    from tokenmerge_bench.audit import write
    from tokenmerge_bench.json_output import write_json
    from tokenmerge_bench.results import open_results

    out = running.out or Path("audit")
    folders, failed = list(results or []), False
    if models is not None:
        for name in ("placement", "averaging_attention"):
            folders.append(out / name)
            within = replace(running, out=folders[-1])
            ran = run_experiment(name, Comparison(models=models), images, within, None, quiet=as_json)
            failed |= bool(ran.sweep.failures)
    elif unused := [flag for flag in given_flags(images, running) if flag != "--out"]:
        raise InputError(f"{unused[0]} is for running the ablations; name their models with --models, or leave it out.")
    opened = [open_results([folder]) for folder in folders]  # each its own: the audit keeps views apart
    files = write(check(opened), out, opened)
    if as_json:
        write_json({"files": files})
    else:
        for path in files:
            typer.echo(f"audit   {path}")
    if failed:
        raise typer.Exit(1)
