"""Figure 2: the merge sequence on real images. A row per image, a column per reduction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenmerge_bench.display import short_knob
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.figures import merges, style
from tokenmerge_bench.results import Example, Results
from tokenmerge_bench.summary import label

CAPTION = (
    "What is merged with what: patches that became one token are filled with their mean colour, patches that are still "
    "a token of their own show the image; white lines are the borders of tokens, prefix tokens are not counted, and "
    "blocks from 0."
)


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
    columns = 1 + max(len(merges.sites_shown(example.sites)) for _, _, example in rows)
    side = min(1.6, (style.DOUBLE - 0.35) / columns)
    with style.paper():
        figure = Figure(
            figsize=(side * columns + 0.35, side * len(rows) + 0.3 * len(settings) + 0.25), layout="constrained"
        )
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, (run, number, example) in zip(axes, rows, strict=True):
            draw_sequence(line, example, titled=number == 0)
            knob = merges.wrapped(short_knob(run["knob"]).replace("/", "/ "), side)
            line[0].set_ylabel("\n".join([label(run["method"], run["options"]), *knob]).replace("/ ", "/"))
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


def draw_sequence(axes: Iterable[Axes], example: Example, titled: bool) -> None:
    """One image: as the model gets it, then after each reduction; all images of a setting have the same titles."""
    original, *others = axes
    merges.draw_picture(original, example.picture, example.grid)
    states = [("original", example.grid[0] * example.grid[1])]
    for ax, site in zip(others, merges.sites_shown(example.sites), strict=False):
        merges.draw_tokens(ax, example.picture, example.grid, site.owner)
        states.append((f"block {site.block}", site.tokens))
    for ax, (when, tokens) in zip([original, *others], states, strict=False):
        if titled:
            ax.set_title(f"{when}\n{tokens} tokens")
    for unused in others[len(states) - 1 :]:
        unused.set_axis_off()
