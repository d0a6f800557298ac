"""What is to be compared on what: an experiment as a TOML file, overridden by command-line flags."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.options import MethodSpec, all_options, parse_layers, parse_method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WAYS = ("budgets", "gflops", "k", "r", "keep_rate")
"""The ways to give budgets, of which an experiment uses one."""
Dtype = Literal["float32", "bfloat16", "float16", "float64"]


class Experiment(BaseModel):
    """A sweep of models x methods x budgets over one image set. Budgets are given in exactly one way.

    `dataset` is None where the experiment leaves the images to the user. `shows` names the tables and figures that are
    made when it has run, `examples` the number of images whose merges are kept for pictures. `trained` adds the
    checkpoints that ship with the package, `untrained` methods that learn with their initial weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)  # k = [0, 40]

    title: str = ""
    methods: list[str] = Field(min_length=1)
    models: list[str] = Field(min_length=1)
    dataset: str | None = None
    data_dir: str | None = None
    split: str | None = None
    crop_pct: float | None = Field(default=None, ge=0.05, le=1)  # less asks for enormous images
    img_size: int | None = Field(default=None, ge=1)
    interpolation: str | None = None
    budgets: list[float] = []
    gflops: list[float] = []
    k: list[str] = []
    r: list[str] = []
    keep_rate: list[str] = []
    layers: str | None = None
    limit: int | None = Field(default=None, ge=1)
    seeds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    dtype: Dtype = "float32"
    examples: int = Field(default=0, ge=0)
    trained: bool = False
    untrained: bool = False
    shows: list[str] = ["fig1"]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What replaces entries of the models' own data configs."""
        given = {"crop_pct": self.crop_pct, "interpolation": self.interpolation}
        return {key: value for key, value in given.items() if value is not None}

    def all_budgets(self) -> list[Budget]:
        """The budgets in the order given, without repetition."""
        given = {way: getattr(self, way) for way in WAYS}
        used: dict[Any, list[Any]] = {
            "fraction" if way == "budgets" else way: values for way, values in given.items() if values
        }
        if len(used) != 1:
            raise InputError("give budgets in exactly one way: --budgets, --gflops, --k, --r or --keep-rate.")
        ((kind, values),) = used.items()
        budgets = [Budget(kind, str(value)) for value in values]
        return list({budget.recorded: budget for budget in budgets}.values())

    def all_methods(self) -> list[MethodSpec]:
        """The methods in the order given, without repetition.

        Raises:
            InputError: for one that is not known.
        """
        layers = None if self.layers is None else parse_layers(self.layers)
        specs = [parse_method(text, layers) for text in self.methods]
        return list({(spec.name, all_options(spec)): spec for spec in specs}.values())


def load_experiment(name: str, **overrides: Any) -> Experiment:
    """An experiment that ships with the package, by name, or one from a file; overrides that are None do nothing.

    An override of one way to give budgets replaces the budgets of the file, however they were given; the methods
    of the file that cannot follow that way are then left out. The title of an experiment on images of its own is not
    that of one on others.
    """
    values = _read(name)
    given = {key: value for key, value in overrides.items() if value is not None}
    rebudgeted = any(way in given for way in WAYS)
    if rebudgeted:
        values = {key: value for key, value in values.items() if key not in WAYS}
    try:
        experiment = Experiment.model_validate({**values, **given})
    except ValidationError as error:
        raise InputError(_sentence(name, error, given)) from error
    if values.get("dataset") not in (None, experiment.dataset):
        experiment = experiment.model_copy(update={"title": ""})
    if rebudgeted and "methods" not in given:
        return experiment.model_copy(update={"methods": _that_follow(experiment)})
    return experiment


def _that_follow(experiment: Experiment) -> list[str]:
    """The methods of an experiment whose own knob is the one that the budgets are given in; all for FLOPs budgets."""
    kind = experiment.all_budgets()[0].kind
    if kind in ("fraction", "gflops"):
        return experiment.methods
    following = [text for text in experiment.methods if parse_method(text).build().knob.name == kind]
    if not following:
        raise InputError(
            f"none of {', '.join(experiment.methods)} takes --{kind.replace('_', '-')}; name methods that do with "
            "--methods."
        )
    return following


def shipped() -> list[str]:
    """Names of the experiments that ship with the package."""
    folder = files("tokenmerge_bench.experiments")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise InputError(f"experiment file '{name}' does not exist; give the path of a TOML file.")
        content = path.read_bytes()
    elif name in shipped():
        content = (files("tokenmerge_bench.experiments") / f"{name}.toml").read_bytes()
    else:
        hint = "; the name of a file must end in .toml" if path.exists() else ""
        raise InputError(
            f"unknown experiment '{name}'{nearest(name, shipped())}; known are {', '.join(shipped())}{hint}."
        )
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"experiment '{name}' is no valid TOML ({error}).") from error


def _sentence(name: str, error: ValidationError, flags: Mapping[str, Any]) -> str:
    """What is wrong with an experiment; a value that a flag gave is blamed on the flag."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "?"
    if first["type"] == "extra_forbidden":
        known = list(Experiment.model_fields)
        return (
            f"experiment '{name}' has an unknown key '{key}'{nearest(key, known)}; known keys are {', '.join(known)}."
        )
    if first["type"] == "missing":
        return f"experiment '{name}' lacks the key '{key}'; add it."
    if key in flags:
        return f"--{key.replace('_', '-')} {first['input']} is not allowed ({first['msg']})."
    return f"experiment '{name}': {key}={first['input']!r} is not allowed ({first['msg']})."
