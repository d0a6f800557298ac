"""Where things stand: what is importable, what is not, and who may import whom."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tokenmerge_bench
from tokenmerge_bench.registry import list_methods

LIBRARY = Path(tokenmerge_bench.__file__).parent
METHOD_FILES = sorted(path.stem for path in (LIBRARY / "methods").glob("*.py") if not path.stem.startswith("_"))
MAPPED = ("methods", "experiments", "figures")


@pytest.mark.parametrize("name", MAPPED)
def test_folders_at_the_top_are_subpackages(name: str) -> None:
    package = importlib.import_module(f"tokenmerge_bench.{name}")
    assert package.__file__ is not None
    assert Path(package.__file__).samefile(LIBRARY.parent / name / "__init__.py")


def test_nothing_of_ours_is_a_package_of_its_own(tmp_path: Path) -> None:
    code = f"import importlib.util; print([n for n in {MAPPED!r} if importlib.util.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, tokenmerge_bench.cli; print(sorted({'torch', 'timm', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", tokenmerge_bench.__all__)
def test_public_names_are_there_and_explain_themselves(name: str) -> None:
    assert inspect.getdoc(getattr(tokenmerge_bench, name))


@pytest.mark.parametrize("file", METHOD_FILES)
def test_a_method_file_is_one_method_of_a_paper(file: str) -> None:
    module = importlib.import_module(f"tokenmerge_bench.methods.{file}")
    registered = [name for name, cls in list_methods().items() if cls.__module__ == module.__name__]
    assert registered == [file]
    docstring = inspect.getdoc(module) or ""
    assert re.search(r"et al\.?,? .*\b(19|20)\d\d\b", docstring, re.DOTALL), docstring
    cls = list_methods()[file]
    assert inspect.getdoc(cls)
    assert inspect.getdoc(cls.assign)
    assert inspect.getdoc(cls.macs)


def test_the_library_imports_no_method_by_name() -> None:
    """It may import the package of methods, whose files are then found by being there."""
    for path in sorted(LIBRARY.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in names if re.search(r"(^|\.)methods(\.|$)", name)]
            assert not found, f"{path.name}, line {getattr(node, 'lineno', 0)}: {found}"


def test_the_library_spells_out_no_method() -> None:
    """No `if method == "dhtm"`: a comparison with a method's name is a list to edit."""
    for path in sorted(LIBRARY.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                assert not set(texts) & set(METHOD_FILES), f"{path.name}, line {node.lineno}"


@pytest.mark.parametrize("folder", MAPPED)
def test_nothing_below_imports_the_command_line(folder: str) -> None:
    for path in (LIBRARY / folder).glob("*.py"):
        assert "tokenmerge_bench.cli" not in path.read_text(encoding="utf-8")
