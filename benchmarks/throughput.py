"""Throughput of every method against the unreduced model and against free drop: does saving FLOPs save time?

    python benchmarks/throughput.py [--models deit_small_patch16_224] [--methods dhtm,tome,random] [--budgets 0.7]
        [--k 40,56] [--batch-sizes 256] [--dtypes float32] [--modes eager] [--device cpu] [--seconds 10] [--out FOLDER]

One process, all rivals in turn in shuffled order in every round (`tmbench profile` does the timing). The rival is the
unreduced model in the same rounds; the bound is free drop: the same token schedule with tokens dropped by position. A
method that reaches the bound has a reducer that costs nothing. `--budgets` and `--k` are timed one after the other, as
only some methods have a k: those that have not are left out there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch

from tokenmerge_bench.display import SilentReporter
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import Experiment, load_experiment
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.profiling import ProfileResult, run_profile
from tokenmerge_bench.store import UNREDUCED
from tokenmerge_bench.summary import label


def main() -> None:
    """Prints a line per rival."""
    given = arguments()
    methods = given.methods.split(",")
    chosen = {"models": given.models.split(","), "seed": 0}
    runs: dict[str, Experiment] = {}
    if given.budgets:
        budgets = [float(text) for text in given.budgets.split(",")]
        runs["budgets"] = load_experiment("demo", **chosen, methods=methods, budgets=budgets)
    if given.k:
        by_k = [name for name in methods if parse_method(name).build().knob.name == "k"]
        runs["k"] = load_experiment("demo", **chosen, methods=by_k, k=given.k.split(","))
    device = torch.device(given.device)
    versions = f"torch {torch.__version__}, timm {timm.__version__}, CUDA {torch.version.cuda}"
    print(f"{versions}; path of the inner loops: {path_for(device)}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, experiment in runs.items():
            out = (given.out or Path(scratch)) / name
            report(profile(experiment, given, out))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="deit_micro_patch2_28", help="timm models; random weights but for this one")
    parser.add_argument("--methods", default="dhtm,tome,lotm,random,dpc_knn,k_medoids")
    parser.add_argument("--budgets", default="0.7", help="fractions of the FLOPs, or nothing")
    parser.add_argument("--k", default="", help="merges per layer, such as 40,56")
    parser.add_argument("--batch-sizes", default="32")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--modes", default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of samples per group")
    parser.add_argument("--out", type=Path, help="keeps the profiles, in budgets/ and k/")
    return parser.parse_args()


def profile(experiment: Experiment, given: argparse.Namespace, out: Path) -> ProfileResult:
    """Times one way of giving budgets."""
    return run_profile(
        experiment,
        batch_sizes=given.batch_sizes.split(","),
        dtypes=given.dtypes.split(","),
        modes=given.modes.split(","),
        device=given.device,
        seconds=given.seconds,
        out=out,
        reporter=SilentReporter(),
    )


def report(result: ProfileResult) -> None:
    """Prints what was timed: rival, bound and ratios."""
    for (device, model, batch, dtype, mode), rows in result.table.groupby(
        ["device", "model", "batch_size", "dtype", "mode"], sort=False
    ):
        print(f"\n{model}, batch {batch}, {dtype}, {mode}, on {device}")
        print(f"{'method':24} {'budget':>8} {'images/s':>10} {'of unreduced (95 %)':>26} {'bound':>7} {'of bound':>9}")
        for row in rows.fillna({"options": "", "budget": "", "reason": ""}).to_dict("records"):
            print(line(row))


def line(row: dict[Any, Any]) -> str:
    """One rival."""
    name = f"{label(row['method'], row['options']):24} {row['budget']:>8}"
    if row["status"] != "ok":
        return f"{name} {row['status']}: {row['reason']}"
    ratio = f"{row['speedup']:.3f} ({row['speedup_low']:.3f} to {row['speedup_high']:.3f})"
    text = f"{name} {row['images_per_s']:10,.0f} {ratio:>26}"
    if row["method"] == UNREDUCED:
        return text
    return f"{text} {row['free_drop_speedup']:7.3f} {100 * row['of_free_drop']:7.0f} %"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"throughput.py: {error}") from None
