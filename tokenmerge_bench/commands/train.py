"""`tmbench train`: a model with a method attached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench.commands.shared import load_plugins, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import Plugins, Training


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
    load_plugins(plugin)
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
        tell(curve.save(out / CURVE), {})
