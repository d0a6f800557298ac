"""`tmbench report`: one HTML file about results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench.flags import OUTPUT, Folders, Json, option


def report(
    results: Folders = None,
    out: Annotated[Path, option("The HTML file.", "FILE", OUTPUT, names=("--out", "-o"))] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Make one HTML file from results folders and profiles, to open and to share; no model and no images needed.

    It says which method wins, by how much, whether that is significant, and, given a profile, whether it is faster.
    """
    from tokenmerge_bench.json_output import write_json
    from tokenmerge_bench.report import write_report

    write_report(results or [], out)
    if as_json:
        write_json({"files": [out]})
    else:
        typer.echo(f"report  {out}")
