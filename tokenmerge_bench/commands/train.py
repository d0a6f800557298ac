"""`tmbench train`: a model with a method attached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.commands.shared import load_plugins, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import IMAGES, OUTPUT, RUNNING, TRAINED, Json, Plugins, Training, option, switch
from tokenmerge_bench.terminal import say


def train(
    recipe: Annotated[
        str, option("A shipped recipe or a TOML file; see `list recipes`.", "RECIPE", TRAINED, completion.recipe)
    ],
    dataset: Annotated[
        str,
        option(
            "Folder with the training images: train/CLASS/, or Fashion-MNIST.", "FOLDER", IMAGES, completion.dataset
        ),
    ],
    out: Annotated[
        Path, option("Folder for the checkpoint and its learning curve; new, or interrupted.", "FOLDER", OUTPUT)
    ],
    training: Training,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe key. Repeatable.", metavar="KEY=VALUE", rich_help_panel=TRAINED),
    ] = None,
    weights: Annotated[
        Path | None,
        option("Weights to begin with; by default those of the package or the hub.", "FILE", TRAINED),
    ] = None,
    device: Annotated[
        str, option("cpu, cuda or cuda:N; under torchrun cuda takes a GPU each.", "DEVICE", RUNNING, completion.device)
    ] = "cpu",
    workers: Annotated[int, option("Processes that decode images, for each process that trains.", "N", RUNNING)] = 0,
    fresh: Annotated[bool, switch("--fresh", "Replace what an earlier run left in the folder.", OUTPUT)] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Train a model with a method attached at a budget, or unreduced; `sweep --weights FOLDER` evaluates it.

    Interrupted at any moment, the same command goes on after the last finished epoch. Several GPUs: the same command
    under torchrun.
    """
    load_plugins(plugin)
    from tokenmerge_bench.distributed import open_team
    from tokenmerge_bench.figures import curve
    from tokenmerge_bench.json_output import write_json
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
            say("interrupted; the same command goes on after the last finished epoch")
        raise typer.Exit(130) from None
    finally:
        team.close()
    if not team.leads:
        return
    file, curves = out / "weights.safetensors", curve.save(out / CURVE)
    if as_json:
        write_json({"folder": out, "card": card.model_dump(mode="json"), "files": [file, out / "card.json", *curves]})
    else:
        typer.echo(f"weights {file} ({card.weights}; card.json says how they came)")
        tell(curves, {})
