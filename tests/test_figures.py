"""The figures: every number of the table is in them, at its place, readable, whatever the table lacks."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from made_results import made, nothing, point, right
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.figures import FIGURES, fig1, fig2, fig3, fig4, merges, reported, save, style
from tokenmerge_bench.grid import EIGHT, FOUR
from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.statistics import wilson_interval

HISTORIC = Path(__file__).parent / "historic_results" / "v1"
SMALL, LARGE = "deit_small_patch16_224", "large"
GFLOPS = {SMALL: 4.6, LARGE: 10.0}
BUDGETS = (0.9, 0.7, 0.5)


def full(model: str, count: int = 80) -> dict[str, Any]:
    return point("none", "1", GFLOPS[model], right(count), model=model, reduction=0.0)


def at(method: str, kept: float, count: int, model: str = SMALL, budget: str = "", **more: Any) -> dict[str, Any]:
    """A point at a fraction of the FLOPs, `count` of 100 images right."""
    named = {"model": model, "reduction": 1 - kept, **more}
    return point(method, budget or str(kept), GFLOPS[model] * kept, right(count), **named)


def several() -> list[dict[str, Any]]:
    """Two models; options; three seeds; a trained method; all statuses; a method at a single budget."""
    rows = []
    for model in GFLOPS:
        rows.append(full(model))
        for i, budget in enumerate(BUDGETS):
            rows.append(at("dhtm", budget, 79 - i, model))
            rows.append(at("dhtm", budget, 69 - i, model, options="averaging=plain"))
            rows += [at("random", budget, 50 - i + 2 * seed, model, seed=seed) for seed in range(3)]
            rows.append(at("tome", budget, 77 - i, model, trained="yes"))
        rows.append(nothing("tome", "0.5", "failed", "it broke", model))
        rows.append(nothing("lotm", "0.5", "unreachable", "too few pairs", model))
        rows.append(at("lotm", 0.9, 75, model))
        rows.append(nothing("sit", "", "missing", "not here yet", model))
    return rows


def many(path: Path) -> Results:
    """14 methods, with long names."""
    options = ["", *(f"averaging=plain:similarity=number{i}" for i in range(13))]
    rows = [at("dhtm", b, 70 - i, options=o) for i, o in enumerate(options) for b in (0.5, 0.7)]
    return made(path, full(SMALL), *rows)


def by_k(path: Path, model: str = SMALL) -> Results:
    """DHTM against three seeds of random merging at three k."""
    rows = [full(model)]
    for k, kept in ((10, 0.9), (30, 0.75), (48, 0.6)):
        rows.append(at("dhtm", kept, 79 - k // 10, model, budget=f"k={k}"))
        rows += [at("random", kept, 70 - k // 5 + seed, model, budget=f"k={k}", seed=seed) for seed in range(3)]
    return made(path, *rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return made(tmp_path_factory.mktemp("results") / "several", *several())


@pytest.fixture(scope="module")
def first_figure(results: Results) -> Figure:
    """Figure 1 of these results, to be looked at."""
    return fig1.draw(results)


@pytest.fixture(scope="module")
def third_figure() -> Figure:
    return fig3.draw()


def panels(figure: Figure) -> dict[str, Axes]:
    return {ax.get_title(loc="left").split()[0]: ax for ax in figure.axes}


def lines(ax: Axes) -> dict[str, list[Line2D]]:
    found: dict[str, list[Line2D]] = {}
    for line in ax.get_lines():
        if not str(line.get_label()).startswith("_"):
            found.setdefault(str(line.get_label()), []).append(line)
    return found


def xy(line: Line2D) -> np.ndarray[Any, Any]:
    return np.asarray(line.get_xydata())


def bars(ax: Axes) -> list[LineCollection]:
    return [drawn for drawn in ax.collections if isinstance(drawn, LineCollection)]


def ends(bar: LineCollection) -> list[float]:
    """x, lower and upper end of a bar, in the units of the axes."""
    ((low, high),) = bar.get_segments()
    assert low[0] == high[0]
    return [float(low[0]), float(low[1]), float(high[1])]


def seen(ax: Axes, artist: LineCollection | Line2D) -> float:
    """Where an artist is drawn, as a fraction of the horizontal axis."""
    x = ends(artist)[0] if isinstance(artist, LineCollection) else float(xy(artist)[0][0])
    return float((artist.get_transform() - ax.transAxes).transform((x, 50))[0])


def at_one_budget(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """Three methods at a single budget, at nearly the same FLOPs; one of them with three seeds."""
    rows = [full(SMALL), at("dhtm", 0.7, 75), at("tome", 0.699, 74)]
    return [*rows, *(at("random", 0.7, 60 + seed, seed=seed) for seed in range(3)), *more]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def legend(figure: Figure) -> dict[str, list[str]]:
    """The entries of the legend under each heading."""
    (found,) = figure.legends
    groups: dict[str, list[str]] = {}
    heading = ""
    for text in found.get_texts():
        name = text.get_text().replace("\n:", ":").replace("\n", " ")
        if text.get_fontweight() == "bold":
            heading = name or heading
        elif name:
            groups.setdefault(heading, []).append(name)
    return groups


def words(svg: Path) -> list[str]:
    """The texts of an SVG file."""
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter() if node.tag.endswith("}text")]


def lines_between(ax: Axes) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The borders of tokens in pieces as long as a patch, which are drawn once for each colour."""
    drawn = [np.asarray(patch.get_path().vertices).reshape(-1, 2, 2) for patch in ax.patches]
    assert all(np.array_equal(lines, drawn[0]) for lines in drawn)
    pieces = []
    for start, stop in drawn[0]:
        steps = int(np.abs(stop - start).sum())
        points = [tuple(point) for point in np.linspace(start, stop, steps + 1).tolist()]
        pieces += list(pairwise(points))
    return pieces


