"""What is made from results, by name: tables as Markdown, CSV and LaTeX, figures as PNG, SVG and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenmerge_bench import tables
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.figures import FIGURES
from tokenmerge_bench.figures import save as save_figure
from tokenmerge_bench.results import Results

FORMATS = ("png", "svg", "pdf")
WITHOUT_RESULTS = ("fig3",)
"""Figures that explain and show no results."""


def figure_names() -> list[str]:
    """The figures, by the names of their files in `figures/`."""
    return list(FIGURES)


def table_names() -> list[str]:
    """The tables."""
    return list(tables.TABLES)


def check_names(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raises InputError for a name that is not known."""
    for name in names:
        if name not in known:
            raise InputError(f"there is no {what} '{name}'{nearest(name, list(known))}; there are {', '.join(known)}.")


def make(
    results: Results | None, names: Sequence[str], folder: Path, formats: Sequence[str] = FORMATS
) -> tuple[list[Path], dict[str, str]]:
    """Makes tables and figures from results.

    Args:
        results: opened results folders; None is enough for figures that show no results.
        names: of tables and figures.
        folder: where to write; created if missing.
        formats: of figures.

    Returns:
        The files, and for each name of which nothing could be made the reason, in one sentence.
    """
    paths: list[Path] = []
    reasons: dict[str, str] = {}
    for name in names:
        reason = obstacle(name, results)
        if reason is not None:
            reasons[name] = reason
        elif name in FIGURES:
            paths += save_figure(FIGURES[name].draw(results), folder, name, formats)
        else:
            assert results is not None
            paths += tables.save(results, folder, [name])
    return paths, reasons


def obstacle(name: str, results: Results | None) -> str | None:
    """Why a table or figure cannot be made from these results, in one sentence; None if it can."""
    if results is None:
        if name in WITHOUT_RESULTS:
            return None
        return f"{name} is made from results; name a folder that `tmbench sweep` or `tmbench run` wrote."
    return FIGURES[name].obstacle(results) if name in FIGURES else tables.unavailable(name, results)
