"""The paper's tables and figures in the audit's document, drawn from the results folders that were made for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tokenmerge_bench.figures import FIGURES
from tokenmerge_bench.products import make, obstacle
from tokenmerge_bench.rendering import render
from tokenmerge_bench.results import Results
from tokenmerge_bench.tables import TABLES

FOLDED = "results"
"""The table of all settings, which the paper has not and which is long."""


def show_products(results: Sequence[Results], folder: Path) -> list[str]:
    """Markdown of the tables and figures that these results were made for, pictures below `folder`.

    What an experiment shows is recorded with its results. Of several folders that show the same of the same models
    and images, the first is taken; tables of all settings differ and are folded.
    """
    lines: list[str] = []
    for name, found in sorted(_wanted(results), key=lambda pair: (pair[0] == FOLDED, pair[0] in FIGURES)):
        if name in FIGURES:
            lines += _picture(name, found, folder)
            continue
        text = render(name, TABLES[name](found), "md").strip()
        if name == FOLDED:
            text = f"<details>\n<summary>{escape(_title(found))}</summary>\n\n{text}\n\n</details>"
        lines += [text, ""]
    return ["## Tables and figures, reported and measured", "", *lines] if lines else []


def _wanted(results: Sequence[Results]) -> Iterator[tuple[str, Results]]:
    seen = set()
    for found in results:
        for name in _experiment(found).get("shows", []):
            key = (name, found.fingerprints, tuple(found.summary["model"].unique()), name == FOLDED and _title(found))
            known = name in FIGURES or name in TABLES
            if known and key not in seen and obstacle(name, found) is None:
                seen.add(key)
                yield name, found


def _picture(name: str, found: Results, folder: Path) -> list[str]:
    place = folder / "figures" / f"{found.table['experiment'].iloc[0]}-{found.dataset}"
    picture, _ = make(found, [name], place, ("png", "svg"))[0]
    where = picture.relative_to(folder).as_posix()
    return [f"![{name}]({where})", "", f"*Figure {name.removeprefix('fig')}. {FIGURES[name].CAPTION}*", ""]


def _experiment(found: Results) -> dict[str, Any]:
    held: dict[str, Any] = found.provenance[0].get("experiment", {})
    return held


def _title(found: Results) -> str:
    title = _experiment(found).get("title") or found.table["experiment"].iloc[0]
    return f"{title}: all settings"