def cell_sides(rows: int, columns: int) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """The lines between the cells of a grid, in pieces as long as a cell."""
    for row, column in np.ndindex(rows, columns):
        if column:
            yield (column, row), (column, row + 1)
        if row:
            yield (column, row), (column + 1, row)


def check_readable(figure: Figure) -> None:
    """Nothing is clipped, nothing is tiny, the legend covers no data, and the width is that of a paper column."""
    figure.draw_without_rendering()
    for artist in [*figure.axes, *figure.legends, *(text for ax in figure.axes for text in ax.texts)]:
        box, page = artist.get_tightbbox(), figure.bbox
        assert box is not None
        assert min(box.x0, box.y0, page.x1 - box.x1, page.y1 - box.y1) >= 0, artist
    for ax in figure.axes:
        drawn = ax.get_tightbbox()
        assert drawn is not None
        assert not any(shown.get_window_extent().overlaps(drawn) for shown in figure.legends)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        assert float(text.get_fontsize()) >= 6
    assert figure.get_figwidth() in (style.SINGLE, style.DOUBLE)


def test_fig1_has_a_panel_for_each_model_and_a_line_for_each_method_with_every_number(first_figure: Figure) -> None:
    assert list(panels(first_figure)) == list(GFLOPS)
    for model, ax in panels(first_figure).items():
        found = lines(ax)
        for name, base in (("dhtm", 79), ("dhtm:averaging=plain", 69), ("random", 52), ("tome", 77)):
            (line,) = found[name]
            expected = [(GFLOPS[model] * budget, base - i) for i, budget in enumerate(BUDGETS)]
            assert xy(line) == pytest.approx(np.array(expected[::-1]))
        assert xy(found["lotm"][0]) == pytest.approx(np.array([(0.9 * GFLOPS[model], 75)]))
        assert xy(found["unreduced"][0]) == pytest.approx(np.array([(GFLOPS[model], 80)]))
        assert "sit" not in found


def test_fig1_bands_are_the_intervals_of_the_table(results: Results, first_figure: Figure) -> None:
    ax = panels(first_figure)[SMALL]
    summary = results.summary[(results.summary["model"] == SMALL) & (results.summary["label"] == "dhtm")]
    band = ax.collections[0].get_datalim(ax.transData)
    assert (band.y0, band.y1) == pytest.approx((summary["top1_low"].min(), summary["top1_high"].max()))
    assert (band.x0, band.x1) == pytest.approx((summary["gflops"].min(), summary["gflops"].max()))


def test_fig1_sets_trained_methods_apart(first_figure: Figure) -> None:
    found = lines(panels(first_figure)[LARGE])
    assert {name: found[name][0].get_linestyle() for name in ("dhtm", "tome")} == {"dhtm": "-", "tome": "--"}
    groups = legend(first_figure)
    measured, only_reported = ["dhtm", "dhtm:averaging=plain", "random", "lotm"], ["tome"]
    assert groups["off the shelf"] == measured + only_reported
    assert groups["trained"][0] == "tome"
    kinds = {"95 % interval", "95 % interval, bar", "unreduced model", reported.LEGEND, reported.TRAINED_LEGEND}
    assert set(groups["reference"]) == kinds


def test_fig1_shows_the_interval_of_a_single_setting_as_a_bar(tmp_path: Path) -> None:
    results = made(tmp_path / "r", *at_one_budget())
    figure = fig1.draw(results)
    (ax,) = figure.axes
    table = results.summary[results.summary["method"] != "none"]
    expected = table[["gflops", "top1_low", "top1_high"]].to_numpy()
    assert np.array([ends(bar) for bar in bars(ax)]) == pytest.approx(expected)
    low, high = ax.get_ylim()
    assert low < table["top1_low"].min()
    assert high > table["top1_high"].max()
    assert legend(figure)["reference"][:2] == ["95 % interval, bar", style.MOVED]


