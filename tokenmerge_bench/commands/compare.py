"""`tmbench compare`: two methods on the same images."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.commands.shared import complain
from tokenmerge_bench.flags import COMPARED, Folders, Json, option, split_numbers, switch
from tokenmerge_bench.terminal import stdout


def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="A method with its options, as in the tables, or `none` (unreduced).",
            metavar="A",
            autocompletion=completion.method,
        ),
    ],
    b: Annotated[str, typer.Argument(help="What it is compared with.", metavar="B", autocompletion=completion.method)],
    results: Folders = None,
    at: Annotated[
        str | None, option("Fractions of the unreduced FLOPs to interpolate both at.", "FRACTIONS", COMPARED)
    ] = None,
    unequal: Annotated[bool, switch("--unequal", "Compare budgets more than 1 % apart too.", COMPARED)] = False,
    as_json: Json = False,
) -> None:
    """Decide between two methods, image by image: difference, interval, p-value, and images needed."""
    from tokenmerge_bench.compare import compare as decide
    from tokenmerge_bench.display import comparison_sheets
    from tokenmerge_bench.json_output import write_json
    from tokenmerge_bench.results import open_results

    opened = open_results(results or [])
    found = decide(opened, a, b, unequal=unequal, at=split_numbers(at, "--at"))
    if as_json:
        names = {"a": found.a, "b": found.b, "dataset": opened.dataset}
        frames = {"pairs": found.pairs, "curves": found.curves, "at": found.at}
        write_json({**names, **frames, "left_out": found.left_out})
    else:
        for sheet in comparison_sheets(found):
            stdout().print(sheet)
    complain(f"left out: {sentence}" for sentence in found.left_out)
