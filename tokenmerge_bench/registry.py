"""Finding methods: files in `methods/`, installed packages with an entry point, and files given by path."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from functools import lru_cache
from pathlib import Path

from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.reducers import TokenReducer, _registered

ENTRY_POINTS = "tokenmerge_bench.methods"


def list_methods() -> dict[str, type[TokenReducer]]:
    """Every known method by name, in alphabetical order."""
    _discover()
    return dict(sorted(_registered.items()))


def method(name: str) -> type[TokenReducer]:
    """The method of that name, or an InputError that suggests the nearest one."""
    known = list_methods()
    if name not in known:
        raise InputError(
            f"unknown method '{name}'{nearest(name, list(known))}; `tmbench list methods` shows all, "
            "and --plugin FILE.py adds your own."
        )
    return known[name]


def load_plugin(path: Path) -> None:
    """Imports a Python file that registers methods with `@reducer`. The file's code runs: it must be trusted."""
    if not path.is_file():
        raise InputError(f"plugin '{path}' is not a file; give the path of a Python file that uses @reducer.")
    before = set(list_methods())
    name = f"tmbench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"plugin '{path}' is no Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"plugin '{path}' could not be imported ({type(error).__name__}: {error}).") from error
    if set(list_methods()) == before and not any(cls.__module__ == name for cls in _registered.values()):
        raise InputError(f"plugin '{path}' registers no method; decorate a TokenReducer with @reducer('name').")


@lru_cache(maxsize=1)
def _discover() -> None:
    package = importlib.import_module("tokenmerge_bench.methods")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"tokenmerge_bench.methods.{module.name}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        entry.load()