def test_single_settings_of_the_same_flops_stand_side_by_side(tmp_path: Path) -> None:
    elsewhere = at("lotm", 0.5, 50)
    for figure in (fig1, fig4):
        (ax,) = figure.draw(made(tmp_path / figure.__name__, *at_one_budget(elsewhere))).axes
        drawn = {name: found[0] for name, found in lines(ax).items() if name in ("dhtm", "tome", "random", "lotm")}
        at_bars = {round(seen(ax, bar), 6) for bar in bars(ax)}
        assert at_bars == {round(seen(ax, line), 6) for line in drawn.values()}
        place = {name: (float(xy(line)[0][0]), seen(ax, line)) for name, line in drawn.items()}
        true = {name: float((ax.transData - ax.transAxes).transform((x, 50))[0]) for name, (x, _) in place.items()}
        together = [place[name][1] for name in ("tome", "dhtm", "random") if name in place]  # in the order of FLOPs
        gaps = np.diff(together) - np.diff([true[name] for name in ("tome", "dhtm", "random") if name in true])
        assert gaps == pytest.approx(style.APART)
        assert 0.005 < style.APART < 0.01
        if "lotm" in place:
            assert place["lotm"][1] == pytest.approx(true["lotm"])


def test_settings_that_cost_the_same_are_joined_by_no_line(tmp_path: Path) -> None:
    rows = [at("dhtm", 0.7 + i / 1000, 70 + i, budget=f"k={k}") for i, k in enumerate(("40", "59/20/5", "21/60/76"))]
    (ax,) = fig1.draw(made(tmp_path / "r", full(SMALL), *rows)).axes
    measured = lines(ax)["dhtm"]
    assert [len(xy(line)) for line in measured] == [1, 1, 1]
    assert len(bars(ax)) == 3
    assert len({round(seen(ax, line), 3) for line in measured}) == 3


def test_single_trained_settings_have_dashed_bars(tmp_path: Path) -> None:
    (ax,) = fig1.draw(made(tmp_path / "r", *at_one_budget(at("tome", 0.7, 77, trained="yes")))).axes
    dashes = {round(ends(bar)[1]): bar.get_linestyle()[0][1] for bar in bars(ax)}  # type: ignore[index]
    heights = {"off": 74, "trained": 77}
    low = {name: round(100 * wilson_interval(count, 100)[0]) for name, count in heights.items()}
    assert dashes[low["off"]] is None
    assert dashes[low["trained"]] is not None


def test_fig1_shows_the_unreduced_model_fine_tuned(tmp_path: Path) -> None:
    tuned = full(SMALL, 83) | {"trained": "yes"}
    figure = fig1.draw(made(tmp_path / "r", *at_one_budget(), tuned))
    (star,) = lines(figure.axes[0])["unreduced, trained"]
    assert (star.get_marker(), star.get_fillstyle()) == ("*", "none")
    assert xy(star)[0][1] == 83
    plain = lines(figure.axes[0])["unreduced"][0]
    assert star.get_markersize() > plain.get_markersize() + 3  # seen around the other where training gains nothing
    assert "unreduced model" in legend(figure)["trained"]


def test_fig1_shows_an_unreduced_model_alone(tmp_path: Path) -> None:
    assert set(lines(fig1.draw(made(tmp_path / "r", full(LARGE))).axes[0])) == {"unreduced"}


def test_fig1_sets_published_points_of_trained_methods_apart(tmp_path: Path) -> None:
    figure = fig1.draw(made(tmp_path / "r", *at_one_budget()))
    (ax,) = figure.axes
    drawn = {float(xy(line)[0][1]): line for line in lines(ax)["tome, reported"]}
    fills = {round(79.82 - 80 + top1, 2): line.get_fillstyle() for top1, line in drawn.items()}
    assert fills == {79.63: "left", 79.18: "none"}  # Table 2: trained, off the shelf
    (keys,) = figure.legends
    shown = dict(zip([text.get_text() for text in keys.get_texts()], keys.legend_handles, strict=True))
    handle = shown[style.wrapped(reported.TRAINED_LEGEND)]
    assert isinstance(handle, Line2D)
    assert handle.get_fillstyle() == "left"
    assert "tome" in legend(figure)["trained"]


def test_published_points_move_with_the_measured_ones_of_about_their_flops(tmp_path: Path) -> None:
    (ax,) = fig1.draw(made(tmp_path / "r", *at_one_budget())).axes
    data = ax.transData - ax.transAxes
    moved = {
        (name, float(xy(line)[0][0])): seen(ax, line) - data.transform(xy(line)[0])[0]
        for name in ("tome", "dhtm", "dhtm, reported", "tome, reported")
        for line in lines(ax)[name]
    }
    assert moved["tome, reported", 3.26] == pytest.approx(moved["tome", 4.6 * 0.699])
    assert moved["tome, reported", 3.26] == pytest.approx(-style.APART)
    assert moved["dhtm, reported", 2.60] == pytest.approx(0)


