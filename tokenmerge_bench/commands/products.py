"""`tmbench figures` and `tmbench tables`: what is made from results folders alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench.commands.shared import tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import Folders, split_list


def figures(
    results: Folders = None,
    only: Annotated[
        str | None, typer.Option(help="Figures, comma-separated; by default all that can be drawn.")
    ] = None,
    formats: Annotated[str, typer.Option(help="png, svg, pdf, comma-separated.")] = "png,svg,pdf",
    out: Annotated[Path | None, typer.Option(help="Where to write; by default the first results folder.")] = None,
) -> None:
    """Draw figures from results folders or profiles; no model and no images needed.

    [bold]tmbench figures results/table1[/bold]
    [bold]tmbench figures results/tiny results/small --only fig4 --formats pdf --out paper/[/bold]
    [bold]tmbench figures results/speed[/bold]
    """
    from tokenmerge_bench.figures import PROFILE_FIGURES
    from tokenmerge_bench.products import FORMATS, check_names, figure_names
    from tokenmerge_bench.profiles import is_profile

    wanted, forms = split_list(only, "--only"), split_list(formats, "--formats")
    check_names(wanted or [], [*figure_names(), *PROFILE_FIGURES], "figure")
    profiles = [folder for folder in results or [] if is_profile(folder)]
    if not profiles:
        if alone := [name for name in wanted or [] if name in PROFILE_FIGURES]:
            raise InputError(f"{alone[0]} is drawn from profiles; name a folder that `tmbench profile` wrote.")
        _products("figure", results, only, figure_names(), out, forms)
        return
    if len(profiles) < len(results or []):
        raise InputError(f"'{profiles[0]}' is a profile, and others are not; draw them one after the other.")
    if others := [name for name in wanted or [] if name not in PROFILE_FIGURES]:
        raise InputError(
            f"{others[0]} is drawn from a sweep, and '{profiles[0]}' is a profile; leave it out of --only."
        )
    check_names(forms or [], FORMATS, "format")
    paths, reasons = speed(profiles, out or profiles[0], forms)
    tell(paths, reasons)
    if reasons:
        raise typer.Exit(2)


def tables(
    results: Folders = None,
    only: Annotated[str | None, typer.Option(help="Tables, comma-separated; by default all that can be made.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default the first results folder.")] = None,
) -> None:
    """Make tables from results folders as Markdown, CSV and LaTeX, published numbers beside measured ones.

    [bold]tmbench tables results/table1[/bold]
    """
    from tokenmerge_bench.products import table_names

    _products("table", results, only, table_names(), out)


def _products(
    what: str,
    folders: list[Path] | None,
    only: str | None,
    known: list[str],
    out: Path | None,
    formats: list[str] | None = None,
) -> None:
    """Makes what was asked for, or all that can be made; what was asked for by name must be possible."""
    from tokenmerge_bench.products import FORMATS, WITHOUT_RESULTS, check_names, make
    from tokenmerge_bench.results import open_results

    wanted = split_list(only, "--only")
    check_names(wanted or [], known, what)
    check_names(formats or [], FORMATS, "format")
    if not folders and not (wanted and set(wanted) <= set(WITHOUT_RESULTS)):
        raise InputError("no results folder was given; name one that `tmbench sweep` or `tmbench run` wrote.")
    target = out or next(iter(folders or []), None)
    if target is None:
        raise InputError(f"{only} needs no results but a folder to write to; name one with --out.")
    paths, reasons = make(open_results(folders) if folders else None, wanted or known, target, formats or FORMATS)
    tell(paths, reasons)
    if reasons and (wanted or not paths):
        raise typer.Exit(2)


def speed(folders: list[Path], target: Path, formats: list[str] | None = None) -> tuple[list[Path], dict[str, str]]:
    """Draws what profiles show: the files, and why there are none."""
    from tokenmerge_bench.figures import PROFILE_FIGURES, save
    from tokenmerge_bench.products import FORMATS
    from tokenmerge_bench.profiles import open_profiles

    profile, paths, reasons = open_profiles(folders), [], {}
    for name, figure in PROFILE_FIGURES.items():
        reason = figure.obstacle(profile)
        if reason is None:
            paths += save(figure.draw(profile), target, name, formats or FORMATS)
        else:
            reasons[name] = reason
    return paths, reasons
