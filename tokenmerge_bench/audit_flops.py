"""Which blocks, and which position in them, explain the GFLOPs of the paper's Table 1.

The text says "layers 4, 7, 11" without saying where counting starts, and takes tokens from the "outputs" of
attention. Every reading of that is counted with the closed form (`counting`), which includes LayerNorm as fvcore
charges it and, as the paper's counter does, leaves out the arithmetic of the reduction itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import pandas as pd
import torch

from tokenmerge_bench.counting import BackboneCost
from tokenmerge_bench.models import build_model
from tokenmerge_bench.reduced_vit import Geometry, geometry
from tokenmerge_bench.reducers import Site
from tokenmerge_bench.schedule import make_schedule

ROUNDING = 0.005
"""Half of the last digit that the paper prints, for GFLOPs and for percent."""


@dataclass(frozen=True)
class Reading:
    """Blocks (counted from 0) at which tokens are merged, and where in the block."""

    layers: tuple[int, ...]
    position: Site

    @property
    def blocks(self) -> str:
        """The blocks as `--layers` takes them, counted from 0."""
        return "/".join(map(str, self.layers))

    @property
    def from_one(self) -> str:
        """The blocks counted from 1."""
        return "/".join(str(layer + 1) for layer in self.layers)

    @property
    def same_as(self) -> str:
        """After a block is before the next one."""
        return f"{'/'.join(str(layer + 1) for layer in self.layers)} pre" if self.position == "post" else ""


LAYERS = ((3, 6, 10), (4, 7, 11), (3, 6, 9), (4, 7, 10))
"""4, 7, 11 counted from 1 and from 0, and likewise 4, 7, 10, the blocks that the literature usually takes."""
POSITIONS: tuple[Site, ...] = ("pre", "mid", "post")
READINGS = tuple(Reading(layers, position) for layers in LAYERS for position in POSITIONS)
DESCRIBED = Reading((3, 6, 10), "mid")
"""The text taken at its word, with layers counted from 1: between attention and MLP."""


@dataclass(frozen=True)
class Network:
    """The sizes of a model, from which MACs follow."""

    shape: Geometry
    cost: BackboneCost

    def gflops(self, reading: Reading, k: int) -> float:
        """MACs / 1e9 of one image when k tokens are merged at each block of a reading, without the merging itself."""
        shape = self.shape
        counts = tuple(shape.patches - k * site for site in range(1, len(reading.layers) + 1))
        schedule = make_schedule(
            counts, reading.layers, reading.position, n0=shape.patches, prefix=shape.prefix, depth=shape.depth
        )
        return self.cost.macs(schedule).backbone / 1e9

    def applies(self, reading: Reading) -> bool:
        """Nothing follows the last block, so there is no reduction after it."""
        return reading.position != "post" or max(reading.layers) < self.shape.depth - 1


@cache
def network(model: str) -> Network:
    """The sizes of a timm model."""
    with torch.device("meta"):  # weights are not needed
        built = build_model(model)
    return Network(geometry(built), BackboneCost.of(built))


def compare_gflops(table1: pd.DataFrame) -> pd.DataFrame:
    """Every reading of every row of Table 1: columns model, k, layers, layers_from_1, position, same_as, reported,
    computed, residual (reported - computed), tolerance, explained, note. All but the first six in GFLOPs.

    A row is explained if the residual is within the rounding of the printed number plus what the two counters differ by
    on the unreduced model, where the reading plays no part.
    """
    rows: list[dict[str, Any]] = []
    for model, column in table1.groupby("model", sort=False):
        net = network(str(model))
        unreduced = float(column.loc[column["k"] == 0, "gflops"].iloc[0])
        tolerance = ROUNDING + abs(unreduced - net.gflops(DESCRIBED, 0))
        for reading in READINGS:
            for k, reported in zip(column["k"], column["gflops"], strict=True):
                rows.append({"model": model, "k": int(k), **_compare(net, reading, int(k), float(reported), tolerance)})
    return pd.DataFrame(rows)


def _compare(net: Network, reading: Reading, k: int, reported: float, tolerance: float) -> dict[str, Any]:
    applies = net.applies(reading)
    computed = net.gflops(reading, k) if applies else float("nan")
    return {
        "layers": reading.blocks,
        "layers_from_1": reading.from_one,
        "position": reading.position,
        "same_as": reading.same_as if applies else "",
        "reported": reported,
        "computed": computed,
        "residual": reported - computed,
        "tolerance": tolerance,
        "explained": abs(reported - computed) <= tolerance,
        "note": "" if applies else f"not applicable: nothing follows block {max(reading.layers)}",
    }


def rank_readings(compared: pd.DataFrame) -> pd.DataFrame:
    """One row per model and reading that applies, the nearest first; unreduced rows are left out.

    Columns model, layers, layers_from_1, position, max_residual, mean_residual (of the absolute values, G), rows,
    explained (their number), unexplained (the k of the others).
    """
    reduced = compared[(compared["k"] > 0) & (compared["note"] == "")]
    rows = []
    for key, group in reduced.groupby(["model", "layers", "layers_from_1", "position"], sort=False):
        assert isinstance(key, tuple)
        off = group["residual"].abs()
        rows.append(
            {
                **dict(zip(("model", "layers", "layers_from_1", "position"), key, strict=True)),
                "max_residual": off.max(),
                "mean_residual": off.mean(),
                "rows": len(group),
                "explained": int(group["explained"].sum()),
                "unexplained": ", ".join(map(str, group.loc[~group["explained"], "k"])),
            }
        )
    order = {model: place for place, model in enumerate(compared["model"].unique())}
    ranked = pd.DataFrame(rows).sort_values("max_residual", kind="stable")
    return ranked.sort_values("model", key=lambda models: models.map(order), kind="stable", ignore_index=True)


def search_layers(table1: pd.DataFrame) -> pd.DataFrame:
    """The nearest of *all* choices of three blocks, before or inside them, for each model.

    Columns model, schedules (how many were tried), layers, position, max_residual (G, unreduced row left out).
    """
    rows = []
    for model, column in table1[table1["k"] > 0].groupby("model", sort=False):
        net = network(str(model))
        cells = [(int(k), float(gflops)) for k, gflops in zip(column["k"], column["gflops"], strict=True)]
        misses = {
            reading: max(abs(gflops - net.gflops(reading, k)) for k, gflops in cells)
            for layers in combinations(range(net.shape.depth), len(DESCRIBED.layers))
            for reading in (Reading(layers, "pre"), Reading(layers, "mid"))
        }
        best = min(misses, key=misses.__getitem__)
        rows.append(
            {
                "model": model,
                "schedules": len(misses),
                "layers": best.blocks,
                "position": best.position,
                "max_residual": misses[best],
            }
        )
    return pd.DataFrame(rows)


def savings(column: pd.DataFrame) -> list[float]:
    """GFLOPs saved by 10 more merges, between neighbouring rows (columns k, gflops) of one model."""
    steps = column[["k", "gflops"]].diff().iloc[1:]
    return [float(saved) for saved in -10 * steps["gflops"] / steps["k"]]


def growing_savings(column: pd.DataFrame) -> list[int]:
    """The k up to which further merges save more than the ones before, beyond what rounding explains.

    That is impossible: with fixed blocks MACs are a sum of a T + b T^2 with T falling linearly in k, so each merge
    saves less than the one before.
    """
    saved, gaps, ks = savings(column), column["k"].diff().tolist()[1:], column["k"].tolist()
    return [
        int(ks[i + 1])
        for i in range(1, len(saved))
        if saved[i] - saved[i - 1] > 20 * ROUNDING * (1 / gaps[i - 1] + 1 / gaps[i]) + 1e-9
    ]


def possible_misprints(table1: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Rows that a misprinted digit would explain: columns model, k, reported, instead.

    Asked only of a model whose savings grow somewhere, as they cannot, and of which one reading explains most rows;
    answered only if exchanging one digit in each of its other rows leaves a curve that is possible.
    """
    found = []
    for model, ranked in rank_readings(compared).groupby("model", sort=False):
        column = table1[table1["model"] == model]
        best = ranked.sort_values("explained", ascending=False, kind="stable").iloc[0]
        if not growing_savings(column) or 2 * best["explained"] <= best["rows"]:
            continue
        same = (compared[["model", "layers", "position"]] == best[["model", "layers", "position"]]).all(axis=1)
        others = compared[same & (compared["k"] > 0) & ~compared["explained"]].to_dict("records")
        instead = {row["k"]: number for row in others if (number := _nearest_misprint(row)) is not None}
        corrected = column.assign(gflops=column["k"].map(instead).fillna(column["gflops"]))
        if len(instead) == len(others) and not growing_savings(corrected):
            found += [{**row, "instead": instead[row["k"]]} for row in others]
    return pd.DataFrame(found, columns=["model", "k", "reported", "instead"])


def _nearest_misprint(row: dict[Any, Any]) -> float | None:
    """The number one digit away from the reported one that the reading explains best, if it explains any."""
    near = [number for number in _one_digit_off(row["reported"]) if abs(number - row["computed"]) <= row["tolerance"]]
    return min(near, key=lambda number: abs(number - row["computed"]), default=None)


def _one_digit_off(number: float) -> list[float]:
    """All numbers that differ from one with two decimals in one digit."""
    text = f"{number:.2f}"
    places = [place for place, sign in enumerate(text) if sign.isdigit()]
    return [float(text[:p] + digit + text[p + 1 :]) for p in places for digit in "0123456789" if digit != text[p]]
