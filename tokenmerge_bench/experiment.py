"""What is to be compared on what: an experiment as a TOML file, overridden by command-line flags."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.options import parse_method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


class Experiment(BaseModel):
    """A sweep of models x methods x budgets over one image set. Budgets are given in exactly one way."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)  # k = [0, 40]

    methods: list[str] = Field(min_length=1)
    models: list[str] = Field(min_length=1)
    dataset: str
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

    def all_budgets(self) -> list[Budget]:
        """The budgets in the order given, without repetition."""
        kinds: dict[Any, list[Any]] = {
            "fraction": self.budgets,
            "gflops": self.gflops,
            "k": self.k,
            "r": self.r,
            "keep_rate": self.keep_rate,
        }
        used = {kind: values for kind, values in kinds.items() if values}
        if len(used) != 1:
            raise InputError("give budgets in exactly one way: --budgets, --gflops, --k, --r or --keep-rate.")
        ((kind, values),) = used.items()
        budgets = [Budget(kind, str(value)) for value in values]
        return list({budget.recorded: budget for budget in budgets}.values())


def load_experiment(name: str, **overrides: Any) -> Experiment:
    """An experiment that ships with the package, by name, or one from a file; overrides that are None do nothing.

    An override of one way to give budgets replaces the budgets of the file, however they were given.
    """
    values = _read(name)
    given = {key: value for key, value in overrides.items() if value is not None}
    ways = ("budgets", "gflops", "k", "r", "keep_rate")
    if any(way in given for way in ways):
        values = {key: value for key, value in values.items() if key not in ways}
    try:
        experiment = Experiment.model_validate({**values, **given})
    except ValidationError as error:
        raise InputError(_sentence(name, error)) from error
    if "methods" in given:
        return experiment
    return experiment.model_copy(update={"methods": _that_follow(experiment)})


def _that_follow(experiment: Experiment) -> list[str]:
    """The methods of an experiment whose own knob is the one that the budgets are given in; all for FLOPs budgets."""
    kind = experiment.all_budgets()[0].kind
    if kind in ("fraction", "gflops"):
        return experiment.methods
    return [text for text in experiment.methods if parse_method(text).build().knob.name == kind]


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
        raise InputError(f"unknown experiment '{name}'{nearest(name, shipped())}; known are {', '.join(shipped())}.")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"experiment '{name}' is no valid TOML ({error}).") from error


def _sentence(name: str, error: ValidationError) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "?"
    if first["type"] == "extra_forbidden":
        known = list(Experiment.model_fields)
        return (
            f"experiment '{name}' has an unknown key '{key}'{nearest(key, known)}; known keys are {', '.join(known)}."
        )
    return f"experiment '{name}': {key}={first['input']!r} is not allowed ({first['msg']})."
