"""The learning curve of a training run: loss and learning rate, and accuracy on held-out images, epoch by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.figures import style

CAPTION = (
    "Learning curve: mean training loss of every epoch, the learning rate at its beginning, and top-1 accuracy on "
    "images held out of the training set, of the weights and of their moving average."
)
_ACCURACIES = {"holdout_top1": "weights", "holdout_top1_ema": "moving average"}
_HEIGHT, _FEW = 2.0, 30
"""Height in inches; number of epochs up to which each has a marker."""


def draw(curve: pd.DataFrame) -> Figure:
    """The figure of the table in `curve.csv`; accuracies are left out where none were measured."""
    measured = [column for column in _ACCURACIES if curve[column].notna().any()]
    panels = 2 + bool(measured)
    with style.paper():
        figure = Figure(figsize=(style.DOUBLE * panels / 3, _HEIGHT), layout="constrained")
        loss, rate, *accuracy = figure.subplots(1, panels)
        _plot(loss, curve, "train_loss", "training loss")
        _plot(rate, curve, "lr", "learning rate")
        rate.yaxis.set_major_formatter("{x:g}")
        for axes in accuracy:
            for number, column in enumerate(measured):
                _plot(axes, curve, column, "top-1 accuracy, held out (%)", _ACCURACIES[column], style.PALETTE[number])
            axes.legend(loc="lower right")
    return figure


def _plot(axes: Axes, curve: pd.DataFrame, column: str, what: str, name: str = "", colour: Any = "0.2") -> None:
    marker = "." if len(curve) <= _FEW else ""
    axes.plot(curve["epoch"], curve[column], color=colour, marker=marker, label=name)
    axes.set(xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def save(file: Path) -> list[Path]:
    """Draws `curve.csv` beside it, as PNG and SVG.

    Raises:
        InputError: if the file is no learning curve.
    """
    try:
        curve = pd.read_csv(file)
        figure = draw(curve)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"'{file}' is no learning curve that `tmbench train` wrote ({error}).") from error
    return style.save(figure, file.parent, file.stem, ("png", "svg"))
