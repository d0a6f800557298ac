"""Results folders opened together: what may be looked at together, and what must not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sweeping import TINY_RGB, run

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.store import COLUMNS, FORMAT, outcomes_file

HISTORIC = Path(__file__).parent / "historic_results" / "v1"

pytestmark = pytest.mark.usefixtures("closed_form_counts")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """dhtm, lotm and two seeds of random on six images."""
    folder = tmp_path_factory.mktemp("results") / "three"
    run(folder, weights)
    return folder


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(swept, tmp_path / "copy"))


def edit(folder: Path, file: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def test_one_folder_is_its_table_and_what_happened_to_each_image(swept: Path) -> None:
    results = open_results([swept])
    assert results.dataset == "demo"
    assert results.table["method"].tolist() == ["none", "dhtm", "lotm", "random", "random"]
    assert results.summary["label"].tolist() == ["none", "dhtm", "lotm", "random"]
    for setting in results.summary.to_dict("records"):
        (hits,) = results.hits(setting)
        assert hits.shape == (setting["seeds"], 6)
        assert 100 * hits.mean() == pytest.approx(setting["top1"], abs=1e-3)


def test_images_stand_in_the_same_order_for_all(copied: Path) -> None:
    """Even where a file lists them in another order."""
    before = open_results([copied])
    rows = before.summary.to_dict("records")
    expected = before.hits(*rows)
    file = outcomes_file(copied, rows[1]["point"])
    assert file is not None
    pd.read_csv(file).iloc[::-1].to_csv(file, index=False)
    for found, wanted in zip(open_results([copied]).hits(*rows), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_outcomes_that_every_pair_asks_for_are_read_once(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    outcomes = Results.outcomes

    def counted(self: Results, run: dict[Any, Any]) -> pd.DataFrame:
        read.append(run["point"])
        return outcomes(self, run)

    monkeypatch.setattr(Results, "outcomes", counted)
    results = open_results([swept])
    rows = results.summary.to_dict("records")
    first, again = results.hits(*rows), results.hits(*rows)
    assert all(a.tolist() == b.tolist() for a, b in zip(first, again, strict=True))
    assert sorted(read) == sorted(results.table["point"])


def test_two_folders_of_the_same_images_share_the_unreduced_model(swept: Path, tmp_path: Path, weights: Path) -> None:
    run(tmp_path / "dhtm", weights, methods=["dhtm"], k=["12"])
    both = open_results([swept, tmp_path / "dhtm"])
    assert both.table["method"].tolist() == ["none", "dhtm", "lotm", "random", "random", "dhtm"]
    assert both.table["folder"].tolist() == [0, 0, 0, 0, 0, 1]
    a, b = both.hits(*both.summary[both.summary["method"] == "dhtm"].to_dict("records"))
    assert a.shape == b.shape == (1, 6)


def test_a_failed_point_gives_way_to_the_same_point_of_another_folder(swept: Path, copied: Path) -> None:
    table = pd.read_csv(copied / "results.csv")
    table.loc[table["method"] == "dhtm", "status"] = "failed"
    table.to_csv(copied / "results.csv", index=False)
    both = open_results([copied, swept])
    assert both.table.loc[both.table["method"] == "dhtm", ["status", "folder"]].to_numpy().tolist() == [["ok", 1]]


@pytest.mark.parametrize("changes", [{"limit": 4}, {"seed": 1}])
def test_other_images_are_refused_with_both_fingerprints(
    swept: Path, tmp_path: Path, weights: Path, changes: dict[str, Any]
) -> None:
    run(tmp_path / "other", weights, methods=["dhtm"], **changes)
    fingerprints = [
        json.loads((folder / "provenance.json").read_text())["subset"]["fingerprint"]
        for folder in (swept, tmp_path / "other")
    ]
    with pytest.raises(InputError, match=rf"different images .*{fingerprints[0]}.*{fingerprints[1]}"):
        open_results([swept, tmp_path / "other"])


def test_another_data_set_is_refused(swept: Path, copied: Path) -> None:
    edit(copied, "provenance.json", lambda content: content["dataset"].update(fingerprint="other"))
    with pytest.raises(InputError, match=r"different images .*other"):
        open_results([swept, copied])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda origin: origin["experiment"].update(dtype="bfloat16"), r"precision \(float32; bfloat16\)"),
        (lambda origin: origin["models"]["tiny_28"].update(fingerprint="f"), r"weights of tiny_28 \(\w+; f\)"),
        (
            lambda origin: origin["models"]["tiny_28"]["preprocessing"].update(crop_pct=0.5),
            r"crop_pct of tiny_28 \(1\.0; 0\.5\)",
        ),
    ],
)
def test_the_same_images_seen_in_another_way_are_refused(
    swept: Path, copied: Path, change: Callable[[Any], object], message: str
) -> None:
    edit(copied, "provenance.json", change)
    with pytest.raises(InputError, match=f"differ in the {message}"):
        open_results([swept, copied])


def test_two_versions_of_a_method_are_not_one(swept: Path, copied: Path) -> None:
    edit(copied, "sweep.json", lambda content: content["evaluation"].update({"code of lotm": "edited"}))
    with pytest.raises(InputError, match=r"differ in the code of lotm \(\w+; edited\)"):
        open_results([swept, copied])


def test_a_model_of_which_nothing_is_recorded_is_refused(copied: Path) -> None:
    edit(copied, "provenance.json", lambda origin: origin["models"].clear())
    with pytest.raises(InputError, match=r"provenance.json' says nothing of tiny_28"):
        open_results([copied])


def test_what_draws_nothing_is_the_same_point_with_any_seed(
    tmp_path: Path, rgb_weights: Path, image_folder: Path
) -> None:
    folders = [tmp_path / "0", tmp_path / "5"]
    for folder, seed in zip(folders, (0, 5), strict=True):
        chosen: dict[str, Any] = {"models": [TINY_RGB], "dataset": str(image_folder), "limit": None, "seed": seed}
        run(folder, rgb_weights, methods=["dhtm", "random"], **chosen)
    assert open_results(folders).summary.set_index("label")["seeds"].to_dict() == {"none": 1, "dhtm": 1, "random": 4}


def test_a_folder_of_an_older_version_loads() -> None:
    results = open_results([HISTORIC])
    assert (results.summary["status"] == "ok").any()
    row = results.summary[results.summary["method"] == "random"].to_dict("records")[0]
    assert results.hits(row)[0].shape == (2, 10)


def test_a_folder_of_a_newer_version_says_which(copied: Path) -> None:
    edit(copied, "sweep.json", lambda s: s.update(format=FORMAT + 1))
    edit(copied, "provenance.json", lambda s: s.update(tokenmerge_bench="9.9"))
    with pytest.raises(InputError, match=rf"tokenmerge-bench 9\.9 in format {FORMAT + 1}.*up to {FORMAT}"):
        open_results([copied])


def test_no_folder_an_empty_one_and_one_half_written(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(InputError, match="no results folder"):
        open_results([])
    with pytest.raises(InputError, match=r"holds no results\.csv"):
        open_results([tmp_path])
    with pytest.raises(InputError, match="does not exist"):
        open_results([tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        open_results([tmp_path / "file"])
    (copied / "results.csv").rename(copied / "kept.csv")
    with pytest.raises(InputError, match="is not finished; give its command again"):
        open_results([copied])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("provenance.json", "{}", r"provenance\.json' names no images"),
        ("provenance.json", "{", r"lacks a readable provenance\.json"),
        ("sweep.json", "[]", r"lacks a readable sweep\.json"),
        ("sweep.json", "{}", "in format None"),
        ("results.csv", "", "is no table that a sweep wrote"),
        ("results.csv", "method,top1\ndhtm,80\n", "lacks the column 'experiment'"),
        ("results.csv", ",".join(COLUMNS) + "\n", "has no rows"),
        (
            "results.csv",
            ",".join(COLUMNS) + "\n" + ",".join(COLUMNS) + "\n",
            "something else than numbers in the column 'n_images'",
        ),
    ],
)
def test_damaged_files_are_named(copied: Path, file: str, text: str, message: str) -> None:
    (copied / file).write_text(text)
    with pytest.raises(InputError, match=message):
        open_results([copied])


def test_missing_outcomes_are_named(copied: Path) -> None:
    results = open_results([copied])
    row = results.summary.to_dict("records")[1]
    shutil.rmtree(copied / "outcomes")
    with pytest.raises(InputError, match=r"lacks the per-image outcomes of tiny_28-dhtm"):
        results.hits(row)


@pytest.mark.parametrize("damage", ["cut", "no gzip", "no rank", "twice"])
def test_damaged_outcomes_are_named(copied: Path, damage: str) -> None:
    results = open_results([copied])
    row = results.summary.to_dict("records")[1]
    file = outcomes_file(copied, row["point"])
    assert file is not None
    table = pd.read_csv(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-12])
    elif damage == "no gzip":
        file.write_bytes(b"image,rank")
    elif damage == "no rank":
        table.drop(columns="rank").to_csv(file, index=False)
    else:
        pd.concat([table, table]).to_csv(file, index=False)
    with pytest.raises(InputError, match=rf"{file.name}' is damaged"):
        results.hits(row)


def test_settings_that_saw_different_images_are_not_compared(copied: Path) -> None:
    results = open_results([copied])
    rows = results.summary.to_dict("records")[:2]
    file = outcomes_file(copied, rows[1]["point"])
    assert file is not None
    pd.read_csv(file).iloc[1:].to_csv(file, index=False)
    with pytest.raises(InputError, match=r"none and dhtm of tiny_28 did not see the same images \(6 and 5"):
        results.hits(*rows)


def test_examples_are_the_merges_and_the_images_they_belong_to(tmp_path: Path, weights: Path) -> None:
    run(tmp_path / "out", weights, methods=["dhtm", "random"], examples=3, batch_size=2)
    results = open_results([tmp_path / "out"])
    runs = results.table.to_dict("records")
    assert results.examples(runs[0]) == []  # nothing is merged in the unreduced model
    for point in runs[1:]:
        found = results.examples(point)
        outcomes = results.outcomes(point)
        assert [example.image for example in found] == outcomes.index[[0, 2, 5]].tolist()
        for example in found:
            assert (example.grid, example.picture.shape) == ((7, 7), (28, 28, 3))
            assert [(site.block, site.tokens) for site in example.sites] == [(3, 43), (6, 37), (10, 31)]
            for site, later in zip(example.sites, example.sites[1:], strict=False):
                assert len(np.unique(site.owner)) == site.tokens == site.owner.max() + 1
                # Merges are never undone: tokens of an earlier site lie whole in those of a later one.
                assert len(np.unique(np.stack([site.owner, later.owner]), axis=1).T) == site.tokens
    described = tmp_path / "out" / "examples" / f"{runs[1]['point']}.json"
    for text in ("{", "[{}]", described.read_text().replace(".png", ".gif"), described.read_text().replace("7", "8")):
        described.write_text(text)
        with pytest.raises(InputError, match="is damaged"):
            results.examples(runs[1])
    pictures = sorted((tmp_path / "out" / "examples").glob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        with Image.open(picture) as image:
            assert (image.mode, image.size) == ("L", (28, 28))
