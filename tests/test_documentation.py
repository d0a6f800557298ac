"""Every command and every Python block of the documentation runs, and its tables say what the code says.

The blocks of a page run in order, in this process, in an empty folder that the page has for itself. Fences without a
language, and those called sh, are commands; what a Python block prints must be the text block that follows it.
Comments above a block say otherwise:

    <!-- file: NAME -->         the block is the content of a file, which later blocks use
    <!-- needs: WHAT -->        it needs what is not here, and is run with stand-ins (`stand_ins.py`)
    <!-- not run: REASON -->    its commands are parsed

Parsing covers every flag and value, and that methods, models, experiments and recipes exist. Commands within lines are
parsed as well. So that all of it takes seconds:

* commands that evaluate images take 4 of them (`--limit`) and keep the merges of one; profiles take batches of one
  image in three rounds;
* a results folder that a page before made by the same command is copied, and the command goes on from there;
* a method's budget on a model is solved once, and MACs are those of the closed form, without a traced forward pass;
* tables and figures at the end of a sweep, profile or audit are named and not made; `tmbench tables` makes them, and
  `tmbench figures` as SVG alone; `--limit` draws one image where it is given to `tmbench show`;
* the JavaScript that draws the charts of a report is bundled once, and pictures of pixels are coarse;
* `timm.create_model(pretrained=True)` gives random weights, as there is no network, and without it what memory holds:
  such a network is counted, or gets the weights of a file.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pandas as pd
import pytest
import timm
import typer
from commands import Command
from markdown_it import MarkdownIt
from markdown_it.token import Token
from stand_ins import shorter, stood_in, trained_before

from tokenmerge_bench import (
    Budget,
    MethodSpec,
    ReducedViT,
    Solution,
    Solver,
    TokenReducer,
    closed_form,
    list_methods,
    parse_method,
    reducers,
    registry,
)
from tokenmerge_bench.cli import app
from tokenmerge_bench.experiment import load_experiment
from tokenmerge_bench.figures import style
from tokenmerge_bench.models import build_model
from tokenmerge_bench.options import layers_text
from tokenmerge_bench.recipe import read_recipe
from tokenmerge_bench.registry import load_plugin
from tokenmerge_bench.report import charts, gallery
from tokenmerge_bench.timing import Stopwatch

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ELSEWHERE = {"docs/performance.md", "docs/reproduction.md", "docs/table2.md"}
"""Reports of runs on other machines: their commands are parsed."""
PAGES = [
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")),
]
MARK = re.compile(r"<!-- (file|needs|not run): (.+?) -->")
SHORTER = {
    "sweep": {"--limit": "4", "--examples": "1"},
    "run": {"--limit": "4", "--examples": "1"},
    "profile": {"--seconds": "0", "--batch-sizes": "1"},
    "figures": {"--formats": "svg"},
}
IF_GIVEN = {"show": {"--limit": "1"}}
OTHER_PROGRAMS = {"python", "python3", ".venv/bin/pip", "pip", "source"}
"""Programs that pages name beside `tmbench`, in blocks that are not run."""
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Block:
    """A fence of a page, with the comment above it and, of a Python block, what it is said to print."""

    language: str
    text: str
    line: int
    file: str | None = None
    needs: bool = False
    not_run: bool = False
    printed: str | None = None


def blocks_of(page: str) -> list[Block]:
    tokens = MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8"))
    found: list[Block] = []
    mark: re.Match[str] | None = None
    for position, token in enumerate(tokens):
        if token.type in ("fence", "code_block"):
            follows = tokens[position + 1] if position + 1 < len(tokens) else None
            printed = follows.content if follows is not None and follows.info == "text" else None
            file = mark[2] if mark and mark[1] == "file" else None
            needs = bool(mark and mark[1] == "needs")
            not_run = page in ELSEWHERE or bool(mark and mark[1] == "not run")
            line = token.map[0] + 1 if token.map else 0
            found.append(Block(token.info, token.content, line, file, needs, not_run, printed))
        mark = MARK.search(token.content) if token.type == "html_block" else None
    return found


def inline_commands(page: str) -> list[str]:
    """Commands within lines, of which those that only name a command are none."""
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
    children: Iterator[Token] = (child for token in tokens for child in token.children or [])
    codes = [" ".join(child.content.split()) for child in children if child.type == "code_inline"]
    return [code for code in codes if re.match(r"tmbench \S+ \S", code)]


def commands_in(text: str) -> list[list[str]]:
    """The commands of a block as words; a backslash at the end of a line joins it with the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def check_command(words: list[str]) -> None:
    """Parses a command that is not run, and looks up what it names."""
    program, *arguments = words
    if program == "torchrun":
        arguments = arguments[arguments.index("tokenmerge_bench") + 1 :]
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert [name for name in arguments if name not in targets] == []
        return
    elif program == "python" and arguments[0].startswith("benchmarks/"):
        source = (ROOT / arguments[0]).read_text(encoding="utf-8")
        flags = [word for word in arguments if word.startswith("--")]
        assert [flag for flag in flags if f'"{flag}"' not in source and f'"{flag[2:]}"' not in source] == []
        return
    elif Path(program).name != "tmbench":
        assert program in OTHER_PROGRAMS, f"what is {program}?"
        return
    parse_arguments([argument for argument in arguments if argument != "..."])


