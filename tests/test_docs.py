"""What the documents say is what the committed results say."""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tokenmerge_bench import published
from tokenmerge_bench.audit import audit, write
from tokenmerge_bench.compare import paired, shown_name
from tokenmerge_bench.rendering import render
from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/performance.md",
    "docs/reproduction.md",
    "docs/table2.md",
)
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


@cache
def filled_table_2(images: str) -> Results:
    return open_results([RESULTS / images / "trained"])


TABLE_2 = (ROOT / "docs" / "table2.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("images", ["embedded", "cifar10"])
def test_the_filled_table_2_is_that_of_the_committed_results(images: str) -> None:
    results = filled_table_2(images)
    assert render("table2", TABLES["table2"](results), "md").strip() in TABLE_2
    everything = TABLES["results"](results)
    for row in everything[everything["budget"] == "0.5"].to_dict("records"):
        spread = f" ± {row['top1_sd']:.2f}" if row["seeds"] > 1 else ""
        assert f"| {row['method']} | {row['top1']:.2f}{spread} | {drop(row)} |" in TABLE_2


def drop(row: dict[Hashable, Any]) -> str:
    return f"{row['drop']:.2f} [{row['drop_low']:.2f}, {row['drop_high']:.2f}]"


def test_drops_beside_the_paper_are_those_of_the_committed_results() -> None:
    tables = [TABLES["table2"](filled_table_2(images)) for images in ("embedded", "cifar10")]
    reported = published.table2().set_index(["method", "trained", "model"])["top1"]
    unreduced = published.table1().set_index(["k", "model"])["top1"][0]
    for method, trained in dict.fromkeys((method, trained) for method, trained, _ in reported.index):
        cells = [f"{unreduced[model] - reported[method, trained, model]:.2f}" for model in unreduced.index]
        for table in tables:
            rows = table[(table["method"].str.partition(":")[0] == method) & (table["trained"] == trained)]
            cells.append(drop(rows.to_dict("records")[0]))
        kind = "trained" if trained == "yes" else "off the shelf"
        assert f"| {kind} | {method} | {' | '.join(cells)} |" in TABLE_2


TOME, DPC_KNN, K_MEDOIDS = "tome (trained)", "dpc_knn:learned_weights=true (trained)", "k_medoids (trained)"
PATCHMERGER = "patchmerger (trained)"


@pytest.mark.parametrize(
    ("images", "a", "b", "at", "said"),
    [
        ("embedded", TOME, K_MEDOIDS, "0.7", "at 30 % (p = {p:.2f} and"),
        ("embedded", TOME, DPC_KNN, "0.7", "and {p:.2f} against ToMe"),
        ("embedded", K_MEDOIDS, PATCHMERGER, "0.7", "(p < 0.001 against K-Medoids)"),
        ("embedded", TOME, "tome", "0.7", "at 30 % ({d:+.2f}, p = {p:.2f}, embedded;"),
        ("embedded", TOME, "tome", "0.5", "at 50 % ({d:+.2f}, p < 0.001)"),
        ("embedded", DPC_KNN, "dpc_knn", "0.7", "DPC-KNN ({d:+.2f} at 30 %,"),
        ("embedded", DPC_KNN, "dpc_knn", "0.5", "%, {d:+.2f} at 50 %;"),
        ("embedded", K_MEDOIDS, "k_medoids", "0.7", "K-Medoids ({d:+.2f},"),
        ("embedded", K_MEDOIDS, "k_medoids", "0.5", ", {d:+.2f}; +0.39 on CIFAR-10) competitive"),
        ("cifar10", TOME, DPC_KNN, "0.7", "(DPC-KNN by {d:.2f} [{low:.2f}, {high:.2f}])"),
        ("embedded", "dhtm", "lotm", "0.7", "the two p = {p:.2f} embedded,"),
        ("embedded", "dhtm", "random", "0.7", "({d:.2f} [{low:.2f}, {high:.2f}] and"),
        ("embedded", "dhtm", TOME, "0.7", "by {d:.2f} [{low:.2f}, {high:.2f}] at 30 % (p = {p:.2f} without"),
        ("embedded", "dhtm", TOME, "0.5", "by {d:.2f} [{low:.2f}, {high:.2f}] at 50 % on the embedded"),
        ("embedded", PATCHMERGER, "sit (trained)", "0.7", "(PatchMerger {d:.2f} [{low:.2f}, {high:.2f}] and"),
        ("cifar10", DPC_KNN, K_MEDOIDS, "0.7", "(their difference is undecided, p = {p:.2f})"),
        ("cifar10", TOME, "tome", "0.7", "{d:+.2f}, p = {p:.2f}, CIFAR-10)"),
        ("cifar10", DPC_KNN, "dpc_knn", "0.7", "; {d:+.2f} on CIFAR-10) and K-Medoids"),
        ("cifar10", K_MEDOIDS, "k_medoids", "0.7", "; {d:+.2f} on CIFAR-10) competitive on the"),
        ("cifar10", "dhtm", "lotm", "0.7", "p = {p:.2f} CIFAR-10)"),
        ("cifar10", "dhtm", "random", "0.7", "and {d:.2f} [{low:.2f}, {high:.2f}])."),
        ("cifar10", "dhtm", TOME, "0.7", "by {d:.2f} [{low:.2f}, {high:.2f}] on CIFAR-10: at best undecided"),
        ("cifar10", "dhtm", "tome", "0.7", "that is undecided ({d:.2f} [{low:.2f}, {high:.2f}])"),
        ("cifar10", PATCHMERGER, "sit (trained)", "0.7", "and {d:.2f} [{low:.2f}, {high:.2f}] ahead of SiT)"),
    ],
)  # fmt: skip
def test_what_is_said_of_the_filled_table_2_is_what_paired_tests_say(
    images: str, a: str, b: str, at: str, said: str
) -> None:
    results = filled_table_2(images)
    settings = {shown_name(row): row for row in results.summary.to_dict("records") if row["budget"] == at}
    found = paired(results, settings[a], settings[b])
    assert found.p < 0.001 or "p < 0.001" not in said
    interval = found.difference
    assert said.format(d=interval.value, low=interval.low, high=interval.high, p=found.p) in " ".join(TABLE_2.split())


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


def table_under(heading: str) -> list[str]:
    """Rows of the first table under a heading of docs/performance.md, without its head."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    below = text.split(f"\n{heading}\n")[1]
    return [line for line in re.split(r"\n#+ ", below)[0].splitlines() if line.startswith("|")][2:]


def timed(folder: str) -> pd.DataFrame:
    """Rows of a committed profile, without the unreduced models."""
    return pd.read_csv(RESULTS / "speed" / folder / "profile.csv").query("method != 'none'")


@pytest.mark.parametrize(
    ("heading", "folder", "named", "device"),
    [("### DHTM on the H100", "h100_dhtm", "budget", "NVIDIA H100 80GB HBM3"),
     ("### DHTM on the H200", "dhtm", "budget", "NVIDIA H200"),
     ("### All methods on the H100", "h100_at_0.7", "method", "NVIDIA H100 80GB HBM3"),
     ("### All methods on the H200", "at_0.7", "method", "NVIDIA H200")],
)  # fmt: skip
def test_speeds_are_those_of_the_committed_profiles(heading: str, folder: str, named: str, device: str) -> None:
    rows = timed(folder)
    assert set(rows["device"]) == {device}
    if device == "NVIDIA H200":  # whose compiled rows are of code that has been mended since
        rows = rows[rows["mode"] != "compile-graph"]
    assert len(rows) >= 12
    expected = []
    for _, row in rows.iterrows():
        size = row["model"].split("_")[1].capitalize()
        speed = f"{row['speedup']:.3f} [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]"
        line = f"| {size} | {row['mode']} | {row[named]} | {speed} | {row['free_drop_speedup']:.3f} |"
        expected.append(f"{line} {row['of_free_drop']:.3f} |")
    assert table_under(heading) == expected


MODES = ("eager", "graph", "compile-graph")


def verdicts(values: list[float], aim: float) -> str:
    return " | ".join(f"{value:.3f} {'met' if value >= aim else 'missed'}" for value in values)


def in_modes(rows: pd.DataFrame, method: str, size: str, column: str) -> list[float]:
    chosen = rows[(rows["method"] == method) & (rows["model"] == f"deit_{size.lower()}_patch16_224")]
    return [float(chosen.loc[chosen["mode"] == mode, column].item()) for mode in MODES]


def test_aims_are_met_and_missed_as_the_committed_profiles_say() -> None:
    two, all_methods = timed("h100_dhtm"), timed("h100_at_0.7")
    budgets = {k: two[two["budget"] == k] for k in ("k=40", "k=56")} | {"30 % fewer FLOPs": all_methods}
    expected = []
    for size, aim in [("Tiny", 0.90), ("Small", 0.90), ("Base", 0.93)]:
        for budget, rows in budgets.items():
            cells = verdicts(in_modes(rows, "dhtm", size, "of_free_drop"), aim)
            expected.append(f"| DHTM, {size}, {budget}: {aim:.2f} of free drop | {cells} |")
    for size, aim in [("Small", 1.05), ("Base", 1.15)]:
        cells = verdicts(in_modes(all_methods, "tome", size, "speedup"), aim)
        expected.append(f"| ToMe, {size}, 30 % fewer FLOPs: {aim:.2f} times as fast | {cells} |")
    slowest = []
    for position in range(len(MODES)):
        methods = all_methods["method"].unique()
        speed, name = min((in_modes(all_methods, name, "Base", "speedup")[position], name) for name in methods)
        slowest.append(f"{name} {speed:.4f} {'met' if speed >= 1 else 'missed'}")
    aim_of_all = "the slowest method, Base, 30 % fewer FLOPs: as fast as unreduced"
    assert table_under("## Aims, on the H100") == [*expected, f"| {aim_of_all} | {' | '.join(slowest)} |"]


def test_times_of_deit_tiny_are_those_of_the_committed_profile() -> None:
    text = " ".join((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split())
    rows = pd.read_csv(RESULTS / "speed" / "h100_dhtm" / "profile.csv")
    none, at_40, at_56 = (rows[rows["budget"] == budget] for budget in ("1", "k=40", "k=56"))
    unreduced = in_modes(none, "none", "Tiny", "latency_ms")
    (eager_40, graph_40, compiled_40), (eager_56, graph_56, compiled_56) = (
        in_modes(rows, "dhtm", "Tiny", "latency_ms") for rows in (at_40, at_56)
    )
    (_, free_graph_40, free_compiled_40), (_, free_graph_56, free_compiled_56) = (
        [ms / ratio for ms, ratio in zip(unreduced, in_modes(rows, "dhtm", "Tiny", "free_drop_speedup"), strict=True)]
        for rows in (at_40, at_56)
    )
    for sentence in (
        f"takes {eager_40:.1f} (k = 40) and {eager_56:.1f} ms (k = 56) eagerly, {graph_40:.1f} and {graph_56:.1f} ms "
        f"as a CUDA graph; the unreduced model takes {unreduced[0]:.1f} and {unreduced[1]:.1f} ms.",
        f"adds {compiled_40 - free_compiled_40:.2f} ms (k = 40) and {compiled_56 - free_compiled_56:.2f} ms (k = 56) "
        f"to a free drop of {free_compiled_40:.1f} and {free_compiled_56:.1f} ms where compiled, "
        f"{graph_40 - free_graph_40:.2f} and {graph_56 - free_graph_56:.2f} ms to {free_graph_40:.1f} and "
        f"{free_graph_56:.1f} ms as a CUDA graph.",
        f"an aim of 0.90 leaves {free_compiled_56 * (1 / 0.9 - 1):.2f} ms where compiled",
        f"takes {unreduced[2]:.1f} ms compiled, {unreduced[1]:.1f} ms as a CUDA graph",
    ):
        assert sentence in text