def test_of_two_equal_lines_the_one_beneath_is_seen(tmp_path: Path) -> None:
    """Reducing after one block is reducing before the next: the same numbers under two names."""
    rows = [at("dhtm", b, 70 + i, options=o) for o in ("position=post", "layers=4") for i, b in enumerate((0.5, 0.7))]
    (ax,) = fig1.draw(made(tmp_path / "r", full(SMALL), *rows, *(at("tome", b, 60) for b in (0.5, 0.7)))).axes
    found = {name: drawn[0] for name, drawn in lines(ax).items()}
    beneath, above, other = found["dhtm:position=post"], found["dhtm:layers=4"], found["tome"]
    assert above.get_markersize() == other.get_markersize()
    assert beneath.get_markersize() > above.get_markersize() + 2
    assert beneath.get_linewidth() > above.get_linewidth()
    assert beneath.get_zorder() == above.get_zorder()  # the later one is drawn on top


def test_fig1_draws_published_drops_from_the_measured_unreduced_model_hollow(first_figure: Figure) -> None:
    ax = panels(first_figure)[SMALL]
    found = lines(ax)
    places = {tuple(np.round(xy(line)[0], 6)) for line in found["dhtm, reported"]}
    # Table 1 of the paper, unreduced 79.82 %; the model of this test has 80 %. k=40 and 48 stand in other places too.
    expected = [(4.21, 79.80), (3.92, 79.77), (3.63, 79.64), (3.26, 79.46), (2.90, 79.01), (2.60, 77.11)]
    assert places == {(x, round(80 - (79.82 - y), 6)) for x, y in expected}
    assert len(found["dhtm, reported"]) == len(expected)
    assert xy(found["random, reported"][0]) == pytest.approx(np.array([(2.90, 80 - (79.82 - 75.87))]))
    for name in ("dhtm", "random"):
        hollow, filled = found[f"{name}, reported"][0], found[name][0]
        assert hollow.get_markerfacecolor() == "none"
        assert filled.get_markerfacecolor() != "none"
        assert hollow.get_linestyle() == "None"
        assert (hollow.get_marker(), hollow.get_color()) == (filled.get_marker(), filled.get_color())


def test_fig1_shows_published_results_of_missing_methods_but_not_of_methods_nobody_asked_for(
    first_figure: Figure,
) -> None:
    assert xy(lines(panels(first_figure)[SMALL])["sit, reported"][0]) == pytest.approx(np.array([(3.26, 77.70)]))
    assert "sit" in legend(first_figure)["trained"]
    assert "sinkhorn, reported" not in lines(panels(first_figure)[SMALL])
    other = lines(panels(first_figure)[LARGE])
    assert not [name for name in other if "reported" in name]  # nothing was published of it


def test_fig1_marks_the_reductions_that_were_asked_for(first_figure: Figure) -> None:
    ax = panels(first_figure)[LARGE]
    assert texts(ax) == ["50 %", "30 %", "10 % fewer"]
    dotted = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert [float(xy(line)[0][0]) for line in dotted] == pytest.approx([5, 7, 9])


def test_fig1_marks_round_reductions_within_the_range_where_k_was_asked_for(tmp_path: Path) -> None:
    (ax,) = fig1.draw(by_k(tmp_path / "k")).axes
    assert texts(ax) == ["40 %", "30 %", "20 %", "10 % fewer"]


def test_fig1_has_units_and_a_second_axis_of_the_unreduced_flops(results: Results) -> None:
    figure = fig1.draw(results)
    ax = panels(figure)[LARGE]
    assert "GFLOPs" in ax.get_xlabel()
    assert "multiply-accumulates" in ax.get_xlabel()
    assert ax.get_ylabel() == "top-1 accuracy (%)"
    assert ax.get_title(loc="left") == "large\nphotographs, 100 images"
    (top,) = ax.child_axes
    assert top.get_xlabel() == "of the unreduced FLOPs"
    ax.set_xlim(5, 10)
    figure.draw_without_rendering()
    assert top.get_xlim() == pytest.approx((0.5, 1.0))


def test_fig1_does_without_the_unreduced_model(tmp_path: Path) -> None:
    rows = [nothing("none", "1", "failed", "it broke", SMALL), at("dhtm", 0.7, 70), at("dhtm", 0.5, 60)]
    figure = fig1.draw(made(tmp_path / "r", *rows))
    assert set(lines(figure.axes[0])) == {"dhtm"}
    assert legend(figure) == {"off the shelf": ["dhtm"], "reference": ["95 % interval"]}


