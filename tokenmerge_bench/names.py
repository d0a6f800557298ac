"""What there is to name on the command line, found without importing torch or timm, which takes seconds.

Methods with their options, models and constants are read from the text of our files and of timm's. For what they mean,
ask `registry.py`, `models.py` and the others.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
_VIT_FILES = ("deit.py", "vision_transformer.py")


def method_names() -> list[str]:
    """Methods of the package and of installed plugins."""
    return sorted([*_method_files(), *(entry.name for entry in entry_points(group="tokenmerge_bench.methods"))])


def method_summary(method: str) -> str:
    """What a method of the package does, in one sentence; nothing for a plugin's."""
    file = _method_files().get(method)
    for node in _tree(file).body if file else ():
        if isinstance(node, ast.ClassDef) and _is_reducer(node):
            return (ast.get_docstring(node) or "").partition("\n")[0].partition(" Options:")[0]
    return ""


def method_options(method: str) -> dict[str, list[str]]:
    """The options of a method of the package, each with what it may be, the default first (of numbers, that alone)."""
    file = _method_files().get(method)
    if file is None:
        return {"layers": ["all"]}
    found: dict[str, list[str]] = {}
    for node in _tree(file).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value:
                    found[field.target.id] = _option_values(field.annotation, ast.literal_eval(field.value), file)
    return {**found, "layers": ["all"]}


def model_names() -> list[str]:
    """The models of the package and timm's Vision Transformers, without the tags of weights."""
    timm = importlib.util.find_spec("timm")
    folders = [Path(path) / "models" for path in (timm.submodule_search_locations if timm else None) or ()]
    sources = [_PACKAGE / "models.py", *(folder / name for folder in folders for name in _VIT_FILES)]
    texts = [source.read_text(encoding="utf-8") for source in sources if source.is_file()]
    return [name for text in texts for name in re.findall(r"@register_model\ndef (\w+)", text)]


def dataset_names() -> list[str]:
    """What `--dataset` takes that is no path: names, and how names of others begin."""
    forms = [form for form, _ in constant("datasets", "_LAYOUTS") if form == form.lower() or "/" in form]
    return [form.removesuffix("NAME") for form in forms]


def experiment_names() -> list[str]:
    """The experiments that ship with the package."""
    return sorted(path.stem for path in (_PACKAGE / "experiments").glob("*.toml"))


def recipe_names() -> list[str]:
    """The training recipes that ship with the package."""
    return sorted(path.stem for path in (_PACKAGE / "recipes").glob("*.toml"))


def constant(module: str, name: str) -> list[Any]:
    """What a constant of a module of this package holds: a tuple, the keys of a dict, or the values of a `Literal`."""
    value = _assigned(_tree(_PACKAGE / f"{module}.py"), name)
    if value is None:
        raise LookupError(f"{module}.py has no constant {name}")
    if isinstance(value, ast.Dict):
        return [ast.literal_eval(key) for key in value.keys if key is not None]
    return _literal_values(value) or list(ast.literal_eval(value))


def _method_files() -> dict[str, Path]:
    return {path.stem: path for path in (_PACKAGE / "methods").glob("*.py") if not path.stem.startswith("_")}


@lru_cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _is_reducer(node: ast.ClassDef) -> bool:
    """Whether a class is decorated with `@reducer(...)`."""
    calls = [decorator.func for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(call, ast.Name) and call.id == "reducer" for call in calls)


def _option_values(kind: ast.expr, default: Any, file: Path) -> list[str]:
    values = [False, True] if isinstance(default, bool) else _literal_values(_resolved(kind, file))
    words = [str(value).lower() if isinstance(value, bool) else str(value) for value in (default, *values)]
    return list(dict.fromkeys(words))


def _resolved(kind: ast.expr, file: Path) -> ast.expr:
    """What a name stands for that the file defines or imports from this package; any other annotation as it is."""
    if not isinstance(kind, ast.Name):
        return kind
    for node in _tree(file).body:
        if isinstance(node, ast.ImportFrom) and kind.id in (alias.name for alias in node.names):
            package, _, module = (node.module or "").rpartition(".")
            file = _PACKAGE / f"{module}.py" if package == __package__ else file
    return _assigned(_tree(file), kind.id) or kind


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """What a module assigns to a name."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(node, "value", None)
    return None


def _literal_values(node: ast.expr) -> list[Any]:
    """The values of `Literal[...]`; none for any other expression."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
        values = ast.literal_eval(node.slice)
        return list(values) if isinstance(values, tuple) else [values]
    return []
