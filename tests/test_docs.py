"""What the documents say is what the committed results say."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from tokenmerge_bench.audit import audit, write
from tokenmerge_bench.rendering import render
from tokenmerge_bench.results import open_results
from tokenmerge_bench.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/reproduction.md", "docs/performance.md")
REPRODUCTION = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [("photographs/table1", "table1"), ("photographs/table2", "table2"), ("embedded/table2", "table2"),
     ("photographs/k_schedule", "results")],
)  # fmt: skip
def test_tables_are_those_of_the_committed_results(folder: str, name: str) -> None:
    text = render(name, TABLES[name](open_results([RESULTS / folder])), "md").strip()
    assert text in REPRODUCTION


def test_what_needs_no_results_is_what_the_audit_says_today(tmp_path: Path) -> None:
    today = write(audit(), tmp_path)[0].read_text(encoding="utf-8")
    lines = [line for line in today.splitlines() if line and "Not measured" not in line]
    assert len(lines) > 100
    assert [line for line in lines if line not in REPRODUCTION] == []


def test_accuracies_in_the_readme_are_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    summary = open_results([RESULTS / "embedded" / "fig1"]).summary
    half = summary[summary["budget"] == "0.5"].set_index("label")["top1"]
    unreduced = summary.loc[summary["method"] == "none", "top1"].item()
    sentence = (
        f"At half the FLOPs DHTM keeps {half['dhtm']:.1f} %, ToMe {half['tome']:.1f} %, random merging "
        f"{half['random']:.1f} % (3 seeds) of the unreduced {unreduced:.1f} %."
    )
    assert sentence in " ".join(text.split())


def test_the_mean_over_crops_in_the_readme_is_measured() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    views = pd.read_csv(ROOT / "docs" / "audit_views.csv")
    at_40 = views[(views["model"] == "deit_tiny_patch16_224") & (views["k"] == 40)].set_index("setting")["lost"]
    assert f"{at_40['dhtm']:.2f} on average (random merging: {at_40['random']:.2f})" in text


def test_committed_results_name_no_machine() -> None:
    for file in RESULTS.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'["= ]/(home|root|tmp|work|mnt)\b', text), file


@pytest.mark.parametrize(("folder", "named"), [("dhtm", "budget"), ("dhtm_compiled", "budget"), ("at_0.7", "method")])
def test_speeds_are_those_of_the_committed_profiles(folder: str, named: str) -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = pd.read_csv(RESULTS / "speed" / folder / "profile.csv").query("method != 'none'")
    if folder == "dhtm":  # whose compiled rows were measured once more
        rows = rows[rows["mode"] != "compile-graph"]
    assert len(rows) >= 6
    for _, row in rows.iterrows():
        size = row["model"].split("_")[1].capitalize()
        speed = f"{row['speedup']:.3f} [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]"
        line = f"| {size} | {row['mode']} | {row[named]} | {speed} | {row['free_drop_speedup']:.3f} |"
        assert f"{line} {row['of_free_drop']:.3f} |" in text