def test_fig1_leaves_out_a_model_of_which_nothing_worked(tmp_path: Path) -> None:
    rows = [*several()[:10], nothing("none", "1", "failed", "it broke", LARGE)]
    assert list(panels(fig1.draw(made(tmp_path / "r", *rows)))) == [SMALL]


def test_fig1_says_when_there_is_nothing_to_draw(tmp_path: Path, results: Results) -> None:
    assert fig1.obstacle(results) is None
    rows = [nothing("none", "1", "failed", "it broke"), nothing("sit", "", "missing", "not here yet")]
    reason = fig1.obstacle(made(tmp_path / "r", *rows))
    assert reason is not None
    assert "finished point" in reason


def test_fourteen_methods_stay_apart(tmp_path: Path) -> None:
    figure = fig1.draw(many(tmp_path / "many"))
    looks = {(str(line.get_color()), str(line.get_marker())) for name, (line, *_) in lines(figure.axes[0]).items()}
    assert len([name for name in lines(figure.axes[0]) if name.startswith("dhtm") and "reported" not in name]) == 14
    assert len(looks) == 15  # and the unreduced model
    assert len(legend(figure)["off the shelf"]) == 14


def test_a_method_looks_the_same_in_every_figure_of_all_results(
    tmp_path: Path, results: Results, first_figure: Figure
) -> None:
    pair = by_k(tmp_path / "k")
    drawn = [panels(first_figure), panels(fig1.draw(pair)), panels(fig4.draw(results)), panels(fig4.draw(pair))]
    for name in ("dhtm", "random"):
        shown = {
            (line.get_color(), line.get_marker()) for axes in drawn for ax in axes.values() for line in lines(ax)[name]
        }
        assert len(shown) == 1


def test_many_variants_beside_all_methods_of_the_paper_look_different(tmp_path: Path) -> None:
    names = [*style.METHODS, *("mine" + "x" * i for i in range(30))]
    found = style.looks(made(tmp_path / "r", *(at(name, 0.5, 50) for name in names)))
    assert list(found) == names
    assert len(set(found.values())) == len(names) == 39
    few = style.looks(many(tmp_path / "many"))
    first = list(few.values())[:10]
    assert len({look.colour for look in first}) == len({look.marker for look in first}) == 10  # unused ones come first


def test_no_variant_has_the_look_of_a_method_of_the_paper(tmp_path: Path) -> None:
    found = style.looks(many(tmp_path / "many"))
    rows = [at(name, 0.5, 50) for name in ("tome", "lotm", "dpc_knn", "k_medoids", "sit", "sinkhorn", "random")]
    methods = style.looks(made(tmp_path / "methods", *rows))
    assert len(methods) == 7
    assert not set(found.values()) & set(methods.values())


ODD = "o$dd_%^{\\x}$&<"


def test_odd_names_are_shown_as_they_are(tmp_path: Path) -> None:
    rows = [full(SMALL), *(at("dhtm", b, 70, options=ODD, model=SMALL) for b in (0.5, 0.7)), at("random", 0.7, 60)]
    results = made(tmp_path / "r", *rows)
    for name, figure in (("fig1", fig1.draw(results)), ("fig4", fig4.draw(results))):
        (svg,) = save(figure, tmp_path, name, ("svg",))
        words = [
            "".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter() if node.tag.endswith("}text")
        ]
        assert f"dhtm:{ODD}" in words


@pytest.mark.parametrize("kind", ["several", "many", "one", "historic"])
def test_fig1_is_readable(kind: str, tmp_path: Path, results: Results) -> None:
    made_of = {
        "several": lambda: results,
        "many": lambda: many(tmp_path / "many"),
        "one": lambda: made(tmp_path / "one", full(SMALL), at("dhtm", 0.7, 79)),
        "historic": lambda: open_results([HISTORIC]),
    }
    figure = fig1.draw(made_of[kind]())
    check_readable(figure)
    for ax in figure.axes:
        (left, right_), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        for found in lines(ax).values():
            for line in found:
                assert (xy(line) >= (left, bottom)).all()
                assert (xy(line) <= (right_, top)).all()


def test_fig4_has_the_mean_and_the_spread_over_seeds(tmp_path: Path) -> None:
    results = by_k(tmp_path / "k")
    figure = fig4.draw(results)
    (ax,) = figure.axes
    found = lines(ax)
    assert xy(found["dhtm"][0]) == pytest.approx(np.array([(10, 78), (30, 76), (48, 75)]))
    assert xy(found["random"][0]) == pytest.approx(np.array([(10, 69), (30, 65), (48, 62)]))
    assert xy(found["unreduced"][0]) == pytest.approx(np.array([(0, 80)]))
    boxes = [band.get_datalim(ax.transData) for band in ax.collections]
    assert len(boxes) == 3  # an interval for each, and the spread of one
    assert (boxes[2].y0, boxes[2].y1) == pytest.approx((61, 70))  # one standard deviation is one point
    low = results.summary.loc[results.summary["label"] == "random", "top1_low"].min()
    assert boxes[1].y0 == pytest.approx(low)
    assert ax.get_xlabel().startswith("k, ")
    assert legend(figure)["measured"] == ["dhtm", "random, 3 seeds"]