def parse_arguments(arguments: list[str]) -> None:
    name, *rest = arguments
    with COMMANDS[name].make_context(name, rest) as context:
        given = context.params
    for plugin in given.get("plugin") or []:
        load_plugin(plugin)
    for method in [*(given.get("methods") or "").split(","), given.get("method") or ""]:
        if method not in ("", "none", "yours"):
            parse_method(method)
    for model in [*(given.get("models") or "").split(","), given.get("model") or ""]:
        assert model == "" or timm.is_model(model)
    experiment, recipe = given.get("experiment"), given.get("recipe")
    if experiment and experiment != "NAME" and not experiment.endswith(".toml"):
        load_experiment(experiment)
    if recipe and recipe != "NAME":
        read_recipe(recipe)


def products_named(
    _: Any, names: list[str], folder: Path, formats: Sequence[str] = ("svg",)
) -> tuple[list[Path], dict[str, str]]:
    return [folder / f"{name}.{form}" for name in names for form in formats], {}


class Shell:
    """Runs the commands of all pages, each page in its own folder."""

    def __init__(self, keep: Path) -> None:
        self.keep = keep
        self.made: dict[tuple[str, ...], Path] = {}

    def run(self, words: list[str], tmbench: Command, folder: Path, more: Sequence[str] = ()) -> None:
        while re.fullmatch(r"\w+=\S*", words[0]):  # CUDA_VISIBLE_DEVICES=0 means nothing here
            words = words[1:]
        program, *arguments = words
        assert program == "tmbench", f"{program} is not run here; mark the block"
        key = tuple(arguments)
        for flag, value in SHORTER.get(arguments[0], {}).items():
            arguments += [flag, value]  # of a flag that is given twice the last counts
        for flag, value in IF_GIVEN.get(arguments[0], {}).items():
            arguments += [flag, value] if flag in arguments else []
        arguments += more
        out = folder / arguments[arguments.index("--out") + 1] if "--out" in arguments else None
        if out is not None and key in self.made and not out.exists():
            shutil.copytree(self.made[key], out)
        with pytest.MonkeyPatch.context() as patch:
            if arguments[0] in ("sweep", "run"):
                patch.setattr("tokenmerge_bench.products.make", products_named)
            done = tmbench(*arguments)
        assert done.code == 0, f"{shlex.join(words)}\n{done.err}"
        assert done.out != "", shlex.join(words)
        if out is not None and out.is_dir() and key not in self.made:
            self.made[key] = self.keep / str(len(self.made))
            shutil.copytree(out, self.made[key])


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def quickly() -> Iterator[None]:
    create, solve = timm.create_model, Solver.solve
    solved: dict[Any, Solution] = {}

    def create_without_weights(name: str, pretrained: bool = False, **given: Any) -> Any:
        return create(name, **given) if pretrained else create(name, weight_init="skip", **given)

    def solve_once(solver: Solver, spec: MethodSpec, budget: Budget) -> Solution:
        key = (solver.shape, solver.unreduced, spec.code, spec.label, budget)
        if key not in solved:
            solved[key] = solve(solver, spec, budget)
        return solved[key]

    def closed_form_alone(reduced: ReducedViT) -> int:
        return closed_form(reduced.detach(), reduced.schedule).backbone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_without_weights)
        patch.setattr(Solver, "solve", solve_once)
        patch.setattr("tokenmerge_bench.counting.traced", closed_form_alone)
        patch.setattr("tokenmerge_bench.audit_products.make", products_named)
        patch.setattr(charts, "runtime", cache(charts.runtime))
        patch.setattr(gallery, "DPI", 40)
        patch.setattr(Stopwatch, "rounds", 3)
        patch.setitem(style._SETTINGS, "savefig.dpi", 60)
        patch.setattr("tokenmerge_bench.commands.profile.speed", lambda _, folder: ([folder / "speed.svg"], {}))
        yield


