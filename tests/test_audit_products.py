"""Tables and figures in the audit's document: all that was asked for, each its own file, inside the folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_results import DEIT, made, point, unreduced

from tokenmerge_bench.audit_products import show_products
from tokenmerge_bench.results import Results, open_results

RIGHT, WRONG = "1" * 9 + "0", "1" * 6 + "0" * 4


def asked(folder: Path, shows: Any, experiment: str = "fig4", **more: Any) -> Results:
    """DHTM and random merging at k = 10, of an experiment that shows the given tables and figures."""
    rows = [
        unreduced(RIGHT, **more),
        point("dhtm", "k=10", 0.9, RIGHT, **more),
        point("random", "k=10", 0.9, WRONG, **more),
    ]
    made(folder, *({**row, "experiment": experiment} for row in rows))
    origin = json.loads((folder / "provenance.json").read_text())
    origin["experiment"] = {"shows": shows, "title": f"Title of {folder.name}"}
    (folder / "provenance.json").write_text(json.dumps(origin))
    return open_results([folder])


def links(lines: list[str]) -> list[str]:
    return re.findall(r"!\[\w+\]\((.+?)\)", "\n".join(lines))


def test_tables_and_figures_that_were_asked_for_are_shown(tmp_path: Path) -> None:
    lines = show_products([asked(tmp_path / "a", ["fig4", "table1", "results"])], tmp_path / "docs")
    text = "\n".join(lines)
    assert (
        text.index("**Table 1.**") < text.index("![fig4]") < text.index("<summary>Title of a: all settings</summary>")
    )
    assert "*Title of a. DHTM against random merging" in text
    (link,) = links(lines)
    assert (tmp_path / "docs" / link).stat().st_size > 1000
    assert (tmp_path / "docs" / link).with_suffix(".svg").is_file()


def test_pictures_of_other_models_or_experiments_are_other_files(tmp_path: Path) -> None:
    several = [
        asked(tmp_path / "a", ["fig4"]),
        asked(tmp_path / "b", ["fig4"], model="deit_small_patch16_224"),
        asked(tmp_path / "c", ["fig1"], experiment="table1"),
    ]
    found = links(show_products(several, tmp_path / "docs"))
    assert len(set(found)) == 3
    assert len({(tmp_path / "docs" / link).read_bytes() for link in found}) == 3


def test_the_same_settings_of_the_same_images_are_shown_once(tmp_path: Path) -> None:
    twice = [asked(tmp_path / "a", ["fig4"]), asked(tmp_path / "b", ["fig4"])]
    text = "\n".join(show_products(twice, tmp_path / "docs"))
    assert text.count("![fig4]") == 1
    assert "Title of a" in text


def test_names_from_a_folder_lead_nowhere_else(tmp_path: Path) -> None:
    evil = asked(tmp_path / "a", ["fig4"], experiment="../../../../evil", model=f"../{DEIT}")
    (link,) = links(show_products([evil], tmp_path / "docs"))
    assert (tmp_path / "docs" / link).resolve().is_relative_to((tmp_path / "docs" / "figures").resolve())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "docs"]


@pytest.mark.parametrize("shows", [None, [], ["fig9"], ["fig2"], "fig4"])
def test_what_cannot_be_shown_is_left_out(tmp_path: Path, shows: Any) -> None:
    assert show_products([asked(tmp_path / "a", shows)], tmp_path / "docs") == []
    assert not (tmp_path / "docs").exists()
