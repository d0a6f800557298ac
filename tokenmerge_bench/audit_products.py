"""The paper's tables and figures in the audit's document, drawn from the results folders that were made for them."""

from __future__ import annotations

import hashlib
import re
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

    What an experiment shows is recorded with its results. Of several folders that hold the same settings of the same
    images (in another crop, say), the first is taken. Tables of all settings are folded.
    """
    lines: list[str] = []
    for name, found in sorted(_wanted(results), key=lambda pair: (pair[0] == FOLDED, pair[0] in FIGURES)):
        if name in FIGURES:
            lines += _picture(name, found, folder)
            continue
        text = render(name, TABLES[name](found), "md").strip()
        if name == FOLDED:
            text = f"<details>\n<summary>{escape(_title(found))}: all settings</summary>\n\n{text}\n\n</details>"
        lines += [text, ""]
    return ["## Tables and figures, reported and measured", "", *lines] if lines else []


def _wanted(results: Sequence[Results]) -> Iterator[tuple[str, Results]]:
    seen = set()
    for found in results:
        shows = _experiment(found).get("shows")
        for name in shows if isinstance(shows, list) else []:
            known = name in FIGURES or name in TABLES
            if known and _content(name, found) not in seen and obstacle(name, found) is None:
                seen.add(_content(name, found))
                yield name, found


def _content(name: str, found: Results) -> tuple[object, ...]:
    """What tells a table or figure from another of the same name."""
    settings = found.summary[["model", "label", "budget"]]
    return name, found.fingerprints, tuple(settings.itertuples(index=False, name=None))


def _picture(name: str, found: Results, folder: Path) -> list[str]:
    # The words come from the folder, which may be anybody's: nothing in them may lead elsewhere.
    words = re.sub(r"[^\w.-]", "_", f"{found.table['experiment'].iloc[0]}-{found.dataset}").strip(".")
    mark = hashlib.sha256(repr(_content(name, found)).encode()).hexdigest()[:6]
    picture, _ = make(found, [name], folder / "figures" / f"{words}-{mark}", ("png", "svg"))[0]
    where = picture.relative_to(folder).as_posix()
    caption = f"{_title(found)}. {FIGURES[name].CAPTION}"
    return [f"![{name}]({where})", "", f"*{caption}*", ""]


def _experiment(found: Results) -> dict[str, Any]:
    held: dict[str, Any] = found.provenance[0].get("experiment", {})
    return held


def _title(found: Results) -> str:
    title = _experiment(found).get("title") or found.table["experiment"].iloc[0]
    return str(title)
