"""From the samples of a group to its rows of profile.csv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenmerge_bench.durations import paired_ratio, quartiles
from tokenmerge_bench.points import Point
from tokenmerge_bench.rivals import Group, free_rival, rival
from tokenmerge_bench.store import UNREDUCED
from tokenmerge_bench.timing import Samples


def rows_of(group: Group, samples: Samples, memory: Mapping[str, float | None], batch: int) -> list[dict[str, Any]]:
    """The group's rows of profile.csv: the unreduced model and every method at every budget.

    Args:
        group: what was timed.
        samples: by the names that `rival` gives.
        memory: peak, in MB, by the same names; None where nobody tells.
        batch: images in each pass.
    """
    return [{**_described(group, point), **_measured(group, point, samples, memory, batch)} for point in group.points]


def _described(group: Group, point: Point) -> dict[str, Any]:
    """What a row says of its cell."""
    unreduced = next(p.solution for p in group.points if p.method is None)
    assert unreduced is not None
    row: dict[str, Any] = {
        "model": group.loaded.name,
        "weights": group.loaded.weights,
        "method": UNREDUCED if point.method is None else point.method.name,
        "options": "" if point.method is None else point.method.changed,
        "budget": point.budget.recorded,
        "dtype": group.dtype,
        "mode": group.mode,
        "seed": point.seed,
    }
    if point.solution is not None:
        row["knob"] = point.solution.knob
        row["gflops"] = point.solution.macs.total / 1e9
        row["reduction"] = round(1 - point.solution.macs.total / unreduced.macs.total, 6)
        row["tokens_per_block"] = " ".join(map(str, point.solution.schedule.mlp_tokens()))
    return row


def _measured(
    group: Group, point: Point, samples: Samples, memory: Mapping[str, float | None], batch: int
) -> dict[str, Any]:
    """What a row says of its times."""
    if point.solution is None:
        return {"status": "unreachable", "reason": point.reason}
    name = rival(point)
    taken = samples.seconds.get(name)
    if not taken:
        return {"status": "failed", "reason": samples.failures.get(name, "it was not timed")}
    peak, times = memory.get(name), quartiles(1000 * np.array(taken))
    row: dict[str, Any] = {
        "images_per_s": round(1000 * batch / times.median, 2),
        "latency_ms": round(times.median, 5),
        "latency_q25_ms": round(times.q25, 5),
        "latency_q75_ms": round(times.q75, 5),
        "samples": len(taken),
        "peak_memory_mb": None if peak is None else round(peak, 1),
        "status": "ok",
        "reason": "",
    }
    unreduced, free = samples.seconds.get(UNREDUCED), samples.seconds.get(free_rival(point))
    if unreduced:
        faster = paired_ratio(unreduced, taken)
        row |= {"speedup": faster.value, "speedup_low": faster.low, "speedup_high": faster.high}
        row |= {"free_drop_speedup": paired_ratio(unreduced, free).value} if free and point.method is not None else {}
    if free and point.method is not None:
        row["of_free_drop"] = paired_ratio(free, taken).value
        row["reducer_share"] = 1 - row["of_free_drop"]
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
