"""Figure 3: which tokens are neighbours, with 8- and with 4-connectivity, before and after a merge."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tokenmerge_bench.figures import merges, style
from tokenmerge_bench.results import Results

CAPTION = (
    "Neighbours on the grid with 8- and with 4-connectivity: a merged token has all neighbours that either of the two "
    "tokens had."
)
GRID = (4, 4)
PAIR = (5, 6)
"""Cells that are merged, in row-major order."""
PAIR_LOOK: dict[str, Any] = {"marker": "o", "color": style.PALETTE[0], "markersize": 6.5}
NEIGHBOUR_LOOK: dict[str, Any] = {"marker": "s", "color": style.PALETTE[1], "markersize": 4.5}
OTHER_LOOK: dict[str, Any] = {"marker": ".", "color": "0.6", "markersize": 4.5}


def obstacle(results: Results | None = None) -> str | None:
    """The figure needs no results."""
    return None


def draw(results: Results | None = None) -> Figure:
    """The grid graph before and after one merge; edges come from the functions that the methods use."""
    separate = np.arange(GRID[0] * GRID[1])
    merged = np.unique(np.where(separate == PAIR[1], PAIR[0], separate), return_inverse=True)[1]
    with style.paper():
        figure = Figure(figsize=(style.SINGLE, 3.3), layout="constrained")
        axes = figure.subplots(2, 2)
        for column, connectivity in zip(axes.T, (8, 4), strict=True):
            draw_graph(column[0], separate, connectivity)
            draw_graph(column[1], merged, connectivity)
            column[0].set_title(f"{connectivity}-connectivity\n{column[0].get_title('left')}")
        axes[0, 0].set_ylabel("before")
        axes[1, 0].set_ylabel("after one merge")
        entries = {"pair, then merged token": PAIR_LOOK, "its neighbours": NEIGHBOUR_LOOK}
        keys: dict[str, Artist] = {name: Line2D([], [], linestyle="none", **look) for name, look in entries.items()}
        style.legend_below(figure, {"": keys})
    return figure


def draw_graph(ax: Axes, owner: npt.NDArray[np.int64], connectivity: int) -> None:
    """One graph: a node for each token in the middle of its cells, an edge for each pair of neighbours.

    Args:
        ax: where.
        owner: (N0,) token of each cell.
        connectivity: 8 or 4.
    """
    import torch  # which takes seconds to import, and this figure alone needs it

    from tokenmerge_bench.grid import OFFSETS, adjacency, cell_edges

    tokens = int(owner.max()) + 1
    edges = cell_edges(GRID, OFFSETS[connectivity], torch.device("cpu"))
    touching = adjacency(torch.from_numpy(owner)[None], edges, tokens)[0].numpy()
    cells = np.stack(np.unravel_index(np.arange(len(owner)), GRID)[::-1], axis=-1) + 0.5  # x, y of their middles
    place = np.array([cells[owner == token].mean(0) for token in range(tokens)])
    pair = set(owner[list(PAIR)].tolist())
    near = set(np.flatnonzero(touching[list(pair)].any(0)).tolist()) - pair

    shade = np.where(np.isin(owner, list(pair)), 205, 238).astype(np.uint8).reshape(*GRID, 1)
    merges.draw_picture(ax, shade.repeat(3, axis=2), GRID)
    merges.draw_borders(ax, owner, GRID, width=1.2, colour="white")
    for i, j in np.argwhere(np.triu(touching)):
        line: dict[str, Any] = {"color": "0.25", "zorder": 2} if pair & {i, j} else {"color": "0.8", "zorder": 1}
        ax.plot(*place[[i, j]].T, **line, linewidth=0.9)
    for token, (x, y) in enumerate(place):
        look = PAIR_LOOK if token in pair else NEIGHBOUR_LOOK if token in near else OTHER_LOOK
        ax.plot(x, y, **look, zorder=3)
    what = "pair" if len(pair) == 2 else "merged"
    ax.set_title(f"{tokens} tokens, {touching.sum() // 2} edges\n{what}: {len(near)} neighbours")
