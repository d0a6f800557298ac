"""The examples at the end of every help, as they are pasted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from commands import Command
from made_results import made, point, right, unreduced

from tokenmerge_bench.budgets import Solver
from tokenmerge_bench.cli import app
from tokenmerge_bench.commands.examples import DEMO, EXAMPLES, Example
from tokenmerge_bench.experiment import Experiment
from tokenmerge_bench.models import build_model

pytestmark = pytest.mark.usefixtures("own_registry")
PROGRAM: Any = typer.main.get_command(app)
ALL = [(command, example) for command, examples in EXAMPLES.items() for example in examples]
PARSED = [example for _, example in ALL if example.needs not in ("", DEMO)]
RUN = [example for _, example in ALL if example.needs in ("", DEMO)]
LONG = {
    "tokenmerge_bench.sweep.run_sweep",
    "tokenmerge_bench.profiling.run_profile",
    "tokenmerge_bench.audit.audit",
    "tokenmerge_bench.show.Viewer",
    "tokenmerge_bench.report.write_report",
}
"""What takes long, and is reached when everything that was typed has been understood."""


def words(example: Example) -> list[str]:
    """What a shell hands to the program: lines joined, without a redirection."""
    line, _, _ = example.command.replace("\\\n", " ").partition(" > ")
    return shlex.split(line)


def named(example: Example) -> Any:
    return pytest.param(example, id=" ".join(words(example)[1:])[:60])


class Understood(Exception):
    """Raised in place of what takes long."""


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """Puts an end to commands before they evaluate anything; the experiments that would have been run."""
    reached: list[Experiment] = []

    def stop(*arguments: Any, **_: Any) -> None:
        reached.extend(one for one in arguments if isinstance(one, Experiment))
        raise Understood

    for name in LONG:
        monkeypatch.setattr(name, stop)
    # Tracing takes seconds, and so do initial weights. The closed form, which is tested elsewhere, needs neither.
    monkeypatch.setattr(
        "tokenmerge_bench.listings.count",
        lambda reduced: Solver(reduced.detach()).cost.macs(reduced.schedule, reduced.reducer_macs()),
    )
    monkeypatch.setattr("tokenmerge_bench.listings.build_model", without_weights)
    return reached


def without_weights(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(name)


@pytest.fixture
def demo(tmp_path: Path) -> None:
    """A results folder in place of what the sweep of the embedded benchmark writes, with methods and budgets of it."""
    methods = [
        point(method, budget, float(budget) + 0.001 * number, right(90 - 8 * number - step, start=3 * number))
        for number, method in enumerate(("dhtm", "tome", "random"))
        for step, budget in enumerate(("0.9", "0.7", "0.5"))
    ]
    made(tmp_path / "results" / "demo", unreduced(right(92)), *methods)


@pytest.mark.parametrize("example", [named(one) for one in RUN])
def test_an_example_that_needs_nothing_works(
    tmbench: Command, understood: list[Experiment], demo: None, quick_figures: None, example: Example
) -> None:
    program, *arguments = words(example)
    assert program == "tmbench"
    try:
        done = tmbench(*arguments)
    except Understood:
        assert all(found.all_methods() and found.all_budgets() for found in understood)
    else:
        assert done.code == 0, done.err
        assert done.out


@pytest.mark.parametrize("example", [named(one) for one in PARSED])
def test_an_example_that_needs_more_is_understood(example: Example) -> None:
    line = words(example)
    name, *arguments = line[line.index("tokenmerge_bench" if line[0] == "torchrun" else "tmbench") + 1 :]
    command = PROGRAM.commands[name]
    context = command.make_context(name, arguments)
    assert {parameter.name for parameter in command.params if context.params.get(parameter.name)}


@pytest.mark.parametrize("example", [named(one) for _, one in ALL])
def test_lines_fit_a_narrow_terminal_and_are_joined(example: Example) -> None:
    *all_but_last, last = example.command.split("\n")
    assert max(map(len, [*all_but_last, last])) <= 76
    assert all(line.endswith(" \\") for line in all_but_last)
    assert not last.endswith("\\")
    assert not example.what.endswith((".", ":"))


def helps() -> Iterator[Any]:
    yield pytest.param([], id="tmbench")
    yield from (pytest.param([name, "--help"], id=name) for name in PROGRAM.commands)


@pytest.mark.parametrize("arguments", list(helps()))
def test_every_help_ends_with_them_unbroken(tmbench: Command, arguments: list[str]) -> None:
    done = tmbench(*arguments)
    assert (done.code, done.err) == (0, "")
    examples = EXAMPLES["".join(arguments[:1])]
    assert examples
    shown = done.out.rsplit("Examples\n", 1)[1]
    pasted = re.sub(r"(?m)^    ", "", shown)
    for example in examples:
        assert example.command in pasted
        assert " ".join(example.what.split()) in " ".join(shown.split())
        assert not example.needs or f"(needs {example.needs})" in " ".join(shown.split())


@pytest.mark.parametrize("width", ["80", "120"])
def test_a_terminal_does_not_break_them(tmbench: Command, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", width)
    done = tmbench("train", "--help")
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.out)
    assert "╭─ What is trained ─" in text
    pasted = re.sub(r"(?m)^    ", "", text)
    assert [example for example in EXAMPLES["train"] if example.command not in pasted] == []
