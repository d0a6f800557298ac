"""Profiles written by hand, so that every speedup can be worked out beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tokenmerge_bench.profiles import COLUMNS, FORMAT, Profile, open_profiles

DEIT = "deit_small_patch16_224"


def cell(method: str, kept: float, speedup: float, bound: float = 1.4, **more: Any) -> dict[str, Any]:
    """A finished row of profile.csv."""
    return {
        "model": DEIT, "weights": "random", "method": method, "options": "", "budget": str(kept), "knob": "k=9",
        "gflops": 4.6 * kept, "reduction": 1 - kept, "tokens_per_block": "9", "batch_size": 32, "dtype": "bfloat16",
        "mode": "eager", "device": "Some GPU", "images_per_s": 1000 * speedup, "latency_ms": 32 / speedup,
        "latency_q25_ms": 31 / speedup, "latency_q75_ms": 33 / speedup, "samples": 10, "speedup": speedup,
        "speedup_low": 0.9 * speedup, "speedup_high": 1.1 * speedup, "free_drop_speedup": bound,
        "of_free_drop": speedup / bound, "reducer_share": 1 - speedup / bound, "seed": 0, "status": "ok", **more,
    }  # fmt: skip


def base(**more: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {"free_drop_speedup": None, "of_free_drop": None, "reducer_share": None}
    return cell("none", 1.0, 1.0, knob="", speedup_low=1.0, speedup_high=1.0, **nothing, **more)


def written(folder: Path, *rows: dict[str, Any]) -> Profile:
    """Writes a profile of these rows and opens it."""
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps({"format": FORMAT}))
    table = pd.DataFrame([{column: row.get(column) for column in COLUMNS} for row in rows])
    table.to_csv(folder / "profile.csv", index=False)
    return open_profiles([folder])
