"""Accuracy over cost as charts: Vega-Lite, live in a browser and the same as an SVG that stands alone.

Text, axes and outlines have the colour of the text around the chart, in a light page and in a dark one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
Specification = dict[str, Any]
"""A piece of Vega-Lite."""
CHOSEN = "indexof(shown, datum.method) >= 0"
GRID = {
    "name": "grid",
    "select": {"type": "interval", "zoom": "wheel![event.shiftKey]"},
    "bind": "scales",
}
POINTED = {
    "name": "pointed",
    "select": {"type": "point", "fields": ["method"], "on": "pointerover", "clear": "pointerout"},
}
FAINT = 0.07
"""Opacity of a band: six of them lie over each other."""
CONFIG = {
    "aria": False,
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": INK,
        "tickColor": INK,
        "gridColor": INK,
        "gridOpacity": 0.12,
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "tickCount": 7,
    },
    "title": {"color": INK, "fontSize": 13, "anchor": "start"},
    "legend": {"labelColor": INK, "labelFontSize": 12, "labelLimit": 400, "symbolSize": 90, "symbolOpacity": 1},
}
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


def _field(name: str, kind: str, **more: Any) -> Specification:
    return {"field": name, "type": kind, **more}


METHOD = _field("method", "nominal")
DASHES = _field("trained", "nominal", scale={"domain": ["no", "yes"], "range": [[1, 0], [6, 4]]}, legend=None)
TOOLTIP = [
    METHOD,
    _field("setting", "nominal"),
    _field("accuracy", "nominal", title="top-1 [95 % interval]"),
    _field("lost", "nominal", title="points lost"),
    _field("cost", "nominal"),
]


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


def specification(plot: Plot, looks: Mapping[str, Look]) -> Specification:
    """A chart in Vega-Lite: parameter `shown` holds the methods to show, `grid` is moved by dragging and zooming."""
    return {
        "title": f"{plot.model}, {plot.axis}",
        "width": "container",
        "height": HEIGHT,
        "config": CONFIG,
        "params": [{"name": "shown", "value": list(looks)}],
        "datasets": {name: _records(getattr(plot, name)) for name in ("settings", "reported", "unreduced")},
        "layer": _layers(plot, looks),
    }


def still(specification: Specification) -> str:
    """The same chart as SVG, in which nothing can be pointed at."""
    layers = [_stilled(layer) for layer in specification["layer"]]
    return str(vl_convert.vegalite_to_svg({**specification, "layer": layers, "width": WIDTH}))


@lru_cache
def runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed, as they are in the package that also draws the SVGs; licences: BSD-3-Clause."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _stilled(layer: Specification) -> Specification:
    encoding = {channel: value for channel, value in layer["encoding"].items() if channel != "opacity"}
    return {**{key: value for key, value in layer.items() if key != "params"}, "encoding": encoding}


def _records(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows as JSON has them, nothing in the place of NaN."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def _layers(plot: Plot, looks: Mapping[str, Look]) -> list[Specification]:
    """From back to front; zooming is bound to the scales of the first one."""
    everything = pd.concat([plot.settings, plot.reported, plot.unreduced], ignore_index=True)
    x, left = ({**_scaled(everything, "x", plot.title), "field": field} for field in ("x", "x_low"))
    y, bottom = ({**_scaled(everything, "top1", ACCURACY), "field": field} for field in ("top1", "top1_low"))
    legend = _legend(plot, looks)
    tint = _by_method(looks, legend, colour)
    outline = _by_method(looks, legend, lambda look: shape(look.marker))
    at = {"x": x, "y": y}
    upright = {"x": x, "y": bottom, "y2": {"field": "top1_high"}, "color": tint}
    across = {"x": left, "x2": {"field": "x_high"}, "y": y, "color": tint}
    curve = {**at, "color": tint, "strokeDash": DASHES, "order": _field("order", "quantitative"), "detail": METHOD}
    marker = {**at, "color": tint, "shape": outline, "tooltip": TOOLTIP}
    star = {"type": "point", "filled": True, "shape": shape("*"), "size": 190, "color": INK, "opacity": 1}
    dot = {"type": "point", "filled": True, "size": 90, "opacity": 1, "stroke": INK, "strokeWidth": 0.8}
    ring = {"type": "point", "filled": False, "size": 90, "opacity": 1, "strokeWidth": 1.6}
    level = {"type": "rule", "color": INK, "strokeDash": [2, 4], "opacity": 0.6}
    whisker = {"type": "rule", "strokeWidth": 1.5}
    clearer = {"condition": {"param": "pointed", "empty": False, "value": 4 * FAINT}, "value": FAINT}
    return [
        {**_layer("settings", {"type": "line", "strokeWidth": 2}, curve, CHOSEN, "datum.curve"), "params": [GRID]},
        _layer("unreduced", level, {"y": y}),
        _layer("settings", {"type": "area", "opacity": FAINT}, {**upright, "opacity": clearer}, CHOSEN, "datum.band"),
        _layer("settings", whisker, upright, CHOSEN, "!datum.band"),
        _layer("settings", whisker, across, CHOSEN, "datum.x_low < datum.x_high"),
        _layer("reported", ring, marker, CHOSEN),
        _layer("unreduced", star, {**at, "tooltip": TOOLTIP}),
        {**_layer("settings", dot, marker, CHOSEN), "params": [POINTED]},
    ]


def _layer(data: str, mark: Specification, encoding: Specification, *filters: str) -> Specification:
    transform = [{"filter": expression} for expression in filters]
    return {"data": {"name": data}, "transform": transform, "mark": mark, "encoding": encoding}


def _scaled(rows: pd.DataFrame, column: str, title: str) -> Specification:
    """An axis that shows all of a column."""
    return {
        "type": "quantitative",
        "title": title,
        "scale": {"domain": _domain(rows, column), "nice": False, "zero": False},
    }


def _by_method(looks: Mapping[str, Look], legend: Specification | None, value: Callable[[Look], str]) -> Specification:
    """What differs from method to method."""
    return {
        **METHOD,
        "scale": {"domain": list(looks), "range": [value(look) for look in looks.values()]},
        "legend": legend,
    }


def _legend(plot: Plot, looks: Mapping[str, Look]) -> Specification | None:
    """Of the methods that are drawn, in as many columns as there is room for; an empty one would have no size."""
    drawn = set(plot.settings["method"]).union(plot.reported["method"])
    names = [name for name in looks if name in drawn]
    if not names:
        return None
    longest = max(map(len, names))
    columns = max(1, min(5, LINE // (longest + 6)))
    # Fonts of readers may be wider than the one that the SVG was measured with.
    return {"title": None, "orient": "bottom", "columns": columns, "columnPadding": 20 + longest, "values": names}


def _domain(rows: pd.DataFrame, column: str) -> list[float]:
    """From the lowest to the highest, intervals included, with some room around."""
    held = [rows[name].dropna() for name in (column, f"{column}_low", f"{column}_high") if name in rows]
    low, high = min(values.min() for values in held), max(values.max() for values in held)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return [float(low - room), float(high + room)]
