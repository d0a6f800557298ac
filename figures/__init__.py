"""One file per figure; each draws from results folders and nothing else.

A figure's file has a `CAPTION` of one sentence, `obstacle(results)`, which says in one sentence why it cannot be drawn
from these results (None if it can), and `draw(results)`. Most draw the results of sweeps, some draw profiles.
"""

from typing import Any, Protocol

from matplotlib.figure import Figure

from tokenmerge_bench.figures import fig1, fig2, fig3, fig4, speed
from tokenmerge_bench.figures.style import save
from tokenmerge_bench.profiles import Profile
from tokenmerge_bench.results import Results

__all__ = ["FIGURES", "PROFILE_FIGURES", "FigureFile", "ProfileFigureFile", "save"]


class FigureFile(Protocol):
    """What a file of this folder offers."""

    CAPTION: str

    def obstacle(self, results: Results) -> str | None:
        """Why the figure cannot be drawn from these results, in one sentence; None if it can."""

    def draw(self, results: Any) -> Figure:
        """The figure of `Results` in which there is no obstacle; one that shows no results takes None as well."""


FIGURES: dict[str, FigureFile] = {"fig1": fig1, "fig2": fig2, "fig3": fig3, "fig4": fig4}


class ProfileFigureFile(Protocol):
    """What a file of this folder offers that draws profiles."""

    CAPTION: str

    def obstacle(self, profile: Profile) -> str | None:
        """Why the figure cannot be drawn from these profiles, in one sentence; None if it can."""

    def draw(self, profile: Profile) -> Figure:
        """The figure of profiles in which there is no obstacle."""


PROFILE_FIGURES: dict[str, ProfileFigureFile] = {"speed": speed}