def test_fig4_shows_the_published_pair_hollow_and_the_measured_gap(tmp_path: Path) -> None:
    (ax,) = fig4.draw(by_k(tmp_path / "k")).axes
    for name, top1 in (("dhtm", 79.01), ("random", 75.87)):
        (line,) = lines(ax)[f"{name}, reported"]
        assert xy(line) == pytest.approx(np.array([(48, 80 - (79.82 - top1))]))
        assert line.get_markerfacecolor() == "none"
    assert texts(ax) == ["+13.0\npoints"]


def test_fig4_is_over_gflops_where_budgets_are_no_k_and_leaves_variants_out(results: Results) -> None:
    axes = panels(fig4.draw(results))
    assert list(axes) == list(GFLOPS)
    found = lines(axes[LARGE])
    assert set(found) == {"dhtm", "random", "unreduced"}
    assert xy(found["dhtm"][0]) == pytest.approx(np.array([(5, 77), (7, 78), (9, 79)]))
    assert "GFLOPs" in axes[LARGE].get_xlabel()
    assert xy(lines(axes[SMALL])["dhtm, reported"][0]) == pytest.approx(np.array([(2.90, 79.19)]))


def test_fig4_without_several_seeds_has_no_spread(tmp_path: Path) -> None:
    figure = fig4.draw(made(tmp_path / "r", full(LARGE), at("dhtm", 0.5, 70, LARGE), at("random", 0.7, 60, LARGE)))
    assert len(figure.axes[0].collections) == 2
    assert legend(figure) == {"measured": ["dhtm", "random"], "reference": ["95 % interval, bar", "unreduced model"]}
    assert not texts(figure.axes[0])  # no budget is shared


def test_fig4_shows_the_intervals_of_a_single_budget_as_bars(tmp_path: Path) -> None:
    results = made(tmp_path / "r", *at_one_budget())
    figure = fig4.draw(results)
    table = results.summary.set_index("method").loc[["dhtm", "random"]]
    thin, thick = bars(figure.axes[0])[:2], bars(figure.axes[0])[2:]
    assert [ends(bar)[1:] for bar in thin] == [
        pytest.approx(row) for row in table[["top1_low", "top1_high"]].to_numpy()
    ]
    assert [ends(bar)[1:] for bar in thick] == [pytest.approx([60, 62])]  # one standard deviation is one point
    assert np.max(thick[0].get_linewidth()) > 2 * np.max(thin[0].get_linewidth())
    reference = ["95 % interval, bar", style.MOVED, "± 1 sd over seeds, bar", "unreduced model", reported.LEGEND]
    assert legend(figure)["reference"] == reference
    check_readable(figure)


def test_fig4_leaves_trained_points_out(tmp_path: Path) -> None:
    trained = [at(name, kept, 79, trained="yes") for name in ("dhtm", "random") for kept in (0.8, 0.6)]
    pair = [at(name, kept, 60) for name in ("dhtm", "random") for kept in (0.7, 0.5)]
    (ax,) = fig4.draw(made(tmp_path / "both", full(SMALL), *trained, *pair)).axes
    for name in ("dhtm", "random"):
        assert xy(lines(ax)[name][0]) == pytest.approx(np.array([(2.3, 60), (3.22, 60)]))
    assert "off the shelf" in (fig4.obstacle(made(tmp_path / "trained", *trained)) or "")


def test_fig4_needs_settings_of_which_one_is_the_strongest(tmp_path: Path) -> None:
    ks = ("40", "59/20/5", "21/60/76")
    same = [at(name, 0.7 + i / 500, 70 - i, budget=f"k={k}") for name in ("dhtm", "random") for i, k in enumerate(ks)]
    reason = fig4.obstacle(made(tmp_path / "same", full(SMALL), *same))
    assert "cost the same within 1 %" in (reason or "")
    assert (reason or "").endswith(".")
    assert ". " not in (reason or "")
    assert fig4.obstacle(made(tmp_path / "one", *at_one_budget())) is None
    graded = made(tmp_path / "graded", full(SMALL), *same, *(at(name, 0.5, 50, LARGE) for name in ("dhtm", "random")))
    assert fig4.obstacle(graded) is None
    assert list(panels(fig4.draw(graded))) == [LARGE]


def test_fig4_says_which_methods_it_needs(tmp_path: Path) -> None:
    rows = [full(SMALL), at("dhtm", 0.5, 70), at("random", 0.5, 60, LARGE)]
    reason = fig4.obstacle(made(tmp_path / "r", *rows))
    assert reason is not None
    assert "dhtm" in reason
    assert "random" in reason


