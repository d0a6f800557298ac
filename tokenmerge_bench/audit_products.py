"""The paper's tables and figures in the audit's document, drawn from the results folders that were made for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenmerge_bench.figures import FIGURES
from tokenmerge_bench.products import figure_names, make, obstacle, table_names
from tokenmerge_bench.rendering import render
from tokenmerge_bench.results import Results
from tokenmerge_bench.tables import TABLES

OWN = ("results",)
"""Tables that the paper does not have; the section on accuracy says what they say."""


def show_products(results: Sequence[Results], folder: Path) -> list[str]:
    """Markdown of every table and figure of the paper that these results were made for, pictures below `folder`.

    What an experiment shows is recorded with its results. Of several folders that show the same of the same models
    and images, the first is taken.
    """
    lines: list[str] = []
    for name, found in sorted(_wanted(results), key=lambda pair: pair[0] in figure_names()):
        if name in TABLES:
            lines += [render(name, TABLES[name](found), "md").strip(), ""]
        else:
            file = f"{found.table['experiment'].iloc[0]}-{found.dataset}"
            pictures, _ = make(found, [name], folder / "figures" / file, ("png", "svg"))
            where = pictures[0].relative_to(folder).as_posix()
            lines += [f"![{name}]({where})", "", f"*{_title(name)} {FIGURES[name].CAPTION}*", ""]
    return ["## Tables and figures, reported and measured", "", *lines] if lines else []


def _wanted(results: Sequence[Results]) -> Iterator[tuple[str, Results]]:
    seen = set()
    for found in results:
        asked = found.provenance[0].get("experiment", {}).get("shows", [])
        for name in asked:
            key = (name, found.fingerprints, tuple(found.summary["model"].unique()))
            if name not in (*table_names(), *figure_names()) or name in OWN or key in seen or obstacle(name, found):
                continue
            seen.add(key)
            yield name, found


def _title(name: str) -> str:
    return f"Figure {name.removeprefix('fig')}."
