"""What several commands do: plugins, tables on stdout, where the products are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer


def load_plugins(paths: list[Path] | None) -> None:
    """Imports the files given with `--plugin`."""
    from tokenmerge_bench.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def stdout() -> Any:
    """The rich console for tables."""
    from rich.console import Console

    # A pipe has no width of its own; tables are then as wide as they need.
    return Console() if sys.stdout.isatty() else Console(width=250)


def tell(paths: list[Path], reasons: dict[str, str]) -> None:
    """Where the products are, and why others could not be made."""
    kinds: dict[Path, list[str]] = {}
    for path in paths:
        kinds.setdefault(path.with_suffix(""), []).append(path.suffix[1:])
    for stem, suffixes in kinds.items():
        what = "table  " if "csv" in suffixes else "figure "
        typer.echo(f"{what} {stem}.{suffixes[0]}" + (f" (also {', '.join(suffixes[1:])})" if suffixes[1:] else ""))
    for reason in reasons.values():
        sys.stderr.write(f"tmbench: {reason}\n")