@pytest.mark.parametrize("kind", ["several", "k"])
def test_fig4_is_readable(kind: str, tmp_path: Path, results: Results) -> None:
    figure = fig4.draw(results if kind == "several" else by_k(tmp_path / "k"))
    check_readable(figure)
    for ax in figure.axes:
        for text in ax.texts:
            assert text.get_window_extent().x0 >= ax.bbox.x0
            assert text.get_window_extent().x1 <= ax.bbox.x1


def counted(offsets: Sequence[tuple[int, int]], merged: bool) -> int:
    """Edges of the 4x4 grid, counted on its cells: cells 5 and 6 are one token once merged."""
    name = {(r, c): 5 if merged and (r, c) == (1, 2) else 4 * r + c for r in range(4) for c in range(4)}
    pairs = {
        frozenset({name[r, c], name[r + dr, c + dc]}) for r, c in name for dr, dc in offsets if (r + dr, c + dc) in name
    }
    return len({pair for pair in pairs if len(pair) == 2})


@pytest.mark.parametrize(("column", "offsets", "neighbours"), [(0, EIGHT, 10), (1, FOUR, 6)])
@pytest.mark.parametrize("row", [0, 1])
def test_fig3_draws_all_edges_and_highlights_the_union(
    third_figure: Figure, row: int, column: int, offsets: Sequence[tuple[int, int]], neighbours: int
) -> None:
    ax = np.array(third_figure.axes).reshape(2, 2)[row, column]
    edges = [line for line in ax.get_lines() if len(xy(line)) == 2]
    nodes = [line for line in ax.get_lines() if len(xy(line)) == 1]
    assert len(edges) == counted(offsets, merged=row == 1)
    assert len(nodes) == 16 - row
    pair = [tuple(xy(node)[0]) for node in nodes if node.get_marker() == "o"]
    assert pair == ([(2, 1.5)] if row else [(1.5, 1.5), (2.5, 1.5)])
    assert set(lines_between(ax)) == {*cell_sides(4, 4)} - ({((2, 1), (2, 2))} if row else set())
    near = [node for node in nodes if node.get_marker() == "s"]
    assert len(near) == neighbours
    if row:
        assert len([edge for edge in edges if edge.get_color() == "0.25"]) == neighbours
    assert f"{len(nodes)} tokens, {len(edges)} edges" in ax.get_title(loc="left")
    assert f"{neighbours} neighbours" in ax.get_title(loc="left")


def test_fig3_is_readable_and_needs_no_results(third_figure: Figure) -> None:
    assert fig3.obstacle() is None
    check_readable(third_figure)
    titles = [ax.title for ax in third_figure.axes]
    for left, right_ in (titles[:2], titles[2:]):
        assert not left.get_window_extent().overlaps(right_.get_window_extent())


# Four columns of patches, two rows: first the left half's columns merge, then everything but the last patch.
OWNERS = [[0, 0, 1, 2, 0, 0, 3, 4], [0, 0, 0, 0, 0, 0, 0, 1]]


def add_examples(results: Results, number: int, owners: Sequence[Sequence[int]], images: int = 2) -> None:
    """Examples of point `number`: pictures whose left half is red and right half is blue."""
    folder = results.folders[0] / "examples"
    folder.mkdir(exist_ok=True)
    picture = np.zeros((8, 16, 3), dtype=np.uint8)
    picture[:, :8, 0], picture[:, 8:, 2] = 200, 100
    Image.fromarray(picture).save(folder / "p.png")
    sites = [{"block": 3 + 3 * i, "tokens": max(owner) + 1, "owner": list(owner)} for i, owner in enumerate(owners)]
    held = [{"image": f"{i}.png", "picture": "p.png", "grid": [2, 4], "sites": sites} for i in range(images)]
    (folder / f"point{number}.json").write_text(json.dumps(held))


@pytest.fixture
def exemplary(tmp_path: Path) -> Results:
    """Examples of all points: unreduced, dhtm at two budgets, a stronger variant of dhtm, and random."""
    rows = [full(SMALL), at("dhtm", 0.9, 79), at("dhtm", 0.7, 78), at("dhtm", 0.5, 60, options="connectivity=4")]
    found = made(tmp_path / "examples", *rows, at("random", 0.5, 60, knob="k=5/5/5/4"))
    for number in range(5):
        add_examples(found, number, OWNERS if number else [], images=4)
    return found


