"""Figure 2: the merge sequence on real images. A row per image, a column per reduction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tokenmerge_bench.display import short_knob
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.figures import style
from tokenmerge_bench.results import Example, Results, Site
from tokenmerge_bench.summary import label

CAPTION = (
    "What is merged with what: patches that became one token are filled with their mean colour, patches that are still "
    "a token of their own show the image; white lines are the borders of tokens, prefix tokens are not counted."
)
COLUMNS = 6
"""At most so many reductions are shown, the last one among them."""

Picture = npt.NDArray[np.uint8]
Owner = npt.NDArray[np.int64]


def obstacle(results: Results) -> str | None:
    """Why the figure cannot be drawn, in one sentence; None if it can."""
    try:
        shown(results)
    except InputError as error:
        return str(error)
    return None


def draw(results: Results, labels: Sequence[str] = (), images: int = 3) -> Figure:
    """The merges of DHTM on example images, at its strongest setting.

    Args:
        results: a folder whose experiment asked for examples (see `obstacle`).
        labels: methods to show instead, with their options as in the tables; each has rows of its own.
        images: at most so many of each method.

    Raises:
        InputError: if a label has no examples.
    """
    settings = [shown(results, wanted) for wanted in labels] if labels else [shown(results)]
    rows = [(run, number, example) for run in settings for number, example in enumerate(results.examples(run)[:images])]
    columns = 1 + max(len(sites_shown(example)) for _, _, example in rows)
    side = min(1.6, (style.DOUBLE - 0.35) / columns)
    with style.paper():
        figure = Figure(
            figsize=(side * columns + 0.35, side * len(rows) + 0.3 * len(settings) + 0.25), layout="constrained"
        )
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, (run, number, example) in zip(axes, rows, strict=True):
            draw_sequence(line, example, titled=number == 0)
            line[0].set_ylabel(f"{label(run['method'], run['options'])}\n{short_knob(run['knob'])}")
        figure.suptitle(f"{settings[0]['model']} on {results.dataset}", x=0.01, horizontalalignment="left")
    return figure


def shown(results: Results, wanted: str | None = None) -> dict[Any, Any]:
    """The run to show: the strongest that has examples, of one label or of any DHTM, the default options first.

    Raises:
        InputError: if there is none.
    """
    table = results.table[results.table["status"] == "ok"].fillna({"options": ""})
    table = table.assign(label=[label(m, o) for m, o in zip(table["method"], table["options"], strict=True)])
    table = table[table["label"] == wanted] if wanted else table[table["method"] == "dhtm"]
    table = table.assign(changed=table["options"] != "")
    for run in table.sort_values(["changed", "reduction"], ascending=[True, False]).to_dict("records"):
        examples = results.examples(run)
        if examples and all(example.sites for example in examples):
            return run
    raise InputError(
        f"fig2 finds no merges of {wanted or 'dhtm'} on example images; write `examples = 4` into the experiment and "
        "run it at a budget that merges."
    )


def sites_shown(example: Example) -> list[Site]:
    """All reductions of an example, or as many as there is room for."""
    chosen = np.linspace(0, len(example.sites) - 1, min(COLUMNS, len(example.sites)))
    return [example.sites[i] for i in np.rint(chosen).astype(int)]


def draw_sequence(axes: Iterable[Axes], example: Example, titled: bool) -> None:
    """One image: as the model gets it, then after each reduction; all images of a setting have the same titles."""
    rows, columns = example.grid
    cells = np.arange(rows * columns)
    states = [("original", cells), *((f"after block {site.block + 1}", site.owner) for site in sites_shown(example))]
    for ax, (when, owner) in zip(axes, states, strict=False):
        ax.imshow(filled(example.picture, example.grid, owner), extent=(0, columns, rows, 0), interpolation="none")
        if when != "original":
            for colour, width in (("black", 0.9), ("white", 0.45)):  # seen on dark and on light regions
                ax.add_collection(LineCollection(borders(owner, example.grid), colors=colour, linewidths=width))
        if titled:
            ax.set_title(f"{when}\n{owner.max() + 1} tokens")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def filled(picture: Picture, grid: tuple[int, int], owner: Owner) -> Picture:
    """The picture (H, W, 3) with the patches of every merged token in their mean colour.

    Args:
        picture: what the model sees.
        grid: rows and columns of patches.
        owner: (N0,) token of each patch.
    """
    height, width = picture.shape[:2]
    cell = (np.arange(height) * grid[0] // height)[:, None] * grid[1] + np.arange(width) * grid[1] // width
    token = owner[cell]
    pixels = np.maximum(np.bincount(token.ravel()), 1)  # after a soft assignment, some tokens have no patch
    means = np.stack([np.bincount(token.ravel(), picture[..., c].ravel()) / pixels for c in range(3)], axis=-1)
    merged = np.bincount(owner)[token] > 1
    return np.where(merged[..., None], np.rint(means[token]).astype(np.uint8), picture)


def borders(owner: Owner, grid: tuple[int, int]) -> list[npt.NDArray[np.float64]]:
    """Lines (2 ends, x and y) in units of patches, between neighbouring patches of different tokens."""
    tokens = owner.reshape(grid)
    row, left = np.nonzero(tokens[:, :-1] != tokens[:, 1:])
    above, column = np.nonzero(tokens[:-1] != tokens[1:])
    upright = np.stack([np.stack([left + 1, row], -1), np.stack([left + 1, row + 1], -1)], 1)
    level = np.stack([np.stack([column, above + 1], -1), np.stack([column + 1, above + 1], -1)], 1)
    return list(np.concatenate([upright, level]).astype(np.float64))
