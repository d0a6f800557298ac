"""The flags that several commands share, as dataclasses, and what spreads them into a command's parameters."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.completion import Completer
from tokenmerge_bench.errors import InputError

if TYPE_CHECKING:
    from tokenmerge_bench.budgets import Budget
    from tokenmerge_bench.checkpoints import Checkpoint
    from tokenmerge_bench.options import MethodSpec

PANELS = ("What is compared", "What is trained", "Images", "Weights", "How it runs", "Output")
"""The headings of flags in the help, in their order there."""
COMPARED, TRAINED, IMAGES, WEIGHTS, RUNNING, OUTPUT = PANELS
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Python file with a method of your own. Repeatable.", rich_help_panel=COMPARED
    ),
]
Folders = Annotated[list[Path] | None, typer.Argument(help="Results folders.", metavar="RESULTS")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document, for scripts, and no tables.", rich_help_panel=OUTPUT),
]


def option(help: str, metavar: str, panel: str, completer: Completer | None = None, names: Sequence[str] = ()) -> Any:
    """A flag that takes a value: what the help says, its value's name and its heading there, and what completes it.

    `names` are for a flag that goes by others than its parameter's alone.
    """
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, autocompletion=completer)


def switch(name: str, help: str, panel: str) -> Any:
    """A flag that takes none."""
    return typer.Option(name, help=help, rich_help_panel=panel)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is to be compared: methods on models at budgets."""

    methods: Annotated[
        str | None,
        option(
            "Methods, comma-separated, with options: dhtm,tome or dhtm:connectivity=4:averaging=plain.",
            "METHODS", COMPARED, completion.methods,
        ),
    ] = None  # fmt: skip
    models: Annotated[
        str | None,
        option("timm models, comma-separated.", "MODELS", COMPARED, completion.models, ("--models", "--model")),
    ] = None
    budgets: Annotated[
        str | None,
        option(
            "Fractions of the unreduced FLOPs to keep: 0.9,0.7,0.5.",
            "FRACTIONS", COMPARED, names=("--budgets", "--budget"),
        ),
    ] = None  # fmt: skip
    gflops: Annotated[str | None, option("Absolute budgets in GFLOPs per image: 3.26,2.9.", "NUMBERS", COMPARED)] = None
    k: Annotated[
        str | None, option("Merges per layer (dhtm, lotm, random): 0,10,20 or 41/41/40.", "NUMBERS", COMPARED)
    ] = None
    r: Annotated[str | None, option("Tokens removed per block (tome): 8,13.", "NUMBERS", COMPARED)] = None
    keep_rate: Annotated[
        str | None, option("Keep rate per stage (dpc_knn, k_medoids): 0.9,0.7.", "FRACTIONS", COMPARED)
    ] = None
    layers: Annotated[str | None, option("Blocks that reduce, from 0: 3/6/10 or all.", "BLOCKS", COMPARED)] = None

    def overrides(self) -> dict[str, Any]:
        """What replaces values of an experiment; None where nothing was given."""
        return {
            "methods": split_list(self.methods, "--methods"),
            "models": split_list(self.models, "--models"),
            "budgets": split_numbers(self.budgets, "--budgets"),
            "gflops": split_numbers(self.gflops, "--gflops"),
            "k": split_list(self.k, "--k"),
            "r": split_list(self.r, "--r"),
            "keep_rate": split_list(self.keep_rate, "--keep-rate"),
            "layers": self.layers,
        }

    def overrides_at_a_budget(self) -> dict[str, Any]:
        """The same, at 0.7 of the FLOPs where no budget was given in any way."""
        from tokenmerge_bench.experiment import WAYS

        given = self.overrides()
        return given if any(given[way] is not None for way in WAYS) else {**given, "budgets": [0.7]}


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images, and how they are shown to the model."""

    dataset: Annotated[
        str | None,
        option(
            "'demo', a folder or .tar of images, hfds/NAME, wds/NAME, torch/NAME; see `list datasets`.",
            "DATASET", IMAGES, completion.dataset,
        ),
    ] = None  # fmt: skip
    data_dir: Annotated[str | None, option("Where hfds/, wds/ and torch/ data sets lie.", "FOLDER", IMAGES)] = None
    split: Annotated[
        str | None, option("Split of such a data set; by default the one to test on.", "SPLIT", IMAGES)
    ] = None
    limit: Annotated[
        int | None, option("Images, drawn the same number of each class; 0: all of them.", "N", IMAGES)
    ] = None
    crop_pct: Annotated[
        float | None,
        option("Part of the resized image that is cropped, 0.05 to 1; DeiT's own: 0.875.", "FRACTION", IMAGES),
    ] = None
    img_size: Annotated[
        int | None, option("Side of the crop in pixels; resamples the positions.", "PIXELS", IMAGES)
    ] = None
    interpolation: Annotated[str | None, option("bicubic, bilinear, ...", "NAME", IMAGES, completion.interpolation)] = (
        None
    )

    def overrides(self) -> dict[str, Any]:
        """What replaces values of an experiment; `limit` is the command's to interpret."""
        names = ("dataset", "data_dir", "split", "crop_pct", "img_size", "interpolation")
        return {name: getattr(self, name) for name in names}

    def refuse_negative_limit(self) -> None:
        """Raises InputError for a --limit that is no number of images."""
        if self.limit is not None and self.limit < 0:
            raise InputError(f"--limit {self.limit} is negative; give a number of images, or 0 for all of them.")