def test_fig2_shows_the_strongest_default_setting_after_each_block(exemplary: Results) -> None:
    assert fig2.obstacle(exemplary) is None
    assert fig2.shown(exemplary)["point"] == "point2"
    figure = fig2.draw(exemplary)
    assert len(figure.axes) == 3 * 3
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:3] == ["original\n8 tokens", "block 3\n5 tokens", "block 6\n2 tokens"]
    assert not any(titles[3:])
    assert figure.axes[0].get_ylabel() == "dhtm\nk=9"
    assert figure.get_suptitle() == f"{SMALL} on photographs"
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert shown[0, 0].tolist() == [200, 0, 0]
    assert sorted(lines_between(figure.axes[1])) == sorted(
        [((2, 0), (2, 1)), ((3, 0), (3, 1)), ((2, 1), (2, 2)), ((3, 1), (3, 2)), ((2, 1), (3, 1)), ((3, 1), (4, 1))]
    )
    assert figure.get_figwidth() <= style.DOUBLE


def test_fig2_shows_other_settings_when_asked(exemplary: Results) -> None:
    figure = fig2.draw(exemplary, labels=["dhtm:connectivity=4", "random"], images=1)
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["dhtm:connectivity=4\nk=9", "random\nk=5x3/4"]
    assert [bool(ax.get_title(loc="left")) for ax in figure.axes] == [True] * 6
    with pytest.raises(InputError, match="no merges of tome"):
        fig2.draw(exemplary, labels=["tome"])


def test_fig2_fills_merged_regions_with_their_mean_colour_and_leaves_single_patches() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    owner = np.array(OWNERS[0])
    filled = merges.filled(picture, (2, 4), owner)
    assert (filled[:, 8:] == picture[:, 8:]).all()
    assert (filled[:, :8] == np.rint(picture[:, :8].reshape(-1, 3).mean(0))).all()


def test_fig2_shows_as_many_reductions_as_there_is_room_for_and_the_last(tmp_path: Path) -> None:
    found = made(tmp_path / "r", at("dhtm", 0.5, 60))
    owners = [[0] * (i + 1) + list(range(1, 8 - i)) for i in range(8)]
    add_examples(found, 0, owners, images=1)
    titles = [ax.get_title(loc="left") for ax in fig2.draw(found).axes]
    assert len(titles) == 1 + merges.COLUMNS
    assert titles[1].startswith("block 6\n7 ")
    assert titles[-1].startswith("block 24\n1 ")


def test_fig2_says_that_it_needs_examples(results: Results, tmp_path: Path) -> None:
    assert "examples" in (fig2.obstacle(results) or "")
    unmerged = made(tmp_path / "r", full(SMALL), at("dhtm", 1.0, 80, budget="k=0"))
    add_examples(unmerged, 1, [])
    assert "budget that merges" in (fig2.obstacle(unmerged) or "")


def test_every_figure_says_what_it_shows_in_one_sentence(results: Results) -> None:
    assert list(FIGURES) == ["fig1", "fig2", "fig3", "fig4"]
    for figure in FIGURES.values():
        assert figure.CAPTION.endswith(".")
        assert ". " not in figure.CAPTION
        reason = figure.obstacle(results)
        assert reason is None or (reason.endswith(".") and ". " not in reason)


def test_formats_are_written_with_real_text_and_nothing_else_is_left(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "paper"
    png, svg, pdf = save(fig4.draw(results), folder, "fig4")
    assert sorted(folder.iterdir()) == sorted([png, svg, pdf])
    with Image.open(png) as picture:
        assert picture.width == pytest.approx(style.DOUBLE * 300, abs=1)
        assert picture.info["dpi"][0] == pytest.approx(300, abs=1)
    assert "top-1 accuracy (%)" in words(svg)
    assert b"/FontFile2" in pdf.read_bytes()  # TrueType
    assert b"/Type3" not in pdf.read_bytes()
    assert [path.suffix for path in save(fig3.draw(), folder, "fig3", ("pdf",))] == [".pdf"]


def test_the_same_results_are_the_same_files_whatever_the_settings_of_the_user(tmp_path: Path) -> None:
    results = by_k(tmp_path / "k")
    first = save(fig4.draw(results), tmp_path / "a", "fig4")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path", "savefig.dpi": 10}):
        second = save(fig4.draw(results), tmp_path / "b", "fig4")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_figures_written_before_still_stand_when_writing_fails(tmp_path: Path) -> None:
    save(fig3.draw(), tmp_path, "fig3", ("png",))
    before = (tmp_path / "fig3.png").read_bytes()
    broken = Figure()
    broken.text(0.5, 0.5, "$\\nonsense{$", parse_math=True)
    with pytest.raises(ValueError, match="nonsense"):
        save(broken, tmp_path, "fig3", ("png",))
    assert (tmp_path / "fig3.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["fig3.png"]


def test_colours_are_distinct_in_grey_or_have_distinct_markers() -> None:
    """In greyscale two methods of the paper differ in marker; in colour, in colour too."""
    looks = list(style.METHODS.values())
    assert len({look.marker for look in looks}) == len({to_rgb(look.colour) for look in looks}) == len(looks) == 9