@contextmanager
def shipped_methods_alone() -> Iterator[None]:
    """Methods that something adds are gone afterwards, as every command is a process of its own for a reader."""
    known = {name: cls for name, cls in list_methods().items() if cls.__module__.startswith("tokenmerge_bench.")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reducers, "_registered", known)
        patch.setattr(registry, "_registered", known)
        yield


@pytest.fixture
def page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a page, in which Python finds what the page writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    with shipped_methods_alone():
        yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
def test_blocks_run(page: str, page_folder: Path, tmbench: Command, shell: Shell) -> None:
    if page not in ELSEWHERE and "experiments/results/" in (ROOT / page).read_text(encoding="utf-8"):
        shutil.copytree(ROOT / "experiments" / "results", page_folder / "experiments" / "results")
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if block.file is not None:
            (page_folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            assert not block.needs, f"{page}:{block.line}"
            assert not block.not_run, f"{page}:{block.line}"
            run_python(block, names, f"{page}:{block.line}")
        elif block.language in ("", "sh"):
            for words in commands_in(block.text):
                with shipped_methods_alone():
                    if block.not_run:
                        check_command(words)
                    elif block.needs:
                        check_command(words)
                        for given in (*trained_before(words, page_folder), words):
                            command = stood_in(given, page_folder)
                            shell.run(command, tmbench, page_folder, shorter(command))
                    else:
                        shell.run(words, tmbench, page_folder)


def run_python(block: Block, names: dict[str, Any], where: str) -> None:
    code = compile("\n" * block.line + block.text, where, "exec")
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code, names)
    assert printed.getvalue() == (block.printed or ""), where


@pytest.mark.parametrize("page", [page for page in PAGES if inline_commands(page)])
def test_commands_within_lines_can_be_given(page: str, page_folder: Path) -> None:
    for block in blocks_of(page):
        if block.file is not None and block.file.endswith(".py"):
            (page_folder / block.file).write_text(block.text, encoding="utf-8")
            load_plugin(page_folder / block.file)
    for command in inline_commands(page):
        check_command(shlex.split(command))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_fences_are_of_a_kind_that_is_run(page: str) -> None:
    kinds = {"", "sh", "python", "text", "toml"}
    assert {block.language for block in blocks_of(page) if not block.language.startswith("{")} <= kinds


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (path.parent / link).exists()] == []


SITES = {
    "pre": "before the block (`pre`)",
    "mid": "between attention and MLP (`mid`)",
    "post": "after the block (`post`)",
}


