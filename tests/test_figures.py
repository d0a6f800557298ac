"""The accuracy-FLOPs figure: every number of the table is in it, whatever the table lacks."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tokenmerge_bench.figures.accuracy_flops import draw, save
from tokenmerge_bench.store import COLUMNS, read_results

HISTORIC = Path(__file__).parent / "historic_results" / "v1"


def row(model: str, method: str, gflops: float, top1: float | None, **more: Any) -> dict[str, Any]:
    found = {"model": model, "method": method, "dataset": "d", "trained": "no", "seed": 0, "status": "failed", **more}
    if top1 is not None:
        found |= {"top1": top1, "top1_low": top1 - 3, "top1_high": top1 + 2, "top5": 99.0, "n_images": 100.0}
        found |= {"gflops": gflops, "images_per_s": 1.0, "latency_ms": 1.0, "status": "ok"}
    return found


def several() -> list[dict[str, Any]]:
    """Two models; options; three seeds; a failed and an unreachable row; one method at a single budget."""
    rows = []
    for model, size in (("small", 1.0), ("large", 4.0)):
        rows.append(row(model, "none", size, 80.0, budget="1"))
        for budget in (0.9, 0.7, 0.5):
            text = str(budget)
            rows.append(row(model, "dhtm", size * budget, 70 + 10 * budget, budget=text))
            rows.append(row(model, "dhtm", size * budget, 60 + 10 * budget, budget=text, options="averaging=plain"))
            rows += [
                row(model, "random", size * budget, 50 + 10 * budget + seed, budget=text, seed=seed)
                for seed in range(3)
            ]
        rows.append(row(model, "tome", 0.0, None, budget="0.5"))
        rows.append(row(model, "lotm", 0.0, None, budget="0.5", status="unreachable"))
        rows.append(row(model, "lotm", 0.9 * size, 75.0, budget="0.9"))
    return rows


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{column: r.get(column) for column in COLUMNS} for r in rows])


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def panels(figure: Figure) -> dict[str, Axes]:
    return {ax.get_title(loc="left").split()[0]: ax for ax in figure.axes}


def named_lines(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]
        for line in ax.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_a_panel_for_each_model_and_a_line_for_each_method_with_its_options() -> None:
    figure = draw(table(several()))
    assert list(panels(figure)) == ["small", "large"]
    for model, size in (("small", 1.0), ("large", 4.0)):
        lines = named_lines(panels(figure)[model])
        assert set(lines) == {"dhtm", "dhtm:averaging=plain", "random", "lotm", "unreduced"}
        for name, base in (("dhtm", 70), ("dhtm:averaging=plain", 60), ("random", 51)):
            assert [x for x, _ in lines[name]] == pytest.approx([size * b for b in (0.5, 0.7, 0.9)])
            assert [y for _, y in lines[name]] == pytest.approx([base + 10 * b for b in (0.5, 0.7, 0.9)])
        assert lines["lotm"] == [(0.9 * size, 75.0)]
        assert lines["unreduced"] == [(size, 80.0)]
    assert sorted(legend(figure)) == sorted(["dhtm", "dhtm:averaging=plain", "random", "lotm", "unreduced"])


def test_single_seeds_are_dots_and_intervals_are_bands() -> None:
    ax = panels(draw(table(several())))["small"]
    dots = [line for line in ax.get_lines() if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [9]  # type: ignore[arg-type]
    assert len(ax.collections) == 4
    band = ax.collections[0].get_datalim(ax.transData)
    assert (band.y0, band.y1) == pytest.approx((72.0, 81.0))


def test_all_data_lie_within_the_axes() -> None:
    results = table(several())
    figure = draw(results)
    figure.canvas.draw()
    for model, ax in panels(figure).items():
        rows = results[(results["model"] == model) & (results["status"] == "ok")]
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert left < rows["gflops"].min() <= rows["gflops"].max() < right
        assert bottom < rows["top1"].min() <= rows["top1"].max() < top
        single = rows[rows["method"] != "random"]
        assert bottom <= single["top1_low"].min()
        assert top >= single["top1_high"][single["method"] != "none"].max()


def test_axes_say_what_they_show() -> None:
    ax = panels(draw(table(several())))["small"]
    assert "GFLOPs" in ax.get_xlabel()
    assert "multiply-accumulates" in ax.get_xlabel()
    assert "top-1" in ax.get_ylabel()
    assert ax.get_title(loc="left") == "small on d, 100 images"


def test_a_method_has_one_colour_in_all_panels_and_the_legend_has_them_all() -> None:
    rows = [r for r in several() if not (r["model"] == "large" and r["method"] in ("random", "none"))]
    figure = draw(table(rows))
    colours = [
        {
            str(line.get_label()): line.get_color()
            for line in ax.get_lines()
            if not str(line.get_label()).startswith("_")
        }
        for ax in panels(figure).values()
    ]
    shared = set(colours[0]) & set(colours[1])
    assert shared == {"dhtm", "dhtm:averaging=plain", "lotm"}
    assert all(colours[0][name] == colours[1][name] for name in shared)
    assert set(legend(figure)) == {"dhtm", "dhtm:averaging=plain", "random", "lotm", "unreduced"}


def test_it_does_without_the_unreduced_row() -> None:
    rows = [r if r["method"] != "none" else row(r["model"], "none", 0.0, None, budget="1") for r in several()]
    figure = draw(table(rows))
    assert "unreduced" not in named_lines(panels(figure)["small"])
    assert "unreduced" not in legend(figure)


def test_a_model_of_which_nothing_worked_has_no_panel() -> None:
    rows = [r if r["model"] == "small" else row("large", r["method"], 0.0, None, budget="1") for r in several()]
    assert list(panels(draw(table(rows)))) == ["small"]


def test_more_methods_than_colours_stay_apart_by_marker() -> None:
    rows = [row("m", "none", 1.0, 80.0, budget="1")]
    rows += [row("m", "dhtm", b, 50.0 + i, budget=str(b), options=f"k={i}") for i in range(12) for b in (0.5, 0.7)]
    (ax,) = draw(table(rows)).axes
    looks = {
        (str(line.get_color()), str(line.get_marker()))
        for line in ax.get_lines()
        if str(line.get_label()).startswith("dhtm")
    }
    assert len(looks) == 12


@pytest.mark.parametrize("results", [table(several()), read_results(HISTORIC)], ids=["made", "historic"])
def test_png_and_svg_are_written_and_can_be_read(results: pd.DataFrame, tmp_path: Path) -> None:
    png, svg = save(results, tmp_path)
    with Image.open(png) as picture:
        assert min(picture.size) > 500
        colours = picture.convert("RGB").getcolors(2**24)
        assert colours is not None
        assert len(colours) > 20
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert not plt.get_fignums()
