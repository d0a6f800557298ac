"""The page: contents put into the template, with everything it needs inside the one file.

Text is escaped by the template (Jinja2's autoescape), data for the script by its `tojson`. On top of that the page's
own policy lets a browser run no script but ours, known by their hashes, and load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from tokenmerge_bench.provenance import version
from tokenmerge_bench.report import charts
from tokenmerge_bench.report.contents import Contents

VERDICT = [
    ("where", "for", False),
    ("budget", "budget", False),
    ("winner", "most accurate", False),
    ("outcome", "outcome", False),
    ("top1", "top-1", True),
    ("loss", "points lost", True),
    ("leads", "lead in points", False),
    ("p", "p", True),
    ("speeds", "times as fast as unreduced", False),
]
"""Columns of the table of verdicts: a field of `Verdict`, its heading, and whether it holds numbers. One that would be
empty is left out."""


def render(contents: Contents) -> str:
    """The report as HTML; the same contents give the same text."""
    runtime, script = charts.runtime(), _own("report.js")
    drawn = [(plot, charts.specification(plot, contents.looks)) for plot in contents.plots]
    template = _environment().from_string(_own("template.html"))
    return template.render(
        page=contents,
        sections=_sections(contents),
        models=list(dict.fromkeys(plot.model for plot in contents.plots)),
        verdict_columns=[
            column for column in VERDICT if any(getattr(verdict, column[0]) for verdict in contents.verdicts)
        ],
        stills=[(plot, Markup(charts.still(spec))) for plot, spec in drawn],
        charts=[
            {"model": plot.model, "axis": plot.axis, "caption": plot.caption, "alt": plot.alt, "spec": spec}
            for plot, spec in drawn
        ],
        policy=_policy(runtime, script),
        runtime=Markup(runtime),
        script=Markup(script),
        style=Markup(_own("report.css")),
        notices=_own("notices.txt"),
        version=version(),
    )


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "breakable": breakable,
        "colour": charts.colour,
        "data_uri": data_uri,
        "marked": marked,
        "prose": prose,
        "outline": lambda look: charts.shape(look.marker),
    }
    return environment


def data_uri(content: str | bytes, kind: str) -> str:
    """A file as an address that holds it."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def marked(text: str) -> Markup:
    """Escaped text in which `**bold**` is bold."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


def prose(text: str) -> Markup:
    """Escaped text in which what stands between backticks is a command, and no line ends before a per cent sign."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)).replace(" %", "\u00a0%")))


def breakable(text: str) -> Markup:
    """Escaped text in which a line may end within a name: where an option or a value begins, and, with much to come,
    behind an underscore."""
    return Markup("<wbr>").join(re.split(r"(?<=[:=/,])(?=\S)|(?<=_)(?=\S{11})", text))


def _sections(contents: Contents) -> dict[str, str]:
    """The anchors and headings of the page's own table of contents."""
    found = {
        "verdict": "Verdict",
        "what": "What was compared",
        "charts": "Charts",
        "tables": "All numbers",
        "pairs": "Every pair",
        "merges": "Merges",
        "caveats": "Failures and caveats",
        "provenance": "Provenance",
    }
    return {anchor: heading for anchor, heading in found.items() if anchor != "pairs" or contents.pairs}


def _policy(*scripts: str) -> str:
    """What the browser may do for this page: run these scripts, show pictures that are in it."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def _own(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
