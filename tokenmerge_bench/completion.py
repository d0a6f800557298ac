"""What the shell completes, flag by flag.

typer asks the functions of type `Completer` and speaks to the shells; bash needs help with words (`in_bash`).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenmerge_bench.names import (
    constant,
    dataset_names,
    experiment_names,
    method_names,
    method_options,
    method_summary,
    model_names,
    recipe_names,
)

COMPLETE = "_TMBENCH_COMPLETE"
"""The environment variable by which a shell asks."""
Names = Callable[[], Iterable[str]]
Completion = tuple[str, str]
"""A whole value, and what it means or nothing."""
Completer = Callable[[str], list[Completion]]
"""Takes what has been typed of a value."""


def of(module: str, name: str) -> Names:
    """The names in a constant of a module of this package, which is read when they are asked for."""
    return lambda: constant(module, name)


def one(names: Names) -> Completer:
    """Completes a name."""

    def complete(incomplete: str) -> list[Completion]:
        return [(name, "") for name in names() if name.startswith(incomplete)]

    return complete


def several(names: Names) -> Completer:
    """Completes the last name of a comma-separated list, leaving out those that are there."""

    def complete(incomplete: str) -> list[Completion]:
        head, comma, tail = incomplete.rpartition(",")
        there = head.split(",")
        return [(head + comma + name, "") for name in names() if name.startswith(tail) and name not in there]

    return complete


def or_path(names: Names, suffix: str) -> Completer:
    """Completes a name, or the path of a folder or of a file with a suffix."""

    def complete(incomplete: str) -> list[Completion]:
        head, slash, tail = incomplete.rpartition("/")
        entries: list[Path] = []
        with contextlib.suppress(OSError):
            entries = sorted(Path(head + slash or ".").iterdir())
        shown = [entry for entry in entries if entry.name.startswith(tail) and not entry.name.startswith(".")]
        folders = [f"{head}{slash}{entry.name}/" for entry in shown if entry.is_dir()]
        named = [f"{head}{slash}{entry.name}" for entry in shown if entry.name.endswith(suffix) and entry.is_file()]
        return [*one(names)(incomplete), *((path, "") for path in [*folders, *named])]

    return complete


def method(incomplete: str) -> list[Completion]:
    """Completes a method, and after a colon its options; `none` is the unreduced model."""
    none = [("none", "The unreduced model.")] if "none".startswith(incomplete) else []
    return [*_method(incomplete), *none]


def methods(incomplete: str) -> list[Completion]:
    """Completes the last method of a comma-separated list, and after a colon its options."""
    head, comma, tail = incomplete.rpartition(",")
    return [(head + comma + value, what) for value, what in _method(tail)]


model, models = one(model_names), several(model_names)
dataset = or_path(dataset_names, ".tar")
experiment, recipe = or_path(experiment_names, ".toml"), or_path(recipe_names, ".toml")
dtype, dtypes = one(of("experiment", "Dtype")), several(of("experiment", "Dtype"))
modes = several(of("modes", "Mode"))
device = one(lambda: ("cpu", "cuda"))
interpolation = one(of("data", "_INTERPOLATIONS"))
figures = several(lambda: [*constant("figures/__init__", "FIGURES"), *constant("figures/__init__", "PROFILE_FIGURES")])
tables = several(of("tables", "TABLES"))
formats = several(of("products", "FORMATS"))


def _method(typed: str) -> Iterator[Completion]:
    name, *parts = typed.split(":")
    if not parts:
        yield from ((known, method_summary(known)) for known in method_names() if known.startswith(typed))
        return
    there = [part.partition("=")[0] for part in parts[:-1]]
    for option, values in method_options(name).items():
        for word in (f"{option}={value}" for value in values if option not in there):
            if word.startswith(parts[-1]):
                yield ":".join([name, *parts[:-1], word]), ""


def in_bash(complete: Callable[[], None]) -> None:
    """Lets `complete` answer bash, which takes `dhtm:conn` for three words and wants to hear the last one only.

    bash breaks words at `:` and `=` (COMP_WORDBREAKS), which in our commands have no spaces around them.
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")[: int(os.environ.get("COMP_CWORD", 0)) + 1]
    joined: list[str] = []
    glued = False
    for word in words:
        breaks = bool(word) and set(word) <= {":", "="}
        if joined and (glued or breaks):
            joined[-1] += word
        else:
            joined.append(word)
        glued = breaks
    os.environ.update(COMP_WORDS=shlex.join(joined), COMP_CWORD=str(len(joined) - 1))
    known = len(re.sub(r"[^:=]*$", "", joined[-1]))
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            complete()
    finally:
        sys.stdout.write("".join(f"{line[known:]}\n" for line in answer.getvalue().splitlines() if line))
