"""The command line: `tmbench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Compare ways of reducing Vision Transformer tokens at equal FLOPs."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (demo) or a TOML file.")],
    data: Annotated[str, typer.Option(help="Folder with the training images.")],
    out: Annotated[Path, typer.Option(help="New folder for weights, learning curve and card.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: KEY=VALUE.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 0,
) -> None:
    """Train a model; the embedded one was made by `tmbench train demo`."""
    import torch

    from tokenmerge_bench.train import open_training_set, read_recipe
    from tokenmerge_bench.train import train as run

    chosen = read_recipe(recipe, change or [])
    card = run(chosen, open_training_set(data), out, torch.device(device), workers)
    typer.echo(f"weights, curve.csv and card.json are in {out}")
    del card


def main() -> None:
    """Runs the command line; wrong input ends with one sentence on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(f"tmbench: {error}", err=True)
        sys.exit(2)
