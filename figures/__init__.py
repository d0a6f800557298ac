"""One file per figure; each draws from results folders and nothing else.

A figure's file has a `CAPTION` of one sentence, `obstacle(results)`, which says in one sentence why it cannot be drawn
from these results (None if it can), and `draw(results)`.
"""

from typing import Any, Protocol

from matplotlib.figure import Figure

from tokenmerge_bench.figures import fig1, fig2, fig3, fig4
from tokenmerge_bench.figures.style import save
from tokenmerge_bench.results import Results

__all__ = ["FIGURES", "FigureFile", "save"]


class FigureFile(Protocol):
    """What a file of this folder offers."""

    CAPTION: str

    def obstacle(self, results: Results) -> str | None:
        """Why the figure cannot be drawn from these results, in one sentence; None if it can."""

    def draw(self, results: Any) -> Figure:
        """The figure of `Results` in which there is no obstacle; one that shows no results takes None as well."""


FIGURES: dict[str, FigureFile] = {"fig1": fig1, "fig2": fig2, "fig3": fig3, "fig4": fig4}
