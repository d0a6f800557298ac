"""Reading a method with its options from text: `dhtm`, `dhtm:connectivity=4`, `random:pair=any:layers=all`."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.reducers import Layers, TokenReducer
from tokenmerge_bench.registry import method


@dataclass(frozen=True)
class MethodSpec:
    """A method, its options and the blocks it reduces at (None: the method's default)."""

    type: type[TokenReducer]
    options: Any
    layers: Layers | None = None

    @property
    def name(self) -> str:
        """The method's name on the command line."""
        return self.type.name

    @property
    def code(self) -> str:
        """Fingerprint of the file that defines the method, so that editing it never reuses what it did before."""
        file = inspect.getsourcefile(self.type)
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""

    @property
    def changed(self) -> str:
        """Options that differ from the defaults, as they are typed behind the name of the method."""
        default = self.type.options_type()
        values = {
            f.name: getattr(self.options, f.name)
            for f in dataclasses.fields(self.options)
            if getattr(self.options, f.name) != getattr(default, f.name)
        }
        parts = [f"{name}={_typed(value)}" for name, value in values.items()]
        if self.layers is not None:
            parts.append(f"layers={layers_text(self.layers)}")
        return ":".join(parts)

    @property
    def label(self) -> str:
        """Name and changed options, which is also how to ask for it again."""
        return f"{self.name}:{self.changed}" if self.changed else self.name

    def build(self) -> TokenReducer:
        """A new reducer with these options."""
        reducer: TokenReducer = self.type(self.options)
        return reducer

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks (from 0) of a model with `depth` blocks at which it reduces."""
        reducer = self.build()
        layers = self.layers if self.layers is not None else reducer.layers
        last = depth - 2 if reducer.site == "post" else depth - 1
        blocks = tuple(range(last + 1)) if layers == "all" else layers
        if blocks and max(blocks) > last:
            where = f"has blocks 0 to {depth - 1}"
            if reducer.site == "post":
                where += ", and nothing follows the last one"
            raise InputError(
                f"{self.label} reduces at block {max(blocks)} but the model {where}; choose others, "
                f"such as {self.name}:layers=1/2 or {self.name}:layers=all."
            )
        return blocks


def parse_method(text: str, layers: Layers | None = None) -> MethodSpec:
    """Reads `name:option=value:...`; `layers` applies unless the text names its own."""
    name, *parts = text.strip().split(":")
    given: dict[str, Any] = {}
    for part in parts:
        key, sign, value = part.partition("=")
        if not sign:
            raise InputError(f"option '{part}' of method '{name}' has no value; write {name}:{key or 'OPTION'}=VALUE.")
        if key.strip() in given:
            raise InputError(f"option '{key.strip()}' of method '{name}' is given twice in '{text}'; leave one out.")
        given[key.strip()] = value.strip()
    return make_method(name, given, layers)


def make_method(name: str, given: Mapping[str, Any], layers: Layers | None = None) -> MethodSpec:
    """A method by name with options from a mapping (values may be text)."""
    cls = method(name)
    known = {f.name: f for f in dataclasses.fields(cls.options_type)}
    values = {key: _value(value, key in known and isinstance(known[key].default, bool)) for key, value in given.items()}
    if "layers" in values:
        layers = parse_layers(str(given["layers"]))
        del values["layers"]
    for key in values:
        if key not in known:
            raise InputError(
                f"method '{name}' has no option '{key}'{nearest(key, [*known, 'layers'])}; it has "
                f"{', '.join([*known, 'layers'])}."
            )
    try:
        options: Any = TypeAdapter(cls.options_type).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "?"
        raise InputError(
            f"method '{name}': {key}={given.get(key)} is not allowed ({first['msg'][0].lower()}{first['msg'][1:]})."
        ) from error
    spec = MethodSpec(cls, options, layers)
    spec.build()  # options that contradict each other are refused here
    return spec


def parse_layers(text: str) -> Layers:
    """Reads `all` or blocks counted from 0, such as `3/6/10`."""
    if text.strip() == "all":
        return "all"
    parts = text.split("/")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"layers '{text}' are no block numbers; write 'all' or blocks counted from 0, such as 3/6/10.")
    blocks = tuple(int(part) for part in parts)
    if list(blocks) != sorted(set(blocks)):
        raise InputError(f"layers '{text}' must be ascending and without repetition, such as 3/6/10.")
    return blocks


def layers_text(layers: Layers) -> str:
    """Layers as typed."""
    return "all" if layers == "all" else "/".join(map(str, layers))


def all_options(spec: MethodSpec) -> str:
    """Every option with its value as canonical JSON, for fingerprints."""
    layers = spec.layers if spec.layers is not None else spec.build().layers
    return json.dumps({**dataclasses.asdict(spec.options), "layers": layers_text(layers)}, sort_keys=True)


def _value(value: Any, is_switch: bool) -> Any:
    """Text as the number that it spells, or as the truth value where the option is a switch."""
    if not isinstance(value, str):
        return value
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    if is_switch and value.lower() in words:
        return words[value.lower()]
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