def table_of_defaults(method: type[TokenReducer]) -> str:
    reducer = method()
    layers = layers_text(reducer.layers).replace("/", ", ")
    facts = {
        "reduces": f"{SITES[reducer.site]}, {'every block' if layers == 'all' else f'blocks {layers}, counted from 0'}",
        "knob": f"`{reducer.knob.flag}`",
        "needs from attention": ", ".join(f"`{need}`" for need in sorted(reducer.needs)) or "nothing",
        "proportional attention afterwards": "yes" if reducer.proportional_attention else "no",
        "random numbers": "yes" if reducer.stochastic else "no",
        "parameters": "must be trained" if reducer.learned else "none",
    }
    return "\n".join(["| by default | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in facts.items())])


def table_of_options(method: type[TokenReducer]) -> str:
    options = method.options_type
    hints, said = get_type_hints(options), field_docstrings(options)
    rows = [
        f"| `{field.name}` | `{typed(field.default)}` | {values_of(hints[field.name])} | {said[field.name]} |"
        for field in dataclasses.fields(options)
    ]
    return (
        "\n".join(["| option | default | values | what it changes |", "|---|---|---|---|", *rows]) if rows else "None."
    )


def field_docstrings(options: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, each on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def values_of(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    return {bool: "`true`, `false`", int: "whole number", float: "number"}[hint]


def typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


SHIPPED = {name: cls for name, cls in list_methods().items() if cls.__module__.startswith("tokenmerge_bench.")}


@pytest.mark.parametrize("name", SHIPPED)
def test_pages_of_methods_have_the_defaults_and_options_of_the_code(name: str) -> None:
    text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert table_of_defaults(SHIPPED[name]) in text
    assert f"## Options\n\n{table_of_options(SHIPPED[name])}" in text


def test_every_method_has_a_page() -> None:
    pages = {path.stem for path in (DOCS / "methods").glob("*.md")} - {"index", "shared"}
    assert pages == set(SHIPPED)


def test_the_methods_own_work_is_what_the_solver_counts() -> None:
    text = (DOCS / "flops.md").read_text(encoding="utf-8")
    solver = Solver(build_model("deit_tiny_patch16_224"))
    for name in SHIPPED:
        own = solver.solve(parse_method(name), Budget("fraction", "0.7")).macs.reducer
        assert f"| `{name}` | {own / 1e6:.2f} | {100 * own / solver.unreduced.total:.2f} % |" in text


def test_times_on_the_flops_page_are_those_of_the_committed_profile() -> None:
    text = (DOCS / "flops.md").read_text(encoding="utf-8")
    profile = pd.read_csv(ROOT / "experiments" / "results" / "speed" / "h100_at_0.7" / "profile.csv")
    rows = {(row["mode"], row["method"], row["model"].split("_")[1]): row for row in profile.to_dict("records")}
    for method in ("dhtm", "random", "tome", "lotm", "dpc_knn", "k_medoids"):
        timed = [rows["graph", method, size] for size in ("tiny", "small", "base")]
        cells = [f"{row['speedup']:.3f} [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]" for row in timed]
        assert f"| `{method}` | {' | '.join(cells)} |" in text
        assert rows["eager", method, "tiny"]["speedup"] < 1
    assert f"(DHTM {rows['eager', 'dhtm', 'tiny']['speedup']:.3f} times as fast)" in text
    assert f"makes Small {rows['graph', 'dhtm', 'small']['free_drop_speedup']:.3f} times as fast" in text
    unreduced, dhtm, tome = (rows["graph", name, "base"]["peak_memory_mb"] for name in ("none", "dhtm", "tome"))
    assert f"{unreduced:.0f} MB for unreduced DeiT-Base" in text
    assert f"{dhtm:.0f} MB with DHTM and {tome:.0f} MB with ToMe" in text
