"""The figure of FLOPs saved against time saved, and the command that draws it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, assert_refused
from made_profiles import DEIT, base, cell, written
from made_results import made, point, right, unreduced
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sweeping import contents

from tokenmerge_bench.figures import FIGURES, PROFILE_FIGURES, speed, style
from tokenmerge_bench.profiles import open_profiles

BASE = "deit_base_patch16_224"


def lines(figure: Figure, panel: int = 0) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in figure.axes[panel].get_lines()}


def xy(line: Line2D) -> list[list[float]]:
    return [[round(float(x), 6), round(float(y), 6)] for x, y in np.asarray(line.get_xydata())]


def words(figure: Figure) -> str:
    top = [figure.get_suptitle(), *(text.get_text() for legend in figure.legends for text in legend.get_texts())]
    return "\n".join([*top, *(ax.get_title(loc="left") for ax in figure.axes)])


def test_a_setting_stands_at_its_savings_and_below_its_bound(tmp_path: Path) -> None:
    profile = written(tmp_path / "p", base(), cell("dhtm", 0.7, 1.25), cell("tome", 0.5, 0.8, 2.0))
    figure = speed.draw(profile)
    assert xy(lines(figure)["dhtm"]) == [[30, 20]]
    assert xy(lines(figure)["dhtm, free drop"]) == [[30, round(100 * (1 - 1 / 1.4), 6)]]
    assert xy(lines(figure)["tome"]) == [[50, -25]]
    assert xy(lines(figure)["tome, free drop"]) == [[50, 50]]
    assert lines(figure)["dhtm"].get_fillstyle() == "full"
    assert lines(figure)["dhtm, free drop"].get_fillstyle() == "none"
    assert lines(figure)["dhtm"].get_color() == style.METHODS["dhtm"].colour
    drawn = [c.get_segments()[0] for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    expected = [[30, 100 * (1 - 1 / 1.125)], [30, 100 * (1 - 1 / 1.375)]]
    assert any(np.allclose(segment, expected) for segment in drawn)


def test_a_method_at_several_budgets_is_a_curve(tmp_path: Path) -> None:
    rows = [cell("dhtm", kept, 2 - kept) for kept in (0.5, 0.9, 0.7)]
    figure = speed.draw(written(tmp_path / "p", base(), *rows))
    assert [x for x, _ in xy(lines(figure)["dhtm"])] == [10, 30, 50]
    assert "95 % interval" in words(figure)
    assert style.MOVED not in words(figure)


def test_settings_of_the_same_flops_stand_side_by_side_more_saved_to_the_right(tmp_path: Path) -> None:
    kept = {"dhtm": 0.702, "tome": 0.7, "lotm": 0.698}
    figure = speed.draw(written(tmp_path / "p", base(), *(cell(name, k, 1.2) for name, k in kept.items())))
    figure.canvas.draw()
    ax = figure.axes[0]
    seen = [float(lines(figure)[n].get_transform().transform(xy(lines(figure)[n])[0])[0]) for n in kept]
    apart = np.diff(seen) / ax.bbox.width
    assert (apart > 0.04).all()
    assert max(seen) < ax.bbox.x1 - 5
    assert style.MOVED in words(figure)


def test_what_takes_more_than_twice_the_time_is_shown_at_the_floor_with_its_number(tmp_path: Path) -> None:
    figure = speed.draw(written(tmp_path / "p", base(), cell("dhtm", 0.7, 0.2), cell("tome", 0.5, 1.1)))
    assert xy(lines(figure)["dhtm"]) == [[30, speed.FLOOR]]
    (number,) = [text for text in figure.axes[0].texts if text.get_text()]
    assert number.get_text() == f"\u2190 {speed.MINUS}400"
    low, high = figure.axes[0].get_ylim()
    assert -150 < low < speed.FLOOR
    assert high < 70


def test_every_group_has_a_panel_that_says_what_was_timed_and_the_hardware_is_named(tmp_path: Path) -> None:
    rows = []
    for mode in ("eager", "graph"):
        for batch in (1, 32, 256, 512):
            group: dict[str, Any] = {"mode": mode, "batch_size": batch}
            rows += [base(**group), cell("dhtm", 0.7, 1.1, **group)]
    figure = speed.draw(written(tmp_path / "p", *rows))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert len(titles) == 8
    assert titles[0] == f"{DEIT}\nbatch 1\nbfloat16, eager"
    assert titles[-1] == f"{DEIT}\nbatch 512\nbfloat16, graph"
    assert figure.get_suptitle() == "on Some GPU"
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert {ax.get_ylabel() for ax in figure.axes} == {"time saved (%)", ""}


def test_panels_side_by_side_share_the_numbers_on_the_left_and_an_outlier_flattens_no_other(tmp_path: Path) -> None:
    rows = []
    for model, speedup in ((DEIT, 0.2), (BASE, 1.2)):
        for mode in ("eager", "graph"):
            group: dict[str, Any] = {"model": model, "mode": mode}
            rows += [base(**group), cell("dhtm", 0.7, speedup if mode == "eager" else 1.1, **group)]
    slow, _, fast, _ = limits = [ax.get_ylim() for ax in speed.draw(written(tmp_path / "p", *rows)).axes]
    assert limits == [slow, slow, fast, fast]
    assert slow[0] < speed.FLOOR
    assert fast[0] > -10


def test_profiles_of_two_machines_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(tmp_path / name, base(device=name), cell("dhtm", 0.7, 1.1, device=name))
    figure = speed.draw(open_profiles([tmp_path / "one", tmp_path / "two"]))
    assert figure.get_suptitle() == ""
    assert [ax.get_title(loc="left").splitlines()[1] for ax in figure.axes] == ["one", "two"]


def test_failed_rows_are_left_out_and_nothing_else_is_no_figure(tmp_path: Path) -> None:
    failed = {"model": DEIT, "method": "lotm", "budget": "0.7", "status": "failed", "device": "Some GPU"}
    figure = speed.draw(written(tmp_path / "p", base(), cell("dhtm", 0.7, 1.1), failed))
    assert len(figure.axes) == 1
    assert "lotm" not in words(figure)
    reason = speed.obstacle(written(tmp_path / "none", base(), failed))
    assert reason is not None
    assert reason.endswith("profile again.")
    assert ". " not in reason


def test_it_is_listed_apart_from_the_figures_of_sweeps() -> None:
    assert list(PROFILE_FIGURES) == ["speed"]
    assert not PROFILE_FIGURES.keys() & FIGURES.keys()
    assert speed.CAPTION.endswith(".")
    assert ". " not in speed.CAPTION


@pytest.fixture
def folders(tmp_path: Path) -> None:
    """A profile and a sweep."""
    written(tmp_path / "timed", base(), cell("dhtm", 0.7, 1.1))
    made(tmp_path / "swept", unreduced(right(90)), point("dhtm", "0.7", 0.7, right(80)))


def test_a_profile_is_drawn_without_a_model(tmbench: Command, folders: None, tmp_path: Path) -> None:
    done = tmbench("figures", "timed")
    assert (done.code, done.out, done.err) == (0, "figure  timed/speed.png (also svg, pdf)\n", "")
    done = tmbench("figures", "timed", "--only", "speed", "--formats", "svg", "--out", "elsewhere")
    assert (done.code, done.out) == (0, "figure  elsewhere/speed.svg\n")
    assert list(contents(tmp_path / "elsewhere")) == ["speed.svg"]
    assert "Some GPU" in (tmp_path / "elsewhere" / "speed.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["timed", "--only", "fig1"], ["fig1 is drawn from a sweep", "'timed' is a profile"]),
        (["timed", "--only", "sped"], ["no figure 'sped'", "did you mean 'speed'"]),
        (["timed", "--formats", "jpeg"], ["no format 'jpeg'"]),
        (["timed", "swept"], ["'timed' is a profile, and others are not"]),
        (["swept", "--only", "speed"], ["speed is drawn from profiles", "tmbench profile"]),
        (["--only", "speed"], ["speed is drawn from profiles"]),
    ],
)
def test_what_cannot_be_drawn(tmbench: Command, folders: None, arguments: list[str], words: list[str]) -> None:
    assert_refused(tmbench("figures", *arguments), *words)
