"""Accuracy over cost as charts: Vega-Lite by way of Altair, live in a browser and the same as an SVG that stands alone.

Text, axes and outlines have the colour of the text around the chart, in a light page and in a dark one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from matplotlib.colors import to_hex
from matplotlib.markers import MarkerStyle

from tokenmerge_bench.figures.style import Look

WIDTH, HEIGHT = 720, 400
"""Of the SVG, in pixels; the live chart is as wide as its place."""
LINE = 90
"""About how many characters of the legend are as wide as the SVG."""
ACCURACY = "top-1 accuracy (%)"
INK = "currentColor"
CIRCLE = "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z"


@dataclass(frozen=True, eq=False)
class Plot:
    """What one chart shows.

    Attributes:
        model: what was evaluated.
        axis: what the horizontal axis is called where it is chosen.
        title: of the horizontal axis.
        caption: what is to be seen, in a sentence or two.
        settings: a row per measured setting: `method` (as it is shown), `label` (which decides its look), `trained`,
            `x`, `x_low`, `x_high`, `top1`, `top1_low`, `top1_high`, `order` along its curve, `curve` (whether it is on
            one), `band` (whether its interval is one), and in words `setting`, `accuracy`, `lost`, `cost`.
        reported: published results, the same columns without intervals.
        unreduced: the same columns; one row, or none.
    """

    model: str
    axis: str
    title: str
    caption: str
    settings: pd.DataFrame
    reported: pd.DataFrame
    unreduced: pd.DataFrame

    @property
    def alt(self) -> str:
        """What the chart is, for those who do not see it."""
        rows = pd.concat([self.settings, self.unreduced])
        ends = rows.groupby("method", sort=False)["top1"].agg(["min", "max"]).itertuples()
        reached = ", ".join(f"{name} {low:.1f}{'' if low == high else f' to {high:.1f}'} %" for name, low, high in ends)
        return (
            f"Chart of {self.model}: top-1 accuracy against {self.title}. {reached}. The numbers stand in the tables."
        )


def shape(marker: str) -> str:
    """The outline of a marker of Matplotlib as an SVG path between -1 and 1."""
    if marker == "o":
        return CIRCLE
    style = MarkerStyle(marker)
    outline = np.asarray(style.get_path().transformed(style.get_transform()).to_polygons()[0], dtype=float)
    corners = [f"{2 * x:.3g},{-2 * y:.3g}" for x, y in outline[:-1].tolist()]
    return f"M{'L'.join(corners)}Z"


def colour(look: Look) -> str:
    """The colour of a look as CSS has it."""
    return to_hex(look.colour)


def specification(plot: Plot, looks: Mapping[str, Look]) -> dict[str, Any]:
    """A chart in Vega-Lite: parameter `shown` holds the methods to show, `grid` is moved by dragging and zooming."""
    grid = alt.selection_interval(name="grid", bind="scales", zoom="wheel![event.shiftKey]")
    chart = _styled(_layers(plot, looks).add_params(grid)).properties(width="container", height=HEIGHT)
    # Altair copies a chart with every step of making it; data that are put in last are not copied along.
    data = {"settings": plot.settings, "reported": plot.reported, "unreduced": plot.unreduced}
    return {**chart.to_dict(), "datasets": {name: alt.to_values(frame)["values"] for name, frame in data.items()}}


def still(specification: Mapping[str, Any]) -> str:
    """The same chart as SVG."""
    parameters = [parameter for parameter in specification["params"] if parameter["name"] != "grid"]
    return str(vl_convert.vegalite_to_svg({**specification, "params": parameters, "width": WIDTH}))


@lru_cache
def runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed, as they are in the package that also draws the SVGs; licences: BSD-3-Clause."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _styled(chart: alt.LayerChart) -> Any:
    return (
        chart.configure(aria=False, background="transparent", font="system-ui, sans-serif", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=INK,
            domainColor=INK,
            tickColor=INK,
            gridColor=INK,
            gridOpacity=0.12,
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            tickCount=7,
        )
        .configure_title(color=INK, fontSize=13, anchor="start")
        .configure_legend(labelColor=INK, labelFontSize=12, labelLimit=400, symbolSize=90, symbolOpacity=1)
    )


def _layers(plot: Plot, looks: Mapping[str, Look]) -> alt.LayerChart:
    """From back to front; zooming is bound to the scales of the first one."""
    shown = alt.param(name="shown", value=list(looks))
    chosen = "indexof(shown, datum.method) >= 0"
    measured = alt.Chart(alt.NamedData("settings")).transform_filter(chosen)
    reported = alt.Chart(alt.NamedData("reported")).transform_filter(chosen)
    reference = alt.Chart(alt.NamedData("unreduced"))
    curves = measured.transform_filter("datum.curve")
    banded, single = measured.transform_filter("datum.band"), measured.transform_filter("!datum.band")

    everything = pd.concat([plot.settings, plot.reported, plot.unreduced], ignore_index=True)
    across = alt.Scale(domain=_domain(everything, "x"), nice=False, zero=False)
    upward = alt.Scale(domain=_domain(everything, "top1"), nice=False, zero=False)
    x, left = (alt.X(f"{column}:Q", title=plot.title, scale=across) for column in ("x", "x_low"))
    y, bottom = (alt.Y(f"{column}:Q", title=ACCURACY, scale=upward) for column in ("top1", "top1_low"))
    right, top = alt.X2("x_high:Q"), alt.Y2("top1_high:Q")
    names, legend = list(looks), _legend(plot, looks)
    colours = alt.Scale(domain=names, range=[colour(look) for look in looks.values()])
    shapes = alt.Scale(domain=names, range=[shape(look.marker) for look in looks.values()])
    tint = alt.Color("method:N", scale=colours, legend=legend)
    outline = alt.Shape("method:N", scale=shapes, legend=legend)
    dash = alt.StrokeDash("trained:N", scale=alt.Scale(domain=["no", "yes"], range=[[1, 0], [6, 4]]), legend=None)
    hover = [
        alt.Tooltip("method:N"),
        alt.Tooltip("setting:N"),
        alt.Tooltip("accuracy:N", title="top-1 [95 % interval]"),
        alt.Tooltip("lost:N", title="points lost"),
        alt.Tooltip("cost:N"),
    ]
    layers = alt.layer(
        curves.mark_line(strokeWidth=2).encode(x, y, tint, dash, alt.Order("order:Q"), alt.Detail("method:N")),
        reference.mark_rule(color=INK, strokeDash=[2, 4], opacity=0.6).encode(y),
        banded.mark_area(opacity=0.13).encode(x, bottom, top, tint),
        single.mark_rule(strokeWidth=1.5).encode(x, bottom, top, tint),
        measured.transform_filter("datum.x_low < datum.x_high").mark_rule(strokeWidth=1.5).encode(left, right, y, tint),
        reported.mark_point(filled=False, size=90, opacity=1, strokeWidth=1.6).encode(x, y, tint, outline, hover),
        reference.mark_point(filled=True, shape=shape("*"), size=190, color=INK, opacity=1).encode(x, y, hover),
        measured.mark_point(filled=True, size=90, opacity=1, stroke=INK, strokeWidth=0.8).encode(
            x, y, tint, outline, hover
        ),
        title=f"{plot.model}, {plot.axis}",
    )
    return cast(alt.LayerChart, layers.add_params(shown))


def _legend(plot: Plot, looks: Mapping[str, Look]) -> alt.Legend | None:
    """Of the methods that are drawn, in as many columns as there is room for; an empty one would have no size."""
    drawn = set(plot.settings["method"]).union(plot.reported["method"])
    names = [name for name in looks if name in drawn]
    if not names:
        return None
    columns = max(1, min(5, LINE // (max(map(len, names)) + 6)))
    # Fonts of readers may be wider than the one that the SVG was measured with.
    return alt.Legend(title=None, orient="bottom", columns=columns, columnPadding=30, values=names)


def _domain(rows: pd.DataFrame, column: str) -> list[float]:
    """From the lowest to the highest, intervals included, with some room around."""
    held = [rows[name].dropna() for name in (column, f"{column}_low", f"{column}_high") if name in rows]
    low, high = min(values.min() for values in held), max(values.max() for values in held)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return [float(low - room), float(high + room)]
