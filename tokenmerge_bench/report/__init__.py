"""One HTML file that says what came of a comparison, to open and to share: `tmbench report`.

`contents.py` reads folders and says everything in words and numbers (`answers.py`, `timings.py`, `plots.py`,
`caveats.py`, `gallery.py`, `origins.py`), `charts.py` draws, `page.py` puts it into `template.html`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.report.contents import gather
from tokenmerge_bench.report.page import render
from tokenmerge_bench.store import write_text

__all__ = ["write_report"]


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Writes a report of sweeps, and of profiles beside them, to a file.

    The same folders give the same bytes.

    Args:
        folders: at least one of them a sweep's; sweeps of the same images, profiles of any hardware.
        out: the HTML file; folders on its way are created.

    Raises:
        InputError: for folders that cannot be read or shown together, if there is nothing but profiles, or if `out` is
            a folder or is not named as HTML, which a browser would show as text.
    """
    if out.is_dir():
        raise InputError(f"'{out}' is a folder; name the HTML file to write, for instance '{out / 'report.html'}'.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"'{out}' is not named as HTML; name a file to write that ends in '.html'.")
    write_text(out, render(gather(folders, out)))
