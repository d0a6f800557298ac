"""Where the numbers of a report come from: what was compared, versions, hardware, and the commands to redo it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmerge_bench.compare import shown_name
from tokenmerge_bench.profiles import Profile, is_profile
from tokenmerge_bench.report.timings import Timings
from tokenmerge_bench.results import Results
from tokenmerge_bench.store import UNREDUCED
from tokenmerge_bench.summary import budget_flag

UNKNOWN = "not recorded"
DEMO = "demo"
"""The image set inside the package."""


@dataclass(frozen=True)
class Origin:
    """One folder: what wrote it, when and on what; `record` is the whole of its provenance.json."""

    folder: str
    title: str
    command: str
    entries: dict[str, str]
    record: str


def facts(results: Results, profile: Profile | None) -> dict[str, str]:
    """What was compared on what, by heading."""
    finished = results.finished
    methods = dict.fromkeys(shown_name(row) for row in finished if row["method"] != UNREDUCED)
    models = dict.fromkeys(f"{row['model']} (weights: {row['weights']})" for row in finished if row["trained"] == "no")
    budgets = dict.fromkeys(str(row["budget"]) for row in finished if row["method"] != UNREDUCED)
    found = {
        "Methods": ", ".join(methods) or "none",
        "Models": "; ".join(models),
        "Images": f"{image_words(results)}, the same for every method",
        "Budgets": f"{', '.join(budgets)} (a plain number is a fraction of the unreduced FLOPs)" if budgets else "none",
        "Runs": _runs(finished),
        "Evaluated on": ", ".join(dict.fromkeys(_hardware(origin) for origin in results.provenance)),
    }
    if profile is not None:
        found["Timed on"] = "; ".join(dict.fromkeys(profile.finished["device"]))
    return found


def subject(results: Results) -> str:
    """How many methods on which models."""
    methods = {shown_name(row) for row in results.finished if row["method"] != UNREDUCED}
    models = dict.fromkeys(row["model"] for row in results.finished)
    return f"{len(methods)} method{'' if len(methods) == 1 else 's'} on {', '.join(models)}"


def image_words(results: Results) -> str:
    """How many images of which set."""
    name = "the embedded benchmark (Fashion-MNIST)" if results.dataset == DEMO else results.dataset
    return f"{int(results.summary['n_images'].max()):,} images of {name}"


def origins(folders: Sequence[Path]) -> list[Origin]:
    """The folders in the order they were given."""
    return [_origin(folder) for folder in folders]


def profile_command(results: Results, timings: Timings, folders: Sequence[Path], out: Path) -> str:
    """The commands that time the models which are not timed yet and make the report again; empty if there is none."""
    rows = [row for row in results.finished if row["method"] != UNREDUCED and row["trained"] == "no"]
    timed = {row["model"] for row in rows if timings.of(row)}
    rows = [row for row in rows if row["model"] not in timed]
    command = ["tmbench", "profile"]
    for flag, column in (("--models", "model"), ("--methods", "label")):
        command += [flag, ",".join(dict.fromkeys(row[column] for row in rows))]
    by_flag: dict[str, list[str]] = {}
    for budget in dict.fromkeys(row["budget"] for row in rows):
        flag, value = budget_flag(budget)
        by_flag.setdefault(flag, []).append(value)
    for flag, held in by_flag.items():
        command += [flag, ",".join(held)]
    if any(row["device"] == "cuda" for row in rows):
        command += ["--device", "cuda"]
    command += ["--out", "results/speed"]
    again = ["tmbench", "report", *map(str, folders), "results/speed", "-o", str(out)]
    return f"{shlex.join(command)}\n{shlex.join(again)}" if rows else ""


def _runs(finished: Sequence[dict[Any, Any]]) -> str:
    seeds = sorted({int(row["seeds"]) for row in finished})
    if seeds == [1]:
        return "one run of every setting"
    return f"means over {seeds[-1]} seeds of what draws random numbers, one run of all else"


def _hardware(origin: dict[str, Any]) -> str:
    device = str(origin.get("hardware") or origin.get("device") or UNKNOWN)
    processor = origin.get("processor")
    if device != "cpu" or not processor:
        return device
    threads = origin.get("torch_threads", UNKNOWN)
    return f"{processor}, {threads} thread{'' if threads == 1 else 's'}"


def _origin(folder: Path) -> Origin:
    file = folder / "provenance.json"
    held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    experiment = held.get("experiment", {})
    what = "profile" if is_profile(folder) else "sweep"
    return Origin(
        str(folder),
        f"{what}: {experiment['title']}" if experiment.get("title") else what,
        str(held.get("command", UNKNOWN)),
        {name: text for name, text in _entries(held).items() if text},
        json.dumps(held, indent=1, ensure_ascii=False, sort_keys=True),
    )


def _entries(held: dict[str, Any]) -> dict[str, str]:
    """What a reader may look for, in words; nothing where it was not recorded."""
    own = {"tokenmerge-bench": held.get("tokenmerge_bench"), "python": held.get("python")}
    packages = {**own, **held.get("packages", {})}
    dataset, subset, models = (held.get(key, {}) for key in ("dataset", "subset", "models"))
    experiment = held.get("experiment", {})
    asked = {key: experiment.get(key) for key in ("dtype", "batch_size", "seed")}
    return {
        "finished": str(held.get("finished", UNKNOWN)),
        "hardware": _hardware(held),
        "platform": str(held.get("platform", "")),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
        "source revision": str(held.get("git_revision") or UNKNOWN),
        "images": _fingerprinted(dataset, "name"),
        "choice of images": _fingerprinted(subset, "images"),
        "asked for": ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None),
        "weights": "; ".join(f"{name}: {_fingerprinted(model, 'weights')}" for name, model in models.items()),
        "preprocessing": "; ".join(f"{name}: {_preprocessing(model)}" for name, model in models.items()),
    }


def _fingerprinted(held: dict[str, Any], key: str) -> str:
    return f"{held[key]}, fingerprint {held.get('fingerprint')}" if held.get(key) else ""


def _preprocessing(model: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in model.get("preprocessing", {}).items())
