"""Results folders written by hand, so that every number of a table can be worked out beforehand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd

from tokenmerge_bench.results import Results, open_results
from tokenmerge_bench.statistics import wilson_interval
from tokenmerge_bench.store import COLUMNS

DEIT = "deit_tiny_patch16_224"


def point(
    method: str, budget: str, gflops: float, hits: str, *, model: str = DEIT, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """A finished point: `hits` has a 1 for each image that is right and a 0 for each that is not."""
    low, high = wilson_interval(hits.count("1"), len(hits))
    return {
        "experiment": "made", "model": model, "weights": "w", "dataset": "photographs", "n_images": len(hits),
        "method": method, "options": "", "trained": "no", "budget": budget, "knob": "" if method == "none" else "k=9",
        "top1": 100 * hits.count("1") / len(hits), "top1_low": 100 * low, "top1_high": 100 * high, "top5": 100.0,
        "gflops": gflops, "gflops_reducer": 0.0, "reduction": 1 - gflops, "tokens_per_block": "", "images_per_s": 1.0,
        "latency_ms": 1.0, "seed": seed, "device": "cpu", "dtype": "float32", "status": "ok", "hits": hits, **more,
    }  # fmt: skip


def unreduced(hits: str, **more: Any) -> dict[str, Any]:
    """The unreduced model, of 1 GFLOP."""
    return point("none", "1", 1.0, hits, **more)


def dhtm_and_tome() -> list[dict[str, Any]]:
    """Two methods on 100 images: at 0.7 dhtm has 10 that tome lacks, which has 2 others."""
    return [
        unreduced(right(90)),
        point("dhtm", "0.7", 0.700, right(80)),
        point("dhtm", "0.5", 0.500, right(66)),
        point("tome", "0.7", 0.702, right(72, start=10)),
        point("tome", "0.5", 0.498, right(60)),
    ]


def nothing(method: str, budget: str, status: str, reason: str, model: str = DEIT) -> dict[str, Any]:
    """A row that gave no number."""
    return {
        "model": model, "dataset": "photographs", "method": method, "budget": budget, "trained": "no", "status": status,
        "reason": reason,
    }  # fmt: skip


def made(folder: Path, *points: dict[str, Any]) -> Results:
    """Writes a results folder of these points and opens it."""
    (folder / "outcomes").mkdir(parents=True)
    rows = []
    for number, row in enumerate(points):
        name = f"point{number}"
        rows.append({column: {**row, "point": name}.get(column) for column in COLUMNS})
        if "hits" in row:
            ranks = [0 if hit == "1" else 7 for hit in row["hits"]]
            images = [f"{i}.png" for i in range(len(ranks))]
            outcomes = pd.DataFrame({"image": images, "label": 1, "prediction": 1, "rank": ranks})
            (folder / "outcomes" / f"{name}.csv.gz").write_bytes(gzip.compress(outcomes.to_csv(index=False).encode()))
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    origin = {"dataset": {"name": "photographs", "fingerprint": "d"}, "subset": {"images": 1, "fingerprint": "s"}}
    (folder / "provenance.json").write_text(json.dumps(origin))
    return open_results([folder])


def right(count: int, of: int = 100, start: int = 0) -> str:
    """Outcomes of `of` images: `count` right ones in a row, from image `start`."""
    return ("0" * start + "1" * count).ljust(of, "0")