@dataclass(frozen=True, kw_only=True)
class Running:
    """Where and how a sweep runs."""

    weights: Annotated[
        list[str] | None,
        option(
            "FILE, or MODEL=FILE for one of several models; or a checkpoint of `tmbench train`, which is evaluated "
            "with the method that it was trained with. Repeatable.",
            "[MODEL=]FILE", WEIGHTS,
        ),
    ] = None  # fmt: skip
    trained: Annotated[
        bool, switch("--trained", "Add the trained checkpoints that ship with the embedded model.", WEIGHTS)
    ] = False
    untrained: Annotated[
        bool, switch("--untrained", "Evaluate methods that must be trained with their initial weights too.", WEIGHTS)
    ] = False
    seeds: Annotated[int | None, option("Runs of every method that draws random numbers.", "N", RUNNING)] = None
    seed: Annotated[int | None, option("First seed, also of the choice of images.", "N", RUNNING)] = None
    batch_size: Annotated[int | None, option("Images per batch.", "N", RUNNING)] = None
    device: Annotated[str, option("cpu, cuda or cuda:N.", "DEVICE", RUNNING, completion.device)] = "cpu"
    dtype: Annotated[
        str | None, option("float32, bfloat16, float16 or float64.", "DTYPE", RUNNING, completion.dtype)
    ] = None
    workers: Annotated[
        int | None,
        option(
            "Processes that decode images; by default one per processor, at most 16, on a GPU, else 0.", "N", RUNNING
        ),
    ] = None
    compile: Annotated[bool, switch("--compile", "Compile blocks by torch.compile, once for all points.", RUNNING)] = (
        False
    )
    cuda_graphs: Annotated[
        bool, switch("--cuda-graphs", "Launch all points on a full batch as one CUDA graph.", RUNNING)
    ] = False
    examples: Annotated[int | None, option("Images whose merges are kept for pictures.", "N", OUTPUT)] = None
    out: Annotated[Path | None, option("Results folder; by default a new one under results/.", "FOLDER", OUTPUT)] = None
    fresh: Annotated[bool, switch("--fresh", "Replace what an earlier sweep left in the folder.", OUTPUT)] = False

    def overrides(self) -> dict[str, Any]:
        """What replaces values of an experiment."""
        names = ("seeds", "seed", "batch_size", "dtype", "examples")
        switches = ("trained", "untrained")  # off, they leave the choice to the experiment
        return {
            **{name: getattr(self, name) for name in names},
            **{name: getattr(self, name) or None for name in switches},
        }

    def given_weights(self, models: list[str]) -> tuple[dict[str, Path], list[Checkpoint]]:
        """The models' own weights by model name, and trained points.

        MODEL=PATH is always a model's own weights. A PATH alone is the same for a weights file, and for a checkpoint of
        an unreduced model that was not fine-tuned from other weights; all other checkpoints are trained points.
        """
        from tokenmerge_bench.checkpoints import open_checkpoint
        from tokenmerge_bench.trained import model_of

        own: dict[str, Path] = {}
        trained: list[Checkpoint] = []
        for text in self.weights or []:
            model, sign, path = text.partition("=")
            if not sign or (model not in models and Path(text).exists()):  # a path may have an = in it
                checkpoint, path = open_checkpoint(Path(text)), text
                if checkpoint is not None and not checkpoint.is_own:
                    trained.append(checkpoint)
                    continue
                if checkpoint is None and len(models) > 1:
                    raise InputError(f"--weights {text} does not say for which model; write --weights MODEL={text}.")
                model = models[0] if checkpoint is None else model_of(checkpoint, models)
            if model not in models:
                raise InputError(
                    f"--weights {text} names '{model}', which is not among the models ({', '.join(models)})."
                )
            if model in own:
                raise InputError(f"--weights names two files for '{model}', {own[model]} and {path}; give one.")
            own[model] = Path(path)
        return own, trained


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is to be trained: a model, a method and one budget."""

    model: Annotated[str | None, option("timm model; by default the recipe's.", "MODEL", TRAINED, completion.model)] = (
        None
    )
    method: Annotated[
        str | None,
        option(
            "Method with options: sit or dpc_knn:learned_weights=true; none: unreduced.",
            "METHOD", TRAINED, completion.method,
        ),
    ] = None  # fmt: skip
    budget: Annotated[str | None, option("Fraction of the unreduced FLOPs to keep: 0.7.", "FRACTION", TRAINED)] = None
    gflops: Annotated[str | None, option("GFLOPs per image.", "NUMBER", TRAINED)] = None
    k: Annotated[str | None, option("Merges per layer (dhtm, lotm, random).", "NUMBER", TRAINED)] = None
    r: Annotated[str | None, option("Tokens removed per block (tome).", "NUMBER", TRAINED)] = None
    keep_rate: Annotated[str | None, option("Keep rate per stage (the other methods).", "FRACTION", TRAINED)] = None
    seed: Annotated[int | None, option("Seed of everything that is drawn; by default the recipe's.", "N", TRAINED)] = (
        None
    )

    def changes(self) -> list[str]:
        """What replaces keys of a recipe, as `--set` takes it."""
        given = {"model": self.model, "seed": self.seed}
        return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]

    def method_at_budget(self) -> tuple[MethodSpec | None, Budget | None]:
        """The method and the budget that it is trained at; None and None for the unreduced model."""
        from tokenmerge_bench.budgets import Budget
        from tokenmerge_bench.options import parse_method

        ways = {"fraction": self.budget, "gflops": self.gflops, "k": self.k, "r": self.r, "keep_rate": self.keep_rate}
        budgets = [Budget(kind, text) for kind, text in ways.items() if text is not None]  # type: ignore[arg-type]
        method = None if self.method in (None, "none") else parse_method(str(self.method))
        if len(budgets) != (method is not None):
            raise InputError(
                "a method is trained at one budget: give --method and one of --budget, --gflops, --k, --r and "
                "--keep-rate, or none of them for the unreduced model."
            )
        return method, budgets[0] if budgets else None


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one flag for each field of its parameters that are dataclasses, and hands it filled instances."""
    hints = get_type_hints(command, include_extras=True)
    bundles: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in bundles:
            bundle = bundles[parameter.name]
            types = get_type_hints(bundle, include_extras=True)
            parameters += [
                parameter.replace(name=f.name, annotation=types[f.name], default=f.default) for f in fields(bundle)
            ]
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    def spread(**given: Any) -> None:
        filled = {
            name: bundle(**{field.name: given.pop(field.name) for field in fields(bundle)})
            for name, bundle in bundles.items()
        }
        command(**given, **filled)

    spread.__name__, spread.__doc__ = command.__name__, command.__doc__
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread


def given_flags(*bundles: Images | Running) -> list[str]:
    """The flags that were given another value than their default, as they are written."""
    changed = [f.name for bundle in bundles for f in fields(bundle) if getattr(bundle, f.name) != f.default]
    return [f"--{name.replace('_', '-')}" for name in changed]


def split_list(text: str | None, flag: str) -> list[str] | None:
    """Comma-separated values, each once; None stays None."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{flag} '{text}' is an empty list; leave {flag} out or give comma-separated values.")
    return list(dict.fromkeys(parts))


def split_numbers(text: str | None, flag: str) -> list[float] | None:
    """Comma-separated numbers; None stays None."""
    parts = split_list(text, flag)
    if parts is None:
        return None
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{flag} '{text}' are no numbers; write for instance {flag} 0.9,0.7.")
    return numbers
