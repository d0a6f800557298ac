"""What the shell completes, asked for as bash and zsh ask."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import timm
from commands import Command

from tokenmerge_bench import names
from tokenmerge_bench.data import _INTERPOLATIONS
from tokenmerge_bench.datasets import dataset_layouts
from tokenmerge_bench.experiment import Dtype, shipped
from tokenmerge_bench.figures import FIGURES, PROFILE_FIGURES
from tokenmerge_bench.models import DEMO_MODEL
from tokenmerge_bench.modes import MODES
from tokenmerge_bench.products import FORMATS
from tokenmerge_bench.recipe import shipped_recipes
from tokenmerge_bench.registry import list_methods
from tokenmerge_bench.tables import TABLES


@pytest.fixture
def bash(tmbench: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What bash offers for a line; its words are broken as bash breaks them."""

    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("_TMBENCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["tmbench", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        done = tmbench()
        assert (done.code, done.err) == (0, "")
        return done.out.splitlines()

    return complete


@pytest.fixture
def zsh(tmbench: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What zsh is told for a line."""

    def complete(line: str) -> str:
        monkeypatch.setenv("_TMBENCH_COMPLETE", "complete_zsh")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"tmbench {line}")
        done = tmbench()
        assert (done.code, done.err) == (0, "")
        return done.out

    return complete


# --- names are read from files; they must be those that the library knows ---------------------------------------------


def test_methods_are_those_of_the_registry() -> None:
    assert names.method_names() == [name for name in list_methods() if name in names._method_files()]
    for name, cls in list_methods().items():
        assert (cls.__doc__ or "").startswith(names.method_summary(name))
        assert names.method_summary(name)


@pytest.mark.parametrize("method", names.method_names())
def test_options_are_those_of_the_method(method: str) -> None:
    found = names.method_options(method)
    fields = {field.name: field for field in dataclasses.fields(list_methods()[method].options_type)}
    assert list(found) == [*fields, "layers"]
    hints = get_type_hints(list_methods()[method].options_type)
    for name, field in fields.items():
        if isinstance(field.default, bool):
            expected = {"true", "false"}
        elif get_origin(hints[name]) is Literal:
            expected = set(map(str, get_args(hints[name])))
        else:
            expected = {str(field.default)}
        assert set(found[name]) == expected
        assert found[name][0] == str(field.default).lower()


def test_models_are_known_to_timm() -> None:
    found = names.model_names()
    assert found[0] == DEMO_MODEL
    assert len(found) > 100
    assert [name for name in found if not timm.is_model(name)] == []


def test_other_names_are_those_of_the_library() -> None:
    assert names.experiment_names() == shipped()
    assert names.recipe_names() == sorted(shipped_recipes())
    assert names.constant("figures/__init__", "FIGURES") == list(FIGURES)
    assert names.constant("figures/__init__", "PROFILE_FIGURES") == list(PROFILE_FIGURES)
    assert names.constant("tables", "TABLES") == list(TABLES)
    assert names.constant("products", "FORMATS") == list(FORMATS)
    assert names.constant("modes", "Mode") == list(MODES)
    assert names.constant("experiment", "Dtype") == list(get_args(Dtype))
    assert names.constant("data", "_INTERPOLATIONS") == list(_INTERPOLATIONS)
    forms = [form for form, _ in dataset_layouts()]
    assert all(any(form.startswith(name) for form in forms) for name in names.dataset_names())
    assert "demo" in names.dataset_names()


# --- bash and zsh -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["swe"], ["sweep"]),
        (["sweep", "--meth"], ["--methods"]),
        (["sweep", "--methods", "dh"], ["dhtm"]),
        (["sweep", "--methods", "dhtm,to"], ["dhtm,tome"]),
        (["sweep", "--methods", "dhtm", ":", "conn"], ["connectivity=8", "connectivity=4", "connectivity=any"]),
        (["sweep", "--methods", "dhtm", ":", "connectivity", "=", "a"], ["any"]),
        (["sweep", "--methods", "dhtm", ":", "connectivity", "=", "4", ":", "av"],
         ["averaging=size", "averaging=plain"]),
        (["sweep", "--methods", "lotm,dhtm", ":", "connectivity", "="], ["8", "4", "any"]),
        (["sweep", "--models", "deit_mi"], ["deit_micro_patch2_28"]),
        (["sweep", "--models", "deit_tiny_patch16_224,deit_base_patch16_2"],
         ["deit_tiny_patch16_224,deit_base_patch16_224"]),
        (["sweep", "--experiment", "table"], ["table1", "table2"]),
        (["sweep", "--dataset", "de"], ["demo"]),
        (["sweep", "--dtype", "bf"], ["bfloat16"]),
        (["sweep", "--device", "c"], ["cpu", "cuda"]),
        (["sweep", "--interpolation", "bic"], ["bicubic"]),
        (["run", "pl"], ["placement"]),
        (["run", "mi"], ["mine.toml"]),
        (["run", "su"], ["sub/"]),
        (["sweep", "--dataset", "sub/im"], ["sub/images.tar"]),
        (["compare", "no"], ["none"]),
        (["compare", "dhtm", "pa"], ["patchmerger"]),
        (["figures", "results", "--only", "fig1,fi"], ["fig1,fig2", "fig1,fig3", "fig1,fig4"]),
        (["figures", "--formats", "png,s"], ["png,svg"]),
        (["tables", "--only", "re"], ["results"]),
        (["profile", "--modes", "eager,g"], ["eager,graph"]),
        (["profile", "--dtypes", "float16,b"], ["float16,bfloat16"]),
        (["train", "--recipe", "demo_"], ["demo_finetune"]),
        (["train", "--method", "si"], ["sinkhorn", "sit"]),
        (["train", "--model", "deit_mi"], ["deit_micro_patch2_28"]),
        (["audit", "--models", "deit_mi"], ["deit_micro_patch2_28"]),
        (["list", "m"], ["methods", "models"]),
        (["sweep", "--methods", "nothing"], []),
    ],
)  # fmt: skip
def test_bash(bash: Any, tmp_path: Path, words: list[str], offered: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    for file in ("mine.toml", "mine.txt", "sub/images.tar"):
        (tmp_path / file).touch()
    assert sorted(bash(*words)) == sorted(offered)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sweep --methods dhtm,to", ['"dhtm,tome":"Merges the best-matching tokens of two halves in every block."']),
        ("sweep --methods dhtm:conn", [r'"dhtm\\:connectivity=8"', r'"dhtm\\:connectivity=any"']),
        ("sweep --models deit_mi", ['"deit_micro_patch2_28"']),
        ("run table", ['"table1"', '"table2"']),
        ("train --method no", ['"none":"The unreduced model."']),
    ],
)
def test_zsh(zsh: Any, line: str, offered: list[str]) -> None:
    told = zsh(line)
    assert [word for word in offered if word not in told] == []
    assert "patchmerger" not in told


def test_zsh_completes_files_where_there_is_no_name(zsh: Any) -> None:
    assert zsh("sweep --out res").strip() == "_files"


def test_the_shells_wait_for_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, tokenmerge_bench.cli as cli\n"
        "try: cli.main()\n"
        "except SystemExit: print(sorted({'torch', 'timm', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    line = {"COMP_WORDS": "tmbench\nsweep\n--models\ndeit_mi", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "_TMBENCH_COMPLETE": "complete_bash", **line},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["deit_micro_patch2_28", "[]"]
