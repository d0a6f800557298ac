"""What several commands do: load plugins, say where the products are, and what could not be done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from tokenmerge_bench.terminal import say


def load_plugins(paths: list[Path] | None) -> None:
    """Imports the files given with `--plugin`."""
    from tokenmerge_bench.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


@contextmanager
def interruptible(note: Callable[[str], None]) -> Iterator[None]:
    """Work that the same command goes on with after a Ctrl-C, which is noted and ends the command with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        note("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None


def tell(paths: list[Path], reasons: dict[str, str]) -> None:
    """Where the products are, and why others could not be made."""
    kinds: dict[Path, list[str]] = {}
    for path in paths:
        kinds.setdefault(path.with_suffix(""), []).append(path.suffix[1:])
    for stem, suffixes in kinds.items():
        what = "table  " if "csv" in suffixes else "figure "
        typer.echo(f"{what} {stem}.{suffixes[0]}" + (f" (also {', '.join(suffixes[1:])})" if suffixes[1:] else ""))
    complain(reasons.values())


def complain(sentences: Iterable[str]) -> None:
    """What there is to say beside the results, on stderr."""
    for sentence in sentences:
        say(sentence)
