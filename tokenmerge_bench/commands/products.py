"""`tmbench figures` and `tmbench tables`: what is made from results folders alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.commands.shared import complain, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import OUTPUT, Folders, Json, option, split_list


def figures(
    results: Folders = None,
    only: Annotated[
        str | None,
        option("Figures, comma-separated; by default all that can be drawn.", "FIGURES", OUTPUT, completion.figures),
    ] = None,
    formats: Annotated[
        str, option("png, svg, pdf, comma-separated.", "FORMATS", OUTPUT, completion.formats)
    ] = "png,svg,pdf",
    out: Annotated[
        Path | None, option("Where to write; by default the first results folder.", "FOLDER", OUTPUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw figures from results folders or profiles; no model and no images needed."""
    from tokenmerge_bench.figures import PROFILE_FIGURES
    from tokenmerge_bench.products import FORMATS, check_names, figure_names
    from tokenmerge_bench.profiles import is_profile

    wanted, forms = split_list(only, "--only"), split_list(formats, "--formats")
    check_names(wanted or [], [*figure_names(), *PROFILE_FIGURES], "figure")
    profiles = [folder for folder in results or [] if is_profile(folder)]
    if not profiles:
        if alone := [name for name in wanted or [] if name in PROFILE_FIGURES]:
            raise InputError(f"{alone[0]} is drawn from profiles; name a folder that `tmbench profile` wrote.")
        _products("figure", results, only, figure_names(), out, forms, as_json)
        return
    if len(profiles) < len(results or []):
        raise InputError(f"'{profiles[0]}' is a profile, and others are not; draw them one after the other.")
    if others := [name for name in wanted or [] if name not in PROFILE_FIGURES]:
        raise InputError(
            f"{others[0]} is drawn from a sweep, and '{profiles[0]}' is a profile; leave it out of --only."
        )
    check_names(forms or [], FORMATS, "format")
    paths, reasons = speed(profiles, out or profiles[0], forms)
    _tell(paths, reasons, as_json)
    if reasons:
        raise typer.Exit(2)


def tables(
    results: Folders = None,
    only: Annotated[
        str | None,
        option("Tables, comma-separated; by default all that can be made.", "TABLES", OUTPUT, completion.tables),
    ] = None,
    out: Annotated[
        Path | None, option("Where to write; by default the first results folder.", "FOLDER", OUTPUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make tables from results folders as Markdown, CSV and LaTeX, published numbers beside measured ones."""
    from tokenmerge_bench.products import table_names

    _products("table", results, only, table_names(), out, None, as_json)


def _products(
    what: str,
    folders: list[Path] | None,
    only: str | None,
    known: list[str],
    out: Path | None,
    formats: list[str] | None,
    as_json: bool,
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
    if paths and not wanted:  # nobody asked for these in particular
        reasons = {name: f"{name} is left out: {reason}" for name, reason in reasons.items()}
    _tell(paths, reasons, as_json)
    if reasons and (wanted or not paths):
        raise typer.Exit(2)


def _tell(paths: list[Path], reasons: dict[str, str], as_json: bool) -> None:
    """What was made; nothing on stdout where nothing was, which ends with an error."""
    from tokenmerge_bench.json_output import write_json

    if as_json and paths:
        write_json({"files": paths, "left_out": reasons})
        complain(reasons.values())
    else:
        tell(paths, reasons)


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
