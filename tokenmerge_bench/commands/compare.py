"""`tmbench compare`: two methods on the same images."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tokenmerge_bench.commands.shared import stdout
from tokenmerge_bench.flags import Folders, split_numbers


def compare(
    a: Annotated[str, typer.Argument(help="A method with its options, as in the tables, or `none` (unreduced).")],
    b: Annotated[str, typer.Argument(help="What it is compared with.")],
    results: Folders = None,
    at: Annotated[str | None, typer.Option(help="Fractions of the unreduced FLOPs to interpolate both at.")] = None,
    unequal: Annotated[bool, typer.Option("--unequal", help="Compare budgets more than 1 % apart too.")] = False,
) -> None:
    """Decide between two methods, image by image: difference, interval, p-value, and images needed.

    [bold]tmbench compare dhtm tome results/demo[/bold]
    """
    from tokenmerge_bench.compare import compare as decide
    from tokenmerge_bench.display import comparison_tables
    from tokenmerge_bench.results import open_results

    found = decide(open_results(results or []), a, b, unequal=unequal, at=split_numbers(at, "--at"))
    console = stdout()
    for table in comparison_tables(found):
        console.print(table)
    for sentence in found.left_out:
        sys.stderr.write(f"tmbench: left out: {sentence}\n")
